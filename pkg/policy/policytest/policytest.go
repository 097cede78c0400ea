// SPDX-License-Identifier: Apache-2.0

// Package policytest makes random rules and random frames for differential tests: values are drawn from small
// pools, so that rules overlap each other and packets hit them, and frames have everything that makes parsing
// hard: VLAN tags, IP options, extension headers, fragments, truncation, ICMP errors.
package policytest

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"strconv"

	"github.com/untracked-cni/untracked/pkg/netset"
	"github.com/untracked-cni/untracked/pkg/policy"
)

// Generator draws from one seed.
type Generator struct {
	*rand.Rand
	prefixes4, prefixes6 []netip.Prefix
	ports                []uint16
}

// New seeds a generator.
func New(seed uint64) *Generator {
	g := &Generator{Rand: rand.New(rand.NewPCG(seed, seed^0x9e3779b97f4a7c15))}
	for range 12 {
		// Nested prefixes: most of the pool lies inside 10.0.0.0/8 and 2001:db8::/32.
		a4 := [4]byte{10, byte(g.IntN(4)), byte(g.IntN(4)), byte(g.IntN(256))}
		a6 := [16]byte{0x20, 0x01, 0x0d, 0xb8, 4: byte(g.IntN(3)), 7: byte(g.IntN(4)), 15: byte(g.IntN(256))}
		p4, _ := netip.AddrFrom4(a4).Prefix([]int{0, 8, 15, 16, 22, 24, 31, 32}[g.IntN(8)])
		p6, _ := netip.AddrFrom16(a6).Prefix([]int{0, 32, 40, 63, 64, 65, 120, 127, 128}[g.IntN(9)])
		g.prefixes4, g.prefixes6 = append(g.prefixes4, p4), append(g.prefixes6, p6)
	}
	for range 6 {
		g.ports = append(g.ports, uint16(g.IntN(65536)))
	}
	g.ports = append(g.ports, 0, 1, 53, 255, 256, 6379, 65535)
	return g
}

func (g *Generator) chance(percent int) bool { return g.IntN(100) < percent }

func pick[T any](g *Generator, from []T) T { return from[g.IntN(len(from))] }

// Rules makes n rules that use every match field and every action, in tiers and between them.
func (g *Generator) Rules(n int) []policy.Rule {
	rules := make([]policy.Rule, n)
	tier, tiers := "", 0
	for i := range rules {
		if g.chance(15) {
			tier = ""
			if g.chance(70) {
				tiers++
				tier = "tier" + strconv.Itoa(tiers)
			}
		}
		rules[i] = g.rule()
		rules[i].Tier, rules[i].Policy, rules[i].Index = tier, "random", i
	}
	return rules
}

func (g *Generator) rule() policy.Rule {
	r := policy.Rule{Action: pick(g, []policy.Action{policy.Allow, policy.Deny, policy.Failsafe})}
	if g.chance(25) {
		r.Action = pick(g, []policy.Action{policy.Log, policy.Pass})
	}
	if g.chance(20) {
		r.IPVersion = pick(g, []int{4, 6})
	}
	if g.chance(70) {
		r.Protocol = new(g.protocol())
	}
	if g.chance(8) {
		r.NotProtocol = new(g.protocol())
	}
	icmp := r.Protocol != nil && (*r.Protocol == policy.ICMP || *r.Protocol == policy.ICMPv6)
	if icmp && g.chance(70) || g.chance(3) {
		r.ICMP = g.icmp()
	}
	if icmp && g.chance(20) || g.chance(2) {
		r.NotICMP = g.icmp()
	}
	ports := r.Protocol != nil && policy.HasPorts(*r.Protocol)
	for _, e := range []*policy.Entity{&r.Source, &r.Destination} {
		if g.chance(45) {
			e.Nets = g.set()
		}
		if g.chance(12) {
			e.NotNets = g.set()
		}
		if ports && g.chance(40) || g.chance(3) {
			e.Ports = g.portRanges()
		}
		if ports && g.chance(10) || g.chance(1) {
			e.NotPorts = g.portRanges()
		}
	}
	return r
}

func (g *Generator) protocol() uint8 {
	return pick(g, []uint8{
		policy.TCP, policy.TCP, policy.TCP, policy.UDP, policy.UDP, policy.UDPLite, policy.SCTP,
		policy.ICMP, policy.ICMPv6, 47, 50, 0, 43, 59, 255,
	})
}

func (g *Generator) icmp() *policy.ICMPMatch {
	m := &policy.ICMPMatch{Type: g.icmpType()}
	if g.chance(40) {
		m.Code = new(uint8(g.IntN(3)))
	}
	return m
}

