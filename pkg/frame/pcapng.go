// SPDX-License-Identifier: Apache-2.0

package frame

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
)

// ng reads a pcapng file: https://www.ietf.org/archive/id/draft-ietf-opsawg-pcapng-03.html. It is a row of blocks, of
// which those that say nothing about packets are skipped.
type ng struct {
	r io.Reader
	// order and interfaces are those of the section.
	order      binary.ByteOrder
	interfaces []ngInterface
}

type ngInterface struct {
	link   linkType
	snap   uint32 // 0 for no limit
	units  uint64 // of its clock in a second
	offset uint64 // seconds that are added to its clock
}

const (
	blockInterface = 1
	blockPacketOld = 2 // what was there before blockPacket
	blockSimple    = 3
	blockPacket    = 6
	blockSection   = 0x0a0d0d0a // the same in both byte orders

	byteOrderMagic = 0x1a2b3c4d

	// A block has its type and length in front, and its length again behind.
	blockOverhead = 12
	// maxInterfaces is as many as the oldest packet block can number.
	maxInterfaces = 1 << 16
)

// next reads blocks until one of them has a packet.
func (g *ng) next() (*Frame, error) {
	for {
		f, err := g.block()
		if f != nil || err != nil {
			return f, err
		}
	}
}

// block reads a block, and returns nil if it is not one of a packet. io.EOF is where it would begin.
func (g *ng) block() (*Frame, error) {
	var header [8]byte
	if _, err := io.ReadFull(g.r, header[:]); err != nil {
		if err == io.EOF {
			return nil, io.EOF
		}
		return nil, orCut(err, errCut)
	}
	if binary.BigEndian.Uint32(header[:]) == blockSection {
		if err := g.section(); err != nil {
			return nil, err
		}
	}
	kind, length := g.order.Uint32(header[:]), g.order.Uint32(header[4:])
	overhead := uint32(blockOverhead)
	if kind == blockSection {
		overhead += 4 // the magic number was read
	}
	if length < overhead || length%4 != 0 {
		return nil, fmt.Errorf("a block says it has %d bytes, want a multiple of 4 and at least %d", length, overhead)
	}
	body := io.LimitedReader{R: g.r, N: int64(length - overhead)}
	f, err := g.content(kind, &body)
	if err != nil {
		return nil, err
	}
	if _, err := io.Copy(io.Discard, &body); err != nil {
		return nil, err
	}
	var again [4]byte
	if _, err := io.ReadFull(g.r, again[:]); err != nil {
		return nil, orCut(err, errCut)
	}
	if n := g.order.Uint32(again[:]); n != length {
		return nil, fmt.Errorf("a block has length %d in front and %d behind, want them equal", length, n)
	}
	return f, nil
}

// section takes the byte order from the magic number, which a section begins with, and forgets the one before.
func (g *ng) section() error {
	var magic [4]byte
	if _, err := io.ReadFull(g.r, magic[:]); err != nil {
		return orCut(err, errCut)
	}
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		if order.Uint32(magic[:]) == byteOrderMagic {
			g.order, g.interfaces = order, nil
			return nil
		}
	}
	return fmt.Errorf("a section has byte order % x, want 1a 2b 3c 4d or its reverse", magic)
}

func (g *ng) content(kind uint32, body *io.LimitedReader) (*Frame, error) {
	switch kind {
	case blockSection:
		return nil, g.version(body)
	case blockInterface:
		return nil, g.addInterface(body)
	case blockPacket, blockPacketOld:
		return g.packet(kind, body)
	case blockSimple:
		return g.simplePacket(body)
	}
	return nil, nil
}

func (g *ng) version(body *io.LimitedReader) error {
	var fixed [12]byte
	if err := readFixed(body, fixed[:]); err != nil {
		return err
	}
	if major := g.order.Uint16(fixed[:]); major != 1 {
		return fmt.Errorf("pcapng version %d.%d, want 1.x", major, g.order.Uint16(fixed[2:]))
	}
	return nil
}

