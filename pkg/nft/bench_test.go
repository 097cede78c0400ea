// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"fmt"
	"testing"

	"github.com/untracked-cni/untracked/pkg/policy"
)

// usual is a policy as most nodes have it: the default failsafes and a few ports, on one interface.
func usual(t testing.TB) *Table {
	var lists [2][]policy.FailsafePort
	for i, s := range []string{policy.DefaultFailsafeInbound, policy.DefaultFailsafeOutbound} {
		l, err := policy.ParseFailsafes(s)
		must(t, err)
		lists[i] = l
	}
	ports, err := policy.ParsePorts("tcp/6379,udp/53,udp/7000-7100")
	must(t, err)
	allows := policy.Shorthand{Ports: ports, Sources: nets("10.0.0.0/8", "192.168.0.0/16", "2001:db8::/32")}
	rules := policy.Join(policy.FailsafeRules(lists[0], lists[1]), allows.Allows())
	return &Table{Mark: 0x1000, Endpoints: []Endpoint{{Interface: "eth0", Rules: rules.Egress}}}
}

func BenchmarkDigest(b *testing.B) {
	table := usual(b)
	b.ReportAllocs()
	for b.Loop() {
		table.Digest()
	}
}

func BenchmarkInForce(b *testing.B) {
	enterNetns(b)
	must(b, usual(b).Apply())
	b.ReportAllocs()
	for b.Loop() {
		_, err := InForce()
		must(b, err)
	}
}

func BenchmarkApply(b *testing.B) {
	enterNetns(b)
	table := usual(b)
	for b.Loop() {
		must(b, table.Apply())
	}
}

func BenchmarkApply100k(b *testing.B) {
	enterNetns(b)
	table := &Table{Mark: 0x1000, Endpoints: []Endpoint{{Interface: "eth0", Rules: []policy.Rule{
		{Action: policy.Deny, Destination: policy.Entity{Nets: many(100000)}},
	}}}}
	for b.Loop() {
		must(b, table.Apply())
	}
}

func BenchmarkDigest100k(b *testing.B) {
	table := &Table{Mark: 0x1000, Endpoints: []Endpoint{{Interface: "eth0", Rules: []policy.Rule{
		{Action: policy.Deny, Destination: policy.Entity{Nets: many(100000)}},
	}}}}
	for b.Loop() {
		table.Digest()
	}
}

// thousands is a policy of 3000 rules in 60 tiers, each with a Log and a Pass.
func thousands() *Table {
	rules := make([]policy.Rule, 3000)
	for i := range rules {
		rules[i] = udpTo(uint16(i), policy.Allow)
		rules[i].Tier = fmt.Sprint("tier-", i/50)
		switch i % 50 {
		case 0:
			rules[i].Action = policy.Log
		case 1:
			rules[i].Action = policy.Pass
		}
	}
	return &Table{Mark: 0x1000, Endpoints: []Endpoint{{Interface: "eth0", Rules: rules}}}
}

func BenchmarkApplyThousands(b *testing.B) {
	enterNetns(b)
	table := thousands()
	for b.Loop() {
		must(b, table.Apply())
	}
}

func BenchmarkInForceThousands(b *testing.B) {
	enterNetns(b)
	must(b, thousands().Apply())
	for b.Loop() {
		_, err := InForce()
		must(b, err)
	}
}
