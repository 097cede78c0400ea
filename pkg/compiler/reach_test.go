// SPDX-License-Identifier: Apache-2.0

package compiler

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/untracked-cni/untracked/pkg/netset"
	"github.com/untracked-cni/untracked/pkg/packet"
	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/pkg/policy/policytest"
)

// reaches reports whether Walk asks rule i about p, and i matches.
func reaches(rules []policy.Rule, i int, p *policy.Packet) bool {
	decides, via := policy.Walk(rules, p)
	return decides == i || slices.Contains(via, i)
}

func matches(r *policy.Rule, p *policy.Packet) bool { return reaches([]policy.Rule{*r}, 0, p) }

// tiered makes random rules of all actions in a few tiers.
func tiered(g *policytest.Generator, n int) []policy.Rule {
	rules := g.Rules(n)
	tier := 0
	for i := range rules {
		rules[i].Action = []policy.Action{policy.Allow, policy.Deny, policy.Failsafe, policy.Log, policy.Pass}[g.IntN(5)]
		if g.IntN(3) == 0 {
			tier++
		}
		rules[i].Tier = fmt.Sprint("tier", tier)
	}
	return rules
}

// dense makes rules of few and coarse conditions, so that several together often hide another one.
func dense(g *policytest.Generator, n int) []policy.Rule {
	pick := func(from ...func(*policy.Rule)) func(*policy.Rule) { return from[g.IntN(len(from))] }
	nothing := func(*policy.Rule) {}
	nets := func(of func(*policy.Rule) **netset.Set, cidrs ...string) func(*policy.Rule) {
		return func(r *policy.Rule) { *of(r) = setOf(cidrs...) }
	}
	src := func(r *policy.Rule) **netset.Set { return &r.Source.Nets }
	notDst := func(r *policy.Rule) **netset.Set { return &r.Destination.NotNets }
	ports := func(first, last uint16) func(*policy.Rule) {
		return func(r *policy.Rule) { r.Destination.Ports = []policy.PortRange{{First: first, Last: last}} }
	}
	rules := tiered(g, n)
	for i := range rules {
		r := &rules[i]
		*r = policy.Rule{Tier: r.Tier, Action: r.Action}
		pick(nothing, nothing, func(r *policy.Rule) { r.IPVersion = 4 }, func(r *policy.Rule) { r.IPVersion = 6 })(r)
		pick(nothing, func(r *policy.Rule) { r.Protocol = new(uint8(policy.TCP)) }, func(r *policy.Rule) { r.NotProtocol = new(uint8(policy.TCP)) })(r)
		pick(nothing, nothing, nets(src, "0.0.0.0/1", "::/0"), nets(src, "128.0.0.0/1"), nets(src, "0.0.0.0/0", "::/1"))(r)
		pick(nothing, nothing, nets(notDst, "10.0.0.0/8"), nets(notDst, "0.0.0.0/5", "2001:db8::/32"))(r)
		pick(nothing, nothing, ports(0, 1023), ports(1024, 65535), ports(0, 65535))(r)
	}
	return rules
}

func setOf(cidrs ...string) *netset.Set {
	var b netset.Builder
	for _, c := range cidrs {
		b.Add(netip.MustParsePrefix(c))
	}
	return b.Build()
}

