// SPDX-License-Identifier: Apache-2.0

package policy

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
			m.Policy, m.Tier, m.Index = AutoReturn, "", n
			to = append(to, m)
			n++
		}
	}
	return to
}

// IsForAnswers reports whether an ingress rule lets the answers to calls of this host through: it allows what
// comes from certain TCP or UDP ports of others, to any port here.
func (r *Rule) IsForAnswers() bool {
	return r.Action == Allow && r.Source.Ports != nil && r.Destination.Ports == nil &&
		r.Protocol != nil && (*r.Protocol == TCP || *r.Protocol == UDP)
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
