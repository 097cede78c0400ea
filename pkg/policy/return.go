// SPDX-License-Identifier: Apache-2.0

package policy

import "slices"

// AutoReturn is the policy name of the rules that AddReturns appends.
const AutoReturn = "auto-return"

// AddReturns appends, after all written rules of the other direction, the mirror of each Allow that has
// none there. Untracked traffic has no state that would let replies through, and one direction alone leaves
// half a flow in conntrack, which stateful rules drop as INVALID.
func (r *Rules) AddReturns() {
	ingress, egress := r.Ingress, r.Egress
	r.Egress = appendMirrors(egress, ingress)
	r.Ingress = appendMirrors(ingress, egress)
}

func appendMirrors(to, from []Rule) []Rule {
	have := make(map[uint64]bool, len(to))
	for i := range to {
		have[to[i].contentHash()] = true
	}
	n := 0
	for i := range from {
		if from[i].Action != Allow {
			continue
		}
		m := from[i].mirror()
		if h := m.contentHash(); !have[h] {
			have[h] = true
			m.Policy, m.Tier, m.Index, m.Origin = AutoReturn, "", n, "mirror of "+from[i].Name()
			to = append(to, m)
			n++
		}
	}
	return to
}

// firstEphemeralPort is where the kernel's default range of ports for outgoing connections begins
// (net.ipv4.ip_local_port_range), and that of masquerading, which keeps a port where it can.
const firstEphemeralPort = 32768

// AsksForAnswers returns an ingress rule, once for each of TCP and UDP that it allows, if among what it allows may
// be answers to calls: packets to ports that are not certain to be served here. Where pods are masqueraded, an answer
// to this host's address may be a pod's. For any other rule it returns nothing.
func (r *Rule) AsksForAnswers() []Rule {
	served := r.Destination.Ports != nil && !slices.ContainsFunc(r.Destination.Ports, func(p PortRange) bool {
		return p.First != p.Last && p.Last >= firstEphemeralPort
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
	v4 := r.IPVersion == 4 || r.Protocol != nil && *r.Protocol == ICMP
	return &ICMPMatch{Type: ReverseICMPType(v4, m.Type), Code: m.Code}
}
