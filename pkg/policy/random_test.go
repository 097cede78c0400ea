// SPDX-License-Identifier: Apache-2.0

package policy_test

import (
	"testing"

	"github.com/untracked-cni/untracked/pkg/packet"
	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/pkg/policy/policytest"
)

// TestClosestAgreesWithWalk: a rule misses nothing exactly if it matches.
func TestClosestAgreesWithWalk(t *testing.T) {
	g := policytest.New(7)
	matched := 0
	for range 400 {
		rules := g.Rules(1)
		if a := rules[0].Action; a != policy.Allow && a != policy.Deny {
			continue
		}
		for range 100 {
			p, reason := packet.Parse(g.Frame())
			if reason != "" {
				continue
			}
			decides, _ := policy.Walk(rules, p)
			_, misses := policy.Closest(rules, p)
			if (decides == policy.NoRule) != (len(misses) > 0) {
				t.Fatalf("%+v\n%+v\nmisses %q, but Walk says %d", rules[0], p, misses, decides)
			}
			if len(misses) == 0 {
				matched++
			}
		}
	}
	if matched < 1000 {
		t.Errorf("only %d packets matched", matched)
	}
}
