// SPDX-License-Identifier: Apache-2.0

// Package frame makes Ethernet frames of what people have of a packet: a few words, hexadecimal bytes, or a capture
// file.
//
// It writes packets and unwraps them; what rules can see of one is package packet's business. Capture files are read
// from anywhere, so nothing in them is trusted, and memory is bounded. github.com/gopacket/gopacket has a reader too,
// but importing it costs 0.5 ms at each start of a program that seldom reads one.
package frame

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/untracked-cni/untracked/pkg/packet"
	"github.com/untracked-cni/untracked/pkg/policy"
)

// Frame is a packet with its Ethernet header.
type Frame struct {
	// Ethernet is the frame as far as it is known. Where the packet came without an Ethernet header, one was made up.
	Ethernet []byte
	// Length is how many bytes the frame had on the wire, with the header that was made up and without a frame check
	// sequence. It is more than Ethernet has if a capture cut the packet.
	Length int
	// Time is when the packet was captured, the zero Time where that is not known.
	Time time.Time
}

const (
	ethernetHeader = 14
	vlanTag        = 4

	typeIPv4 = 0x0800
	typeIPv6 = 0x86dd
	typeVLAN = 0x8100
	typeQinQ = 0x88a8
	// typeNone stands where a packet is of no protocol that has a number: IEEE 802.3 reads it as a length.
	typeNone = 0
)

// addresses are the locally administered ones that a frame gets where none are known, the destination's first.
var addresses = [12]byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2}

// withHeader puts an Ethernet header in front of a packet, of which length bytes were on the wire.
func withHeader(etherType uint16, data []byte, length int) *Frame {
	b := make([]byte, 0, ethernetHeader+len(data))
	b = append(b, addresses[:]...)
	b = binary.BigEndian.AppendUint16(b, etherType)
	return &Frame{Ethernet: append(b, data...), Length: ethernetHeader + length}
}

// Cut reports whether bytes at the end of the frame are not known. A header that they would belong to looks as if
// the packet had none.
func (f *Frame) Cut() bool { return len(f.Ethernet) < f.Length }

// IP is the packet without Ethernet header and VLAN tags, for interfaces that have none, and its ethertype. It need
// not be an IP packet: the ethertype says so. Both are zero if the frame ends before them.
func (f *Frame) IP() (etherType uint16, data []byte) {
	etherType, data, _ = f.unwrap()
	return etherType, data
}

// unwrap takes off as many VLAN tags as package packet does.
func (f *Frame) unwrap() (etherType uint16, data []byte, vlans []uint16) {
	if len(f.Ethernet) < ethernetHeader {
		return 0, nil, nil
	}
	etherType, data = binary.BigEndian.Uint16(f.Ethernet[12:]), f.Ethernet[ethernetHeader:]
	for len(vlans) < packet.MaxVLANTags && (etherType == typeVLAN || etherType == typeQinQ) {
		if len(data) < vlanTag {
			return 0, nil, vlans
		}
		vlans = append(vlans, binary.BigEndian.Uint16(data)&0xfff)
		etherType, data = binary.BigEndian.Uint16(data[2:]), data[vlanTag:]
	}
	return etherType, data, vlans
}

// String is the frame in one line: `vlan 5 tcp 10.0.0.1:40000 > 192.0.2.1:6379, 58 bytes`.
func (f *Frame) String() string {
	var b strings.Builder
	etherType, _, vlans := f.unwrap()
	for _, id := range vlans {
		fmt.Fprintf(&b, "vlan %d ", id)
	}
	p, reason := packet.Parse(f.Ethernet)
	switch {
	case p != nil:
		b.WriteString(words(p))
	case reason == policy.ByMalformed && etherType == typeIPv4:
		b.WriteString("malformed IPv4 header")
	case reason == policy.ByMalformed:
		b.WriteString("malformed IPv6 header")
	case etherType < 0x600: // a length, or nothing
		b.WriteString("not IP (no ethertype)")
	default:
		fmt.Fprintf(&b, "not IP (ethertype 0x%04x)", etherType)
	}
	fmt.Fprintf(&b, ", %d bytes", f.Length)
	if f.Cut() {
		fmt.Fprintf(&b, " cut to %d", len(f.Ethernet))
	}
	return b.String()
}

// words says what rules can see of a packet.
func words(p *policy.Packet) string {
	name := policy.ProtocolName(p.Protocol)
	if p.HasL4 && policy.HasPorts(p.Protocol) {
		return fmt.Sprintf("%s %s > %s", name, netip.AddrPortFrom(p.Src, p.SrcPort), netip.AddrPortFrom(p.Dst, p.DstPort))
	}
	s := fmt.Sprintf("%s %s > %s", name, p.Src, p.Dst)
	isICMP := p.Protocol == policy.ICMP && p.Src.Is4() || p.Protocol == policy.ICMPv6 && p.Src.Is6()
	switch {
	case p.LaterFragment:
		s += " later fragment"
	case p.HasL4:
		s += fmt.Sprintf(" type %d code %d", p.ICMPType, p.ICMPCode)
	case isICMP || policy.HasPorts(p.Protocol):
		s += " without its header"
	}
	if p.Quoted != nil {
		s += " about " + words(p.Quoted)
	}
	return s
}
