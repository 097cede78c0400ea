// SPDX-License-Identifier: Apache-2.0

package compiler

import (
	"fmt"
	"slices"

	"github.com/untracked-cni/untracked/pkg/policy"
)

// maxCombinations bounds the combinations of classes that are looked at, for all kinds of rules: about a second.
const maxCombinations = 8 << 20

// kinds is how many there are: rules that mind a combination of source, destination and source port.
const kinds = 1<<dimL4 - 1

// nothing is the value where no rule matches; it is greater than that of any rule. What a rule has for a value is its
// number, so that the first of several is the least, and below it its action.
const (
	nothing    = ^uint32(0)
	actionBits = 3
)

func valueOf(rules []policy.Rule, rule int) uint32 {
	return uint32(rule)<<actionBits | uint32(rules[rule].Action)
}

// factor is a cut of packets into classes, as far as the rules of one kind are concerned.
type factor struct {
	classes int
	// accepting are the classes that a rule accepts, in order.
	accepting func(rule int) []uint32
}

func (d *dimension) factor() factor { return factor{d.count(), d.accepting} }

// none is a class that none of some rules accepts: the first, or one more than there are.
func (f *factor) none(rules []int) uint32 {
	accepted := make([]bool, f.classes+1)
	for _, i := range rules {
		for _, c := range f.accepting(i) {
			accepted[c] = true
		}
	}
	return uint32(slices.Index(accepted, false))
}

// tables makes the combined tables of rules that all decide. It gives up where the rules overlap so much that there
// are too many combinations of classes.
//
// Rules are sorted by what they mind, and each kind has tables of its own; the first match of a packet is the first of
// what it finds in each. So a rule about a port alone and one about an address alone never meet in a table. Only rules
// that mind both cost something for each combination of classes: one cell.
func (b *builder) tables(rules []policy.Rule, dims dimensions) error {
	byKind := [kinds + 1][]int{}
	for i := range rules {
		kind := 0
		for d := range dimL4 {
			if dims[d].minds(i) {
				kind |= 1 << d
			}
		}
		byKind[kind] = append(byKind[kind], i)
	}
	l4 := dims[dimL4]
	first, matchAll := slices.Repeat([]uint32{nothing}, max(l4.count(), 1)), nothing
	for _, i := range byKind[0] {
		value := valueOf(rules, i)
		if !l4.minds(i) {
			matchAll = value // nothing behind it matters
			break
		}
		for _, c := range l4.accepting(i) {
			first[c] = min(first[c], value)
		}
	}
	for c := range first {
		first[c] = min(first[c], matchAll)
	}
	if slices.Min(first) != nothing {
		b.layout.First, b.layout.LastFirst = b.u32s(first), uint32(len(first)-1)
	}
	c := newComb(l4.count())
	for kind := 1; kind <= kinds; kind++ {
		if len(byKind[kind]) == 0 {
			continue
		}
		if err := b.kind(&b.layout.Kinds[kind-1], c, rules, byKind[kind], kind, dims, first); err != nil {
			return err
		}
	}
	return b.comb(c)
}

func (b *builder) kind(out *Kind, c *comb, rules []policy.Rule, of []int, kind int, dims dimensions, first []uint32) error {
	var f factor
	for d, have := 0, 0; d < dimL4; d++ {
		if kind>>d&1 == 0 {
			continue
		}
		var err error
		switch have++; have {
		case 1:
			f = dims[d].factor()
		case 2:
			f, out.Second, err = c.pair(f, dims[d].factor(), of)
		case 3:
			f, out.Third, err = c.pair(f, dims[d].factor(), of)
		}
		if err != nil {
			return err
		}
	}
	return c.rules(out, f, dims[dimL4], rules, of, first)
}

// combination is where a rule accepts a class of one factor and a class of another: row, column and rule, from the
// highest bit on.
type combination uint64

const (
	ruleBits   = 16
	columnBits = 24
)

func (x combination) row() uint32    { return uint32(x >> (ruleBits + columnBits)) }
func (x combination) column() uint32 { return uint32(x>>ruleBits) & (1<<columnBits - 1) }
func (x combination) rule() int      { return int(x & (1<<ruleBits - 1)) }

// combinations are sorted: by row, column and rule.
func (c *comb) combinations(rows, columns func(rule int) []uint32, of []int) ([]combination, error) {
	n := 0
	for _, i := range of {
		more := len(rows(i)) * len(columns(i))
		if n += more; !c.room.spend(more) {
			return nil, fmt.Errorf("they overlap in more than %d combinations of addresses and ports", maxCombinations)
		}
	}
	out := make([]combination, 0, n)
	for _, i := range of {
		for _, r := range rows(i) {
			for _, col := range columns(i) {
				out = append(out, combination(r)<<(ruleBits+columnBits)|combination(col)<<ruleBits|combination(i))
			}
		}
	}
	if !slices.IsSorted(out) {
		slices.Sort(out)
	}
	return out, nil
}

// pair combines two factors into one: pairs of classes that the same rules accept are of one class. Class 0 are the
// pairs that no rule accepts, which have no cell. It returns the first row, too.
func (c *comb) pair(f, g factor, of []int) (factor, uint32, error) {
	all, err := c.combinations(f.accepting, g.accepting, of)
	if err != nil {
		return factor{}, 0, err
	}
	signs := newSigns(of[len(of)-1] + 1)
	numbers := map[sign]uint32{}
	accepting := make([][]uint32, len(signs))
	start := c.add(slices.Repeat([]uint32{0}, f.classes))
	c.columns = max(c.columns, uint32(g.classes))
	for len(all) > 0 {
		n, sum := 0, sign{}
		for n < len(all) && all[n]>>ruleBits == all[0]>>ruleBits {
			sum.flip(signs[all[n].rule()])
			n++
		}
		class, known := numbers[sum]
		if !known {
			class = uint32(len(numbers) + 1)
			numbers[sum] = class
			for _, x := range all[:n] {
				accepting[x.rule()] = append(accepting[x.rule()], class)
			}
		}
		c.set(start+all[0].row(), all[0].column(), class)
		all = all[n:]
	}
	return factor{len(numbers) + 1, func(rule int) []uint32 { return accepting[rule] }}, start, nil
}

// rules makes the tables that a kind of rules ends with: for each class, the first rule that does not mind the l4
// dimension, and a cell where one that does comes before it.
func (c *comb) rules(out *Kind, f factor, l4 *dimension, rules []policy.Rule, of []int, first []uint32) error {
	values := slices.Repeat([]uint32{nothing}, f.classes)
	var both []int
	for _, i := range of {
		if l4.minds(i) {
			both = append(both, i)
			continue
		}
		for _, class := range f.accepting(i) {
			values[class] = min(values[class], valueOf(rules, i))
		}
	}
	all, err := c.combinations(f.accepting, l4.accepting, both)
	if err != nil {
		return err
	}
	out.Used, out.Rows, out.None = 1, c.add(values), f.none(of)
	for n, x := range all {
		if n > 0 && x>>ruleBits == all[n-1]>>ruleBits {
			continue // not the first rule there
		}
		if value := valueOf(rules, x.rule()); value < values[x.row()] && value < first[x.column()] {
			out.Used = 2
			c.set(out.Rows+x.row(), x.column(), value)
		}
	}
	return nil
}
