// SPDX-License-Identifier: Apache-2.0

package compiler

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"

	"github.com/untracked-cni/untracked/pkg/netset"
	"github.com/untracked-cni/untracked/pkg/policy"
)

// Classify is policy.Walk by reading the image as the BPF programs do.
func (im *Image) Classify(p *policy.Packet) (decides int, via []int) {
	return im.Walk(p, func(string, ...any) {})
}

// Walk is Classify, and says each step: what it read, where in the image, and what it makes of it.
func (im *Image) Walk(p *policy.Packet, say func(format string, args ...any)) (decides int, via []int) {
	w := walk{im, &im.Layout, say}
	if w.Rules == 0 {
		return policy.NoRule, nil
	}
	var classes [numDims]uint32
	if p.Src.Is4() {
		classes[dimSrc] = w.address4(dimSrc, "source", &w.Src4, p.Src)
		classes[dimDst] = w.address4(dimDst, "destination", &w.Dst4, p.Dst)
	} else {
		classes[dimSrc] = w.address6(dimSrc, "source", &w.Src6, p.Src)
		classes[dimDst] = w.address6(dimDst, "destination", &w.Dst6, p.Dst)
	}
	slot, value := l4Key(p)
	classes[dimL4] = w.page(dimL4, "l4", &w.L4, slot<<16|value)
	sport := uint32(noPorts)
	if slot <= slotSCTP {
		sport = uint32(p.SrcPort)
	}
	classes[dimSport] = w.page(dimSport, "source port", &w.Sport, sport)
	if w.Words > 0 {
		return w.byVectors(classes)
	}
	return w.byTables(classes), nil
}

type walk struct {
	im *Image
	*Layout
	say func(format string, args ...any)
}

func (w *walk) uses(dim int) bool { return w.Uses>>dim&1 != 0 }

func (w *walk) address4(dim int, what string, t *Tree, addr netip.Addr) uint32 {
	if !w.uses(dim) {
		return 0
	}
	ref, a := t.Class, netset.From4(addr)
	if t.Root != 0 {
		ref = w.root(what, t, addr, a>>16)
		ref = w.descend(&stage4, ref, uint64(a&0xffff), t.Steps)
	}
	w.say("%s %s is of class %d", what, addr, ref)
	return ref
}

func (w *walk) address6(dim int, what string, t *Tree, addr netip.Addr) uint32 {
	if !w.uses(dim) {
		return 0
	}
	ref, a := t.Class, netset.From6(addr)
	if t.Root != 0 {
		first, second := keys6(a)
		ref = w.root(what, t, addr, uint32(a.Hi>>48))
		ref = w.descend(&stage6, ref, first, t.Steps)
		ref = w.descend(&stage6second, ref, second, t.Deeper)
	}
	w.say("%s %s is of class %d", what, addr, ref)
	return ref
}

func (w *walk) root(what string, t *Tree, addr netip.Addr, i uint32) uint32 {
	ref := w.im.u32(t.Root + i*4)
	w.say("%s %s: root[%#x] at %d is %s", what, addr, i, t.Root+i*4, reference(ref))
	return ref
}

func (w *walk) descend(s *stage, ref uint32, key uint64, steps uint32) uint32 {
	for range steps {
		if ref>>30 != s.kind>>30 {
			break
		}
		var at uint32
		if ref&refPage != 0 {
			i := uint32(key>>(ref>>refShift&63)) & (2<<(ref>>refBits&15) - 1)
			at = ref&(1<<refBits-1)*pageBytes + i*4
			w.say("  page: entry %d for key %#x at %d", i, key, w.Nodes+at)
		} else {
			line := ref & (refPage - 1) * lineBytes
			n := uint32(0)
			for i := range s.boundaries {
				word := w.im.u64(w.Nodes + line + uint32(i/s.lanes*8))
				if word>>(i%s.lanes*laneBits)&(1<<s.bits-1) <= key {
					n++
				}
			}
			at = line + uint32(s.keysBytes()) + n*4
			w.say("  line at %d: %d boundaries are at or below key %#x", w.Nodes+line, n, key)
		}
		ref = w.im.u32(w.Nodes + at)
		w.say("  there is %s", reference(ref))
	}
	return ref
}

func reference(ref uint32) string {
	switch {
	case ref>>30 == refClass>>30:
		return fmt.Sprintf("class %d", ref)
	case ref&refPage != 0:
		return fmt.Sprintf("page %d, of %d bits from bit %d on", ref&(1<<refBits-1), ref>>refBits&15+1, ref>>refShift&63)
	}
	return fmt.Sprintf("line %d", ref&(refPage-1))
}

