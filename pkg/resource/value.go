// SPDX-License-Identifier: Apache-2.0

package resource

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"unicode"

	"go.yaml.in/yaml/v4"
)

// source is a text that is being read.
type source struct {
	text   *text
	reader *Reader
	// runs are what the text was shortened by, in their order. uncertain says that they may not be what they look like.
	runs      []*run
	uncertain bool
	// budget is how many nodes may still be visited. Without aliases each is visited once or twice; an alias visits a
	// whole tree again, and a text of a kilobyte can name billions of nodes so.
	budget int
}

// minBudget is plenty for what people write, and a fraction of a second's work.
const minBudget = 1 << 18

// full reports whether there are so many errors that no more are collected.
func (s *source) full() bool { return len(s.reader.errs) > maxErrors }

// fail collects an error, unless there are too many already.
func (s *source) fail(offset int, object, path, value, problem string) {
	switch {
	case s.full():
		return
	case len(s.reader.errs) == maxErrors:
		object, path, value, problem = "", "", "", fmt.Sprintf("more than %d problems; those behind this place are not listed", maxErrors)
	}
	s.reader.errs = append(s.reader.errs, &Error{
		Position: s.text.position(offset), Object: printable(object), Path: printable(path), Value: value, Problem: printable(problem),
	})
}

// printable keeps an error on its line: a field's name, an anchor or a tag can have any character.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, s)
}

// value is a node of a text, with the way to it.
type value struct {
	*source
	node   *yaml.Node
	object string
	path   string
}

// member is a field of a mapping.
type member struct {
	key   string
	keyAt *yaml.Node
	value value
}

func (s *source) root(node *yaml.Node) value { return value{source: s}.to(node, "") }

// to is a value inside v. An alias stands for what it names.
func (v value) to(node *yaml.Node, path string) value {
	if node.Kind == yaml.AliasNode {
		node = node.Alias
		v.source.uncertain = true // what is named may stand where nothing was shortened for
	}
	v.node, v.path = node, path
	return v
}

func (v value) element(i int) value {
	return v.to(v.node.Content[i], fmt.Sprintf("%s[%d]", v.path, i))
}

func (v value) offset() int        { return v.text.offset(v.node.Line, v.node.Column) }
func (v value) position() Position { return v.text.position(v.offset()) }

// fail says what is wrong with the value.
func (v value) fail(format string, args ...any) {
	if !v.full() { // then its place need not be found
		v.failAt(v.offset(), format, args...)
	}
}

func (v value) failAt(offset int, format string, args ...any) {
	shown := ""
	if v.node.Kind == yaml.ScalarNode && v.node.Tag != "!!null" {
		shown = v.node.Value
	}
	v.source.fail(offset, v.object, v.path, shown, fmt.Sprintf(format, args...))
}

// missing is for a field that is not there: it has the field's path and the place of what it is missing from.
func (v value) missing(field string) value {
	v.node = &yaml.Node{Line: v.node.Line, Column: v.node.Column}
	v.path = dotted(v.path, field)
	return v
}

func dotted(path, field string) string {
	if path == "" {
		return shorten(field)
	}
	return path + "." + shorten(field)
}

// isAbsent is true of null, which Kubernetes takes for absent, and of what is missing.
func (v value) isAbsent() bool { return v.node.Kind == 0 || v.isNull() }

// misspelt finds a key of a mapping that is nearly the given one, as a value at the key's place.
func (v value) misspelt(field string) (value, bool) {
	if v.node.Kind != yaml.MappingNode {
		return value{}, false
	}
	for i := 0; i+1 < len(v.node.Content); i += 2 {
		key := v.node.Content[i]
		if key.Value != field && closest(key.Value, []string{field}) != "" {
			at := v.to(v.node.Content[i+1], dotted(v.path, key.Value))
			at.node = &yaml.Node{Line: key.Line, Column: key.Column}
			return at, true
		}
	}
	return value{}, false
}

func (v value) isNull() bool { return v.node.Kind == yaml.ScalarNode && v.node.Tag == "!!null" }

// scalar is the text of a scalar of any type, "" of anything else.
func (v value) scalar() string {
	if v.node.Kind != yaml.ScalarNode || v.isNull() {
		return ""
	}
	return v.node.Value
}

// what is the value's type in words.
func (v value) what() string {
	switch v.node.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	switch v.node.Tag {
	case "!!null":
		return "nothing"
	case "!!bool":
		return "a boolean"
	case "!!int", "!!float":
		return "a number"
	case "!!str", "!!timestamp":
		return "text"
	}
	return "of type " + shorten(v.node.Tag)
}

// spend takes the value's children from the budget.
func (v value) spend() bool {
	if v.budget < 0 {
		return false
	}
	if v.source.budget -= len(v.node.Content) + 1; v.source.budget >= 0 {
		return true
	}
	v.fail("aliases (*name) repeat too much of the text; want it written out, or less of it")
	return false
}

// members takes a mapping apart. What is wrong with its keys is reported, and left out of what it returns.
func (v value) members() ([]member, bool) {
	if v.node.Kind != yaml.MappingNode {
		v.fail("%s; want a mapping", v.what())
		return nil, false
	}
	if !v.spend() {
		return nil, false
	}
	out := make([]member, 0, len(v.node.Content)/2)
	seen := make(map[string]*yaml.Node, len(v.node.Content)/2)
	for i := 0; i+1 < len(v.node.Content) && !v.full(); i += 2 {
		key := v.to(v.node.Content[i], v.path)
		if key.node.Kind != yaml.ScalarNode {
			key.fail("%s for a key; want a field's name", key.what())
			continue
		}
		if key.node.Tag == "!!merge" {
			key.fail("merge keys are no part of YAML 1.2; want the fields written out")
			continue
		}
		name := key.node.Value
		if first, twice := seen[name]; twice {
			key.path = dotted(v.path, name)
			key.node = &yaml.Node{Line: key.node.Line, Column: key.node.Column}
			key.fail("already given at %s; want it once", v.text.position(v.text.offset(first.Line, first.Column)))
			continue
		}
		seen[name] = key.node
		out = append(out, member{name, key.node, v.to(v.node.Content[i+1], dotted(v.path, name))})
	}
	return out, true
}

