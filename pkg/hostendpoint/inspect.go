// SPDX-License-Identifier: Apache-2.0

package hostendpoint

import (
	"fmt"
	"slices"

	"github.com/untracked-cni/untracked/pkg/hostif"
	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/pkg/resource"
	"github.com/untracked-cni/untracked/pkg/selector"
)

// Code says what a finding is about.
type Code string

// The codes of what [Inspect] finds.
const (
	// HEPShadowed: a HostEndpoint is never in force, because another one has its interface.
	HEPShadowed Code = "hep-shadowed"
	// UnknownTier: nobody wrote the tier that a policy is in, so it comes last.
	UnknownTier Code = "unknown-tier"
	// OverlappingTierOrder: names decide which of two tiers, or of two policies of a tier, comes first, and it matters.
	OverlappingTierOrder Code = "overlapping-tier-order"
	// SelectsNothing: nothing in sight has the labels that a selector asks for.
	SelectsNothing Code = "selects-nothing"
	// NoAddress: what a rule selects has no addresses where the rule is in force.
	NoAddress Code = "no-address"
	// UnknownPortName: no host endpoint that a rule can be about has a port of that name.
	UnknownPortName Code = "unknown-port-name"
)

// Finding is something that is valid and hardly meant.
type Finding struct {
	Code    Code
	At      resource.Position
	Message string
}

// Inspect looks at all resources together, as far as that can be done without a node. implicit has the labels of the
// implicit endpoint, nil if there is none. Its addresses are not known, which is not held against a policy.
func Inspect(set *resource.Set, implicit *Endpoint) []Finding {
	var endpoints []Endpoint
	if implicit != nil {
		endpoints = []Endpoint{*implicit}
	}
	i := inspection{set: set, members: newMembers(set, endpoints), chosen: map[string][]*member{}}
	ordered := inOrder(set)
	for _, p := range ordered {
		i.policies = append(i.policies, i.subjectsOf(p))
	}
	i.hostEndpoints()
	i.order()
	for n := range i.policies {
		i.policy(&i.policies[n])
	}
	return i.findings
}

type inspection struct {
	set      *resource.Set
	members  *members
	policies []subjects           // in order
	chosen   map[string][]*member // by the words for a selector
	findings []Finding
}

// subjects are a policy and the endpoints that it selects, by their place among the members.
type subjects struct {
	*resource.Policy
	endpoints []int
	// implicit says that the implicit one is among them, nodes has those of the others.
	implicit bool
	nodes    map[string]bool
}

func (i *inspection) subjectsOf(p *resource.Policy) subjects {
	s := subjects{Policy: p, nodes: map[string]bool{}}
	for n := range i.members.list {
		one := &i.members.list[n]
		switch {
		case !one.endpoint || !p.Selector.Matches(one.labels):
			continue
		case one.written == nil:
			s.implicit = true
		default:
			s.nodes[one.written.Node] = true
		}
		s.endpoints = append(s.endpoints, n)
	}
	return s
}

func (i *inspection) add(code Code, at resource.Position, format string, args ...any) {
	i.findings = append(i.findings, Finding{code, at, fmt.Sprintf(format, args...)})
}

// hostEndpoints finds those that can never be in force: another one of a smaller name is chosen by all that chooses it.
func (i *inspection) hostEndpoints() {
	type place struct {
		node     string
		selector hostif.Selector
	}
	before := map[place][]int{} // the HostEndpoints about it, in order
	for n := range i.set.HostEndpoints {
		h := &i.set.HostEndpoints[n]
		mine := selectorsOf(h)
		for k, s := range mine {
			at := place{h.Node, s}
			if k == 0 { // who has all of mine has the first
				for _, o := range before[at] {
					theirs := selectorsOf(&i.set.HostEndpoints[o])
					if !slices.ContainsFunc(mine, func(s hostif.Selector) bool { return !slices.Contains(theirs, s) }) {
						i.add(HEPShadowed, h.At, "HostEndpoint %s is never in force: %s is about the same interface of node %s, and its name sorts before", h.Name, i.set.HostEndpoints[o].Name, h.Node)
						break
					}
				}
			}
			before[at] = append(before[at], n)
		}
	}
}

// order finds places that names decide about.
func (i *inspection) order() {
	last := recent{}
	for n := range i.policies {
		p := &i.policies[n]
		here := tierOf(i.set, p.Tier)
		if n == 0 || i.policies[n-1].Tier != p.Tier {
			if here.unknown {
				i.add(UnknownTier, p.At, "policy %s is in tier %s, which is not written: it comes behind all others", p.Name, p.Tier)
			}
			if n > 0 {
				before := tierOf(i.set, i.policies[n-1].Tier)
				if !here.unknown && before.unknown == here.unknown && before.order == here.order {
					i.add(OverlappingTierOrder, i.tierAt(p.Policy), "tiers %s and %s have the same order: %s comes first by its name", before.name, here.name, before.name)
				}
			}
		}
		if n > 0 && (i.policies[n-1].Tier != p.Tier || place(i.policies[n-1].Order) != place(p.Order)) {
			clear(last)
		}
		if before := last.differing(p); before >= 0 {
			name := i.policies[before].Name
			i.add(OverlappingTierOrder, p.At, "policies %s and %s of tier %s have the same order and do different things: %s comes first by its name", name, p.Name, p.Tier, name)
		}
		last.add(p, n)
	}
}

// recent has the last policy that has a rule with an action for an endpoint.
type recent map[does]int

