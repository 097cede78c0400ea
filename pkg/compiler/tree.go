// SPDX-License-Identifier: Apache-2.0

package compiler

import (
	"encoding/binary"
	"math/bits"

	"github.com/untracked-cni/untracked/pkg/netset"
)

// An address finds its class in a tree. The root is a table of its top 16 bits; what is left of the address, one key of
// 16 bits for IPv4 and two of 56 bits for IPv6, goes on from node to node. Entries are references of 32 bits: to a
// class, to a line, or to a page.
//
// A line is 64 bytes, a cache line: sorted boundaries and, behind them, one reference more than boundaries. How many
// boundaries are at or below the key says which reference is next. For IPv4 a line has 9 boundaries of 16 bits, in
// lanes of 21 bits, three a word, so that the program can compare three at a time; for IPv6 5 of 64 bits. Lines upon
// lines are a B+ tree.
//
// A page is a table of some bits of the key, for places that are so crowded that lines would be stacked more than two
// high. That is level compression (Nilsson and Karlsson, IP-Address Lookup Using LC-Tries, 1999). The bits above those
// that a page looks at are the same for all that is crowded there; for IPv6 a line in front of the page makes sure that
// the key has them, too, which is their path compression.
//
// The second key of an IPv6 address is only asked for where boundaries differ in it alone.
const (
	// The two highest bits of a reference: a class, or a node that wants the first or the second key.
	refClass  = 0 << 30
	refFirst  = 1 << 30
	refSecond = 2 << 30

	// A line's number, in units of 64 bytes, is in the bits below refPage.
	refPage = 1 << 29
	// Of a page: how far to shift the key, how many of the bits that are then lowest count, less one, and the number.
	refShift    = 23 // 6 bits
	refBits     = 19 // 4 bits
	lineBytes   = 64
	pageBytes   = 256 // the unit of a page's number; a page may have several
	rootEntries = 1 << 16
	laneBits    = 21
)

// stage is about the nodes that look at one key.
type stage struct {
	kind  uint32 // refFirst or refSecond
	bits  int    // of the key
	steps int    // nodes on the way from the root to any class, at most
	// boundaries is how many a line has, lanes how many of them share a word.
	boundaries, lanes int
	// pageBits chooses the size of a page, for that many boundaries in a block of keys that differ in that many bits.
	pageBits func(boundaries, bits int) int
	// compress puts a line in front of a page that does not cover the whole block.
	compress bool
}

var (
	// Two steps always do: 9 boundaries a line, 99 two lines high, or two pages of 8 bits.
	stage4 = stage{refFirst, 16, 2, 9, 3, func(int, int) int { return 8 }, false}
	// Nine lines hold 6^9 boundaries, more than the image could.
	stage6       = stage{refFirst, 56, 9, 5, 1, pageBits6, true}
	stage6second = stage{refSecond, 56, 9, 5, 1, pageBits6, true}
)

// pageBits6 makes pages with about as many entries as there are boundaries.
func pageBits6(boundaries, most int) int {
	return min(max(bits.Len(uint(boundaries))-1, 6), 16, most)
}

// keysBytes is what the boundaries of a line take.
func (s *stage) keysBytes() int { return s.boundaries / s.lanes * 8 }

// levels is how high lines must be stacked for so many boundaries.
func (s *stage) levels(boundaries int) int {
	n := 0
	for room := 1; room < boundaries+1; room *= s.boundaries + 1 {
		n++
	}
	return n
}

// boundary says where a key's reference changes: it is ref from key on.
type boundary struct {
	key uint64
	ref uint32
}

// forest has the nodes of all trees of an image.
type forest struct {
	bytes []byte
}

// grow makes room for a node and returns where it is: at a multiple of the unit.
func (f *forest) grow(unit, n int) int {
	for len(f.bytes)%unit != 0 {
		f.bytes = append(f.bytes, 0)
	}
	at := len(f.bytes)
	f.bytes = append(f.bytes, make([]byte, (n+unit-1)/unit*unit)...)
	return at
}

// block makes the nodes for keys that differ in their lowest bits only. Up to the first boundary the reference is
// before. It returns the reference to them, and how many steps they take, which are at most left.
func (f *forest) block(s *stage, low uint64, width int, before uint32, bs []boundary, left int) (ref uint32, steps int) {
	if len(bs) > 0 && bs[0].key == low {
		before, bs = bs[0].ref, bs[1:]
	}
	n := len(bs)
	levels := s.levels(n)
	if n == 0 || len(f.bytes) > MaxImage { // which is refused in the end
		return before, 0
	}
	if levels <= min(2, left) || s.compress && levels+2 > left {
		return f.lines(s, before, bs), levels
	}
	if s.compress {
		// The smallest block that has all boundaries.
		common := bits.Len64(bs[0].key ^ bs[n-1].key)
		if start := bs[0].key &^ (1<<common - 1); common < width {
			page, steps := f.page(s, start, common, before, bs, left-1)
			ends := []boundary{{start, page}}
			if behind := start + 1<<common; behind < low+1<<width {
				ends = append(ends, boundary{behind, bs[n-1].ref})
			}
			if start == low {
				return f.lines(s, page, ends[1:]), steps + 1
			}
			return f.lines(s, before, ends), steps + 1
		}
	}
	return f.page(s, low, width, before, bs, left)
}

