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
	c, err := cut(rules)
	if err != nil {
		return nil, err
	}
	slot := func(n, size uint32) []cell {
		return c.l4.cells(n<<16, size, func(key uint32) point { return point{l4: key + 1} })
	}
	atPort := func(key uint32) point { return point{sport: key + 1} }
	s.withPorts = slices.Concat(slot(slotTCP, 1<<16), slot(slotUDP, 1<<16), slot(slotUDPLite, 1<<16), slot(slotSCTP, 1<<16))
	s.ports = c.sport.cells(0, 1<<16, atPort)
	s.noPorts = c.sport.cells(noPorts, 1, atPort)
	headerless := slot(slotProtocol, 1<<8)

	to6 := netset.Addr6.Netip
	atSrc, atDst := func(a netip.Addr) point { return point{src: a} }, func(a netip.Addr) point { return point{dst: a} }
	s.families = [2]family{
		{
			src:      addressCells(&c.src.dimension, &c.src.v4, netset.To4, atSrc),
			dst:      addressCells(&c.dst.dimension, &c.dst.v4, netset.To4, atDst),
			portless: slices.Concat(headerless, slot(slotICMP, 1<<16)),
		},
		{
			src:      addressCells(&c.src.dimension, &c.src.v6, to6, atSrc),
			dst:      addressCells(&c.dst.dimension, &c.dst.v6, to6, atDst),
			portless: slices.Concat(headerless, slot(slotICMPv6, 1<<16)),
		},
	}
	return s, nil
}

// addressCells has one cell for each class that addresses of the family have.
func addressCells[A any](d *dimension, t *intervals[A], address func(A) netip.Addr, at func(netip.Addr) point) []cell {
	var out []cell
	seen := make([]bool, d.count())
	for i, class := range t.classOf {
		if !seen[class] {
			seen[class] = true
			out = append(out, cell{d.vector(class), at(address(t.starts[i]))})
		}
	}
	return out
}

// cells has one cell for each class among the keys from first on.
func (t *ports) cells(first, count uint32, at func(key uint32) point) []cell {
	var out []cell
	seen, seenPages := make([]bool, t.count()), make([]bool, len(t.pages)/pageSize)
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
				out = append(out, cell{t.vector(class), at(key)})
			}
		}
	}
	return out
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
