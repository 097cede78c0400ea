// SPDX-License-Identifier: Apache-2.0

package compiler

import (
	"iter"
	"math/bits"
	"slices"
)

// vector is a set of rules, a bit each.
type vector []uint64

func ones(words int) vector { return slices.Repeat(vector{^uint64(0)}, words) }

func (v vector) has(i int) bool { return v[i/64]>>(i%64)&1 != 0 }

func (v vector) set(i int) { v[i/64] |= 1 << (i % 64) }

func (v vector) and(w vector) {
	for i := range v {
		v[i] &= w[i]
	}
}

func (v vector) empty() bool {
	for _, word := range v {
		if word != 0 {
			return false
		}
	}
	return true
}

func (v vector) subsetOf(w vector) bool {
	for i := range v {
		if v[i]&^w[i] != 0 {
			return false
		}
	}
	return true
}

// bits are the rules in order.
func (v vector) bits() iter.Seq[int] {
	return func(yield func(int) bool) {
		for i, word := range v {
			for ; word != 0; word &= word - 1 {
				if !yield(i*64 + bits.TrailingZeros64(word)) {
					return
				}
			}
		}
	}
}

func (v vector) count() int {
	n := 0
	for _, word := range v {
		n += bits.OnesCount64(word)
	}
	return n
}

// folded has a bit for each 64th: where it is not a subset, the vector is none.
func (v vector) folded() uint64 {
	var out uint64
	for _, word := range v {
		out |= word
	}
	return out
}

// antichain is the least of all vectors added: none of them is a subset of another.
type antichain struct {
	cells  []cell
	folded []uint64 // of each cell: most comparisons end here
	meter  *meter
}

// add makes a copy of the vector if it keeps it. It does nothing once the meter has run out.
func (a *antichain) add(c cell) {
	if !a.meter.spend(2*len(a.cells) + len(c.rules)) {
		return
	}
	folded := c.rules.folded()
	for i, have := range a.cells {
		if a.folded[i]&^folded == 0 && a.meter.spend(len(c.rules)) && have.rules.subsetOf(c.rules) {
			return
		}
	}
	n := 0
	for i, have := range a.cells {
		if folded&^a.folded[i] == 0 && a.meter.spend(len(c.rules)) && c.rules.subsetOf(have.rules) {
			continue
		}
		a.cells[n], a.folded[n] = have, a.folded[i]
		n++
	}
	a.cells = append(a.cells[:n], cell{slices.Clone(c.rules), c.at})
	a.folded = append(a.folded[:n], folded)
}

// oneOfEach chooses rules so that every set, none of which is empty, has one of them: few, and none that could be left
// out. The vectors are equally long.
func oneOfEach(sets []vector) []int {
	// Always the rule that most of the sets left have.
	var chosen []int
	for left := slices.Clone(sets); len(left) > 0; {
		times := make([]int, len(sets[0])*64)
		for _, s := range left {
			for rule := range s.bits() {
				times[rule]++
			}
		}
		best := slices.Index(times, slices.Max(times))
		chosen = append(chosen, best)
		left = slices.DeleteFunc(left, func(s vector) bool { return s.has(best) })
	}
	slices.Sort(chosen)
	// What was chosen early may be needless by what came later.
	for i := len(chosen) - 1; i >= 0; i-- {
		others := slices.Delete(slices.Clone(chosen), i, i+1)
		needless := !slices.ContainsFunc(sets, func(s vector) bool {
			return !slices.ContainsFunc(others, func(rule int) bool { return s.has(rule) })
		})
		if needless {
			chosen = others
		}
	}
	return chosen
}

// meter counts work down.
type meter struct{ left int }

// spend returns false once more has been spent than there was.
func (m *meter) spend(n int) bool {
	m.left -= n
	return m.left >= 0
}

func (m *meter) empty() bool { return m.left < 0 }
