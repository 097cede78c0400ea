// SPDX-License-Identifier: Apache-2.0

package compiler

// Layout tells a program where everything is in the image. It has the shape of struct table_layout in bpf/maps.h,
// which says what each field means; offsets are in bytes from the start of the image.
type Layout struct {
	Rules, Words, Actions  uint32
	Next, Hops             uint32
	Every, Last            uint32
	Src4, Dst4, Src6, Dst6 Intervals
	L4, Sport              Pages
}

// Intervals is a sorted list of interval starts with a class each. Count 0: no rule looks at the dimension.
type Intervals struct {
	Count, Root, Steps, Starts, Lows, Classes, NClasses, Vectors uint32
}

// Pages is a two-level table of 16-bit values. NPages 0: no rule looks at the dimension.
type Pages struct {
	NPages, Index, Pages, NClasses, Vectors uint32
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

// Action codes, as enum action in bpf/verdict.h, are policy.Action's numbers.
