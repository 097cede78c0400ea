// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/untracked-cni/untracked/pkg/netset"
	"github.com/untracked-cni/untracked/pkg/policy"
)

// portProtocols are the protocols with ports, ascending.
var portProtocols = []uint8{policy.TCP, policy.UDP, policy.SCTP, policy.UDPLite}

// compiler turns the conditions of policy rules into steps.
type compiler struct {
	// hashes holds netset's hash of every set seen: a deny list of 100k ranges is hashed once.
	hashes map[*netset.Set]uint64
}

// views are the views that a rule needs to be written for: one for both families if it looks at nothing that
// depends on the family.
func views(r *policy.Rule) []view {
	needs := r.ICMP != nil || r.NotICMP != nil
	for _, e := range []*policy.Entity{&r.Source, &r.Destination} {
		needs = needs || e.Nets != nil || e.NotNets != nil
	}
	switch {
	case r.IPVersion != 0:
		return []view{{family: r.IPVersion}}
	case needs:
		return []view{{family: 4}, {family: 6}}
	}
	return []view{{}}
}

// rule gives alternatives: exactly one holds for a packet that matches r as the view shows it, and none for any
// other. There are none when no packet can match. What r says of the fields of another lookup is left out.
func (c *compiler) rule(r *policy.Rule, v view, without fieldSet) [][]step {
	if r.IPVersion != 0 && v.family != 0 && r.IPVersion != v.family {
		return nil
	}
	protocol, ok := c.protocol(r, v)
	if !ok {
		return nil
	}
	var inFields []step
	for f := range fields {
		if without.has(f) {
			continue
		}
		s, ok := c.field(r, v, f)
		if !ok {
			return nil
		}
		inFields = append(inFields, s...)
	}
	var out [][]step
	for _, icmp := range c.icmp(r, v) {
		// From cheap to dear, and in an order in which nft recognises ports and addresses when it lists.
		out = append(out, slices.Concat(v.isFamily(), protocol, icmp, inFields))
	}
	return out
}

// item is a rule in a view, nil if no packet can match it.
func (c *compiler) item(i int, r *policy.Rule, v view) *item {
	it := &item{rule: i, view: v, elements: 1}
	plain := r.NotProtocol == nil && r.ICMP == nil && r.NotICMP == nil && (r.IPVersion == 0 || v.family == 0 || r.IPVersion == v.family) &&
		(r.Protocol == nil || policy.HasPorts(*r.Protocol) || !needsTransport(r))
	for f := range fields {
		e := side(r, f.source())
		switch {
		case f.address() && e.NotNets != nil, !f.address() && e.NotPorts != nil:
			plain = false
			continue
		case f.address() && e.Nets == nil, !f.address() && e.Ports == nil:
			continue
		}
		n := len(e.Ports)
		if f.address() {
			n = len(e.Nets.Ranges4())
			if v.family == 6 {
				n = len(e.Nets.Ranges6())
			}
		}
		switch {
		case n == 0:
			return nil
		case n > maxElements:
			continue
		}
		it.values[f] = values(e, v.family, f.address())
		it.listed |= 1 << f
		it.elements *= len(it.values[f])
	}
	if !plain && c.rule(r, v, 0) == nil {
		return nil
	}
	return it
}

// values are the addresses of a family, or the ports, that a side of a rule allows.
func values(e *policy.Entity, family int, addresses bool) []span {
	var out []span
	switch {
	case !addresses:
		ports := policy.NormalizePorts(e.Ports)
		out = make([]span, len(ports))
		for i, p := range ports {
			out[i] = span{low(uint64(p.First)), low(uint64(p.Last))}
		}
	case family == 4:
		out = make([]span, len(e.Nets.Ranges4()))
		for i, r := range e.Nets.Ranges4() {
			out[i] = span{low(uint64(r.Lo)), low(uint64(r.Hi))}
		}
	default:
		out = make([]span, len(e.Nets.Ranges6()))
		for i, r := range e.Nets.Ranges6() {
			out[i] = span{r.Lo, r.Hi}
		}
	}
	return out
}

