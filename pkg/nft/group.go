// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"slices"

	"github.com/untracked-cni/untracked/pkg/netset"
	"github.com/untracked-cni/untracked/pkg/policy"
)

const (
	// minGroup is the least number of rules that are written as one: fewer are easier to read as they are.
	minGroup = 4
	// maxElements is the most set elements that one rule may become in a group, maxGroupElements the most of a
	// group: the elements of a rule with several fields are the product of its ranges.
	maxElements      = 1 << 10
	maxGroupElements = 1 << 15
	// lookBack bounds the search for a rule's group.
	lookBack = 16
)

// field is what rules may differ in within a group. The order is that of a concatenated key.
type field int

const (
	sourcePort field = iota
	destinationPort
	sourceAddress
	destinationAddress
	fields
)

func (f field) source() bool  { return f == sourcePort || f == sourceAddress }
func (f field) address() bool { return f >= sourceAddress }

// fieldSet is a set of fields, a bit each.
type fieldSet uint8

func (s fieldSet) has(f field) bool { return s&(1<<f) != 0 }

func (s fieldSet) list() []field {
	var out []field
	for f := range fields {
		if s.has(f) {
			out = append(out, f)
		}
	}
	return out
}

// item is a rule in one view.
type item struct {
	// rule is its index in the list.
	rule int
	view view
	// values are, for some fields, all that the rule allows there: sorted and disjoint. For the others, which
	// the fieldSet does not have, it may allow anything.
	values [fields][]span
	listed fieldSet
	// elements is how many combinations of ranges there are.
	elements int
}

// group is one or more items that stand at one place of a list, in whatever order.
//
// First match wins, so that of two rules that a packet may match both, the first must stay before the second. Any
// other two may change places. That is how rules of one kind come together: a rule joins a group before it, when
// it has nothing in common with the groups that it overtakes and nothing with the members of that one. Such a group
// is as good as one rule which looks up in one step whether any of its members matches, and in another one which.
type group struct {
	*item
	members []*item
	// varying are the listed fields in which members differ, telling are those in which no two of them share a
	// value, as long as there is one: what a packet has there tells which member it may match.
	varying, telling fieldSet
	taken            [fields]spans
	elements         int
}

// groups puts the items of one tier, which are in order, into groups, which are in order, too.
func groups(rules []policy.Rule, items []*item) []*group {
	var out []*group
	for _, it := range items {
		joined := false
		for n := len(out) - 1; n >= max(0, len(out)-lookBack) && !joined; n-- {
			joined = out[n].join(rules, it)
			if !joined && !out[n].apart(rules, it) {
				break
			}
		}
		if !joined {
			g := &group{item: it, telling: it.listed, elements: it.elements}
			g.add(it)
			out = append(out, g)
		}
	}
	return out
}

func (g *group) add(it *item) {
	g.members = append(g.members, it)
	for _, f := range g.telling.list() {
		g.taken[f].add(it.values[f])
	}
}

// join adds an item that differs from the members in values of listed fields only, if these tell it from them.
func (g *group) join(rules []policy.Rule, it *item) bool {
	a, b := &rules[g.rule], &rules[it.rule]
	if g.view != it.view || g.listed != it.listed || a.Action == policy.Log || g.elements+it.elements > maxGroupElements ||
		it.elements > maxElements || !alike(a, b, g.listed) {
		return false
	}
	telling := fieldSet(0)
	for _, f := range g.telling.list() {
		if !g.taken[f].meet(it.values[f]) {
			telling |= 1 << f
		}
	}
	if telling == 0 {
		return false
	}
	g.telling = telling
	for _, f := range g.listed.list() {
		if !slices.Equal(g.values[f], it.values[f]) {
			g.varying |= 1 << f
		}
	}
	g.elements += it.elements
	g.add(it)
	return true
}

// apart is true if no packet matches both the item and a member of the group. It may be false even so.
func (g *group) apart(rules []policy.Rule, it *item) bool {
	if g.view.family != 0 && it.view.family != 0 && g.view.family != it.view.family {
		return true
	}
	if p, q := rules[g.rule].Protocol, rules[it.rule].Protocol; p != nil && q != nil && *p != *q {
		return true
	}
	return slices.ContainsFunc((g.telling & it.listed).list(), func(f field) bool { return !g.taken[f].meet(it.values[f]) })
}

// alike is true if two rules differ in nothing but their names and the given fields.
func alike(a, b *policy.Rule, except fieldSet) bool {
	if a.Action != b.Action || a.IPVersion != b.IPVersion ||
		!equal(a.Protocol, b.Protocol) || !equal(a.NotProtocol, b.NotProtocol) || !alikeICMP(a.ICMP, b.ICMP) || !alikeICMP(a.NotICMP, b.NotICMP) {
		return false
	}
	for f := range fields {
		if except.has(f) {
			continue
		}
		x, y := side(a, f.source()), side(b, f.source())
		if f.address() && !(alikeNets(x.Nets, y.Nets) && alikeNets(x.NotNets, y.NotNets) && x.NetsName == y.NetsName && x.NotNetsName == y.NotNetsName) ||
			!f.address() && !(alikePorts(x.Ports, y.Ports) && alikePorts(x.NotPorts, y.NotPorts)) {
			return false
		}
	}
	return true
}

func equal[T comparable](a, b *T) bool { return a == b || a != nil && b != nil && *a == *b }

func alikeICMP(a, b *policy.ICMPMatch) bool {
	return a == b || a != nil && b != nil && a.Type == b.Type && equal(a.Code, b.Code)
}

func alikeNets(a, b *netset.Set) bool { return a == b || a != nil && b != nil && a.Equal(b) }

func alikePorts(a, b []policy.PortRange) bool { return (a == nil) == (b == nil) && slices.Equal(a, b) }