func (w *walk) page(dim int, what string, t *Pages, key uint32) uint32 {
	if !w.uses(dim) {
		return 0
	}
	page := uint32(w.im.u16(t.Index + key>>8*2))
	class := uint32(w.im.u16(t.Pages + (page*pageSize+key&255)*2))
	w.say("%s %#x: index[%#x] is page %d, entry %#x is class %d", what, key, key>>8, page, key&255, class)
	return class
}

// combine looks a column up in a row.
func (w *walk) combine(what string, row, column uint32) uint32 {
	value, base := w.im.u32(w.Rows+row*8), w.im.u32(w.Rows+row*8+4)
	cell := base + column
	whose, own := w.im.u32(w.Cells+cell*8), w.im.u32(w.Cells+cell*8+4)
	if whose == row {
		w.say("%s: row %d begins at cell %d; cell %d+%d is its own: %s", what, row, base, base, column, inWords(own))
		return own
	}
	w.say("%s: row %d begins at cell %d; cell %d+%d is not its own: the usual %s", what, row, base, base, column, inWords(value))
	return value
}

func inWords(value uint32) string {
	if value == nothing {
		return "nothing"
	}
	return fmt.Sprintf("value %d", value)
}

func (w *walk) byTables(classes [numDims]uint32) int {
	best := nothing
	if w.First != 0 {
		best = w.im.u32(w.First + classes[dimL4]*4)
		w.say("first[%d] is %s", classes[dimL4], inWords(best))
	}
	for i, k := range w.Kinds {
		if k.Used == 0 {
			continue
		}
		class, have := uint32(0), 0
		for d := range dimL4 {
			if (i+1)>>d&1 == 0 {
				continue
			}
			switch have++; have {
			case 1:
				class = classes[d]
			case 2:
				class = w.combine("pair", k.Second+class, classes[d])
			case 3:
				class = w.combine("pair", k.Third+class, classes[d])
			}
		}
		if class == k.None {
			w.say("no rule of kind %03b minds class %d", i+1, class)
			continue
		}
		value := w.im.u32(w.Rows + (k.Rows+class)*8)
		if k.Used > 1 {
			value = w.combine("rule", k.Rows+class, classes[dimL4])
		} else {
			w.say("rule: row %d has %s", k.Rows+class, inWords(value))
		}
		best = min(best, value)
	}
	if best == nothing {
		w.say("no rule matches")
		return policy.NoRule
	}
	w.say("the least is value %d: rule %d, %s", best, best>>actionBits, policy.Action(best&(1<<actionBits-1)))
	return int(best >> actionBits)
}

func (w *walk) byVectors(classes [numDims]uint32) (decides int, via []int) {
	match := ones(int(w.Words))
	for d, class := range classes {
		if !w.uses(d) {
			continue
		}
		for i := range match {
			match[i] &= w.im.u64(w.Vectors[d].At + (class*w.Words+uint32(i))*8)
		}
		w.say("with vector %d of dimension %d, %x is left", class, d, match)
	}
	at := uint32(0)
	for i := at / 64; i < w.Words; i = at / 64 {
		m := match[i] & (^uint64(0) << (at % 64))
		if m == 0 {
			at = (i + 1) * 64
			continue
		}
		rule := i*64 + uint32(bits.TrailingZeros64(m))
		if rule >= w.Rules {
			break
		}
		action := policy.Action(w.im.Bytes[w.Actions+rule])
		w.say("rule %d is the next that matches: %s", rule, action)
		if action.Decides() {
			return int(rule), via
		}
		via = append(via, int(rule))
		at = uint32(w.im.u16(w.Next + rule*2))
	}
	w.say("no rule matches")
	return policy.NoRule, via
}

func l4Key(p *policy.Packet) (slot, value uint32) {
	if p.HasL4 {
		switch p.Protocol {
		case policy.TCP:
			return slotTCP, uint32(p.DstPort)
		case policy.UDP:
			return slotUDP, uint32(p.DstPort)
		case policy.UDPLite:
			return slotUDPLite, uint32(p.DstPort)
		case policy.SCTP:
			return slotSCTP, uint32(p.DstPort)
		case policy.ICMP:
			return slotICMP, uint32(p.ICMPType)<<8 | uint32(p.ICMPCode)
		case policy.ICMPv6:
			return slotICMPv6, uint32(p.ICMPType)<<8 | uint32(p.ICMPCode)
		}
	}
	return slotProtocol, uint32(p.Protocol)
}

func (im *Image) u16(at uint32) uint16 { return binary.NativeEndian.Uint16(im.Bytes[at:]) }
func (im *Image) u32(at uint32) uint32 { return binary.NativeEndian.Uint32(im.Bytes[at:]) }
func (im *Image) u64(at uint32) uint64 { return binary.NativeEndian.Uint64(im.Bytes[at:]) }