// everyKind has a packet of each kind that the rules can tell apart, and more: it finds the values at which
// anything may change by looking at the rules, not at the compiler's classes.
func everyKind(rules []policy.Rule) []*policy.Packet {
	v4 := [2]map[uint32]bool{{0: true}, {0: true}}
	v6 := [2]map[netset.Addr6]bool{{{}: true}, {{}: true}}
	ports := [2]map[uint16]bool{{0: true}, {0: true}}
	icmp := map[[2]uint8]bool{{0, 0}: true, {77, 0}: true}
	protocols := map[uint8]bool{policy.TCP: true, policy.UDP: true, policy.UDPLite: true, policy.SCTP: true, policy.ICMP: true, policy.ICMPv6: true, 200: true}
	for i := range rules {
		r := &rules[i]
		for side, e := range []*policy.Entity{&r.Source, &r.Destination} {
			for _, set := range []*netset.Set{e.Nets, e.NotNets} {
				if set == nil {
					continue
				}
				for _, a := range set.Ranges4() {
					v4[side][a.Lo], v4[side][a.Hi+1] = true, true
				}
				for _, a := range set.Ranges6() {
					v6[side][a.Lo], v6[side][a.Hi.Next()] = true, true
				}
			}
			for _, a := range slices.Concat(e.Ports, e.NotPorts) {
				ports[side][a.First], ports[side][a.Last+1] = true, true
			}
		}
		for _, m := range []*policy.ICMPMatch{r.ICMP, r.NotICMP} {
			if m != nil {
				icmp[[2]uint8{m.Type, 99}] = true
				if m.Code != nil {
					icmp[[2]uint8{m.Type, *m.Code}] = true
				}
			}
		}
		for _, p := range []*uint8{r.Protocol, r.NotProtocol} {
			if p != nil {
				protocols[*p] = true
			}
		}
	}
	var out []*policy.Packet
	add := func(src, dst netip.Addr) {
		for protocol := range protocols {
			p := policy.Packet{Src: src, Dst: dst, Protocol: protocol, HopLimit: 64}
			out = append(out, new(p))
			p.HasL4 = true
			switch {
			case policy.HasPorts(protocol):
				for p.SrcPort = range ports[0] {
					for p.DstPort = range ports[1] {
						out = append(out, new(p))
					}
				}
			case protocol == policy.ICMP && src.Is4(), protocol == policy.ICMPv6 && src.Is6():
				for m := range icmp {
					p.ICMPType, p.ICMPCode = m[0], m[1]
					out = append(out, new(p))
				}
			}
		}
	}
	for src := range v4[0] {
		for dst := range v4[1] {
			add(netset.To4(src), netset.To4(dst))
		}
	}
	for src := range v6[0] {
		for dst := range v6[1] {
			add(src.Netip(), dst.Netip())
		}
	}
	return out
}

// Small policies, and all the packets that they could tell apart: the answer must be exact both ways.
func TestReachabilityIsExact(t *testing.T) {
	fates := map[Fate]int{}
	several, compared := 0, 0
	for seed := range uint64(500) {
		g := policytest.New(seed)
		rules := tiered(g, 2+g.IntN(5))
		if seed%3 != 0 {
			rules = dense(g, 3+g.IntN(7))
		}
		packets := everyKind(rules)
		if len(packets) > 300_000 {
			continue
		}
		got, err := Reachability(rules, DefaultBudget)
		if err != nil {
			t.Fatal(err)
		}
		compared += len(packets)
		for i := range rules {
			want := Impossible
			for _, p := range packets {
				if !matches(&rules[i], p) {
					continue
				}
				if want = max(want-1, Shadowed); reaches(rules, i, p) {
					want = Reachable
					break
				}
			}
			r := got[i]
			fates[r.Fate]++
			if r.Fate != want {
				t.Fatalf("seed %d: rule %d is %d, want %d: %+v\n%s", seed, i, r.Fate, want, r, words(rules))
			}
			switch r.Fate {
			case Reachable:
				if !reaches(rules, i, &r.Example) {
					t.Fatalf("seed %d: rule %d is not reached by its example %+v\n%s", seed, i, r.Example, words(rules))
				}
			case Shadowed:
				if len(r.By) > 1 {
					several++
				}
				checkShadow(t, seed, rules, i, r.By, packets)
			}
		}
	}
	t.Logf("%d packets; fates %v; %d rules shadowed by several together", compared, fates, several)
	if fates[Unknown] > 0 || fates[Shadowed] < 100 || fates[Impossible] < 100 || several < 20 {
		t.Errorf("too little of something: fates %v, %d shadowed by several", fates, several)
	}
}

// checkShadow holds the rules named as a shadow against every packet: they take all, and each of them is needed.
func checkShadow(t *testing.T, seed uint64, rules []policy.Rule, i int, by []int, packets []*policy.Packet) {
	t.Helper()
	needed := map[int]bool{}
	for _, p := range packets {
		if !matches(&rules[i], p) {
			continue
		}
		var takers []int
		for _, j := range by {
			if takes(rules, j, i, p) {
				takers = append(takers, j)
			}
		}
		switch len(takers) {
		case 0:
			t.Fatalf("seed %d: rule %d: none of %v takes %+v\n%s", seed, i, by, p, words(rules))
		case 1:
			needed[takers[0]] = true
		}
	}
	if len(needed) != len(by) {
		t.Errorf("seed %d: rule %d: of %v only %v are needed\n%s", seed, i, by, needed, words(rules))
	}
}

