// SPDX-License-Identifier: Apache-2.0

package frame

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/untracked-cni/untracked/pkg/packet"
	"github.com/untracked-cni/untracked/pkg/packet/packettest"
	"github.com/untracked-cni/untracked/pkg/policy"
)

func TestString(t *testing.T) {
	fixtures := map[string][]byte{}
	for _, f := range packettest.Fixtures() {
		fixtures[f.Name] = f.Frame
	}
	for _, c := range []struct{ fixture, want string }{
		{"tcp", "tcp 192.0.2.10:40000 > 198.51.100.1:6379, 54 bytes"},
		{"802.1q", "vlan 100 tcp 192.0.2.10:40000 > 198.51.100.1:6379, 58 bytes"},
		{"qinq ipv6", "vlan 100 vlan 101 tcp [2001:db8::10]:40000 > [2001:db8:1::1]:6379, 82 bytes"},
		{"three tags", "vlan 100 vlan 101 not IP (ethertype 0x8100), 66 bytes"},
		{"tag cut short", "not IP (no ethertype), 14 bytes"},
		{"arp", "not IP (ethertype 0x0806), 42 bytes"},
		{"length instead of a type (802.3)", "not IP (no ethertype), 60 bytes"},
		{"ipv6 under ipv4's type", "malformed IPv4 header, 74 bytes"},
		{"ipv4 under ipv6's type", "malformed IPv6 header, 74 bytes"},
		{"frame cuts tcp short", "tcp 2001:db8::10 > 2001:db8:1::1 without its header, 73 bytes"},
	} {
		frame, ok := fixtures[c.fixture]
		if !ok {
			t.Errorf("no fixture is named %q", c.fixture)
			continue
		}
		f := &Frame{Ethernet: frame, Length: len(frame)}
		if got := f.String(); got != c.want {
			t.Errorf("%s: %q, want %q", c.fixture, got, c.want)
		}
	}
	inner := mustWords(t, "udp 192.0.2.1:53 10.0.0.1:40000")
	_, quoted := inner.IP()
	icmp := mustWords(t, "icmp 198.51.100.1 192.0.2.1 3 4")
	icmp.Ethernet = append(icmp.Ethernet, quoted...)
	binary.BigEndian.PutUint16(icmp.Ethernet[16:], uint16(len(icmp.Ethernet)-ethernetHeader))
	later := mustWords(t, "udp 10.0.0.1:1 10.0.0.2:2")
	later.Ethernet[14+7] = 185
	for _, c := range []struct {
		frame *Frame
		want  string
	}{
		{icmp, "icmp 198.51.100.1 > 192.0.2.1 type 3 code 4 about udp 192.0.2.1:53 > 10.0.0.1:40000, 42 bytes"},
		{later, "udp 10.0.0.1 > 10.0.0.2 later fragment, 42 bytes"},
		{&Frame{Ethernet: inner.Ethernet[:40], Length: 1514}, "udp 192.0.2.1 > 10.0.0.1 without its header, 1514 bytes cut to 40"},
		{&Frame{}, "not IP (no ethertype), 0 bytes"},
		{&Frame{Ethernet: make([]byte, 13), Length: 13}, "not IP (no ethertype), 13 bytes"},
	} {
		if got := c.frame.String(); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}

// What IP says is what the parser of package packet sees.
func TestIP(t *testing.T) {
	rules := packettest.Rules()
	for _, fixture := range packettest.Fixtures() {
		f := &Frame{Ethernet: fixture.Frame, Length: len(fixture.Frame)}
		etherType, data := f.IP()
		if got := packet.DecideIP(rules, etherType, data); got != fixture.Want {
			t.Errorf("%s: ethertype %#04x, %d bytes: %+v, want %+v", fixture.Name, etherType, len(data), got, fixture.Want)
		}
		for n := range len(fixture.Frame) {
			short := &Frame{Ethernet: fixture.Frame[:n:n], Length: len(fixture.Frame)}
			etherType, data := short.IP()
			if got, want := packet.DecideIP(rules, etherType, data), packet.Decide(rules, short.Ethernet); got != want {
				t.Errorf("%s, %d bytes: %+v, want %+v", fixture.Name, n, got, want)
			}
			if !short.Cut() {
				t.Errorf("%s, %d bytes: not cut", fixture.Name, n)
			}
			_ = short.String()
		}
	}
}

func TestWithHeader(t *testing.T) {
	f := withHeader(typeIPv4, []byte("packet"), 100)
	want := append([]byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0}, "packet"...)
	if !bytes.Equal(f.Ethernet, want) || f.Length != 114 || !f.Cut() {
		t.Errorf("got % x of %d bytes", f.Ethernet, f.Length)
	}
	if _, reason := packet.Parse(f.Ethernet); reason != policy.ByMalformed {
		t.Errorf("parsed as %q", reason)
	}
}

func mustWords(t testing.TB, words ...string) *Frame {
	t.Helper()
	f, err := Words(words)
	if err != nil {
		t.Fatal(err)
	}
	return f
}
