// SPDX-License-Identifier: Apache-2.0

package lint

import (
	"fmt"
	"slices"
	"strings"

	"github.com/untracked-cni/untracked/pkg/compiler"
	"github.com/untracked-cni/untracked/pkg/hostendpoint"
	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/pkg/resource"
	"github.com/untracked-cni/untracked/pkg/selector"
)

// profile is the rules of host endpoints that have the same ones, in the order in which they are asked, without what
// auto-return adds. A policy that no endpoint has makes a profile of its own.
type profile struct {
	// name says whose profile it is. It is empty for a policy that nobody has.
	name  string
	rules policy.Rules
}

// profiles expands each choice of policies that some endpoint makes. What it cannot expand it reports.
func (u *unit) profiles() []profile {
	var out []profile
	known := map[string]bool{}
	inForce := map[int]bool{}
	add := func(name string, labels map[string]string, s policy.Shorthand) {
		var chosen []int
		for i := range u.set.Policies {
			if u.set.Policies[i].Selector.Matches(labels) {
				chosen = append(chosen, i)
				inForce[i] = true
			}
		}
		if key := fmt.Sprint(chosen); !known[key] {
			known[key] = true
			if rules, ok := u.expand(u.set, labels, s); ok {
				u.checkSize(name, rules)
				out = append(out, profile{name, rules})
			}
		}
	}
	if u.entry != nil { // first: no other has the shorthand
		add("the implicit host endpoint", u.entry.Labels, u.shorthand)
	}
	for i := range u.set.HostEndpoints {
		h := &u.set.HostEndpoints[i]
		add("host endpoint "+h.Name, h.Labels, policy.Shorthand{})
	}
	all, _ := selector.Parse("all()")
	for i, p := range u.set.Policies {
		if !inForce[i] {
			alone := *u.set
			p.Selector = all
			alone.Policies = []resource.Policy{p}
			if rules, ok := u.expand(&alone, nil, policy.Shorthand{}); ok {
				out = append(out, profile{"", rules})
			}
		}
	}
	return out
}

// expand gives the whole list: see package node's, which this follows.
func (u *unit) expand(set *resource.Set, labels map[string]string, s policy.Shorthand) (policy.Rules, bool) {
	written, err := hostendpoint.Expand(set, nil, &hostendpoint.Endpoint{Labels: labels})
	if err != nil {
		for _, text := range strings.Split(err.Error(), "\n") {
			at, problem := u.placeIn(text)
			u.add(at, Error, TooLarge, "%s", problem)
		}
		return policy.Rules{}, false
	}
	return policy.Join(u.failsafes, s.Denies(), written, s.Allows()), true
}

// placeIn takes a rule's place from the front of a text.
func (u *unit) placeIn(text string) (resource.Position, string) {
	for i := range u.set.Policies {
		p := &u.set.Policies[i]
		for _, r := range slices.Concat(p.IngressRules, p.EgressRules) {
			if rest, ok := strings.CutPrefix(text, r.At.String()+": "); ok {
				return r.At, rest
			}
		}
	}
	return u.place(), text
}

// place is where a problem with the policy as a whole is.
func (u *unit) place() resource.Position {
	if u.entry != nil {
		return resource.Position{File: u.entry.Name}
	}
	return resource.Position{File: u.set.Policies[0].At.File}
}

// checkSize finds what the datapath will refuse.
func (u *unit) checkSize(name string, rules policy.Rules) {
	rules.Ingress, rules.Egress = slices.Clone(rules.Ingress), slices.Clone(rules.Egress)
	if u.autoReturn {
		rules.AddReturns()
	}
	if _, err := compiler.Compile(rules.Ingress); err != nil {
		u.add(u.place(), Error, TooLarge, "the policy of %s cannot be compiled: %v", name, err)
	}
	if n := len(rules.Egress); n > compiler.MaxRules {
		u.add(u.place(), Error, TooLarge, "the policy of %s has %d egress rules, at most %d are supported", name, n, compiler.MaxRules)
	}
}

// isOpen reports whether it depends on a node what the rule means: on the addresses of host endpoints that have none
// written, which are learned from their interfaces.
func (u *unit) isOpen(r *resource.Rule) bool {
	chosen := func(labels map[string]string) bool {
		return slices.ContainsFunc([]*resource.Entity{&r.Source, &r.Destination}, func(e *resource.Entity) bool {
			return e.Selector != nil && e.Selector.Matches(labels) || e.NotSelector != nil && e.NotSelector.Matches(labels)
		})
	}
	named := func(h *resource.HostEndpoint) bool {
		return slices.ContainsFunc([]*resource.Ports{r.Source.Ports, r.Source.NotPorts, r.Destination.Ports, r.Destination.NotPorts}, func(ports *resource.Ports) bool {
			return ports != nil && slices.ContainsFunc(h.Ports, func(p resource.NamedPort) bool { return slices.Contains(ports.Names, p.Name) })
		})
	}
	return u.entry != nil && chosen(u.entry.Labels) ||
		slices.ContainsFunc(u.set.HostEndpoints, func(h resource.HostEndpoint) bool {
			return len(h.ExpectedIPs) == 0 && (chosen(h.Labels) || named(&h))
		})
}