// takes reports whether rule j, without any other decision, keeps p from rule i.
func takes(rules []policy.Rule, j, i int, p *policy.Packet) bool {
	if j >= i || rules[j].Action == policy.Log || !matches(&rules[j], p) {
		return false
	}
	if rules[j].Tier == rules[i].Tier {
		return true
	}
	if rules[j].Action == policy.Pass {
		return false
	}
	for k := range j {
		if rules[k].Tier == rules[j].Tier && rules[k].Action == policy.Pass && matches(&rules[k], p) {
			return false
		}
	}
	return true
}

// Policies of realistic length, and many random packets: what is said never to be reached never is.
func TestReachabilityOfLongLists(t *testing.T) {
	fates := map[Fate]int{}
	for seed := range uint64(60) {
		g := policytest.New(1000 + seed)
		rules := tiered(g, 20+g.IntN(150))
		got, err := Reachability(rules, DefaultBudget)
		if err != nil {
			t.Fatal(err)
		}
		for i, r := range got {
			fates[r.Fate]++
			if r.Fate == Reachable && !reaches(rules, i, &r.Example) {
				t.Fatalf("seed %d: rule %d is not reached by its example %+v", seed, i, r.Example)
			}
		}
		for range 2000 {
			p, _ := packet.Parse(g.Frame())
			if p == nil {
				continue
			}
			decides, via := policy.Walk(rules, p)
			for _, i := range append(via, decides) {
				if i != policy.NoRule && got[i].Fate != Reachable {
					t.Fatalf("seed %d: rule %d has fate %d, and yet %+v gets to it", seed, i, got[i].Fate, p)
				}
			}
		}
	}
	t.Logf("fates %v", fates)
	if fates[Unknown] > 0 || fates[Shadowed] == 0 {
		t.Errorf("fates %v", fates)
	}
}

func words(rules []policy.Rule) string {
	var s string
	for i := range rules {
		s += fmt.Sprintf("%d %s %v %s\n", i, rules[i].Tier, rules[i].Action, rules[i].Match())
	}
	return s
}

func TestReachabilityWords(t *testing.T) {
	nets := func(cidrs ...string) policy.Entity { return policy.Entity{Nets: setOf(cidrs...)} }
	tcp := new(uint8(policy.TCP))
	port := func(first, last uint16) policy.Entity {
		return policy.Entity{Ports: []policy.PortRange{{First: first, Last: last}}}
	}
	for _, c := range []struct {
		name  string
		rules []policy.Rule
		want  Reach // of the last rule
	}{
		{"alone", []policy.Rule{{Action: policy.Deny}}, Reach{Fate: Reachable}},
		{"by one", []policy.Rule{
			{Action: policy.Deny, Source: nets("10.0.0.0/8")},
			{Action: policy.Allow, Source: nets("10.1.0.0/16")},
		}, Reach{Fate: Shadowed, By: []int{0}}},
		{"by two halves", []policy.Rule{
			{Action: policy.Deny, Source: nets("10.0.0.0/9")},
			{Action: policy.Deny, Source: nets("11.0.0.0/8")},
			{Action: policy.Deny, Source: nets("10.128.0.0/9")},
			{Action: policy.Allow, Source: nets("10.0.0.0/8")},
		}, Reach{Fate: Shadowed, By: []int{0, 2}}},
		{"all but fragments", []policy.Rule{
			{Action: policy.Deny, Protocol: tcp, Destination: port(0, 65535)},
			{Action: policy.Allow, Protocol: tcp},
		}, Reach{Fate: Reachable}},
		{"one port left", []policy.Rule{
			{Action: policy.Deny, Protocol: tcp, Destination: port(1, 65535)},
			{Action: policy.Allow, Protocol: tcp, Destination: port(0, 65535)},
		}, Reach{Fate: Reachable}},
		{"both families taken one by one", []policy.Rule{
			{Action: policy.Deny, IPVersion: 4},
			{Action: policy.Deny, IPVersion: 6},
			{Action: policy.Allow, Protocol: tcp},
		}, Reach{Fate: Shadowed, By: []int{0, 1}}},
		{"behind a log", []policy.Rule{{Action: policy.Log}, {Action: policy.Allow}}, Reach{Fate: Reachable}},
		{"passed over", []policy.Rule{
			{Action: policy.Pass, Tier: "a"},
			{Action: policy.Deny, Tier: "a"},
		}, Reach{Fate: Shadowed, By: []int{0}}},
		{"passed to", []policy.Rule{
			{Action: policy.Pass, Tier: "a", Protocol: tcp},
			{Action: policy.Deny, Tier: "a"},
			{Action: policy.Allow, Tier: "b"},
		}, Reach{Fate: Reachable}},
		{"not passed to", []policy.Rule{
			{Action: policy.Pass, Tier: "a", Protocol: tcp},
			{Action: policy.Deny, Tier: "a"},
			{Action: policy.Allow, Tier: "b", NotProtocol: tcp},
		}, Reach{Fate: Shadowed, By: []int{1}}},
		{"an empty set", []policy.Rule{{Action: policy.Deny, Source: nets()}}, Reach{Fate: Impossible}},
		{"sides of two families", []policy.Rule{{Action: policy.Deny, Source: nets("10.0.0.0/8"), Destination: nets("2001:db8::/32")}}, Reach{Fate: Impossible}},
		{"ICMP with ports", []policy.Rule{{Action: policy.Deny, Protocol: new(uint8(policy.ICMP)), Source: port(1, 2)}}, Reach{Fate: Impossible}},
		{"ICMPv6 types in IPv4", []policy.Rule{{Action: policy.Deny, IPVersion: 4, ICMP: &policy.ICMPMatch{Type: 128}, Protocol: new(uint8(policy.ICMPv6))}}, Reach{Fate: Impossible}},
	} {
		got, err := Reachability(c.rules, DefaultBudget)
		if err != nil {
			t.Fatal(err)
		}
		last := got[len(got)-1]
		if last.Fate != c.want.Fate || !slices.Equal(last.By, c.want.By) {
			t.Errorf("%s: %+v, want %+v", c.name, last, c.want)
		}
	}
}

