// SPDX-License-Identifier: Apache-2.0

// Package packet turns the bytes of a frame into what rules can see of it.
//
// It is the reference for the parser in bpf/parse.h, which is tested against it on random and on fuzzed
// frames. Both follow what the kernel's IP stack would do: lengths come from the IP header and never from
// padding behind it, a transport header that is cut short is no header, and IPv6 extension headers are the
// ones that ipv6_skip_exthdr() in the kernel's net/ipv6/exthdrs_core.c follows.
package packet

import (
	"encoding/binary"
	"math"
	"net/netip"

	"github.com/untracked-cni/untracked/pkg/policy"
)

// Bounds of the parser; bpf/parse.h has the same.
const (
	MaxVLANTags         = 2
	MaxExtensionHeaders = 8
	// MaxHeaderBytes bounds an IP header with its extension headers: what lies further in is not looked at.
	MaxHeaderBytes = 1<<14 - 1
)

const (
	ethernetHeader  = 14
	vlanTag         = 4
	icmpErrorHeader = 8
	quotedL4Bytes   = 8

	etherTypeIPv4 = 0x0800
	etherTypeIPv6 = 0x86dd
	etherTypeVLAN = 0x8100
	etherTypeQinQ = 0x88a8

	hopByHop           = 0
	routing            = 43
	fragment           = 44
	authentication     = 51
	destinationOptions = 60
)

// Decide is the whole specification of an interface's program: the verdict of an ordered list of rules on an
// Ethernet frame.
func Decide(rules []policy.Rule, frame []byte) policy.Decision {
	etherType, payload := ethernet(frame)
	return decide(rules, etherType, payload)
}

// DecideIP is Decide for an interface without Ethernet headers: etherType says which family data is of.
func DecideIP(rules []policy.Rule, etherType uint16, data []byte) policy.Decision {
	return decide(rules, etherType, data)
}

func decide(rules []policy.Rule, etherType uint16, data []byte) policy.Decision {
	p, err := parse(etherType, data, math.MaxInt32, false)
	switch err {
	case errNotIP:
		return policy.Decision{Verdict: policy.Tracked, By: policy.ByNotIP, Rule: policy.NoRule}
	case errMalformed:
		return policy.Decision{Verdict: policy.Denied, By: policy.ByMalformed, Rule: policy.NoRule}
	}
	return policy.Evaluate(rules, p)
}

// Parse reads an Ethernet frame with up to MaxVLANTags tags. The packet is nil, with the reason, when the
// frame holds no IP packet (policy.ByNotIP) or one whose IP header is malformed (policy.ByMalformed).
func Parse(frame []byte) (*policy.Packet, policy.Reason) {
	return ParseIP(ethernet(frame))
}

// ParseIP is Parse for what stands behind an Ethernet header: etherType says which family data is of.
func ParseIP(etherType uint16, data []byte) (*policy.Packet, policy.Reason) {
	p, err := parse(etherType, data, math.MaxInt32, false)
	switch err {
	case errNotIP:
		return nil, policy.ByNotIP
	case errMalformed:
		return nil, policy.ByMalformed
	}
	return p, ""
}

type parseError string

func (e parseError) Error() string { return string(e) }

const (
	errNotIP     = parseError("not an IP packet")
	errMalformed = parseError("malformed IP header")
)

// ethernet returns the ethertype behind the VLAN tags, 0 when the frame ends before it.
func ethernet(frame []byte) (etherType uint16, payload []byte) {
	if len(frame) < ethernetHeader {
		return 0, nil
	}
	etherType, payload = binary.BigEndian.Uint16(frame[12:]), frame[ethernetHeader:]
	for range MaxVLANTags {
		if etherType != etherTypeVLAN && etherType != etherTypeQinQ {
			break
		}
		if len(payload) < vlanTag {
			return 0, nil
		}
		etherType, payload = binary.BigEndian.Uint16(payload[2:]), payload[vlanTag:]
	}
	return etherType, payload
}

