// SPDX-License-Identifier: Apache-2.0

package netset

import (
	"bufio"
	"fmt"
	"io"
	"net/netip"
	"strings"
)

// ParsePrefix reads an address or a CIDR. A bare address means that one address. Host bits are allowed:
// 10.1.2.3/8 is 10.0.0.0/8, as address lists in the wild are rarely clean.
func ParsePrefix(s string) (netip.Prefix, error) {
	if strings.Contains(s, "/") {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return netip.Prefix{}, fmt.Errorf("%q is not a CIDR such as 10.0.0.0/8 or 2001:db8::/32", s)
		}
		return p.Masked(), nil
	}
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" {
		return netip.Prefix{}, fmt.Errorf("%q is not an address or CIDR such as 10.0.0.0/8 or 2001:db8::1", s)
	}
	return netip.PrefixFrom(a, a.BitLen()), nil
}

// ReadList reads a plain address list: one address or CIDR a line, in its first column; columns are
// separated by space, tab or comma and all but the first are ignored, as is everything after '#' or ';'.
// Errors name the place as name:line:column.
func ReadList(r io.Reader, name string) (*Set, error) {
	var b Builder
	scanner := bufio.NewScanner(r)
	scanner.Buffer(make([]byte, 64<<10), 1<<20)
	line := 0
	for scanner.Scan() {
		line++
		text := scanner.Text()
		if line == 1 {
			text = strings.TrimPrefix(text, "\ufeff")
		}
		if cut := strings.IndexAny(text, "#;"); cut >= 0 {
			text = text[:cut]
		}
		start := 0
		for start < len(text) && isSpace(text[start]) {
			start++
		}
		end := start
		for end < len(text) && !isSpace(text[end]) && text[end] != ',' {
			end++
		}
		if start == end {
			if start < len(text) { // a comma in front of everything
				return nil, fmt.Errorf("%s:%d:%d: empty first column, want an address or CIDR", name, line, start+1)
			}
			continue
		}
		p, err := ParsePrefix(text[start:end])
		if err != nil {
			return nil, fmt.Errorf("%s:%d:%d: %w", name, line, start+1, err)
		}
		b.Add(p)
	}
	if err := scanner.Err(); err != nil {
		return nil, fmt.Errorf("%s:%d: %w", name, line+1, err)
	}
	return b.Build(), nil
}

func isSpace(c byte) bool { return c == ' ' || c == '\t' || c == '\r' }
