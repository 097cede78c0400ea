// SPDX-License-Identifier: Apache-2.0

package frame

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/bits"
	"time"
)

// maxCaptured is the most bytes of a packet that are read, libpcap's MAXIMUM_SNAPLEN. Whatever a file says, no more
// memory is taken at once.
const maxCaptured = 256 << 10

// Pcap reads the packets of a capture file, pcap or pcapng, one after another; each frame has memory of its own.
// Packets can have Ethernet, raw IP, loopback or Linux cooked headers.
//
// An error names the packet that could not be read, counted from 1, and ends the sequence. What came before is valid.
func Pcap(r io.Reader) iter.Seq2[*Frame, error] {
	return func(yield func(*Frame, error) bool) {
		next, err := open(bufio.NewReader(r))
		if err != nil {
			yield(nil, err)
			return
		}
		for n := 1; ; n++ {
			f, err := next()
			if err == io.EOF {
				return
			}
			if err != nil {
				yield(nil, fmt.Errorf("packet %d: %w", n, err))
				return
			}
			if !yield(f, nil) {
				return
			}
		}
	}
}

// reader returns the next packet, and io.EOF where the file may end.
type reader func() (*Frame, error)

var (
	errCut      = errors.New("the file ends inside of it; it was cut, or is still being written")
	errNoHeader = errors.New("the file ends inside of its header, want a capture as `tcpdump -w` writes it")
)

// open reads what tells the formats and byte orders apart.
func open(r *bufio.Reader) (reader, error) {
	magic, err := r.Peek(4)
	switch {
	case err == io.EOF && len(magic) == 0:
		return nil, errors.New("the file is empty, want a capture as `tcpdump -w` writes it")
	case err == io.EOF:
		return nil, errNoHeader
	case err != nil:
		return nil, err
	}
	if binary.BigEndian.Uint32(magic) == blockSection {
		return (&ng{r: r}).next, nil
	}
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		switch order.Uint32(magic) {
		case 0xa1b2c3d4:
			return openClassic(r, order, 1e6)
		case 0xa1b23c4d:
			return openClassic(r, order, 1e9)
		}
	}
	return nil, fmt.Errorf("not a capture file: it begins with % x, want pcap or pcapng as `tcpdump -w` writes it", magic)
}

// classic is a pcap file: https://www.ietf.org/archive/id/draft-ietf-opsawg-pcap-04.html.
type classic struct {
	r     io.Reader
	order binary.ByteOrder
	units uint64 // of its clock in a second
	link  linkType
}

func openClassic(r io.Reader, order binary.ByteOrder, units uint64) (reader, error) {
	var header [24]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return nil, orCut(err, errNoHeader)
	}
	if major, minor := order.Uint16(header[4:]), order.Uint16(header[6:]); major != 2 || minor != 4 {
		return nil, fmt.Errorf("pcap version %d.%d, want 2.4", major, minor)
	}
	// The upper half has the length of frame check sequences, which nobody reads.
	c := &classic{r, order, units, linkType(order.Uint32(header[20:]))}
	return c.next, c.link.check()
}

func (c *classic) next() (*Frame, error) {
	var header [16]byte
	if _, err := io.ReadFull(c.r, header[:]); err != nil {
		if err == io.EOF {
			return nil, io.EOF
		}
		return nil, orCut(err, errCut)
	}
	data, err := readCaptured(c.r, c.order.Uint32(header[8:]))
	if err != nil {
		return nil, err
	}
	f, err := c.link.frame(data, int(c.order.Uint32(header[12:])), c.order)
	if err != nil {
		return nil, err
	}
	f.Time = timestamp(uint64(c.order.Uint32(header[:])), uint64(c.order.Uint32(header[4:])), c.units)
	return f, nil
}

// readCaptured reads the bytes of a packet, of which the file says that they are so many.
func readCaptured(r io.Reader, captured uint32) ([]byte, error) {
	if captured > maxCaptured {
		return nil, fmt.Errorf("claims that %d bytes of it were captured, want at most %d", captured, maxCaptured)
	}
	data := make([]byte, captured)
	if _, err := io.ReadFull(r, data); err != nil {
		return nil, orCut(err, errCut)
	}
	return data, nil
}

// orCut returns cut in place of the ways that io.ReadFull has of saying that the file ended.
func orCut(err, cut error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return cut
	}
	return err
}

// timestamp is a time since 1970, of whole seconds and a number of units of which a second has so many.
func timestamp(seconds, fraction, units uint64) time.Time {
	seconds, fraction = seconds+fraction/units, fraction%units
	high, low := bits.Mul64(fraction, 1e9)
	nanoseconds, _ := bits.Div64(high, low, units)
	return time.Unix(int64(seconds), int64(nanoseconds)).UTC()
}