// page makes a page for a block, and the nodes below it.
func (f *forest) page(s *stage, low uint64, width int, before uint32, bs []boundary, left int) (ref uint32, steps int) {
	pageBits := s.pageBits(len(bs), width)
	// One bit more, if then every boundary is between two entries: nothing is left to do behind such a page.
	if exact := width - lowestBit(bs); s.compress && exact <= min(pageBits+1, 16) {
		pageBits = exact
	}
	shift := width - pageBits
	at := f.grow(pageBytes, 4<<pageBits)
	for i := range 1 << pageBits {
		start := low + uint64(i)<<shift
		n := 0
		for n < len(bs) && bs[n].key < start+1<<shift {
			n++
		}
		entry, below := f.block(s, start, shift, before, bs[:n], left-1)
		binary.NativeEndian.PutUint32(f.bytes[at+4*i:], entry)
		steps = max(steps, below)
		if n > 0 {
			before, bs = bs[n-1].ref, bs[n:]
		}
	}
	return s.kind | refPage | uint32(shift)<<refShift | uint32(pageBits-1)<<refBits | uint32(at/pageBytes), steps + 1
}

// lowestBit is the number of the lowest bit that any boundary has.
func lowestBit(bs []boundary) int {
	var all uint64
	for _, b := range bs {
		all |= b.key
	}
	return bits.TrailingZeros64(all)
}

// lines makes a B+ tree, as full as can be.
func (f *forest) lines(s *stage, before uint32, bs []boundary) uint32 {
	if len(bs) <= s.boundaries {
		return f.line(s, before, bs)
	}
	room := 1 // boundaries of a child, plus one
	for range s.levels(len(bs)) - 1 {
		room *= s.boundaries + 1
	}
	var first uint32
	var children []boundary
	for i := 0; ; i++ {
		n := min(room-1, len(bs))
		ref := before
		if n > 0 {
			ref = f.lines(s, before, bs[:n])
		}
		if i == 0 {
			first = ref
		} else {
			children[i-1].ref = ref
		}
		if bs = bs[n:]; len(bs) == 0 {
			return f.line(s, first, children)
		}
		children = append(children, boundary{key: bs[0].key})
		before, bs = bs[0].ref, bs[1:]
	}
}

func (f *forest) line(s *stage, before uint32, bs []boundary) uint32 {
	at := f.grow(lineBytes, lineBytes)
	line := f.bytes[at:]
	refs := line[s.keysBytes():]
	binary.NativeEndian.PutUint32(refs, before)
	last := before
	words := make([]uint64, s.boundaries/s.lanes)
	for i := range s.boundaries {
		key := uint64(1)<<s.bits - 1 // where there are no more, whatever is counted ends at the last one's
		if i < len(bs) {
			key, last = bs[i].key, bs[i].ref
		}
		words[i/s.lanes] |= key << (i % s.lanes * laneBits)
		binary.NativeEndian.PutUint32(refs[4*(i+1):], last)
	}
	for i, word := range words {
		binary.NativeEndian.PutUint64(line[8*i:], word)
	}
	return s.kind | uint32(at/lineBytes)
}

// tree4 makes the root and the nodes of IPv4 addresses. A nil root means that all of them are of one class.
func (f *forest) tree4(t *intervals[uint32]) (root []uint32, steps uint32) {
	if len(t.starts) == 1 {
		return nil, 0
	}
	root = make([]uint32, rootEntries)
	var before uint32
	var bs []boundary
	i := 0
	for h := range root {
		bs = bs[:0]
		for ; i < len(t.starts) && int(t.starts[i]>>16) == h; i++ {
			bs = append(bs, boundary{uint64(t.starts[i] & 0xffff), t.classOf[i]})
		}
		var n int
		root[h], n = f.block(&stage4, 0, stage4.bits, before, bs, stage4.steps)
		steps = max(steps, uint32(n))
		if len(bs) > 0 {
			before = bs[len(bs)-1].ref
		}
	}
	return root, steps
}

// keys6 are what is left of an IPv6 address behind its top 16 bits.
func keys6(a netset.Addr6) (first, second uint64) {
	return a.Hi<<16>>8 | a.Lo>>56, a.Lo & (1<<56 - 1)
}

// tree6 is tree4 for IPv6 addresses, with the steps by each of the keys.
func (f *forest) tree6(t *intervals[netset.Addr6]) (root []uint32, steps, deeper uint32) {
	if len(t.starts) == 1 {
		return nil, 0, 0
	}
	root = make([]uint32, rootEntries)
	var before uint32
	var bs, second []boundary
	i := 0
	for h := range root {
		bs = bs[:0]
		start := before
		for i < len(t.starts) && int(t.starts[i].Hi>>48) == h {
			// All that have the same first key.
			key, _ := keys6(t.starts[i])
			second = second[:0]
			for ; i < len(t.starts) && int(t.starts[i].Hi>>48) == h; i++ {
				k, k2 := keys6(t.starts[i])
				if k != key {
					break
				}
				second = append(second, boundary{k2, t.classOf[i]})
			}
			ref, n := f.block(&stage6second, 0, stage6second.bits, before, second, stage6second.steps)
			deeper = max(deeper, uint32(n))
			bs = append(bs, boundary{key, ref})
			before = second[len(second)-1].ref
			behind := key + 1
			if i < len(t.starts) {
				if next, _ := keys6(t.starts[i]); next == behind && int(t.starts[i].Hi>>48) == h {
					continue
				}
			}
			if n > 0 && behind < 1<<stage6.bits {
				bs = append(bs, boundary{behind, before})
			}
		}
		var n int
		root[h], n = f.block(&stage6, 0, stage6.bits, start, bs, stage6.steps)
		steps = max(steps, uint32(n))
	}
	return root, steps, deeper
}
