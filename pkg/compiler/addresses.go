// SPDX-License-Identifier: Apache-2.0

package compiler

import (
	"math"
	"math/bits"
	"slices"

	"github.com/untracked-cni/untracked/pkg/netset"
	"github.com/untracked-cni/untracked/pkg/policy"
)

// intervals is the table of an address dimension: classOf[i] holds from starts[i] up to starts[i+1].
type intervals[A any] struct {
	starts  []A
	classOf []uint32
	classes *classes
}

type side int

const (
	source side = iota
	destination
)

func (s side) of(r *policy.Rule) *policy.Entity {
	if s == source {
		return &r.Source
	}
	return &r.Destination
}

// The state of one rule while the sweep runs over the address space: the sweep is inside the rule's Nets (a
// rule without Nets always is), or inside its NotNets. Ranges of a set are disjoint and not adjacent, so each
// start or end of one flips one of the two.
type sweepState uint8

const (
	inNets sweepState = 1 << iota
	inNotNets
)

// sweep holds the vector of the rules that accept the current address.
type sweep struct {
	states []sweepState
	family []bool // the rule applies to this IP version
	vector []uint64
}

func newSweep(rules []policy.Rule, words, version int, s side) *sweep {
	w := &sweep{make([]sweepState, len(rules)), make([]bool, len(rules)), make([]uint64, words)}
	for i := range rules {
		// The family is a condition on the packet, not on one side: the source table alone carries it.
		w.family[i] = s == destination || rules[i].IPVersion == 0 || rules[i].IPVersion == version
		if s.of(&rules[i]).Nets == nil {
			w.states[i] = inNets
		}
		w.update(i)
	}
	return w
}

func (w *sweep) flip(rule int, what sweepState) {
	w.states[rule] ^= what
	w.update(rule)
}

func (w *sweep) update(rule int) {
	setBit(w.vector, rule, w.family[rule] && w.states[rule] == inNets)
}

// compileAddresses4 returns nil where no rule looks at the dimension.
func compileAddresses4(rules []policy.Rule, words int, s side) *intervals[uint32] {
	// An event is address<<32 | rule<<8 | what: sorting integers is what makes a million CIDRs cheap.
	var events []uint64
	add := func(rule int, set *netset.Set, what sweepState) {
		if set == nil {
			return
		}
		for _, r := range set.Ranges4() {
			events = append(events, uint64(r.Lo)<<32|uint64(rule)<<8|uint64(what))
			if r.Hi != ^uint32(0) {
				events = append(events, uint64(r.Hi+1)<<32|uint64(rule)<<8|uint64(what))
			}
		}
	}
	for i := range rules {
		e := s.of(&rules[i])
		add(i, e.Nets, inNets)
		add(i, e.NotNets, inNotNets)
	}
	if !slices.IsSorted(events) {
		slices.Sort(events)
	}

	w := newSweep(rules, words, 4, s)
	t := &intervals[uint32]{classes: newClasses(words)}
	emit := func(start uint32) {
		class := t.classes.number(w.vector)
		if n := len(t.classOf); n > 0 && t.classOf[n-1] == class {
			return
		}
		t.starts = append(t.starts, start)
		t.classOf = append(t.classOf, class)
	}
	at := uint32(0)
	for _, e := range events {
		if start := uint32(e >> 32); start != at {
			emit(at)
			at = start
		}
		w.flip(int(e>>8&0xffffff), sweepState(e))
	}
	emit(at)
	if t.classes.trivial(len(rules)) {
		return nil
	}
	return t
}

// compileAddresses6 is compileAddresses4 for 128-bit addresses.
func compileAddresses6(rules []policy.Rule, words int, s side) *intervals[netset.Addr6] {
	type event struct {
		at   netset.Addr6
		rule int32
		what sweepState
	}
	var events []event
	add := func(rule int, set *netset.Set, what sweepState) {
		if set == nil {
			return
		}
		for _, r := range set.Ranges6() {
			events = append(events, event{r.Lo, int32(rule), what})
			if r.Hi != netset.Max6 {
				events = append(events, event{r.Hi.Next(), int32(rule), what})
			}
		}
	}
	for i := range rules {
		e := s.of(&rules[i])
		add(i, e.Nets, inNets)
		add(i, e.NotNets, inNotNets)
	}
	slices.SortFunc(events, func(a, b event) int { return a.at.Compare(b.at) })

	w := newSweep(rules, words, 6, s)
	t := &intervals[netset.Addr6]{classes: newClasses(words)}
	emit := func(start netset.Addr6) {
		class := t.classes.number(w.vector)
		if n := len(t.classOf); n > 0 && t.classOf[n-1] == class {
			return
		}
		t.starts = append(t.starts, start)
		t.classOf = append(t.classOf, class)
	}
	var at netset.Addr6
	for _, e := range events {
		if e.at != at {
			emit(at)
			at = e.at
		}
		w.flip(int(e.rule), e.what)
	}
	emit(at)
	if t.classes.trivial(len(rules)) {
		return nil
	}
	return t
}

// rootThreshold is how many IPv4 intervals are worth a root, which takes 256 KiB.
const rootThreshold = 32

func (b *builder) intervals4(t *intervals[uint32]) Intervals {
	if t == nil {
		return Intervals{}
	}
	out := Intervals{Count: uint32(len(t.starts))}
	most := len(t.starts) - 1 // intervals that a search may have to go forward
	if len(t.starts) > rootThreshold {
		var root []uint32
		root, most = rootOf(t.starts)
		out.Root = b.u32s(root)
	}
	out.Steps = uint32(bits.Len(uint(most)))
	pad := 1 << out.Steps
	out.Starts = b.u32s(append(t.starts, slices.Repeat([]uint32{math.MaxUint32}, pad)...))
	out.Classes = b.u32s(t.paddedClasses(pad))
	out.NClasses, out.Vectors = b.vectors(t.classes)
	return out
}

// rootOf gives for each h the interval that address h<<16 is in, and how many more start before the next h at most.
func rootOf(starts []uint32) (root []uint32, most int) {
	root = make([]uint32, 1<<16)
	i := 0
	for h := range root {
		for i+1 < len(starts) && starts[i+1] <= uint32(h)<<16 {
			i++
		}
		root[h] = uint32(i)
		if h > 0 {
			most = max(most, i-int(root[h-1]))
		}
	}
	return root, max(most, len(starts)-1-i)
}

func (b *builder) intervals6(t *intervals[netset.Addr6]) Intervals {
	if t == nil {
		return Intervals{}
	}
	out := Intervals{Count: uint32(len(t.starts)), Steps: uint32(bits.Len(uint(len(t.starts) - 1)))}
	pad := 1 << out.Steps
	his, los := make([]uint64, 0, len(t.starts)+pad), make([]uint64, 0, len(t.starts)+pad)
	for _, a := range append(t.starts, slices.Repeat([]netset.Addr6{netset.Max6}, pad)...) {
		his, los = append(his, a.Hi), append(los, a.Lo)
	}
	out.Starts, out.Lows = b.u64s(his), b.u64s(los)
	out.Classes = b.u32s(t.paddedClasses(pad))
	out.NClasses, out.Vectors = b.vectors(t.classes)
	return out
}

func (t *intervals[A]) paddedClasses(pad int) []uint32 {
	last := t.classOf[len(t.classOf)-1]
	return append(t.classOf, slices.Repeat([]uint32{last}, pad)...)
}
