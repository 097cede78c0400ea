// SPDX-License-Identifier: Apache-2.0

package policytest

import (
	"net/netip"

	"github.com/untracked-cni/untracked/pkg/netset"
	"github.com/untracked-cni/untracked/pkg/policy"
)

// Shape is a way in which the rules of a large list are alike. All of its rules decide.
type Shape string

// The shapes.
const (
	// Sources are rules for one source net and one port each.
	Sources Shape = "sources"
	// Ports are rules that differ in the destination port only.
	Ports Shape = "ports"
	// Flows are rules for one source, destination, source port and destination port each.
	Flows Shape = "flows"
	// Sides are rules each of which minds one thing alone: source, destination, source port, or destination port.
	Sides Shape = "sides"
	// Regions are rules for a set of many nets each, as lists of countries are.
	Regions Shape = "regions"
	// Nested are rules for nets and port ranges inside of others, at all depths.
	Nested Shape = "nested"
	// Any are rules like those of Rules.
	Any Shape = "any"
)

// Shapes are all of them.
var Shapes = []Shape{Sources, Ports, Flows, Sides, Regions, Nested, Any}

// Shaped makes n rules of a shape.
func (g *Generator) Shaped(shape Shape, n int) []policy.Rule {
	rules := make([]policy.Rule, n)
	for i := range rules {
		r := &rules[i]
		if shape == Any {
			for *r = g.rule(); !r.Action.Decides(); {
				*r = g.rule()
			}
			r.Policy, r.Index = string(shape), i
			continue
		}
		*r = policy.Rule{Policy: string(shape), Index: i, Action: pick(g, []policy.Action{policy.Allow, policy.Allow, policy.Deny, policy.Failsafe})}
		r.Protocol = new(pick(g, []uint8{policy.TCP, policy.TCP, policy.TCP, policy.UDP}))
		switch shape {
		case Sources:
			r.Source.Nets, r.Destination.Ports = g.nets(1, 24, 48), onePort(uint16(i))
		case Ports:
			r.Destination.Ports = onePort(uint16(i * 3))
		case Flows:
			r.Source.Nets, r.Destination.Nets = g.nets(1, 32, 128), g.nets(1, 28, 64)
			r.Source.Ports, r.Destination.Ports = onePort(uint16(g.IntN(1<<16))), onePort(uint16(i))
		case Sides:
			switch g.IntN(4) {
			case 0:
				r.Protocol, r.Source.Nets = nil, g.nets(1, 24, 64)
			case 1:
				r.Protocol, r.Destination.Nets = nil, g.nets(1, 24, 64)
			case 2:
				r.Source.Ports = onePort(uint16(g.IntN(1 << 16)))
			case 3:
				r.Destination.Ports = onePort(uint16(g.IntN(1 << 16)))
			}
		case Regions:
			r.Protocol, r.Source.Nets = nil, g.nets(1+g.IntN(100), 12+g.IntN(21), 24+g.IntN(105))
		case Nested:
			r.Source.Nets = g.nets(1, 8+g.IntN(25), 32+g.IntN(97))
			first := uint16(g.IntN(1 << 16))
			r.Destination.Ports = []policy.PortRange{{First: first, Last: max(first, first+uint16(g.IntN(300)))}}
		}
	}
	return rules
}

func onePort(p uint16) []policy.PortRange { return []policy.PortRange{{First: p, Last: p}} }

// nets is a set of n nets, most of them of IPv4, with so many bits.
func (g *Generator) nets(n, bits4, bits6 int) *netset.Set {
	var b netset.Builder
	for range n {
		if g.chance(60) {
			b.Add(netip.PrefixFrom(netset.To4(0x0a000000|g.Uint32N(1<<26)), bits4).Masked())
		} else {
			b.Add(netip.PrefixFrom(netset.Addr6{Hi: 0x2001_0db8_0000_0000 | g.Uint64N(1<<32), Lo: g.Uint64()}.Netip(), bits6).Masked())
		}
	}
	return b.Build()
}

// Aim has frames drawn, from now on, from what some rules mention: the edges of their nets and ports, and what is right
// beside these.
func (g *Generator) Aim(rules []policy.Rule) {
	prefixes4, prefixes6, ports := g.prefixes4, g.prefixes6, g.ports
	g.prefixes4, g.prefixes6, g.ports = nil, nil, nil
	for range 4096 {
		if len(rules) == 0 {
			break
		}
		r := &rules[g.IntN(len(rules))]
		e := pick(g, []*policy.Entity{&r.Source, &r.Destination})
		for _, set := range []*netset.Set{e.Nets, e.NotNets} {
			if set == nil || set.Empty() {
				continue
			}
			p := pick(g, set.Prefixes())
			if p.Addr().Is4() {
				g.prefixes4 = append(g.prefixes4, p)
			} else {
				g.prefixes6 = append(g.prefixes6, p)
			}
		}
		for _, p := range append(e.Ports, e.NotPorts...) {
			g.ports = append(g.ports, p.First, p.Last)
		}
	}
	if len(g.prefixes4) == 0 {
		g.prefixes4 = prefixes4
	}
	if len(g.prefixes6) == 0 {
		g.prefixes6 = prefixes6
	}
	if len(g.ports) == 0 {
		g.ports = ports
	}
}

// FrameFor makes a frame that a rule matches but for what is drawn right beside its edges: a whole TCP or UDP packet.
func (g *Generator) FrameFor(r *policy.Rule) []byte {
	v4 := g.chance(50)
	for _, e := range []*policy.Entity{&r.Source, &r.Destination} {
		if e.Nets != nil && !e.Nets.Empty() {
			v4 = len(e.Nets.Ranges4()) > 0 && (v4 || len(e.Nets.Ranges6()) == 0)
		}
	}
	protocol := uint8(policy.TCP)
	if r.Protocol != nil && policy.HasPorts(*r.Protocol) {
		protocol = *r.Protocol
	}
	port := func(e *policy.Entity) uint16 {
		if len(e.Ports) == 0 {
			return g.port()
		}
		p := pick(g, e.Ports)
		return pick(g, []uint16{p.First, p.First, p.Last, p.Last, p.First - 1, p.Last + 1})
	}
	address := func(e *policy.Entity) []byte {
		if e.Nets == nil || e.Nets.Empty() {
			return g.address(v4)
		}
		var fitting []netip.Prefix
		for _, p := range e.Nets.Prefixes() {
			if p.Addr().Is4() == v4 {
				fitting = append(fitting, p)
			}
		}
		if len(fitting) == 0 {
			return g.address(v4)
		}
		return g.addressAt(pick(g, fitting))
	}
	return frameOf(protocol, address(&r.Source), address(&r.Destination), port(&r.Source), port(&r.Destination))
}
