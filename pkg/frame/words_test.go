// SPDX-License-Identifier: Apache-2.0

package frame

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/untracked-cni/untracked/pkg/packet"
	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/test/lab"
)

func TestWords(t *testing.T) {
	a4, b4 := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("192.0.2.1")
	a6, b6 := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")
	ports := func(protocol uint8, src, dst netip.Addr) *policy.Packet {
		return &policy.Packet{Src: src, Dst: dst, Protocol: protocol, HopLimit: 64, HasL4: true, SrcPort: 40000, DstPort: 53}
	}
	icmp := func(protocol uint8, src, dst netip.Addr, limit, typ, code uint8) *policy.Packet {
		return &policy.Packet{Src: src, Dst: dst, Protocol: protocol, HopLimit: limit, HasL4: true, ICMPType: typ, ICMPCode: code}
	}
	for _, c := range []struct {
		words, line string
		want        *policy.Packet
	}{
		{"tcp 10.0.0.1:40000 192.0.2.1:53", "tcp 10.0.0.1:40000 > 192.0.2.1:53, 54 bytes", ports(policy.TCP, a4, b4)},
		{"udp 10.0.0.1:40000 192.0.2.1:53", "udp 10.0.0.1:40000 > 192.0.2.1:53, 42 bytes", ports(policy.UDP, a4, b4)},
		{"udplite 10.0.0.1:40000 192.0.2.1:53", "udplite 10.0.0.1:40000 > 192.0.2.1:53, 42 bytes", ports(policy.UDPLite, a4, b4)},
		{"sctp 10.0.0.1:40000 192.0.2.1:53", "sctp 10.0.0.1:40000 > 192.0.2.1:53, 66 bytes", ports(policy.SCTP, a4, b4)},
		{"tcp [2001:db8::1]:40000 [2001:db8::2]:53", "tcp [2001:db8::1]:40000 > [2001:db8::2]:53, 74 bytes", ports(policy.TCP, a6, b6)},
		{"udp [2001:db8::1]:40000 [2001:db8::2]:53", "udp [2001:db8::1]:40000 > [2001:db8::2]:53, 62 bytes", ports(policy.UDP, a6, b6)},
		{"udplite [2001:db8::1]:40000 [2001:db8::2]:53", "udplite [2001:db8::1]:40000 > [2001:db8::2]:53, 62 bytes", ports(policy.UDPLite, a6, b6)},
		{"sctp [2001:db8::1]:40000 [2001:db8::2]:53", "sctp [2001:db8::1]:40000 > [2001:db8::2]:53, 86 bytes", ports(policy.SCTP, a6, b6)},
		{"icmp 10.0.0.1 192.0.2.1 3 4", "icmp 10.0.0.1 > 192.0.2.1 type 3 code 4, 42 bytes", icmp(policy.ICMP, a4, b4, 64, 3, 4)},
		{"icmp 10.0.0.1 192.0.2.1 8", "icmp 10.0.0.1 > 192.0.2.1 type 8 code 0, 42 bytes", icmp(policy.ICMP, a4, b4, 64, 8, 0)},
		{"icmp 2001:db8::1 [2001:db8::2] 128 255", "icmpv6 2001:db8::1 > 2001:db8::2 type 128 code 255, 62 bytes", icmp(policy.ICMPv6, a6, b6, 64, 128, 255)},
		{"icmp6 2001:db8::1 2001:db8::2 132", "icmpv6 2001:db8::1 > 2001:db8::2 type 132 code 0, 62 bytes", icmp(policy.ICMPv6, a6, b6, 64, 132, 0)},
		{"icmpv6 2001:db8::1 2001:db8::2 133", "icmpv6 2001:db8::1 > 2001:db8::2 type 133 code 0, 62 bytes", icmp(policy.ICMPv6, a6, b6, 255, 133, 0)},
		{"icmp 2001:db8::1 2001:db8::2 137", "icmpv6 2001:db8::1 > 2001:db8::2 type 137 code 0, 62 bytes", icmp(policy.ICMPv6, a6, b6, 255, 137, 0)},
		{"icmp 2001:db8::1 2001:db8::2 138", "icmpv6 2001:db8::1 > 2001:db8::2 type 138 code 0, 62 bytes", icmp(policy.ICMPv6, a6, b6, 64, 138, 0)},
		{"proto 47 10.0.0.1 192.0.2.1", "protocol 47 10.0.0.1 > 192.0.2.1, 34 bytes", &policy.Packet{Src: a4, Dst: b4, Protocol: 47, HopLimit: 64}},
		{"proto 50 2001:db8::1 2001:db8::2", "protocol 50 2001:db8::1 > 2001:db8::2, 54 bytes", &policy.Packet{Src: a6, Dst: b6, Protocol: 50, HopLimit: 64}},
		{"proto 58 10.0.0.1 192.0.2.1", "icmpv6 10.0.0.1 > 192.0.2.1, 34 bytes", &policy.Packet{Src: a4, Dst: b4, Protocol: 58, HopLimit: 64}},
		{"proto 0 10.0.0.1 192.0.2.1", "protocol 0 10.0.0.1 > 192.0.2.1, 34 bytes", &policy.Packet{Src: a4, Dst: b4, HopLimit: 64}},
	} {
		f, err := Words(strings.Fields(c.words))
		if err != nil {
			t.Errorf("%s: %v", c.words, err)
			continue
		}
		got, reason := packet.Parse(f.Ethernet)
		if diff := cmp.Diff(c.want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Errorf("%s: %s\n-want +got\n%s", c.words, reason, diff)
		}
		if f.String() != c.line {
			t.Errorf("%s: says %q, want %q", c.words, f, c.line)
		}
		if f.Length != len(f.Ethernet) || f.Cut() || !f.Time.IsZero() {
			t.Errorf("%s: length %d of %d bytes, time %v", c.words, f.Length, len(f.Ethernet), f.Time)
		}
		together, err := Words([]string{"  " + c.words + " "})
		if diff := cmp.Diff(f, together); err != nil || diff != "" {
			t.Errorf("%q as one word: %v\n%s", c.words, err, diff)
		}
	}
}

