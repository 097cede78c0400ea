// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"bytes"
	"encoding/binary"
	"math/bits"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// register is where every field is loaded to: 16 bytes, enough for an IPv6 address.
const register = unix.NFT_REG_1

// step is one expression of a rule: either a plain one, or the lookup of what was loaded before in a set. To look up
// in a map is to count, too, and like a set it lets nothing pass that it does not hold.
type step struct {
	expr   expr.Any
	set    *set
	invert bool
}

func steps(exprs ...expr.Any) []step {
	out := make([]step, len(exprs))
	for i, e := range exprs {
		out[i].expr = e
	}
	return out
}

func loadMeta(key expr.MetaKey) expr.Any {
	return &expr.Meta{Key: key, Register: register}
}

func loadPayload(base expr.PayloadBase, offset, length int) *expr.Payload {
	return &expr.Payload{DestRegister: register, Base: base, Offset: uint32(offset), Len: uint32(length)}
}

func is(value ...byte) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: value}
}

func isNot(value ...byte) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpNeq, Register: register, Data: value}
}

func and(mask ...byte) expr.Any {
	return &expr.Bitwise{
		SourceRegister: register, DestRegister: register,
		Len: uint32(len(mask)), Mask: mask, Xor: make([]byte, len(mask)),
	}
}

func inRange(lo, hi []byte) expr.Any {
	return &expr.Range{Op: expr.CmpOpEq, Register: register, FromData: lo, ToData: hi}
}

// member tests that what load loads is in s, or with invert that it is not. The second result is false when
// that can hold for no value. No steps mean that it holds for every value.
func (v view) member(load expr.Any, s *set, invert bool) ([]step, bool) {
	if field, ok := load.(*expr.Payload); ok && v.quoted {
		s = s.of(field)
	}
	switch {
	case s.count == 0:
		return nil, invert
	case s.everything():
		return nil, !invert
	case s.count > 1:
		return []step{{expr: load}, {set: s, invert: invert}}, true
	}
	lo, hi := s.first()
	op := expr.CmpOpEq
	if invert {
		op = expr.CmpOpNeq
	}
	if bytes.Equal(lo, hi) {
		return steps(load, &expr.Cmp{Op: op, Register: register, Data: lo}), true
	}
	if mask := prefixMask(lo, hi); mask != nil && s.width() > 2 {
		return steps(load, and(mask...), &expr.Cmp{Op: op, Register: register, Data: lo}), true
	}
	return steps(load, &expr.Range{Op: op, Register: register, FromData: lo, ToData: hi}), true
}

// prefixMask is the network mask of a range that is a prefix, nil for any other.
func prefixMask(lo, hi []byte) []byte {
	length := 0
	for i := range lo {
		n := bits.LeadingZeros8(lo[i] ^ hi[i])
		length += n
		if n < 8 {
			break
		}
	}
	mask := make([]byte, len(lo))
	for i := range mask {
		mask[i] = ^byte(0xff >> min(8, max(0, length-8*i)))
		if lo[i]&^mask[i] != 0 || hi[i]|mask[i] != 0xff {
			return nil
		}
	}
	return mask
}

// hostOrder is for values that are numbers to the kernel: marks and address types.
func hostOrder(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }
