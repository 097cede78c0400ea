// SPDX-License-Identifier: Apache-2.0

package hostendpoint

import (
	"cmp"
	"math"
	"slices"
	"strings"

	"github.com/untracked-cni/untracked/pkg/resource"
)

// builtInTiers exist in every Calico cluster without being written.
var builtInTiers = map[string]float64{"kube-admin": 1000, "default": 1_000_000, "kube-baseline": 10_000_000}

// tier is a tier's place among the others.
type tier struct {
	name    string
	unknown bool
	order   float64
}

func (t tier) compare(o tier) int {
	if t.unknown != o.unknown {
		if t.unknown {
			return 1
		}
		return -1
	}
	return cmp.Or(cmp.Compare(t.order, o.order), strings.Compare(t.name, o.name))
}

// tierOf finds a policy's tier. One that nobody wrote is behind all others.
func tierOf(set *resource.Set, name string) tier {
	for i := range set.Tiers {
		if set.Tiers[i].Name == name {
			return tier{name: name, order: place(set.Tiers[i].Order)}
		}
	}
	if order, ok := builtInTiers[name]; ok {
		return tier{name: name, order: order}
	}
	return tier{name: name, unknown: true, order: place(nil)}
}

// place is an order as a number: none is last.
func place(order *float64) float64 {
	if order == nil {
		return math.Inf(1)
	}
	return *order
}

// inOrder returns all policies in the order in which they are asked: by tier, then by their order, then by name.
func inOrder(set *resource.Set) []*resource.Policy {
	tiers := map[string]tier{}
	policies := make([]*resource.Policy, len(set.Policies))
	for i := range set.Policies {
		p := &set.Policies[i]
		policies[i] = p
		if _, known := tiers[p.Tier]; !known {
			tiers[p.Tier] = tierOf(set, p.Tier)
		}
	}
	slices.SortFunc(policies, func(a, b *resource.Policy) int {
		return cmp.Or(
			tiers[a.Tier].compare(tiers[b.Tier]),
			cmp.Compare(place(a.Order), place(b.Order)),
			// Calico compares name/namespace/kind: "web-1" is before "web", as '-' is before '/'.
			strings.Compare(a.Name+"/", b.Name+"/"),
		)
	})
	return policies
}
