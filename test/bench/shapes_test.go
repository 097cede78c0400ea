// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/untracked-cni/untracked/pkg/policy"
)

// TestShapes asks the specification about each shape's packets: a rule of the shape decides, never a failsafe port, and
// the last packet is the last rule's.
func TestShapes(t *testing.T) {
	for _, make := range []func() *shape{
		func() *shape { return rulesShape(1, 4, true, false) },
		func() *shape { return rulesShape(300, 4, true, false) },
		func() *shape { return rulesShape(300, 6, false, false) },
		func() *shape { return rulesShape(300, 4, true, true) },
		func() *shape { return denyShape("v4", randomNets(500, 4)) },
		func() *shape { return denyShape("v6", randomNets(500, 6)) },
		func() *shape { return denyShape("lone hosts, v4", loneHosts(500, 4)) },
		func() *shape { return denyShape("lone hosts, v6", loneHosts(500, 6)) },
		func() *shape {
			return deniesShape("two lists", [][]netip.Prefix{{netip.MustParsePrefix("11.0.0.0/9")}, {netip.MustParsePrefix("12.0.0.0/31")}})
		},
	} {
		s := make()
		decide := func(k key) int {
			return policy.Evaluate(s.rules, &policy.Packet{
				Src: k.src, Dst: netip.MustParseAddr("192.0.2.1"), Protocol: policy.TCP, HopLimit: 64,
				HasL4: true, SrcPort: k.sport, DstPort: k.dport,
			}).Rule
		}
		for _, k := range s.keys[:1000] {
			if rule := decide(k); rule < s.first {
				t.Fatalf("%s: rule %d decides about %v, want one from %d on", s.name, rule, k, s.first)
			}
		}
		if rule, want := decide(s.last), s.lines[len(s.lines)-1].rule; rule != want {
			t.Errorf("%s: rule %d decides about the last packet, want %d", s.name, rule, want)
		}
		again := make()
		if !slices.Equal(s.keys, again.keys) || !slices.Equal(s.lines, again.lines) {
			t.Errorf("%s: made twice, it is not the same", s.name)
		}
	}
}

func TestGoals(t *testing.T) {
	rows := []Row{
		{Case: "base", Unit: "ns", Median: 6},
		{Case: "other", Unit: "ns", Median: 20, Goals: []Goal{timesAtMost(4, "base"), atMost(19), timesAtMost(3, "base")}},
		{Case: "refused", Note: "refused", Goals: []Goal{atMost(1)}},
	}
	for i := range rows {
		rows[i].relate(rows, "base")
	}
	var met []bool
	for _, g := range rows[1].Goals {
		met = append(met, g.Met)
	}
	if want := []bool{true, false, false}; !slices.Equal(met, want) {
		t.Errorf("goals met: %v, want %v", met, want)
	}
	if rows[0].Ratio != 1 {
		t.Errorf("ratio of the base to itself: %v", rows[0].Ratio)
	}
	if n, all := missed(rows); n != 2 || all != 3 {
		t.Errorf("missed %d of %d goals, want 2 of 3", n, all)
	}
}