// peek is a field of a mapping, before the mapping is read and whatever is wrong with it.
func (v value) peek(field string) value {
	if v.node.Kind == yaml.MappingNode {
		for i := 0; i+1 < len(v.node.Content); i += 2 {
			if v.node.Content[i].Value == field {
				return v.to(v.node.Content[i+1], dotted(v.path, field))
			}
		}
	}
	return v.missing(field)
}

// fields reads a mapping whose fields are known: each that is there and not null is given to its function. It returns
// those, or nil if the value is no mapping.
func (v value) fields(known map[string]func(value)) map[string]value {
	members, ok := v.members()
	if !ok {
		return nil
	}
	return v.fieldsOf(members, known)
}

func (v value) fieldsOf(members []member, known map[string]func(value)) map[string]value {
	have := make(map[string]value, len(members))
	for _, m := range members {
		read, ok := known[m.key]
		switch {
		case !ok:
			unknown := m.value
			unknown.node = &yaml.Node{Line: m.keyAt.Line, Column: m.keyAt.Column}
			unknown.fail("unknown field; %s", instead(m.key, slices.Sorted(maps.Keys(known))))
		case !m.value.isNull():
			have[m.key] = m.value
			read(m.value)
		}
	}
	return have
}

// ignore is for a field whose value says nothing here.
func ignore(value) {}

// refuse is for a field of Calico's that cannot be honoured here.
func refuse(why string) func(value) {
	return func(v value) {
		if !v.isEmpty() {
			v.fail("%s", why)
		}
	}
}

// isEmpty is true of what Calico takes for absent.
func (v value) isEmpty() bool {
	switch v.node.Kind {
	case yaml.ScalarNode:
		return v.node.Value == ""
	case yaml.SequenceNode:
		return len(v.node.Content) == 0
	}
	return false
}

// unlimited is for lists that have no limit.
const unlimited = math.MaxInt

// list reads the elements of a list.
func (v value) list(limit int, read func(value)) {
	if v.isList(limit) {
		for i := range v.node.Content {
			if v.budget < 0 || v.full() {
				return
			}
			read(v.element(i))
		}
	}
}

// isList reports whether the value is a list of at most that many elements. If it is not, that is an error.
func (v value) isList(limit int) bool {
	if v.node.Kind != yaml.SequenceNode {
		v.fail("%s; want a list", v.what())
		return false
	}
	if n := len(v.node.Content); n > limit {
		v.element(limit).fail("the list has %d elements; want at most %d", n, limit)
		return false
	}
	return v.spend()
}

// set reads a list of texts in which none is there twice.
func (v value) set(limit int, read func(value, string)) {
	seen := make(map[string]bool)
	v.list(limit, func(v value) {
		s, ok := v.string()
		switch {
		case !ok:
		case seen[s]:
			v.fail("there twice; want it once")
		default:
			seen[s] = true
			read(v, s)
		}
	})
}

// string reads text. As in Kubernetes, a number or a boolean is none unless it is in quotes.
func (v value) string() (string, bool) {
	if isText(v.node) {
		return v.node.Value, true
	}
	switch v.what() {
	case "a number", "a boolean":
		v.fail("%s; want text: put it in quotes", v.what())
	default:
		v.fail("%s; want text", v.what())
	}
	return "", false
}

func isText(n *yaml.Node) bool {
	return n.Kind == yaml.ScalarNode && (n.Tag == "!!str" || n.Tag == "!!timestamp")
}

// boolean reads true or false.
func (v value) boolean() (is, ok bool) {
	is, ok = v.truth()
	if !ok {
		v.fail("%s; want true or false, without quotes", v.what())
	}
	return is, ok
}

// truth is true or false, or what YAML 1.1, and with it kubectl, takes for them.
func (v value) truth() (is, ok bool) {
	if v.node.Kind != yaml.ScalarNode || v.node.Style != 0 {
		return false, false
	}
	switch strings.ToLower(v.node.Value) {
	case "true", "yes", "on":
		return true, true
	case "false", "no", "off":
		return false, true
	}
	return false, false
}

// integer reads a number without a fraction.
func (v value) integer(lowest, highest int) (int, bool) {
	var n int64
	switch {
	case v.node.Kind != yaml.ScalarNode || v.node.Tag != "!!int":
		v.fail("%s; want a whole number from %d to %d", v.what(), lowest, highest)
		return 0, false
	case v.node.Decode(&n) != nil || n < int64(lowest) || n > int64(highest):
		v.fail("out of range; want %d to %d", lowest, highest)
		return 0, false
	}
	return int(n), true
}

// number reads any finite number.
func (v value) number() *float64 {
	var f float64
	if v.node.Kind != yaml.ScalarNode || v.node.Tag != "!!int" && v.node.Tag != "!!float" {
		v.fail("%s; want a number", v.what())
		return nil
	}
	if err := v.node.Decode(&f); err != nil || math.IsInf(f, 0) || math.IsNaN(f) {
		v.fail("not a number that orders; want one such as 100 or 0.5")
		return nil
	}
	return &f
}
