// SPDX-License-Identifier: Apache-2.0

package lint

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/untracked-cni/untracked/pkg/compiler"
	"github.com/untracked-cni/untracked/pkg/config"
	"github.com/untracked-cni/untracked/pkg/netset"
	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/pkg/resource"
)

// id names a rule as it is written: of a policy or, without a tier, of a shorthand annotation.
type id struct {
	tier, policy string
	direction    policy.Direction
	index        int
}

// subject is a written rule with what is found out about it. It may stand in several profiles, and in each of them as
// several rules.
type subject struct {
	id
	name string
	at   resource.Position
	// written is nil for a shorthand annotation's rule.
	written *resource.Rule
	action  policy.Action
	open    bool // see unit.isOpen

	fate    compiler.Fate
	seen    bool // fate is valid
	by      []shadow
	byIn    *profile // by is about this one
	answers answers
	// failsafe are the failsafe ports that a Deny names, catchAll says that an Allow is one for everything.
	failsafe []policy.PortRange
	catchAll bool
}

// shadow is a rule that takes packets away.
type shadow struct {
	words  string
	action policy.Action
}

// answers says what becomes of the answers to what an Allow allows.
type answers struct {
	missing bool        // some of them are not mentioned
	denied  string      // the name of a rule that denies some
	mirror  policy.Rule // would allow them
}

// rules finds what is wrong with single rules. What is wrong at a place that is reported already is no rule's fault.
func (u *unit) rules(reported map[resource.Position]bool) {
	e := examination{unit: u, subjects: map[id]*subject{}}
	profiles := u.profiles()
	e.share = u.budget / 4 / max(2*len(profiles), 1)
	e.spare = u.budget - 2*len(profiles)*e.share
	for _, p := range profiles {
		e.profile(&p)
	}
	if e.incomplete {
		at := u.place()
		at.Line, at.Column = 1, 1
		u.warn(at, NotExamined, "to examine all rules would take too long: whether a packet gets to them, and whether its answers are allowed, is not known of some; it may be if fewer resources are checked at once")
	}
	for _, s := range slices.SortedFunc(maps.Values(e.subjects), func(a, b *subject) int { return strings.Compare(a.name, b.name) }) {
		if !s.isEcho() {
			u.report(s, s.written != nil && mentions(s.written, reported))
		}
	}
}

func mentions(r *resource.Rule, places map[resource.Position]bool) bool {
	for _, e := range r.Sides() {
		if places[e.SelectorAt] || places[e.NotSelectorAt] || e.Ports != nil && places[e.Ports.At] || e.NotPorts != nil && places[e.NotPorts.At] {
			return true
		}
	}
	return false
}

// examination collects what the profiles say about each written rule.
type examination struct {
	*unit
	subjects map[id]*subject

	// Each direction of each profile has an even share of a part of the budget; spare is the rest, for those that are
	// harder. incomplete says that it was not enough.
	share, spare int
	incomplete   bool
}

// reachability is the compiler's. What there was no time for is Unknown.
func (e *examination) reachability(list []policy.Rule) ([]compiler.Reach, error) {
	for budget := e.share; ; e.spare -= budget {
		if e.spare -= outlay(list); e.spare < 0 {
			e.incomplete = true
			return make([]compiler.Reach, len(list)), nil
		}
		reach, err := compiler.Reachability(list, budget)
		unknown := false
		for i, r := range reach {
			unknown = unknown || r.Fate == compiler.Unknown && list[i].Action != policy.Failsafe // about which nothing is said
		}
		if err != nil || !unknown {
			return reach, err
		}
		if e.spare/2 <= budget {
			e.incomplete = true
			return reach, nil
		}
		budget = e.spare / 2
	}
}

// outlay is, in the steps of [compiler.Reachability], about what it takes that does not count: to sort out what the rules
// tell apart, and to look at it for each of them.
func outlay(list []policy.Rule) int {
	const perList, perPair, perRange = 1 << 16, 2, 16
	steps := perList + perPair*len(list)*len(list)
	seen := map[*netset.Set]bool{nil: true}
	for i := range list {
		for _, s := range []*netset.Set{list[i].Source.Nets, list[i].Source.NotNets, list[i].Destination.Nets, list[i].Destination.NotNets} {
			if !seen[s] {
				seen[s] = true
				steps += perRange * (len(s.Ranges4()) + len(s.Ranges6()))
			}
		}
	}
	return steps
}

