// SPDX-License-Identifier: Apache-2.0

// Package netset holds sets of IP addresses as sorted, disjoint ranges.
//
// A policy may name a million prefixes, with duplicates, overlaps and host bits set. Every reader of such
// a set (the evaluator, the compiler of lookup tables, the nftables writer) wants the same thing: the
// addresses it covers, once each, in order. IPv4 and IPv6 are two separate spaces: 10.0.0.0/8 and a00::/8
// never meet. An IPv4-mapped prefix (::ffff:a.b.c.d), which some lists write, is added as the IPv4 addresses
// it stands for; a packet that carries such an address in an IPv6 header is an IPv6 packet all the same.
package netset

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"math"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
)

// Range4 is an inclusive range of IPv4 addresses in host byte order.
type Range4 struct{ Lo, Hi uint32 }

// Addr6 is an IPv6 address as two 64-bit halves in host byte order.
type Addr6 struct{ Hi, Lo uint64 }

// Range6 is an inclusive range of IPv6 addresses.
type Range6 struct{ Lo, Hi Addr6 }

// Max6 is the last IPv6 address.
var Max6 = Addr6{math.MaxUint64, math.MaxUint64}

// Compare orders addresses numerically: -1, 0 or 1.
func (a Addr6) Compare(b Addr6) int {
	switch {
	case a.Hi < b.Hi || a.Hi == b.Hi && a.Lo < b.Lo:
		return -1
	case a == b:
		return 0
	}
	return 1
}

// Next is the address after a. The last address wraps to zero.
func (a Addr6) Next() Addr6 {
	a.Lo++
	if a.Lo == 0 {
		a.Hi++
	}
	return a
}

// Netip converts a to the standard library's type.
func (a Addr6) Netip() netip.Addr {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], a.Hi)
	binary.BigEndian.PutUint64(b[8:], a.Lo)
	return netip.AddrFrom16(b)
}

// From6 converts an IPv6 address.
func From6(a netip.Addr) Addr6 {
	b := a.As16()
	return Addr6{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
}

// From4 converts an IPv4 address to its number in host byte order.
func From4(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

// To4 is the inverse of From4.
func To4(v uint32) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], v)
	return netip.AddrFrom4(b)
}

// Set is an immutable set of addresses of both families. The zero Set is empty.
type Set struct {
	v4      []Range4
	v6      []Range6
	entries int
	hash    atomic.Uint64 // 0 until it was asked for
}

// Ranges4 returns the IPv4 part: sorted, disjoint and never adjacent. Callers must not change it.
func (s *Set) Ranges4() []Range4 { return s.v4 }

// Ranges6 returns the IPv6 part: sorted, disjoint and never adjacent. Callers must not change it.
func (s *Set) Ranges6() []Range6 { return s.v6 }

// Entries is the number of prefixes the set was built from, duplicates included.
func (s *Set) Entries() int { return s.entries }

// Empty reports whether no address is in the set.
func (s *Set) Empty() bool { return len(s.v4) == 0 && len(s.v6) == 0 }

// Contains reports whether a is in the set. A zone is ignored.
func (s *Set) Contains(a netip.Addr) bool {
	if a.Is4() {
		v := From4(a)
		_, found := slices.BinarySearchFunc(s.v4, v, func(r Range4, v uint32) int {
			switch {
			case r.Hi < v:
				return -1
			case r.Lo > v:
				return 1
			}
			return 0
		})
		return found
	}
	v := From6(a)
	_, found := slices.BinarySearchFunc(s.v6, v, func(r Range6, v Addr6) int {
		switch {
		case r.Hi.Compare(v) < 0:
			return -1
		case r.Lo.Compare(v) > 0:
			return 1
		}
		return 0
	})
	return found
}

// Hash identifies the addresses of the set, however they were written. It is found out once: many rules may name a
// set of a million.
func (s *Set) Hash() uint64 {
	hash := s.hash.Load()
	if hash == 0 {
		hash = s.sum()
		s.hash.Store(hash)
	}
	return hash
}

func (s *Set) sum() uint64 {
	h := fnv.New64a()
	var b [32]byte
	for _, r := range s.v4 {
		binary.BigEndian.PutUint32(b[0:], r.Lo)
		binary.BigEndian.PutUint32(b[4:], r.Hi)
		h.Write(b[:8])
	}
	h.Write([]byte{6})
	for _, r := range s.v6 {
		binary.BigEndian.PutUint64(b[0:], r.Lo.Hi)
		binary.BigEndian.PutUint64(b[8:], r.Lo.Lo)
		binary.BigEndian.PutUint64(b[16:], r.Hi.Hi)
		binary.BigEndian.PutUint64(b[24:], r.Hi.Lo)
		h.Write(b[:])
	}
	return h.Sum64()
}

