// SPDX-License-Identifier: Apache-2.0

// Package packettest has frames by name, one for each thing the parser must know, with what a short list of rules
// says about them. The Go parser and the loaded programs are both tested against it.
//
// Decisions are written down here, not computed: a mistake that the parsers share would be seen.
package packettest

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/untracked-cni/untracked/pkg/netset"
	"github.com/untracked-cni/untracked/pkg/policy"
)

// Fixture is a frame and what Rules say about it.
type Fixture struct {
	Name  string
	Frame []byte
	Want  policy.Decision
	// Packet is what can be seen of the frame, without what is quoted; nil where Want says by itself why not
	// (ByNotIP, ByMalformed), and where the decision tells enough.
	Packet *policy.Packet
}

// Indexes of Rules.
const (
	FailsafeSSH = iota
	DenySource
	DenyDestination
	DenyGRE
	AllowRedis
	AllowDNS
	AllowRemote
	AllowUDPLite
	AllowSCTP
	AllowTimestamp
	AllowPing6
)

// Rules is the list that the fixtures are decided by: one rule for each kind of thing to be seen.
func Rules() []policy.Rule {
	rule := func(action policy.Action, protocol uint8) policy.Rule {
		r := policy.Rule{Policy: "fixtures", Action: action}
		if protocol != 0 {
			r.Protocol = &protocol
		}
		return r
	}
	rules := make([]policy.Rule, AllowPing6+1)
	port := func(i int, action policy.Action, protocol uint8, port uint16) {
		rules[i] = rule(action, protocol)
		rules[i].Destination.Ports = []policy.PortRange{{First: port, Last: port}}
	}
	port(FailsafeSSH, policy.Failsafe, policy.TCP, 22)
	rules[DenySource] = rule(policy.Deny, 0)
	rules[DenySource].Source.Nets = nets(denied4, denied6)
	rules[DenyDestination] = rule(policy.Deny, 0)
	rules[DenyDestination].Destination.Nets = nets(closed4, closed6)
	rules[DenyGRE] = rule(policy.Deny, gre)
	port(AllowRedis, policy.Allow, policy.TCP, 6379)
	port(AllowDNS, policy.Allow, policy.UDP, 53)
	rules[AllowRemote] = rule(policy.Allow, policy.UDP)
	rules[AllowRemote].Source.Ports = []policy.PortRange{{First: 5353, Last: 5353}}
	port(AllowUDPLite, policy.Allow, policy.UDPLite, 700)
	port(AllowSCTP, policy.Allow, policy.SCTP, 5060)
	rules[AllowTimestamp] = rule(policy.Allow, policy.ICMP)
	rules[AllowTimestamp].ICMP = &policy.ICMPMatch{Type: 13}
	rules[AllowPing6] = rule(policy.Allow, policy.ICMPv6)
	rules[AllowPing6].ICMP = &policy.ICMPMatch{Type: 128, Code: new(uint8)}
	for i := range rules {
		rules[i].Index = i
	}
	return rules
}

func nets(addrs ...netip.Addr) *netset.Set {
	var b netset.Builder
	for _, a := range addrs {
		b.Add(netip.PrefixFrom(a, a.BitLen()))
	}
	return b.Build()
}

const gre = 47

var (
	client4 = netip.MustParseAddr("192.0.2.10")
	host4   = netip.MustParseAddr("198.51.100.1")
	denied4 = netip.MustParseAddr("192.0.2.66")
	closed4 = netip.MustParseAddr("198.51.100.99")
	client6 = netip.MustParseAddr("2001:db8::10")
	host6   = netip.MustParseAddr("2001:db8:1::1")
	denied6 = netip.MustParseAddr("2001:db8::66")
	closed6 = netip.MustParseAddr("2001:db8:1::99")
)

// The decisions.
func allowed(rule int) policy.Decision {
	return policy.Decision{Verdict: policy.Untracked, By: policy.ByRule, Rule: rule}
}

func denied(rule int) policy.Decision {
	return policy.Decision{Verdict: policy.Denied, By: policy.ByRule, Rule: rule}
}

func unruled(v policy.Verdict, by policy.Reason) policy.Decision {
	return policy.Decision{Verdict: v, By: by, Rule: policy.NoRule}
}

var (
	tracked   = unruled(policy.Tracked, policy.ByNoMatch)
	later     = unruled(policy.Tracked, policy.ByFragment)
	notIP     = unruled(policy.Tracked, policy.ByNotIP)
	malformed = unruled(policy.Denied, policy.ByMalformed)
	discovery = unruled(policy.Tracked, policy.ByFailsafe)
	failsafe  = policy.Decision{Verdict: policy.Tracked, By: policy.ByFailsafe, Rule: FailsafeSSH}
)

