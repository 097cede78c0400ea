// SPDX-License-Identifier: Apache-2.0

package policy

import "testing"

// TestContent: rules have one identity exactly if they match and do the same.
func TestContent(t *testing.T) {
	number := func(n uint8) *uint8 { return &n }
	ports := func(p ...uint16) []PortRange {
		out := []PortRange{}
		for i := 0; i < len(p); i += 2 {
			out = append(out, PortRange{p[i], p[i+1]})
		}
		return out
	}
	named := func(name string) Entity { return Entity{Nets: set("10.0.0.0/8"), NetsName: name} }
	different := []Rule{
		{},
		{Action: Allow},
		{Action: Deny},
		{IPVersion: 4},
		{IPVersion: 6},
		{Protocol: number(0)},
		{Protocol: number(6)},
		{NotProtocol: number(0)},
		{NotProtocol: number(6)},
		{ICMP: &ICMPMatch{}},
		{ICMP: &ICMPMatch{Type: 8}},
		{ICMP: &ICMPMatch{Type: 8, Code: number(0)}},
		{ICMP: &ICMPMatch{Type: 8, Code: number(3)}},
		{NotICMP: &ICMPMatch{Type: 8}},
		{ICMP: &ICMPMatch{}, NotICMP: &ICMPMatch{}},
	}
	for _, e := range []Entity{
		{Nets: set()},
		{Nets: set("10.0.0.0/8")},
		{Nets: set("10.0.0.0/9")},
		named("a"),
		named("ab"),
		{NotNets: set("10.0.0.0/8")},
		{NotNets: set("10.0.0.0/8"), NotNetsName: "a"},
		{Nets: set("10.0.0.0/8"), NotNets: set("10.0.0.0/8")},
		{Ports: ports()},
		{Ports: ports(1, 1)},
		{Ports: ports(1, 2)},
		{Ports: ports(1, 1, 2, 2)},
		{Ports: ports(0, 0)},
		{NotPorts: ports()},
		{NotPorts: ports(1, 1)},
		{Ports: ports(1, 1), NotPorts: ports(1, 1)},
	} {
		different = append(different, Rule{Source: e}, Rule{Destination: e}, Rule{Source: e, Destination: e})
	}
	seen := map[uint64]Rule{}
	for _, r := range different {
		hash := r.contentHash()
		if other, taken := seen[hash]; taken {
			t.Errorf("%+v and %+v have one identity", other, r)
		}
		seen[hash] = r

		r.Tier, r.Policy, r.Index, r.Origin = "tier", "policy", 7, "file:7"
		if r.contentHash() != hash {
			t.Errorf("%+v: its name is part of its identity", r)
		}
	}

	list, refreshed := named("a"), named("a")
	refreshed.Nets = set("192.0.2.0/24")
	if a, b := (Rule{Source: list}), (Rule{Source: refreshed}); a.contentHash() != b.contentHash() {
		t.Error("what a named list holds is part of its rule's identity")
	}
	one, same := Rule{Protocol: number(6), ICMP: &ICMPMatch{Type: 8, Code: number(0)}}, Rule{Protocol: number(6), ICMP: &ICMPMatch{Type: 8, Code: number(0)}}
	if one.contentHash() != same.contentHash() {
		t.Error("rules that match the same have different identities")
	}
}
