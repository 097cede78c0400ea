// SPDX-License-Identifier: Apache-2.0

package frame

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/untracked-cni/untracked/test/lab"
)

func requireTcpdump(t testing.TB) {
	t.Helper()
	if _, err := exec.LookPath("tcpdump"); err != nil {
		t.Skip("needs tcpdump")
	}
}

// when is the time of all packets here.
var when = time.Date(2023, 11, 14, 22, 13, 20, 654321000, time.UTC)

// pcapFile is written by hand, field by field, so that each can be wrong.
type pcapFile struct {
	b     []byte
	order binary.AppendByteOrder
	// units is of how many parts a second has in the classic format, 0 in pcapng.
	units int64
}

func newPcap(link linkType, order binary.AppendByteOrder, magic uint32, units int64) *pcapFile {
	f := &pcapFile{order: order, units: units}
	f.u32(magic)
	f.u16(2, 4)
	f.u32(0, 0, maxCaptured, uint32(link))
	return f
}

func (f *pcapFile) u16(values ...uint16) {
	for _, v := range values {
		f.b = f.order.AppendUint16(f.b, v)
	}
}

func (f *pcapFile) u32(values ...uint32) {
	for _, v := range values {
		f.b = f.order.AppendUint32(f.b, v)
	}
}

// packet adds one of which length bytes were on the wire.
func (f *pcapFile) packet(data []byte, length int) {
	if f.units == 0 {
		f.enhanced(0, uint64(when.UnixMicro()), data, length)
		return
	}
	f.u32(uint32(when.Unix()), uint32(int64(when.Nanosecond())*f.units/1e9), uint32(len(data)), uint32(length))
	f.b = append(f.b, data...)
}

// block adds a block of pcapng, whose content write appends.
func (f *pcapFile) block(kind uint32, write func()) {
	start := len(f.b)
	f.u32(kind, 0)
	write()
	length := f.order.AppendUint32(nil, uint32(len(f.b)-start+4))
	copy(f.b[start+4:], length)
	f.b = append(f.b, length...)
}

func newPcapng(order binary.AppendByteOrder) *pcapFile {
	f := &pcapFile{order: order}
	f.section()
	return f
}

func (f *pcapFile) section() {
	f.block(blockSection, func() {
		f.u32(byteOrderMagic)
		f.u16(1, 0)
		f.u32(0xffffffff, 0xffffffff)
		f.option(4, []byte("a program")) // shb_userappl
		f.option(0, nil)
	})
}

func (f *pcapFile) iface(link linkType, snap uint32, options ...func()) {
	f.block(blockInterface, func() {
		f.u16(uint16(link), 0)
		f.u32(snap)
		f.option(2, []byte("eth0")) // if_name
		for _, o := range options {
			o()
		}
	})
}

func (f *pcapFile) option(code uint16, value []byte) {
	f.u16(code, uint16(len(value)))
	f.padded(value)
}

func (f *pcapFile) padded(data []byte) {
	f.b = append(f.b, data...)
	f.b = append(f.b, make([]byte, -len(data)&3)...)
}

func (f *pcapFile) enhanced(id uint32, ticks uint64, data []byte, length int) {
	f.block(blockPacket, func() {
		f.u32(id, uint32(ticks>>32), uint32(ticks), uint32(len(data)), uint32(length))
		f.padded(data)
		f.option(1, []byte("a comment"))
	})
}

func collect(t testing.TB, r io.Reader) (frames []*Frame, err error) {
	t.Helper()
	for f, e := range Pcap(r) {
		if err != nil {
			t.Fatalf("the sequence goes on behind an error: %v, %v", f, e)
		}
		if (f == nil) == (e == nil) {
			t.Fatalf("frame %v and error %v", f, e)
		}
		if err = e; e == nil {
			frames = append(frames, f)
		}
	}
	return frames, err
}

