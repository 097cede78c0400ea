// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// attributes are netlink attributes in wire format, in nftables' big-endian. They are written by hand, and not
// one by one through slices of slices, because a deny list has hundreds of thousands of them.
type attributes []byte

func (a *attributes) put(typ uint16, value []byte) {
	*a = binary.NativeEndian.AppendUint16(*a, uint16(unix.SizeofNlAttr+len(value)))
	*a = binary.NativeEndian.AppendUint16(*a, typ)
	*a = append(*a, value...)
	a.pad()
}

func (a *attributes) text(typ uint16, value string) { a.put(typ, append([]byte(value), 0)) }
func (a *attributes) u32(typ uint16, value uint32) {
	a.put(typ, binary.BigEndian.AppendUint32(nil, value))
}
func (a *attributes) u64(typ uint16, value uint64) {
	a.put(typ, binary.BigEndian.AppendUint64(nil, value))
}

// nest puts what fill adds into one attribute. It must stay below 64 KiB, see elementsPerMessage.
func (a *attributes) nest(typ uint16, fill func()) {
	start := len(*a)
	*a = append(*a, 0, 0, 0, 0)
	fill()
	binary.NativeEndian.PutUint16((*a)[start:], uint16(len(*a)-start))
	binary.NativeEndian.PutUint16((*a)[start+2:], typ|unix.NLA_F_NESTED)
	a.pad()
}

func (a *attributes) pad() {
	for len(*a)%unix.NLA_ALIGNTO != 0 {
		*a = append(*a, 0)
	}
}
