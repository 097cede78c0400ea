// SPDX-License-Identifier: Apache-2.0

package lint

import (
	"bytes"

	"github.com/untracked-cni/untracked/pkg/hostendpoint"
	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/pkg/resource"
	"github.com/untracked-cni/untracked/pkg/selector"
)

// inspect looks at how resources fit together. It returns the places it has findings at.
func (u *unit) inspect() map[resource.Position]bool {
	var implicit *hostendpoint.Endpoint
	if u.entry != nil {
		implicit = &hostendpoint.Endpoint{Name: hostendpoint.Implicit, Labels: u.entry.Labels}
	}
	places := map[resource.Position]bool{}
	for _, f := range hostendpoint.Inspect(u.set, implicit) {
		places[f.At] = true
		u.warn(f.At, f.Code, "%s", f.Message)
	}
	return places
}

// selectors finds those that select everything.
func (u *unit) selectors() {
	for i := range u.set.Policies {
		p := &u.set.Policies[i]
		switch {
		case p.SelectorAt == p.At:
			u.warn(p.At, EmptySelector, "policy %s has no selector, so it applies to every host endpoint; write all() if that is meant", p.Name)
		case p.Selector.IsAll() && u.isEmptyText(p.SelectorAt):
			u.warn(p.SelectorAt, EmptySelector, "policy %s has an empty selector, so it applies to every host endpoint; write all() if that is meant", p.Name)
		}
		for _, d := range []policy.Direction{policy.Ingress, policy.Egress} {
			written := p.RulesOf(d)
			for n := range written {
				for side, e := range written[n].Sides() {
					name := p.RuleName(d, n) + ": its " + side
					u.ruleSelector(e.Selector, e.SelectorAt, name+" selector")
					u.ruleSelector(e.NotSelector, e.NotSelectorAt, name+" notSelector")
				}
			}
		}
	}
}

// ruleSelector looks at a selector of a rule. Who writes global() means all of them.
func (u *unit) ruleSelector(s *selector.Selector, at resource.Position, name string) {
	switch {
	case s == nil && at != (resource.Position{}):
		u.warn(at, EmptySelector, "%s is empty, so it asks for nothing, and any address will do; leave it out if that is meant", name)
	case s != nil && s.IsAll() && !s.UsesGlobal():
		u.warn(at, EmptySelector, "%s %s stands for the addresses of all host endpoints and network sets, not for any address; leave it out for any", name, s)
	}
}

func (u *unit) isEmptyText(at resource.Position) bool {
	text := u.textAt(at)
	return bytes.HasPrefix(text, []byte(`""`)) || bytes.HasPrefix(text, []byte(`''`))
}

// unusedRules finds rules that the types of their policy leave out.
func (u *unit) unusedRules() {
	for i := range u.set.Policies {
		p := &u.set.Policies[i]
		if len(p.IngressRules) > 0 && !p.Ingress {
			u.warn(p.IngressRules[0].At, UnusedRules, "policy %s has ingress rules, and no Ingress among its types: they are not in force", p.Name)
		}
		if len(p.EgressRules) > 0 && !p.Egress {
			u.warn(p.EgressRules[0].At, UnusedRules, "policy %s has egress rules, and no Egress among its types: they are not in force", p.Name)
		}
	}
}