// linkHeader is what stands in front of a packet of an ethertype.
func linkHeader(link linkType, etherType uint16, order binary.AppendByteOrder) []byte {
	family := uint32(2)
	if etherType == typeIPv6 {
		family = 30
	}
	switch link {
	case linkEthernet:
		return binary.BigEndian.AppendUint16(bytes.Clone(addresses[:]), etherType)
	case linkNull:
		return order.AppendUint32(nil, family)
	case linkLoop:
		return binary.BigEndian.AppendUint32(nil, family)
	case linkCooked:
		return binary.BigEndian.AppendUint16([]byte{0, 0, 0, 1, 0, 6, 2, 0, 0, 0, 0, 2, 0, 0}, etherType)
	case linkCookedTwo:
		return append(binary.BigEndian.AppendUint16(nil, etherType), 0, 0, 0, 0, 0, 2, 0, 1, 0, 6, 2, 0, 0, 0, 0, 2, 0, 0)
	}
	return nil
}

var byteOrders = []binary.AppendByteOrder{binary.LittleEndian, binary.BigEndian}

// Both formats, in both byte orders, of each link type, read by this package and by tcpdump.
func TestPcap(t *testing.T) {
	packets := []*Frame{
		mustWords(t, "tcp 10.0.0.1:40000 192.0.2.1:6379"), mustWords(t, "udp [2001:db8::1]:40000 [2001:db8::2]:53"), mustWords(t, "icmp 10.0.0.1 192.0.2.1 8"),
	}
	for _, link := range []linkType{
		linkEthernet, linkNull, linkLoop, linkRaw, linkRawBSD, linkRawOther, linkCooked, linkCookedTwo, linkIPv4, linkIPv6,
	} {
		for _, order := range byteOrders {
			ng := newPcapng(order)
			ng.iface(link, 0)
			for name, f := range map[string]*pcapFile{
				"microseconds": newPcap(link, order, 0xa1b2c3d4, 1e6), "nanoseconds": newPcap(link, order, 0xa1b23c4d, 1e9), "pcapng": ng,
			} {
				t.Run(fmt.Sprintf("link type %d, %s, %s", link, order, name), func(t *testing.T) {
					var want []*Frame
					for _, p := range packets {
						etherType, data := p.IP()
						if link == linkIPv4 && etherType != typeIPv4 || link == linkIPv6 && etherType != typeIPv6 {
							continue
						}
						data = append(linkHeader(link, etherType, order), data...)
						for _, cut := range []int{0, 5} {
							f.packet(data[:len(data)-cut], len(data))
							want = append(want, &Frame{Ethernet: p.Ethernet[:len(p.Ethernet)-cut], Length: p.Length, Time: when})
						}
					}
					got, err := collect(t, bytes.NewReader(f.b))
					if diff := cmp.Diff(want, got); err != nil || diff != "" {
						t.Fatalf("%v, -want +got\n%s", err, diff)
					}
					oneByte, err := collect(t, iotest.OneByteReader(bytes.NewReader(f.b)))
					if diff := cmp.Diff(want, oneByte); err != nil || diff != "" {
						t.Errorf("byte by byte: %v, -want +got\n%s", err, diff)
					}
					if link != linkRawOther { // which means nothing to tcpdump on Linux
						compareWithTcpdump(t, f.b, len(linkHeader(link, 0, order)), got)
					}
				})
			}
		}
	}
}

// compareWithTcpdump reads a file with tcpdump, which prints the time and the bytes of each packet, the first of which
// are the link header.
func compareWithTcpdump(t *testing.T, file []byte, header int, frames []*Frame) {
	t.Helper()
	requireTcpdump(t)
	cmd := exec.Command("tcpdump", "-r", "-", "-nn", "-tt", "--time-stamp-precision=nano", "-xx")
	cmd.Stdin = bytes.NewReader(file)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("tcpdump: %v", err)
	}
	var want, got []string
	for _, f := range frames {
		_, data := f.IP()
		want = append(want, fmt.Sprintf("%d.%09d % x", f.Time.Unix(), f.Time.Nanosecond(), data))
	}
	// A packet is a line in words, which begins with the time, and then the dump.
	var dump string
	for _, line := range slices.Backward(slices.Collect(strings.Lines(string(out)))) {
		if line[0] == '\t' {
			dump = line + dump
			continue
		}
		data, err := hexBytes(dump)
		if err != nil {
			t.Fatalf("%v in\n%s", err, dump)
		}
		time, _, _ := strings.Cut(line, " ")
		got, dump = append(got, fmt.Sprintf("%s % x", time, data[header:])), ""
	}
	slices.Reverse(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-this package +tcpdump\n%s", diff)
	}
}

