// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestClosest(t *testing.T) {
	tcp, icmp := new(uint8(TCP)), new(uint8(ICMP))
	rules := []Rule{
		{Action: Failsafe, Protocol: tcp, Destination: Entity{Ports: []PortRange{{22, 22}}}},
		{Action: Allow, Protocol: tcp, Source: Entity{Nets: set("10.0.0.0/8")}, Destination: Entity{Ports: []PortRange{{6379, 6380}}}},
		{Action: Deny, IPVersion: 6, NotProtocol: tcp},
		{Action: Allow, Protocol: icmp, ICMP: &ICMPMatch{Type: 8}, Source: Entity{NotNets: set("192.0.2.0/24")}},
	}
	ping := packet(ICMP, "192.0.2.7", 0, "10.0.0.2", 0)
	ping.ICMPType = 8
	fragment := packet(TCP, "10.0.0.1", 0, "10.0.0.2", 0)
	fragment.HasL4, fragment.LaterFragment = false, true
	for _, c := range []struct {
		name string
		p    *Packet
		rule int
		want []string
	}{
		{"port", packet(TCP, "10.0.0.1", 1, "10.0.0.2", 6381), 1, []string{"destination port 6381 is not among ports 6379-6380"}},
		{"address", packet(TCP, "192.0.2.1", 1, "10.0.0.2", 6379), 1, []string{"source address 192.0.2.1 is not in 10.0.0.0/8"}},
		{"version", packet(UDP, "192.0.2.1", 1, "10.0.0.2", 1), 2, []string{"IP version is 4, not 6"}},
		{"excluded protocol", packet(TCP, "2001:db8::1", 1, "2001:db8::2", 1), 2, []string{"protocol is tcp"}},
		{"excluded address", ping, 3, []string{"source address 192.0.2.7 is in 192.0.2.0/24"}},
		{"fragment", fragment, 1, []string{"destination port is not known"}},
	} {
		rule, misses := Closest(rules, c.p)
		if rule != c.rule || !cmp.Equal(misses, c.want) {
			t.Errorf("%s: rule %d, %q, want %d, %q", c.name, rule, misses, c.rule, c.want)
		}
	}
	if rule, _ := Closest(rules[:1], ping); rule != NoRule {
		t.Errorf("a failsafe port came closest")
	}
}
