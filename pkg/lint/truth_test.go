// SPDX-License-Identifier: Apache-2.0

package lint

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/untracked-cni/untracked/pkg/hostendpoint"
	"github.com/untracked-cni/untracked/pkg/netset"
	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/pkg/resource"
	"github.com/untracked-cni/untracked/pkg/selector"
)

// What is said about rules holds on every node, whatever addresses its interfaces have: random resources, random
// addresses, and all the packets of a small world.
func TestWarningsAreTrue(t *testing.T) {
	var never, answered int
	for seed := range uint64(150) {
		w := world{Rand: rand.New(rand.NewPCG(seed, 7))}
		set := w.set()
		u := newUnit()
		u.set, u.failsafes, u.autoReturn = set, policy.Rules{}, false
		u.check()
		warned := map[resource.Position][]Code{}
		for _, f := range u.findings {
			at := resource.Position{File: f.File, Line: f.Line, Column: f.Column}
			warned[at] = append(warned[at], f.Code)
		}
		openPass := slices.ContainsFunc(set.Policies, func(p resource.Policy) bool {
			return slices.ContainsFunc(slices.Concat(p.IngressRules, p.EgressRules), func(r resource.Rule) bool { return r.Action == policy.Pass && u.isOpen(&r) })
		})

		endpoints := w.endpoints(set)
		packets := w.packets(endpoints)
		expander := hostendpoint.NewExpander(set, endpoints)
		for e := range endpoints {
			rules, err := expander.Rules(endpoints[e].Labels)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range []policy.Direction{policy.Ingress, policy.Egress} {
				list, back := rules.Of(d), rules.Of(opposite(d))
				for i := range packets {
					decides, via := policy.Walk(list, &packets[i])
					for _, n := range append(via, decides) {
						if n == policy.NoRule {
							continue
						}
						r := written(set, &list[n], d)
						if codes := warned[r.At]; slices.Contains(codes, ShadowedRule) || slices.Contains(codes, ImpossibleRule) {
							t.Fatalf("seed %d: %s %s is said to be %v, and yet it is reached by %+v", seed, d, list[n].Name(), codes, packets[i])
						}
						never++
					}
					if decides == policy.NoRule || list[decides].Action != policy.Allow || openPass {
						continue
					}
					r := written(set, &list[decides], d)
					if u.isOpen(r) || slices.Contains(warned[r.At], MissingReturn) {
						continue
					}
					answer := reversed(packets[i])
					if by, _ := policy.Walk(back, &answer); by == policy.NoRule {
						t.Fatalf("seed %d: %s %s allows %+v, and nothing is said about its answers, which no rule is about", seed, d, list[decides].Name(), packets[i])
					}
					answered++
				}
			}
		}
	}
	t.Logf("%d rules met, %d packets with answers", never, answered)
	if never < 100_000 || answered < 10_000 {
		t.Errorf("only %d rules met, only %d packets with answers", never, answered)
	}
}

func written(set *resource.Set, r *policy.Rule, d policy.Direction) *resource.Rule {
	at := slices.IndexFunc(set.Policies, func(p resource.Policy) bool { return p.Name == r.Policy })
	return &set.Policies[at].RulesOf(d)[r.Index]
}

func reversed(p policy.Packet) policy.Packet {
	p.Src, p.Dst = p.Dst, p.Src
	p.SrcPort, p.DstPort = p.DstPort, p.SrcPort
	return p
}

// world makes resources of few labels, addresses and ports, so that they meet.
type world struct {
	*rand.Rand
	line int
}

func (w *world) at() resource.Position {
	w.line++
	return resource.Position{File: "world.yaml", Line: w.line, Column: 1}
}

func (w *world) pick(from ...string) string { return from[w.IntN(len(from))] }

func (w *world) meta(name string) resource.Meta {
	return resource.Meta{Name: name, At: w.at(), Labels: map[string]string{"role": w.pick("a", "b"), "x": w.pick("1", "2", "3")}}
}

func (w *world) selector() *selector.Selector {
	s, err := selector.Parse(w.pick(`role == "a"`, `role == "b"`, `x == "1"`, `x != "2"`, `all()`))
	if err != nil {
		panic(err)
	}
	return s
}

