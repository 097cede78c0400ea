// SPDX-License-Identifier: Apache-2.0

package hostendpoint

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/untracked-cni/untracked/pkg/netset"
	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/pkg/resource"
)

// maxParts bounds what one written rule may become.
const maxParts = 1024

// Expander turns policies into rules, for any endpoint of a node. It is not safe for concurrent use.
type Expander struct {
	members  *members
	ordered  []*resource.Policy
	expanded map[*resource.Policy]expansion
}

type expansion struct {
	rules policy.Rules
	err   error
}

// NewExpander makes an Expander of all resources and the endpoints that are in force on the node.
func NewExpander(set *resource.Set, endpoints []Endpoint) *Expander {
	return &Expander{newMembers(set, endpoints), inOrder(set), map[*resource.Policy]expansion{}}
}

// Rules returns the rules of an endpoint with these labels, in order: what the policies that select it say. A written
// rule with port names may become several, which share its tier, policy and index and are disjoint: no packet matches
// two of them. A rule that can match nothing at present is there all the same, so that listings show it.
//
// The only errors are about rules that would become too many: [resource.Error]s, joined.
func (x *Expander) Rules(labels map[string]string) (policy.Rules, error) {
	var out policy.Rules
	var errs []error
	for _, p := range x.ordered {
		if p.Selector.Matches(labels) {
			rules, err := x.Policy(p)
			out.Ingress, out.Egress = append(out.Ingress, rules.Ingress...), append(out.Egress, rules.Egress...)
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return policy.Rules{}, err
	}
	return out, nil
}

// Policy returns the rules of one of the set's policies, whatever it selects, see [Expander.Rules].
func (x *Expander) Policy(p *resource.Policy) (policy.Rules, error) {
	if known, ok := x.expanded[p]; ok {
		return known.rules, known.err
	}
	ingress, err1 := x.members.expandAll(p, policy.Ingress)
	egress, err2 := x.members.expandAll(p, policy.Egress)
	e := expansion{policy.Rules{Ingress: ingress, Egress: egress}, errors.Join(err1, err2)}
	x.expanded[p] = e
	return e.rules, e.err
}

func (m *members) expandAll(p *resource.Policy, d policy.Direction) ([]policy.Rule, error) {
	var out []policy.Rule
	var errs []error
	written := p.RulesOf(d)
	for i := range written {
		rules, err := m.expand(p, d, i, &written[i])
		out, errs = append(out, rules...), append(errs, err)
	}
	return out, errors.Join(errs...)
}

// part is one of the disjoint parts that one side of a rule falls into.
type part struct {
	protocol *uint8 // nil for the rule's own
	policy.Entity
	// addresses are those of Nets where hosts give names to ports, sorted. It is nil for any other part.
	addresses []netip.Addr
}

func (m *members) expand(p *resource.Policy, d policy.Direction, index int, r *resource.Rule) ([]policy.Rule, error) {
	tooMany := func() ([]policy.Rule, error) {
		return nil, &resource.Error{Position: r.At, Problem: fmt.Sprintf("%s: its port names stand for so many different ports that it becomes more than %d rules; name fewer, write numbers, or narrow its selectors",
			p.RuleName(d, index), maxParts)}
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

func origin(at resource.Position) string {
	if at.Line == 0 {
		return at.File
	}
	return fmt.Sprintf("%s:%d", at.File, at.Line)
}

func combine(r policy.Rule, source, destination part) (policy.Rule, bool) {
	protocol, ok := common(source.protocol, destination.protocol)
	if !ok {
		return r, false
	}
	r.Source, r.Destination = source.Entity, destination.Entity
	if protocol != nil { // which is the rule's, or one that it does not exclude
		r.Protocol, r.NotProtocol = protocol, nil
	}
	return r, true
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

// product is what two lists of parts of the same side have in common, or the first of it where that are too many parts.
// Where it is nothing, it is one part that matches nothing.
func product(a, b []part) []part {
	// Parts that are for some addresses meet few others: those that are for any, and those that share an address.
	var all, anywhere []int
	at := map[netip.Addr][]int{}
	for n, y := range b {
		all = append(all, n)
		if y.addresses == nil {
			anywhere = append(anywhere, n)
		}
		for _, address := range y.addresses {
			at[address] = append(at[address], n)
		}
	}
	var out []part
	for _, x := range a {
		near := all
		if x.addresses != nil {
			near = slices.Clone(anywhere)
			for _, address := range x.addresses {
				near = append(near, at[address]...)
			}
			slices.Sort(near)
			near = slices.Compact(near)
		}
		for _, n := range near {
			one, ok := both(x, b[n])
			if !ok {
				continue
			}
			if out = append(out, one); len(out) > maxParts {
				return out
			}
		}
	}
	if out == nil {
		nothing := join(a[0], b[0])
		nothing.Nets = new(netset.Set)
		out = append(out, nothing)
	}
	return out
}

// both is what two parts of the same side have in common, and whether there is such a thing.
func both(a, b part) (part, bool) {
	if _, ok := common(a.protocol, b.protocol); !ok {
		return part{}, false
	}
	out := join(a, b)
	return out, !out.isEmpty()
}

// join puts the conditions of two parts of the same side together. Where both have ports, a's are any. If any is for
// some addresses, b is.
func join(a, b part) part {
	out := part{Entity: a.Entity, addresses: a.addresses}
	out.protocol, _ = common(a.protocol, b.protocol)
	out.NotNets, out.NotNetsName = widen(a.NotNets, a.NotNetsName, b.NotNets, b.NotNetsName)
	if b.Nets != nil {
		out.Nets, out.NetsName, out.addresses = b.narrowed(a.Nets, a.NetsName)
	}
	if b.Ports != nil {
		out.Ports = b.Ports
	}
	if b.NotPorts != nil {
		out.NotPorts = b.NotPorts
	}
	return out
}

// narrowed are a part's nets as far as they are in others, nil for all.
func (p *part) narrowed(nets *netset.Set, name string) (*netset.Set, string, []netip.Addr) {
	if p.addresses == nil || nets == nil {
		out, outName := narrow(p.Nets, p.NetsName, nets, name)
		return out, outName, p.addresses
	}
	// They may be many more than the addresses.
	left := slices.DeleteFunc(slices.Clone(p.addresses), func(a netip.Addr) bool { return !nets.Contains(a) })
	return netsOf(left), namesOfBoth(p.Nets, p.NetsName, nets, name), left
}

// isEmpty reports whether no address is left.
func (p *part) isEmpty() bool {
	switch {
	case p.Nets == nil || p.NotNets == nil:
		return p.Nets != nil && p.Nets.Empty()
	case p.addresses != nil:
		return !slices.ContainsFunc(p.addresses, func(a netip.Addr) bool { return !p.NotNets.Contains(a) })
	}
	return p.Nets.Intersect(p.NotNets).Equal(p.Nets)
}
