// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/untracked-cni/untracked/pkg/netset"
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

// mirrored is what auto-return makes of n rules for a port and a network each.
func mirrored(n int) *Table {
	var r policy.Rules
	for i := range n {
		port := uint16(1024 + i)
		r.Ingress = append(r.Ingress, policy.Rule{
			Policy: "served", Index: i, Action: policy.Allow, Protocol: ptr(uint8(policy.TCP)),
			Source:      policy.Entity{Nets: netset.Of(netip.PrefixFrom(netset.To4(10<<24|uint32(i)<<8), 24))},
			Destination: policy.Entity{Ports: []policy.PortRange{portRange(port, port)}},
		})
	}
	r.AddReturns()
	return &Table{Mark: 0x1000, Endpoints: []Endpoint{{Interface: "d0", Rules: r.Egress}}}
}

func BenchmarkApplyMirrored(b *testing.B) {
	for _, n := range []int{100, 1000, 4096, 16384} {
		table := mirrored(n)
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			enterNetns(b)
			for b.Loop() {
				b.StopTimer()
				must(b, Remove())
				b.StartTimer()
				must(b, table.Apply())
			}
		})
	}
}

func BenchmarkCompileMirrored(b *testing.B) {
	table := mirrored(4096)
	for b.Loop() {
		_, err := table.Compile()
		must(b, err)
	}
}

// BenchmarkPacket is the cost of a packet that leaves, past as many rules, the system call included. No rules is
// without our table.
func BenchmarkPacket(b *testing.B) {
	for _, n := range []int{0, 1, 1000, 4096, 16384} {
		for _, matches := range []bool{true, false} {
			b.Run(fmt.Sprintf("%d/matches=%t", n, matches), func(b *testing.B) {
				enterNetns(b)
				addDummy(b, "d0")
				raw := openRaw(b)
				last := uint32(max(n, 1) - 1)
				p := &ipPacket{Packet: policy.Packet{
					Src: netip.MustParseAddr("192.0.2.1"), Dst: netset.To4(10<<24 | last<<8 | 1), Protocol: policy.TCP, HopLimit: 64,
					SrcPort: uint16(1024 + last), DstPort: 40000,
				}}
				if !matches {
					p.Dst = netip.MustParseAddr("203.0.113.1")
				}
				if n > 0 {
					must(b, mirrored(n).Apply())
				}
				bytes := p.bytes()
				for b.Loop() {
					raw.send(b, bytes)
				}
			})
		}
	}
}

// BenchmarkUpdate100k adds a range to a list, and takes it off again.
func BenchmarkUpdate100k(b *testing.B) {
	enterNetns(b)
	var versions [2]*Compiled
	for i := range versions {
		c, err := (&Table{Mark: 0x1000, Endpoints: []Endpoint{{Interface: "eth0", Rules: []policy.Rule{
			{Action: policy.Deny, Destination: policy.Entity{Nets: many(100000 + i), NetsName: "list"}},
		}}}}).Compile()
		must(b, err)
		versions[i] = c
	}
	must(b, versions[1].Apply(nil))
	now := 1
	for b.Loop() {
		must(b, versions[1-now].Apply(versions[now]))
		now = 1 - now
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
