// SPDX-License-Identifier: Apache-2.0

package config

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/pkg/resource"
)

// header is what an entry takes from its list, in place of what it says itself.
type header struct{ name, cniVersion string }

// parseEntry reads the entry that stands at an offset of a document. list is nil for an entry on its own.
func parseEntry(doc *document, at int, list *header) (*Config, []*Error) {
	fields, ok := doc.members(at)
	if !ok {
		return nil, []*Error{doc.errorAt(at, "", fault("the plugin's entry is %s; want an object", doc.typeAt(at)))}
	}
	p := entryParser{collector: collector{doc: doc}, config: newConfig()}
	for _, field := range p.once(fields) {
		if list != nil && (field.key == "name" || field.key == "cniVersion") {
			continue
		}
		p.field(field)
	}
	if list != nil {
		p.config.Network, p.config.CNIVersion = list.name, list.cniVersion
	}
	p.defaults()
	if len(p.errs) > 0 {
		return nil, p.errs
	}
	return &p.config, nil
}

// collector gathers all that is wrong with a document.
type collector struct {
	doc  *document
	errs []*Error
}

func (c *collector) fail(at int, key string, e *Error) {
	c.errs = append(c.errs, c.doc.errorAt(at, key, e))
}

// once reports keys that are there more than once, and leaves them out of what it returns. encoding/json,
// and with it every runtime, would take one of them without a word.
func (c *collector) once(members []member) []member {
	times := make(map[string]int, len(members))
	for _, m := range members {
		times[m.key]++
		if times[m.key] == 2 {
			c.fail(m.keyAt, m.key, c.doc.problemAt(m.valueAt, "the key is there twice; want it once"))
		}
	}
	return slices.DeleteFunc(slices.Clone(members), func(m member) bool { return times[m.key] > 1 })
}

// text reads a field that must be a string.
func (c *collector) text(m member) string {
	s, ok := c.doc.stringAt(m.valueAt)
	if !ok {
		c.fail(m.valueAt, m.key, c.doc.problemAt(m.valueAt, "%s; want a string", c.doc.typeAt(m.valueAt)))
	}
	return s
}

type entryParser struct {
	collector
	config Config
	// present has where our annotations are, good and bad ones, by name without the prefix.
	present map[string]member
}

func (p *entryParser) field(m member) {
	switch m.key {
	case "name":
		p.config.Network = p.text(m)
	case "cniVersion":
		p.config.CNIVersion = p.text(m)
	case "prevResult":
		if !p.doc.isNull(m.valueAt) {
			p.config.PrevResult = bytes.Clone(p.doc.value(m.valueAt))
		}
	case "annotations":
		p.annotations(m)
	case "capabilities":
		p.capabilities(m)
	case "runtimeConfig":
		p.runtimeConfig(m)
	case "resources":
		p.resources(m)
	default:
		switch {
		case strings.EqualFold(m.key, "annotations"):
			p.fail(m.keyAt, m.key, fault(`unknown key; did you mean "annotations"?`))
		case isOurs(m.key):
			p.fail(m.keyAt, m.key, p.doc.problemAt(m.valueAt, `not a key of the entry itself; want it inside "annotations"`))
		}
	}
}

// capabilities are what a runtime is asked to send as runtimeConfig. A runtime may have taken the key out by then.
func (p *entryParser) capabilities(m member) {
	all, _ := p.doc.members(m.valueAt)
	for _, c := range all {
		if c.key == PodCapability && string(p.doc.value(c.valueAt)) == "true" {
			p.config.HearsPods = true
		}
	}
}

// runtimeConfig has the annotations of the pod. Others' may be long, and are left where they are.
func (p *entryParser) runtimeConfig(m member) {
	all, _ := p.doc.members(m.valueAt)
	for _, c := range all {
		if c.key != PodCapability {
			continue
		}
		p.config.HearsPods = true
		annotations, _ := p.doc.members(c.valueAt)
		for _, a := range annotations {
			value, isString := p.doc.stringAt(a.valueAt)
			if !isString || !strings.HasPrefix(a.key, Prefix) {
				continue
			}
			if p.config.PodAnnotations == nil {
				p.config.PodAnnotations = map[string]string{}
			}
			p.config.PodAnnotations[a.key] = value
		}
	}
}

// resources takes the objects of the array one by one, so that each has its place.
func (p *entryParser) resources(m member) {
	if p.doc.isNull(m.valueAt) {
		return
	}
	elements, ok := p.doc.elements(m.valueAt)
	if !ok {
		p.fail(m.valueAt, m.key, p.doc.problemAt(m.valueAt, "%s; want an array of resources, each an object", p.doc.typeAt(m.valueAt)))
		return
	}
	for i, at := range elements {
		if _, ok := p.doc.members(at); !ok {
			p.fail(at, fmt.Sprintf("%s[%d]", m.key, i), p.doc.problemAt(at, "%s; want a resource, an object", p.doc.typeAt(at)))
			continue
		}
		place := resource.Position{File: fmt.Sprintf("%s[%d]", m.key, i)}
		if p.doc.name != "" {
			place.File = p.doc.name
			place.Line, place.Column = p.doc.position(at)
		}
		p.config.Inline = append(p.config.Inline, Inline{p.doc.value(at), place})
	}
	p.config.Resources = bytes.Clone(p.doc.value(m.valueAt))
}