// Building blocks. Checksums are of no interest to any parser here and stay 0.

func u16(values ...uint16) (b []byte) {
	for _, v := range values {
		b = binary.BigEndian.AppendUint16(b, v)
	}
	return b
}

const (
	typeIPv4 = 0x0800
	typeIPv6 = 0x86dd
	typeARP  = 0x0806
	typeVLAN = 0x8100
	typeQinQ = 0x88a8
)

// ethernet is a frame; types are the ethertypes from the outside in, each but the last that of a tag.
func ethernet(payload []byte, types ...uint16) []byte {
	frame := []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2}
	for i, t := range types {
		frame = append(frame, u16(t)...)
		if i < len(types)-1 {
			frame = append(frame, u16(uint16(100+i))...)
		}
	}
	return append(frame, payload...)
}

func frame4(packet []byte) []byte { return ethernet(packet, typeIPv4) }
func frame6(packet []byte) []byte { return ethernet(packet, typeIPv6) }

// header4 describes an IPv4 packet; what is zero has its usual value.
type header4 struct {
	src, dst netip.Addr
	protocol uint8
	fragment uint16 // flags and offset
	options  []byte
	version  int
	ihl      int
	total    int
}

func (h header4) packet(payload []byte) []byte {
	if !h.src.IsValid() {
		h.src = client4
	}
	if !h.dst.IsValid() {
		h.dst = host4
	}
	if h.version == 0 {
		h.version = 4
	}
	if h.ihl == 0 {
		h.ihl = 5 + len(h.options)/4
	}
	if h.total == 0 {
		h.total = 20 + len(h.options) + len(payload)
	}
	b := []byte{byte(h.version<<4 | h.ihl), 0}
	b = append(b, u16(uint16(h.total), 0, h.fragment)...)
	b = append(b, 64, h.protocol, 0, 0)
	return slices.Concat(b, h.src.AsSlice(), h.dst.AsSlice(), h.options, payload)
}

// header6 describes an IPv6 packet; what is zero has its usual value.
type header6 struct {
	src, dst   netip.Addr
	next       uint8
	hopLimit   uint8
	extensions [][]byte // each begins with its next header
	version    int
	length     int // -1: really 0
}

func (h header6) packet(payload []byte) []byte {
	if !h.src.IsValid() {
		h.src = client6
	}
	if !h.dst.IsValid() {
		h.dst = host6
	}
	if h.version == 0 {
		h.version = 6
	}
	if h.hopLimit == 0 {
		h.hopLimit = 64
	}
	body := slices.Concat(slices.Concat(h.extensions...), payload)
	switch h.length {
	case 0:
		h.length = len(body)
	case -1:
		h.length = 0
	}
	b := []byte{byte(h.version << 4), 0, 0, 0}
	b = append(b, u16(uint16(h.length))...)
	b = append(b, h.next, h.hopLimit)
	return slices.Concat(b, h.src.AsSlice(), h.dst.AsSlice(), body)
}

func tcp(sport, dport uint16) []byte {
	return slices.Concat(u16(sport, dport), make([]byte, 8), []byte{5 << 4, 2}, make([]byte, 6))
}
func udp(sport, dport uint16) []byte  { return append(u16(sport, dport, 12, 0), "data"...) }
func sctp(sport, dport uint16) []byte { return append(u16(sport, dport), make([]byte, 8)...) }

func icmp(typ, code uint8, quoted ...byte) []byte {
	return append([]byte{typ, code, 0, 0, 0, 0, 0, 0}, quoted...)
}

// options is an extension header of hop-by-hop or destination options, or a routing header: units of 8 bytes
// behind the first.
func options(next, units uint8) []byte {
	b := make([]byte, 8*(1+int(units)))
	b[0], b[1] = next, units
	return b
}

// authentication counts in units of 4 bytes, without the first two.
func authentication(next, units uint8) []byte {
	b := make([]byte, 4*(2+int(units)))
	b[0], b[1] = next, units
	return b
}

func fragment6(next uint8, offset uint16, more bool) []byte {
	v := offset << 3
	if more {
		v |= 1
	}
	return slices.Concat([]byte{next, 0xff}, u16(v), []byte{1, 2, 3, 4}) // the reserved byte is not a length
}

// IP protocols that are extension headers, and one that is the end of them.
const (
	hopByHop       = 0
	routing        = 43
	fragmentHeader = 44
	esp            = 50
	ah             = 51
	nothing        = 59
	destOptions    = 60
	mobility       = 135
)

const moreFragments = 0x2000

