// SPDX-License-Identifier: Apache-2.0

package compiler

import (
	"cmp"
	"slices"

	"github.com/untracked-cni/untracked/pkg/netset"
	"github.com/untracked-cni/untracked/pkg/policy"
)

// intervals are the addresses of one family: classOf[i] holds from starts[i] up to starts[i+1]. The first begins at the
// lowest address.
type intervals[A any] struct {
	starts  []A
	classOf []uint32
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

// addresses is the dimension of one side, and where its classes are in each family.
type addresses struct {
	dimension
	v4 intervals[uint32]
	v6 intervals[netset.Addr6]
}

// addressCondition is what a rule asks of an address. The family is a condition on the packet, not on one side: that of
// the source alone carries it.
type addressCondition struct {
	nets, notNets *netset.Set
	version       int
}

func compileAddresses(rules []policy.Rule, s side, room *meter) (*addresses, error) {
	distinct := newConditions[addressCondition](len(rules))
	for i := range rules {
		e := s.of(&rules[i])
		c := addressCondition{nets: e.Nets, notNets: e.NotNets}
		if s == source {
			c.version = rules[i].IPVersion
		}
		distinct.add(c, c != addressCondition{})
	}
	a := &addresses{dimension: distinct.dimension(room)}
	var err error
	if a.v4, err = sweep(a.partition, distinct.keys, 4, events4, cmp.Compare[uint32]); err != nil {
		return nil, err
	}
	if a.v6, err = sweep(a.partition, distinct.keys, 6, events6, netset.Addr6.Compare); err != nil {
		return nil, err
	}
	a.finish()
	return a, nil
}

// event is an address at which one of a condition's sets begins or ends.
type event[A any] struct {
	at        A
	condition uint16
	not       bool // the set is the one to keep out of
}

func events4(set *netset.Set, e event[uint32], out []event[uint32]) []event[uint32] {
	for _, r := range set.Ranges4() {
		e.at = r.Lo
		out = append(out, e)
		if r.Hi != ^uint32(0) {
			e.at = r.Hi + 1
			out = append(out, e)
		}
	}
	return out
}

func events6(set *netset.Set, e event[netset.Addr6], out []event[netset.Addr6]) []event[netset.Addr6] {
	for _, r := range set.Ranges6() {
		e.at = r.Lo
		out = append(out, e)
		if r.Hi != netset.Max6 {
			e.at = r.Hi.Next()
			out = append(out, e)
		}
	}
	return out
}

// sweep walks through the addresses of a family and numbers what they meet.
func sweep[A comparable](p *partition, conditions []addressCondition, version int,
	eventsOf func(*netset.Set, event[A], []event[A]) []event[A], compare func(a, b A) int) (intervals[A], error) {

	var events []event[A]
	// Ranges of a set are disjoint and not adjacent, so each event leads into a set or out of it.
	inNets, inNotNets := make([]bool, len(conditions)), make([]bool, len(conditions))
	for i, c := range conditions {
		inNets[i] = c.nets == nil
		if c.nets != nil {
			events = eventsOf(c.nets, event[A]{condition: uint16(i)}, events)
		}
		if c.notNets != nil {
			events = eventsOf(c.notNets, event[A]{condition: uint16(i), not: true}, events)
		}
	}
	order := func(a, b event[A]) int { return compare(a.at, b.at) }
	if !slices.IsSortedFunc(events, order) {
		slices.SortFunc(events, order)
	}

	var t intervals[A]
	var at A
	update := func(i int) {
		ofFamily := conditions[i].version == 0 || conditions[i].version == version
		p.set(i, ofFamily && inNets[i] && !inNotNets[i])
	}
	emit := func() error {
		class, err := p.class()
		if n := len(t.classOf); n == 0 || t.classOf[n-1] != class {
			t.starts, t.classOf = append(t.starts, at), append(t.classOf, class)
		}
		return err
	}
	for i := range conditions {
		update(i)
	}
	for _, e := range events {
		if e.at != at {
			if err := emit(); err != nil {
				return t, err
			}
			at = e.at
		}
		in := inNets
		if e.not {
			in = inNotNets
		}
		in[e.condition] = !in[e.condition]
		update(int(e.condition))
	}
	return t, emit()
}
