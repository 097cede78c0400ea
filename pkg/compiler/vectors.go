// SPDX-License-Identifier: Apache-2.0

package compiler

import (
	"slices"

	"github.com/untracked-cni/untracked/pkg/policy"
)

// vectors makes a vector of rules for each class of each dimension, and what a walk from match to match needs. It does
// not begin if there is no room for them.
func (b *builder) vectors(rules []policy.Rule, dims dimensions, next []uint16, hops uint32) error {
	words := (len(rules) + 63) / 64
	size := 0
	for _, d := range dims {
		size += d.count() * words * 8
	}
	if size > MaxImage {
		return errTooLarge
	}
	l := &b.layout
	l.Words, l.Hops = uint32(words), hops
	l.Actions = b.offset(8)
	for i := range rules {
		b.bytes = append(b.bytes, byte(rules[i].Action))
	}
	if hops > 0 {
		l.Next = b.u16s(next)
		l.Every = b.u64s(slices.Repeat([]uint64{^uint64(0)}, words)) / 8
	}
	for i, d := range dims {
		if !d.used() {
			continue
		}
		l.Vectors[i] = Vectors{Count: uint32(d.count()), At: b.offset(8)}
		for class := range uint32(d.count()) {
			b.u64s(d.vector(class))
		}
	}
	l.Last = uint32(len(b.bytes)/8 - words)
	return nil
}

// nexts is policy.Next of each rule, with a 0 behind them.
func nexts(rules []policy.Rule) []uint16 {
	next := make([]uint16, len(rules)+1)
	for i := range rules {
		next[i] = uint16(policy.Next(rules, i))
	}
	return next
}

// hops is how many rules one packet may match without a decision, at most.
func hops(rules []policy.Rule, next []uint16) uint32 {
	most := make([]uint32, len(rules)+1) // from each rule on
	for i := len(rules) - 1; i >= 0; i-- {
		most[i] = most[i+1]
		if !rules[i].Action.Decides() {
			most[i] = max(most[i], 1+most[next[i]])
		}
	}
	return most[0]
}