func see(src, dst netip.Addr, protocol uint8, sport, dport uint16) *policy.Packet {
	return &policy.Packet{Src: src, Dst: dst, Protocol: protocol, HopLimit: 64, HasL4: true, SrcPort: sport, DstPort: dport}
}

func blind(src, dst netip.Addr, protocol uint8) *policy.Packet {
	return &policy.Packet{Src: src, Dst: dst, Protocol: protocol, HopLimit: 64}
}

// Fixtures returns all of them; names are unique.
func Fixtures() []Fixture {
	return slices.Concat(links(), ipv4(), fragments4(), ipv6(), fragments6(), neighbours(), errors4(), errors6())
}

func links() []Fixture {
	redis := header4{protocol: policy.TCP}.packet(tcp(40000, 6379))
	redis6 := header6{next: policy.TCP}.packet(tcp(40000, 6379))
	sees := see(client4, host4, policy.TCP, 40000, 6379)
	sees6 := see(client6, host6, policy.TCP, 40000, 6379)
	spam := header4{src: denied4, protocol: policy.UDP}.packet(udp(40000, 9))
	return []Fixture{
		{"ethernet", frame4(redis), allowed(AllowRedis), sees},
		{"802.1q", ethernet(redis, typeVLAN, typeIPv4), allowed(AllowRedis), sees},
		{"802.1q ipv6", ethernet(redis6, typeVLAN, typeIPv6), allowed(AllowRedis), sees6},
		{"802.1ad", ethernet(redis, typeQinQ, typeIPv4), allowed(AllowRedis), sees},
		{"qinq", ethernet(redis, typeQinQ, typeVLAN, typeIPv4), allowed(AllowRedis), sees},
		{"qinq ipv6", ethernet(redis6, typeQinQ, typeVLAN, typeIPv6), allowed(AllowRedis), sees6},
		{"802.1q twice", ethernet(redis, typeVLAN, typeVLAN, typeIPv4), allowed(AllowRedis), sees},
		{"denied behind qinq", ethernet(spam, typeQinQ, typeVLAN, typeIPv4), denied(DenySource), nil},
		{"three tags", ethernet(redis, typeQinQ, typeVLAN, typeVLAN, typeIPv4), notIP, nil},
		{"tag cut short", ethernet(nil, typeVLAN), notIP, nil},
		{"second tag cut short", append(ethernet(nil, typeQinQ, typeVLAN), 0), notIP, nil},
		{"tag with nothing behind it", ethernet(nil, typeVLAN, typeIPv4), malformed, nil},
		{"arp", ethernet(make([]byte, 28), typeARP), notIP, nil},
		{"length instead of a type (802.3)", ethernet(make([]byte, 46), 46), notIP, nil},
		{"ipv6 under ipv4's type", ethernet(redis6, typeIPv4), malformed, nil},
		{"ipv4 under ipv6's type", ethernet(append(redis, make([]byte, 20)...), typeIPv6), malformed, nil},
		{"padding behind the packet", frame4(append(redis, make([]byte, 18)...)), allowed(AllowRedis), sees},
	}
}

