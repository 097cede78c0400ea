// SPDX-License-Identifier: Apache-2.0

package policytest_test

import (
	"slices"
	"testing"

	"github.com/untracked-cni/untracked/pkg/packet"
	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/pkg/policy/policytest"
)

// Evaluators with one mistake each are found out by random rules and packets, and by a handful of them after
// shrinking.
func TestShrink(t *testing.T) {
	change := func(mistake func(*policy.Rule)) func([]policy.Rule, []byte) bool {
		return func(rules []policy.Rule, frame []byte) bool {
			wrong := slices.Clone(rules)
			for i := range wrong {
				mistake(&wrong[i])
			}
			return packet.Decide(rules, frame) != packet.Decide(wrong, frame)
		}
	}
	const ethernet, ipv4, ports = 14, 20, 8
	const maxTags, maxOptions = 8, 40
	for _, c := range []struct {
		name  string
		fails func([]policy.Rule, []byte) bool
		// The least that shows the mistake.
		rules, conditions, bytes int
	}{
		{"a Deny allows", change(func(r *policy.Rule) {
			if r.Action == policy.Deny {
				r.Action = policy.Allow
			}
		}), 1, 0, ethernet + ipv4},
		{"a Pass does not leave its tier", change(func(r *policy.Rule) { r.Tier = "" }), 2, 2, ethernet + ipv4},
		{"source ports are forgotten", change(func(r *policy.Rule) { r.Source.Ports = nil }), 1, 1, ethernet + ipv4},
		{"excluded ports are forgotten", change(func(r *policy.Rule) { r.Destination.NotPorts = nil }), 1, 1, ethernet + ipv4},
		{"excluded ports are wanted", change(func(r *policy.Rule) {
			r.Destination.Ports, r.Destination.NotPorts = r.Destination.NotPorts, r.Destination.Ports
		}), 1, 1, ethernet + ipv4 + ports},
	} {
		t.Run(c.name, func(t *testing.T) {
			rules, frame := findFailure(t, c.fails)
			small, short := policytest.Shrink(rules, frame, c.fails)
			if !c.fails(small, short) {
				t.Fatalf("what is left does not fail: %+v, %x", small, short)
			}
			conditions := 0
			for i := range small {
				conditions += countConditions(&small[i])
			}
			if len(small) > c.rules || conditions > c.conditions {
				t.Errorf("%d rules with %d conditions are left, want %d with %d: %+v", len(small), conditions, c.rules, c.conditions, small)
			}
			// Tags and options of the frame that was found stay where they are.
			if len(short) > c.bytes+maxTags+maxOptions {
				t.Errorf("%d bytes are left, want about %d: %x", len(short), c.bytes, short)
			}
			if len(short) > 0 && c.fails(small, short[:len(short)-1]) {
				t.Errorf("one byte less still fails")
			}
		})
	}
}

func findFailure(t *testing.T, fails func([]policy.Rule, []byte) bool) ([]policy.Rule, []byte) {
	for seed := range uint64(1000) {
		g := policytest.New(seed)
		rules := g.Rules(30)
		for range 100 {
			if frame := g.Frame(); fails(rules, frame) {
				return rules, frame
			}
		}
	}
	t.Fatal("the mistake makes no difference to any random packet")
	return nil, nil
}

func countConditions(r *policy.Rule) int {
	n := 0
	for _, given := range []bool{
		r.Tier != "", r.IPVersion != 0, r.Protocol != nil, r.NotProtocol != nil, r.ICMP != nil, r.NotICMP != nil,
		r.Source.Nets != nil, r.Source.NotNets != nil, r.Source.Ports != nil, r.Source.NotPorts != nil,
		r.Destination.Nets != nil, r.Destination.NotNets != nil, r.Destination.Ports != nil, r.Destination.NotPorts != nil,
	} {
		if given {
			n++
		}
	}
	return n
}
