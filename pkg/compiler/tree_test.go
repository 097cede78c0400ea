// SPDX-License-Identifier: Apache-2.0

package compiler

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/untracked-cni/untracked/pkg/netset"
	"github.com/untracked-cni/untracked/pkg/policy"
)

// crowds makes the starts of intervals in many ways: alone, in crowds at every depth, next to each other.
func crowds(r *rand.Rand, n int) []netset.Addr6 {
	starts := []netset.Addr6{{}}
	for len(starts) < n {
		a := netset.Addr6{Hi: r.Uint64(), Lo: r.Uint64()}
		depth := r.IntN(129)
		for range 1 + r.IntN(1+n/4) {
			b := netset.Addr6{Hi: r.Uint64(), Lo: r.Uint64()}
			hi, lo := ^uint64(0), ^uint64(0)
			if depth < 64 {
				hi, lo = 1<<(64-depth)-1, ^uint64(0)
			} else {
				hi, lo = 0, 1<<(128-depth)-1
			}
			starts = append(starts, netset.Addr6{Hi: a.Hi&^hi | b.Hi&hi, Lo: a.Lo&^lo | b.Lo&lo})
			if r.IntN(3) == 0 {
				starts = append(starts, starts[len(starts)-1].Next())
			}
		}
	}
	slices.SortFunc(starts, netset.Addr6.Compare)
	return slices.Compact(starts)
}

// find finds the class of an address in a tree by reading the nodes.
func (f *forest) find(t *testing.T, root []uint32, top uint32, stages []*stage, steps []uint32, keys ...uint64) uint32 {
	t.Helper()
	if root == nil {
		return 0
	}
	w := walk{&Image{Bytes: f.bytes}, &Layout{}, func(string, ...any) {}}
	ref := root[top]
	for i, s := range stages {
		ref = w.descend(s, ref, keys[i], steps[i])
	}
	if ref>>30 != refClass>>30 {
		t.Fatalf("it takes more than %v steps", steps)
	}
	return ref
}

func TestTree6(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 6))
	pages := 0
	for _, n := range []int{2, 3, 7, 40, 300, 5000, 40_000} {
		for range 4 {
			starts := crowds(r, n)
			in := intervals[netset.Addr6]{starts: starts}
			for i := range starts {
				in.classOf = append(in.classOf, uint32(i))
			}
			var f forest
			root, steps, deeper := f.tree6(&in)
			if steps > uint32(stage6.steps) || deeper > uint32(stage6second.steps) {
				t.Fatalf("%d starts: %d and %d steps", len(starts), steps, deeper)
			}
			for _, ref := range root {
				if ref>>30 != 0 && ref&refPage != 0 {
					pages++
				}
			}
			for range 2000 {
				i := r.IntN(len(starts))
				a := starts[i]
				switch r.IntN(3) {
				case 0:
					a = a.Next()
				case 1:
					if i > 0 {
						a = netset.From6(a.Netip().Prev())
					}
				}
				want, found := slices.BinarySearchFunc(starts, a, netset.Addr6.Compare)
				if !found {
					want--
				}
				first, second := keys6(a)
				got := f.find(t, root, uint32(a.Hi>>48), []*stage{&stage6, &stage6second}, []uint32{steps, deeper}, first, second)
				if got != uint32(want) {
					t.Fatalf("%d starts: %s is in interval %d, want %d", len(starts), a.Netip(), got, want)
				}
			}
		}
	}
	if pages == 0 {
		t.Error("no page stands right behind a root: the shapes are not crowded enough")
	}
}

func TestTree4(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 4))
	kinds := map[string]int{}
	for _, n := range []int{2, 3, 12, 200, 5000, 60_000} {
		for range 4 {
			starts := []uint32{0}
			for _, a := range crowds(r, n) {
				starts = append(starts, uint32(a.Hi>>32), 0x0a0b0000|uint32(a.Lo)&0xffff)
			}
			slices.Sort(starts)
			starts = slices.Compact(starts)
			in := intervals[uint32]{starts: starts}
			for i := range starts {
				in.classOf = append(in.classOf, uint32(i))
			}
			var f forest
			root, steps := f.tree4(&in)
			if steps > 2 {
				t.Fatalf("%d starts: %d steps", len(starts), steps)
			}
			for _, ref := range root {
				switch {
				case ref>>30 == refClass>>30:
					kinds["class"]++
				case ref&refPage != 0:
					kinds["page"]++
				default:
					kinds["line"]++
				}
			}
			for range 2000 {
				a := starts[r.IntN(len(starts))] + r.Uint32N(3) - 1
				want, found := slices.BinarySearch(starts, a)
				if !found {
					want--
				}
				if got := f.find(t, root, a>>16, []*stage{&stage4}, []uint32{2}, uint64(a&0xffff)); got != uint32(want) {
					t.Fatalf("%d starts: %s is in interval %d, want %d", len(starts), netset.To4(a), got, want)
				}
			}
		}
	}
	if len(kinds) != 3 {
		t.Errorf("roots lead to %v only", kinds)
	}
}

// What a CIDR takes, where they stand alone and where they stand worst.
func TestMemoryPerCIDR(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	const n = 100_000
	for _, c := range []struct {
		name string
		cidr func(i int) netip.Prefix
		most int
	}{
		{"lone hosts", func(int) netip.Prefix { return netip.PrefixFrom(netset.To4(r.Uint32()), 32) }, 40},
		{"hosts and nets", func(int) netip.Prefix {
			return netip.PrefixFrom(netset.To4(r.Uint32()), []int{32, 32, 24, 20}[r.IntN(4)])
		}, 40},
		{"six hosts in each /24", func(i int) netip.Prefix {
			return netip.PrefixFrom(netset.To4(0x0b000000+uint32(i/6)<<8+uint32(i%6)*40+1), 32)
		}, 200},
		{"IPv6 nets and hosts", func(int) netip.Prefix {
			return netip.PrefixFrom(netset.Addr6{Hi: 0x2000<<48 | r.Uint64N(1<<61), Lo: r.Uint64()}.Netip(), []int{48, 64, 64, 128}[r.IntN(4)])
		}, 200},
		{"IPv6 hosts in a /64", func(int) netip.Prefix {
			return netip.PrefixFrom(netset.Addr6{Hi: 0x2001_0db8 << 32, Lo: r.Uint64()}.Netip(), 128)
		}, 200},
		{"IPv6 hosts, one in each of adjacent /64", func(i int) netip.Prefix {
			return netip.PrefixFrom(netset.Addr6{Hi: 0x2001_0db8<<32 | uint64(i), Lo: r.Uint64()}.Netip(), 128)
		}, 200},
	} {
		var b netset.Builder
		for i := range n {
			b.Add(c.cidr(i).Masked())
		}
		image, err := Compile([]policy.Rule{{Action: policy.Deny, Source: policy.Entity{Nets: b.Build()}}})
		if err != nil {
			t.Fatal(err)
		}
		per := len(image.Bytes) / n
		t.Logf("%s: %d bytes each, %d reads a packet at most", c.name, per, image.Method.Loads)
		if per > c.most {
			t.Errorf("%s: %d bytes each, at most %d are allowed", c.name, per, c.most)
		}
	}
}
