// SPDX-License-Identifier: Apache-2.0

package frame

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/untracked-cni/untracked/pkg/packet"
)

// Hex makes a frame of hexadecimal bytes, in groups of whole bytes that white space or colons may separate and that
// may begin with 0x. If a line begins with the offset 0 and a colon, the text is a dump as `tcpdump -xx` and xxd write
// it: what is in front of that line is ignored, and so is what stands behind the bytes after two spaces.
//
// The bytes are those of an Ethernet frame. Only if they are no IP packet as such, but all of them exactly an IP packet
// by its own account, are they taken as that, as `tcpdump -x` writes it, and get an Ethernet header.
func Hex(text string) (*Frame, error) {
	b, err := hexBytes(text)
	if err != nil {
		return nil, err
	}
	if p, _ := packet.Parse(b); p == nil {
		if etherType := exactlyIP(b); etherType != typeNone {
			return withHeader(etherType, b, len(b)), nil
		}
	}
	if len(b) < ethernetHeader {
		return nil, fmt.Errorf("%d bytes, want a whole Ethernet frame, whose header alone has %d", len(b), ethernetHeader)
	}
	return &Frame{Ethernet: b, Length: len(b)}, nil
}

// exactlyIP is the ethertype of bytes that are an IP packet and nothing else, or typeNone.
func exactlyIP(b []byte) uint16 {
	switch {
	case len(b) >= 20 && b[0]>>4 == 4 && b[0]&15 >= 5 && int(binary.BigEndian.Uint16(b[2:])) == len(b):
		return typeIPv4
	case len(b) >= 40 && b[0]>>4 == 6 && int(binary.BigEndian.Uint16(b[4:]))+40 == len(b):
		return typeIPv6
	}
	return typeNone
}

func hexBytes(text string) ([]byte, error) {
	var bytes []byte
	lines := strings.Split(text, "\n")
	first := firstOfDump(lines)
	for i, line := range lines {
		digits := line
		if first >= 0 {
			if i < first || strings.TrimSpace(line) == "" {
				continue
			}
			offset, rest, ok := cutOffset(line)
			if !ok {
				return nil, fmt.Errorf("line %d of the dump has no offset, want 0x%04x: in front", i+1, len(bytes))
			}
			if i > first && offset == 0 {
				return nil, fmt.Errorf("line %d begins a second packet, want one; capture files may have many", i+1)
			}
			if offset != len(bytes) {
				return nil, fmt.Errorf("line %d has offset 0x%04x behind 0x%04x bytes, want them equal", i+1, offset, len(bytes))
			}
			digits, _, _ = strings.Cut(strings.TrimLeft(rest, " \t"), "  ")
		}
		for _, group := range strings.FieldsFunc(digits, isSeparator) {
			b, err := hexGroup(group)
			if err != nil {
				return nil, fmt.Errorf("line %d: %w", i+1, err)
			}
			bytes = append(bytes, b...)
		}
	}
	return bytes, nil
}

// firstOfDump is the index of the line that a dump begins with, -1 if the text is none.
func firstOfDump(lines []string) int {
	for i, line := range lines {
		if offset, _, ok := cutOffset(line); ok && offset == 0 {
			return i
		}
	}
	return -1
}

// cutOffset takes the offset from the front of a dump's line: 4 to 8 digits, a colon and white space.
func cutOffset(line string) (offset int, rest string, ok bool) {
	head, rest, found := strings.Cut(strings.TrimLeft(line, " \t"), ":")
	head = strings.TrimPrefix(head, "0x")
	if !found || len(head) < 4 || len(head) > 8 || !strings.HasPrefix(rest, " ") && !strings.HasPrefix(rest, "\t") {
		return 0, "", false
	}
	n, err := strconv.ParseUint(head, 16, 31)
	return int(n), rest, err == nil
}

func isSeparator(r rune) bool { return r == ' ' || r == '\t' || r == '\r' || r == ':' }

func hexGroup(group string) ([]byte, error) {
	digits := strings.TrimPrefix(strings.TrimPrefix(group, "0x"), "0X")
	b, err := hex.DecodeString(digits)
	var invalid hex.InvalidByteError
	switch {
	case errors.As(err, &invalid):
		at := strings.IndexByte(digits, byte(invalid))
		r, _ := utf8.DecodeRuneInString(digits[at:])
		return nil, fmt.Errorf("%+q is no hexadecimal digit; want bytes such as 0800 or 08 00 or 08:00", r)
	case err != nil || len(b) == 0:
		return nil, fmt.Errorf("%q is no whole number of bytes; want two digits for each", abbreviated(group))
	}
	return b, nil
}

func abbreviated(s string) string {
	if len(s) <= 40 {
		return s
	}
	return s[:40] + "..."
}
