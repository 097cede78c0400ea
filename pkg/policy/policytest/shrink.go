// SPDX-License-Identifier: Apache-2.0

package policytest

import (
	"slices"

	"github.com/untracked-cni/untracked/pkg/policy"
)

// Shrink makes what fails small enough to read. From rules and a frame of which fails is true, it drops rules, then
// conditions of the rules that are left, then bytes from the frame's end, as long as fails stays true. What it returns
// fails, and does no more once any one of these steps is taken.
func Shrink(rules []policy.Rule, frame []byte, fails func([]policy.Rule, []byte) bool) ([]policy.Rule, []byte) {
	for shrunk := true; shrunk; {
		before, length := len(rules), len(frame)
		rules = shrinkList(rules, func(fewer []policy.Rule) bool { return fails(fewer, frame) })
		rules, shrunk = dropFields(rules, func(simpler []policy.Rule) bool { return fails(simpler, frame) })
		for cut := (len(frame) + 1) / 2; cut > 0; cut /= 2 {
			for len(frame) >= cut && fails(rules, frame[:len(frame)-cut]) {
				frame = frame[:len(frame)-cut]
			}
		}
		shrunk = shrunk || len(rules) < before || len(frame) < length
	}
	return rules, frame
}

// shrinkList removes runs of elements, long ones first.
func shrinkList[T any](list []T, fails func([]T) bool) []T {
	for run := (len(list) + 1) / 2; run > 0; run /= 2 {
		for at := 0; at+run <= len(list); {
			if fewer := slices.Delete(slices.Clone(list), at, at+run); fails(fewer) {
				list = fewer
			} else {
				at += run
			}
		}
	}
	return list
}

// fields are what a rule can do without, one at a time.
var fields = []func(*policy.Rule){
	func(r *policy.Rule) { r.Tier = "" },
	func(r *policy.Rule) { r.IPVersion = 0 },
	func(r *policy.Rule) { r.Protocol = nil },
	func(r *policy.Rule) { r.NotProtocol = nil },
	func(r *policy.Rule) { r.ICMP = nil },
	func(r *policy.Rule) { r.NotICMP = nil },
	func(r *policy.Rule) { r.Source.Nets = nil },
	func(r *policy.Rule) { r.Source.NotNets = nil },
	func(r *policy.Rule) { r.Source.Ports = nil },
	func(r *policy.Rule) { r.Source.NotPorts = nil },
	func(r *policy.Rule) { r.Destination.Nets = nil },
	func(r *policy.Rule) { r.Destination.NotNets = nil },
	func(r *policy.Rule) { r.Destination.Ports = nil },
	func(r *policy.Rule) { r.Destination.NotPorts = nil },
}

func dropFields(rules []policy.Rule, fails func([]policy.Rule) bool) (_ []policy.Rule, dropped bool) {
	for i := range rules {
		for _, drop := range fields {
			simpler := slices.Clone(rules)
			drop(&simpler[i])
			if !same(&simpler[i], &rules[i]) && fails(simpler) {
				rules, dropped = simpler, true
			}
		}
	}
	return rules, dropped
}

// same reports whether dropping a field changed nothing.
func same(a, b *policy.Rule) bool {
	entity := func(x, y *policy.Entity) bool {
		return x.Nets == y.Nets && x.NotNets == y.NotNets &&
			(x.Ports == nil) == (y.Ports == nil) && (x.NotPorts == nil) == (y.NotPorts == nil)
	}
	return a.Tier == b.Tier && a.IPVersion == b.IPVersion && a.Protocol == b.Protocol && a.NotProtocol == b.NotProtocol &&
		a.ICMP == b.ICMP && a.NotICMP == b.NotICMP && entity(&a.Source, &b.Source) && entity(&a.Destination, &b.Destination)
}
