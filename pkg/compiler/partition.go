// SPDX-License-Identifier: Apache-2.0

package compiler

import (
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/untracked-cni/untracked/pkg/policy"
)

// maxMembers bounds what the partitions of all dimensions hold together, in conditions summed over classes: up to 8 bytes
// each.
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
	// room is for members, of this partition and others.
	room *meter
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

func newPartition(conditions int, room *meter) *partition {
	return &partition{
		room: room, signs: newSigns(conditions), current: make(vector, (conditions+63)/64),
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
	if !p.room.spend(len(p.members) - int(p.begin[n])) {
		return 0, fmt.Errorf("the rules overlap too much: the sets they accept, over all kinds of addresses and ports, have more than %d entries", maxMembers)
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
	// having[k] are the rules with condition k, indifferent those without any.
	having      [][]int32
	indifferent vector
}

// minds reports whether a rule looks at the dimension.
func (d *dimension) minds(rule int) bool { return d.condition[rule] != noCondition }

// accepting are the classes that a rule which minds the dimension accepts.
func (d *dimension) accepting(rule int) []uint32 { return d.meeting[d.condition[rule]] }

// used reports whether any rule looks at the dimension.
func (d *dimension) used() bool { return len(d.meeting) > 0 }

// vector has the rules that accept a class.
func (d *dimension) vector(class uint32) vector {
	out := slices.Clone(d.indifferent)
	for _, k := range d.of(class) {
		for _, rule := range d.having[k] {
			out.set(int(rule))
		}
	}
	return out
}

// cuts are the dimensions of a packet, cut into classes.
type cuts struct {
	src, dst  *addresses
	sport, l4 *ports
}

func cut(rules []policy.Rule) (c cuts, err error) {
	room := &meter{left: maxMembers}
	if c.src, err = compileAddresses(rules, source, room); err != nil {
		return c, err
	}
	if c.dst, err = compileAddresses(rules, destination, room); err != nil {
		return c, err
	}
	if c.sport, err = compileSourcePorts(rules, room); err != nil {
		return c, err
	}
	c.l4, err = compileL4(rules, room)
	return c, err
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
func (c *conditions[C]) dimension(room *meter) dimension {
	d := dimension{newPartition(len(c.keys), room), c.rules, make([][]int32, len(c.keys)), make(vector, (len(c.rules)+63)/64)}
	for rule, k := range c.rules {
		if k == noCondition {
			d.indifferent.set(rule)
		} else {
			d.having[k] = append(d.having[k], int32(rule))
		}
	}
	return d
}
