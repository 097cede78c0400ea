// SPDX-License-Identifier: Apache-2.0

package compiler

import (
	"fmt"
	"math/rand/v2"
)

// maxMembers bounds what a partition holds, in conditions summed over classes: 2 bytes each.
const maxMembers = 1 << 26

// partition cuts the values of a dimension into classes: those that meet the same conditions are in one. Classes have
// numbers, in the order they are met.
//
// A set of conditions is known by the exclusive or of random 128-bit numbers, one a condition, so that a sweep over a
// million values pays for what changes between two of them and not for the size of the set (Zobrist, A New Hashing
// Method with Application for Game Playing, 1970). Two sets are taken for one with a probability of 2^-128 a pair.
type partition struct {
	signs   []sign
	current vector
	sum     sign
	numbers map[sign]uint32
	// members[begin[c]:begin[c+1]] are the conditions that class c meets, in order.
	begin   []uint32
	members []uint16
	// meeting[k] are the classes that meet condition k, in order; filled by finish.
	meeting [][]uint32
}

// sign stands for a set.
type sign [2]uint64

func (s *sign) flip(t sign) { s[0], s[1] = s[0]^t[0], s[1]^t[1] }

// newSigns makes the signs of n things. Another run has other ones, and comes to the same numbers.
func newSigns(n int) []sign {
	signs := make([]sign, n)
	for i := range signs {
		signs[i] = sign{rand.Uint64(), rand.Uint64()}
	}
	return signs
}

func newPartition(conditions int) *partition {
	return &partition{
		signs: newSigns(conditions), current: make(vector, (conditions+63)/64),
		numbers: map[sign]uint32{}, begin: []uint32{0},
	}
}

func (p *partition) count() int { return len(p.begin) - 1 }

// set says whether the values from here on meet a condition.
func (p *partition) set(condition int, meet bool) {
	if p.current.has(condition) != meet {
		p.current[condition/64] ^= 1 << (condition % 64)
		p.sum.flip(p.signs[condition])
	}
}

// class is the number of what the current value meets.
func (p *partition) class() (uint32, error) {
	if n, ok := p.numbers[p.sum]; ok {
		return n, nil
	}
	n := uint32(p.count())
	p.numbers[p.sum] = n
	for k := range p.current.bits() {
		p.members = append(p.members, uint16(k))
	}
	if len(p.members) > maxMembers {
		return 0, fmt.Errorf("the rules overlap too much: the sets they accept, over all kinds of addresses or ports, have more than %d entries", maxMembers)
	}
	p.begin = append(p.begin, uint32(len(p.members)))
	return n, nil
}

func (p *partition) of(class uint32) []uint16 { return p.members[p.begin[class]:p.begin[class+1]] }

// finish prepares for questions about conditions, once all classes are known.
func (p *partition) finish() {
	sizes := make([]int, len(p.signs))
	for _, k := range p.members {
		sizes[k]++
	}
	all := make([]uint32, len(p.members))
	p.meeting = make([][]uint32, len(p.signs))
	for k, n := range sizes {
		p.meeting[k], all = all[:0:n], all[n:]
	}
	for c := range uint32(p.count()) {
		for _, k := range p.of(c) {
			p.meeting[k] = append(p.meeting[k], c)
		}
	}
	p.numbers, p.signs = nil, nil
}

// noCondition is the condition of a rule that takes any value.
const noCondition = -1

// dimension is one field of a packet as the rules see it.
type dimension struct {
	*partition
	// condition is the number of each rule's condition, or noCondition. Rules with the same condition share it.
	condition []int32
}

// minds reports whether a rule looks at the dimension.
func (d *dimension) minds(rule int) bool { return d.condition[rule] != noCondition }

// accepting are the classes that a rule which minds the dimension accepts.
func (d *dimension) accepting(rule int) []uint32 { return d.meeting[d.condition[rule]] }

// used reports whether any rule looks at the dimension.
func (d *dimension) used() bool { return len(d.meeting) > 0 }

// vector has the rules that accept a class.
func (d *dimension) vector(class uint32) vector {
	met := make(vector, (len(d.meeting)+63)/64)
	for _, k := range d.of(class) {
		met.set(int(k))
	}
	out := make(vector, (len(d.condition)+63)/64)
	for rule, k := range d.condition {
		if k == noCondition || met.has(int(k)) {
			out.set(rule)
		}
	}
	return out
}

// conditions numbers the distinct conditions that rules have on a dimension.
type conditions[C comparable] struct {
	numbers map[C]int32
	keys    []C
	// rules has the number of each rule's condition, or noCondition.
	rules []int32
}

func newConditions[C comparable](rules int) *conditions[C] {
	return &conditions[C]{numbers: map[C]int32{}, rules: make([]int32, 0, rules)}
}

// add is told the rules in order, and whether they mind at all.
func (c *conditions[C]) add(key C, minds bool) {
	if !minds {
		c.rules = append(c.rules, noCondition)
		return
	}
	n, known := c.numbers[key]
	if !known {
		n = int32(len(c.keys))
		c.numbers[key] = n
		c.keys = append(c.keys, key)
	}
	c.rules = append(c.rules, n)
}

// dimension is about these conditions, without any class yet.
func (c *conditions[C]) dimension() dimension {
	return dimension{newPartition(len(c.keys)), c.rules}
}