func TestWordsErrors(t *testing.T) {
	const tcp, icmp, proto = "; want tcp SRC:SPORT DST:DPORT, as in tcp 10.0.0.1:40000 192.0.2.1:6379",
		"; want icmp SRC DST TYPE [CODE], as in icmp 10.0.0.1 192.0.2.1 8 0", "; want proto N SRC DST, as in proto 47 10.0.0.1 192.0.2.1"
	for _, c := range []struct{ words, problem string }{
		{"", "no packet given, want one such as tcp 10.0.0.1:40000 192.0.2.1:6379"},
		{"TCP 10.0.0.1:1 10.0.0.2:2", `"TCP": want tcp, udp, udplite, sctp, icmp, icmpv6 or proto first, as in tcp 10.0.0.1:40000 192.0.2.1:6379`},
		{"tcp", `"tcp": ends before SRC:SPORT` + tcp},
		{"tcp 10.0.0.1:1", `"tcp 10.0.0.1:1": ends before DST:DPORT` + tcp},
		{"tcp 10.0.0.1:1 10.0.0.2:2 3", `"tcp 10.0.0.1:1 10.0.0.2:2 3": "3" is one word too many` + tcp},
		{"tcp 10.0.0.1 10.0.0.2:2", `"tcp 10.0.0.1 10.0.0.2:2": source "10.0.0.1" has no port` + tcp},
		{"tcp 10.0.0.1:1 10.0.0.2", `"tcp 10.0.0.1:1 10.0.0.2": source understood as 10.0.0.1:1, but destination "10.0.0.2" has no port` + tcp},
		{"tcp 10.0.0.1:65536 10.0.0.2:2", `"tcp 10.0.0.1:65536 10.0.0.2:2": source "10.0.0.1:65536" is no address with a port from 0 to 65535` + tcp},
		{"tcp localhost:1 10.0.0.2:2", `"tcp localhost:1 10.0.0.2:2": source "localhost:1" is no address with a port from 0 to 65535` + tcp},
		{"tcp 2001:db8::1:80 [::2]:2", `"tcp 2001:db8::1:80 [::2]:2": source "2001:db8::1:80" is an IPv6 address, which needs brackets and a port, as in [2001:db8::1]:53` + tcp},
		{"tcp [2001:db8::1] [::2]:2", `"tcp [2001:db8::1] [::2]:2": source "[2001:db8::1]" is an IPv6 address, which needs brackets and a port, as in [2001:db8::1]:53` + tcp},
		{"tcp 10.0.0.1:1 [::2]:2", `"tcp 10.0.0.1:1 [::2]:2": addresses understood as 10.0.0.1 and ::2, which are not of one family` + tcp},
		{"tcp [fe80::1%eth0]:1 [::2]:2", `"tcp [fe80::1%eth0]:1 [::2]:2": source "[fe80::1%eth0]:1" has a zone, which packets do not carry; leave it out` + tcp},
		{"tcp [::ffff:10.0.0.1]:1 10.0.0.2:2", `"tcp [::ffff:10.0.0.1]:1 10.0.0.2:2": source "[::ffff:10.0.0.1]:1" is an IPv4 address in IPv6's notation; say 10.0.0.1` + tcp},
		{"icmp 10.0.0.1 10.0.0.2", `"icmp 10.0.0.1 10.0.0.2": ends before TYPE` + icmp},
		{"icmp 10.0.0.1 10.0.0.2 3 4 5", `"icmp 10.0.0.1 10.0.0.2 3 4 5": "5" is one word too many` + icmp},
		{"icmp 10.0.0.1:1 10.0.0.2 3", `"icmp 10.0.0.1:1 10.0.0.2 3": source "10.0.0.1:1" has a port, which this protocol has not` + icmp},
		{"icmp 10.0.0.1 x 3", `"icmp 10.0.0.1 x 3": source understood as 10.0.0.1, but destination "x" is no address` + icmp},
		{"icmp 10.0.0.1 ::1 3", `"icmp 10.0.0.1 ::1 3": addresses understood as 10.0.0.1 and ::1, which are not of one family` + icmp},
		{"icmp 10.0.0.1 10.0.0.2 echo", `"icmp 10.0.0.1 10.0.0.2 echo": addresses understood as 10.0.0.1 and 10.0.0.2, but type "echo" is no number from 0 to 255` + icmp},
		{"icmp 10.0.0.1 10.0.0.2 3 256", `"icmp 10.0.0.1 10.0.0.2 3 256": addresses understood as 10.0.0.1 and 10.0.0.2, but code "256" is no number from 0 to 255` + icmp},
		{"icmp6 10.0.0.1 10.0.0.2 128", `"icmp6 10.0.0.1 10.0.0.2 128": addresses understood as 10.0.0.1 and 10.0.0.2, but ICMPv6 goes between IPv6 addresses` +
			"; want icmp6 SRC DST TYPE [CODE], as in icmp6 2001:db8::1 2001:db8::2 128 0"},
		{"proto gre 10.0.0.1 10.0.0.2", `"proto gre 10.0.0.1 10.0.0.2": protocol "gre" is no number from 0 to 255` + proto},
		{"proto 47 10.0.0.1", `"proto 47 10.0.0.1": ends before DST` + proto},
		{"proto 47 10.0.0.1 x", `"proto 47 10.0.0.1 x": protocol understood as 47, but source understood as 10.0.0.1, but destination "x" is no address` + proto},
		{"proto 6 10.0.0.1 10.0.0.2", `"proto 6 10.0.0.1 10.0.0.2": protocol 6 is tcp, whose packets have ports; say tcp 10.0.0.1:40000 192.0.2.1:6379` + proto},
		{"proto 1 10.0.0.1 10.0.0.2", `"proto 1 10.0.0.1 10.0.0.2": protocol 1 is icmp, whose packets have a type; say icmp 10.0.0.1 10.0.0.2 TYPE CODE` + proto},
		{"proto 58 ::1 ::2", `"proto 58 ::1 ::2": protocol 58 is icmpv6, whose packets have a type; say icmp ::1 ::2 TYPE CODE` + proto},
		{"proto 44 ::1 ::2", `"proto 44 ::1 ::2": 44 is an IPv6 extension header, behind which the protocol is` + proto},
	} {
		f, err := Words(strings.Fields(c.words))
		if err == nil || err.Error() != c.problem {
			t.Errorf("%s: %v\ngot  %v\nwant %s", c.words, f, err, c.problem)
		}
	}
}