func (w *world) set() *resource.Set {
	var s resource.Set
	for i := range 3 {
		h := resource.HostEndpoint{Meta: w.meta(fmt.Sprint("h", i)), Node: "node", InterfaceName: fmt.Sprint("eth", i)}
		if w.IntN(3) > 0 {
			h.ExpectedIPs = []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})}
		}
		if w.IntN(2) == 0 {
			h.Ports = []resource.NamedPort{{Name: "web", Protocol: policy.TCP, Port: uint16(80 + w.IntN(2))}}
		}
		s.HostEndpoints = append(s.HostEndpoints, h)
	}
	s.NetworkSets = []resource.NetworkSet{{Meta: w.meta("s"), Nets: netset.Of(netip.MustParsePrefix("10.1.0.0/16"))}}
	for i := range 2 {
		order := float64(w.IntN(3))
		s.Tiers = append(s.Tiers, resource.Tier{Meta: w.meta(fmt.Sprint("t", i)), Order: &order})
	}
	for i := range 4 {
		order := float64(w.IntN(3))
		p := resource.Policy{Meta: w.meta(fmt.Sprint("p", i)), Tier: w.pick("t0", "t1"), Order: &order, Selector: w.selector(), SelectorAt: w.at(), Ingress: true, Egress: true}
		for range w.IntN(4) {
			r := w.rule()
			p.IngressRules = append(p.IngressRules, r)
			if w.IntN(2) == 0 { // as a person would mirror it
				r.At, r.Source, r.Destination = w.at(), r.Destination, r.Source
				p.EgressRules = append(p.EgressRules, r)
			}
			if w.IntN(3) == 0 {
				p.EgressRules = append(p.EgressRules, w.rule())
			}
		}
		s.Policies = append(s.Policies, p)
	}
	return &s
}

func (w *world) rule() resource.Rule {
	r := resource.Rule{At: w.at(), Action: policy.Action([]policy.Action{policy.Allow, policy.Allow, policy.Deny, policy.Deny, policy.Log, policy.Pass, policy.Pass}[w.IntN(7)])}
	if w.IntN(3) > 0 {
		r.Protocol = new([]uint8{policy.TCP, policy.UDP}[w.IntN(2)])
	}
	for _, e := range []*resource.Entity{&r.Source, &r.Destination} {
		if w.IntN(4) == 0 {
			e.Nets = []netip.Prefix{netip.MustParsePrefix(w.pick("10.0.0.0/8", "10.0.0.0/16", "10.0.0.0/9", "0.0.0.0/0"))}
		}
		if w.IntN(6) == 0 {
			e.NotNets = []netip.Prefix{netip.MustParsePrefix(w.pick("10.1.0.0/16", "10.0.0.0/16"))}
		}
		if w.IntN(5) == 0 {
			e.Selector, e.SelectorAt = w.selector(), w.at()
		}
		if w.IntN(8) == 0 {
			e.NotSelector, e.NotSelectorAt = w.selector(), w.at()
		}
		if r.Protocol != nil && w.IntN(5) == 0 {
			e.Ports = &resource.Ports{At: w.at(), Ranges: []policy.PortRange{{First: 80, Last: uint16(80 + w.IntN(3))}}}
			if w.IntN(3) == 0 {
				e.Ports.Ranges, e.Ports.Names = nil, []string{"web"}
			}
		}
	}
	return r
}

// endpoints are the node's, with addresses that nobody could have known.
func (w *world) endpoints(set *resource.Set) []hostendpoint.Endpoint {
	var out []hostendpoint.Endpoint
	for i := range set.HostEndpoints {
		h := &set.HostEndpoints[i]
		e := hostendpoint.Endpoint{Name: h.Name, Resource: h, Labels: h.Labels, Addresses: h.ExpectedIPs}
		if len(e.Addresses) == 0 {
			e.Addresses = []netip.Addr{netip.MustParseAddr(w.pick("10.0.7.7", "10.1.7.7", "10.200.7.7", "192.0.2.7", "2001:db8::7"))}
		}
		out = append(out, e)
	}
	return out
}

func (w *world) packets(endpoints []hostendpoint.Endpoint) []policy.Packet {
	addresses := []netip.Addr{}
	for _, a := range []string{"10.0.9.9", "10.1.9.9", "10.200.9.9", "192.0.2.9", "2001:db8::9"} {
		addresses = append(addresses, netip.MustParseAddr(a))
	}
	for _, e := range endpoints {
		addresses = append(addresses, e.Addresses...)
	}
	var out []policy.Packet
	for _, src := range addresses {
		for _, dst := range addresses {
			if src.Is4() != dst.Is4() {
				continue
			}
			for _, protocol := range []uint8{policy.TCP, policy.UDP, 47} {
				p := policy.Packet{Src: src, Dst: dst, Protocol: protocol, HopLimit: 64}
				out = append(out, p)
				if p.HasL4 = policy.HasPorts(protocol); !p.HasL4 {
					continue
				}
				for _, p.SrcPort = range []uint16{80, 81, 82, 40000} {
					for _, p.DstPort = range []uint16{80, 81, 82, 40000} {
						out = append(out, p)
					}
				}
			}
		}
	}
	return out
}