// What only pcapng has: sections, interfaces, clocks, blocks to skip, and three kinds of packets.
func TestPcapng(t *testing.T) {
	tcp, udp := mustWords(t, "tcp 10.0.0.1:1 10.0.0.2:2"), mustWords(t, "udp [2001:db8::1]:1 [2001:db8::2]:2")
	_, udpIP := udp.IP()
	at := func(f *Frame, when time.Time) *Frame { return &Frame{f.Ethernet, f.Length, when} }
	for i, order := range byteOrders {
		f := newPcapng(order)
		resolution := func(n byte) func() { return func() { f.option(9, []byte{n}) } }
		offset := func(seconds int64) func() {
			return func() { f.option(14, order.AppendUint64(nil, uint64(seconds))) }
		}
		f.block(5, func() { f.u32(0, 0, 0) }) // statistics
		f.iface(linkEthernet, 0)
		f.iface(linkRaw, 0, resolution(9), func() { f.option(0, nil) })
		f.iface(195, 0)
		f.iface(linkRaw, 0, resolution(0x80|10), offset(-3600))
		f.iface(linkEthernet, 60, resolution(0), offset(7200), func() { f.option(11, make([]byte, 301)) })
		f.iface(linkEthernet, 0, resolution(19))
		f.iface(linkEthernet, 0, resolution(0x80|63))
		f.enhanced(0, uint64(when.UnixMicro()), tcp.Ethernet, tcp.Length)
		f.block(0x80000bad, func() { f.padded(make([]byte, 100_000)) }) // somebody's own
		f.enhanced(1, uint64(when.UnixNano()), udpIP, len(udpIP))
		f.enhanced(3, uint64(when.Unix())<<10|512, udpIP, len(udpIP))
		f.enhanced(4, uint64(when.Unix()), tcp.Ethernet, tcp.Length)
		f.enhanced(5, 12345678901234567890, tcp.Ethernet, tcp.Length)
		f.enhanced(6, 1<<63|1<<62, tcp.Ethernet, tcp.Length)
		f.block(blockSimple, func() { f.u32(uint32(tcp.Length)); f.padded(tcp.Ethernet) })
		f.block(blockPacketOld, func() {
			ticks := uint64(when.UnixNano())
			f.u16(1, 99)
			f.u32(uint32(ticks>>32), uint32(ticks), uint32(len(udpIP)), uint32(len(udpIP)))
			f.padded(udpIP)
		})
		// Another section begins with nothing, and may be of the other byte order.
		other := newPcapng(byteOrders[1-i])
		other.iface(linkEthernet, 40)
		other.block(blockSimple, func() { other.u32(1514); other.padded(tcp.Ethernet[:40]) })
		other.block(4, func() { other.u16(0, 0) }) // names

		want := []*Frame{
			at(tcp, when), at(udp, when), at(udp, when.Truncate(time.Second).Add(-time.Hour+time.Second/2)), at(tcp, when.Truncate(time.Second).Add(2*time.Hour)),
			at(tcp, time.Unix(1, 234567890).UTC()), at(tcp, time.Unix(1, 500000000).UTC()), at(tcp, time.Time{}), at(udp, when),
			{Ethernet: tcp.Ethernet[:40], Length: 1514},
		}
		got, err := collect(t, bytes.NewReader(append(f.b, other.b...)))
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%s: %v, -want +got\n%s", order, err, diff)
		}
	}
}

