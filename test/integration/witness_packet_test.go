// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// witnessPacket is a packet of the comparison.
type witnessPacket struct {
	Egress       bool
	Src, Dst     netip.Addr
	Protocol     uint8
	SPort, DPort uint16 // of TCP, UDP, UDPLite and SCTP
	Type, Code   uint8  // of ICMP and ICMPv6
	Options      bool   // IPv4 options or IPv6 extension headers stand before the transport header
}

func witnessHasPorts(protocol uint8) bool {
	switch protocol {
	case unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_UDPLITE, unix.IPPROTO_SCTP:
		return true
	}
	return false
}

// hasType: either ICMP, in its own family.
func (p *witnessPacket) hasType() bool {
	return p.Src.Is4() && p.Protocol == unix.IPPROTO_ICMP || p.Src.Is6() && p.Protocol == unix.IPPROTO_ICMPV6
}

var witnessProtocols = map[uint8]string{
	unix.IPPROTO_TCP: "TCP", unix.IPPROTO_UDP: "UDP", unix.IPPROTO_ICMP: "ICMP", unix.IPPROTO_ICMPV6: "ICMPv6",
	unix.IPPROTO_SCTP: "SCTP", unix.IPPROTO_UDPLITE: "UDPLite",
}

func (p *witnessPacket) String() string {
	var b strings.Builder
	if b.WriteString("arriving"); p.Egress {
		b.Reset()
		b.WriteString("leaving")
	}
	if name, ok := witnessProtocols[p.Protocol]; ok {
		b.WriteString(" " + name)
	} else {
		fmt.Fprintf(&b, " protocol %d", p.Protocol)
	}
	if witnessHasPorts(p.Protocol) {
		fmt.Fprintf(&b, " %s -> %s", netip.AddrPortFrom(p.Src, p.SPort), netip.AddrPortFrom(p.Dst, p.DPort))
	} else {
		fmt.Fprintf(&b, " %s -> %s", p.Src, p.Dst)
	}
	if p.hasType() {
		fmt.Fprintf(&b, " type %d code %d", p.Type, p.Code)
	}
	if p.Options {
		b.WriteString(map[bool]string{true: ", with IP options", false: ", with extension headers"}[p.Src.Is4()])
	}
	return b.String()
}

// flow is the packet's entry in a connection tracking table, the way lab.Flow prints the ends of one.
func (p *witnessPacket) flow(id uint16) string {
	source, destination := uint16(0), uint16(0)
	switch {
	case witnessHasPorts(p.Protocol):
		source, destination = p.SPort, p.DPort
	case p.hasType():
		source, destination = id, id
	}
	return fmt.Sprintf("%d %s %s", p.Protocol, netip.AddrPortFrom(p.Src, source), netip.AddrPortFrom(p.Dst, destination))
}

// ip writes the packet. Its id stands where every packet has a field to spare: IPv4's identification, and the flow
// label.
func (p *witnessPacket) ip(id uint16) []byte {
	l4 := p.transport(id)
	if p.Src.Is4() {
		b := []byte{4 << 4, 0, 0, 0, 0, 0, 0x40, 0, 64, p.Protocol, 0, 0}
		b = slices.Concat(b, p.Src.AsSlice(), p.Dst.AsSlice())
		if p.Options {
			b = append(b, 1, 1, 1, 0) // no operation, thrice, and the end
		}
		b[0] |= byte(len(b) / 4)
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)+len(l4)))
		binary.BigEndian.PutUint16(b[4:], id)
		binary.BigEndian.PutUint16(b[10:], trafficChecksum(b))
		return append(b, l4...)
	}
	next := p.Protocol
	if p.Options {
		l4 = slices.Concat([]byte{unix.IPPROTO_DSTOPTS, 0, 1, 4, 0, 0, 0, 0}, []byte{next, 0, 1, 4, 0, 0, 0, 0}, l4) // padding
		next = unix.IPPROTO_HOPOPTS
	}
	b := []byte{6 << 4, 0, byte(id >> 8), byte(id), 0, byte(len(l4)), next, 64}
	return slices.Concat(b, p.Src.AsSlice(), p.Dst.AsSlice(), l4)
}

// transport is the header that begins a flow, with a checksum that connection tracking accepts.
func (p *witnessPacket) transport(id uint16) []byte {
	ports := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, p.SPort), p.DPort)
	var b []byte
	sum := 0
	switch {
	case p.Protocol == unix.IPPROTO_TCP:
		b = append(ports, 0, 0, 0, 1, 0, 0, 0, 0, 5<<4, 0x02, 0x20, 0, 0, 0, 0, 0) // SYN
		sum = 16
	case p.Protocol == unix.IPPROTO_UDP, p.Protocol == unix.IPPROTO_UDPLITE:
		b = append(ports, 0, 8, 0, 0)
		sum = 6
	case p.Protocol == unix.IPPROTO_SCTP:
		b = append(ports, 0, 0, 0, 0, 0, 0, 0, 0)
		b = append(b, 1, 0, 0, 20, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1) // INIT
		binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
		return b
	case p.hasType():
		b = []byte{p.Type, p.Code, 0, 0, byte(id >> 8), byte(id), 0, 1}
		if p.Src.Is4() {
			binary.BigEndian.PutUint16(b[2:], trafficChecksum(b))
			return b
		}
		sum = 2
	default:
		return make([]byte, 24)
	}
	pseudo := slices.Concat(p.Src.AsSlice(), p.Dst.AsSlice(), []byte{0, p.Protocol, 0, byte(len(b))})
	binary.BigEndian.PutUint16(b[sum:], trafficChecksum(pseudo, b))
	return b
}
