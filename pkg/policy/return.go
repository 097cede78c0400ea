// SPDX-License-Identifier: Apache-2.0

package policy

import "slices"

// AutoReturn is the policy name of the rules that AddReturns appends.
const AutoReturn = "auto-return"

// AddReturns appends, after all written rules of the other direction, the mirror of each Allow that has
// none there. Untracked traffic has no state that would let replies through, and one direction alone leaves
// half a flow in conntrack, which stateful rules drop as INVALID.
//
// For the same reason the mirrors of a tier keep its exceptions: what passes the tier before it comes to an Allow,
// in this direction or in the other, passes the mirrors, too.
func (r *Rules) AddReturns() {
	ingress, egress := r.Ingress, r.Egress
	r.Egress = appendMirrors(egress, ingress)
	r.Ingress = appendMirrors(ingress, egress)
}

func appendMirrors(to, from []Rule) []Rule {
	m := mirrors{written: to, have: make(map[uint64]bool, len(to))}
	for i := range to {
		m.have[to[i].contentHash()] = true
	}
	for len(from) > 0 {
		n := 1
		for n < len(from) && from[n].Tier == from[0].Tier {
			n++
		}
		m.tier(from[:n])
		from = from[n:]
	}
	return append(to[:len(to):len(to)], m.rules...)
}

// mirrors are the rules to append to those that are written in the same direction.
type mirrors struct {
	written []Rule
	have    map[uint64]bool
	rules   []Rule
}

// tier adds the mirrors of one tier's rules. They are a tier of their own if any packet passes them.
func (m *mirrors) tier(from []Rule) {
	var group []Rule
	last := 0 // behind the last mirror of an Allow
	passed := map[uint64]bool{}
	pass := func(r Rule) {
		if h := r.contentHash(); !passed[h] {
			passed[h] = true
			group = append(group, r)
		}
	}
	for _, w := range m.written {
		if w.Action == Pass && w.Tier == from[0].Tier {
			w.Origin = "exception of " + w.Name()
			pass(w)
		}
	}
	for i := range from {
		mirror := from[i].mirror()
		mirror.Origin = "mirror of " + from[i].Name()
		switch from[i].Action {
		case Pass:
			pass(mirror)
		case Allow:
			if h := mirror.contentHash(); !m.have[h] {
				m.have[h] = true
				group = append(group, mirror)
				last = len(group)
			}
		}
	}
	group = group[:last]
	name := ""
	if slices.ContainsFunc(group, func(r Rule) bool { return r.Action == Pass }) {
		name = from[0].Tier + ".return" // no written tier has a dot in its name
	}
	for _, r := range group {
		r.Tier, r.Policy, r.Index = name, AutoReturn, len(m.rules)
		m.rules = append(m.rules, r)
	}
}

// firstMasqueradePort is the lowest port that the kernel gives a masqueraded connection, when its own is taken or with
// random-fully, as kube-proxy and flannel want it. (Outgoing connections of this host begin at 32768 by default.)
const firstMasqueradePort = 1024

// AsksForAnswers returns an ingress rule, once for each of TCP and UDP that it allows, if among what it allows may
// be answers to calls: packets to ports that are not certain to be served here. Where pods are masqueraded, an answer
// to this host's address may be a pod's. For any other rule it returns nothing.
func (r *Rule) AsksForAnswers() []Rule {
	served := r.Destination.Ports != nil && !slices.ContainsFunc(r.Destination.Ports, func(p PortRange) bool {
		return p.First != p.Last && p.Last >= firstMasqueradePort
	})
	if r.Action != Allow || served {
		return nil
	}
	var out []Rule
	for _, protocol := range []uint8{TCP, UDP} {
		if (r.Protocol == nil || *r.Protocol == protocol) && (r.NotProtocol == nil || *r.NotProtocol != protocol) && r.ICMP == nil && r.NotICMP == nil {
			one := *r
			one.Protocol, one.NotProtocol = &protocol, nil
			out = append(out, one)
		}
	}
	return out
}

// mirror is the rule that matches the replies to what r matches.
func (r *Rule) mirror() Rule {
	m := *r
	m.Source, m.Destination = r.Destination, r.Source
	m.ICMP = r.ICMP.reversed(r)
	m.NotICMP = r.NotICMP.reversed(r)
	return m
}

func (m *ICMPMatch) reversed(r *Rule) *ICMPMatch {
	if m == nil {
		return nil
	}
	reversed := ICMPMatch{Type: m.Type, Code: m.Code}
	protocol := func(n uint8) bool { return r.Protocol == nil || *r.Protocol == n }
	// A rule for either family pairs the types of both: none is a pair in one and something else in the other.
	if r.IPVersion != 6 && protocol(ICMP) {
		reversed.Type = ReverseICMPType(true, m.Type)
	}
	if r.IPVersion != 4 && protocol(ICMPv6) && reversed.Type == m.Type {
		reversed.Type = ReverseICMPType(false, m.Type)
	}
	return &reversed
}

// Contents is what the rules of a list match and do, wherever they stand and whatever they are called.
type Contents map[uint64]bool

// ContentsOf returns the contents of a list.
func ContentsOf(rules []Rule) Contents {
	c := make(Contents, len(rules))
	for i := range rules {
		c[rules[i].contentHash()] = true
	}
	return c
}

// Has reports whether a rule of the list matches and does the same as r.
func (c Contents) Has(r *Rule) bool { return c[r.contentHash()] }