// Every way that a file can be wrong: the error says which packet, and what came before is there.
func TestPcapErrors(t *testing.T) {
	frame := mustWords(t, "tcp 10.0.0.1:1 10.0.0.2:2").Ethernet
	classic := func(change func(f *pcapFile)) []byte {
		f := newPcap(linkEthernet, binary.LittleEndian, 0xa1b2c3d4, 1e6)
		f.packet(frame, len(frame))
		change(f)
		return f.b
	}
	ng := func(change func(f *pcapFile)) []byte {
		f := newPcapng(binary.LittleEndian)
		f.iface(linkEthernet, 0)
		f.packet(frame, len(frame))
		change(f)
		return f.b
	}
	header := newPcap(linkEthernet, binary.LittleEndian, 0xa1b2c3d4, 1e6).b
	version := bytes.Clone(header)
	version[4] = 3
	interfaces := func(f *pcapFile) {
		for range maxInterfaces {
			f.iface(linkEthernet, 0)
		}
	}
	const cut = "the file ends inside of it; it was cut, or is still being written"
	for _, c := range []struct {
		name    string
		file    []byte
		frames  int
		problem string
	}{
		{"empty", nil, 0, "the file is empty, want a capture as `tcpdump -w` writes it"},
		{"3 bytes", header[:3], 0, "the file ends inside of its header, want a capture as `tcpdump -w` writes it"},
		{"no whole header", header[:23], 0, "the file ends inside of its header, want a capture as `tcpdump -w` writes it"},
		{"garbage", []byte("GET / HTTP/1.1\r\n"), 0, "not a capture file: it begins with 47 45 54 20, want pcap or pcapng as `tcpdump -w` writes it"},
		{"another format", []byte{0xa1, 0xb2, 0xcd, 0x34}, 0, "not a capture file: it begins with a1 b2 cd 34, want pcap or pcapng as `tcpdump -w` writes it"},
		{"version", version, 0, "pcap version 3.4, want 2.4"},
		{"link type", newPcap(105, binary.LittleEndian, 0xa1b2c3d4, 1e6).b, 0,
			"link type 105 (IEEE 802.11) is not read here, want a capture with Ethernet, raw IP, loopback or Linux cooked headers"},
		{"unknown link type", newPcap(999, binary.BigEndian, 0xa1b2c3d4, 1e6).b, 0,
			"link type 999 is not read here, want a capture with Ethernet, raw IP, loopback or Linux cooked headers"},

		{"no packets", header, 0, ""},
		{"header cut", classic(func(f *pcapFile) { f.u32(0, 0, 20) }), 1, "packet 2: " + cut},
		{"packet cut", classic(func(f *pcapFile) { f.packet(frame, len(frame)); f.b = f.b[:len(f.b)-1] }), 1, "packet 2: " + cut},
		{"nothing of a packet", classic(func(f *pcapFile) { f.u32(0, 0, 20, 20) }), 1, "packet 2: " + cut},
		{"huge packet", classic(func(f *pcapFile) { f.u32(0, 0, 0xffffffff, 0xffffffff) }), 1,
			"packet 2: claims that 4294967295 bytes of it were captured, want at most 262144"},
		{"huge length", classic(func(f *pcapFile) { f.u32(0, 0, 0, 0xffffffff) }), 2, ""},
		{"an empty packet", classic(func(f *pcapFile) { f.packet(nil, 0) }), 2, ""},
		{"link header cut", func() []byte {
			f := newPcap(linkCooked, binary.BigEndian, 0xa1b2c3d4, 1e6)
			f.packet(make([]byte, 15), 15)
			return f.b
		}(), 0, "packet 1: 15 bytes captured, less than the header of link type 113, which has 16"},

		{"no packets in pcapng", newPcapng(binary.BigEndian).b, 0, ""},
		{"section cut", newPcapng(binary.BigEndian).b[:11], 0, "packet 1: " + cut},
		{"section cut further on", newPcapng(binary.BigEndian).b[:27], 0, "packet 1: " + cut},
		{"byte order", slices.Concat(newPcapng(binary.BigEndian).b[:8], []byte{1, 2, 3, 4}), 0, "packet 1: a section has byte order 01 02 03 04, want 1a 2b 3c 4d or its reverse"},
		{"pcapng version", func() []byte {
			f := newPcapng(binary.LittleEndian)
			f.b[12] = 2
			return f.b
		}(), 0, "packet 1: pcapng version 2.0, want 1.x"},
		{"block header cut", ng(func(f *pcapFile) { f.u32(6) }), 1, "packet 2: " + cut},
		{"block cut", ng(func(f *pcapFile) { f.u32(6, 100) }), 1, "packet 2: " + cut},
		{"skipped block cut", ng(func(f *pcapFile) { f.u32(5, 0xfffffffc, 0) }), 1, "packet 2: " + cut},
		{"block without its end", ng(func(f *pcapFile) { f.u32(5, 12) }), 1, "packet 2: " + cut},
		{"short block", ng(func(f *pcapFile) { f.u32(5, 8, 8) }), 1, "packet 2: a block says it has 8 bytes, want a multiple of 4 and at least 12"},
		{"short section", ng(func(f *pcapFile) { f.u32(blockSection, 12, byteOrderMagic, 12) }), 1, "packet 2: a block says it has 12 bytes, want a multiple of 4 and at least 16"},
		{"odd block", ng(func(f *pcapFile) { f.u32(5, 17, 0, 0) }), 1, "packet 2: a block says it has 17 bytes, want a multiple of 4 and at least 12"},
		{"lengths differ", ng(func(f *pcapFile) { f.u32(5, 16, 0, 20) }), 1, "packet 2: a block has length 16 in front and 20 behind, want them equal"},
		{"empty section", ng(func(f *pcapFile) { f.block(blockSection, func() { f.u32(byteOrderMagic) }) }), 1, "packet 2: a block is shorter than what it must have"},
		{"empty packet block", ng(func(f *pcapFile) { f.block(blockPacket, func() { f.u32(0) }) }), 1, "packet 2: a block is shorter than what it must have"},
		{"empty old packet block", ng(func(f *pcapFile) { f.block(blockPacketOld, func() { f.u32(0, 0, 0, 0) }) }), 1, "packet 2: a block is shorter than what it must have"},
		{"empty simple block", ng(func(f *pcapFile) { f.block(blockSimple, func() {}) }), 1, "packet 2: a block is shorter than what it must have"},
		{"empty interface", ng(func(f *pcapFile) { f.block(blockInterface, func() { f.u32(1) }) }), 1, "packet 2: a block is shorter than what it must have"},
		{"option beyond its block", ng(func(f *pcapFile) { f.block(blockInterface, func() { f.u32(1, 0); f.u16(14, 8) }) }), 1, "packet 2: a block is shorter than what it must have"},
		{"long option beyond its block", ng(func(f *pcapFile) { f.block(blockInterface, func() { f.u32(1, 0); f.u16(2, 0xffff); f.u32(0, 0) }) }), 1, ""},
		{"clock", ng(func(f *pcapFile) { f.iface(linkEthernet, 0, func() { f.option(9, []byte{20}) }) }), 1,
			"packet 2: an interface's clock has resolution 0x14, want units of 64 bits in a second"},
		{"binary clock", ng(func(f *pcapFile) { f.iface(linkEthernet, 0, func() { f.option(9, []byte{0xc0}) }) }), 1,
			"packet 2: an interface's clock has resolution 0xc0, want units of 64 bits in a second"},
		{"packet larger than its block", ng(func(f *pcapFile) { f.block(blockPacket, func() { f.u32(0, 0, 0, 8, 8, 0) }) }), 1,
			"packet 2: claims that 8 bytes of it were captured, but its block has 4"},
		{"huge packet in a huge block", ng(func(f *pcapFile) { f.u32(6, 0xfffffffc, 0, 0, 0, 0xffffff00, 0xffffff00) }), 1,
			"packet 2: claims that 4294967040 bytes of it were captured, want at most 262144"},
		{"huge simple packet", ng(func(f *pcapFile) { f.u32(3, 0xfffffffc, 0xffffff00) }), 1,
			"packet 2: claims that 4294967040 bytes of it were captured, want at most 262144"},
		{"interface that is not there", ng(func(f *pcapFile) { f.enhanced(1, 0, frame, len(frame)) }), 1,
			"packet 2: is of interface 1, but the section has 1 so far"},
		{"interface of the section before", ng(func(f *pcapFile) { f.section(); f.enhanced(0, 0, frame, len(frame)) }), 1,
			"packet 2: is of interface 0, but the section has 0 so far"},
		{"simple packet without an interface", ng(func(f *pcapFile) { f.section(); f.block(blockSimple, func() { f.u32(0) }) }), 1,
			"packet 2: is of interface 0, but the section has 0 so far"},
		{"too many interfaces", ng(interfaces), 1, "packet 2: more than 65536 interfaces in a section, want no more"},
		{"packet of a refused link type", ng(func(f *pcapFile) { f.iface(127, 0); f.enhanced(1, 0, frame, len(frame)) }), 1,
			"packet 2: link type 127 (radiotap and IEEE 802.11) is not read here, want a capture with Ethernet, raw IP, loopback or Linux cooked headers"},
	} {
		t.Run(c.name, func(t *testing.T) {
			frames, err := collect(t, bytes.NewReader(c.file))
			if got := fmt.Sprint(err); len(frames) != c.frames || got != c.problem && (err != nil || c.problem != "") {
				t.Errorf("%d frames, error\n%v, want %d and\n%s", len(frames), err, c.frames, c.problem)
			}
			for _, f := range frames[:min(len(frames), 1)] {
				if !bytes.Equal(f.Ethernet, frame) {
					t.Errorf("the first frame is % x", f.Ethernet)
				}
			}
		})
	}

	broken := errors.New("broken disk")
	for _, file := range [][]byte{
		nil, header, classic(func(f *pcapFile) { f.u32(0, 0, 20, 20) }), ng(func(f *pcapFile) { f.u32(5, 100) }),
		ng(func(f *pcapFile) { f.u32(blockInterface, 1000, 1, 0); f.u16(2, 500); f.u32(0, 0, 0) }),
	} {
		if _, err := collect(t, io.MultiReader(bytes.NewReader(file), iotest.ErrReader(broken))); !errors.Is(err, broken) {
			t.Errorf("error %v, want that of the reader", err)
		}
	}
}