// What cannot be found out within the budget is not guessed.
func TestReachabilityBudget(t *testing.T) {
	g := policytest.New(3)
	rules := tiered(g, 150)
	full, err := Reachability(rules, DefaultBudget)
	if err != nil {
		t.Fatal(err)
	}
	unknown := 0
	for _, budget := range []int{0, 1000, 10_000, 100_000} {
		got, err := Reachability(rules, budget)
		if err != nil {
			t.Fatal(err)
		}
		for i, r := range got {
			if r.Fate == Unknown {
				unknown++
			} else if r.Fate != full[i].Fate {
				t.Errorf("budget %d: rule %d has fate %d, in truth %d", budget, i, r.Fate, full[i].Fate)
			}
		}
	}
	if unknown == 0 {
		t.Error("no budget was too small")
	}
}

// The number of kinds counts, not that of addresses or rules.
func TestReachabilityOfLargePolicies(t *testing.T) {
	g := policytest.New(5)
	large := func(n int) policy.Entity {
		var b netset.Builder
		for range n {
			b.Add(netip.PrefixFrom(netset.To4(g.Uint32()), 28))
		}
		return policy.Entity{Nets: b.Build()}
	}
	for _, c := range []struct {
		name string
		rule func(i int) policy.Rule
		n    int
	}{
		{"countries", func(int) policy.Rule { return policy.Rule{Action: policy.Deny, Source: large(800)} }, 237},
		{"ports", func(i int) policy.Rule {
			return policy.Rule{Action: policy.Allow, Protocol: new(uint8(policy.TCP)), Destination: policy.Entity{Ports: []policy.PortRange{{First: uint16(i), Last: uint16(i)}}}}
		}, 4000},
		{"ports by ports", func(i int) policy.Rule {
			return policy.Rule{
				Action: policy.Allow, Protocol: new(uint8(policy.TCP)),
				Source:      policy.Entity{Nets: large(50).Nets, Ports: []policy.PortRange{{First: uint16(i % 300), Last: uint16(i%300 + 10)}}},
				Destination: policy.Entity{Ports: []policy.PortRange{{First: uint16(i * 10), Last: uint16(i*10 + 15)}}},
			}
		}, 1000},
		{"nets", func(i int) policy.Rule { return policy.Rule{Action: policy.Deny, Source: large(1)} }, 4000},
	} {
		var rules []policy.Rule
		for i := range c.n {
			rules = append(rules, c.rule(i))
		}
		rules = append(rules, policy.Rule{Action: policy.Deny}, policy.Rule{Action: policy.Allow, Protocol: new(uint8(policy.UDP))})
		start := time.Now()
		got, err := Reachability(rules, DefaultBudget)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %d rules in %v", c.name, len(rules), time.Since(start))
		for i, r := range got {
			if r.Fate == Unknown {
				t.Errorf("%s: rule %d is unknown", c.name, i)
			}
		}
		if last := got[len(got)-1]; last.Fate != Shadowed || !slices.Equal(last.By, []int{c.n}) {
			t.Errorf("%s: the last rule: %+v, want it shadowed by %d", c.name, last, c.n)
		}
	}
}
