// SPDX-License-Identifier: Apache-2.0

package lint

import (
	"slices"
	"sync"

	"github.com/untracked-cni/untracked/pkg/compiler"
	"github.com/untracked-cni/untracked/pkg/policy"
)

// appendMirrors puts the mirrors of the other direction's written Allow rules behind a list. It also returns whose
// mirrors they are. Those of open rules are looked for as they are written, and left out.
func (e *examination) appendMirrors(list []policy.Rule, p *profile, d policy.Direction) ([]policy.Rule, []*subject) {
	other := opposite(d)
	allowed := p.rules.Of(other)
	contents := sync.OnceValue(func() policy.Contents { return policy.ContentsOf(p.rules.Of(d)) })
	var allows []*subject
	for i := range allowed {
		r := &allowed[i]
		if r.Action != policy.Allow || r.Tier == "" { // what a shorthand makes is complete in itself
			continue
		}
		mirror := mirrorOf(*r)
		if c, ok := counterpartOf(mirror); ok && contents().Has(&c) {
			continue
		}
		s := e.subject(r, other)
		s.answers.mirror = mirror
		if s.open {
			s.answers.missing = s.answers.missing || !contents().Has(&mirror)
			continue
		}
		mirror.Action = policy.Log
		list = append(list, mirror)
		allows = append(allows, s)
	}
	return list, allows
}

func opposite(d policy.Direction) policy.Direction {
	if d == policy.Ingress {
		return policy.Egress
	}
	return policy.Ingress
}

// mirrorOf is what auto-return would add.
func mirrorOf(r policy.Rule) policy.Rule {
	one := policy.Rules{Ingress: []policy.Rule{r}}
	one.AddReturns()
	return one.Egress[0]
}

// counterpartOf is the other direction's rule for what sends to the same port both ways and never answers, such as
// VXLAN: unlike in the mirror, the ports do not change sides.
func counterpartOf(m policy.Rule) (policy.Rule, bool) {
	if m.Protocol == nil || *m.Protocol != policy.UDP {
		return policy.Rule{}, false
	}
	m.Source.Ports, m.Destination.Ports = m.Destination.Ports, m.Source.Ports
	m.Source.NotPorts, m.Destination.NotPorts = m.Destination.NotPorts, m.Source.NotPorts
	return m, true
}

// answers looks at the mirrors that stand in a list from a place on. Packets that get to one are mentioned by no rule.
func (e *examination) answers(list []policy.Rule, reach []compiler.Reach, from int, allows []*subject, d policy.Direction) {
	isDeny := func(i int) bool { return list[i].Action == policy.Deny }
	suspicious := false
	for n, s := range allows {
		r := reach[from+n]
		s.answers.missing = s.answers.missing || r.Fate == compiler.Reachable
		suspicious = suspicious || slices.ContainsFunc(r.By, isDeny)
	}
	if !suspicious {
		return
	}
	// Of those that rules which deny keep from the mirror, the other rules may allow all: ask again without denials.
	lenient := slices.Clone(list)
	for i := range lenient {
		if isDeny(i) {
			lenient[i].Action = policy.Log
		}
	}
	without, err := e.reachability(lenient)
	if err != nil {
		return
	}
	for n, s := range allows {
		if without[from+n].Fate != compiler.Reachable {
			continue
		}
		if by := slices.IndexFunc(reach[from+n].By, isDeny); by >= 0 && s.answers.denied == "" {
			s.answers.denied = e.nameOf(&list[reach[from+n].By[by]], d)
		}
	}
}

// reportAnswers says what becomes of the answers to an Allow.
func (u *unit) reportAnswers(s *subject) {
	other := opposite(s.direction)
	const breaks = "one leg of a flow alone in connection tracking is what stateful firewalls drop as invalid"
	switch {
	case s.answers.denied != "":
		u.warn(s.at, MissingReturn, "%s allows packets whose answers are denied by %s", s.name, s.answers.denied)
	case s.answers.missing && u.autoReturn:
		u.warn(s.at, MissingReturn, "%s has no %s rule for the answers (%s); auto-return, which is on, adds it behind all written rules", s.name, other, s.answers.mirror.Match())
	case s.answers.missing:
		u.warn(s.at, MissingReturn, "%s has no %s rule for the answers (%s), and auto-return is off: %s", s.name, other, s.answers.mirror.Match(), breaks)
	}
}