// A file of a few bytes cannot make the reader take much memory, and neither can an endless one.
func TestPcapMemory(t *testing.T) {
	claims := newPcap(linkEthernet, binary.LittleEndian, 0xa1b2c3d4, 1e6)
	claims.u32(0, 0, maxCaptured, maxCaptured)
	block := newPcapng(binary.LittleEndian)
	block.u32(0x80000bad, 0xfffffffc)
	for name, r := range map[string]io.Reader{
		"packet": bytes.NewReader(claims.b), "block": bytes.NewReader(block.b),
		"huge block": io.MultiReader(bytes.NewReader(block.b), io.LimitReader(zeros{}, 1<<30)),
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if _, err := collect(t, r); err == nil {
			t.Errorf("%s: no error", name)
		}
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
			t.Errorf("%s: took %d bytes", name, n)
		}
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

// A reader that stops early leaves the rest alone.
func TestPcapStops(t *testing.T) {
	f := newPcap(linkEthernet, binary.LittleEndian, 0xa1b2c3d4, 1e6)
	for range 3 {
		f.packet(make([]byte, 60), 60)
	}
	n := 0
	for range Pcap(bytes.NewReader(f.b)) {
		if n++; n == 2 {
			break
		}
	}
	if n != 2 {
		t.Errorf("%d frames", n)
	}
}

// What tcpdump itself captures of real traffic.
func TestPcapOfTcpdump(t *testing.T) {
	requireTcpdump(t)
	l := lab.New(t, lab.Config{})
	u := l.Uplinks[0]
	if _, err := lab.ServeUDP(l.Node, 5353); err != nil {
		t.Fatal(err)
	}
	target := netip.AddrPortFrom(u.Node4, 5353)
	for _, c := range []struct {
		options string
		header  int
	}{
		{"-i " + u.Name, 14}, {"-i any", 20}, {"-i any -y LINUX_SLL", 16},
		{"-i " + u.Name + " --time-stamp-precision=nano", 14}, {"-i " + u.Name + " -s 50", 14},
	} {
		t.Run(c.options, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "pcap")
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			args := "-w " + file + " -c 2 --immediate-mode -Z root " + c.options + " udp port 5353"
			tcpdump := lab.CommandContext(ctx, l.Node, "tcpdump", strings.Fields(args)...)
			stderr, err := tcpdump.StderrPipe()
			if err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			if err := tcpdump.Start(); err != nil {
				t.Fatal(err)
			}
			said := make([]byte, 1)
			for text := ""; !strings.Contains(text, "listening on"); text += string(said) {
				if _, err := stderr.Read(said); err != nil {
					t.Fatalf("tcpdump: %s", text)
				}
			}
			if _, err := lab.LoadUDP(l.Client, lab.Load{Target: target, Sources: u.Client4[:1], Count: 1}); err != nil {
				t.Fatal(err)
			}
			io.Copy(io.Discard, stderr)
			if err := tcpdump.Wait(); err != nil {
				t.Fatal(err)
			}
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			frames, err := collect(t, bytes.NewReader(b))
			if err != nil || len(frames) != 2 {
				t.Fatalf("%d frames: %v", len(frames), err)
			}
			for i, f := range frames {
				arrow := fmt.Sprintf(" > %s, ", target)
				if i == 1 {
					arrow = fmt.Sprintf("udp %s > ", target)
				}
				if !strings.Contains(f.String(), arrow) || f.Time.Before(start.Truncate(time.Microsecond)) || f.Time.After(time.Now()) {
					t.Errorf("packet %d is %s at %v, want %q", i+1, f, f.Time, arrow)
				}
				if cut := strings.Contains(c.options, "-s 50"); f.Cut() != cut || cut && len(f.Ethernet) != 50 {
					t.Errorf("packet %d has %d of %d bytes", i+1, len(f.Ethernet), f.Length)
				}
			}
			compareWithTcpdump(t, b, c.header, frames)
		})
	}
}

