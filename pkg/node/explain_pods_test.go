// SPDX-License-Identifier: Apache-2.0

package node

import (
	"net/netip"
	"testing"

	"github.com/untracked-cni/untracked/pkg/netset"
	"github.com/untracked-cni/untracked/pkg/policy"
)

func TestPodPorts(t *testing.T) {
	a, b, other := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::9")
	ports := &podPorts{
		names:   map[podPort]string{{a, policy.TCP, 6379}: "ns/a", {b, policy.UDP, 53}: "ns/b"},
		sources: map[netip.Addr]*netset.Set{a: nil, b: netset.Of(netip.MustParsePrefix("fd00::8/125"))},
	}
	client := netip.MustParseAddr("192.0.2.1")
	packet := func(protocol uint8, src netip.Addr, sport uint16, dst netip.Addr, dport uint16) *policy.Packet {
		return &policy.Packet{Src: src, Dst: dst, Protocol: protocol, HasL4: true, SrcPort: sport, DstPort: dport}
	}
	fragment := packet(policy.TCP, client, 40000, a, 6379)
	fragment.HasL4 = false
	for _, test := range []struct {
		packet *policy.Packet
		want   string
	}{
		{packet(policy.TCP, client, 40000, a, 6379), "ns/a"},
		{packet(policy.TCP, a, 6379, client, 40000), "ns/a"},
		{packet(policy.TCP, a, 40000, client, 6379), ""},
		{packet(policy.UDP, client, 40000, a, 6379), ""},
		{packet(policy.UDP, other, 40000, b, 53), "ns/b"},
		{packet(policy.UDP, b, 53, other, 40000), "ns/b"},
		{packet(policy.UDP, netip.MustParseAddr("fd00::10"), 40000, b, 53), ""},
		{fragment, ""},
		{&policy.Packet{Src: a, Dst: client, Protocol: policy.ICMP, HasL4: true, Quoted: packet(policy.TCP, client, 40000, a, 6379)}, "ns/a"},
	} {
		if got := ports.of(test.packet); got != test.want {
			t.Errorf("%+v: %q, want %q", test.packet, got, test.want)
		}
	}
}
