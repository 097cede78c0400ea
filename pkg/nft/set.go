// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"iter"
	"math"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/untracked-cni/untracked/pkg/netset"
	"github.com/untracked-cni/untracked/pkg/policy"
)

// A set is written into the rule that looks it up, as an anonymous set, up to a size and a number of rules that
// keep listings readable. Others get a name.
const (
	maxAnonymous     = 16
	maxAnonymousUses = 8
)

// set is what a field is compared with: sorted, disjoint and never adjacent inclusive ranges of big-endian
// values.
type set struct {
	datatype nftables.SetDatatype
	count    int
	// ranges yields count pairs. The slices are valid until the next pair.
	ranges iter.Seq2[[]byte, []byte]
	// hash identifies the content.
	hash uint64
	// kind begins the name of a set that gets one.
	kind string

	// from is what an address set is a family of, nil for other sets.
	from *netset.Set
	// comment says where the addresses come from. (optional)
	comment string
	// raw is a field that nft has no name for, nil for others: what a set is of has to be told by it, or nft could
	// not read its own listing.
	raw *expr.Payload
	// name is given by the ruleset that the set becomes part of, empty for an anonymous set.
	name string
}

func (s *set) width() int { return int(s.datatype.Bytes) }

// first returns copies of the bounds of the first range.
func (s *set) first() (lo, hi []byte) {
	for a, b := range s.ranges {
		return slices.Clone(a), slices.Clone(b)
	}
	return nil, nil
}

// everything reports whether the set holds all values of its type.
func (s *set) everything() bool {
	if s.count != 1 {
		return false
	}
	lo, hi := s.first()
	return !slices.ContainsFunc(lo, func(b byte) bool { return b != 0 }) &&
		!slices.ContainsFunc(hi, func(b byte) bool { return b != math.MaxUint8 })
}

// interval is false when each range is a single value: a hash set is enough then, and faster.
func (s *set) interval() bool {
	for lo, hi := range s.ranges {
		if string(lo) != string(hi) {
			return true
		}
	}
	return false
}

// equal compares contents.
func (s *set) equal(o *set) bool {
	if s.datatype != o.datatype || s.kind != o.kind || s.hash != o.hash || s.count != o.count || s.comment != o.comment {
		return false
	}
	if s.from != nil && s.from == o.from {
		return true
	}
	next, stop := iter.Pull2(o.ranges)
	defer stop()
	for lo, hi := range s.ranges {
		if olo, ohi, ok := next(); !ok || string(lo) != string(olo) || string(hi) != string(ohi) {
			return false
		}
	}
	return true
}

// of makes s a set of values of a field without a name.
func (s *set) of(field *expr.Payload) *set {
	raw := *s
	raw.raw = field
	raw.datatype = nftables.TypeInteger
	raw.datatype.Bytes = s.datatype.Bytes
	raw.kind = "quoted-" + s.kind
	return &raw
}

// element is a value in the kernel's form of an interval set: a range is its first value and, flagged as the
// end, the value after its last one. A range that ends with the last value there is has no end.
type element struct {
	key []byte
	end bool
}

// elements yields at most two elements a range. The keys are valid until the next element.
func (s *set) elements() iter.Seq[element] {
	return func(yield func(element) bool) {
		interval := s.interval()
		begun := false
		after := make([]byte, s.width())
		for lo, hi := range s.ranges {
			if interval && !begun && slices.ContainsFunc(lo, func(b byte) bool { return b != 0 }) {
				// As nft does: the space before the first range is an interval that does not match.
				if !yield(element{make([]byte, s.width()), true}) {
					return
				}
			}
			begun = true
			if !yield(element{lo, false}) {
				return
			}
			if interval && successor(after, hi) && !yield(element{after, true}) {
				return
			}
		}
	}
}

// successor sets dst to v+1 and is false when there is none.
func successor(dst, v []byte) bool {
	copy(dst, v)
	for i := len(dst) - 1; i >= 0; i-- {
		dst[i]++
		if dst[i] != 0 {
			return true
		}
	}
	return false
}

// addresses is one family of a set.
func addresses(family int, from *netset.Set, hash uint64, comment string) *set {
	s := &set{kind: fmt.Sprintf("net%d", family), hash: hash ^ uint64(family), from: from, comment: comment}
	if family == 4 {
		s.datatype, s.count = nftables.TypeIPAddr, len(from.Ranges4())
		s.ranges = func(yield func(lo, hi []byte) bool) {
			var lo, hi [4]byte
			for _, r := range from.Ranges4() {
				binary.BigEndian.PutUint32(lo[:], r.Lo)
				binary.BigEndian.PutUint32(hi[:], r.Hi)
				if !yield(lo[:], hi[:]) {
					return
				}
			}
		}
		return s
	}
	s.datatype, s.count = nftables.TypeIP6Addr, len(from.Ranges6())
	s.ranges = func(yield func(lo, hi []byte) bool) {
		for _, r := range from.Ranges6() {
			lo, hi := r.Lo.Netip().As16(), r.Hi.Netip().As16()
			if !yield(lo[:], hi[:]) {
				return
			}
		}
	}
	return s
}

func ports(ranges []policy.PortRange) *set {
	ranges = policy.NormalizePorts(ranges)
	s := &set{kind: "ports", datatype: nftables.TypeInetService, count: len(ranges)}
	s.ranges = func(yield func(lo, hi []byte) bool) {
		var lo, hi [2]byte
		for _, r := range ranges {
			binary.BigEndian.PutUint16(lo[:], r.First)
			binary.BigEndian.PutUint16(hi[:], r.Last)
			if !yield(lo[:], hi[:]) {
				return
			}
		}
	}
	s.hash = s.hashRanges()
	return s
}

// octets is a set of single bytes, in ascending order.
func octets(kind string, datatype nftables.SetDatatype, values []uint8) *set {
	s := &set{kind: kind, datatype: datatype, count: len(values)}
	s.ranges = func(yield func(lo, hi []byte) bool) {
		for i := range values {
			if v := values[i : i+1]; !yield(v, v) {
				return
			}
		}
	}
	s.hash = s.hashRanges()
	return s
}

func (s *set) hashRanges() uint64 {
	h := fnv.New64a()
	fmt.Fprintf(h, "%s %d|", s.datatype.Name, s.count)
	for lo, hi := range s.ranges {
		h.Write(lo)
		h.Write(hi)
	}
	return h.Sum64()
}
