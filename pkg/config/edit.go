// SPDX-License-Identifier: Apache-2.0

package config

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// List is the text of a conf list that our entry is put into and taken out of. Whatever else is in the text stays byte for
// byte as it is: order, spelling of numbers, white space and fields that nobody knows.
type List struct {
	doc *document
	// Network and CNIVersion are the list's own.
	Network, CNIVersion string
	// InlinedOnly says that a runtime takes no entries from drop-in files for this list.
	InlinedOnly bool
	// Plugins are the types of the entries, in their order.
	Plugins []string

	array int   // where the array of the entries stands
	at    []int // where the entries stand
}

// ReadList reads a text that a runtime would take for a conf list: with a name and at least one plugin. name is the
// file's, for the places in errors.
func ReadList(data []byte, name string) (*List, error) {
	doc, bad := newDocument(name, data)
	if bad != nil {
		return nil, bad
	}
	l := &List{doc: doc}
	c := collector{doc: doc}
	fields, ok := doc.members(doc.start())
	if !ok || !has(fields, "plugins") {
		return nil, doc.errorAt(doc.start(), "plugins", fault("not there; want a conf list, an object with a network's name and its plugins"))
	}
	for _, m := range c.once(fields) {
		switch m.key {
		case "name":
			l.Network = c.text(m)
		case "cniVersion":
			l.CNIVersion = c.text(m)
		case "loadOnlyInlinedPlugins": // libcni takes a boolean or its name
			l.InlinedOnly = strings.EqualFold(strings.Trim(string(doc.value(m.valueAt)), `"`), "true")
		case "plugins":
			l.entries(&c, m)
		}
	}
	if l.Network == "" {
		c.fail(doc.start(), "name", fault("not there or empty; want the network's name"))
	}
	return l, join(c.errs)
}

func (l *List) entries(c *collector, m member) {
	l.array = m.valueAt
	at, ok := l.doc.elements(m.valueAt)
	if !ok {
		c.fail(m.valueAt, m.key, fault("%s; want an array of plugins' entries", l.doc.typeAt(m.valueAt)))
		return
	}
	l.at = at
	for i, at := range l.at {
		kind := pluginType(l.doc, at)
		if kind == "" {
			c.fail(at, m.key, fault("entry %d has no type; want the name of a plugin's binary", i+1))
		}
		l.Plugins = append(l.Plugins, kind)
	}
	if len(l.Plugins) == l.ours() {
		c.fail(m.valueAt, m.key, fault("no main plugin; want its entry first"))
	}
}

// ours is the number of entries that are ours.
func (l *List) ours() (n int) {
	for _, kind := range l.Plugins {
		if kind == PluginType {
			n++
		}
	}
	return n
}

// Entries are ours, as they are written.
func (l *List) Entries() (out []json.RawMessage) {
	for i, kind := range l.Plugins {
		if kind == PluginType {
			out = append(out, bytes.Clone(l.doc.value(l.at[i])))
		}
	}
	return out
}

// Has reports whether the list has this entry and no other of ours, behind the main plugin's. How it is written does
// not matter.
func (l *List) Has(entry json.RawMessage) bool {
	ours := l.Entries()
	return len(ours) == 1 && l.Plugins[0] != PluginType && equalJSON(ours[0], entry)
}

// With returns the text with the entry: in the place of the one that is there, or else behind all others, indented as
// they are.
func (l *List) With(entry json.RawMessage) ([]byte, error) {
	if l.Has(entry) {
		return bytes.Clone(l.doc.data), nil
	}
	if l.ours() == 1 && l.Plugins[0] != PluginType {
		i := slices.Index(l.Plugins, PluginType)
		text, err := l.layout(entry, l.at[i])
		if err != nil {
			return nil, err
		}
		return splice(l.doc.data, l.at[i], l.doc.skipValue(l.at[i]), text), nil
	}
	if l.ours() > 0 {
		without, err := ReadList(l.Without(), l.doc.name)
		if err != nil {
			return nil, err
		}
		return without.With(entry)
	}
	last := l.at[len(l.at)-1]
	end := l.doc.skipValue(last)
	text, err := l.layout(entry, end-1)
	if err != nil {
		return nil, err
	}
	return splice(l.doc.data, end, end, append([]byte(","+l.space(last)), text...)), nil
}