func (g *ng) addInterface(body *io.LimitedReader) error {
	var fixed [8]byte
	if err := readFixed(body, fixed[:]); err != nil {
		return err
	}
	if len(g.interfaces) == maxInterfaces {
		return fmt.Errorf("more than %d interfaces in a section, want no more", maxInterfaces)
	}
	i := ngInterface{link: linkType(g.order.Uint16(fixed[:])), snap: g.order.Uint32(fixed[4:]), units: 1e6}
	if err := g.interfaceOptions(&i, body); err != nil {
		return err
	}
	g.interfaces = append(g.interfaces, i)
	return nil
}

// interfaceOptions reads what an interface's clock is like: options are a code, a length and a padded value.
func (g *ng) interfaceOptions(i *ngInterface, body *io.LimitedReader) error {
	const resolution, offset = 9, 14
	for body.N >= 4 {
		var option [4]byte
		if err := readFixed(body, option[:]); err != nil {
			return err
		}
		code, length := g.order.Uint16(option[:]), int64(g.order.Uint16(option[2:]))
		if code == 0 { // the end
			return nil
		}
		var value [8]byte
		n := min(length, int64(len(value)))
		if err := readFixed(body, value[:n]); err != nil {
			return err
		}
		switch {
		case code == resolution && length == 1:
			if i.units = clockUnits(value[0]); i.units == 0 {
				return fmt.Errorf("an interface's clock has resolution %#02x, want units of 64 bits in a second", value[0])
			}
		case code == offset && length == 8:
			i.offset = g.order.Uint64(value[:])
		}
		padded := (length + 3) &^ 3
		if _, err := io.CopyN(io.Discard, body, padded-n); err != nil && err != io.EOF {
			return err
		}
	}
	return nil
}

// clockUnits is how many units a second has: a power of ten or, with the highest bit set, of two; 0 if too many.
func clockUnits(resolution byte) uint64 {
	if resolution&0x80 != 0 {
		return 1 << (resolution &^ 0x80)
	}
	units := uint64(1)
	for range resolution {
		if units > math.MaxUint64/10 {
			return 0
		}
		units *= 10
	}
	return units
}

func (g *ng) packet(kind uint32, body *io.LimitedReader) (*Frame, error) {
	var fixed [20]byte
	if err := readFixed(body, fixed[:]); err != nil {
		return nil, err
	}
	id := g.order.Uint32(fixed[:])
	if kind == blockPacketOld {
		id = uint32(g.order.Uint16(fixed[:])) // and a count of drops
	}
	i, err := g.lookup(id)
	if err != nil {
		return nil, err
	}
	captured, length := g.order.Uint32(fixed[12:]), g.order.Uint32(fixed[16:])
	if int64(captured) > body.N {
		return nil, fmt.Errorf("claims that %d bytes of it were captured, but its block has %d", captured, body.N)
	}
	data, err := readCaptured(body, captured)
	if err != nil {
		return nil, err
	}
	f, err := i.link.frame(data, int(length), g.order)
	if err != nil {
		return nil, err
	}
	ticks := uint64(g.order.Uint32(fixed[4:]))<<32 | uint64(g.order.Uint32(fixed[8:]))
	f.Time = timestamp(i.offset, ticks, i.units)
	return f, nil
}

// simplePacket is of the first interface, without a time.
func (g *ng) simplePacket(body *io.LimitedReader) (*Frame, error) {
	var fixed [4]byte
	if err := readFixed(body, fixed[:]); err != nil {
		return nil, err
	}
	i, err := g.lookup(0)
	if err != nil {
		return nil, err
	}
	length := g.order.Uint32(fixed[:])
	captured := min(length, uint32(body.N)) // a block's length is a uint32
	if i.snap != 0 {
		captured = min(captured, i.snap)
	}
	data, err := readCaptured(body, captured)
	if err != nil {
		return nil, err
	}
	return i.link.frame(data, int(length), g.order)
}

func (g *ng) lookup(id uint32) (*ngInterface, error) {
	if id >= uint32(len(g.interfaces)) {
		return nil, fmt.Errorf("is of interface %d, but the section has %d so far", id, len(g.interfaces))
	}
	return &g.interfaces[id], nil
}

// readFixed reads what a block of its kind must have.
func readFixed(body *io.LimitedReader, b []byte) error {
	if body.N < int64(len(b)) {
		return errors.New("a block is shorter than what it must have")
	}
	_, err := io.ReadFull(body, b)
	return orCut(err, errCut)
}