func (g *Generator) icmpType() uint8 {
	return pick(g, []uint8{0, 3, 4, 5, 8, 11, 12, 13, 14, 1, 2, 128, 129, 133, 134, 135, 136, 137, 255})
}

func (g *Generator) set() *netset.Set {
	var b netset.Builder
	for range g.IntN(5) {
		if g.chance(60) {
			b.Add(pick(g, g.prefixes4))
		} else {
			b.Add(pick(g, g.prefixes6))
		}
	}
	return b.Build()
}

func (g *Generator) portRanges() []policy.PortRange {
	out := []policy.PortRange{}
	for range g.IntN(4) {
		a, b := pick(g, g.ports), pick(g, g.ports)
		if g.chance(50) {
			b = a
		}
		out = append(out, policy.PortRange{First: min(a, b), Last: max(a, b)})
	}
	return out
}

// Frame makes a random Ethernet frame, at least 14 bytes long, as BPF_PROG_TEST_RUN demands.
func (g *Generator) Frame() []byte {
	frame := make([]byte, 12, 256)
	frame[0], frame[6] = 2, 2
	for range pick(g, []int{0, 0, 0, 0, 0, 1, 1, 2, 3}) {
		frame = binary.BigEndian.AppendUint16(frame, pick(g, []uint16{0x8100, 0x8100, 0x88a8}))
		frame = binary.BigEndian.AppendUint16(frame, uint16(g.IntN(4096)))
	}
	v4 := g.chance(55)
	etherType := uint16(0x86dd)
	if v4 {
		etherType = 0x0800
	}
	if g.chance(2) {
		etherType = pick(g, []uint16{0x0806, 0x88cc, 0, 0x0800, 0x86dd})
	}
	frame = binary.BigEndian.AppendUint16(frame, etherType)
	frame = append(frame, g.packet(v4, true)...)
	if g.chance(6) { // cut the frame short
		frame = frame[:14+g.IntN(len(frame)-13)]
	}
	if g.chance(10) { // padding behind the packet
		for range g.IntN(30) {
			frame = append(frame, byte(g.IntN(256)))
		}
	}
	if g.chance(2) { // one wrong byte anywhere
		frame[g.IntN(len(frame))] = byte(g.IntN(256))
	}
	return frame
}

// packet is an IP packet; outer says that it may be an ICMP error with a quoted one inside.
func (g *Generator) packet(v4, outer bool) []byte {
	protocol := g.protocol()
	if g.chance(25) {
		protocol = policy.ICMPv6
		if v4 {
			protocol = policy.ICMP
		}
	}
	l4 := g.transport(protocol, v4, outer)
	if g.chance(8) {
		l4 = l4[:g.IntN(len(l4)+1)]
	}
	if v4 {
		return g.ipv4(protocol, l4)
	}
	return g.ipv6(protocol, l4)
}

func (g *Generator) transport(protocol uint8, v4, outer bool) []byte {
	switch protocol {
	case policy.TCP, policy.UDP, policy.UDPLite, policy.SCTP:
		var b []byte
		b = binary.BigEndian.AppendUint16(b, g.port())
		b = binary.BigEndian.AppendUint16(b, g.port())
		size := map[uint8]int{policy.TCP: 20, policy.UDP: 8, policy.UDPLite: 8, policy.SCTP: 12}[protocol]
		return append(b, make([]byte, size-4+g.IntN(8))...)
	case policy.ICMP, policy.ICMPv6:
		b := []byte{g.icmpType(), byte(g.IntN(3)), 0, 0, 0, 0, 0, 0}
		version := 6
		if v4 {
			version = 4
		}
		if outer && (policy.IsICMPError(version, b[0]) || g.chance(10)) {
			quoted := g.packet(v4, false)
			if g.chance(30) {
				quoted = quoted[:min(len(quoted), 28+g.IntN(30))]
			}
			b = append(b, quoted...)
		}
		return b
	}
	return make([]byte, g.IntN(24))
}

func (g *Generator) port() uint16 {
	p := pick(g, g.ports)
	if g.chance(15) {
		p += uint16(g.IntN(3)) - 1 // just beside an edge
	}
	return p
}

