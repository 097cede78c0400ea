// SPDX-License-Identifier: Apache-2.0

package compiler

// Layout tells a program where everything is in the image, and how much of it there is. It has the shape of struct
// table_layout in bpf/maps.h; offsets are in bytes from the start of the image.
type Layout struct {
	Image uint32 // 0: the whole
	Rules uint32
	// Uses says which dimensions any rule looks at: the Uses bits.
	Uses uint32

	Nodes, LastNode        uint32 // the nodes of all trees, and the highest offset from there that is looked at
	Src4, Dst4, Src6, Dst6 Tree
	L4, Sport              Pages

	// Combined tables.
	First, LastFirst uint32 // u32[LastFirst + 1], by l4 class: the first rule that looks at nothing else; 0: there is none
	Rows, LastRow    uint32 // {u32 value, base}[LastRow + 1]
	Cells, LastCell  uint32 // {u32 row, value}[LastCell + 1]
	Kinds            [kinds]Kind

	// Vectors, where Words is not 0.
	Words   uint32 // 64-bit words of a rule vector
	Actions uint32 // u8[Rules]
	Next    uint32 // u16[Rules + 1]: which rule to go on at behind one that does not decide; a 0
	Hops    uint32 // rules that one packet can match without a decision, at most; 0: every rule decides
	Every   uint32 // index in u64[] of the vector of all rules
	Last    uint32 // the highest index at which a vector may begin
	// Of the dimensions in the order of the Uses bits.
	Vectors [4]Vectors
}

// The bits of Layout.Uses, and the numbers of dimensions.
const (
	dimSrc = iota
	dimDst
	dimSport
	dimL4
	numDims
)

// Tree finds the class of an address. Root 0: there is one class, which is Class.
type Tree struct {
	Root   uint32 // u32[65536]: references by the top 16 bits
	Class  uint32
	Steps  uint32 // nodes behind the root, at most, by the key of 16 bits (IPv4) or the first one of 56 (IPv6)
	Deeper uint32 // by the second key of 56 bits (IPv6)
}

// Pages is a two-level table of 16-bit values.
type Pages struct {
	LastPage uint32
	Index    uint32 // u16[]: page of (slot, value / 256)
	Pages    uint32 // u16[LastPage + 1][256]: class
}

// Kind has the tables of the rules that mind the same of source, destination and source port. Used 0: there are none.
type Kind struct {
	Used   uint32 // 2: there are cells by l4 class, too
	Second uint32 // first row of the pairs of the first two dimensions
	Third  uint32 // first row of the pairs with the third one
	Rows   uint32 // first row of the rules
	None   uint32 // the class that none of the rules accepts; one that there is not, if each accepts some
}

// Vectors has one vector a class.
type Vectors struct {
	Count uint32 // classes
	At    uint32 // u64[Count][Words]
}

// The slots of the l4 dimension, as enum l4_slot in bpf/parse.h.
const (
	slotTCP = iota
	slotUDP
	slotUDPLite
	slotSCTP
	slotICMP
	slotICMPv6
	slotProtocol // no known header: the value is the IP protocol
	numSlots
)

// noPorts is the source port dimension's key of a packet without known ports.
const noPorts = 1 << 16
