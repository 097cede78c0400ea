// SPDX-License-Identifier: Apache-2.0

package resource

import (
	"bytes"
	"fmt"
	"sort"
	"unicode/utf8"
)

// text is what is read, and knows where each of its bytes stands.
//
// The YAML library counts columns in characters, and takes some characters for a line's end that no editor does.
// Its places are turned into offsets first, and those into what a user counts.
type text struct {
	data []byte
	at   Position // of the first byte; Line is 0 at a file's start
	// lines are the offsets where the lines begin that the YAML library counts.
	lines []int
	// places are where a user's lines begin, and what stands behind a part that was left out; in their order.
	places []place
	// last is the place that was asked for last. The next one is mostly near it, while a line may be the whole text.
	last struct{ line, column, offset int }
}

// place is where an offset is for a user, and with it what follows up to the next place.
type place struct{ offset, line, column int }

// behind is the place of what stands at an offset, behind a part that is not in the text.
func (p place) behind(offset int, left []byte) place {
	p.column += offset - p.offset + len(left)
	if end := bytes.LastIndexByte(left, '\n'); end >= 0 {
		p.line += bytes.Count(left, newline)
		p.column = len(left) - end
	}
	p.offset = offset
	return p
}

var newline = []byte("\n")

// newText is a text that these runs were cut out of, in their order.
func newText(data []byte, runs []*run, at Position) *text {
	t := &text{data: data, at: at, lines: []int{0}, places: []place{{line: 1, column: 1}}}
	t.last.line, t.last.column = 1, 1
	here := t.places[0]
	for i := 0; i < len(data); i++ {
		if len(runs) > 0 && runs[0].gap == i {
			here = here.behind(i, runs[0].left)
			t.places = append(t.places, here)
			runs = runs[1:]
		}
		switch data[i] {
		case '\n':
			here = place{i + 1, here.line + 1, 1}
			t.places = append(t.places, here)
		case '\r':
			if i+1 < len(data) && data[i+1] == '\n' {
				continue
			}
		case 0x85: // U+0085, next line
			if i == 0 || data[i-1] != 0xc2 {
				continue
			}
		case 0xa8, 0xa9: // U+2028 and U+2029, line and paragraph separator
			if i < 2 || data[i-1] != 0x80 || data[i-2] != 0xe2 {
				continue
			}
		default:
			continue
		}
		t.lines = append(t.lines, i+1)
	}
	return t
}

// offset is where a place of the YAML library's is. Both count from 1.
func (t *text) offset(lineNumber, column int) int {
	if lineNumber > len(t.lines) {
		return len(t.data)
	}
	lineNumber, column = max(lineNumber, 1), max(column, 1)
	at, from := t.lines[lineNumber-1], 1
	if t.last.line == lineNumber && t.last.column < 2*column {
		at, from = t.last.offset, t.last.column
	}
	for ; from > column; from-- {
		_, size := utf8.DecodeLastRune(t.data[:at])
		at -= size
	}
	for ; from < column && at < len(t.data); from++ {
		_, size := utf8.DecodeRune(t.data[at:])
		at += size
	}
	t.last.line, t.last.column, t.last.offset = lineNumber, from, at
	return at
}

// position is where an offset is, for people.
func (t *text) position(offset int) Position {
	i := sort.Search(len(t.places), func(i int) bool { return t.places[i].offset > offset }) - 1
	here := t.places[i]
	p := Position{File: t.at.File, Line: here.line, Column: here.column + offset - here.offset}
	if t.at.Line > 0 {
		if p.Line == 1 {
			p.Column += t.at.Column - 1
		}
		p.Line += t.at.Line - 1
	}
	return p
}

// notText finds the first byte that no YAML has, and says why. The library says the same, but not where.
func notText(data []byte) (offset int, why string) {
	for i := 0; i < len(data); {
		if c := data[i]; c < utf8.RuneSelf {
			if c < ' ' && c != '\t' && c != '\n' && c != '\r' {
				return i, fmt.Sprintf("control character %#02x; want text", c)
			}
			i++
			continue
		}
		r, size := utf8.DecodeRune(data[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			return i, fmt.Sprintf("byte %#02x is not UTF-8; want text in UTF-8", data[i])
		case r == 0xfffe || r == 0xffff:
			return i, fmt.Sprintf("%U is not a character; want text in UTF-8", r)
		}
		i += size
	}
	return -1, ""
}
