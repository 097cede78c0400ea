// SPDX-License-Identifier: Apache-2.0

package resource

import "slices"

// builtinTiers are made by Calico, and can be nothing else.
var builtinTiers = map[string]struct {
	order         float64
	defaultAction string
}{
	"kube-admin":    {1_000, "Pass"},
	"default":       {1_000_000, "Deny"},
	"kube-baseline": {10_000_000, "Pass"},
}

// tier reads a Tier. Its defaultAction is checked and of no consequence: an untracked tier ends with Pass.
func (r *Reader) tier(o object) {
	var t Tier
	defaultAction := "Deny"
	t.Meta = r.resource(o, simpleName, func(v value) {
		v.fields(map[string]func(value){
			"order":         func(v value) { t.Order = v.number() },
			"defaultAction": func(v value) { defaultAction = v.oneOf("Deny", "Pass") },
		})
	})
	at := o.peek("spec").peek
	if is, ok := builtinTiers[t.Name]; ok {
		if t.Order == nil || *t.Order != is.order {
			at("order").fail("tier %s is Calico's; want its order, %.0f", t.Name, is.order)
		}
		if defaultAction != is.defaultAction && defaultAction != "" {
			at("defaultAction").fail("tier %s is Calico's; want its default action, %s", t.Name, is.defaultAction)
		}
	}
	r.set.Tiers = append(r.set.Tiers, t)
}

// oneOf reads one of some words, in that case. It returns "" for anything else.
func (v value) oneOf(words ...string) string {
	s, ok := v.string()
	if ok && !slices.Contains(words, s) {
		v.fail("unknown; want %s", alternatives(words))
		return ""
	}
	return s
}