func ipv4() []Fixture {
	at := func(protocol uint8, payload []byte) []byte {
		return frame4(header4{protocol: protocol}.packet(payload))
	}
	with := func(h header4, payload []byte) []byte {
		if h.protocol == 0 {
			h.protocol = policy.TCP
		}
		return frame4(h.packet(payload))
	}
	redis, dns := tcp(40000, 6379), udp(40000, 53)
	return []Fixture{
		{"tcp", at(policy.TCP, redis), allowed(AllowRedis), see(client4, host4, policy.TCP, 40000, 6379)},
		{"tcp from the port, not to it", at(policy.TCP, tcp(6379, 40000)), tracked, see(client4, host4, policy.TCP, 6379, 40000)},
		{"tcp to the port of a udp rule", at(policy.TCP, tcp(40000, 53)), tracked, nil},
		{"tcp to a failsafe port", at(policy.TCP, tcp(40000, 22)), failsafe, nil},
		{"a failsafe port from a denied source", with(header4{src: denied4}, tcp(40000, 22)), failsafe, nil},
		{"udp", at(policy.UDP, dns), allowed(AllowDNS), see(client4, host4, policy.UDP, 40000, 53)},
		{"udp from a remote port", at(policy.UDP, udp(5353, 40000)), allowed(AllowRemote), nil},
		{"udplite", at(policy.UDPLite, udp(1, 700)), allowed(AllowUDPLite), see(client4, host4, policy.UDPLite, 1, 700)},
		{"udplite to the port of a udp rule", at(policy.UDPLite, dns), tracked, nil},
		{"sctp", at(policy.SCTP, sctp(1, 5060)), allowed(AllowSCTP), see(client4, host4, policy.SCTP, 1, 5060)},
		{"a protocol by number", at(gre, make([]byte, 8)), denied(DenyGRE), blind(client4, host4, gre)},
		{"a protocol without payload", at(gre, nil), denied(DenyGRE), nil},
		{"icmp timestamp", at(policy.ICMP, icmp(13, 0)), allowed(AllowTimestamp),
			&policy.Packet{Src: client4, Dst: host4, Protocol: policy.ICMP, HopLimit: 64, HasL4: true, ICMPType: 13}},
		{"icmp timestamp reply", at(policy.ICMP, icmp(14, 0)), tracked, nil},
		{"icmpv6's number in ipv4", at(policy.ICMPv6, icmp(128, 0)), tracked, blind(client4, host4, policy.ICMPv6)},
		{"denied source", with(header4{src: denied4}, redis), denied(DenySource), nil},
		{"denied destination", with(header4{dst: closed4}, redis), denied(DenyDestination), nil},

		{"one option", with(header4{options: []byte{1, 1, 1, 0}}, redis), allowed(AllowRedis), see(client4, host4, policy.TCP, 40000, 6379)},
		{"all options", with(header4{options: make([]byte, 40)}, redis), allowed(AllowRedis), see(client4, host4, policy.TCP, 40000, 6379)},
		{"options cut short", with(header4{options: make([]byte, 40)}, nil)[:14+40], malformed, nil},
		{"header cut short", with(header4{}, nil)[:14+19], malformed, nil},
		{"header of less than 20 bytes", with(header4{ihl: 4}, redis), malformed, nil},
		{"header length 0", with(header4{version: 4, ihl: 16}, redis), malformed, nil}, // 16 spills over: version 5, length 0
		{"version 5", with(header4{version: 5}, redis), malformed, nil},
		{"version 6", with(header4{version: 6}, redis), malformed, nil},
		{"total length below the header's", with(header4{total: 19}, redis), malformed, nil},
		{"total length 0", frame4(zero(header4{protocol: policy.TCP}.packet(redis), 2, 4)), malformed, nil},
		{"total length of the header alone", with(header4{total: 20}, redis), tracked, blind(client4, host4, policy.TCP)},
		{"total length beyond the frame", with(header4{total: 1500}, redis), allowed(AllowRedis), nil},
		{"tcp header cut short by the frame", with(header4{total: 40}, redis[:19]), tracked, blind(client4, host4, policy.TCP)},
		{"tcp header cut short by the total length", with(header4{total: 39}, redis), tracked, blind(client4, host4, policy.TCP)},
		{"ports alone are no tcp header", at(policy.TCP, redis[:8]), tracked, nil},
		{"tcp header and not a byte more", at(policy.TCP, redis), allowed(AllowRedis), nil},
		{"udp header and not a byte more", at(policy.UDP, dns[:8]), allowed(AllowDNS), nil},
		{"udp header cut short", at(policy.UDP, dns[:7]), tracked, blind(client4, host4, policy.UDP)},
		{"sctp header cut short", at(policy.SCTP, sctp(1, 5060)[:11]), tracked, nil},
		{"icmp header cut short", at(policy.ICMP, icmp(13, 0)[:7]), tracked, nil},
		{"a rule without ports needs no transport header", with(header4{src: denied4}, redis[:3]), denied(DenySource), nil},
	}
}

// zero clears the bytes from first to last, exclusive.
func zero(b []byte, first, last int) []byte {
	clear(b[first:last])
	return b
}

func fragments4() []Fixture {
	at := func(fragment uint16, h header4, payload []byte) []byte {
		h.protocol, h.fragment = policy.UDP, fragment
		return frame4(h.packet(payload))
	}
	dns := udp(40000, 53)
	laterOne := blind(client4, host4, policy.UDP)
	laterOne.LaterFragment = true
	return []Fixture{
		{"don't fragment", at(0x4000, header4{}, dns), allowed(AllowDNS), nil},
		{"reserved flag", at(0x8000, header4{}, dns), allowed(AllowDNS), nil},
		{"first fragment", at(moreFragments, header4{}, dns), allowed(AllowDNS), see(client4, host4, policy.UDP, 40000, 53)},
		{"first fragment too short for ports", at(moreFragments, header4{}, dns[:4]), tracked, nil},
		{"middle fragment", at(moreFragments|185, header4{}, dns), later, laterOne},
		{"last fragment", at(370, header4{}, dns), later, laterOne},
		{"fragment at offset 8", at(1, header4{}, dns), later, laterOne},
		{"fragment at the highest offset", at(0x1fff, header4{}, dns), later, laterOne},
		{"later fragment of a denied source", at(185, header4{src: denied4}, dns), denied(DenySource), nil},
		{"later fragment of a denied protocol", frame4(header4{protocol: gre, fragment: 185}.packet(dns)), denied(DenyGRE), nil},
		{"later fragment of an icmp error", frame4(header4{protocol: policy.ICMP, fragment: 185}.packet(
			icmp(3, 4, header4{src: host4, dst: client4, protocol: policy.UDP}.packet(udp(53, 40000))...))), later, nil},
	}
}

