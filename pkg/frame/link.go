// SPDX-License-Identifier: Apache-2.0

package frame

import (
	"encoding/binary"
	"fmt"
)

// linkType says which header a captured packet begins with: https://www.tcpdump.org/linktypes.html.
type linkType uint16

const (
	linkNull      linkType = 0 // BSD loopback
	linkEthernet  linkType = 1
	linkRawBSD    linkType = 12 // raw IP, where the number was written by the system it has
	linkRawOther  linkType = 14
	linkRaw       linkType = 101
	linkLoop      linkType = 108 // OpenBSD loopback
	linkCooked    linkType = 113 // Linux cooked capture: tcpdump -i any
	linkIPv4      linkType = 228
	linkIPv6      linkType = 229
	linkCookedTwo linkType = 276
)

// refused are the names of link types that people may come with.
var refused = map[linkType]string{
	9: "PPP", 50: "PPP over serial with HDLC", 51: "PPPoE", 104: "Cisco HDLC", 105: "IEEE 802.11", 107: "Frame Relay",
	117: "pflog", 119: "Prism and IEEE 802.11", 127: "radiotap and IEEE 802.11", 147: "USER0", 162: "USER15",
	187: "Bluetooth HCI", 189: "Linux USB", 192: "PPI", 195: "IEEE 802.15.4", 201: "Bluetooth HCI with direction",
	220: "Linux USB, memory-mapped", 227: "SocketCAN", 239: "nflog", 240: "netANALYZER", 247: "Infiniband",
	249: "USBPcap", 253: "netlink", 271: "vsock",
}

// check refuses link types that frame cannot read.
func (l linkType) check() error {
	if l == linkEthernet || l.header() >= 0 {
		return nil
	}
	name := fmt.Sprintf("link type %d", l)
	if known, ok := refused[l]; ok {
		name += " (" + known + ")"
	}
	return fmt.Errorf("%s is not read here, want a capture with Ethernet, raw IP, loopback or Linux cooked headers", name)
}

// header is how many bytes stand in front of the packet, -1 where that is not known.
func (l linkType) header() int {
	switch l {
	case linkRaw, linkRawBSD, linkRawOther, linkIPv4, linkIPv6:
		return 0
	case linkNull, linkLoop:
		return 4
	case linkCooked:
		return 16
	case linkCookedTwo:
		return 20
	}
	return -1
}

// frame makes a frame of what was captured of a packet that had length bytes. order is that of the capturing machine.
func (l linkType) frame(data []byte, length int, order binary.ByteOrder) (*Frame, error) {
	if err := l.check(); err != nil {
		return nil, err
	}
	length = max(length, len(data))
	if l == linkEthernet {
		return &Frame{Ethernet: data, Length: length}, nil
	}
	header := l.header()
	if len(data) < header {
		return nil, fmt.Errorf("%d bytes captured, less than the header of link type %d, which has %d", len(data), l, header)
	}
	return withHeader(l.etherType(data, order), data[header:], length-header), nil
}

// etherType is that of a packet behind its link header, all of which is in data.
func (l linkType) etherType(data []byte, order binary.ByteOrder) uint16 {
	switch l {
	case linkCooked:
		return binary.BigEndian.Uint16(data[14:])
	case linkCookedTwo:
		return binary.BigEndian.Uint16(data)
	case linkIPv4:
		return typeIPv4
	case linkIPv6:
		return typeIPv6
	case linkLoop:
		return addressFamily(binary.BigEndian.Uint32(data))
	case linkNull:
		return addressFamily(order.Uint32(data))
	}
	switch { // raw: the packet says it
	case len(data) > 0 && data[0]>>4 == 4:
		return typeIPv4
	case len(data) > 0 && data[0]>>4 == 6:
		return typeIPv6
	}
	return typeNone
}

// addressFamily is the ethertype of an AF_INET or AF_INET6. The latter differs from system to system.
func addressFamily(family uint32) uint16 {
	switch family {
	case 2:
		return typeIPv4
	case 10, 24, 28, 30: // Linux; NetBSD and OpenBSD; FreeBSD; macOS
		return typeIPv6
	}
	return typeNone
}
