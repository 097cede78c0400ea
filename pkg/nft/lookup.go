// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"bytes"
	"fmt"
	"hash/fnv"
	"io"
	"slices"
	"strconv"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/pkg/netset"
)

// lookups ask whether any member of a group matches, as far as the fields are concerned in which they differ, and, if
// there are names of the members' counters, count for that one. What all members have in common is left to the caller.
//
// One lookup does where the members differ in one field. Otherwise the first one asks for all of these fields
// together, and the second one for the counter. One map of all of them to the counters would do, too, but there is no
// listing of such a map that nft could read where the fields have no names: in quoted packets.
func (g *group) lookups(counters []string) []step {
	differ := g.varying.list()
	tell := (g.varying & g.telling).list()[0]
	if len(differ) == 1 && counters == nil {
		load := g.view.field(tell)
		out, _ := g.view.member(load, g.union(tell), false)
		if out == nil && !tell.address() { // any port, but there must be one
			out = steps(load, inRange([]byte{0, 0}, []byte{0xff, 0xff}))
		}
		return out
	}
	var out []step
	if len(differ) > 1 {
		out = g.lookup(differ, nil)
	}
	if counters != nil {
		out = append(out, g.lookup([]field{tell}, counters)...)
	}
	return out
}

// lookup loads fields side by side, in whole 32-bit registers, and looks them up.
func (g *group) lookup(fs []field, counters []string) []step {
	var (
		out []step
		raw []*expr.Payload
	)
	next := uint32(unix.NFT_REG32_00)
	for i, f := range fs {
		load := g.view.field(f)
		if i > 0 {
			load.DestRegister = next
		}
		next += words(load.Len)
		out, raw = append(out, step{expr: load}), append(raw, load)
	}
	s := g.set(fs, counters)
	if g.view.quoted {
		s = s.of(raw...)
	}
	return append(out, step{set: s})
}

// union is what the members' values of one field are together.
func (g *group) union(f field) *set {
	var all []span
	for _, m := range g.members {
		all = append(all, m.values[f]...)
	}
	slices.SortFunc(all, compareSpans)
	joined := all[:1]
	for _, v := range all[1:] {
		if last := &joined[len(joined)-1]; last.hi.Next() == v.lo {
			last.hi = v.hi
		} else {
			joined = append(joined, v)
		}
	}
	it := &item{view: g.view, listed: 1 << f, elements: len(joined)}
	it.values[f] = joined
	return (&group{item: it, members: []*item{it}, elements: len(joined)}).set([]field{f}, nil)
}

func words(length uint32) uint32 { return (length + 3) / 4 }

// set holds the members' values of fields together, or maps those of a single one to the counters.
func (g *group) set(fs []field, counters []string) *set {
	s := &set{kind: "rules"}
	if counters != nil {
		s.kind = "counters"
	}
	if g.view.family != 0 {
		s.kind += strconv.Itoa(g.view.family)
	}
	for _, f := range fs {
		s.parts = append(s.parts, g.view.datatype(f))
	}
	s.datatype = s.parts[0]
	if len(fs) > 1 {
		s.datatype = concatenation(s.parts)
	} else {
		s.parts = nil
	}

	// The ranges stand one behind the other, each with its first and its last key.
	width := s.width()
	keys := make([]byte, 0, 2*width*g.elements)
	var of []int // the member that each range is of
	for n, m := range g.members {
		combinations := 1
		for _, f := range fs {
			combinations *= len(m.values[f])
		}
		for c := range combinations {
			keys = m.appendKey(keys, fs, c, func(v span) netset.Addr6 { return v.lo })
			keys = m.appendKey(keys, fs, c, func(v span) netset.Addr6 { return v.hi })
			of = append(of, n)
		}
	}
	first := func(i int) []byte { return keys[2*width*i:][:width] }
	order := make([]int, len(of))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return bytes.Compare(first(a), first(b)) })

	s.count = len(of)
	s.ranges = func(yield func(lo, hi []byte) bool) {
		for _, i := range order {
			if !yield(first(i), keys[2*width*i+width:][:width]) {
				return
			}
		}
	}
	h := fnv.New64a()
	fmt.Fprintf(h, "%s %d|", s.datatype.Name, s.count)
	h.Write(keys)
	if counters != nil {
		s.counters = make([]string, len(of))
		for n, i := range order {
			s.counters[n] = counters[of[i]]
			io.WriteString(h, s.counters[n])
		}
	}
	s.hash = h.Sum64()
	return s
}

// appendKey appends one end of the c-th combination of an item's ranges of fields. Where there are several, each is
// padded to whole registers.
func (it *item) appendKey(keys []byte, fs []field, c int, end func(span) netset.Addr6) []byte {
	for _, f := range fs {
		n := len(it.values[f])
		keys = appendKey(keys, end(it.values[f][c%n]), int(it.view.datatype(f).Bytes))
		c /= n
		for len(fs) > 1 && len(keys)%4 != 0 {
			keys = append(keys, 0)
		}
	}
	return keys
}

func concatenation(parts []nftables.SetDatatype) nftables.SetDatatype {
	return nftables.MustConcatSetType(parts...) // which has room for five
}
