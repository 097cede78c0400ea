// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"net/netip"
	"slices"
)

// Packet is what rules can see of a packet. See package packet for how bytes become one.
type Packet struct {
	Src, Dst netip.Addr
	// Protocol is the IP protocol number after all IPv6 extension headers that could be followed.
	Protocol uint8
	// HopLimit is IPv4's TTL or IPv6's hop limit.
	HopLimit uint8
	// LaterFragment is set for every fragment but the first: the transport header is in another packet.
	LaterFragment bool
	// HasL4 says that the fields below were in the packet: ports for TCP, UDP, UDPLite and SCTP, type and code
	// for ICMP in IPv4 and ICMPv6 in IPv6.
	HasL4              bool
	SrcPort, DstPort   uint16
	ICMPType, ICMPCode uint8
	// Quoted is the packet that an ICMP error is about, nil for any other packet.
	Quoted *Packet
}

// Verdict is what happens to a packet.
type Verdict string

// The verdicts. Tracked is the kernel's usual path.
const (
	Tracked   Verdict = "tracked"
	Untracked Verdict = "untracked"
	Denied    Verdict = "denied"
)

// Reason says what led to a verdict.
type Reason string

// The reasons, in the words of `untracked explain`.
const (
	ByRule      Reason = "rule"
	ByFailsafe  Reason = "failsafe"
	ByNoMatch   Reason = "no-match"
	ByMalformed Reason = "malformed"
	ByFragment  Reason = "fragment"
	ByNotIP     Reason = "not-ip"
)

// NoRule is the Decision.Rule of a verdict that no rule gave.
const NoRule = -1

// Decision is a verdict with its reason.
type Decision struct {
	Verdict Verdict
	By      Reason
	// Rule is the index of the matching rule in the list, or NoRule. For a failsafe it is the failsafe's rule,
	// or NoRule for IPv6 neighbour discovery.
	Rule int
	// Logged says that a Log rule matched on the way.
	Logged bool
}

// Evaluate is the specification of every datapath: the verdict of an ordered list of rules on a packet.
//
// IPv6 neighbour discovery is left alone before any rule is asked. Then the first rule that matches and decides
// does so: see [Walk] for those that do not. An ICMP error that no rule decides about shares the fate of the flow it
// is about, when that flow is untracked: the rules are asked again about the packet it quotes, turned round to travel
// in the error's own direction. What is logged or counted on the way to a decision is so for the first question only.
func Evaluate(rules []Rule, p *Packet) Decision {
	if p.isNeighbourDiscovery() {
		return Decision{Tracked, ByFailsafe, NoRule, false}
	}
	i, via := Walk(rules, p)
	logged := slices.ContainsFunc(via, func(v int) bool { return rules[v].Action == Log })
	if i != NoRule {
		switch rules[i].Action {
		case Allow:
			return Decision{Untracked, ByRule, i, logged}
		case Deny:
			return Decision{Denied, ByRule, i, logged}
		case Failsafe:
			return Decision{Tracked, ByFailsafe, i, logged}
		}
	}
	if p.Quoted != nil {
		flow := p.Quoted.reversed()
		if i, _ := Walk(rules, &flow); i != NoRule && rules[i].Action == Allow {
			return Decision{Untracked, ByRule, i, logged}
		}
	}
	if p.LaterFragment {
		return Decision{Tracked, ByFragment, NoRule, logged}
	}
	return Decision{Tracked, ByNoMatch, NoRule, logged}
}

// Walk asks the rules in order. It returns the index of the first one that matches and decides, or NoRule, and the
// indexes of those that matched before without deciding: Log, behind which the next rule is asked, and Pass, behind
// which the next tier is.
func Walk(rules []Rule, p *Packet) (decides int, via []int) {
	for i := 0; i < len(rules); {
		r := &rules[i]
		if !r.matches(p) {
			i++
			continue
		}
		if r.Action.Decides() {
			return i, via
		}
		via = append(via, i)
		i = Next(rules, i)
	}
	return NoRule, via
}

