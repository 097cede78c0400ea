// SPDX-License-Identifier: Apache-2.0

package netset

import (
	"encoding/binary"
	"errors"
	"slices"
)

// MarshalBinary packs the set for a record on this machine: the number of IPv4 ranges and of entries, 8 bytes
// each, then 8 bytes for each IPv4 range and 32 for each IPv6 range, all little-endian.
func (s *Set) MarshalBinary() ([]byte, error) {
	out := make([]byte, 0, 16+8*len(s.v4)+32*len(s.v6))
	out = binary.LittleEndian.AppendUint64(out, uint64(len(s.v4)))
	out = binary.LittleEndian.AppendUint64(out, uint64(s.entries))
	for _, r := range s.v4 {
		out = binary.LittleEndian.AppendUint32(out, r.Lo)
		out = binary.LittleEndian.AppendUint32(out, r.Hi)
	}
	for _, r := range s.v6 {
		for _, half := range []uint64{r.Lo.Hi, r.Lo.Lo, r.Hi.Hi, r.Hi.Lo} {
			out = binary.LittleEndian.AppendUint64(out, half)
		}
	}
	return out, nil
}

// UnmarshalBinary is the inverse of MarshalBinary.
func (s *Set) UnmarshalBinary(data []byte) error {
	if len(data) < 16 {
		return errors.New("packed address set: cut short")
	}
	n4, entries := binary.LittleEndian.Uint64(data), binary.LittleEndian.Uint64(data[8:])
	data = data[16:]
	if n4 > uint64(len(data)/8) || (uint64(len(data))-8*n4)%32 != 0 {
		return errors.New("packed address set: of no whole number of ranges")
	}
	*s = Set{entries: int(entries), v4: slices.Grow([]Range4(nil), int(n4))}
	for ; n4 > 0; n4-- {
		s.v4 = append(s.v4, Range4{binary.LittleEndian.Uint32(data), binary.LittleEndian.Uint32(data[4:])})
		data = data[8:]
	}
	s.v6 = slices.Grow(s.v6, len(data)/32)
	half := func(i int) uint64 { return binary.LittleEndian.Uint64(data[8*i:]) }
	for ; len(data) > 0; data = data[32:] {
		s.v6 = append(s.v6, Range6{Addr6{half(0), half(1)}, Addr6{half(2), half(3)}})
	}
	return nil
}