// parse reads an IP packet. limit is how many bytes an enclosing header leaves for it; quoted says that it is
// the one an ICMP error is about, of which 8 bytes behind the IP header are enough (RFC 792).
func parse(etherType uint16, data []byte, limit int, quoted bool) (*policy.Packet, error) {
	var (
		p    *policy.Packet
		l4   []byte
		left int
	)
	switch etherType {
	case etherTypeIPv4:
		p, l4, left = parseIPv4(data, limit)
	case etherTypeIPv6:
		p, l4, left = parseIPv6(data, limit)
	default:
		return nil, errNotIP
	}
	if p == nil {
		return nil, errMalformed
	}
	if len(data)-len(l4) <= MaxHeaderBytes {
		parseL4(p, l4, left, quoted)
	}
	version := 6
	if p.Src.Is4() {
		version = 4
	}
	isICMP := version == 4 && p.Protocol == policy.ICMP || version == 6 && p.Protocol == policy.ICMPv6
	if !quoted && p.HasL4 && isICMP && policy.IsICMPError(version, p.ICMPType) {
		p.Quoted, _ = parse(etherType, l4[icmpErrorHeader:], left-icmpErrorHeader, true)
	}
	return p, nil
}

// parseIPv4 returns nil for a malformed header, else the packet, the data from the transport header on and
// how many bytes of it belong to the packet by its own account.
func parseIPv4(data []byte, limit int) (p *policy.Packet, l4 []byte, left int) {
	if len(data) < 20 || data[0]>>4 != 4 {
		return nil, nil, 0
	}
	header, total := int(data[0]&15)*4, int(binary.BigEndian.Uint16(data[2:]))
	if header < 20 || total < header || len(data) < header {
		return nil, nil, 0
	}
	p = &policy.Packet{
		Src:           netip.AddrFrom4([4]byte(data[12:16])),
		Dst:           netip.AddrFrom4([4]byte(data[16:20])),
		Protocol:      data[9],
		HopLimit:      data[8],
		LaterFragment: binary.BigEndian.Uint16(data[6:])&0x1fff != 0,
	}
	return p, data[header:], min(total, limit) - header
}

func parseIPv6(data []byte, limit int) (p *policy.Packet, l4 []byte, left int) {
	const header = 40
	if len(data) < header || data[0]>>4 != 6 {
		return nil, nil, 0
	}
	l4, left = data[header:], int(binary.BigEndian.Uint16(data[4:]))
	if left == 0 { // a jumbogram: the data ends it
		left = len(l4)
	}
	left = min(left, limit-header)
	p = &policy.Packet{
		Src:      netip.AddrFrom16([16]byte(data[8:24])),
		Dst:      netip.AddrFrom16([16]byte(data[24:40])),
		Protocol: data[6],
		HopLimit: data[7],
	}
	for range MaxExtensionHeaders {
		if left < 8 || len(l4) < 8 || len(data)-len(l4) > MaxHeaderBytes {
			break
		}
		var length int
		switch p.Protocol {
		case hopByHop, routing, destinationOptions:
			length = (int(l4[1]) + 1) * 8
		case authentication:
			length = (int(l4[1]) + 2) * 4
		case fragment:
			length = 8
		default:
			return p, l4, left
		}
		if left < length || len(l4) < length {
			break
		}
		later := p.Protocol == fragment && binary.BigEndian.Uint16(l4[2:])&0xfff8 != 0
		p.Protocol = l4[0]
		if later {
			p.LaterFragment = true
			break
		}
		l4, left = l4[length:], left-length
	}
	return p, l4, left
}

func parseL4(p *policy.Packet, l4 []byte, left int, quoted bool) {
	if p.LaterFragment {
		return
	}
	need := 8
	switch {
	case p.Protocol == policy.TCP:
		need = 20
	case p.Protocol == policy.SCTP:
		need = 12
	case p.Protocol == policy.UDP, p.Protocol == policy.UDPLite:
	case p.Protocol == policy.ICMP && p.Src.Is4():
	case p.Protocol == policy.ICMPv6 && p.Src.Is6():
	default:
		return
	}
	if quoted {
		need = quotedL4Bytes
	}
	if left < need || len(l4) < need {
		return
	}
	p.HasL4 = true
	if policy.HasPorts(p.Protocol) {
		p.SrcPort, p.DstPort = binary.BigEndian.Uint16(l4), binary.BigEndian.Uint16(l4[2:])
	} else {
		p.ICMPType, p.ICMPCode = l4[0], l4[1]
	}
}
