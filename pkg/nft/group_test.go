// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/untracked-cni/untracked/pkg/netset"
	"github.com/untracked-cni/untracked/pkg/policy"
)

// grouped tells how a list of one tier is grouped: the rules of each group, and behind them the fields in which they
// differ and in capitals those that tell one from another.
func grouped(rules []policy.Rule) (out []string) {
	l := list{compiler: &compiler{hashes: map[*netset.Set]uint64{}}, rules: rules}
	for _, g := range groups(rules, l.items(direct, 0, len(rules))) {
		text := ""
		for _, m := range g.members {
			text += fmt.Sprintf("%d ", m.rule)
		}
		if g.view.family != 0 {
			text += fmt.Sprintf("ipv%d ", g.view.family)
		}
		for _, f := range g.varying.list() {
			if g.telling.has(f) {
				text += [...]string{"SPORT ", "DPORT ", "SADDR ", "DADDR "}[f]
			} else {
				text += [...]string{"sport ", "dport ", "saddr ", "daddr "}[f]
			}
		}
		out = append(out, text[:len(text)-1])
	}
	return out
}

func TestGroups(t *testing.T) {
	tcp := ptr(uint8(policy.TCP))
	from := func(action policy.Action, ports ...uint16) policy.Rule {
		r := policy.Rule{Action: action, Protocol: tcp}
		for _, p := range ports {
			r.Source.Ports = append(r.Source.Ports, portRange(p, p))
		}
		return r
	}
	to := func(r policy.Rule, prefixes ...string) policy.Rule {
		r.Destination.Nets = nets(prefixes...)
		return r
	}
	allow, deny, log, udp := from(policy.Allow), from(policy.Deny), from(policy.Log), policy.Rule{Action: policy.Allow, Protocol: ptr(uint8(policy.UDP))}
	not := func(r policy.Rule, n *netset.Set) policy.Rule {
		r.Source.NotNets = n
		return r
	}
	ours := nets("192.0.2.0/24")
	for _, tt := range []struct {
		name  string
		rules []policy.Rule
		want  []string
	}{
		{"ports", []policy.Rule{from(policy.Allow, 1), from(policy.Allow, 2, 4), from(policy.Allow, 3)}, []string{"0 1 2 SPORT"}},
		{"the same port twice", []policy.Rule{from(policy.Allow, 1), from(policy.Allow, 2), from(policy.Allow, 3, 1)}, []string{"0 1 SPORT", "2"}},
		{"addresses", []policy.Rule{to(allow, "10.0.0.0/24"), to(allow, "10.0.1.0/24"), to(allow, "10.0.2.1/32")}, []string{"0 1 2 ipv4 DADDR"}},
		{"addresses inside others", []policy.Rule{to(allow, "10.0.0.0/24"), to(allow, "10.0.1.0/24"), to(allow, "10.0.0.1/32")}, []string{"0 1 ipv4 DADDR", "2 ipv4"}},
		{"both", []policy.Rule{to(from(policy.Allow, 1), "10.0.0.0/24"), to(from(policy.Allow, 2), "10.0.1.0/24")}, []string{"0 1 ipv4 SPORT DADDR"}},
		{"both, one address twice", []policy.Rule{
			to(from(policy.Allow, 1), "10.0.0.0/24"), to(from(policy.Allow, 2), "10.0.1.0/24"), to(from(policy.Allow, 3), "10.0.0.0/24"),
		}, []string{"0 1 2 ipv4 SPORT daddr"}},
		{"both, each twice", []policy.Rule{
			to(from(policy.Allow, 1), "10.0.0.0/24"), to(from(policy.Allow, 2), "10.0.0.0/24"),
			to(from(policy.Allow, 1), "10.0.1.0/24"), to(from(policy.Allow, 2), "10.0.1.0/24"),
		}, []string{"0 1 ipv4 SPORT", "2 3 ipv4 SPORT"}},
		{"families", []policy.Rule{to(allow, "10.0.0.0/24", "2001:db8::/64"), to(allow, "10.0.1.0/24"), to(allow, "2001:db8:0:1::/64")},
			[]string{"0 1 ipv4 DADDR", "0 2 ipv6 DADDR"}},
		{"past what cannot match the same", []policy.Rule{from(policy.Allow, 1), from(policy.Deny, 2), from(policy.Allow, 3), from(policy.Deny, 4)},
			[]string{"0 2 SPORT", "1 3 SPORT"}},
		{"not past what can", []policy.Rule{from(policy.Allow, 1), from(policy.Deny, 2), from(policy.Allow, 2), from(policy.Deny, 4)},
			[]string{"0", "1 3 SPORT", "2"}},
		{"not past what may", []policy.Rule{to(allow, "10.0.0.0/24"), from(policy.Deny, 2), to(allow, "10.0.1.0/24")}, []string{"0 ipv4", "1", "2 ipv4"}},
		{"past another protocol", []policy.Rule{to(allow, "10.0.0.0/24"), udp, to(allow, "10.0.1.0/24")}, []string{"0 2 ipv4 DADDR", "1"}},
		{"past a deny of other addresses", []policy.Rule{to(allow, "10.0.0.0/24"), to(deny, "10.0.9.0/24"), to(allow, "10.0.1.0/24")},
			[]string{"0 2 ipv4 DADDR", "1 ipv4"}},
		{"logs", []policy.Rule{to(log, "10.0.0.0/24"), to(log, "10.0.1.0/24")}, []string{"0 ipv4", "1 ipv4"}},
		{"with the same exception", []policy.Rule{not(from(policy.Allow, 1), ours), not(from(policy.Allow, 2), nets("192.0.2.0/24"))},
			[]string{"0 1 ipv4 SPORT", "0 1 ipv6 SPORT"}},
		{"with other exceptions", []policy.Rule{not(from(policy.Allow, 1), ours), not(from(policy.Allow, 2), nets("192.0.2.0/25"))},
			[]string{"0 ipv4", "0 ipv6", "1 ipv4", "1 ipv6"}},
		{"no field at all", []policy.Rule{allow, allow}, []string{"0", "1"}},
		{"what never matches", []policy.Rule{from(policy.Allow, 1), to(from(policy.Allow, 2)), from(policy.Allow, 3)}, []string{"0 2 SPORT"}},
		{"a large set", []policy.Rule{
			{Action: policy.Allow, Protocol: tcp, Source: policy.Entity{Nets: many(maxElements + 1)}, Destination: policy.Entity{Ports: []policy.PortRange{portRange(1, 1)}}},
			{Action: policy.Allow, Protocol: tcp, Source: policy.Entity{Nets: many(maxElements + 1)}, Destination: policy.Entity{Ports: []policy.PortRange{portRange(2, 2)}}},
			{Action: policy.Allow, Protocol: tcp, Source: policy.Entity{Nets: many(maxElements + 2)}, Destination: policy.Entity{Ports: []policy.PortRange{portRange(3, 3)}}},
		}, []string{"0 1 ipv4 DPORT", "0 1 ipv6 DPORT", "2 ipv4", "2 ipv6"}},
	} {
		if diff := cmp.Diff(tt.want, grouped(tt.rules)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

// TestGroupSize: thousands of rules make few nftables rules, and no set that is too large.
func TestGroupSize(t *testing.T) {
	for _, tt := range []struct {
		name  string
		table *Table
		want  int
	}{
		{"mirrored", mirrored(4096), 1},
		{"mirrored, more than one group holds", func() *Table {
			table := mirrored(200)
			for i := range table.Endpoints[0].Rules {
				r := &table.Endpoints[0].Rules[i]
				r.Destination.Nets = many(maxElements)
				r.Protocol, r.IPVersion = ptr(uint8(policy.TCP)), 4
			}
			return table
		}(), 200*maxElements/maxGroupElements + 1},
	} {
		rs := tt.table.ruleset()
		got := 0
		for _, r := range rs.rules {
			if r.chain == "out-d0" {
				got++
			}
		}
		const others = 3 + 1 // fragments in both families, neighbour discovery, and quoted packets of IPv4
		if got-others != tt.want {
			t.Errorf("%s: %d rules, want %d", tt.name, got-others, tt.want)
		}
		for _, s := range rs.sets {
			if s.kind == "rules4" && s.count > maxGroupElements {
				t.Errorf("%s: set %s has %d elements", tt.name, s.name, s.count)
			}
		}
	}
}

// TestSpans: spans in any order, against a list.
func TestSpans(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, order := range []string{"up", "down", "random"} {
		var (
			s     spans
			taken [10000]bool
		)
		at := r.Perm(1000)
		for n, i := range at {
			switch order {
			case "up":
				i = n
			case "down":
				i = 999 - n
			}
			var more []span
			for first := uint64(i * 10); len(more) <= r.IntN(2); first += 4 {
				more = append(more, span{low(first), low(first + uint64(r.IntN(4)))})
			}
			for _, m := range more {
				for v := m.lo.Lo; v <= m.hi.Lo; v++ {
					taken[v] = true
				}
			}
			if s.meet(more) {
				t.Fatalf("%s: %v is there before it was added", order, more)
			}
			s.add(more)
			lo := r.IntN(9990)
			hi := lo + r.IntN(10)
			if got, want := s.meet([]span{{low(uint64(lo)), low(uint64(hi))}}), slices.Contains(taken[lo:hi+1], true); got != want {
				t.Fatalf("%s: %d-%d meets: %t, want %t", order, lo, hi, got, want)
			}
		}
	}
}
