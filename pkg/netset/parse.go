// SPDX-License-Identifier: Apache-2.0

package netset

import (
	"bytes"
	"fmt"
	"math"
	"net/netip"
	"strings"
)

// ParsePrefix reads an address or a CIDR. A bare address means that one address. Host bits are allowed:
// 10.1.2.3/8 is 10.0.0.0/8, as address lists in the wild are rarely clean.
func ParsePrefix(s string) (netip.Prefix, error) {
	if strings.Contains(s, "/") {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return netip.Prefix{}, fmt.Errorf("%.80q is not a CIDR such as 10.0.0.0/8 or 2001:db8::/32", s)
		}
		return p.Masked(), nil
	}
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" {
		return netip.Prefix{}, fmt.Errorf("%.80q is not an address or CIDR such as 10.0.0.0/8 or 2001:db8::1", s)
	}
	return netip.PrefixFrom(a, a.BitLen()), nil
}

// AddText adds what [ParsePrefix] reads.
func (b *Builder) AddText(s []byte) error {
	if address, bits, ok := parse4(s); ok {
		b.entries++
		b.add4(address, bits)
		return nil
	}
	p, err := ParsePrefix(string(s))
	if err == nil {
		b.Add(p)
	}
	return err
}

// parse4 reads an IPv4 address or CIDR with the strictness of netip and a fraction of its cost: a list of a million
// is read in some 30 ms. It returns false for whatever else there is.
func parse4(s []byte) (address uint32, bits int, ok bool) {
	for octet := range 4 {
		n, rest, ok := number(s, math.MaxUint8)
		if !ok {
			return 0, 0, false
		}
		address, s = address<<8|uint32(n), rest
		if octet < 3 {
			if len(s) == 0 || s[0] != '.' {
				return 0, 0, false
			}
			s = s[1:]
		}
	}
	if len(s) == 0 {
		return address, 32, true
	}
	if s[0] != '/' {
		return 0, 0, false
	}
	bits, s, ok = number(s[1:], 32)
	return address, bits, ok && len(s) == 0
}

// number reads the digits that s begins with: no number above most, and no zero in front of another digit.
func number(s []byte, most int) (n int, rest []byte, ok bool) {
	i := 0
	for ; i < len(s) && '0' <= s[i] && s[i] <= '9'; i++ {
		if n = 10*n + int(s[i]-'0'); n > most {
			return 0, nil, false
		}
	}
	return n, s[i:], i == 1 || i > 1 && s[0] != '0'
}

// ParseList reads a plain address list: one address or CIDR a line, in its first column; columns are
// separated by space, tab or comma and all but the first are ignored, as is everything after '#' or ';'.
// Errors name the place as name:line:column.
func ParseList(text []byte, name string) (*Set, error) {
	var b Builder
	b.Grow(bytes.Count(text, newline) + 1)
	rest := bytes.TrimPrefix(text, []byte("\ufeff"))
	for number := 1; len(rest) > 0; number++ {
		var line []byte
		line, rest, _ = bytes.Cut(rest, newline)
		start, end := firstColumn(line)
		switch {
		case start < end:
			if err := b.AddText(line[start:end]); err != nil {
				return nil, fmt.Errorf("%s:%d:%d: %w", name, number, start+1, err)
			}
		case start < len(line) && line[start] == ',': // in front of everything
			return nil, fmt.Errorf("%s:%d:%d: empty first column, want an address or CIDR", name, number, start+1)
		}
	}
	return b.Build(), nil
}

var newline = []byte("\n")

// firstColumn is where it begins and ends.
func firstColumn(line []byte) (start, end int) {
	for start < len(line) && isSpace(line[start]) {
		start++
	}
	for end = start; end < len(line); end++ {
		if c := line[end]; isSpace(c) || c == ',' || c == '#' || c == ';' {
			break
		}
	}
	return start, end
}

func isSpace(c byte) bool { return c == ' ' || c == '\t' || c == '\r' }
