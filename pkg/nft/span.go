// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"encoding/binary"
	"slices"

	"github.com/untracked-cni/untracked/pkg/netset"
)

// span is an inclusive range of values of a field, whatever its width.
type span struct{ lo, hi netset.Addr6 }

// low is a value of at most 64 bits.
func low(v uint64) netset.Addr6 { return netset.Addr6{Lo: v} }

// appendKey appends a value in a field's width: at most 16 bytes.
func appendKey(to []byte, v netset.Addr6, width int) []byte {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], v.Hi)
	binary.BigEndian.PutUint64(b[8:], v.Lo)
	return append(to, b[16-width:]...)
}

// spans is a growing set of spans that do not meet. What came last is kept apart, so that to add one of many in
// no order does not move all the others.
type spans struct{ sorted, recent []span }

// recentSpans is where the recent spans join the others.
const recentSpans = 128

// meet is true if a value of one of the given spans is in the set.
func (s *spans) meet(with []span) bool {
	return slices.ContainsFunc(with, func(w span) bool { return meets(s.sorted, w) || meets(s.recent, w) })
}

// meets is true if a span shares a value with one of a sorted list.
func meets(sorted []span, w span) bool {
	at, _ := slices.BinarySearchFunc(sorted, w.lo, func(s span, lo netset.Addr6) int { return s.hi.Compare(lo) })
	return at < len(sorted) && sorted[at].lo.Compare(w.hi) <= 0
}

// add takes spans that do not meet any in the set.
func (s *spans) add(more []span) {
	for _, m := range more {
		if n := len(s.sorted); len(s.recent) == 0 && (n == 0 || s.sorted[n-1].hi.Compare(m.lo) < 0) {
			s.sorted = append(s.sorted, m)
			continue
		}
		at, _ := slices.BinarySearchFunc(s.recent, m, compareSpans)
		s.recent = slices.Insert(s.recent, at, m)
	}
	if len(s.recent) >= recentSpans {
		s.sorted = merge(s.sorted, s.recent)
		s.recent = s.recent[:0]
	}
}

func merge(a, b []span) []span {
	out := make([]span, 0, len(a)+len(b)+recentSpans)
	for len(a) > 0 && len(b) > 0 {
		if compareSpans(a[0], b[0]) < 0 {
			out, a = append(out, a[0]), a[1:]
		} else {
			out, b = append(out, b[0]), b[1:]
		}
	}
	return append(append(out, a...), b...)
}

func compareSpans(a, b span) int { return a.lo.Compare(b.lo) }