// subject returns nil for a failsafe rule, which nobody wrote.
func (e *examination) subject(r *policy.Rule, d policy.Direction) *subject {
	if r.Action == policy.Failsafe {
		return nil
	}
	key := id{r.Tier, r.Policy, d, r.Index}
	if s, ok := e.subjects[key]; ok {
		return s
	}
	s := &subject{id: key, action: r.Action}
	e.subjects[key] = s
	if r.Tier == "" {
		s.name = fmt.Sprintf("%s%s, %s rule %d", config.Prefix, r.Policy, d, r.Index)
		s.at = e.entry.at(r.Policy)
		return s
	}
	at, _ := slices.BinarySearchFunc(e.set.Policies, r.Policy, func(p resource.Policy, name string) int { return strings.Compare(p.Name, name) })
	p := &e.set.Policies[at]
	s.written = &p.RulesOf(d)[r.Index]
	s.name, s.at, s.open = p.RuleName(d, r.Index), s.written.At, e.isOpen(s.written)
	return s
}

func (e *examination) profile(p *profile) {
	for _, d := range []policy.Direction{policy.Ingress, policy.Egress} {
		rules := p.rules.Of(d)
		for i := range rules {
			if s := e.subject(&rules[i], d); s != nil {
				s.inspect(&rules[i], e.failsafes.Of(d))
			}
		}
		e.direction(p, d)
	}
}

// direction finds out which rules of a direction are reached, and whether they allow the answers to what the other
// direction allows.
func (e *examination) direction(p *profile, d policy.Direction) {
	list := slices.Clone(p.rules.Of(d))
	// What an open rule takes is not known, so nothing is taken for granted: it takes nothing, and behind the tier
	// that an open Pass is in, nothing is said.
	known := len(list)
	for i := range list {
		if s := e.subject(&list[i], d); s != nil && s.open {
			if list[i].Action == policy.Pass {
				known = min(known, policy.Next(list, i))
			}
			list[i].Action = policy.Log
		}
	}
	// The mirrors of the other direction's Allow rules are put behind all rules, as auto-return does, but let the
	// packets go on: they are there only to see whether anything gets to them.
	written := len(list)
	var allows []*subject
	if known == written {
		list, allows = e.appendMirrors(list, p, d)
	}
	if !slices.ContainsFunc(list, func(r policy.Rule) bool { return r.Action != policy.Failsafe }) {
		return // nobody wrote anything for this direction
	}
	reach, err := e.reachability(list)
	if err != nil {
		return // Compile's error, which is reported
	}
	rules := p.rules.Of(d)
	for i := range rules {
		s := e.subject(&rules[i], d)
		switch {
		case s == nil:
		case s.open || i >= known:
			s.merge(compiler.Reach{Fate: compiler.Unknown}, nil, p)
		default:
			s.merge(reach[i], e.shadows(rules, reach[i].By, d), p)
		}
	}
	e.answers(list, reach, written, allows, d)
}

// merge takes another of the rules into account that a written one stands for: it is reached if any of them is.
func (s *subject) merge(r compiler.Reach, by []shadow, p *profile) {
	strength := map[compiler.Fate]int{compiler.Impossible: 0, compiler.Shadowed: 1, compiler.Unknown: 2, compiler.Reachable: 3}
	if !s.seen || strength[r.Fate] > strength[s.fate] {
		s.seen, s.fate = true, r.Fate
	}
	if r.Fate == compiler.Shadowed && (s.byIn == nil || s.byIn == p) {
		s.byIn = p
		for _, one := range by {
			if !slices.Contains(s.by, one) {
				s.by = append(s.by, one)
			}
		}
	}
}

func (e *examination) shadows(rules []policy.Rule, by []int, d policy.Direction) []shadow {
	out := make([]shadow, len(by))
	for n, i := range by {
		out[n] = shadow{e.nameOf(&rules[i], d), rules[i].Action}
	}
	return out
}

func (e *examination) nameOf(r *policy.Rule, d policy.Direction) string {
	s := e.subject(r, d)
	switch {
	case s == nil:
		return fmt.Sprintf("the failsafe rule %s (%s)", r.Name(), r.Match())
	case s.written == nil:
		return s.name
	}
	return fmt.Sprintf("%s (%s at %s)", s.name, r.Action, r.Origin)
}

// inspect looks at a rule by itself, and at the failsafe rules before it.
func (s *subject) inspect(r *policy.Rule, failsafes []policy.Rule) {
	switch r.Action {
	case policy.Allow:
		s.catchAll = s.catchAll || isCatchAll(r)
	case policy.Deny:
		for i := range failsafes {
			s.failsafe = append(s.failsafe, sharedPorts(r, &failsafes[i])...)
		}
	}
}

