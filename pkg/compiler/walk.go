// SPDX-License-Identifier: Apache-2.0

package compiler

import (
	"encoding/binary"
	"math/bits"
	"net/netip"

	"github.com/untracked-cni/untracked/pkg/netset"
	"github.com/untracked-cni/untracked/pkg/policy"
)

// Classify is policy.Walk by reading the image as the BPF programs do.
func (im *Image) Classify(p *policy.Packet) (decides int, via []int) {
	l := &im.Layout
	if l.Rules == 0 {
		return policy.NoRule, nil
	}
	match := make([]uint64, l.Words)
	for i := range match {
		match[i] = ^uint64(0)
	}
	and := func(class, vectors uint32) {
		for w := range match {
			match[w] &= im.u64(vectors + class*l.Words*8 + uint32(w)*8)
		}
	}
	byInterval := func(t *Intervals, base uint32, above func(i uint32) bool) {
		if t.Count == 0 {
			return
		}
		for k := t.Steps; k > 0; k-- {
			if next := base + 1<<(k-1); !above(next) {
				base = next
			}
		}
		and(im.u32(t.Classes+base*4), t.Vectors)
	}
	by4 := func(t *Intervals, addr netip.Addr) {
		a, base := netset.From4(addr), uint32(0)
		if t.Root != 0 {
			base = im.u32(t.Root + a>>16*4)
		}
		byInterval(t, base, func(i uint32) bool { return im.u32(t.Starts+i*4) > a })
	}
	by6 := func(t *Intervals, addr netip.Addr) {
		a := netset.From6(addr)
		byInterval(t, 0, func(i uint32) bool { return im.start6(t, i).Compare(a) > 0 })
	}
	byPage := func(t *Pages, key uint32) {
		if t.NPages == 0 {
			return
		}
		page := uint32(im.u16(t.Index + key>>8*2))
		and(uint32(im.u16(t.Pages+(page*pageSize+key&255)*2)), t.Vectors)
	}

	if p.Src.Is4() {
		by4(&l.Src4, p.Src)
		by4(&l.Dst4, p.Dst)
	} else {
		by6(&l.Src6, p.Src)
		by6(&l.Dst6, p.Dst)
	}
	slot, value := l4Key(p)
	byPage(&l.L4, slot<<16|value)
	sport := uint32(noPorts)
	if slot <= slotSCTP {
		sport = uint32(p.SrcPort)
	}
	byPage(&l.Sport, sport)

	at := uint32(0)
	for w := at / 64; w < l.Words; w = at / 64 {
		m := match[w] & (^uint64(0) << (at % 64))
		if m == 0 {
			at = (w + 1) * 64
			continue
		}
		rule := w*64 + uint32(bits.TrailingZeros64(m))
		if rule >= l.Rules {
			break
		}
		if policy.Action(im.Bytes[l.Actions+rule]).Decides() {
			return int(rule), via
		}
		via = append(via, int(rule))
		at = uint32(im.u16(l.Next + rule*2))
	}
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

func (im *Image) start6(t *Intervals, i uint32) netset.Addr6 {
	return netset.Addr6{Hi: im.u64(t.Starts + i*8), Lo: im.u64(t.Lows + i*8)}
}

func (im *Image) u16(at uint32) uint16 { return binary.NativeEndian.Uint16(im.Bytes[at:]) }
func (im *Image) u32(at uint32) uint32 { return binary.NativeEndian.Uint32(im.Bytes[at:]) }
func (im *Image) u64(at uint32) uint64 { return binary.NativeEndian.Uint64(im.Bytes[at:]) }
