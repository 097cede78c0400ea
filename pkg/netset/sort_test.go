// SPDX-License-Identifier: Apache-2.0

package netset

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// However many there are, and wherever their addresses differ, the order is that of a comparison sort.
func TestSort(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{0, 1, few - 1, few, few + 1, 10 * few} {
		for name, draw := range map[string]func() uint32{
			"anywhere": r.Uint32,
			"low":      func() uint32 { return r.Uint32N(64) },
			"high":     func() uint32 { return r.Uint32() &^ (1<<22 - 1) },
			"middle":   func() uint32 { return r.Uint32() & (1<<22 - 1<<11) },
			"equal":    func() uint32 { return 7 },
		} {
			var ranges []uint64
			for range n {
				ranges = append(ranges, uint64(draw())<<32|uint64(r.Uint32()))
			}
			if n > 2*few {
				slices.Sort(ranges[:n/2])
			}
			want := slices.Clone(ranges)
			slices.SortStableFunc(want, func(a, b uint64) int { return int(a>>32) - int(b>>32) })
			if got := sort4(ranges); n >= few && !slices.Equal(got, want) || !slices.IsSortedFunc(got, func(a, b uint64) int { return int(a>>32) - int(b>>32) }) {
				t.Errorf("%d %s: not in order", n, name)
			}
		}
	}
}