// isEcho reports whether a rule is the second that a shorthand makes of one port, for the answers: what is wrong with
// it is said about the first.
func (s *subject) isEcho() bool {
	switch {
	case s.written != nil:
		return false
	case s.direction == policy.Egress:
		return s.policy == policy.PortsAnnotation
	}
	return s.policy == policy.RemotePortsAnnotation
}

// isCatchAll reports whether nothing that matters narrows a rule: it is about all addresses of a family and all ports.
func isCatchAll(r *policy.Rule) bool {
	if r.Protocol != nil && *r.Protocol != policy.TCP && *r.Protocol != policy.UDP || r.ICMP != nil || r.NotICMP != nil {
		return false
	}
	for _, e := range []*policy.Entity{&r.Source, &r.Destination} {
		if e.NotNets != nil || e.NotPorts != nil || e.Nets != nil && !coversFamily(e.Nets) || e.Ports != nil && !coversPorts(e.Ports) {
			return false
		}
	}
	return true
}

func coversFamily(s *netset.Set) bool {
	return slices.Equal(s.Ranges4(), []netset.Range4{{Lo: 0, Hi: math.MaxUint32}}) ||
		slices.Equal(s.Ranges6(), []netset.Range6{{Hi: netset.Max6}})
}

func coversPorts(ports []policy.PortRange) bool {
	all := policy.NormalizePorts(ports)
	return len(all) == 1 && all[0].First <= 1 && all[0].Last == math.MaxUint16
}

// sharedPorts are the ports that a rule asks for by number and a failsafe rule has. Who denies an address whatever the
// port does not expect failsafe ports to be denied.
func sharedPorts(r, failsafe *policy.Rule) []policy.PortRange {
	if r.Protocol != nil && *r.Protocol != *failsafe.Protocol || r.NotProtocol != nil && *r.NotProtocol == *failsafe.Protocol {
		return nil
	}
	var out []policy.PortRange
	for _, side := range [][2]*policy.Entity{{&r.Source, &failsafe.Source}, {&r.Destination, &failsafe.Destination}} {
		mine, theirs := side[0], side[1]
		if mine.Nets != nil && theirs.Nets != nil && mine.Nets.Intersect(theirs.Nets).Empty() {
			return nil
		}
		for _, a := range mine.Ports {
			for _, b := range theirs.Ports {
				if both := (policy.PortRange{First: max(a.First, b.First), Last: min(a.Last, b.Last)}); both.First <= both.Last {
					out = append(out, both)
				}
			}
		}
	}
	return out
}

// report says what was found out about a rule. explained: the cause of why it matches nothing is reported.
func (u *unit) report(s *subject, explained bool) {
	if s.catchAll {
		u.warn(s.at, CatchAllUntracked, "%s makes everything untracked: Services, masquerading and stateful firewall rules do not work without connection tracking; name the ports that are meant", s.name)
	}
	if len(s.failsafe) > 0 {
		u.warn(s.at, FailsafeDenied, "%s names the failsafe %s, which is never denied; take it off the failsafe list if it shall be, or off the rule", s.name, policy.PortWords(policy.NormalizePorts(s.failsafe)))
	}
	switch s.fate {
	case compiler.Impossible:
		if !explained {
			u.warn(s.at, ImpossibleRule, "%s matches no packet: its conditions exclude each other", s.name)
		}
	case compiler.Shadowed:
		onlyFailsafe := !slices.ContainsFunc(s.by, func(by shadow) bool { return by.action != policy.Failsafe })
		if len(s.failsafe) == 0 || !onlyFailsafe {
			u.warn(s.at, ShadowedRule, "%s can never match: %s", s.name, shadowWords(s.by))
		}
	default:
		u.reportAnswers(s)
	}
}

func shadowWords(by []shadow) string {
	const shown = 4
	if len(by) == 1 && by[0].action == policy.Pass {
		return by[0].words + " passes all its packets over it"
	}
	if len(by) == 1 {
		return by[0].words + " takes all its packets first"
	}
	var names []string
	for _, b := range by[:min(len(by), shown)] {
		names = append(names, b.words)
	}
	if more := len(by) - shown; more > 0 {
		names = append(names, fmt.Sprintf("%d more", more))
	}
	return strings.Join(names[:len(names)-1], ", ") + " and " + names[len(names)-1] + " together take all its packets first"
}
