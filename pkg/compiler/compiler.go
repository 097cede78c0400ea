// SPDX-License-Identifier: Apache-2.0

// Package compiler turns an ordered list of rules into lookup tables: one flat image that the BPF programs read as it
// is. It is pure and deterministic: the same rules give the same bytes.
//
// A packet has four dimensions: its source address, its destination address, its source port, and "l4", which is its
// destination port with the protocol (for ICMP: type and code; else the protocol alone). Values of a dimension that no
// rule tells apart are of one class. The program finds the class in each dimension that any rule minds, and from the
// classes the first rule that matches:
//
//	rules                                source                  l4
//	0 Deny  from 192.0.2.0/24            10.0.0.0/8    class 1   tcp 6379   class 1
//	1 Allow tcp from 10/8 to 6379        192.0.2.0/24  class 2   udp 53     class 2
//	2 Allow udp to 53                    any other     class 0   any other  class 0
//
//	    packet                       image
//	┌──────────────┐   root, by the top 16 bits     nodes, by the rest
//	│ source       ├─► ┌─┬─┬─┬─┬─┬─┐ ─────────► ┌───────────────────────┐ ─► class ──┐
//	│   10.1.2.3   │   └─┴─┴─┴─┴─┴─┘  or class  │ boundaries │ references│  or node  │ row
//	├──────────────┤                            └───────────────────────┘           ▼
//	│ protocol,    │   index, by the high byte      pages, by the low byte   rows  {value, base}
//	│ destination  ├─► ┌─┬─┬─┬─┬─┬─┐ ─────────► ┌─┬─┬─┬─┬─┬─┐ ─► class ─┐          │ base + column
//	│   port 6379  │   └─┴─┴─┴─┴─┴─┘            └─┴─┴─┴─┴─┴─┘           │ column    ▼
//	└──────────────┘                                                     ├─► cells {row, value}
//	                                                                     ▼           │
//	                                                         first {value}           │
//	                                                              └────► least ◄─────┘ ─► rule 1, Allow
//
// A rule is of one of eight kinds, by which of source, destination and source port it minds, and each kind that a list
// has is looked up on its own. Rules that mind none of the three are in the table "first", by l4 class. Each other kind
// ends with a row for each class: the first rule that does not mind l4; and with cells for those combinations of a class
// and an l4 class where a rule that minds both comes first. Classes of kinds that mind two or three of the dimensions
// are made of pairs, by the same rows and cells. What all of these say is the value of a rule, its number times eight
// plus its action (9 is rule 1, Allow). The verdict is the least, since the least number is that of the first rule. So
// what a packet costs depends on what kinds of rules there are and not on their number, and what the tables take is a
// cell for each combination that a rule really minds.
//
// Rules that mind much may overlap so much that there are too many combinations. Such lists, and those with rules that
// do not decide (Log, Pass), have vectors instead: for each class one bit a rule, set where the rule accepts it. The
// conjunction of the vectors of a packet's classes has the rules that match, the lowest bit is the first. That costs
// a step for every 64 rules. [Image.Method] tells which it is and why.
//
// [Image.Walk] reads the image in Go, step by step as bpf/classify.h does, and can say each step in words: its example
// follows the packet above.
//
// The files: partition.go cuts a dimension into classes, addresses.go and ports.go by what they are asked; tree.go lays
// out the search for an address; tables.go combines classes, comb.go packs what it gets; vectors.go is the other way.
// Files reach*.go are another use of the classes, by lint: which rules no packet gets to.
package compiler

import (
	"encoding/binary"
	"fmt"

	"github.com/untracked-cni/untracked/pkg/policy"
)

// Bounds on what is compiled. Beyond them the policy is refused before anything is changed.
const (
	// MaxRules bounds the rules of one direction.
	MaxRules = 16384
	// MaxVectorRules bounds them where they need vectors: 64 words each.
	MaxVectorRules = 4096
	// MaxHops bounds the rules that one packet can match without a decision: Log rules, and one Pass a tier. The
	// kernel's verifier follows each such step.
	MaxHops = 256
	// MaxImage bounds the image, in bytes.
	MaxImage = 96 << 20
)

// Image is a compiled list of rules.
type Image struct {
	// Bytes is the content of the tables map: native byte order, never empty, a multiple of 8 long.
	Bytes  []byte
	Layout Layout
	// Method is how the first match is found.
	Method Method
}

// Compile builds the image of an ordered list of rules, by the best method that there is for them.
func Compile(rules []policy.Rule) (*Image, error) { return CompileAs("", rules) }