// Without returns the text without any entry of ours. It undoes what With added.
func (l *List) Without() []byte {
	out := bytes.Clone(l.doc.data)
	first := slices.IndexFunc(l.Plugins, func(kind string) bool { return kind != PluginType })
	for i := len(l.at) - 1; i > first; i-- {
		if l.Plugins[i] == PluginType { // the comma before it goes, too
			out = slices.Delete(out, l.doc.skipValue(l.at[i-1]), l.doc.skipValue(l.at[i]))
		}
	}
	if first > 0 { // those in front, with the comma behind each
		out = slices.Delete(out, l.at[0], l.at[first])
	}
	return out
}

// newline is how lines end in this text, empty if it is all on one.
func (l *List) newline() string {
	switch {
	case bytes.Contains(l.doc.data, []byte("\r\n")):
		return "\r\n"
	case bytes.Contains(l.doc.data, []byte("\n")):
		return "\n"
	}
	return ""
}

// space is what stands before an entry that follows on one at an offset.
func (l *List) space(at int) string {
	indent, first := l.indent(at)
	if !first {
		return " "
	}
	return l.newline() + indent
}

// indent is the white space at the beginning of the line that has an offset, and whether nothing else is before it.
func (l *List) indent(at int) (indent string, first bool) {
	line := l.doc.data[bytes.LastIndexByte(l.doc.data[:at], '\n')+1 : at]
	white := line[:len(line)-len(bytes.TrimLeft(line, " \t"))]
	return string(white), len(white) == len(line) && l.newline() != ""
}

// layout writes an entry as the line at an offset is indented.
func (l *List) layout(entry json.RawMessage, at int) ([]byte, error) {
	var out bytes.Buffer
	if l.newline() == "" {
		err := json.Compact(&out, entry)
		return out.Bytes(), err
	}
	indent, _ := l.indent(at)
	if err := json.Indent(&out, entry, indent, l.step(indent)); err != nil {
		return nil, err
	}
	return bytes.ReplaceAll(out.Bytes(), []byte("\n"), []byte(l.newline())), nil
}

// step is by how much a level is indented: as the key "plugins" is, which is in the first level.
func (l *List) step(entry string) string {
	array, _ := l.indent(l.array)
	return cmp.Or(array, entry, "  ")
}

func splice(data []byte, from, to int, with []byte) []byte {
	return slices.Concat(data[:from], with, data[to:])
}

// equalJSON compares what two texts say.
func equalJSON(a, b json.RawMessage) bool {
	x, errX := canonical(a)
	y, errY := canonical(b)
	return errX == nil && errY == nil && bytes.Equal(x, y)
}

// canonical has keys in order, no white space, and numbers as they were written.
func canonical(data json.RawMessage) ([]byte, error) {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return nil, err
	}
	return json.Marshal(v)
}

// ToList returns the conf list that a runtime makes of a file with one plugin's entry, which stays as it is but for white
// space.
func ToList(data []byte, name string) ([]byte, error) {
	doc, bad := newDocument(name, data)
	if bad != nil {
		return nil, bad
	}
	fields, ok := doc.members(doc.start())
	switch {
	case !ok:
		return nil, doc.errorAt(doc.start(), "", fault("the file holds %s; want a plugin's entry, an object", doc.typeAt(doc.start())))
	case has(fields, "plugins"):
		return nil, doc.errorAt(doc.start(), "plugins", fault("a conf list, which runtimes read only from files that end in .conflist; rename the file"))
	case pluginType(doc, doc.start()) == "":
		return nil, doc.errorAt(doc.start(), "type", fault("not there; want the name of a plugin's binary"))
	}
	var b bytes.Buffer
	b.WriteString("{\n")
	for _, key := range []string{"cniVersion", "name"} {
		for _, m := range fields {
			if m.key == key {
				fmt.Fprintf(&b, "  %q: %s,\n", key, doc.value(m.valueAt))
			}
		}
	}
	b.WriteString("  \"plugins\": [\n    ")
	if err := json.Indent(&b, bytes.TrimSpace(data), "    ", "  "); err != nil {
		return nil, err
	}
	b.WriteString("\n  ]\n}\n")
	return b.Bytes(), nil
}

// TypeOf is the type of a plugin's entry on its own, empty for a text that is none.
func TypeOf(data []byte) string {
	doc, bad := newDocument("", data)
	if bad != nil {
		return ""
	}
	return pluginType(doc, doc.start())
}
