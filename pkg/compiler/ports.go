// SPDX-License-Identifier: Apache-2.0

package compiler

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/untracked-cni/untracked/pkg/policy"
)

// pageSize is how many values share a page.
const pageSize = 256

// ports is a dimension of 16-bit values. Its table maps keys (slot<<16 | value) to classes: index[key/256] is a page,
// pages[page*256+key%256] a class. Equal pages are stored once.
type ports struct {
	dimension
	index []uint16
	pages []uint16
	known map[[pageSize]uint16]uint16
	// uniform are the known pages of a single class, by class: most pages are.
	uniform map[uint32]uint16
}

func newPorts(d dimension) *ports {
	return &ports{dimension: d, known: map[[pageSize]uint16]uint16{}, uniform: map[uint32]uint16{}}
}

// span says that the values from first up to the next span are of one class.
type span struct {
	first int
	class uint32
}

// spans cuts the values from 0 up to size. cuts are those at which a condition's answer may change.
func (t *ports) spans(size int, cuts func(condition int) []int, accepts func(condition, value int) bool) ([]span, error) {
	type change struct{ at, condition int }
	var changes []change
	for k := range t.signs {
		t.set(k, accepts(k, 0))
		for _, at := range cuts(k) {
			if 0 < at && at < size {
				changes = append(changes, change{at, k})
			}
		}
	}
	slices.SortFunc(changes, func(a, b change) int { return a.at - b.at })

	var out []span
	at := 0
	for i := 0; ; i++ {
		if i == len(changes) || changes[i].at != at {
			class, err := t.class()
			if err != nil {
				return nil, err
			}
			out = append(out, span{at, class})
		}
		if i == len(changes) {
			return out, nil
		}
		at = changes[i].at
		t.set(changes[i].condition, accepts(changes[i].condition, at))
	}
}

// add appends the pages of one slot, which has values from 0 up to size.
func (t *ports) add(spans []span, size int) error {
	if t.count() > 1<<16 {
		return fmt.Errorf("the rules tell more than 65536 kinds of ports apart")
	}
	next := 0
	var class uint32
	for first := 0; first < size; first += pageSize {
		behind := min(first+pageSize, size)
		uniform := behind == first+pageSize && (next == len(spans) || spans[next].first >= behind)
		if n, ok := t.uniform[class]; ok && uniform {
			t.index = append(t.index, n)
			continue
		}
		var page [pageSize]uint16
		for value := first; value < behind; value++ {
			if next < len(spans) && spans[next].first == value {
				class = spans[next].class
				next++
			}
			page[value-first] = uint16(class)
		}
		n, ok := t.known[page]
		if !ok {
			n = uint16(len(t.pages) / pageSize) // there are fewer pages than index has entries
			t.known[page] = n
			t.pages = append(t.pages, page[:]...)
		}
		t.index = append(t.index, n)
		if uniform {
			t.uniform[class] = n
		}
	}
	return nil
}

// fill adds a slot.
func (t *ports) fill(size int, cuts func(condition int) []int, accepts func(condition, value int) bool) error {
	spans, err := t.spans(size, cuts, accepts)
	if err != nil {
		return err
	}
	return t.add(spans, size)
}

// compileL4 is the dimension of destination ports, ICMP types and protocols.
func compileL4(rules []policy.Rule, room *meter) (*ports, error) {
	distinct := newConditions[string](len(rules))
	var of []*policy.Rule // a rule that has each
	for i := range rules {
		r := &rules[i]
		key := l4Condition(r)
		distinct.add(key, key != "")
		if len(of) < len(distinct.keys) {
			of = append(of, r)
		}
	}
	t := newPorts(distinct.dimension(room))
	for slot := range numSlots {
		var err error
		switch slot {
		case slotTCP, slotUDP, slotUDPLite, slotSCTP:
			protocol := [...]uint8{policy.TCP, policy.UDP, policy.UDPLite, policy.SCTP}[slot]
			err = t.fill(1<<16,
				func(k int) []int {
					if !acceptsProtocol(of[k], protocol) {
						return nil
					}
					return append(portCuts(of[k].Destination.Ports), portCuts(of[k].Destination.NotPorts)...)
				},
				func(k, v int) bool {
					r := of[k]
					return acceptsProtocol(r, protocol) && r.ICMP == nil && r.NotICMP == nil && acceptsPort(&r.Destination, v)
				})
		case slotICMP, slotICMPv6:
			protocol := [...]uint8{policy.ICMP, policy.ICMPv6}[slot-slotICMP]
			err = t.fill(1<<16,
				func(k int) []int { return append(icmpCuts(of[k].ICMP), icmpCuts(of[k].NotICMP)...) },
				func(k, v int) bool {
					r := of[k]
					return acceptsProtocol(r, protocol) && !mindsPort(&r.Destination) &&
						(r.ICMP == nil || acceptsICMP(r.ICMP, v)) && (r.NotICMP == nil || !acceptsICMP(r.NotICMP, v))
				})
		case slotProtocol:
			err = t.fill(1<<8,
				func(k int) []int {
					return append(protocolCuts(of[k].Protocol), protocolCuts(of[k].NotProtocol)...)
				},
				func(k, v int) bool {
					r := of[k]
					return acceptsProtocol(r, uint8(v)) && !mindsPort(&r.Destination) && r.ICMP == nil && r.NotICMP == nil
				})
		}
		if err != nil {
			return nil, err
		}
	}
	t.finish()
	// A slot is a 3-bit number to the verifier: it wants an index that is complete for all eight.
	for len(t.index) < 8*pageSize {
		t.index = append(t.index, 0)
	}
	return t, nil
}

