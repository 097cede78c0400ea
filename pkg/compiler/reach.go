// SPDX-License-Identifier: Apache-2.0

package compiler

import (
	"github.com/untracked-cni/untracked/pkg/policy"
)

// Fate says whether packets get to a rule.
type Fate uint8

const (
	// Unknown: to find out would have taken more work than the budget allows.
	Unknown Fate = iota
	// Reachable: some packet gets to the rule and matches it.
	Reachable
	// Shadowed: packets match the rule, but rules before it take every one of them away.
	Shadowed
	// Impossible: no packet matches the rule, wherever it stands.
	Impossible
)

// Reach is the fate of one rule.
type Reach struct {
	Fate Fate
	// By are the earlier rules that take a Shadowed rule's packets away, in order: one if one alone does, the first
	// of them if several do. Else it is as many as it takes; without any one of them the others would let some
	// packet through.
	By []int
	// Example is a packet that gets to a Reachable rule. It is meaningless for any other.
	Example policy.Packet
}

// DefaultBudget is about two seconds of work.
const DefaultBudget = 1 << 28

// Reachability finds the fate of each rule of an ordered list that is asked as [policy.Walk] does: exactly, for all
// packets there can be. The budget counts steps of a few nanoseconds; what a rule leaves of its share is there for
// those behind it. There may be up to 65,536 rules. The error is [Compile]'s, about what they tell apart.
//
// Packets that no rule tells apart share a class in each dimension, so all that matters of a packet is one vector
// from each dimension: their conjunction says which rules match it. For the fate of a rule, only the vectors that
// have it are of interest, and of their other bits only those of earlier rules that could keep a packet from it.
// Where one vector is a subset of another, the first lets through whatever the second does, and the second can be
// forgotten. The few that are left are multiplied out. Policies made to be hard stay hard, hence the budget.
//
// Neighbour discovery, which never gets to any rule, changes nothing: rules do not see the hop limit that it has.
func Reachability(rules []policy.Rule, budget int) ([]Reach, error) {
	s, err := newSpace(rules)
	if err != nil {
		return nil, err
	}
	out := make([]Reach, len(rules))
	for i := range out {
		m := meter{left: budget / (len(rules) - i)}
		budget -= m.left
		out[i] = s.reach(i, &m)
		budget += max(m.left, 0)
	}
	return out, nil
}

func (s *space) reach(i int, m *meter) Reach {
	questions := s.questions(i, m)
	if len(questions) == 0 {
		return Reach{Fate: Impossible}
	}
	if m.empty() {
		return Reach{Fate: Unknown}
	}
	// What is easy to find out comes first: one rule that takes everything, a packet that gets through.
	always := ones(i/64 + 1)
	for _, q := range questions {
		always.and(q.always())
	}
	if !always.empty() {
		return Reach{Fate: Shadowed, By: oneOfEach([]vector{always})}
	}
	for _, q := range questions {
		if at, found := q.probe(); found {
			return Reach{Fate: Reachable, Example: at.packet()}
		}
	}
	var taken []vector // for each kind of packets, the rules that keep it from rule i
	for _, q := range questions {
		for _, c := range q.easiest() {
			blockers := q.blockers(c.rules)
			if blockers.empty() {
				return Reach{Fate: Reachable, Example: c.at.packet()}
			}
			taken = append(taken, blockers)
		}
	}
	if m.empty() {
		return Reach{Fate: Unknown}
	}
	return Reach{Fate: Shadowed, By: oneOfEach(taken)}
}
