// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"strings"

	"github.com/containernetworking/cni/pkg/version"
)

// ParseConflist reads a .conflist, or a .conf with our entry alone, as a runtime does on its way to [Parse].
// name is the file's, for the places in errors; errors are as Parse returns them. Of a list there must be
// exactly one entry of type [PluginType]; it gets the list's name and version, whatever it says itself.
func ParseConflist(data []byte, name string) (*Config, error) {
	doc, bad := newDocument(name, data)
	if bad != nil {
		return nil, bad
	}
	c, errs := parseFile(doc)
	return c, join(errs)
}

func parseFile(doc *document) (*Config, []*Error) {
	at := doc.start()
	fields, ok := doc.members(at)
	if !ok {
		return nil, []*Error{doc.errorAt(at, "", fault("the file holds %s; want a conf list or a plugin's entry, an object", doc.typeAt(at)))}
	}
	if has(fields, "plugins") {
		return parseList(doc, fields)
	}
	if pluginType(doc, at) != PluginType {
		return nil, []*Error{doc.errorAt(at, "type", fault(`neither a conf list nor an entry of this plugin; want "plugins", or "type": %q`, PluginType))}
	}
	return parseEntry(doc, at, nil)
}

func parseList(doc *document, fields []member) (*Config, []*Error) {
	p := listParser{collector: collector{doc: doc}}
	for _, field := range p.once(fields) {
		p.field(field)
	}
	if !has(fields, "name") {
		p.fail(doc.start(), "name", fault("not there; want the network's name"))
	}
	list := &header{p.name, p.highestVersion()}
	if len(p.ours) != 1 {
		return nil, p.errs
	}
	c, errs := parseEntry(doc, p.ours[0], list)
	if errs = append(p.errs, errs...); len(errs) > 0 {
		return nil, errs
	}
	return c, nil
}

// listParser reads what libcni reads of a list (NetworkConfFromBytes in libcni/conf.go).
type listParser struct {
	collector
	name, version string
	// versions are those of cniVersions that libcni knows, nil without that key.
	versions []string
	ours     []int // where our entries stand
}

func (p *listParser) field(m member) {
	switch m.key {
	case "name":
		p.name = p.text(m)
		if s, ok := p.doc.stringAt(m.valueAt); ok && s == "" {
			p.fail(m.valueAt, m.key, problem(s, "empty; want the network's name"))
		}
	case "cniVersion":
		p.version = p.versionAt(m, m.valueAt)
	case "cniVersions":
		elements, ok := p.doc.elements(m.valueAt)
		if !ok {
			p.fail(m.valueAt, m.key, p.doc.problemAt(m.valueAt, "%s; want an array of strings", p.doc.typeAt(m.valueAt)))
		}
		for _, at := range elements {
			p.versions = append(p.versions, p.versionAt(m, at))
		}
	case "plugins":
		p.plugins(m)
	case "annotations":
		annotations, _ := p.doc.members(m.valueAt)
		for _, a := range annotations {
			if isOurs(a.key) {
				p.fail(a.keyAt, a.key, p.doc.problemAt(a.valueAt, `in the list's annotations, which a runtime drops; want it in the "annotations" of the entry of type %q`, PluginType))
			}
		}
	}
}

func (p *listParser) plugins(m member) {
	entries, ok := p.doc.elements(m.valueAt)
	if !ok {
		p.fail(m.valueAt, m.key, fault("%s; want an array of plugins' entries", p.doc.typeAt(m.valueAt)))
		return
	}
	var places []string
	for i, at := range entries {
		if pluginType(p.doc, at) == PluginType {
			p.ours = append(p.ours, at)
			line, _ := p.doc.position(at)
			places = append(places, fmt.Sprintf("%d (line %d)", i+1, line))
		}
	}
	switch len(p.ours) {
	case 0:
		p.fail(m.valueAt, m.key, fault("no entry of type %q; want one, after the main plugin's", PluginType))
	case 1:
		if p.ours[0] == entries[0] {
			p.fail(p.ours[0], m.key, fault("the entry of type %q is the first; want it after the main plugin's, whose result it passes on", PluginType))
		}
	default:
		p.fail(p.ours[1], m.key, fault("several entries of type %q: %s; want one", PluginType, strings.Join(places, ", ")))
	}
}

func (p *listParser) versionAt(m member, at int) string {
	s, ok := p.doc.stringAt(at)
	if !ok {
		p.fail(at, m.key, p.doc.problemAt(at, "%s; want a string such as \"1.0.0\"", p.doc.typeAt(at)))
		return ""
	}
	if _, _, _, err := version.ParseVersion(s); err != nil {
		p.fail(at, m.key, problem(s, "not a version; want one such as 1.0.0"))
		return ""
	}
	return s
}

// highestVersion is libcni's choice: of cniVersion and all in cniVersions the highest that the library knows,
// and cniVersion alone without cniVersions.
func (p *listParser) highestVersion() string {
	best := ""
	for _, v := range append(p.versions, p.version) {
		if v == "" || greater(v, version.Current()) {
			continue
		}
		if best == "" || greater(v, best) {
			best = v
		}
	}
	if best == "" || len(p.versions) == 0 {
		return p.version
	}
	return best
}

// greater compares versions that versionAt has checked.
func greater(a, b string) bool {
	is, err := version.GreaterThan(a, b)
	return err == nil && is
}

// pluginType is the type of the entry at an offset, empty for what has none.
func pluginType(doc *document, at int) string {
	fields, _ := doc.members(at)
	for _, field := range fields {
		if field.key == "type" {
			s, _ := doc.stringAt(field.valueAt)
			return s
		}
	}
	return ""
}

func has(members []member, key string) bool {
	for _, m := range members {
		if m.key == key {
			return true
		}
	}
	return false
}