// everyKind is a frame of each kind that has a checksum.
func everyKind(t *testing.T, src, dst netip.Addr) (frames []*Frame) {
	t.Helper()
	echo := "8"
	if src.Is6() {
		echo = "128"
	}
	words := [][]string{{"icmp", src.String(), dst.String(), echo}}
	for _, protocol := range []string{"tcp", "udp", "udplite", "sctp"} {
		words = append(words, []string{protocol, netip.AddrPortFrom(src, 40000).String(), netip.AddrPortFrom(dst, 9).String()})
	}
	for _, w := range words {
		f, err := Words(w)
		if err != nil {
			t.Fatal(err)
		}
		frames = append(frames, f)
	}
	return frames
}

// What a UDPLite socket of Linux 6.18 sends for the same addresses and ports, without data.
func TestUDPLiteChecksum(t *testing.T) {
	f := mustWords(t, "udplite 10.9.9.1:40000 10.9.9.2:9")
	if got, want := f.Ethernet[ethernetHeader+20:], []byte{0x9c, 0x40, 0, 9, 0, 8, 0x3d, 0x09}; !bytes.Equal(got, want) {
		t.Errorf("% x, want % x", got, want)
	}
}

// A checksum that comes out as zero is written as its other form, as zero stands for none.
func TestZeroChecksum(t *testing.T) {
	src, dst := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	ones := 0
	for port := range 1 << 16 {
		f := build(policy.UDP, src, dst, portsHeader(policy.UDP, uint16(port), 53))
		switch binary.BigEndian.Uint16(f.Ethernet[ethernetHeader+20+6:]) {
		case 0:
			t.Fatalf("from port %d there is none", port)
		case 0xffff:
			ones++
		}
	}
	if ones == 0 {
		t.Error("none came out as zero, so nothing is shown")
	}
}