func (g *Generator) ipv4(protocol uint8, l4 []byte) []byte {
	options := 0
	if g.chance(15) {
		options = 4 * (1 + g.IntN(10))
	}
	header := 20 + options
	b := make([]byte, header, header+len(l4))
	b[0] = 4<<4 | byte(header/4)
	binary.BigEndian.PutUint16(b[2:], uint16(header+len(l4)))
	binary.BigEndian.PutUint16(b[6:], pick(g, []uint16{0, 0, 0, 0, 0, 0x4000, 0x2000, 0x2001, 185, 0x1fff}))
	b[8], b[9] = pick(g, []byte{64, 255, 1}), protocol
	copy(b[12:], g.address(true))
	copy(b[16:], g.address(true))
	if g.chance(3) {
		switch g.IntN(3) {
		case 0:
			b[0] = byte(g.IntN(256))
		case 1:
			binary.BigEndian.PutUint16(b[2:], uint16(g.IntN(header+8)))
		case 2:
			binary.BigEndian.PutUint16(b[2:], uint16(header+len(l4)+g.IntN(100)))
		}
	}
	return append(b, l4...)
}

func (g *Generator) ipv6(protocol uint8, l4 []byte) []byte {
	type extension struct {
		protocol uint8
		bytes    []byte
	}
	var chain []extension
	if g.chance(35) {
		for range pick(g, []int{1, 1, 2, 3, 7, 8, 9}) {
			e := extension{protocol: pick(g, []uint8{0, 43, 44, 51, 60, 60})}
			switch e.protocol {
			case 44:
				e.bytes = make([]byte, 8)
				binary.BigEndian.PutUint16(e.bytes[2:], pick(g, []uint16{0, 1, 0, 1, 8, 9, 0xfff8}))
			case 51:
				n := g.IntN(4)
				e.bytes = make([]byte, (n+2)*4)
				e.bytes[1] = byte(n)
			default:
				n := g.IntN(3)
				e.bytes = make([]byte, (n+1)*8)
				e.bytes[1] = byte(n)
			}
			if g.chance(3) {
				e.bytes = append(e.bytes, 0)[:min(2, len(e.bytes))]
			}
			chain = append(chain, e)
		}
	}
	next := protocol
	body := l4
	for i := len(chain) - 1; i >= 0; i-- {
		chain[i].bytes[0] = next
		next = chain[i].protocol
		body = append(chain[i].bytes, body...)
	}
	b := make([]byte, 40, 40+len(body))
	b[0] = 6 << 4
	binary.BigEndian.PutUint16(b[4:], uint16(len(body)))
	b[6], b[7] = next, pick(g, []byte{64, 255, 255, 254})
	copy(b[8:], g.address(false))
	copy(b[24:], g.address(false))
	if g.chance(3) {
		switch g.IntN(3) {
		case 0:
			b[0] = byte(g.IntN(256))
		case 1:
			binary.BigEndian.PutUint16(b[4:], uint16(g.IntN(len(body)+2)))
		case 2:
			binary.BigEndian.PutUint16(b[4:], 0)
		}
	}
	return append(b, body...)
}

// address draws from the prefixes of the pool.
func (g *Generator) address(v4 bool) []byte {
	if v4 {
		return g.addressAt(pick(g, g.prefixes4))
	}
	return g.addressAt(pick(g, g.prefixes6))
}

// addressAt draws an address of a prefix, often at its very edges, sometimes just outside.
func (g *Generator) addressAt(p netip.Prefix) []byte {
	first := p.Addr().AsSlice()
	last := p.Addr().AsSlice()
	for i := p.Bits(); i < len(last)*8; i++ {
		last[i/8] |= 0x80 >> (i % 8)
	}
	switch g.IntN(6) {
	case 0, 1:
		return first
	case 2:
		return last
	case 3: // any inside
		for i := p.Bits(); i < len(first)*8; i++ {
			if g.chance(50) {
				first[i/8] |= 0x80 >> (i % 8)
			}
		}
	case 4:
		if a := p.Addr().Prev(); a.IsValid() {
			return a.AsSlice()
		}
	case 5:
		if a, _ := netip.AddrFromSlice(last); a.Next().IsValid() {
			return a.Next().AsSlice()
		}
	}
	return first
}

// frameOf is a whole packet of a protocol with ports, without any options, in a frame.
func frameOf(protocol uint8, src, dst []byte, sport, dport uint16) []byte {
	l4 := make([]byte, 20)
	binary.BigEndian.PutUint16(l4, sport)
	binary.BigEndian.PutUint16(l4[2:], dport)
	frame := make([]byte, 12, 80)
	if len(src) == 4 {
		frame = binary.BigEndian.AppendUint16(frame, 0x0800)
		ip := [20]byte{0: 0x45, 3: 40, 8: 64, 9: protocol}
		copy(ip[12:], src)
		copy(ip[16:], dst)
		return append(append(frame, ip[:]...), l4...)
	}
	frame = binary.BigEndian.AppendUint16(frame, 0x86dd)
	ip := [40]byte{0: 0x60, 5: 20, 6: protocol, 7: 64}
	copy(ip[8:], src)
	copy(ip[24:], dst)
	return append(append(frame, ip[:]...), l4...)
}
