// SPDX-License-Identifier: Apache-2.0

package hostendpoint

import (
	"errors"
	"fmt"

	"github.com/untracked-cni/untracked/pkg/netset"
	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/pkg/resource"
)

// maxParts bounds what one written rule may become.
const maxParts = 1024

// Expand returns the rules of one of a node's endpoints, in order: what the policies that select it say. A written
// rule with port names may become several, which share its tier, policy and index and are disjoint: no packet matches
// two of them. A rule that can match nothing at present is there all the same, so that listings show it.
//
// The only errors are about rules that would become too many; they begin with the rule's place.
func Expand(set *resource.Set, endpoints []Endpoint, e *Endpoint) (policy.Rules, error) {
	m := newMembers(set, endpoints)
	var out policy.Rules
	var errs []error
	for _, p := range inOrder(set) {
		if !p.Selector.Matches(e.Labels) {
			continue
		}
		for _, direction := range []policy.Direction{policy.Ingress, policy.Egress} {
			written := p.RulesOf(direction)
			for i := range written {
				rules, err := m.expand(p, direction, i, &written[i])
				if err != nil {
					errs = append(errs, err)
				}
				if direction == policy.Ingress {
					out.Ingress = append(out.Ingress, rules...)
				} else {
					out.Egress = append(out.Egress, rules...)
				}
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		return policy.Rules{}, err
	}
	return out, nil
}

// part is one of the disjoint parts that one side of a rule falls into.
type part struct {
	protocol *uint8 // nil for the rule's own
	policy.Entity
}

func (m *members) expand(p *resource.Policy, d policy.Direction, index int, r *resource.Rule) ([]policy.Rule, error) {
	tooMany := func() ([]policy.Rule, error) {
		return nil, fmt.Errorf("%s: %s: its port names stand for so many different ports that it becomes more than %d rules; name fewer, write numbers, or narrow its selectors",
			r.At, ruleName(p, d, index), maxParts)
	}
	sources, few := m.parts(r, &r.Source)
	if !few {
		return tooMany()
	}
	destinations, few := m.parts(r, &r.Destination)
	if !few {
		return tooMany()
	}
	whole := policy.Rule{
		Tier: p.Tier, Policy: p.Name, Index: index, Origin: origin(r.At), Action: r.Action, IPVersion: r.IPVersion,
		Protocol: r.Protocol, NotProtocol: r.NotProtocol, ICMP: r.ICMP, NotICMP: r.NotICMP,
	}
	var out []policy.Rule
	for _, source := range sources {
		for _, destination := range destinations {
			one, ok := combine(whole, source, destination)
			if !ok {
				continue
			}
			if len(out) == maxParts {
				return tooMany()
			}
			out = append(out, one)
		}
	}
	if out == nil { // each end has another protocol
		whole.Source, whole.Destination = sources[0].Entity, destinations[0].Entity
		whole.Destination.Nets, whole.Destination.NetsName = new(netset.Set), ""
		out = append(out, whole)
	}
	return out, nil
}

// ruleName is how messages call a written rule.
func ruleName(p *resource.Policy, d policy.Direction, index int) string {
	return fmt.Sprintf("policy %s, %s rule %d", p.Name, d, index)
}

func origin(at resource.Position) string {
	if at.Line == 0 {
		return at.File
	}
	return fmt.Sprintf("%s:%d", at.File, at.Line)
}

func combine(r policy.Rule, source, destination part) (policy.Rule, bool) {
	r.Source, r.Destination = source.Entity, destination.Entity
	protocol, ok := common(source.protocol, destination.protocol)
	if protocol != nil { // which is the rule's, or one that it does not exclude
		r.Protocol, r.NotProtocol = protocol, nil
	}
	return r, ok
}

// common is the protocol of two parts, nil being any. It reports whether there is one.
func common(a, b *uint8) (*uint8, bool) {
	switch {
	case a == nil:
		return b, true
	case b == nil:
		return a, true
	}
	return a, *a == *b
}

// parts expands one side of a rule; there is always one part at least. It reports whether there are few enough.
func (m *members) parts(r *resource.Rule, e *resource.Entity) ([]part, bool) {
	parts := []part{{Entity: m.addressesOf(e)}}
	if e.NotPorts != nil {
		named := m.notPortParts(r, e)
		if len(named) > maxParts {
			return nil, false
		}
		parts = product(parts, named)
	}
	if e.Ports != nil {
		named := m.portParts(r, e)
		if len(named) > maxParts {
			return nil, false
		}
		parts = product(parts, named)
	}
	return parts, len(parts) <= maxParts
}

// product is what two lists of parts of the same side have in common. Where that is nothing, it is one part that
// matches nothing.
func product(a, b []part) []part {
	var out []part
	for _, x := range a {
		for _, y := range b {
			if one, ok := both(x, y); ok {
				out = append(out, one)
			}
		}
	}
	if out == nil {
		nothing, _ := both(a[0], b[0])
		nothing.Nets = new(netset.Set)
		out = append(out, nothing)
	}
	return out
}

// both is what two parts of the same side have in common, and whether there is such a thing. Where both have ports,
// a's are any.
func both(a, b part) (part, bool) {
	protocol, ok := common(a.protocol, b.protocol)
	out := part{protocol, a.Entity}
	out.Nets, out.NetsName = narrow(b.Nets, b.NetsName, a.Nets, a.NetsName)
	out.NotNets, out.NotNetsName = widen(a.NotNets, a.NotNetsName, b.NotNets, b.NotNetsName)
	if b.Ports != nil {
		out.Ports = b.Ports
	}
	if b.NotPorts != nil {
		out.NotPorts = b.NotPorts
	}
	return out, ok && !out.isEmpty()
}

// isEmpty reports whether no address is left.
func (p *part) isEmpty() bool {
	if p.Nets == nil || p.NotNets == nil {
		return p.Nets != nil && p.Nets.Empty()
	}
	return p.Nets.Intersect(p.NotNets).Equal(p.Nets)
}
