// SPDX-License-Identifier: Apache-2.0

package hostendpoint

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/untracked-cni/untracked/pkg/netset"
	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/pkg/resource"
)

func at(line int) resource.Position { return resource.Position{File: "f", Line: line, Column: 1} }

func TestInspect(t *testing.T) {
	order := func(v float64) *float64 { return &v }
	redis := parse(`role == "redis"`)
	one := func(name string, action policy.Action) resource.Policy {
		return resource.Policy{
			Meta: labelled(name), Tier: "default", Selector: redis, SelectorAt: at(5), Ingress: true,
			IngressRules: []resource.Rule{{Action: action, At: at(10)}},
		}
	}
	with := func(r resource.Rule) resource.Policy {
		p := one("p", policy.Allow)
		r.Action = policy.Allow
		p.IngressRules = append(p.IngressRules, r)
		return p
	}
	source := func(e resource.Entity) []resource.Policy {
		e.SelectorAt, e.NotSelectorAt = at(20), at(21)
		return []resource.Policy{with(resource.Rule{Protocol: tcp(), Source: e})}
	}
	portsAt := func(p *resource.Ports) *resource.Ports { p.At = at(30); return p }

	for _, c := range []struct {
		name     string
		policies []resource.Policy
		change   func(*resource.Set)
		want     []string // with an implicit endpoint
		without  []string // nil for the same
	}{
		{"nothing to say", []resource.Policy{with(resource.Rule{
			Protocol:    tcp(),
			Source:      resource.Entity{Selector: parse(`role == "client"`), NotSelector: parse("has(old)"), NotPorts: numbered(22, 22)},
			Destination: resource.Entity{Selector: redis, Ports: named("redis")},
		})}, nil, nil, nil},
		{"unknown tier", []resource.Policy{func() resource.Policy { p := one("p", policy.Allow); p.Tier = "ghost"; return p }()}, nil,
			[]string{"unknown-tier p.yaml:1:1: policy p is in tier ghost, which is not written: it comes behind all others"}, nil},
		{"built-in tiers need not be written", []resource.Policy{func() resource.Policy { p := one("p", policy.Allow); p.Tier = "kube-admin"; return p }()}, nil, nil, nil},
		{"two tiers of one order", []resource.Policy{one("p", policy.Allow), func() resource.Policy { p := one("q", policy.Deny); p.Tier = "other"; return p }()},
			func(s *resource.Set) { s.Tiers = []resource.Tier{{Meta: labelled("other"), Order: order(1e6)}} },
			[]string{"overlapping-tier-order other.yaml:1:1: tiers default and other have the same order: default comes first by its name"}, nil},
		{"a tier without a policy", []resource.Policy{one("p", policy.Allow)},
			func(s *resource.Set) { s.Tiers = []resource.Tier{{Meta: labelled("other"), Order: order(1e6)}} }, nil, nil},
		{"two policies of one order", []resource.Policy{one("p", policy.Allow), one("q", policy.Deny)}, nil,
			[]string{"overlapping-tier-order q.yaml:1:1: policies p and q of tier default have the same order and do different things: p comes first by its name"}, nil},
		{"the nearest of several", []resource.Policy{one("p", policy.Deny), one("q", policy.Deny), one("r", policy.Allow), one("s", policy.Allow)}, nil, []string{
			"overlapping-tier-order r.yaml:1:1: policies q and r of tier default have the same order and do different things: q comes first by its name",
			"overlapping-tier-order s.yaml:1:1: policies q and s of tier default have the same order and do different things: q comes first by its name",
		}, nil},
		{"that do the same", []resource.Policy{one("p", policy.Allow), one("q", policy.Allow)}, nil, nil, nil},
		{"of which one only logs", []resource.Policy{one("p", policy.Allow), one("q", policy.Log)}, nil, nil, nil},
		{"in other directions", []resource.Policy{one("p", policy.Allow), func() resource.Policy {
			p := one("q", policy.Deny)
			p.Ingress, p.Egress, p.EgressRules = false, true, p.IngressRules
			return p
		}()}, nil, nil, nil},
		{"of other endpoints", []resource.Policy{one("p", policy.Allow), func() resource.Policy {
			p := one("q", policy.Deny)
			p.Selector = parse(`role == "client"`)
			return p
		}()}, nil, nil, nil},
		{"of which one selects a network set", []resource.Policy{one("p", policy.Allow), func() resource.Policy {
			p := one("q", policy.Deny)
			p.Selector = parse("has(set)")
			return p
		}()}, func(s *resource.Set) { s.NetworkSets[0].Labels = map[string]string{"role": "redis", "set": "yes"} },
			[]string{"selects-nothing f:5:1: policy q selects no host endpoint: has(set)"}, nil},
		{"of another order", []resource.Policy{one("p", policy.Allow), func() resource.Policy { p := one("q", policy.Deny); p.Order = order(3); return p }()}, nil, nil, nil},
		{"a policy that selects nothing", []resource.Policy{func() resource.Policy { p := one("p", policy.Allow); p.Selector = parse("has(nothing)"); return p }()}, nil,
			[]string{"selects-nothing f:5:1: policy p selects no host endpoint: has(nothing)"}, nil},
		{"nothing is known of what a policy could select", []resource.Policy{func() resource.Policy { p := one("p", policy.Allow); p.Selector = parse("has(nothing)"); return p }()},
			func(s *resource.Set) { s.HostEndpoints = nil }, []string{"selects-nothing f:5:1: policy p selects no host endpoint: has(nothing)"}, []string{}},
		{"a policy that only the implicit endpoint has", []resource.Policy{func() resource.Policy { p := one("p", policy.Allow); p.Selector = parse(`role == "spare"`); return p }()}, nil,
			nil, []string{`selects-nothing f:5:1: policy p selects no host endpoint: role == "spare"`}},
		{"a policy that selects a network set", []resource.Policy{func() resource.Policy { p := one("p", policy.Allow); p.Selector = parse(`has(set)`); return p }()},
			func(s *resource.Set) { s.NetworkSets[0].Labels["set"] = "yes" },
			[]string{"selects-nothing f:5:1: policy p selects no host endpoint: has(set)"}, nil},
		{"empty selectors", source(resource.Entity{Selector: parse("has(x)")}), nil,
			[]string{"selects-nothing f:20:1: policy p, ingress rule 1: its source selector has(x) chooses no host endpoint and no network set, so the rule matches nothing"}, nil},
		{"empty notSelector", source(resource.Entity{NotSelector: parse("has(x)")}), nil,
			[]string{"selects-nothing f:21:1: policy p, ingress rule 1: its source notSelector has(x) chooses no host endpoint and no network set, so it excludes nothing"}, nil},
		{"a notSelector that leaves nothing", source(resource.Entity{Selector: parse("has(old)"), NotSelector: redis}), nil,
			[]string{"selects-nothing f:21:1: policy p, ingress rule 1: its source notSelector excludes everything that the selector chooses, so the rule matches nothing"}, nil},
		{"rules of a direction that the policy is not about", []resource.Policy{func() resource.Policy {
			p := with(resource.Rule{Source: resource.Entity{Selector: parse("has(x)")}})
			p.Ingress = false
			return p
		}()}, nil, nil, nil},
		{"an endpoint whose addresses nobody knows here", source(resource.Entity{Selector: parse(`role == "client"`)}),
			func(s *resource.Set) {
				s.NetworkSets, s.HostEndpoints[0].ExpectedIPs, s.HostEndpoints[0].Node = nil, nil, "d"
			},
			[]string{`no-address f:20:1: policy p, ingress rule 1: its source selector role == "client" chooses only host endpoints of other nodes, and none of them has expectedIPs, so the rule matches nothing`}, nil},
		{"a policy that selects nothing needs no addresses", func() []resource.Policy {
			list := source(resource.Entity{Selector: parse(`role == "client"`)})
			list[0].Selector = parse("has(nothing)")
			return list
		}(), func(s *resource.Set) { s.NetworkSets, s.HostEndpoints[0].ExpectedIPs = nil, nil },
			[]string{"selects-nothing f:5:1: policy p selects no host endpoint: has(nothing)"}, nil},
		{"they are known on its own node, where the policy is in force, too", source(resource.Entity{Selector: parse(`role == "client"`)}),
			func(s *resource.Set) { s.NetworkSets, s.HostEndpoints[0].ExpectedIPs = nil, nil }, nil, nil},
		{"an empty network set is no mistake", source(resource.Entity{Selector: parse(`role == "client"`)}),
			func(s *resource.Set) { s.HostEndpoints[0].Labels = nil; s.NetworkSets[0].Nets = netset.Of() }, nil, nil},
		{"unknown port names", source(resource.Entity{Ports: portsAt(named("smtp", "redis")), NotPorts: portsAt(named("pop3"))}), nil, []string{
			"unknown-port-name f:30:1: policy p, ingress rule 1: its source ports have the name smtp, which no HostEndpoint gives to a port, so these match nothing",
			"unknown-port-name f:30:1: policy p, ingress rule 1: its source ports have the name pop3, which no HostEndpoint gives to a port, so these exclude nothing",
		}, nil},
		{"a port name of another protocol", source(resource.Entity{Ports: portsAt(named("dns"))}), nil,
			[]string{"unknown-port-name f:30:1: policy p, ingress rule 1: its source ports have the name dns, which no HostEndpoint that the selector chooses gives to a port of the rule's protocol, so these match nothing"}, nil},
		{"a port name of endpoints that are not chosen", source(resource.Entity{Selector: parse(`role == "client"`), Ports: portsAt(named("redis"))}), nil,
			[]string{"unknown-port-name f:30:1: policy p, ingress rule 1: its source ports have the name redis, which no HostEndpoint that the selector chooses gives to a port of the rule's protocol, so these match nothing"}, nil},
		{"a port name of endpoints without addresses", source(resource.Entity{Ports: portsAt(named("http"))}),
			func(s *resource.Set) {
				s.HostEndpoints[0].ExpectedIPs, s.HostEndpoints[0].Node = nil, "d"
				s.HostEndpoints[0].Ports = []resource.NamedPort{{Name: "http", Protocol: policy.TCP, Port: 80}}
			},
			[]string{"no-address f:30:1: policy p, ingress rule 1: its source ports have the name http, which only HostEndpoints of other nodes give to a port, and none of them has expectedIPs, so these match nothing"}, nil},
		{"shadowed endpoints", nil, func(s *resource.Set) {
			s.HostEndpoints = heps(
				hep("a", "n1", "eth0", ""), hep("b", "n1", "eth0", "10.0.0.1"), hep("c", "n2", "eth0", ""), hep("d", "n1", "", "10.0.0.1 10.0.0.2"),
				hep("e", "n1", "", "10.0.0.2"), hep("f", "n1", "", "10.0.0.2 10.0.0.3"), hep("g", "n1", "eth*", ""), hep("h", "n1", "*", ""), hep("i", "n1", "*", ""),
			).HostEndpoints
		}, []string{
			"hep-shadowed : HostEndpoint b is never in force: a is about the same interface of node n1, and its name sorts before",
			"hep-shadowed : HostEndpoint e is never in force: d is about the same interface of node n1, and its name sorts before",
			"hep-shadowed : HostEndpoint i is never in force: h is about the same interface of node n1, and its name sorts before",
		}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			set, _ := fleet()
			set.Policies = c.policies
			if c.change != nil {
				c.change(set)
			}
			check := func(where string, implicit *Endpoint, want []string) {
				var got []string
				for _, f := range Inspect(set, implicit) {
					got = append(got, fmt.Sprintf("%s %s: %s", f.Code, f.At, f.Message))
				}
				if len(want)+len(got) > 0 && !cmp.Equal(want, got) {
					t.Errorf("%s (-want +got):\n%s", where, cmp.Diff(want, got))
				}
			}
			check("with an implicit endpoint", &Endpoint{Labels: map[string]string{"role": "spare"}}, c.want)
			if c.without == nil {
				c.without = c.want
			}
			check("without", nil, c.without)
		})
	}
}
