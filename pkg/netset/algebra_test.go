// SPDX-License-Identifier: Apache-2.0

package netset

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// randomSet draws few prefixes close to each other, so that sets overlap, touch and miss each other, and the ends of
// both address spaces.
func randomSet(r *rand.Rand) *Set {
	var b Builder
	for range r.IntN(8) {
		a4 := netip.AddrFrom4([4]byte{10, 0, byte(r.IntN(2)), byte(r.IntN(256))})
		a6 := netip.AddrFrom16([16]byte{0x20, 1, 7: byte(r.IntN(2)), 8: byte(r.IntN(2)), 15: byte(r.IntN(256))})
		switch r.IntN(12) {
		case 0:
			a4, a6 = netip.MustParseAddr("255.255.255.255"), Max6.Netip()
		case 1:
			a4, a6 = netip.IPv4Unspecified(), netip.IPv6Unspecified()
		}
		bits4, bits6 := 22+r.IntN(11), []int{0, 1, 55, 63, 64, 65, 120, 126, 128}[r.IntN(9)]
		if r.IntN(10) == 0 {
			bits4 = r.IntN(3)
		}
		if r.IntN(3) > 0 {
			b.Add(netip.PrefixFrom(a4, bits4))
		}
		if r.IntN(3) > 0 {
			b.Add(netip.PrefixFrom(a6, bits6))
		}
	}
	return b.Build()
}

// edges are the first and last addresses of a set's ranges and those beside them.
func edges(s *Set) []netip.Addr {
	var out []netip.Addr
	around := func(a netip.Addr) {
		for _, b := range []netip.Addr{a.Prev(), a, a.Next()} {
			if b.IsValid() {
				out = append(out, b)
			}
		}
	}
	for _, r := range s.v4 {
		around(To4(r.Lo))
		around(To4(r.Hi))
	}
	for _, r := range s.v6 {
		around(r.Lo.Netip())
		around(r.Hi.Netip())
	}
	return out
}

// Against membership, at every edge of either set: between two edges membership does not change.
func TestAlgebraAgainstMembership(t *testing.T) {
	var overlaps, disjoint int
	for seed := range uint64(3000) {
		r := rand.New(rand.NewPCG(seed, 2))
		a, b, c := randomSet(r), randomSet(r), randomSet(r)
		and, or := a.Intersect(b), Union(a, b, c)
		if and.Empty() {
			disjoint++
		} else {
			overlaps++
		}
		for _, s := range []*Set{a, b, c, and, or} {
			for _, p := range edges(s) {
				inA, inB, inC := a.Contains(p), b.Contains(p), c.Contains(p)
				if got, want := and.Contains(p), inA && inB; got != want {
					t.Fatalf("seed %d: %s ∩ %s contains %s: %v, want %v", seed, a, b, p, got, want)
				}
				if got, want := or.Contains(p), inA || inB || inC; got != want {
					t.Fatalf("seed %d: %s ∪ %s ∪ %s contains %s: %v, want %v", seed, a, b, c, p, got, want)
				}
			}
		}
		for name, s := range map[string]*Set{"∩": and, "∪": or} {
			// Built from its own prefixes a set has the canonical ranges: sorted, disjoint, not adjacent.
			again := Of(s.Prefixes()...)
			if !again.Equal(s) || again.Hash() != s.Hash() {
				t.Fatalf("seed %d: %s is not in canonical form: %v %v", seed, name, s.v4, s.v6)
			}
		}
		if !and.Equal(b.Intersect(a)) || !or.Equal(Union(c, b, a)) {
			t.Fatalf("seed %d: the order of the sets matters", seed)
		}
		if got, want := and.Entries(), len(and.Prefixes()); got != want {
			t.Fatalf("seed %d: the intersection has %d entries, want %d", seed, got, want)
		}
		if got, want := or.Entries(), a.Entries()+b.Entries()+c.Entries(); got != want {
			t.Fatalf("seed %d: the union has %d entries, want %d", seed, got, want)
		}
	}
	if overlaps < 500 || disjoint < 500 {
		t.Errorf("%d intersections with and %d without addresses: the sets are badly chosen", overlaps, disjoint)
	}
}

func TestAlgebra(t *testing.T) {
	of := func(cidrs ...string) *Set {
		var b Builder
		for _, c := range cidrs {
			b.Add(netip.MustParsePrefix(c))
		}
		return b.Build()
	}
	everything := of("0.0.0.0/0", "::/0")
	for _, c := range []struct{ a, b, and, or *Set }{
		{of(), of(), of(), of()},
		{of("10.0.0.0/8"), of(), of(), of("10.0.0.0/8")},
		{everything, everything, everything, everything},
		{everything, of("10.0.0.0/8", "2001:db8::/32"), of("10.0.0.0/8", "2001:db8::/32"), everything},
		{of("0.0.0.0/1"), of("128.0.0.0/1"), of(), of("0.0.0.0/0")},
		{of("::/1"), of("8000::/1"), of(), of("::/0")},
		{of("10.0.0.0/8"), of("a00::/8"), of(), of("10.0.0.0/8", "a00::/8")},
		{of("10.0.0.0/9", "10.128.0.0/9"), of("10.64.0.0/10", "10.128.0.0/10"), of("10.64.0.0/10", "10.128.0.0/10"), of("10.0.0.0/8")},
		{of("255.255.255.255/32"), of("255.255.255.254/31"), of("255.255.255.255/32"), of("255.255.255.254/31")},
	} {
		for _, swap := range []bool{false, true} {
			a, b := c.a, c.b
			if swap {
				a, b = b, a
			}
			if got := a.Intersect(b); !got.Equal(c.and) {
				t.Errorf("%s ∩ %s = %s, want %s", a, b, got, c.and)
			}
			if got := Union(a, b); !got.Equal(c.or) {
				t.Errorf("%s ∪ %s = %s, want %s", a, b, got, c.or)
			}
		}
	}
	if u := Union(); u == nil || !u.Empty() {
		t.Errorf("the union of no set is %v", u)
	}
	if of("10.0.0.0/8").Equal(of("10.0.0.0/9")) || of("::/8").Equal(of("::/9")) || !of("10.0.0.0/8").Equal(of("10.0.0.0/9", "10.128.0.0/9")) {
		t.Error("Equal does not go by the addresses")
	}
	if diff := cmp.Diff([]string{"10.64.0.0/10", "10.128.0.0/10"}, texts(of("10.0.0.0/8").Intersect(of("10.64.0.0/10", "10.128.0.0/10")))); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

func texts(s *Set) []string {
	var out []string
	for _, p := range s.Prefixes() {
		out = append(out, p.String())
	}
	return out
}

// What adds nothing makes no copy.
func TestUnionWithNothing(t *testing.T) {
	s := Of(netip.MustParsePrefix("10.0.0.0/8"))
	if got := Union(Of(), s, new(Set)); got != s {
		t.Errorf("the union of %s and nothing is %s, a copy", s, got)
	}
	if got := Union(Of(), new(Set)); !got.Empty() || got.Entries() != 0 {
		t.Errorf("the union of nothing is %s", got)
	}
}