// Whatever the file, the sequence ends, and no frame has more than the file gave.
func FuzzPcap(f *testing.F) {
	frame := mustWords(f, "tcp 10.0.0.1:1 10.0.0.2:2").Ethernet
	for _, order := range byteOrders {
		for _, link := range []linkType{linkEthernet, linkNull, linkCooked, linkCookedTwo, linkRaw, 105} {
			p := newPcap(link, order, 0xa1b23c4d, 1e9)
			ng := newPcapng(order)
			ng.iface(link, 40, func() { ng.option(9, []byte{0x8a}) })
			for _, file := range []*pcapFile{p, ng} {
				file.packet(frame, 1514)
				file.packet(frame[ethernetHeader:], 40)
			}
			ng.block(blockSimple, func() { ng.u32(54); ng.padded(frame) })
			ng.section()
			f.Add(p.b)
			f.Add(ng.b)
		}
	}
	f.Fuzz(func(t *testing.T, file []byte) {
		frames, _ := collect(t, bytes.NewReader(file))
		total := 0
		for _, f := range frames {
			if len(f.Ethernet) > f.Length || len(f.Ethernet) > ethernetHeader+maxCaptured {
				t.Fatalf("%d bytes of %d", len(f.Ethernet), f.Length)
			}
			total += max(0, len(f.Ethernet)-ethernetHeader)
			_ = f.String()
		}
		if total > len(file) {
			t.Fatalf("%d bytes in frames out of %d", total, len(file))
		}
	})
}
