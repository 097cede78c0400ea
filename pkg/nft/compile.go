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
// other. There are none when no packet can match.
func (c *compiler) rule(r *policy.Rule, v view) [][]step {
	if r.IPVersion != 0 && v.family != 0 && r.IPVersion != v.family {
		return nil
	}
	protocol, ok := c.protocol(r, v)
	if !ok {
		return nil
	}
	ports, ok := c.ports(r, v)
	if !ok {
		return nil
	}
	addresses, ok := c.addresses(r, v)
	if !ok {
		return nil
	}
	var out [][]step
	for _, icmp := range c.icmp(r, v) {
		// From cheap to dear, and in an order in which nft recognises ports and addresses when it lists.
		out = append(out, slices.Concat(v.isFamily(), protocol, icmp, ports, addresses))
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

func (c *compiler) ports(r *policy.Rule, v view) ([]step, bool) {
	var out []step
	for _, source := range []bool{true, false} {
		e, load := side(r, source), v.port(source)
		if !needsPorts(e) {
			continue
		}
		var s []step
		if e.Ports != nil {
			in, ok := v.member(load, ports(e.Ports), false)
			if !ok {
				return nil, false
			}
			s = append(s, in...)
		}
		if e.NotPorts != nil {
			notIn, ok := v.member(load, ports(e.NotPorts), true)
			if !ok {
				return nil, false
			}
			s = append(s, notIn...)
		}
		if s == nil { // any port, but there must be one
			s = steps(load, inRange([]byte{0, 0}, []byte{0xff, 0xff}))
		}
		out = append(out, s...)
	}
	return out, true
}

func (c *compiler) addresses(r *policy.Rule, v view) ([]step, bool) {
	var out []step
	for _, source := range []bool{true, false} {
		e := side(r, source)
		for _, nets := range []struct {
			set    *netset.Set
			invert bool
			name   string
		}{{e.Nets, false, e.NetsName}, {e.NotNets, true, e.NotNetsName}} {
			if nets.set == nil {
				continue
			}
			s, ok := v.member(v.address(source), c.set(v.family, nets.set, nets.name), nets.invert)
			if !ok {
				return nil, false
			}
			out = append(out, s...)
		}
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