// String lists a small set's prefixes and summarises a large one.
func (s *Set) String() string {
	const few = 8
	if n := len(s.v4) + len(s.v6); n > few {
		return fmt.Sprintf("%d CIDRs", s.entries)
	}
	var parts []string
	for _, p := range s.Prefixes() {
		if p.IsSingleIP() {
			parts = append(parts, p.Addr().String())
		} else {
			parts = append(parts, p.String())
		}
	}
	if len(parts) > few {
		return fmt.Sprintf("%d CIDRs", s.entries)
	}
	return strings.Join(parts, ",")
}

// Prefixes returns the fewest prefixes that cover the set, IPv4 first, in order.
func (s *Set) Prefixes() []netip.Prefix {
	var out []netip.Prefix
	for _, r := range s.v4 {
		lo, hi := uint64(r.Lo), uint64(r.Hi)
		for lo <= hi {
			bits := 32
			for bits > 0 {
				size := uint64(1) << (32 - (bits - 1))
				if lo%size != 0 || lo+size-1 > hi {
					break
				}
				bits--
			}
			out = append(out, netip.PrefixFrom(To4(uint32(lo)), bits))
			lo += uint64(1) << (32 - bits)
		}
	}
	for _, r := range s.v6 {
		lo := r.Lo
		for {
			bits := 128
			for bits > 0 {
				first, last := Bounds6(netip.PrefixFrom(lo.Netip(), bits-1))
				if first != lo || last.Compare(r.Hi) > 0 {
					break
				}
				bits--
			}
			p := netip.PrefixFrom(lo.Netip(), bits)
			out = append(out, p)
			_, last := Bounds6(p)
			if last.Compare(r.Hi) >= 0 {
				break
			}
			lo = last.Next()
		}
	}
	return out
}

// Bounds4 gives the first and last address of an IPv4 prefix, host bits ignored.
func Bounds4(p netip.Prefix) (lo, hi uint32) {
	mask := uint32(math.MaxUint32)
	if p.Bits() < 32 {
		mask = ^(math.MaxUint32 >> p.Bits())
	}
	lo = From4(p.Addr()) & mask
	return lo, lo | ^mask
}

// Bounds6 gives the first and last address of an IPv6 prefix, host bits ignored.
func Bounds6(p netip.Prefix) (lo, hi Addr6) {
	a := From6(p.Addr())
	mask := Addr6{math.MaxUint64, math.MaxUint64}
	switch bits := p.Bits(); {
	case bits < 64:
		mask = Addr6{^(uint64(math.MaxUint64) >> bits), 0}
	case bits < 128:
		mask.Lo = ^(uint64(math.MaxUint64) >> (bits - 64))
	}
	lo = Addr6{a.Hi & mask.Hi, a.Lo & mask.Lo}
	return lo, Addr6{lo.Hi | ^mask.Hi, lo.Lo | ^mask.Lo}
}

// Builder collects prefixes in any order. The zero Builder is ready to use.
type Builder struct {
	v4      []uint64 // packed ranges
	v6      []Range6
	entries int
}

// Add adds a prefix; host bits are ignored. An IPv4-mapped prefix of at least 96 bits is IPv4.
func (b *Builder) Add(p netip.Prefix) {
	b.entries++
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	if p.Addr().Is4() {
		b.add4(From4(p.Addr()), p.Bits())
		return
	}
	lo, hi := Bounds6(p)
	b.v6 = append(b.v6, Range6{lo, hi})
}

// Grow makes room for n more IPv4 prefixes.
func (b *Builder) Grow(n int) { b.v4 = slices.Grow(b.v4, n) }

func (b *Builder) add4(address uint32, bits int) {
	host := uint32(math.MaxUint32) >> bits // all of them for 0, none for 32
	lo := address &^ host
	b.v4 = append(b.v4, uint64(lo)<<32|uint64(lo|host))
}

// Build orders and merges what was added. The Builder must not be used afterwards.
func (b *Builder) Build() *Set {
	slices.SortFunc(b.v6, func(x, y Range6) int { return x.Lo.Compare(y.Lo) })
	return &Set{v4: merge4(sort4(b.v4)), v6: merge6(b.v6), entries: b.entries}
}

// Of builds a set from prefixes.
func Of(prefixes ...netip.Prefix) *Set {
	var b Builder
	for _, p := range prefixes {
		b.Add(p)
	}
	return b.Build()
}
