// SPDX-License-Identifier: Apache-2.0

package resource

import (
	"errors"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"

	"github.com/untracked-cni/untracked/pkg/selector"
)

// The limits are Calico's.
const (
	maxRules    = 1024
	maxSelector = 1024 // characters
)

// Why a field is refused, or a policy.
const (
	onlyUntracked = "only untracked policy is read here; this policy is for connection-tracked traffic: " +
		"keep it in Calico and out of these files, or give it doNotTrack: true"
	onlyBeforeTracking = "policy before DNAT is for connection-tracked traffic; keep it in Calico and out of these files"
	notBoth            = "a policy cannot be both preDNAT and doNotTrack; want the field left out"
	mustForward        = "an untracked policy is asked about forwarded packets too, and Calico wants it to say so: applyOnForward: true"
	noStages           = "only staged policies have it, and those are not enforced; want the field left out"
	noPods             = "untracked policy is for hosts, which are in no namespace and have no service account; want the field left out"
)

// policy reads a GlobalNetworkPolicy. Of one that is not untracked the rest is not looked at: it is for Calico.
func (r *Reader) policy(o object) {
	p := Policy{Tier: "default"}
	read := p.spec
	if bad := notUntracked(o); bad != nil {
		bad()
		read = ignore
	}
	p.Meta = r.resource(o, policyName, read)
	if p.Selector == nil {
		p.Selector, _ = selector.Parse("")
		p.SelectorAt = p.At
	}
	r.set.Policies = append(r.set.Policies, p)
}

// notUntracked is nil for a policy with doNotTrack, and reports any other.
func notUntracked(o object) func() {
	spec := o.peek("spec")
	doNotTrack, preDNAT := spec.peek("doNotTrack"), spec.peek("preDNAT")
	is, known := doNotTrack.truth()
	before, _ := preDNAT.truth()
	switch {
	case is, !known && !doNotTrack.isAbsent(): // what is neither true nor false is reported with the other fields
		return nil
	case before:
		return func() { preDNAT.fail("%s", onlyBeforeTracking) }
	case known:
		return func() { doNotTrack.fail("%s", onlyUntracked) }
	}
	if typo, ok := spec.misspelt("doNotTrack"); ok {
		return func() { typo.fail("unknown field; did you mean doNotTrack?") }
	}
	name := o.peek("metadata").peek("name")
	return func() { o.source.fail(name.offset(), o.value.object, "spec.doNotTrack", "", onlyUntracked) }
}

func (p *Policy) spec(v value) {
	types := false
	have := v.fields(map[string]func(value){
		"tier": func(v value) {
			if name, ok := v.string(); ok && name != "" {
				p.Tier = name
				if !isDNSLabel(name) {
					v.fail("not a tier's name; %s", simpleName.want)
				}
			}
		},
		"order": func(v value) { p.Order = v.number() },
		"selector": func(v value) {
			p.Selector, p.SelectorAt = v.selector(), v.position()
			v.refuseGlobal(p.Selector)
		},
		"types":      func(v value) { types = true; p.types(v) },
		"ingress":    func(v value) { p.IngressRules = v.rules() },
		"egress":     func(v value) { p.EgressRules = v.rules() },
		"doNotTrack": func(v value) { v.boolean() },
		"applyOnForward": func(v value) {
			if is, ok := v.boolean(); ok && !is {
				v.fail("%s", mustForward)
			}
		},
		"preDNAT": func(v value) {
			if is, _ := v.boolean(); is {
				v.fail("%s", notBoth)
			}
		},
		"namespaceSelector":      refuse(noPods),
		"serviceAccountSelector": refuse(noPods),
		"stagedAction":           refuse(noStages),
		"performanceHints": func(v value) { // hints change no decision
			v.set(unlimited, func(v value, _ string) { v.oneOf("AssumeNeededOnEveryNode") })
		},
	})
	if _, written := have["applyOnForward"]; !written && have != nil {
		v.missing("applyOnForward").fail("missing; %s", mustForward)
	}
	if !types {
		p.Egress = len(p.EgressRules) > 0
		p.Ingress = len(p.IngressRules) > 0 || !p.Egress
	}
}

func (p *Policy) types(v value) {
	if v.node.Kind == yaml.SequenceNode && len(v.node.Content) == 0 {
		v.fail("empty; want Ingress, Egress or both, or the field left out")
	}
	v.set(2, func(v value, _ string) {
		switch v.oneOf("Ingress", "Egress") {
		case "Ingress":
			p.Ingress = true
		case "Egress":
			p.Egress = true
		}
	})
}

// selector parses a selector. It is nil if that is an error.
func (v value) selector() *selector.Selector {
	text, ok := v.string()
	if !ok {
		return nil
	}
	if n := utf8.RuneCountInString(text); n > maxSelector {
		v.fail("a selector of %d characters; want at most %d", n, maxSelector)
		return nil
	}
	s, err := selector.Parse(text)
	var bad *selector.Error
	if errors.As(err, &bad) {
		if at, ok := v.inside(bad.Offset); ok {
			v.failAt(at, "%s", bad.Problem)
		} else {
			v.fail("%s", err)
		}
		return nil
	}
	return s
}

// inside is where a byte of a scalar stands in the text, if the text has the scalar as it is: on one line and without
// escapes.
func (v value) inside(offset int) (int, bool) {
	at := v.offset()
	if v.node.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle) != 0 {
		at++
	}
	verbatim := strings.HasPrefix(string(v.text.data[min(at, len(v.text.data)):min(at+len(v.node.Value), len(v.text.data))]), v.node.Value)
	return at + offset, verbatim
}

// refuseGlobal is for the selectors that must not be about namespaces. s is nil for one that is wrong, or none.
func (v value) refuseGlobal(s *selector.Selector) {
	if s != nil && s.UsesGlobal() {
		v.fail("global() is for namespaceSelector; want it left out, or all()")
	}
}