// The kernel's connection tracking takes every checksum that Words makes, and none once a byte is changed.
func TestChecksumsInKernel(t *testing.T) {
	l := lab.New(t, lab.Config{})
	firewall, err := lab.AddStateful(l.Node, false)
	if err != nil {
		t.Fatal(err)
	}
	u := l.Uplinks[0]
	sender, err := lab.NewSender(l.Client, u.Name)
	if err != nil {
		t.Fatal(err)
	}
	defer sender.Close()
	// invalid sends a frame and says what became of it.
	invalid := func(t *testing.T, frame []byte) bool {
		t.Helper()
		before, err := firewall.States()
		if err != nil {
			t.Fatal(err)
		}
		if err := sender.Send(frame); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			after, err := firewall.States()
			switch {
			case err != nil:
				t.Fatal(err)
			case after.Invalid > before.Invalid:
				return true
			case after.New > before.New:
				return false
			}
		}
		t.Fatal("the frame did not arrive")
		return false
	}
	for _, f := range append(everyKind(t, u.Client4[0], u.Node4), everyKind(t, u.Client6[0], u.Node6)...) {
		p, _ := packet.Parse(f.Ethernet)
		if p.Protocol == policy.UDPLite {
			// Connection tracking takes it for UDP when it checks the sum, so that all of it is invalid to it.
			continue
		}
		t.Run(f.String(), func(t *testing.T) {
			copy(f.Ethernet, u.NodeMAC)
			if invalid(t, f.Ethernet) {
				t.Error("invalid")
			}
			l4 := ethernetHeader + 20
			if p.Src.Is6() {
				l4 = ethernetHeader + 40
			}
			f.Ethernet[l4+1]++
			if !invalid(t, f.Ethernet) {
				if p.Protocol == policy.SCTP { // CONFIG_NF_CT_PROTO_SCTP
					t.Skip("this kernel does not check it")
				}
				t.Error("not invalid with a wrong checksum, so nothing is shown")
			}
		})
	}
}

// tcpdump finds nothing to complain about.
func TestWordsInTcpdump(t *testing.T) {
	requireTcpdump(t)
	file := newPcap(linkEthernet, binary.LittleEndian, 0xa1b2c3d4, 1e6)
	frames := append(everyKind(t, netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("192.0.2.1")),
		everyKind(t, netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2"))...)
	for _, f := range frames {
		file.packet(f.Ethernet, len(f.Ethernet))
	}
	cmd := exec.Command("tcpdump", "-vv", "-nn", "-r", "-")
	cmd.Stdin = bytes.NewReader(file.b)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"bad", "wrong", "incorrect", "[|", "truncated", "missing"} {
		if strings.Contains(string(out), bad) {
			t.Errorf("tcpdump says %q:\n%s", bad, out)
		}
	}
	for _, good := range []string{"(correct)", "[udp sum ok]", "[INIT]", "echo request", "[icmp6 sum ok]", "Flags [S]"} {
		if !strings.Contains(string(out), good) {
			t.Errorf("tcpdump does not say %q:\n%s", good, out)
		}
	}
}
