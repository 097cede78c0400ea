// SPDX-License-Identifier: Apache-2.0

package policy_test

import (
	"net/netip"
	"testing"

	"github.com/untracked-cni/untracked/pkg/netset"
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

// TestReturns: where nothing is written for the way out, no answer is untracked to a packet that is not, and any is to
// one that is. Denials are left out, whose packets get no answers.
func TestReturns(t *testing.T) {
	g := policytest.New(11)
	untracked, passed := 0, 0
	for range 600 {
		var ingress []policy.Rule
		for _, r := range g.Rules(1 + g.IntN(12)) {
			if r.Action == policy.Deny || r.Action == policy.Failsafe {
				r.Action = policy.Pass
			}
			if r.Action == policy.Pass && r.Tier == "" { // such rules never do
				r.Action = policy.Allow
			}
			if r.IPVersion == 0 {
				r.ICMP, r.NotICMP = nil, nil // of either family, a type has not one reverse
			}
			ingress = append(ingress, r)
		}
		rules := policy.Rules{Ingress: ingress}
		rules.AddReturns()
		for range 60 {
			p, reason := packet.Parse(g.Frame())
			if reason != "" || p.Quoted != nil || p.Src.Is6() && p.Protocol == policy.ICMPv6 {
				continue
			}
			answer := *p
			answer.Src, answer.Dst, answer.SrcPort, answer.DstPort = p.Dst, p.Src, p.DstPort, p.SrcPort
			if p.Src.Is4() && p.Protocol == policy.ICMP {
				answer.ICMPType = policy.ReverseICMPType(true, p.ICMPType)
			}
			in, out := policy.Evaluate(rules.Ingress, p), policy.Evaluate(rules.Egress, &answer)
			if in.Verdict != out.Verdict {
				t.Fatalf("%+v is %s, its answer %s by %d\ningress %+v\negress %+v", p, in.Verdict, out.Verdict, out.Rule, rules.Ingress, rules.Egress)
			}
			if in.Verdict == policy.Untracked {
				untracked++
			}
			if _, via := policy.Walk(rules.Egress, &answer); len(via) > 0 {
				passed++
			}
		}
	}
	if untracked < 1000 || passed < 300 {
		t.Errorf("%d packets untracked, %d passed: too few to say anything", untracked, passed)
	}
}

// TestWrittenPassStandsBeforeMirrors: a written exception holds against auto-return.
func TestWrittenPassStandsBeforeMirrors(t *testing.T) {
	tcp := new(uint8(policy.TCP))
	redis := []policy.PortRange{{First: 6379, Last: 6379}}
	some := netset.Of(netip.MustParsePrefix("10.1.0.0/16"))
	rules := policy.Rules{
		Ingress: []policy.Rule{{Tier: "default", Action: policy.Allow, Protocol: tcp, Destination: policy.Entity{Ports: redis}}},
		Egress:  []policy.Rule{{Tier: "default", Action: policy.Pass, Protocol: tcp, Source: policy.Entity{Ports: redis}, Destination: policy.Entity{Nets: some}}},
	}
	rules.AddReturns()
	for to, want := range map[string]policy.Verdict{"10.1.0.5": policy.Tracked, "10.2.0.5": policy.Untracked} {
		p := policy.Packet{Src: netip.MustParseAddr("192.0.2.1"), Dst: netip.MustParseAddr(to), Protocol: policy.TCP, HasL4: true, SrcPort: 6379, DstPort: 45000}
		if d := policy.Evaluate(rules.Egress, &p); d.Verdict != want {
			t.Errorf("an answer to %s is %s, want %s", to, d.Verdict, want)
		}
	}
}