func ipv6() []Fixture {
	redis := tcp(40000, 6379)
	sees := see(client6, host6, policy.TCP, 40000, 6379)
	chain := func(first uint8, extensions ...[]byte) []byte {
		return frame6(header6{next: first, extensions: extensions}.packet(redis))
	}
	many := func(n int) (out [][]byte) {
		for i := range n {
			next := uint8(destOptions)
			if i == n-1 {
				next = policy.TCP
			}
			out = append(out, options(next, 0))
		}
		return out
	}
	at := func(protocol uint8, payload []byte) []byte { return frame6(header6{next: protocol}.packet(payload)) }
	return []Fixture{
		{"ipv6 tcp", at(policy.TCP, redis), allowed(AllowRedis), sees},
		{"ipv6 udp", at(policy.UDP, udp(1, 53)), allowed(AllowDNS), nil},
		{"ipv6 udplite", at(policy.UDPLite, udp(1, 700)), allowed(AllowUDPLite), nil},
		{"ipv6 sctp", at(policy.SCTP, sctp(1, 5060)), allowed(AllowSCTP), nil},
		{"ipv6 failsafe from a denied source", frame6(header6{src: denied6, next: policy.TCP}.packet(tcp(1, 22))), failsafe, nil},
		{"ipv6 denied source", frame6(header6{src: denied6, next: policy.TCP}.packet(redis)), denied(DenySource), nil},
		{"ipv6 denied destination", frame6(header6{dst: closed6, next: policy.TCP}.packet(redis)), denied(DenyDestination), nil},
		{"ipv6 a protocol by number", at(gre, make([]byte, 8)), denied(DenyGRE), blind(client6, host6, gre)},
		{"icmpv6 echo", at(policy.ICMPv6, icmp(128, 0)), allowed(AllowPing6),
			&policy.Packet{Src: client6, Dst: host6, Protocol: policy.ICMPv6, HopLimit: 64, HasL4: true, ICMPType: 128}},
		{"icmpv6 echo with another code", at(policy.ICMPv6, icmp(128, 1)), tracked, nil},
		{"icmpv6 echo reply", at(policy.ICMPv6, icmp(129, 0)), tracked, nil},
		{"icmp's number in ipv6", at(policy.ICMP, icmp(13, 0)), tracked, blind(client6, host6, policy.ICMP)},
		{"an ipv4-mapped source is an ipv6 address", frame6(header6{src: netip.AddrFrom16(denied4.As16()), next: policy.TCP}.packet(redis)), allowed(AllowRedis), nil},

		{"hop-by-hop options", chain(hopByHop, options(policy.TCP, 0)), allowed(AllowRedis), sees},
		{"destination options of 24 bytes", chain(destOptions, options(policy.TCP, 2)), allowed(AllowRedis), sees},
		{"routing header", chain(routing, options(policy.TCP, 4)), allowed(AllowRedis), sees},
		{"the longest options", frame6(header6{next: hopByHop, extensions: [][]byte{options(policy.TCP, 255)}}.packet(redis)), allowed(AllowRedis), sees},
		{"authentication header of 12 bytes", chain(ah, authentication(policy.TCP, 1)), allowed(AllowRedis), sees},
		{"authentication header of 24 bytes", chain(ah, authentication(policy.TCP, 4)), allowed(AllowRedis), sees},
		{"a chain of all kinds", chain(hopByHop, options(destOptions, 1), options(routing, 0), options(fragmentHeader, 2),
			fragment6(ah, 0, false), authentication(destOptions, 3), options(policy.TCP, 0)), allowed(AllowRedis), sees},
		{"eight extension headers", chain(destOptions, many(8)...), allowed(AllowRedis), sees},
		{"nine extension headers", chain(destOptions, many(9)...), tracked, blind(client6, host6, destOptions)},
		{"nine extension headers from a denied source", frame6(header6{src: denied6, next: destOptions, extensions: many(9)}.packet(redis)), denied(DenySource), nil},
		{"extension header cut short by the frame", chain(destOptions, options(policy.TCP, 9))[:14+40+50], tracked, blind(client6, host6, destOptions)},
		{"extension header beyond the payload length",
			frame6(header6{next: destOptions, length: 20, extensions: [][]byte{options(policy.TCP, 2)}}.packet(redis)), tracked, blind(client6, host6, destOptions)},
		{"extension header of 7 bytes", frame6(header6{next: destOptions}.packet(options(policy.TCP, 0)[:7])), tracked, nil},
		{"esp ends the chain", chain(esp, options(policy.TCP, 0)), tracked, blind(client6, host6, esp)},
		{"no next header", at(nothing, redis), tracked, blind(client6, host6, nothing)},
		{"mobility ends the chain", chain(mobility, options(policy.TCP, 0)), tracked, blind(client6, host6, mobility)},

		{"ipv6 header cut short", at(policy.TCP, nil)[:14+39], malformed, nil},
		{"ipv6 header of version 4", frame6(header6{version: 4, next: policy.TCP}.packet(redis)), malformed, nil},
		{"ipv6 header of version 7", frame6(header6{version: 7, next: policy.TCP}.packet(redis)), malformed, nil},
		{"payload length 0 (jumbogram)", frame6(header6{next: policy.TCP, length: -1}.packet(redis)), allowed(AllowRedis), sees},
		{"payload length beyond the frame", frame6(header6{next: policy.TCP, length: 1400}.packet(redis)), allowed(AllowRedis), sees},
		{"payload length cuts tcp short", frame6(header6{next: policy.TCP, length: 19}.packet(redis)), tracked, blind(client6, host6, policy.TCP)},
		{"frame cuts tcp short", at(policy.TCP, redis)[:14+40+19], tracked, blind(client6, host6, policy.TCP)},
		{"ipv6 without payload", at(policy.TCP, nil), tracked, nil},
	}
}