// CompileAs is Compile by a method of the caller's choice, for tests and comparisons. BitVectors can be had for up to
// MaxVectorRules, Combined not for all rules; an empty one is Compile.
func CompileAs(method string, rules []policy.Rule) (*Image, error) {
	if len(rules) > MaxRules {
		return nil, fmt.Errorf("%d rules in one direction, at most %d are supported", len(rules), MaxRules)
	}
	b := builder{layout: Layout{Rules: uint32(len(rules))}}
	b.bytes = make([]byte, lineBytes) // so that no table begins at 0, which stands for none
	if len(rules) == 0 {
		return &Image{Bytes: b.bytes, Layout: b.layout, Method: Method{Name: Combined, Bytes: len(b.bytes)}}, nil
	}
	c, err := cut(rules)
	if err != nil {
		return nil, err
	}
	dims := dimensions{dimSrc: &c.src.dimension, dimDst: &c.dst.dimension, dimSport: &c.sport.dimension, dimL4: &c.l4.dimension}
	for i, d := range dims {
		if d.used() {
			b.layout.Uses |= 1 << i
		}
	}
	chosen, err := b.firstMatch(method, rules, dims)
	if err != nil {
		return nil, err
	}
	b.layout.Sport, b.layout.L4 = b.pages(c.sport), b.pages(c.l4)
	b.addresses(c.src, c.dst)
	if len(b.bytes) > MaxImage {
		return nil, errTooLarge
	}
	chosen.Loads, chosen.Bytes = b.layout.loads(), len(b.bytes)
	return &Image{b.bytes, b.layout, chosen}, nil
}

var errTooLarge = fmt.Errorf("the policy needs more than %d MiB of lookup tables", MaxImage>>20)

// dimensions are those of a packet, by their numbers.
type dimensions [numDims]*dimension

// firstMatch makes the tables that lead from classes to rules, by a method or, without one, the best that there is.
func (b *builder) firstMatch(method string, rules []policy.Rule, dims dimensions) (Method, error) {
	next := nexts(rules)
	hops := hops(rules, next)
	reason := "some rules log or pass"
	switch {
	case hops > 0:
	case method == BitVectors:
		reason = "it is asked for"
	default:
		before := *b
		err := b.tables(rules, dims)
		if err == nil {
			return Method{Name: Combined}, nil
		}
		*b, reason = before, err.Error()
	}
	if method == Combined {
		return Method{}, fmt.Errorf("no combined tables: %s", reason)
	}
	if len(rules) > MaxVectorRules {
		return Method{}, fmt.Errorf("%d rules in one direction: at most %d are supported where %s", len(rules), MaxVectorRules, reason)
	}
	if hops > MaxHops {
		return Method{}, fmt.Errorf("a packet may match %d Log and Pass rules one after the other in one direction, at most %d are supported", hops, MaxHops)
	}
	return Method{Name: BitVectors, Reason: reason}, b.vectors(rules, dims, next, hops)
}

// builder appends tables to the image.
type builder struct {
	bytes  []byte
	layout Layout
}

// offset pads the image to a multiple of unit and returns its length: where the next table begins.
func (b *builder) offset(unit int) uint32 {
	for len(b.bytes)%unit != 0 {
		b.bytes = append(b.bytes, 0)
	}
	return uint32(len(b.bytes))
}

func (b *builder) u16s(values []uint16) uint32 {
	at := b.offset(8)
	for _, v := range values {
		b.bytes = binary.NativeEndian.AppendUint16(b.bytes, v)
	}
	return at
}

func (b *builder) u32s(values []uint32) uint32 {
	at := b.offset(8)
	for _, v := range values {
		b.bytes = binary.NativeEndian.AppendUint32(b.bytes, v)
	}
	return at
}

func (b *builder) u64s(values []uint64) uint32 {
	at := b.offset(8)
	for _, v := range values {
		b.bytes = binary.NativeEndian.AppendUint64(b.bytes, v)
	}
	return at
}

// comb appends rows {usual value, base} and cells {row, value}.
func (b *builder) comb(c *comb) error {
	bases, cells, err := c.pack()
	if err != nil {
		return err
	}
	rows := make([]uint32, 0, 2*len(bases))
	for i, base := range bases {
		rows = append(rows, c.usual[i], base)
	}
	pairs := make([]uint32, 0, 2*len(cells))
	for _, e := range cells {
		pairs = append(pairs, e.row, e.value)
	}
	b.layout.Rows, b.layout.Cells = b.u32s(rows), b.u32s(pairs)
	b.layout.LastRow, b.layout.LastCell = uint32(max(len(bases), 1)-1), uint32(max(len(cells), 1)-1)
	return nil
}

func (b *builder) pages(t *ports) Pages {
	if !t.used() {
		return Pages{}
	}
	return Pages{LastPage: uint32(len(t.pages)/pageSize - 1), Index: b.u16s(t.index), Pages: b.u16s(t.pages)}
}

// addresses appends the search trees of those sides that any rule minds.
func (b *builder) addresses(src, dst *addresses) {
	var f forest
	for _, s := range []struct {
		of     *addresses
		v4, v6 *Tree
	}{
		{src, &b.layout.Src4, &b.layout.Src6},
		{dst, &b.layout.Dst4, &b.layout.Dst6},
	} {
		if !s.of.used() {
			continue
		}
		var root []uint32
		s.v4.Class = s.of.v4.classOf[0]
		if root, s.v4.Steps = f.tree4(&s.of.v4); root != nil {
			s.v4.Root = b.u32s(root)
		}
		s.v6.Class = s.of.v6.classOf[0]
		if root, s.v6.Steps, s.v6.Deeper = f.tree6(&s.of.v6); root != nil {
			s.v6.Root = b.u32s(root)
		}
	}
	b.layout.Nodes = b.offset(lineBytes)
	b.bytes = append(b.bytes, f.bytes...)
	b.bytes = append(b.bytes, make([]byte, 2*lineBytes)...) // what a program could read behind the last, as far as the verifier can see
	b.layout.LastNode = uint32(len(f.bytes))
}
