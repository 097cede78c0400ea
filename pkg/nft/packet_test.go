// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"encoding/binary"
	"net/netip"

	"github.com/untracked-cni/untracked/pkg/policy"
)

// ipPacket writes the bytes of a packet. ext are IPv6 extension headers or IPv4 options, fragment the offset
// field of a fragment header, more what follows the transport header's first 8 bytes.
type ipPacket struct {
	policy.Packet
	options  int
	ext      []uint8
	fragment *uint16
	more     []byte
}

func (p *ipPacket) bytes() []byte {
	return p.header(append(p.transport(), p.more...))
}

func (p *ipPacket) transport() []byte {
	l4 := make([]byte, 20)
	switch {
	case policy.HasPorts(p.Protocol):
		binary.BigEndian.PutUint16(l4, p.SrcPort)
		binary.BigEndian.PutUint16(l4[2:], p.DstPort)
		if p.Protocol == policy.TCP {
			l4[12] = 5 << 4
		} else {
			l4 = l4[:8]
			binary.BigEndian.PutUint16(l4[4:], 8)
		}
	default: // ICMP, or a protocol where these bytes must not matter
		l4[0], l4[1] = p.ICMPType, p.ICMPCode
		l4 = l4[:8]
	}
	return l4
}

func (p *ipPacket) header(payload []byte) []byte {
	if p.Src.Is4() {
		h := make([]byte, 20, 64)
		h[8], h[9] = p.HopLimit, p.Protocol
		src, dst := p.Src.As4(), p.Dst.As4()
		copy(h[12:], src[:])
		copy(h[16:], dst[:])
		for range p.options {
			h = append(h, 1, 1, 1, 1) // no operation
		}
		h[0] = 0x40 | byte(len(h)/4)
		binary.BigEndian.PutUint16(h[2:], uint16(len(h)+len(payload)))
		if p.fragment != nil {
			binary.BigEndian.PutUint16(h[6:], *p.fragment)
		}
		return append(h, payload...)
	}
	// Extension headers from the last to the first.
	next := p.Protocol
	if p.fragment != nil {
		f := []byte{next, 0, 0, 0, 0, 0, 0, 1}
		binary.BigEndian.PutUint16(f[2:], *p.fragment)
		next, payload = 44, append(f, payload...)
	}
	for i := len(p.ext) - 1; i >= 0; i-- {
		e := []byte{next, 0, 1, 4, 0, 0, 0, 0} // one option that pads
		next, payload = p.ext[i], append(e, payload...)
	}
	h := make([]byte, 40, 128)
	h[0], h[6], h[7] = 6<<4, next, p.HopLimit
	binary.BigEndian.PutUint16(h[4:], uint16(len(payload)))
	src, dst := p.Src.As16(), p.Dst.As16()
	copy(h[8:], src[:])
	copy(h[24:], dst[:])
	return append(h, payload...)
}

func udpPacket(src, dst string, sport, dport uint16) []byte {
	return (&ipPacket{Packet: policy.Packet{
		Src: netip.MustParseAddr(src), Dst: netip.MustParseAddr(dst), Protocol: policy.UDP, HopLimit: 64,
		SrcPort: sport, DstPort: dport,
	}}).bytes()
}
