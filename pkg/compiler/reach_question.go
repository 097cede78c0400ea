// SPDX-License-Identifier: Apache-2.0

package compiler

import (
	"cmp"
	"slices"

	"github.com/untracked-cni/untracked/pkg/policy"
)

// question is about one rule and the packets of one family, with or without ports, that match it: which earlier rules
// stand between them and it?
//
// Take rule 2 of these three, and the cells of source addresses and of ports that accept each:
//
//	                           from 10/8   others     to 53   others
//	0 Pass  tier a, from 10/8      0          .          0       0
//	1 Deny  tier a, to tcp 53      1          1          1       .
//	2 Allow tier b, tcp            2          2          2       2
//
// Rule 1 is an obstacle to what it matches. Rule 0 is one to what it does not match, since it helps the rest over rule
// 1 into tier b; so its bit is turned over. The obstacles of the sources are then {1} and {0,1}, those of the ports {1}
// and {}. Whatever gets through from another source does so from 10/8, and whatever gets through to port 53 does so to
// another port: two cells are left. A packet has obstacle 1 if all its cells have it, and obstacle 0 if one of them
// has; from 10/8 to another port it has none, and so gets to rule 2. If rule 1 denied all ports, {1} would be left, and
// blockers would find the Pass there, whose bit is clear, and behind it no rule that blocks.
type question struct {
	rule  int
	rules []policy.Rule
	// factors are the cells that have the rule, for each dimension: a packet has one of each. What has more obstacles
	// than another cell of the same dimension is left out.
	factors [numDims][]cell

	// Vectors are cut down to those words that have a bit which matters. relevant has these bits. passes are those of
	// them whose rule helps packets on: a Pass, in a tier before the rule's own, keeps packets from what is behind it
	// in that tier. These bits are turned over, so that fewer bits always means fewer obstacles.
	words            []int
	relevant, passes vector
	meter            *meter
}

// questions returns up to four, one for each kind of packets that can match rule i.
func (s *space) questions(i int, m *meter) []*question {
	var out []*question
	for _, f := range s.families {
		src, dst := having(f.src, i), having(f.dst, i)
		for _, factors := range [][numDims][]cell{
			{src, dst, having(s.withPorts, i), having(s.ports, i)},
			{src, dst, having(f.portless, i), having(s.noPorts, i)},
		} {
			if !slices.ContainsFunc(factors[:], func(cells []cell) bool { return len(cells) == 0 }) {
				out = append(out, s.question(i, factors, m))
			}
		}
	}
	return out
}

func (s *space) question(i int, factors [numDims][]cell, m *meter) *question {
	// A rule that shares no value with this one in some dimension is no obstacle.
	meets := union(i/64+1, factors[0])
	for _, cells := range factors[1:] {
		meets.and(union(i/64+1, cells))
	}
	relevant, passes := make(vector, len(meets)), make(vector, len(meets))
	for j := range meets.bits() {
		if j < i && s.rules[j].Action != policy.Log {
			relevant.set(j)
			if s.rules[j].Action == policy.Pass && j < s.tierStart[i] {
				passes.set(j)
			}
		}
	}
	q := &question{rule: i, rules: s.rules, meter: m}
	for w := range relevant {
		if relevant[w] != 0 {
			q.words = append(q.words, w)
			q.relevant, q.passes = append(q.relevant, relevant[w]), append(q.passes, passes[w])
		}
	}
	for d, cells := range factors {
		q.factors[d] = q.least(cells)
	}
	return q
}

// least cuts the vectors of cells down, and leaves out the cells with more obstacles than another one.
func (q *question) least(cells []cell) []cell {
	cut := make([]cell, len(cells))
	for i, c := range cells {
		v := make(vector, len(q.words))
		for k, w := range q.words {
			v[k] = (c.rules[w] ^ q.passes[k]) & q.relevant[k]
		}
		cut[i] = cell{v, c.at}
	}
	// The least first, so that most are found to be more than another one at once.
	slices.SortStableFunc(cut, func(a, b cell) int { return cmp.Compare(a.rules.count(), b.rules.count()) })
	out := antichain{meter: q.meter}
	for _, c := range cut {
		out.add(c)
	}
	return out.cells
}

// meet sets out to the obstacles of a packet that has x in one dimension and y in another.
func (q *question) meet(out, x, y vector) {
	for k, passes := range q.passes {
		out[k] = x[k]&y[k] | (x[k]|y[k])&passes
	}
}

// always are the earlier rules each of which alone takes all the packets.
func (q *question) always() vector {
	out := common(q.factors[0])
	for _, cells := range q.factors[1:] {
		q.meet(out, out, common(cells))
	}
	return q.blockers(out)
}

func common(cells []cell) vector {
	out := slices.Clone(cells[0].rules)
	for _, c := range cells[1:] {
		out.and(c.rules)
	}
	return out
}

// probe looks for a packet that gets through: from a few packets to start with, it goes to the one next to it, in one
// dimension, with the fewest obstacles. It finds what is easy to find.
func (q *question) probe() (at point, found bool) {
	const starts = 8
	now, rest := make(vector, len(q.words)), make(vector, len(q.words))
	for start := range starts {
		var at [numDims]cell
		for d, cells := range q.factors {
			at[d] = cells[start%len(cells)]
		}
		for least, better := -1, true; better; {
			better = false
			for d, cells := range q.factors {
				q.others(rest, at, d)
				for _, c := range cells {
					if !q.meter.spend(2 * len(now)) {
						return point{}, false
					}
					q.meet(now, rest, c.rules)
					if n := now.count(); least < 0 || n < least {
						least, better, at[d] = n, true, c
					}
				}
			}
		}
		q.others(rest, at, 0)
		q.meet(now, rest, at[0].rules)
		if q.blockers(now).empty() {
			return at[0].at.with(at[1].at).with(at[2].at).with(at[3].at), true
		}
	}
	return point{}, false
}

// others sets out to the obstacles in all dimensions but one.
func (q *question) others(out vector, at [numDims]cell, but int) {
	first := true
	for d, c := range at {
		switch {
		case d == but:
		case first:
			copy(out, c.rules)
			first = false
		default:
			q.meet(out, out, c.rules)
		}
	}
}

// easiest are the packets with the fewest obstacles: any other one that matches the rule has those of one of them, or
// more. When the meter runs out, some are missing.
func (q *question) easiest() []cell {
	factors := slices.Clone(q.factors[:])
	slices.SortFunc(factors, func(a, b []cell) int { return cmp.Compare(len(a), len(b)) })
	product := factors[0]
	both := make(vector, len(q.words))
	for _, factor := range factors[1:] {
		out := antichain{meter: q.meter}
		for _, x := range product {
			for _, y := range factor {
				if q.meter.empty() {
					break
				}
				q.meet(both, x.rules, y.rules)
				out.add(cell{both, x.at.with(y.at)})
			}
		}
		product = out.cells
	}
	return product
}

// blockers are the rules that keep packets with these obstacles from the rule, as a whole vector.
func (q *question) blockers(obstacles vector) vector {
	present, passes := make(vector, q.rule/64+1), make(vector, q.rule/64+1)
	for k, w := range q.words {
		present[w], passes[w] = obstacles[k]^q.passes[k], q.passes[k]
	}
	out := make(vector, len(present))
	passed := 0 // rules before this one are skipped by a Pass
	for j := range present.bits() {
		switch {
		case j < passed:
		case passes.has(j):
			passed = policy.Next(q.rules, j)
		default:
			out.set(j)
		}
	}
	return out
}
