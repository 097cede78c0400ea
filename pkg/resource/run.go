// SPDX-License-Identifier: Apache-2.0

package resource

import (
	"bytes"
	"iter"
	"slices"

	"go.yaml.in/yaml/v4"

	"github.com/untracked-cni/untracked/pkg/netset"
)

// A set of a million networks is a million list elements that all look alike:
//
//	nets:
//	- 192.0.2.0/24          <- first
//	- 198.51.100.7/32       <- left out
//	# since May             <- left out
//	- "2001:db8::/32"       <- left out
//	- 203.0.113.0/25        <- last
//
// The YAML library takes microseconds for each. So a run of them is cut out of the text before the library sees it, but
// for the first and the last element, and what was cut out is read here, at a fiftieth of the cost.
//
// That is no second reading of YAML. If the library finds the first element where it should be, as an element of a block
// sequence, then it was, behind that line, in the same state in which it is behind every other line of the run, since
// these are of the same indentation and whole: what stands between the first and the last is more elements of the
// same sequence, whatever else the text is. In JSON, and YAML's flow style, the same holds behind the comma of an
// element in double quotes. Where the library does not find the first element so (the run may be inside a text), where
// something else than a set's networks would be cut, or anything at all is wrong, the whole text goes to the library,
// which then has the only say on what is wrong and where.
type run struct {
	// at is where the first element is in the shortened text, gap where something was left out behind it.
	at, gap int
	flow    bool
	// left is what was left out: whole lines, or elements each with its comma. elements says how many.
	left     []byte
	elements int
	// read says that it was read as networks.
	read bool
}

// shortest is how many elements a run must have to be worth it.
const shortest = 64

// withoutRuns cuts the runs out of a text. Where there are none, it returns none.
func withoutRuns(data []byte, shortest int) (short []byte, runs []*run) {
	kept := 0 // data[:kept] is in short, or left out
	leave := func(r *run, first, from, to int) {
		short = append(short, data[kept:from]...)
		r.at, r.gap, r.left = len(short)-(from-first), len(short), data[from:to]
		runs = append(runs, r)
		kept = to
	}
	for at := 0; at < len(data); {
		line := lineAt(data, at)
		if indent, start, _, ok := blockElement(line); ok {
			last, next, n := blockRun(data, at, indent)
			if n >= shortest {
				leave(&run{elements: n - 2}, at+start, at+len(line), last)
			}
			at = next
			continue
		}
		end := at + len(line)
		for at < end {
			open := bytes.IndexByte(data[at:end], '[')
			if open < 0 {
				at = end
				break
			}
			at += open + 1
			first, second, last, n := flowRun(data, at)
			if n >= shortest {
				leave(&run{flow: true, elements: n - 2}, first, second, last)
			}
			at = max(at, last)
		}
	}
	if runs == nil {
		return nil, nil
	}
	return append(short, data[kept:]...), runs
}

// lineAt is the line that begins at an offset, with its end.
func lineAt(data []byte, at int) []byte {
	if n := bytes.IndexByte(data[at:], '\n'); n >= 0 {
		return data[at : at+n+1]
	}
	return data[at:]
}

// blockRun finds the last element of a run whose first is on the line at an offset. It also returns where the first line
// begins that is not of the run, and how many elements there are.
func blockRun(data []byte, at, indent int) (last, next, n int) {
	for next = at; next < len(data); {
		line := lineAt(data, next)
		if in, _, _, ok := blockElement(line); ok && in == indent {
			last, n = next, n+1
		} else if ok || !isFiller(line) {
			break
		}
		next += len(line)
	}
	return last, next, n
}

// blockElement finds the only element on a line of a block sequence. It holds for plain scalars and quoted ones of
// the bytes that addresses are made of, with nothing but a comment behind them.
func blockElement(line []byte) (indent, start, end int, ok bool) {
	indent = spaces(line, 0)
	if indent == len(line) || line[indent] != '-' {
		return 0, 0, 0, false
	}
	start = spaces(line, indent+1)
	if start == indent+1 || start == len(line) {
		return 0, 0, 0, false
	}
	if quote := line[start]; quote == '"' || quote == '\'' {
		end = address(line, start+1)
		if end == start+1 || end == len(line) || line[end] != quote {
			return 0, 0, 0, false
		}
		end++
	} else {
		end = address(line, start)
		// With a colon in front or behind, it would be more than a scalar, or might be.
		if end == start || line[start] == ':' || line[end-1] == ':' {
			return 0, 0, 0, false
		}
	}
	return indent, start, end, isRest(line[end:])
}