func (c *compiler) protocol(r *policy.Rule, v view) ([]step, bool) {
	var (
		allowed []uint8
		limited bool
	)
	limit := func(to ...uint8) {
		if !limited {
			allowed, limited = slices.Clone(to), true
			return
		}
		allowed = slices.DeleteFunc(allowed, func(p uint8) bool { return !slices.Contains(to, p) })
	}
	if r.Protocol != nil {
		limit(*r.Protocol)
	}
	if needsPorts(&r.Source) || needsPorts(&r.Destination) {
		limit(portProtocols...)
	}
	if r.ICMP != nil || r.NotICMP != nil {
		limit(v.icmp())
	}
	if !limited {
		if r.NotProtocol == nil {
			return nil, true
		}
		return steps(v.protocol(), isNot(*r.NotProtocol)), true
	}
	if r.NotProtocol != nil {
		allowed = slices.DeleteFunc(allowed, func(p uint8) bool { return p == *r.NotProtocol })
	}
	return v.member(v.protocol(), octets("protocols", nftables.TypeInetProto, allowed), false)
}

// needsTransport is true for a rule that matches no fragment but the first.
func needsTransport(r *policy.Rule) bool {
	return r.ICMP != nil || r.NotICMP != nil || needsPorts(&r.Source) || needsPorts(&r.Destination)
}

func needsPorts(e *policy.Entity) bool { return e.Ports != nil || e.NotPorts != nil }

// icmp returns alternatives: that a type with a code is not the packet's means that the type differs, or the
// code does. One comparison of both bytes would do, but nft would list it as two that must both hold.
func (c *compiler) icmp(r *policy.Rule, v view) [][]step {
	typ, code := v.transport(0, 1), v.transport(1, 1)
	var common []step
	if m := r.ICMP; m != nil {
		if m.Code == nil {
			common = steps(typ, is(v.icmpType(m.Type)))
		} else {
			common = steps(v.transport(0, 2), is(v.icmpType(m.Type), *m.Code))
		}
	}
	m := r.NotICMP
	if m == nil {
		return [][]step{common}
	}
	out := [][]step{slices.Concat(common, steps(typ, isNot(v.icmpType(m.Type))))}
	if m.Code != nil {
		out = append(out, slices.Concat(common, steps(typ, is(v.icmpType(m.Type)), code, isNot(*m.Code))))
	}
	return out
}

// field is what a rule says of a field.
func (c *compiler) field(r *policy.Rule, v view, f field) ([]step, bool) {
	if f.address() {
		return c.addresses(side(r, f.source()), v, f)
	}
	return c.ports(side(r, f.source()), v, f)
}

func (c *compiler) ports(e *policy.Entity, v view, f field) ([]step, bool) {
	if !needsPorts(e) {
		return nil, true
	}
	var out []step
	if e.Ports != nil {
		in, ok := v.member(v.field(f), ports(e.Ports), false)
		if !ok {
			return nil, false
		}
		out = append(out, in...)
	}
	if e.NotPorts != nil {
		notIn, ok := v.member(v.field(f), ports(e.NotPorts), true)
		if !ok {
			return nil, false
		}
		out = append(out, notIn...)
	}
	if out == nil { // any port, but there must be one
		out = steps(v.field(f), inRange([]byte{0, 0}, []byte{0xff, 0xff}))
	}
	return out, true
}

func (c *compiler) addresses(e *policy.Entity, v view, f field) ([]step, bool) {
	var out []step
	for _, nets := range []struct {
		set    *netset.Set
		invert bool
		name   string
	}{{e.Nets, false, e.NetsName}, {e.NotNets, true, e.NotNetsName}} {
		if nets.set == nil {
			continue
		}
		s, ok := v.member(v.field(f), c.set(v.family, nets.set, nets.name), nets.invert)
		if !ok {
			return nil, false
		}
		out = append(out, s...)
	}
	return out, true
}

func (c *compiler) set(family int, from *netset.Set, name string) *set {
	hash, seen := c.hashes[from]
	if !seen {
		hash = from.Hash()
		c.hashes[from] = hash
	}
	return addresses(family, from, hash, name)
}

func side(r *policy.Rule, source bool) *policy.Entity {
	if source {
		return &r.Source
	}
	return &r.Destination
}

func verdict(kind expr.VerdictKind, chain string) expr.Any {
	return &expr.Verdict{Kind: kind, Chain: chain}
}
