// SPDX-License-Identifier: Apache-2.0

package netset

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseList(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       []string
		entries    int
	}{
		{"all there is",
			"\ufeff# a feed\n" +
				"192.0.2.1\n" +
				"192.0.2.1   ; again\n" +
				"  198.51.100.77/24\tDE\tcomment ignored\n" +
				"203.0.113.0/25,1,2,3\n" +
				"203.0.113.128/25\r\n" +
				"\n; only a comment\n" +
				"2001:db8::1/32 # host bits\n" +
				"::ffff:192.0.2.9\n",
			[]string{"192.0.2.1/32", "192.0.2.9/32", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32"}, 7},
		{"nothing", "", nil, 0},
		{"comments alone", "# x\n\t; y, z\n\r\n#", nil, 0},
		{"no newline at the end", "192.0.2.1\n192.0.2.2", []string{"192.0.2.1/32", "192.0.2.2/32"}, 2},
		{"carriage returns", "192.0.2.1\r\n\r\n2001:db8::1\r\n192.0.2.7/31 # x\r\n", []string{"192.0.2.1/32", "192.0.2.6/31", "2001:db8::1/128"}, 3},
		{"a comment right behind", "192.0.2.1#x\n192.0.2.3;y\n192.0.2.5,\n", []string{"192.0.2.1/32", "192.0.2.3/32", "192.0.2.5/32"}, 3},
		{"overlaps of both families", "10.0.0.0/8\n10.1.2.3\n10.255.255.255/9\n11.0.0.0/8\n2001:db8::/32\n2001:db8:1::/48\n2001:db9::/32\n",
			[]string{"10.0.0.0/7", "2001:db8::/31"}, 7},
		{"everything", "0.0.0.0/0\n::/0\n1.2.3.4\n", []string{"0.0.0.0/0", "::/0"}, 3},
		{"a very long line", "192.0.2.1 # " + strings.Repeat("x", 3<<20) + "\n192.0.2.2\n", []string{"192.0.2.1/32", "192.0.2.2/32"}, 2},
		{"a very long indentation", strings.Repeat(" ", 3<<20) + "192.0.2.1", []string{"192.0.2.1/32"}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := ParseList([]byte(c.text), "feed")
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, p := range s.Prefixes() {
				got = append(got, p.String())
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
			if s.Entries() != c.entries {
				t.Errorf("%d entries, want %d", s.Entries(), c.entries)
			}
		})
	}
}

func TestParseListErrors(t *testing.T) {
	const notAddress, notCIDR = "is not an address or CIDR such as 10.0.0.0/8 or 2001:db8::1", "is not a CIDR such as 10.0.0.0/8 or 2001:db8::/32"
	for text, want := range map[string]string{
		"192.0.2.1\n  10.0.0.0/33\n":   `feed:2:3: "10.0.0.0/33" ` + notCIDR,
		"example.org\n":                `feed:1:1: "example.org" ` + notAddress,
		"\ufeff 10.0.0.256":            `feed:1:2: "10.0.0.256" ` + notAddress,
		"10.0.0.1\r\n\r\n\t10.0.0.01":  `feed:3:2: "10.0.0.01" ` + notAddress,
		"# x\n\n,10.0.0.1\n":           `feed:3:1: empty first column, want an address or CIDR`,
		"fe80::1%eth0\n":               `feed:1:1: "fe80::1%eth0" ` + notAddress,
		"10.0.0.1\n10.0.0.1/8/9 # x\n": `feed:2:1: "10.0.0.1/8/9" ` + notCIDR,
		"10.0.0.1-10.0.0.9\n":          `feed:1:1: "10.0.0.1-10.0.0.9" ` + notAddress,
		"\x00\x01\n":                   `feed:1:1: "\x00\x01" ` + notAddress,
		strings.Repeat("1", 2<<20):     `feed:1:1: "` + strings.Repeat("1", 80) + `" ` + notAddress,
	} {
		if _, err := ParseList([]byte(text), "feed"); err == nil || err.Error() != want {
			t.Errorf("%.40q: %v, want %s", text, err, want)
		}
	}
}

// A million lines in no order, with duplicates and overlaps, are the set that the prefixes make one by one.
func TestParseListOfAMillion(t *testing.T) {
	var text bytes.Buffer
	var want Builder
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 1_000_000 {
		p := netip.PrefixFrom(To4(r.Uint32()&0x3fffffff), 22+r.IntN(11))
		if i%16 == 0 {
			p = netip.PrefixFrom(Addr6{0x2001_0db8 << 32, r.Uint64() & 0xffffff}.Netip(), 96+r.IntN(33))
		}
		want.Add(p)
		text.WriteString(p.String())
		text.WriteString([]string{"\n", "\r\n", " # x\n", "\n\n"}[i%4])
	}
	got, err := ParseList(text.Bytes(), "feed")
	if err != nil {
		t.Fatal(err)
	}
	if want := want.Build(); !got.Equal(want) || got.Entries() != 1_000_000 {
		t.Errorf("%d entries in %d and %d ranges, want 1000000 in %d and %d", got.Entries(),
			len(got.Ranges4()), len(got.Ranges6()), len(want.Ranges4()), len(want.Ranges6()))
	}
}

// FuzzAddText: the short cut for IPv4 takes what the standard library does, and nothing else.
func FuzzAddText(f *testing.F) {
	for _, s := range []string{"10.0.0.1", "10.1.2.3/8", "0.0.0.0/0", "255.255.255.255/32", "1.2.3.04", "1.2.3.4/08", "1.2.3.4/33", "1.2.3.4/",
		"1.2.3", "1.2.3.4.5", "256.1.1.1", "1..2.3", "1.2.3.4/+1", "99999999999999999999.1.1.1", "::1", "::ffff:1.2.3.4/100", "", "1.2.3.4 ", "00.0.0.0", "1.2.3.4/00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var b Builder
		err := b.AddText([]byte(s))
		p, want := ParsePrefix(s)
		if fmt.Sprint(err) != fmt.Sprint(want) {
			t.Fatalf("%q: %v, want %v", s, err, want)
		}
		var wanted Builder
		if want == nil {
			wanted.Add(p)
		}
		if got, want := b.Build(), wanted.Build(); !got.Equal(want) || got.Entries() != want.Entries() {
			t.Fatalf("%q is %s, want %s", s, got, want)
		}
		if _, _, ok := parse4([]byte(s)); ok != (err == nil && !strings.Contains(s, ":")) {
			t.Fatalf("%q: taken by the short cut: %v", s, ok)
		}
	})
}

func BenchmarkParseList(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 2))
	v4 := func() netip.Prefix { return netip.PrefixFrom(To4(r.Uint32()), 24+r.IntN(9)).Masked() }
	v6 := func() netip.Prefix {
		return netip.PrefixFrom(Addr6{0x2001_0db8<<32 | r.Uint64()>>32, r.Uint64()}.Netip(), 48+r.IntN(81)).Masked()
	}
	for name, draw := range map[string]func() netip.Prefix{"IPv4": v4, "IPv6": v6} {
		var text bytes.Buffer
		for range 1_000_000 {
			fmt.Fprintln(&text, draw())
		}
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(text.Len()))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := ParseList(text.Bytes(), "feed"); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
