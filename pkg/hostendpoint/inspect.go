// SPDX-License-Identifier: Apache-2.0

package hostendpoint

import (
	"fmt"
	"slices"

	"github.com/untracked-cni/untracked/pkg/hostif"
	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/pkg/resource"
)

// Code says what a finding is about.
type Code string

// The codes, in the words of `untracked lint`.
const (
	// HEPShadowed: another HostEndpoint of the node is about the same interface, whichever that is.
	HEPShadowed Code = "hep-shadowed"
	// UnknownTier: nobody wrote the tier that a policy is in, so it comes last.
	UnknownTier Code = "unknown-tier"
	// OverlappingTierOrder: two tiers with policies have the same order, so their names decide.
	OverlappingTierOrder Code = "overlapping-tier-order"
	// EqualOrder: so do two policies of a tier, and it matters.
	EqualOrder Code = "equal-order"
	// SelectsNothing: a policy selects no host endpoint at all.
	SelectsNothing Code = "selects-nothing"
	// NotOnThisNode: it selects none of those in force here. On a fleet that is no fault.
	NotOnThisNode Code = "not-on-this-node"
	// EmptySelector: a selector in a rule chooses no host endpoint and no network set.
	EmptySelector Code = "empty-selector"
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

// Inspect looks at all resources together. endpoints are those in force on this node; without any, which is to ask
// offline, it says nothing about this node. An implicit endpoint may be among them that has neither interfaces nor
// addresses: what it is then is not held against a policy.
func Inspect(set *resource.Set, endpoints []Endpoint) []Finding {
	i := inspection{set: set, members: newMembers(set, endpoints), endpoints: endpoints}
	i.hostEndpoints()
	ordered := inOrder(set)
	i.order(ordered)
	for _, p := range ordered {
		i.policy(p)
	}
	return i.findings
}

type inspection struct {
	set       *resource.Set
	members   *members
	endpoints []Endpoint
	findings  []Finding
}

func (i *inspection) add(code Code, at resource.Position, format string, args ...any) {
	i.findings = append(i.findings, Finding{code, at, fmt.Sprintf(format, args...)})
}

// hostEndpoints finds those that can never be in force: another one of a smaller name is chosen by all that chooses it.
func (i *inspection) hostEndpoints() {
	for n := range i.set.HostEndpoints {
		h := &i.set.HostEndpoints[n]
		mine := selectorsOf(h)
		for before := range n {
			o := &i.set.HostEndpoints[before]
			theirs := selectorsOf(o)
			covered := !slices.ContainsFunc(mine, func(s hostif.Selector) bool { return !slices.Contains(theirs, s) })
			if h.Node == o.Node && covered {
				i.add(HEPShadowed, h.At, "HostEndpoint %s is never in force: %s is about the same interface of node %s, and its name sorts before", h.Name, o.Name, h.Node)
				break
			}
		}
	}
}

// order finds places that names decide about. The policies are in order.
func (i *inspection) order(ordered []*resource.Policy) {
	for n, p := range ordered {
		here := tierOf(i.set, p.Tier)
		if n == 0 || ordered[n-1].Tier != p.Tier {
			if here.unknown {
				i.add(UnknownTier, p.At, "policy %s is in tier %s, which is not written: it comes behind all others", p.Name, p.Tier)
			}
			if n > 0 {
				before := tierOf(i.set, ordered[n-1].Tier)
				if !here.unknown && before.unknown == here.unknown && before.order == here.order {
					i.add(OverlappingTierOrder, i.tierAt(p), "tiers %s and %s have the same order: %s comes first by its name", before.name, here.name, before.name)
				}
			}
		}
		for _, before := range slices.Backward(ordered[:n]) {
			if before.Tier != p.Tier || place(before.Order) != place(p.Order) {
				break
			}
			if i.orderMatters(before, p) {
				i.add(EqualOrder, p.At, "policies %s and %s of tier %s have the same order and do different things: %s comes first by its name", before.Name, p.Name, p.Tier, before.Name)
				break
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

// orderMatters reports whether two policies are about the same direction of the same endpoint, and do not do the same.
func (i *inspection) orderMatters(a, b *resource.Policy) bool {
	meet := slices.ContainsFunc(i.members.list, func(one member) bool {
		return one.endpoint && a.Selector.Matches(one.labels) && b.Selector.Matches(one.labels)
	})
	return meet && (differ(a.RulesOf(policy.Ingress), b.RulesOf(policy.Ingress)) || differ(a.RulesOf(policy.Egress), b.RulesOf(policy.Egress)))
}

func differ(a, b []resource.Rule) bool {
	return slices.ContainsFunc(a, func(x resource.Rule) bool {
		return x.Action != policy.Log && slices.ContainsFunc(b, func(y resource.Rule) bool { return y.Action != policy.Log && y.Action != x.Action })
	})
}

func (i *inspection) policy(p *resource.Policy) {
	selected := slices.ContainsFunc(i.members.list, func(one member) bool { return one.endpoint && p.Selector.Matches(one.labels) })
	here := slices.ContainsFunc(i.endpoints, func(e Endpoint) bool { return p.Selector.Matches(e.Labels) })
	switch {
	case !selected:
		i.add(SelectsNothing, p.SelectorAt, "policy %s selects no host endpoint: %s", p.Name, p.Selector)
	case !here && len(i.endpoints) > 0:
		i.add(NotOnThisNode, p.SelectorAt, "policy %s selects no host endpoint of this node: %s", p.Name, p.Selector)
	}
	for _, direction := range []policy.Direction{policy.Ingress, policy.Egress} {
		rules := p.RulesOf(direction)
		for n := range rules {
			r := &rules[n]
			for _, side := range []struct {
				name   string
				entity *resource.Entity
			}{{"source", &r.Source}, {"destination", &r.Destination}} {
				s := sideInspection{inspection: i, p: p, r: r, e: side.entity, name: ruleName(p, direction, n) + ": its " + side.name}
				s.selectors()
				s.portNames(side.entity.Ports, "so these match nothing")
				s.portNames(side.entity.NotPorts, "so these exclude nothing")
			}
		}
	}
}

// sideInspection looks at one side of a rule.
type sideInspection struct {
	*inspection
	p    *resource.Policy
	r    *resource.Rule
	e    *resource.Entity
	name string
}

func (s *sideInspection) selectors() {
	e := s.e
	if e.Selector != nil {
		s.chosen(e.SelectorAt, "selector", e.Selector.String(), "so the rule matches nothing", func(one *member) bool { return e.Selector.Matches(one.labels) })
	}
	if e.NotSelector != nil {
		s.chosen(e.NotSelectorAt, "notSelector", e.NotSelector.String(), "so it excludes nothing", func(one *member) bool { return e.NotSelector.Matches(one.labels) })
	}
	if e.Selector != nil && e.NotSelector != nil {
		matched := func(one member) bool { return e.Selector.Matches(one.labels) }
		if slices.ContainsFunc(s.members.list, matched) && !slices.ContainsFunc(s.members.list, func(one member) bool { return one.chosenBy(e) }) {
			s.add(EmptySelector, e.NotSelectorAt, "%s notSelector excludes everything that the selector chooses, so the rule matches nothing", s.name)
		}
	}
}

func (s *sideInspection) chosen(at resource.Position, field, text, so string, chosen func(*member) bool) {
	var found []*member
	for n := range s.members.list {
		if one := &s.members.list[n]; chosen(one) {
			found = append(found, one)
		}
	}
	if len(found) == 0 {
		s.add(EmptySelector, at, "%s %s %s chooses no host endpoint and no network set, %s", s.name, field, text, so)
	} else if s.unknownHere(found) {
		s.add(NoAddress, at, "%s %s %s chooses only host endpoints of other nodes, and none of them has expectedIPs, %s", s.name, field, text, so)
	}
}

func (s *sideInspection) portNames(list *resource.Ports, so string) {
	if list == nil {
		return
	}
	for _, name := range list.Names {
		var found []*member
		defined := false
		for n := range s.members.list {
			one := &s.members.list[n]
			defined = defined || one.written != nil && slices.ContainsFunc(one.written.Ports, func(p resource.NamedPort) bool { return p.Name == name })
			if len(one.portsNamed(s.r, s.e, []string{name})) > 0 {
				found = append(found, one)
			}
		}
		switch {
		case !defined:
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
	var subjects []member
	for _, one := range s.members.list {
		if one.endpoint && s.p.Selector.Matches(one.labels) {
			subjects = append(subjects, one)
		}
	}
	known := func(one *member) bool {
		return one.written == nil || !one.nets.Empty() || slices.ContainsFunc(subjects, func(subject member) bool {
			return subject.written == nil || subject.written.Node == one.written.Node
		})
	}
	return len(subjects) > 0 && !slices.ContainsFunc(found, known)
}