func fragments6() []Fixture {
	dns := udp(40000, 53)
	at := func(h header6, offset uint16, more bool, payload []byte) []byte {
		h.next, h.extensions = fragmentHeader, append(h.extensions, fragment6(policy.UDP, offset, more))
		return frame6(h.packet(payload))
	}
	laterOne := blind(client6, host6, policy.UDP)
	laterOne.LaterFragment = true
	return []Fixture{
		{"ipv6 first fragment", at(header6{}, 0, true, dns), allowed(AllowDNS), see(client6, host6, policy.UDP, 40000, 53)},
		{"ipv6 atomic fragment", at(header6{}, 0, false, dns), allowed(AllowDNS), see(client6, host6, policy.UDP, 40000, 53)},
		{"ipv6 first fragment too short for ports", at(header6{}, 0, true, dns[:7]), tracked, nil},
		{"ipv6 middle fragment", at(header6{}, 185, true, dns), later, laterOne},
		{"ipv6 last fragment", at(header6{}, 370, false, dns), later, laterOne},
		{"ipv6 fragment at the highest offset", at(header6{}, 0x1fff, false, dns), later, laterOne},
		{"ipv6 later fragment of a denied source", at(header6{src: denied6}, 185, true, dns), denied(DenySource), nil},
		{"ipv6 later fragment of a denied protocol",
			frame6(header6{next: fragmentHeader, extensions: [][]byte{fragment6(gre, 185, true)}}.packet(dns)), denied(DenyGRE), nil},
		{"ipv6 fragment header behind others",
			frame6(header6{next: hopByHop, extensions: [][]byte{options(fragmentHeader, 1), fragment6(policy.UDP, 185, true)}}.packet(dns)), later, laterOne},
		{"ipv6 headers behind a later fragment's are not followed",
			frame6(header6{next: fragmentHeader, extensions: [][]byte{fragment6(destOptions, 185, true), options(policy.UDP, 0)}}.packet(dns)), later, nil},
		{"ipv6 fragment header cut short", frame6(header6{next: fragmentHeader}.packet(fragment6(policy.UDP, 185, true)[:7])), tracked,
			blind(client6, host6, fragmentHeader)},
	}
}

