// SPDX-License-Identifier: Apache-2.0

package resource

import "strings"

// The lengths are Kubernetes' (k8s.io/apimachinery/pkg/util/validation) and, for annotations, what it allows in all.
const (
	maxLabel       = 63
	maxDomain      = 253
	maxAnnotations = 256 << 10
)

// nameRule is what names of a kind look like.
type nameRule struct {
	valid func(string) bool
	want  string
}

var (
	domainName = nameRule{isDomain, "want lower-case letters, digits, '-' and '.', at most 253, a letter or digit first and last in each part between dots"}
	simpleName = nameRule{isDNSLabel, "want lower-case letters, digits and '-', at most 63, a letter or digit first and last"}
	policyName = nameRule{isPolicyName, "want lower-case letters, digits and '-', with at most one '.', a letter or digit first and last in each part"}
)

// meta reads metadata. What kubectl prints and says nothing here is ignored.
func (r *Reader) meta(o object, v value, rule nameRule) Meta {
	m := Meta{At: v.position()}
	have := v.fields(map[string]func(value){
		"name": func(v value) {
			name, ok := v.string()
			switch m.Name, m.At = name, v.position(); {
			case !ok:
			case name == "":
				v.fail("empty; want a name")
			case !rule.valid(name):
				v.fail("not a name of this kind; %s", rule.want)
			default:
				r.define(o, v)
			}
		},
		"namespace":                  refuse("resources of this kind are of no namespace; want the field left out"),
		"generateName":               refuse("names are not made up here; want metadata.name"),
		"labels":                     func(v value) { m.Labels = v.labels() },
		"annotations":                value.annotations,
		"creationTimestamp":          ignore,
		"deletionGracePeriodSeconds": ignore,
		"deletionTimestamp":          ignore,
		"finalizers":                 ignore,
		"generation":                 ignore,
		"managedFields":              ignore,
		"ownerReferences":            ignore,
		"resourceVersion":            ignore,
		"selfLink":                   ignore,
		"uid":                        ignore,
	})
	if _, ok := have["name"]; !ok && have != nil {
		v.missing("name").fail("missing; want a name")
	}
	return m
}

// resource reads the fields that all kinds have, and the specification with the function.
func (r *Reader) resource(o object, rule nameRule, spec func(value)) Meta {
	var m Meta
	have := o.fields(map[string]func(value){
		"apiVersion": ignore,
		"kind":       ignore,
		"metadata":   func(v value) { m = r.meta(o, v, rule) },
		"spec":       spec,
		"status":     ignore,
	})
	if _, ok := have["metadata"]; !ok {
		o.missing("metadata").fail("missing; want a metadata with a name")
	}
	return m
}

func (v value) labels() map[string]string {
	labels := make(map[string]string)
	members, _ := v.members()
	for _, m := range members {
		if m.value.isNull() {
			m.value.fail("no value; want one, or \"\"")
			continue
		}
		s, ok := m.value.string()
		switch {
		case !ok:
		case !IsLabelKey(m.key):
			m.value.fail("the key is %s", NotLabelKey)
		case !IsLabelValue(s):
			m.value.fail("not a label's value; want %s", LabelWords)
		default:
			labels[m.key] = s
		}
	}
	return labels
}

// annotations are comments, and checked all the same.
func (v value) annotations() {
	size := 0
	members, _ := v.members()
	for _, m := range members {
		if m.value.isNull() {
			continue
		}
		s, ok := m.value.string()
		if ok && !IsLabelKey(strings.ToLower(m.key)) {
			m.value.fail("the key is %s", NotLabelKey)
		}
		size += len(m.key) + len(s)
	}
	if size > maxAnnotations {
		v.fail("annotations of %d bytes; want at most %d", size, maxAnnotations)
	}
}

// What labels are made of, in words.
const (
	LabelWords  = "letters, digits, '-', '_' and '.', at most 63, a letter or digit first and last"
	NotLabelKey = "not of the form name or domain/name; want " + LabelWords + " in a name"
)

// IsLabelKey reports whether s can be a label's or annotation's key, as Kubernetes has it
// (k8s.io/apimachinery/pkg/util/validation).
func IsLabelKey(s string) bool {
	domain, name, found := strings.Cut(s, "/")
	if !found {
		return isName(s)
	}
	return isDomain(domain) && isName(name)
}

// IsLabelValue reports whether s can be a label's value, which may be empty.
func IsLabelValue(s string) bool { return s == "" || isName(s) }

func isName(s string) bool {
	return len(s) <= maxLabel && isWord(s, func(b byte) bool { return isAlphanumeric(b) || b == '-' || b == '_' || b == '.' })
}

// isDomain is a DNS subdomain of RFC 1123 in lower case.
func isDomain(s string) bool {
	if len(s) > maxDomain {
		return false
	}
	for part := range strings.SplitSeq(s, ".") {
		if !isLowerWord(part) {
			return false
		}
	}
	return true
}

// isDNSLabel is a label of RFC 1123 in lower case.
func isDNSLabel(s string) bool { return len(s) <= maxLabel && isLowerWord(s) }

func isPolicyName(s string) bool { return isDomain(s) && strings.Count(s, ".") <= 1 }

func isLowerWord(s string) bool {
	return s == strings.ToLower(s) && isWord(s, func(b byte) bool { return isAlphanumeric(b) || b == '-' })
}

// isWord: not empty, of bytes that may be in it, a letter or digit first and last.
func isWord(s string, in func(byte) bool) bool {
	if s == "" || !isAlphanumeric(s[0]) || !isAlphanumeric(s[len(s)-1]) {
		return false
	}
	for i := range len(s) {
		if !in(s[i]) {
			return false
		}
	}
	return true
}

func isAlphanumeric(b byte) bool {
	return '0' <= b && b <= '9' || 'a' <= b && b <= 'z' || 'A' <= b && b <= 'Z'
}
