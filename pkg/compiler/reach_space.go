// SPDX-License-Identifier: Apache-2.0

package compiler

import (
	"net/netip"
	"slices"

	"github.com/untracked-cni/untracked/pkg/netset"
	"github.com/untracked-cni/untracked/pkg/policy"
)

// space is all packets there can be, as far as the rules tell them apart.
type space struct {
	rules []policy.Rule
	// tierStart has for each rule the first one of its tier.
	tierStart []int

	families [2]family
	// withPorts are protocols with a destination port, ports the source ports. noPorts is the one cell of all packets
	// whose source port is not known.
	withPorts, ports, noPorts []cell
}

// family is what IPv4 and IPv6 have each of their own.
type family struct {
	src, dst []cell
	// portless are protocols of packets without known ports, and ICMP or ICMPv6 with type and code.
	portless []cell
}

// dimensions is how many cells, one of each kind, make a packet.
const dimensions = 4

// cell is what one class of a dimension, or a combination of classes of several, has in common: the rules that accept
// it. at is where in the space it is.
type cell struct {
	rules vector
	at    point
}

// point has a value for each dimension that a cell says something about.
type point struct {
	src, dst netip.Addr
	// l4 is slot<<16 | value, sport a key of the source port dimension, each plus 1; 0 says nothing.
	l4, sport uint32
}

func (p point) with(q point) point {
	if q.src.IsValid() {
		p.src = q.src
	}
	if q.dst.IsValid() {
		p.dst = q.dst
	}
	p.l4, p.sport = p.l4|q.l4, p.sport|q.sport
	return p
}

func newSpace(rules []policy.Rule) (*space, error) {
	s := &space{rules: rules, tierStart: make([]int, len(rules))}
	for i := 1; i < len(rules); i++ {
		if s.tierStart[i] = i; rules[i].Tier == rules[i-1].Tier {
			s.tierStart[i] = s.tierStart[i-1]
		}
	}
	words := (len(rules) + 63) / 64
	l4, err := compileL4(rules, words)
	if err != nil {
		return nil, err
	}
	sports, err := compileSourcePorts(rules, words)
	if err != nil {
		return nil, err
	}
	slot := func(n, size uint32) []cell {
		return l4.cells(words, n<<16, size, func(key uint32) point { return point{l4: key + 1} })
	}
	atPort := func(key uint32) point { return point{sport: key + 1} }
	s.withPorts = slices.Concat(slot(slotTCP, 1<<16), slot(slotUDP, 1<<16), slot(slotUDPLite, 1<<16), slot(slotSCTP, 1<<16))
	s.ports = sports.cells(words, 0, 1<<16, atPort)
	s.noPorts = sports.cells(words, noPorts, 1, atPort)
	headerless := slot(slotProtocol, 1<<8)

	to6 := netset.Addr6.Netip
	atSrc, atDst := func(a netip.Addr) point { return point{src: a} }, func(a netip.Addr) point { return point{dst: a} }
	s.families = [2]family{
		{
			src:      addressCells(compileAddresses4, rules, source, netset.To4, atSrc),
			dst:      addressCells(compileAddresses4, rules, destination, netset.To4, atDst),
			portless: slices.Concat(headerless, slot(slotICMP, 1<<16)),
		},
		{
			src:      addressCells(compileAddresses6, rules, source, to6, atSrc),
			dst:      addressCells(compileAddresses6, rules, destination, to6, atDst),
			portless: slices.Concat(headerless, slot(slotICMPv6, 1<<16)),
		},
	}
	return s, nil
}

// addressCells has one cell a class. Where there is no table, no rule looks at the dimension: all values are one class.
func addressCells[A any](compile func([]policy.Rule, int, side) *intervals[A], rules []policy.Rule, on side, address func(A) netip.Addr, at func(netip.Addr) point) []cell {
	words := (len(rules) + 63) / 64
	distinct, which := distinctAddresses(rules, on)
	t := compile(distinct, (len(distinct)+63)/64, on)
	if t == nil {
		var first A
		return []cell{{ones(words), at(address(first))}}
	}
	out := make([]cell, t.classes.count)
	for i, class := range t.classOf {
		if out[class].rules != nil {
			continue
		}
		v := make(vector, words)
		for rule, d := range which {
			setBit(v, rule, t.classes.vector(class).has(d))
		}
		out[class] = cell{v, at(address(t.starts[i]))}
	}
	return out
}

// distinctAddresses returns one of the rules for each condition on the addresses of a side, and for each rule which one
// has its condition: many rules may ask for the same large set.
func distinctAddresses(rules []policy.Rule, on side) (distinct []policy.Rule, which []int) {
	type condition struct {
		nets, notNets *netset.Set
		version       int
	}
	known := map[condition]int{}
	for i := range rules {
		e := on.of(&rules[i])
		c := condition{e.Nets, e.NotNets, rules[i].IPVersion}
		n, ok := known[c]
		if !ok {
			n = len(distinct)
			known[c] = n
			distinct = append(distinct, rules[i])
		}
		which = append(which, n)
	}
	return distinct, which
}

// cells has one cell for each class among the keys from first on. A nil table is as in addressCells.
func (t *pageTable) cells(words int, first, count uint32, at func(key uint32) point) []cell {
	if t == nil {
		return []cell{{ones(words), at(first)}}
	}
	var out []cell
	seen, seenPages := make([]bool, t.classes.count), make([]bool, len(t.pages)/pageSize)
	for start := first; start < first+count; start += pageSize { // slots begin with a page
		page := t.index[start/pageSize]
		if seenPages[page] {
			continue
		}
		seenPages[page] = true
		for key := start; key < min(start+pageSize, first+count); key++ {
			class := uint32(t.pages[int(page)*pageSize+int(key%pageSize)])
			if !seen[class] {
				seen[class] = true
				out = append(out, cell{t.classes.vector(class), at(key)})
			}
		}
	}
	return out
}

func (c *classes) vector(class uint32) vector {
	return c.vectors[int(class)*c.words : int(class+1)*c.words]
}

// having returns the cells that rule i accepts.
func having(cells []cell, i int) []cell {
	var out []cell
	for _, c := range cells {
		if c.rules.has(i) {
			out = append(out, c)
		}
	}
	return out
}

// union has the rules that accept one of the cells, in so many words of 64.
func union(words int, cells []cell) vector {
	out := make(vector, words)
	for _, c := range cells {
		for w := range out {
			out[w] |= c.rules[w]
		}
	}
	return out
}

// packet makes a packet of a point that has a value in every dimension.
func (p point) packet() policy.Packet {
	out := policy.Packet{Src: p.src, Dst: p.dst, HopLimit: 64}
	slot, value := (p.l4-1)>>16, (p.l4-1)&0xffff
	switch slot {
	case slotICMP, slotICMPv6:
		out.Protocol = [...]uint8{policy.ICMP, policy.ICMPv6}[slot-slotICMP]
		out.HasL4 = true
		out.ICMPType, out.ICMPCode = uint8(value>>8), uint8(value)
	case slotProtocol:
		out.Protocol = uint8(value)
		// What would have a header that rules know is without it in a later fragment.
		out.LaterFragment = policy.HasPorts(out.Protocol) || out.Protocol == policy.ICMP || out.Protocol == policy.ICMPv6
	default:
		out.Protocol = [...]uint8{policy.TCP, policy.UDP, policy.UDPLite, policy.SCTP}[slot]
		out.HasL4 = true
		out.SrcPort, out.DstPort = uint16(p.sport-1), uint16(value)
	}
	return out
}