func neighbours() []Fixture {
	at := func(h header6, typ uint8) []byte {
		h.next = policy.ICMPv6
		return frame6(h.packet(icmp(typ, 0, make([]byte, 16)...)))
	}
	near := header6{src: denied6, hopLimit: 255}
	behindOptions := header6{src: denied6, hopLimit: 255, next: hopByHop, extensions: [][]byte{options(policy.ICMPv6, 0)}}
	return []Fixture{
		{"router solicitation", at(near, 133), discovery, nil},
		{"router advertisement", at(near, 134), discovery, nil},
		{"neighbour solicitation", at(near, 135), discovery, nil},
		{"neighbour advertisement", at(near, 136), discovery, nil},
		{"redirect is no discovery", at(near, 137), denied(DenySource), nil},
		{"the type before discovery's", at(near, 132), denied(DenySource), nil},
		{"discovery through a router", at(header6{src: denied6, hopLimit: 254}, 135), denied(DenySource), nil},
		{"discovery cut short", frame6(header6{src: denied6, hopLimit: 255, next: policy.ICMPv6}.packet(icmp(135, 0)[:7])), denied(DenySource), nil},
		{"discovery behind options", frame6(behindOptions.packet(icmp(135, 0, make([]byte, 16)...))), discovery, nil},
		{"discovery behind a tag", ethernet(at(near, 135)[14:], typeVLAN, typeIPv6), discovery, nil},
		{"discovery's number in ipv4", frame4(header4{src: denied4, protocol: policy.ICMPv6}.packet(icmp(135, 0))), denied(DenySource), nil},
	}
}

// An error about a packet of ours quotes what we sent: from the port that is ours.
func errors4() []Fixture {
	router := header4{src: netip.MustParseAddr("203.0.113.1"), protocol: policy.ICMP}
	ours := header4{src: host4, dst: client4, protocol: policy.TCP}
	with := func(h header4, change func(*header4)) header4 {
		change(&h)
		return h
	}
	about := func(typ, code uint8, quoted []byte) []byte { return frame4(router.packet(icmp(typ, code, quoted...))) }
	answer := tcp(6379, 40000)
	quoted := ours.packet(answer)
	ask := with(ours, func(h *header4) { h.protocol = policy.UDP })
	return []Fixture{
		{"frag needed about our answer", about(3, 4, quoted), allowed(AllowRedis), nil},
		{"port unreachable about our call", about(3, 3, ask.packet(udp(40000, 5353))), allowed(AllowRemote), nil},
		{"source quench about our answer", about(4, 0, quoted), allowed(AllowRedis), nil},
		{"redirect about our answer", about(5, 0, quoted), allowed(AllowRedis), nil},
		{"time exceeded about our answer", about(11, 0, quoted), allowed(AllowRedis), nil},
		{"parameter problem about our answer", about(12, 0, quoted), allowed(AllowRedis), nil},
		{"echo is about nothing", about(8, 0, quoted), tracked, nil},
		{"error about 8 bytes of tcp", about(3, 4, ours.packet(answer)[:28]), allowed(AllowRedis), nil},
		{"error about 7 bytes of tcp", about(3, 4, ours.packet(answer)[:27]), tracked, nil},
		{"error with a total length that ends in the quoted header",
			frame4(with(router, func(h *header4) { h.total = 20 + 8 + 27 }).packet(icmp(3, 4, quoted...))), tracked, nil},
		{"error about a packet with options", about(3, 4, with(ours, func(h *header4) { h.options = make([]byte, 12) }).packet(answer)), allowed(AllowRedis), nil},
		{"error behind options", frame4(with(router, func(h *header4) { h.options = make([]byte, 40) }).packet(icmp(3, 4, quoted...))), allowed(AllowRedis), nil},
		{"error about a packet that was sent to our port", about(3, 4, with(ours, func(h *header4) { h.src, h.dst = client4, host4 }).packet(tcp(40000, 6379))), tracked, nil},
		{"error about a tracked flow", about(3, 4, ours.packet(tcp(8080, 40000))), tracked, nil},
		{"error about a failsafe flow", about(3, 4, ours.packet(tcp(22, 40000))), tracked, nil},
		{"error about a packet to a denied address", about(3, 4, with(ours, func(h *header4) { h.dst = denied4 }).packet(answer)), tracked, nil},
		{"error from a denied source", frame4(with(router, func(h *header4) { h.src = denied4 }).packet(icmp(3, 4, quoted...))), denied(DenySource), nil},
		{"error about a first fragment", about(3, 4, with(ask, func(h *header4) { h.fragment = moreFragments }).packet(udp(53, 40000))), allowed(AllowDNS), nil},
		{"error about a later fragment", about(3, 4, with(ask, func(h *header4) { h.fragment = 185 }).packet(udp(53, 40000))), tracked, nil},
		{"error about an error", about(3, 4, with(ours, func(h *header4) { h.protocol = policy.ICMP }).packet(icmp(3, 4, quoted...))), tracked, nil},
		{"error about our answer to a timestamp", about(3, 1, with(ours, func(h *header4) { h.protocol = policy.ICMP }).packet(icmp(14, 0))), allowed(AllowTimestamp), nil},
		{"error about nothing", about(3, 4, nil), tracked, nil},
		{"error about a malformed packet", about(3, 4, with(ours, func(h *header4) { h.version = 5 }).packet(answer)), tracked, nil},
		{"error about an ipv6 packet", about(3, 4, header6{src: host6, dst: client6, next: policy.TCP}.packet(answer)), tracked, nil},
		{"error behind qinq", ethernet(about(3, 4, quoted)[14:], typeQinQ, typeVLAN, typeIPv4), allowed(AllowRedis), nil},
		{"all that can be long at once", ethernet(with(router, func(h *header4) { h.options = make([]byte, 40) }).packet(
			icmp(3, 4, with(ours, func(h *header4) { h.options = make([]byte, 40) }).packet(answer)...)), typeQinQ, typeVLAN, typeIPv4), allowed(AllowRedis), nil},
	}
}

