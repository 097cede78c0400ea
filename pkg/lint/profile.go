// SPDX-License-Identifier: Apache-2.0

package lint

import (
	"fmt"
	"slices"

	"github.com/untracked-cni/untracked/pkg/compiler"
	"github.com/untracked-cni/untracked/pkg/hostendpoint"
	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/pkg/resource"
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
	expander := hostendpoint.NewExpander(u.set, nil)
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
			written, err := expander.Rules(labels)
			if rules, ok := u.whole(written, err, s); ok && u.checkSize(name, rules) {
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
	for i := range u.set.Policies {
		if !inForce[i] {
			written, err := expander.Policy(&u.set.Policies[i])
			if rules, ok := u.whole(written, err, policy.Shorthand{}); ok {
				out = append(out, profile{"", rules})
			}
		}
	}
	return out
}

// whole puts what stands before and behind the written rules around them, as package node does.
func (u *unit) whole(written policy.Rules, err error, s policy.Shorthand) (policy.Rules, bool) {
	for _, e := range resource.Errors(err) {
		u.add(e.Position, Error, TooLarge, "%s", e.Problem)
	}
	return policy.Join(u.failsafes, s.Around(written)), err == nil
}

// place is where a problem with the policy as a whole is.
func (u *unit) place() resource.Position {
	if u.entry != nil {
		return resource.Position{File: u.entry.Name}
	}
	return resource.Position{File: u.set.Policies[0].At.File}
}

// checkSize finds what the datapath will refuse. It returns false if there is such a thing.
func (u *unit) checkSize(name string, rules policy.Rules) bool {
	rules.Ingress, rules.Egress = slices.Clone(rules.Ingress), slices.Clone(rules.Egress)
	if u.autoReturn {
		rules.AddReturns()
	}
	image, err := compiler.Compile(rules.Ingress)
	if err != nil {
		u.add(u.place(), Error, TooLarge, "the policy of %s cannot be compiled: %v", name, err)
	} else {
		t := Tables{name, len(rules.Ingress), image.Method}
		u.tables = append(u.tables, t)
		if image.Layout.Words > 1 { // with one it would be as quick by combined tables
			u.add(u.place(), Warning, SlowLookup, "for %s, an arriving packet takes up to %d reads from the lookup tables, more with each further rule, since %s", name, t.Loads, t.Reason)
		}
	}
	if n := len(rules.Egress); n > compiler.MaxRules {
		u.add(u.place(), Error, TooLarge, "the policy of %s has %d egress rules, at most %d are supported", name, n, compiler.MaxRules)
		return false
	}
	return err == nil
}

// isOpen reports whether it depends on a node what the rule means: on the addresses of host endpoints that have none
// written, which are learned from their interfaces.
func (u *unit) isOpen(r *resource.Rule) bool {
	depends := false // most do not
	for _, e := range r.Sides() {
		depends = depends || e.Selector != nil || e.NotSelector != nil || e.Ports != nil && len(e.Ports.Names) > 0 || e.NotPorts != nil && len(e.NotPorts.Names) > 0
	}
	if !depends {
		return false
	}
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