// Next is the index of the rule that is asked behind rule i, when that one matches without deciding: the next one
// behind a Log, the first one of the next tier behind a Pass. It is len(rules) if there is none.
func Next(rules []Rule, i int) int {
	next := i + 1
	for rules[i].Action == Pass && next < len(rules) && rules[next].Tier == rules[i].Tier {
		next++
	}
	return next
}

func (r *Rule) matches(p *Packet) bool {
	version := 6
	if p.Src.Is4() {
		version = 4
	}
	return (r.IPVersion == 0 || r.IPVersion == version) &&
		(r.Protocol == nil || *r.Protocol == p.Protocol) &&
		(r.NotProtocol == nil || *r.NotProtocol != p.Protocol) &&
		(r.ICMP == nil || p.icmpKnown() && r.ICMP.matches(p)) &&
		(r.NotICMP == nil || p.icmpKnown() && !r.NotICMP.matches(p)) &&
		r.Source.matches(p, p.Src, p.SrcPort) &&
		r.Destination.matches(p, p.Dst, p.DstPort)
}

func (e *Entity) matches(p *Packet, addr netip.Addr, port uint16) bool {
	return (e.Nets == nil || e.Nets.Contains(addr)) &&
		(e.NotNets == nil || !e.NotNets.Contains(addr)) &&
		(e.Ports == nil || p.portsKnown() && containsPort(e.Ports, port)) &&
		(e.NotPorts == nil || p.portsKnown() && !containsPort(e.NotPorts, port))
}

func (m *ICMPMatch) matches(p *Packet) bool {
	return m.Type == p.ICMPType && (m.Code == nil || *m.Code == p.ICMPCode)
}

func containsPort(ranges []PortRange, port uint16) bool {
	return slices.ContainsFunc(ranges, func(r PortRange) bool { return r.First <= port && port <= r.Last })
}

func (p *Packet) portsKnown() bool { return p.HasL4 && HasPorts(p.Protocol) }
func (p *Packet) icmpKnown() bool  { return p.HasL4 && p.isICMP() }

func (p *Packet) isICMP() bool {
	if p.Src.Is4() {
		return p.Protocol == ICMP
	}
	return p.Protocol == ICMPv6
}

// isNeighbourDiscovery: router and neighbour solicitation and advertisement, which RFC 4861 (section 7.1)
// accepts with hop limit 255 only, so that no packet from off the link can pose as one.
func (p *Packet) isNeighbourDiscovery() bool {
	return p.Src.Is6() && p.icmpKnown() && p.HopLimit == 255 && p.ICMPType >= 133 && p.ICMPType <= 136
}

// IsICMPError reports whether an ICMP type quotes the packet it is about: RFC 792 and, for IPv6, the error
// half of RFC 4443's types.
func IsICMPError(version int, icmpType uint8) bool {
	if version == 4 {
		switch icmpType {
		case 3, 4, 5, 11, 12:
			return true
		}
		return false
	}
	return icmpType >= 1 && icmpType <= 4
}

// reversed is the packet as the other side of its flow would send it.
func (p *Packet) reversed() Packet {
	r := *p
	r.Src, r.Dst = p.Dst, p.Src
	r.SrcPort, r.DstPort = p.DstPort, p.SrcPort
	if p.icmpKnown() {
		r.ICMPType = ReverseICMPType(p.Src.Is4(), p.ICMPType)
	}
	return r
}

// ReverseICMPType pairs requests with replies: echo in both families and IPv4's timestamp. Any other type is
// its own reverse.
func ReverseICMPType(v4 bool, icmpType uint8) uint8 {
	pairs := [][2]uint8{{128, 129}}
	if v4 {
		pairs = [][2]uint8{{8, 0}, {13, 14}}
	}
	for _, pair := range pairs {
		switch icmpType {
		case pair[0]:
			return pair[1]
		case pair[1]:
			return pair[0]
		}
	}
	return icmpType
}