func errors6() []Fixture {
	router := header6{src: netip.MustParseAddr("2001:db8:ffff::1"), next: policy.ICMPv6}
	ours := header6{src: host6, dst: client6, next: policy.TCP}
	with := func(h header6, change func(*header6)) header6 {
		change(&h)
		return h
	}
	about := func(typ, code uint8, quoted []byte) []byte { return frame6(router.packet(icmp(typ, code, quoted...))) }
	answer := tcp(6379, 40000)
	quoted := ours.packet(answer)
	return []Fixture{
		{"icmpv6 unreachable about our answer", about(1, 4, quoted), allowed(AllowRedis), nil},
		{"packet too big about our answer", about(2, 0, quoted), allowed(AllowRedis), nil},
		{"icmpv6 time exceeded about our answer", about(3, 0, quoted), allowed(AllowRedis), nil},
		{"icmpv6 parameter problem about our answer", about(4, 1, quoted), allowed(AllowRedis), nil},
		{"icmpv6 type 0 is about nothing", about(0, 0, quoted), tracked, nil},
		{"icmpv6 type 5 is about nothing", about(5, 0, quoted), tracked, nil},
		{"icmpv6 type 33 is about nothing", about(33, 0, quoted), tracked, nil}, // 33 & 31 is 1
		{"icmpv6 error about 8 bytes of tcp", about(2, 0, quoted[:48]), allowed(AllowRedis), nil},
		{"icmpv6 error about 7 bytes of tcp", about(2, 0, quoted[:47]), tracked, nil},
		{"icmpv6 error about a packet with extension headers",
			about(2, 0, with(ours, func(h *header6) {
				h.next, h.extensions = hopByHop, [][]byte{options(destOptions, 1), options(policy.TCP, 0)}
			}).packet(answer)), allowed(AllowRedis), nil},
		{"icmpv6 error behind extension headers",
			frame6(with(router, func(h *header6) { h.next, h.extensions = destOptions, [][]byte{options(policy.ICMPv6, 3)} }).packet(icmp(2, 0, quoted...))), allowed(AllowRedis), nil},
		{"icmpv6 error about a first fragment",
			about(2, 0, with(ours, func(h *header6) {
				h.next, h.extensions = fragmentHeader, [][]byte{fragment6(policy.UDP, 0, true)}
			}).packet(udp(53, 40000))), allowed(AllowDNS), nil},
		{"icmpv6 error about a later fragment",
			about(2, 0, with(ours, func(h *header6) {
				h.next, h.extensions = fragmentHeader, [][]byte{fragment6(policy.UDP, 185, true)}
			}).packet(udp(53, 40000))), tracked, nil},
		{"icmpv6 error about our answer to an echo", about(2, 0, with(ours, func(h *header6) { h.next = policy.ICMPv6 }).packet(icmp(129, 0))), allowed(AllowPing6), nil},
		{"icmpv6 error about a tracked flow", about(2, 0, ours.packet(tcp(8080, 40000))), tracked, nil},
		{"icmpv6 error about a packet to a denied address", about(2, 0, with(ours, func(h *header6) { h.dst = denied6 }).packet(answer)), tracked, nil},
		{"icmpv6 error from a denied source", frame6(with(router, func(h *header6) { h.src = denied6 }).packet(icmp(2, 0, quoted...))), denied(DenySource), nil},
		{"icmpv6 error about nothing", about(2, 0, nil), tracked, nil},
		{"icmpv6 error about an ipv4 packet", about(2, 0, header4{src: host4, dst: client4, protocol: policy.TCP}.packet(answer)), tracked, nil},
		{"icmpv6 error that ends in the quoted header", frame6(with(router, func(h *header6) { h.length = 8 + 39 }).packet(icmp(2, 0, quoted...))), tracked, nil},
	}
}
