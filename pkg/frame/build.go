// SPDX-License-Identifier: Apache-2.0

package frame

import (
	"encoding/binary"
	"hash/crc32"
	"net/netip"
	"slices"

	"github.com/untracked-cni/untracked/pkg/policy"
)

const (
	hopLimit = 64
	// hopLimitDiscovery is that of IPv6 neighbour discovery (RFC 4861), which no router can have passed on.
	hopLimitDiscovery = 255
)

// build makes a frame of a transport header, whose checksum it fills in.
func build(protocol uint8, src, dst netip.Addr, l4 []byte) *Frame {
	writeChecksum(protocol, src, dst, l4)
	var ip []byte
	etherType := uint16(typeIPv6)
	if src.Is4() {
		etherType = typeIPv4
		ip = header4(protocol, src, dst, len(l4))
	} else {
		ip = header6(protocol, src, dst, l4)
	}
	ip = append(ip, l4...)
	return withHeader(etherType, ip, len(ip))
}

func header4(protocol uint8, src, dst netip.Addr, payload int) []byte {
	b := []byte{4<<4 | 5, 0}
	b = be16(b, uint16(20+payload), 0, 0x4000) // don't fragment
	b = append(b, hopLimit, protocol, 0, 0)
	b = slices.Concat(b, src.AsSlice(), dst.AsSlice())
	binary.BigEndian.PutUint16(b[10:], ^sum(b))
	return b
}

func header6(protocol uint8, src, dst netip.Addr, payload []byte) []byte {
	b := []byte{6 << 4, 0, 0, 0}
	b = be16(b, uint16(len(payload)))
	limit := byte(hopLimit)
	if protocol == policy.ICMPv6 && payload[0] >= 133 && payload[0] <= 137 {
		limit = hopLimitDiscovery
	}
	b = append(b, protocol, limit)
	return slices.Concat(b, src.AsSlice(), dst.AsSlice())
}

// portsHeader is the header of a protocol that has ports, with what must be behind it, without checksum.
func portsHeader(protocol uint8, src, dst uint16) []byte {
	b := be16(nil, src, dst)
	switch protocol {
	case policy.TCP:
		const syn = 5<<12 | 1<<1 // in a header of 5 words
		return be16(b, 0, 0, 0, 0, syn, 65535, 0, 0)
	case policy.SCTP:
		b = be16(b, 0, 0, 0, 0)
		const initChunk = 1 << 8
		return be16(b, initChunk, 20, 0, 1, 1, 0, 1, 1, 0, 1) // tag 1, a window of 65536, a stream either way
	}
	return be16(b, 8, 0) // UDP's length and UDPLite's checksum coverage; checksum
}

// writeChecksum fills in the checksum, which is still zero, of a protocol that has one.
func writeChecksum(protocol uint8, src, dst netip.Addr, l4 []byte) {
	var at int
	switch {
	case protocol == policy.TCP:
		at = 16
	case protocol == policy.UDP, protocol == policy.UDPLite:
		at = 6
	case protocol == policy.ICMPv6 && src.Is6():
		at = 2
	case protocol == policy.ICMP && src.Is4():
		binary.BigEndian.PutUint16(l4[2:], ^sum(l4)) // the only one without addresses
		return
	case protocol == policy.SCTP:
		binary.LittleEndian.PutUint32(l4[8:], crc32.Checksum(l4, crc32.MakeTable(crc32.Castagnoli)))
		return
	default:
		return
	}
	s := ^sum(slices.Concat(src.AsSlice(), dst.AsSlice(), be16(nil, uint16(protocol), uint16(len(l4))), l4))
	if s == 0 && at == 6 {
		s = 0xffff // zero says that there is none
	}
	binary.BigEndian.PutUint16(l4[at:], s)
}

// sum adds up 16-bit words in ones' complement (RFC 1071). The number of bytes is even.
func sum(b []byte) uint16 {
	total := uint32(0)
	for ; len(b) > 0; b = b[2:] {
		total += uint32(binary.BigEndian.Uint16(b))
	}
	for total > 0xffff {
		total = total>>16 + total&0xffff
	}
	return uint16(total)
}

func be16(b []byte, values ...uint16) []byte {
	for _, v := range values {
		b = binary.BigEndian.AppendUint16(b, v)
	}
	return b
}