// isFiller reports whether a line is empty or a comment.
func isFiller(line []byte) bool {
	at := spaces(line, 0)
	return at < len(line) && line[at] == '#' && isComment(line[at:]) || isEnd(line[at:])
}

// isRest reports whether nothing but a comment is left of a line.
func isRest(rest []byte) bool {
	at := spaces(rest, 0)
	return at > 0 && at < len(rest) && rest[at] == '#' && isComment(rest[at:]) || isEnd(rest[at:])
}

func isEnd(rest []byte) bool { return string(rest) == "\n" || string(rest) == "\r\n" }

// isComment leaves out what the library takes for the end of a line, or for none of YAML's characters.
func isComment(rest []byte) bool {
	rest = bytes.TrimSuffix(bytes.TrimSuffix(rest, []byte("\n")), []byte("\r"))
	return !slices.ContainsFunc(rest, func(c byte) bool { return (c < ' ' && c != '\t') || c > '~' })
}

func spaces(s []byte, at int) int {
	for at < len(s) && s[at] == ' ' {
		at++
	}
	return at
}

// address is the end of what looks like one.
func address(s []byte, at int) int {
	for at < len(s) && inAddress[s[at]] {
		at++
	}
	return at
}

var inAddress = func() (in [256]bool) {
	for _, c := range "0123456789abcdefABCDEF.:/" {
		in[c] = true
	}
	return in
}()

// flowRun finds a run that begins behind a bracket: where its first element is, its second and its last, and how many
// there are.
func flowRun(data []byte, at int) (first, second, last, n int) {
	first = blanks(data, at)
	for at = first; ; n++ {
		end, ok := flowElement(data, at)
		if !ok {
			return first, second, last, n
		}
		if n == 1 {
			second = at
		}
		last = at
		if end = blanks(data, end); end == len(data) || data[end] != ',' {
			return first, second, last, n + 1
		}
		at = blanks(data, end+1)
	}
}

// flowElement is the end of an element in double quotes.
func flowElement(data []byte, at int) (end int, ok bool) {
	if at == len(data) || data[at] != '"' {
		return 0, false
	}
	end = address(data, at+1)
	return end + 1, end > at+1 && end < len(data) && data[end] == '"'
}

func blanks(s []byte, at int) int {
	for at < len(s) && (s[at] == ' ' || s[at] == '\n' || s[at] == '\r' || s[at] == '\t') {
		at++
	}
	return at
}

// runAt is the run that begins with an element of a list, nil if there is none.
func (v value) runAt(i int) *run {
	if len(v.source.runs) == 0 {
		return nil
	}
	n := v.node.Content[i]
	if n.Kind != yaml.ScalarNode || n.Anchor != "" {
		return nil
	}
	at := v.text.offset(n.Line, n.Column)
	found, ok := slices.BinarySearchFunc(v.source.runs, at, func(r *run, at int) int { return r.at - at })
	if !ok {
		return nil
	}
	r := v.source.runs[found]
	if flow := v.node.Style&yaml.FlowStyle != 0; flow != r.flow || flow && i > 0 {
		return nil
	}
	return r
}

// addTo adds what was left out to a set.
func (r *run) addTo(b *netset.Builder) error {
	r.read = true
	b.Grow(r.elements)
	for net := range r.networks() {
		if err := addNet(b, net); err != nil {
			return err
		}
	}
	return nil
}

// networks are the elements that were left out, without their quotes.
func (r *run) networks() iter.Seq[[]byte] {
	if r.flow {
		return r.flowElements
	}
	return r.blockElements
}

func (r *run) flowElements(yield func([]byte) bool) {
	for at := 0; at < len(r.left); {
		end, _ := flowElement(r.left, at)
		if !yield(r.left[at+1 : end-1]) {
			return
		}
		at = blanks(r.left, blanks(r.left, end)+1) // behind the comma
	}
}

func (r *run) blockElements(yield func([]byte) bool) {
	for at := 0; at < len(r.left); {
		line := lineAt(r.left, at)
		if _, start, end, ok := blockElement(line); ok && !yield(unquoted(line[start:end])) {
			return
		}
		at += len(line)
	}
}

func unquoted(element []byte) []byte {
	if c := element[0]; c == '"' || c == '\'' {
		return element[1 : len(element)-1]
	}
	return element
}