// l4Condition is the same for rules that ask the same of the l4 dimension; empty where they ask nothing.
func l4Condition(r *policy.Rule) string {
	var key []byte
	number := func(tag byte, p *uint8) {
		if p != nil {
			key = append(key, tag, *p)
		}
	}
	icmp := func(tag byte, m *policy.ICMPMatch) {
		if m != nil {
			number(tag, &m.Type)
			number('c', m.Code)
		}
	}
	number('p', r.Protocol)
	number('P', r.NotProtocol)
	icmp('i', r.ICMP)
	icmp('I', r.NotICMP)
	return string(append(key, portCondition(&r.Destination)...))
}

// portCondition is the same for sides that ask the same of a port; empty where they ask nothing.
func portCondition(e *policy.Entity) string {
	var key []byte
	list := func(tag byte, ranges []policy.PortRange) {
		if ranges == nil {
			return
		}
		key = append(key, tag)
		for _, r := range ranges {
			key = binary.BigEndian.AppendUint16(key, r.First)
			key = binary.BigEndian.AppendUint16(key, r.Last)
		}
	}
	list('d', e.Ports)
	list('D', e.NotPorts)
	return string(key)
}

// compileSourcePorts is the dimension of source ports.
func compileSourcePorts(rules []policy.Rule, room *meter) (*ports, error) {
	distinct := newConditions[string](len(rules))
	var of []*policy.Entity
	for i := range rules {
		e := &rules[i].Source
		key := portCondition(e)
		distinct.add(key, key != "")
		if len(of) < len(distinct.keys) {
			of = append(of, e)
		}
	}
	t := newPorts(distinct.dimension(room))
	err := t.fill(1<<16,
		func(k int) []int { return append(portCuts(of[k].Ports), portCuts(of[k].NotPorts)...) },
		func(k, v int) bool { return acceptsPort(of[k], v) })
	if err == nil {
		// One key for all packets without known ports.
		err = t.fill(1, func(int) []int { return nil }, func(int, int) bool { return false })
	}
	t.finish()
	return t, err
}

func portCuts(ranges []policy.PortRange) []int {
	cuts := make([]int, 0, 2*len(ranges))
	for _, r := range ranges {
		cuts = append(cuts, int(r.First), int(r.Last)+1)
	}
	return cuts
}

func icmpCuts(m *policy.ICMPMatch) []int {
	switch {
	case m == nil:
		return nil
	case m.Code == nil:
		return []int{int(m.Type) << 8, (int(m.Type) + 1) << 8}
	}
	v := int(m.Type)<<8 | int(*m.Code)
	return []int{v, v + 1}
}

func protocolCuts(p *uint8) []int {
	if p == nil {
		return nil
	}
	return []int{int(*p), int(*p) + 1}
}

func mindsPort(e *policy.Entity) bool { return e.Ports != nil || e.NotPorts != nil }

func acceptsProtocol(r *policy.Rule, p uint8) bool {
	return (r.Protocol == nil || *r.Protocol == p) && (r.NotProtocol == nil || *r.NotProtocol != p)
}

func acceptsPort(e *policy.Entity, port int) bool {
	in := func(ranges []policy.PortRange) bool {
		return slices.ContainsFunc(ranges, func(r policy.PortRange) bool { return int(r.First) <= port && port <= int(r.Last) })
	}
	return (e.Ports == nil || in(e.Ports)) && (e.NotPorts == nil || !in(e.NotPorts))
}

func acceptsICMP(m *policy.ICMPMatch, v int) bool {
	return int(m.Type) == v>>8 && (m.Code == nil || int(*m.Code) == v&255)
}