func (p *entryParser) annotations(m member) {
	all, ok := p.doc.members(m.valueAt)
	if !ok {
		p.fail(m.valueAt, m.key, p.doc.problemAt(m.valueAt, "%s; want an object of strings", p.doc.typeAt(m.valueAt)))
		return
	}
	p.present = make(map[string]member, len(all))
	for _, a := range all {
		if name, ours := strings.CutPrefix(a.key, Prefix); ours {
			p.present[name] = a
		}
	}
	for _, a := range p.once(all) {
		p.annotation(a)
	}
	p.needs("sources", "ports")
	p.needs("destinations", "remote-ports")
}

func (p *entryParser) annotation(m member) {
	if !isOurs(m.key) {
		if name, near := nearMiss(m.key); near {
			p.fail(m.keyAt, m.key, p.doc.problemAt(m.valueAt, "unknown key; did you mean %s%s?", Prefix, name))
		}
		return
	}
	name, exact := strings.CutPrefix(m.key, Prefix)
	if !exact {
		p.fail(m.keyAt, m.key, p.doc.problemAt(m.valueAt, "unknown key; our keys begin with %s in lower case", Prefix))
		return
	}
	set, known := setters[name]
	if !known {
		p.fail(m.keyAt, m.key, p.doc.problemAt(m.valueAt, "unknown key; %s", suggest(name)))
		return
	}
	value, isString := p.doc.stringAt(m.valueAt)
	if !isString {
		p.fail(m.valueAt, m.key, p.notString(m.valueAt))
		return
	}
	p.config.Annotations[m.key] = value
	if e := set(&p.config, value); e != nil {
		p.fail(m.valueAt, m.key, e)
	}
}

func (p *entryParser) notString(at int) *Error {
	want := fmt.Sprintf(`want "%s", in quotes`, p.doc.value(at)) // of a number or a boolean
	switch p.doc.data[at] {
	case '{', '[':
		want = "want a string"
	case 'n':
		want = "want a string, or the key left out"
	}
	return p.doc.problemAt(at, "%s, but annotation values are strings; %s", p.doc.typeAt(at), want)
}

// needs refuses an annotation that narrows another one which is not there.
func (p *entryParser) needs(name, other string) {
	m, there := p.present[name]
	if _, ok := p.present[other]; there && !ok {
		p.fail(m.keyAt, m.key, p.doc.problemAt(m.valueAt, "does nothing without %s%s; want both or neither", Prefix, other))
	}
}

// defaults fills in what newConfig leaves until it is known to be needed.
func (p *entryParser) defaults() {
	if _, given := p.present["failsafe-inbound"]; !given {
		p.config.FailsafeInbound = mustFailsafes(policy.DefaultFailsafeInbound)
	}
	if _, given := p.present["failsafe-outbound"]; !given {
		p.config.FailsafeOutbound = mustFailsafes(policy.DefaultFailsafeOutbound)
	}
	if _, given := p.present["node"]; !given {
		p.config.Node = nodeName()
	}
}

// nodeName is the host's name in lower case, as kubelet and Calico name a node after its host. It is empty where the host
// has none: that matters to a policy with HostEndpoints only.
func nodeName() string {
	name, err := hostname()
	if err != nil || name == "(none)" { // the kernel's own until somebody sets one
		return ""
	}
	return strings.ToLower(strings.TrimSpace(name))
}

// mustFailsafes reads a default of package policy.
func mustFailsafes(s string) []policy.FailsafePort {
	ports, err := policy.ParseFailsafes(s)
	if err != nil {
		panic(err)
	}
	return ports
}

// isOurs also holds for a key that would be ours but for its case or the spaces around it.
func isOurs(key string) bool {
	return strings.HasPrefix(strings.ToLower(strings.TrimSpace(key)), Prefix)
}

// nearMiss recognises one of our names under no prefix, or under one that looks like ours: in our own entry
// that is no other tool's annotation.
func nearMiss(key string) (name string, near bool) {
	domain, name, found := strings.Cut(key, "/")
	if !found {
		domain, name = "", key
	}
	_, known := setters[name]
	return name, known && (domain == "" || strings.Contains(strings.ToLower(domain), PluginType))
}

// suggest names the key that an unknown one may stand for, or else all there are.
func suggest(name string) string {
	known := slices.Sorted(maps.Keys(setters))
	nearest, least := "", len(name)/3+2
	for _, k := range known {
		if len(name) > 2*len(k) {
			continue
		}
		if d := distance(strings.ToLower(name), k); d < least {
			nearest, least = k, d
		}
	}
	if nearest != "" {
		return fmt.Sprintf("did you mean %s%s?", Prefix, nearest)
	}
	return fmt.Sprintf("want %s and one of %s", Prefix, strings.Join(known, ", "))
}

// distance is how many bytes to change, add, take away or swap with their neighbour: a typist's mistakes.
func distance(a, b string) int {
	d := make([][]int, len(a)+1)
	for i := range d {
		d[i] = make([]int, len(b)+1)
		d[i][0] = i
	}
	for j := range d[0] {
		d[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			change := d[i-1][j-1]
			if a[i-1] != b[j-1] {
				change++
			}
			d[i][j] = min(change, d[i-1][j]+1, d[i][j-1]+1)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				d[i][j] = min(d[i][j], d[i-2][j-2]+1)
			}
		}
	}
	return d[len(a)][len(b)]
}
