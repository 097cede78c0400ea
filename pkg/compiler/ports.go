// SPDX-License-Identifier: Apache-2.0

package compiler

import (
	"fmt"
	"slices"

	"github.com/untracked-cni/untracked/pkg/policy"
)

// pageSize is how many values share a page.
const pageSize = 256

// pageTable maps keys (slot<<16 | value) to classes: index[key/256] is a page, pages[page*256+key%256] a class.
type pageTable struct {
	index   []uint16
	pages   []uint16
	classes *classes
	known   map[[pageSize]uint16]uint16
	// uniform are the known pages of a single class, by class: most pages are.
	uniform map[uint32]uint16
}

func newPageTable(words int) *pageTable {
	return &pageTable{classes: newClasses(words), known: map[[pageSize]uint16]uint16{}, uniform: map[uint32]uint16{}}
}

// span says that the rules of a vector, and no others, accept the values from first up to the next span.
type span struct {
	first  int
	vector []uint64
}

// add appends the pages of one slot, which has values from 0 up to size.
func (t *pageTable) add(spans []span, size int) error {
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
				class = t.classes.number(spans[next].vector)
				if class > 0xffff {
					return fmt.Errorf("the rules tell more than 65536 kinds of ports apart")
				}
				next++
			}
			page[value-first] = uint16(class)
		}
		n, ok := t.known[page]
		if !ok {
			if len(t.pages)/pageSize > 0xffff {
				return fmt.Errorf("the rules need more than 65536 pages of ports")
			}
			n = uint16(len(t.pages) / pageSize)
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

// spansOf cuts the values from 0 up to size where some rule's answer changes. cuts are the values at which
// one may; accepts is asked once a span.
func spansOf(rules []policy.Rule, words, size int, cuts func(*policy.Rule) []int, accepts func(*policy.Rule, int) bool) []span {
	// mayChange[v] lists the rules whose answer may change at v: the sweep asks them only.
	mayChange := map[int][]int{0: nil}
	for i := range rules {
		for _, v := range cuts(&rules[i]) {
			if v > 0 && v < size {
				mayChange[v] = append(mayChange[v], i)
			}
		}
	}
	values := make([]int, 0, len(mayChange))
	for v := range mayChange {
		values = append(values, v)
	}
	slices.Sort(values)

	vector := make([]uint64, words)
	spans := make([]span, 0, len(values))
	for _, v := range values {
		if v == 0 {
			for i := range rules {
				setBit(vector, i, accepts(&rules[i], 0))
			}
		}
		for _, i := range mayChange[v] {
			setBit(vector, i, accepts(&rules[i], v))
		}
		spans = append(spans, span{v, slices.Clone(vector)})
	}
	return spans
}

// compileL4 is the table of destination ports, ICMP types and protocols; nil where no rule looks at them.
func compileL4(rules []policy.Rule, words int) (*pageTable, error) {
	t := newPageTable(words)
	for slot := range numSlots {
		var spans []span
		size := 1 << 16
		switch slot {
		case slotTCP, slotUDP, slotUDPLite, slotSCTP:
			protocol := [...]uint8{policy.TCP, policy.UDP, policy.UDPLite, policy.SCTP}[slot]
			spans = spansOf(rules, words, size,
				func(r *policy.Rule) []int {
					return append(portCuts(r.Destination.Ports), portCuts(r.Destination.NotPorts)...)
				},
				func(r *policy.Rule, v int) bool {
					return acceptsProtocol(r, protocol) && r.ICMP == nil && r.NotICMP == nil && acceptsPort(&r.Destination, v)
				})
		case slotICMP, slotICMPv6:
			protocol := [...]uint8{policy.ICMP, policy.ICMPv6}[slot-slotICMP]
			spans = spansOf(rules, words, size,
				func(r *policy.Rule) []int { return append(icmpCuts(r.ICMP), icmpCuts(r.NotICMP)...) },
				func(r *policy.Rule, v int) bool {
					return acceptsProtocol(r, protocol) && !needsPorts(r) &&
						(r.ICMP == nil || acceptsICMP(r.ICMP, v)) && (r.NotICMP == nil || !acceptsICMP(r.NotICMP, v))
				})
		case slotProtocol:
			size = 256
			spans = spansOf(rules, words, size,
				func(r *policy.Rule) []int {
					return append(protocolCuts(r.Protocol), protocolCuts(r.NotProtocol)...)
				},
				func(r *policy.Rule, v int) bool {
					return acceptsProtocol(r, uint8(v)) && !needsPorts(r) && r.ICMP == nil && r.NotICMP == nil
				})
		}
		if err := t.add(spans, size); err != nil {
			return nil, err
		}
	}
	if t.classes.trivial(len(rules)) {
		return nil, nil
	}
	// A slot is a 3-bit number to the verifier: it wants an index that is complete for all eight.
	for len(t.index) < 8*pageSize {
		t.index = append(t.index, 0)
	}
	return t, nil
}

// compileSourcePorts is the table of source ports; nil where no rule looks at them.
func compileSourcePorts(rules []policy.Rule, words int) (*pageTable, error) {
	t := newPageTable(words)
	spans := spansOf(rules, words, 1<<16,
		func(r *policy.Rule) []int { return append(portCuts(r.Source.Ports), portCuts(r.Source.NotPorts)...) },
		func(r *policy.Rule, v int) bool { return acceptsPort(&r.Source, v) })
	if err := t.add(spans, 1<<16); err != nil {
		return nil, err
	}
	without := spansOf(rules, words, 1,
		func(*policy.Rule) []int { return nil },
		func(r *policy.Rule, _ int) bool { return r.Source.Ports == nil && r.Source.NotPorts == nil })
	if err := t.add(without, 1); err != nil {
		return nil, err
	}
	if t.classes.trivial(len(rules)) {
		return nil, nil
	}
	return t, nil
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

func needsPorts(r *policy.Rule) bool {
	return r.Source.Ports != nil || r.Source.NotPorts != nil || r.Destination.Ports != nil || r.Destination.NotPorts != nil
}

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
