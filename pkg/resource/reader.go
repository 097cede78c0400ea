// SPDX-License-Identifier: Apache-2.0

package resource

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"
)

// maxErrors bounds what is collected: a list of a million addresses may be wrong from end to end.
const maxErrors = 1000

// Reader collects resources from any number of texts. The zero Reader is ready to use.
type Reader struct {
	set  Set
	errs []*Error
	// defined has where each resource was first, by kind and name.
	defined map[string]Position
}

// Add reads a text: YAML, of any number of documents, or JSON. A document is a resource, a list of some, as kubectl
// and calicoctl print it, or empty. The text's first byte is at a place of a file: Line is 0 if that is its start.
//
// What is wrong is for Result to tell. Behind a mistake in the grammar nothing more is read of the text.
func (r *Reader) Add(data []byte, at Position) {
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	if !r.addShortened(data, shortest, at) {
		r.addWhole(data, at)
	}
}

func (r *Reader) addWhole(data []byte, at Position) {
	before := len(r.errs)
	r.read(newText(data, nil, at), nil)
	sortByPlace(r.errs[before:])
}

// addShortened leaves the runs of a text to package netset. It returns false, and has done nothing, where there are none,
// where it is not certain that they are what they look like, or where something is wrong with the text.
func (r *Reader) addShortened(data []byte, shortest int, at Position) bool {
	short, runs := withoutRuns(data, shortest)
	if runs == nil {
		return false
	}
	attempt := Reader{defined: maps.Clone(r.defined)}
	src := attempt.read(newText(short, runs, at), runs)
	if len(attempt.errs) > 0 || src.uncertain || slices.ContainsFunc(runs, func(r *run) bool { return !r.read }) {
		return false
	}
	r.defined = attempt.defined
	r.set.Tiers = append(r.set.Tiers, attempt.set.Tiers...)
	r.set.Policies = append(r.set.Policies, attempt.set.Policies...)
	r.set.NetworkSets = append(r.set.NetworkSets, attempt.set.NetworkSets...)
	r.set.HostEndpoints = append(r.set.HostEndpoints, attempt.set.HostEndpoints...)
	return true
}

// Result returns what was read, or all that is wrong with it: [Error]s, joined, in the order of the texts and within
// each in that of the places.
func (r *Reader) Result() (*Set, error) {
	if len(r.errs) > 0 {
		return nil, join(r.errs)
	}
	s := Set{
		Tiers:         slices.Clone(r.set.Tiers),
		Policies:      slices.Clone(r.set.Policies),
		NetworkSets:   slices.Clone(r.set.NetworkSets),
		HostEndpoints: slices.Clone(r.set.HostEndpoints),
	}
	slices.SortFunc(s.Tiers, func(a, b Tier) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(s.Policies, func(a, b Policy) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(s.NetworkSets, func(a, b NetworkSet) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(s.HostEndpoints, func(a, b HostEndpoint) int { return cmp.Compare(a.Name, b.Name) })
	return &s, nil
}

func (r *Reader) read(t *text, runs []*run) *source {
	src := &source{text: t, runs: runs, reader: r, budget: max(minBudget, 4*len(t.data))}
	if at, why := notText(t.data); why != "" {
		src.fail(at, "", "", "", why)
		return src
	}
	loader, err := yaml.NewLoader(bytes.NewReader(t.data))
	for err == nil {
		var document yaml.Node
		if err = loader.Load(&document); err == nil {
			r.document(src, &document)
		}
	}
	if err != io.EOF {
		src.syntaxError(err)
	}
	return src
}

func (r *Reader) document(src *source, document *yaml.Node) {
	for _, node := range document.Content {
		v := src.root(node)
		switch {
		case v.isNull():
		case v.node.Kind == yaml.SequenceNode: // calicoctl prints several resources so
			v.list(unlimited, func(v value) { r.object(v, implied{lists: true}) })
		default:
			r.object(v, implied{lists: true})
		}
	}
}

// implied is what an object can leave to the list it is in.
type implied struct {
	apiVersion, kind string
	lists            bool // it may be a list itself
}

const apiVersion = "projectcalico.org/v3"

// kinds has what is read, and how.
var kinds = map[string]func(*Reader, object){
	"GlobalNetworkPolicy": (*Reader).policy,
	"GlobalNetworkSet":    (*Reader).networkSet,
	"HostEndpoint":        (*Reader).hostEndpoint,
	"Tier":                (*Reader).tier,
}

// object is a mapping that says what kind it is.
type object struct {
	value
	kind    string
	members []member
}

// fields reads the object's fields, see [value.fields].
func (o object) fields(known map[string]func(value)) map[string]value {
	return o.value.fieldsOf(o.members, known)
}

// object reads a resource or a list of some.
func (r *Reader) object(v value, in implied) {
	v.path = ""
	o := object{kind: cmp.Or(v.peek("kind").scalar(), in.kind)}
	version := cmp.Or(v.peek("apiVersion").scalar(), in.apiVersion)
	v.object = strings.TrimSpace(shorten(o.kind) + " " + cut(v.peek("metadata").peek("name").scalar(), maxDomain))
	o.value = v
	var ok bool
	if o.members, ok = v.members(); !ok {
		return
	}
	of, isList := strings.CutSuffix(o.kind, "List")
	isList = isList && (of == "" || kinds[of] != nil)
	switch read := kinds[o.kind]; {
	case o.kind == "":
		v.peek("kind").fail("missing; want %s, or a List of them", kindWords)
	case read == nil && !isList:
		v.peek("kind").fail("%s", refusedKind(o.kind, version))
	case isList && !in.lists:
		v.peek("kind").fail("a list in a list; want resources")
	case isList && of == "" && version != "v1":
		v.peek("apiVersion").fail("not the version of a List; want v1")
	case isList && of == "":
		r.items(o, implied{})
	case version != apiVersion:
		v.peek("apiVersion").fail("%s", refusedVersion(version))
	case isList:
		r.items(o, implied{apiVersion: apiVersion, kind: of})
	default:
		read(r, o)
	}
}

func (r *Reader) items(list object, in implied) {
	list.fields(map[string]func(value){
		"apiVersion": ignore,
		"kind":       ignore,
		"metadata":   ignore,
		"items": func(v value) {
			v.list(unlimited, func(v value) { r.object(v, in) })
		},
	})
}

// define notes that there is a resource, and where. There must be one of each name.
func (r *Reader) define(o object, name value) {
	if r.defined == nil {
		r.defined = make(map[string]Position)
	}
	id := o.kind + " " + name.node.Value
	if first, twice := r.defined[id]; twice {
		name.fail("there already is one at %s; want each name once", first)
		return
	}
	r.defined[id] = name.position()
}

// syntaxError is a problem with the grammar.
func (s *source) syntaxError(err error) {
	var load *yaml.LoadError
	if !errors.As(err, &load) {
		s.fail(0, "", "", "", fmt.Sprintf("not valid YAML or JSON: %v", err))
		return
	}
	problem := load.Message
	if load.ContextMsg != "" {
		problem = load.ContextMsg + ": " + problem
	}
	s.fail(s.text.offset(load.Mark.Line, load.Mark.Column), "", "", "", "not valid YAML or JSON: "+shorten(problem))
}
