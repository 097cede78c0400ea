// SPDX-License-Identifier: Apache-2.0

package netset

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Against the plainest oracle: ask each prefix.
func TestSetAgainstPrefixes(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1))
		var prefixes []netip.Prefix
		for range r.IntN(30) {
			a4 := netip.AddrFrom4([4]byte{10, byte(r.IntN(2)), byte(r.IntN(3)), byte(r.IntN(256))})
			a6 := netip.AddrFrom16([16]byte{0x20, 1, 15: byte(r.IntN(256))})
			if r.IntN(20) == 0 {
				a4, a6 = netip.MustParseAddr("255.255.255.255"), Max6.Netip()
			}
			prefixes = append(prefixes, netip.PrefixFrom(a4, r.IntN(33)), netip.PrefixFrom(a6, r.IntN(129)))
		}
		s := Of(prefixes...)
		var probes []netip.Addr
		for _, p := range append(prefixes, s.Prefixes()...) {
			m := p.Masked().Addr()
			for _, a := range []netip.Addr{m, m.Prev(), m.Next(), p.Addr()} {
				if a.IsValid() {
					probes = append(probes, a)
				}
			}
		}
		for _, a := range probes {
			want := false
			for _, p := range prefixes {
				want = want || p.Contains(a)
			}
			if got := s.Contains(a); got != want {
				t.Fatalf("seed %d: %s in set: %v, want %v", seed, a, got, want)
			}
		}
		if again := Of(s.Prefixes()...); again.Hash() != s.Hash() || !cmp.Equal(again.Ranges4(), s.Ranges4()) || !cmp.Equal(again.Ranges6(), s.Ranges6()) {
			t.Fatalf("seed %d: the set of the set's prefixes is another set", seed)
		}
		for i, x := range s.Ranges4() {
			if x.Lo > x.Hi || i > 0 && uint64(x.Lo) <= uint64(s.Ranges4()[i-1].Hi)+1 {
				t.Fatalf("seed %d: ranges are not sorted, disjoint and apart: %v", seed, s.Ranges4())
			}
		}
	}
}

func TestFamiliesAreApart(t *testing.T) {
	s := Of(netip.MustParsePrefix("10.0.0.0/8"))
	for _, a := range []string{"a00::1", "::ffff:10.0.0.1", "::10.0.0.1"} {
		if s.Contains(netip.MustParseAddr(a)) {
			t.Errorf("10.0.0.0/8 contains %s", a)
		}
	}
	everything := Of(netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0"))
	if len(everything.Ranges4()) != 1 || len(everything.Ranges6()) != 1 || everything.String() != "0.0.0.0/0,::/0" {
		t.Errorf("everything is %s", everything)
	}
}
