// SPDX-License-Identifier: Apache-2.0

// Package compiler turns an ordered list of rules into lookup tables: one flat image that the BPF programs
// read as it is. It is pure and deterministic: the same rules give the same bytes.
//
// A packet has four dimensions: its source address, its destination address, its destination port (with the
// protocol; for ICMP the type and code), and its source port. For each dimension on its own, two values that
// no rule tells apart are equivalent; the compiler finds these classes and, for each, the rules that accept
// it, as a vector with one bit a rule:
//
//	rules                                 source address → class → vector      destination port → class → vector
//	0 Deny  from 192.0.2.0/24             192.0.2.0/24     1       0 1 2        tcp 6379           1       0 . 2
//	1 Allow udp to port 53                10.0.0.0/8       2       . 1 2        udp 53             2       0 1 .
//	2 Allow tcp to 6379 from 10/8,192/8   any other        0       . 1 .        any other          0       0 . .
//
// A packet from 10.1.2.3 to tcp 6379 has the vectors {1,2} and {0,2}; their conjunction is {2}, and its
// lowest bit is the first rule that matches. A dimension that no rule looks at has no table and costs nothing.
// A negation, a range or a hundred thousand CIDRs in one rule only change which values share a class.
//
// Addresses are found by binary search over the sorted starts of the intervals that share a class, for IPv4
// from where a table of the top 16 bits says; ports through pages of 256 classes, equal pages being stored
// once. [Image.Classify] walks the image in Go, step by step as bpf/classify.h does.
package compiler

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/untracked-cni/untracked/pkg/policy"
)

// Bounds on what is compiled. Beyond them the policy is refused before anything is changed.
const (
	// MaxRules bounds the rules of one direction: 64 words a vector.
	MaxRules = 4096
	// MaxHops bounds the rules that one packet can match without a decision: Log rules, and one Pass a tier. The
	// kernel's verifier follows each such step.
	MaxHops = 512
	// MaxImage bounds the image, in bytes.
	MaxImage = 96 << 20
)

// Image is a compiled list of rules.
type Image struct {
	// Bytes is the content of the tables map: native byte order, never empty, a multiple of 8 long.
	Bytes  []byte
	Layout Layout
}

// Compile builds the image of an ordered list of rules.
func Compile(rules []policy.Rule) (*Image, error) {
	if len(rules) > MaxRules {
		return nil, fmt.Errorf("%d rules in one direction, at most %d are supported", len(rules), MaxRules)
	}
	words := (len(rules) + 63) / 64
	b := builder{layout: Layout{Rules: uint32(len(rules)), Words: uint32(words)}}
	if len(rules) == 0 {
		b.bytes = make([]byte, 8)
		return &Image{b.bytes, b.layout}, nil
	}
	b.layout.Actions = b.offset()
	for i := range rules {
		b.bytes = append(b.bytes, byte(rules[i].Action))
	}

	next := nexts(rules)
	if b.layout.Hops = hops(rules, next); b.layout.Hops > MaxHops {
		return nil, fmt.Errorf("a packet may match %d Log and Pass rules one after the other in one direction, at most %d are supported", b.layout.Hops, MaxHops)
	}
	if b.layout.Hops > 0 {
		b.layout.Next = b.u16s(next)
		b.layout.Every = b.u64s(slices.Repeat([]uint64{^uint64(0)}, words)) / 8
	}

	b.layout.L4 = b.pages(compileL4(rules, words))
	b.layout.Sport = b.pages(compileSourcePorts(rules, words))
	b.layout.Src4 = b.intervals4(compileAddresses4(rules, words, source))
	b.layout.Dst4 = b.intervals4(compileAddresses4(rules, words, destination))
	b.layout.Src6 = b.intervals6(compileAddresses6(rules, words, source))
	b.layout.Dst6 = b.intervals6(compileAddresses6(rules, words, destination))
	b.offset()
	if b.err == nil && len(b.bytes) > MaxImage {
		b.err = fmt.Errorf("the policy needs %d MiB of lookup tables, at most %d MiB are supported", len(b.bytes)>>20, MaxImage>>20)
	}
	if b.err != nil {
		return nil, b.err
	}
	b.layout.Last = uint32(len(b.bytes)/8 - words)
	return &Image{b.bytes, b.layout}, nil
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

// builder appends tables to the image.
type builder struct {
	bytes  []byte
	layout Layout
	err    error
}

// offset pads the image to 8 bytes and returns its length: where the next table begins.
func (b *builder) offset() uint32 {
	for len(b.bytes)%8 != 0 {
		b.bytes = append(b.bytes, 0)
	}
	return uint32(len(b.bytes))
}

func (b *builder) u16s(values []uint16) uint32 {
	at := b.offset()
	for _, v := range values {
		b.bytes = binary.NativeEndian.AppendUint16(b.bytes, v)
	}
	return at
}

func (b *builder) u32s(values []uint32) uint32 {
	at := b.offset()
	for _, v := range values {
		b.bytes = binary.NativeEndian.AppendUint32(b.bytes, v)
	}
	return at
}

func (b *builder) u64s(values []uint64) uint32 {
	at := b.offset()
	for _, v := range values {
		b.bytes = binary.NativeEndian.AppendUint64(b.bytes, v)
	}
	return at
}

func (b *builder) vectors(c *classes) (count, at uint32) {
	return uint32(c.count), b.u64s(c.vectors)
}

func (b *builder) pages(t *pageTable, err error) Pages {
	if err != nil {
		b.err = err
	}
	if t == nil || err != nil {
		return Pages{}
	}
	out := Pages{NPages: uint32(len(t.pages) / pageSize)}
	out.Index, out.Pages = b.u16s(t.index), b.u16s(t.pages)
	out.NClasses, out.Vectors = b.vectors(t.classes)
	return out
}

// classes numbers distinct rule vectors in the order they are met.
type classes struct {
	words   int
	count   int
	vectors []uint64
	numbers map[string]uint32
	key     []byte
}

func newClasses(words int) *classes {
	return &classes{words: words, numbers: map[string]uint32{}, key: make([]byte, 0, words*8)}
}

// number returns the class of a vector.
func (c *classes) number(vector []uint64) uint32 {
	c.key = c.key[:0]
	for _, w := range vector {
		c.key = binary.NativeEndian.AppendUint64(c.key, w)
	}
	if n, ok := c.numbers[string(c.key)]; ok {
		return n
	}
	n := uint32(c.count)
	c.count++
	c.vectors = append(c.vectors, vector...)
	c.numbers[string(c.key)] = n
	return n
}

// trivial reports whether there is one class and it accepts every rule: the dimension decides nothing.
func (c *classes) trivial(rules int) bool {
	if c.count != 1 {
		return false
	}
	for i := range rules {
		if c.vectors[i/64]>>(i%64)&1 == 0 {
			return false
		}
	}
	return true
}

func setBit(vector []uint64, i int, on bool) {
	if on {
		vector[i/64] |= 1 << (i % 64)
	} else {
		vector[i/64] &^= 1 << (i % 64)
	}
}
