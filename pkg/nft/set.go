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

// set is what a field is compared with: sorted and disjoint inclusive ranges of big-endian values. It may also be
// what several fields together are compared with, or a map to the counters of rules.
type set struct {
	datatype nftables.SetDatatype
	count    int
	// ranges yields count pairs. The slices are valid until the next pair.
	ranges iter.Seq2[[]byte, []byte]
	// parts are the types of the fields of a concatenation, each of which has a range of its own. They are padded to
	// whole registers. It is nil for a set of one field.
	parts []nftables.SetDatatype
	// counters are the names of what the ranges are mapped to, by their number. It is nil for a set.
	counters []string
	// hash identifies the content.
	hash uint64
	// kind begins the name of a set that gets one.
	kind string

	// v4 or v6 are the ranges of an address set, both nil for other sets.
	v4 []netset.Range4
	v6 []netset.Range6
	// comment says where the addresses come from. (optional)
	comment string
	// raw are the fields, if nft has no names for them, nil for others: what a set is of has to be told by them, or
	// nft could not read its own listing.
	raw []*expr.Payload
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
	if s.datatype != o.datatype || s.kind != o.kind || s.hash != o.hash || s.count != o.count || s.comment != o.comment ||
		!slices.Equal(s.counters, o.counters) {
		return false
	}
	if s.v4 != nil || s.v6 != nil {
		return slices.Equal(s.v4, o.v4) && slices.Equal(s.v6, o.v6)
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

// of makes s a set of values of fields without a name.
func (s *set) of(raw ...*expr.Payload) *set {
	out := *s
	out.raw = raw
	out.datatype, out.kind = nftables.TypeInteger, "quoted-"+s.kind
	if s.parts != nil {
		out.datatype = concatenation(slices.Repeat([]nftables.SetDatatype{nftables.TypeInteger}, len(raw)))
	}
	out.datatype.Bytes = s.datatype.Bytes
	return &out
}

// element is a value in the kernel's form of an interval set: a range is its first value and, flagged as the
// end, the value after its last one. A range that ends with the last value there is has no end. In an interval set of
// concatenations it is a range with its last value.
type element struct {
	key  []byte
	last []byte
	end  bool
	// counter is what a map has there.
	counter string
}

// elements yields at most two elements a range, which are those of an interval set or of one without. A blank
// is yielded first, if wanted. The keys are valid until the next element.
//
// Ranges of a map may be adjacent. In an anonymous one the first then has no end, as nft does it: there a kernel that
// comes upon the end (seen on 5.10) does not look for a range that begins with it.
func (s *set) elements(interval, blank bool) iter.Seq[element] {
	return func(yield func(element) bool) {
		if blank && !yield(element{key: make([]byte, s.width()), end: true}) {
			return
		}
		bounds := interval && s.parts == nil
		n, ends, after := 0, false, make([]byte, s.width())
		for lo, hi := range s.ranges {
			if ends && (s.name != "" || string(after) != string(lo)) && !yield(element{key: after, end: true}) {
				return
			}
			e := element{key: lo}
			if s.counters != nil {
				e.counter = s.counters[n]
			}
			n++
			if interval && s.parts != nil {
				e.last = hi
			}
			if !yield(e) {
				return
			}
			ends = bounds && successor(after, hi)
		}
		if ends {
			yield(element{key: after, end: true})
		}
	}
}

// blank reports whether a set begins with what nft writes there: the space before the first range is an interval that
// does not match.
func (s *set) blank() bool {
	if !s.interval() || s.parts != nil {
		return false
	}
	lo, _ := s.first()
	return slices.ContainsFunc(lo, func(b byte) bool { return b != 0 })
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
	s := &set{kind: fmt.Sprintf("net%d", family), hash: hash ^ uint64(family), comment: comment}
	if family == 4 {
		s.datatype = nftables.TypeIPAddr
		s.ofRanges4(from.Ranges4())
	} else {
		s.datatype = nftables.TypeIP6Addr
		s.ofRanges6(from.Ranges6())
	}
	return s
}

func (s *set) ofRanges4(ranges []netset.Range4) {
	s.v4, s.count = ranges, len(ranges)
	s.ranges = func(yield func(lo, hi []byte) bool) {
		var lo, hi [4]byte
		for _, r := range ranges {
			binary.BigEndian.PutUint32(lo[:], r.Lo)
			binary.BigEndian.PutUint32(hi[:], r.Hi)
			if !yield(lo[:], hi[:]) {
				return
			}
		}
	}
}

func (s *set) ofRanges6(ranges []netset.Range6) {
	s.v6, s.count = ranges, len(ranges)
	s.ranges = func(yield func(lo, hi []byte) bool) {
		for _, r := range ranges {
			lo, hi := r.Lo.Netip().As16(), r.Hi.Netip().As16()
			if !yield(lo[:], hi[:]) {
				return
			}
		}
	}
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