type does struct {
	endpoint  int
	direction policy.Direction
	action    policy.Action
}

// actions are what a policy does with packets of a direction, but for logging them.
func actions(p *resource.Policy, d policy.Direction) []policy.Action {
	var out []policy.Action
	for _, r := range p.RulesOf(d) {
		if r.Action != policy.Log && !slices.Contains(out, r.Action) {
			out = append(out, r.Action)
		}
	}
	return out
}

// differing returns the last policy that has another action than this one for the same direction of the same endpoint,
// -1 if none has.
func (last recent) differing(p *subjects) int {
	out := -1
	for _, d := range []policy.Direction{policy.Ingress, policy.Egress} {
		for _, mine := range actions(p.Policy, d) {
			for _, other := range []policy.Action{policy.Allow, policy.Deny, policy.Pass} {
				for _, e := range p.endpoints {
					if n, ok := last[does{e, d, other}]; ok && other != mine {
						out = max(out, n)
					}
				}
			}
		}
	}
	return out
}

func (last recent) add(p *subjects, n int) {
	for _, d := range []policy.Direction{policy.Ingress, policy.Egress} {
		for _, action := range actions(p.Policy, d) {
			for _, e := range p.endpoints {
				last[does{e, d, action}] = n
			}
		}
	}
}

// tierAt is where a policy's tier is written, or the policy itself where it is not.
func (i *inspection) tierAt(p *resource.Policy) resource.Position {
	for n := range i.set.Tiers {
		if i.set.Tiers[n].Name == p.Tier {
			return i.set.Tiers[n].At
		}
	}
	return p.At
}

func (i *inspection) policy(p *subjects) {
	// Without any endpoint nothing is known of what could be selected: it may be the implicit one of some conf list.
	anyEndpoint := slices.ContainsFunc(i.members.list, func(one member) bool { return one.endpoint })
	if len(p.endpoints) == 0 && anyEndpoint {
		i.add(SelectsNothing, p.SelectorAt, "policy %s selects no host endpoint: %s", p.Name, p.Selector)
	}
	for _, direction := range []policy.Direction{policy.Ingress, policy.Egress} {
		rules := p.RulesOf(direction)
		for n := range rules {
			for side, e := range rules[n].Sides() {
				s := sideInspection{inspection: i, p: p, r: &rules[n], e: e, name: p.RuleName(direction, n) + ": its " + side}
				s.selectors()
				s.portNames(e.Ports, "so these match nothing")
				s.portNames(e.NotPorts, "so these exclude nothing")
			}
		}
	}
}

// sideInspection looks at one side of a rule.
type sideInspection struct {
	*inspection
	p    *subjects
	r    *resource.Rule
	e    *resource.Entity
	name string
}

func (s *sideInspection) selectors() {
	e := s.e
	chosen := s.selector("selector", e.Selector, e.SelectorAt, "so the rule matches nothing")
	excluded := s.selector("notSelector", e.NotSelector, e.NotSelectorAt, "so it excludes nothing")
	if len(chosen) > 0 && len(excluded) > 0 && !slices.ContainsFunc(chosen, func(one *member) bool { return one.chosenBy(e) }) {
		s.add(SelectsNothing, e.NotSelectorAt, "%s notSelector excludes everything that the selector chooses, so the rule matches nothing", s.name)
	}
}

// selector returns what a selector chooses, nothing if there is none.
func (s *sideInspection) selector(field string, of *selector.Selector, at resource.Position, so string) []*member {
	if of == nil {
		return nil
	}
	text := of.String()
	found, known := s.chosen[text]
	if !known {
		for n := range s.members.list {
			if one := &s.members.list[n]; of.Matches(one.labels) {
				found = append(found, one)
			}
		}
		s.chosen[text] = found
	}
	if len(found) == 0 {
		s.add(SelectsNothing, at, "%s %s %s chooses no host endpoint and no network set, %s", s.name, field, text, so)
	} else if s.unknownHere(found) {
		s.add(NoAddress, at, "%s %s %s chooses only host endpoints of other nodes, and none of them has expectedIPs, %s", s.name, field, text, so)
	}
	return found
}

func (s *sideInspection) portNames(list *resource.Ports, so string) {
	if list == nil {
		return
	}
	for _, name := range list.Names {
		var found []*member
		for _, one := range s.members.naming[name] {
			if len(one.portsNamed(s.r, s.e, name)) > 0 {
				found = append(found, one)
			}
		}
		switch {
		case len(s.members.naming[name]) == 0:
			s.add(UnknownPortName, list.At, "%s ports have the name %s, which no HostEndpoint gives to a port, %s", s.name, name, so)
		case len(found) == 0:
			s.add(UnknownPortName, list.At, "%s ports have the name %s, which no HostEndpoint that the selector chooses gives to a port of the rule's protocol, %s", s.name, name, so)
		case s.unknownHere(found):
			s.add(NoAddress, list.At, "%s ports have the name %s, which only HostEndpoints of other nodes give to a port, and none of them has expectedIPs, %s", s.name, name, so)
		}
	}
}

// unknownHere reports whether none of the members has an address on any node where the policy is in force: they are
// HostEndpoints that have none written, and learned addresses are known on their own node only.
func (s *sideInspection) unknownHere(found []*member) bool {
	known := func(one *member) bool {
		return one.written == nil || !one.nets.Empty() || s.p.implicit || s.p.nodes[one.written.Node]
	}
	return len(s.p.endpoints) > 0 && !slices.ContainsFunc(found, known)
}
