// SPDX-License-Identifier: Apache-2.0

package netset

import "slices"

// Equal reports whether both sets have the same addresses, however they were written.
func (s *Set) Equal(t *Set) bool { return slices.Equal(s.v4, t.v4) && slices.Equal(s.v6, t.v6) }

// Union is the set of all addresses that are in any of the sets. Its entries are those of all of them.
func Union(sets ...*Set) *Set {
	// What adds nothing is no reason to copy a large set.
	sets = slices.DeleteFunc(slices.Clone(sets), (*Set).Empty)
	if len(sets) == 1 {
		return sets[0]
	}
	var b Builder
	for _, s := range sets {
		for _, r := range s.v4 {
			b.v4 = append(b.v4, uint64(r.Lo)<<32|uint64(r.Hi))
		}
		b.v6 = append(b.v6, s.v6...)
		b.entries += s.entries
	}
	return b.Build()
}

// Intersect is the set of the addresses that are in both sets. Its entries are the fewest prefixes that cover it.
func (s *Set) Intersect(t *Set) *Set {
	out := &Set{
		v4: intersect(s.v4, t.v4,
			func(a, b Range4) (Range4, bool) {
				both := Range4{max(a.Lo, b.Lo), min(a.Hi, b.Hi)}
				return both, both.Lo <= both.Hi
			},
			func(a, b Range4) bool { return a.Hi < b.Hi }),
		v6: intersect(s.v6, t.v6,
			func(a, b Range6) (Range6, bool) {
				both := Range6{max6(a.Lo, b.Lo), min6(a.Hi, b.Hi)}
				return both, both.Lo.Compare(both.Hi) <= 0
			},
			func(a, b Range6) bool { return a.Hi.Compare(b.Hi) < 0 }),
	}
	out.entries = len(out.Prefixes())
	return out
}

// intersect walks two sorted lists of disjoint ranges at once. The result is sorted and disjoint, too, and no two of
// its ranges are adjacent: a gap in either list is a gap in the result.
func intersect[R any](a, b []R, overlap func(a, b R) (R, bool), endsFirst func(a, b R) bool) []R {
	var out []R
	for len(a) > 0 && len(b) > 0 {
		if both, ok := overlap(a[0], b[0]); ok {
			out = append(out, both)
		}
		if endsFirst(a[0], b[0]) {
			a = a[1:]
		} else {
			b = b[1:]
		}
	}
	return out
}

func max6(a, b Addr6) Addr6 {
	if a.Compare(b) > 0 {
		return a
	}
	return b
}

func min6(a, b Addr6) Addr6 {
	if a.Compare(b) < 0 {
		return a
	}
	return b
}
