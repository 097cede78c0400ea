// SPDX-License-Identifier: Apache-2.0

// Package selector is Calico's language for choosing resources by their labels, such as
// `has(hep) && hep == "redis-host"`.
//
// Grammar, precedence, truth tables and canonical form are those of Calico's libcalico-go/lib/selector, whose module
// cannot be imported. What differs: nesting is bounded, see [MaxDepth], and negations cancel across parentheses, so
// that !(!x) is printed as x where Calico prints !!x. The package is pure. How long a selector may be is a limit of
// the resource it is written in, not of the language.
package selector

import (
	"slices"
	"strings"
)

// Selector is a parsed expression. It does not change once it is made.
type Selector struct {
	root node
}

// Matches reports whether the expression is true of a resource's labels.
//
// Of an absent label, `!=` and `not in` are true and every other comparison is false. Global() is true like all():
// what sets it apart is known only where it is used.
func (s *Selector) Matches(labels map[string]string) bool { return s.root.matches(labels) }

// String is the expression in Calico's canonical form. It parses to an equal selector.
func (s *Selector) String() string {
	var b strings.Builder
	s.root.print(&b)
	return b.String()
}

// IsAll reports whether the expression says that labels do not matter: it is empty, all() or global(). What is true of
// all labels in a more roundabout way, such as `has(a) || !has(a)`, is not looked for.
func (s *Selector) IsAll() bool {
	_, ok := s.root.(constant)
	return ok
}

// UsesGlobal reports whether global() is anywhere in the expression.
func (s *Selector) UsesGlobal() bool {
	found := false
	s.root.visit(func(n node) { found = found || n == node(constant("global()")) })
	return found
}

// Labels are the names of the labels that the expression asks for, sorted, each once.
func (s *Selector) Labels() []string {
	var names []string
	s.root.visit(func(n node) {
		if c, ok := n.(*comparison); ok {
			names = append(names, c.label)
		}
	})
	slices.Sort(names)
	return slices.Compact(names)
}

type node interface {
	matches(labels map[string]string) bool
	print(b *strings.Builder)
	// visit calls f for the node and for all below it.
	visit(f func(node))
	// depth is how many parentheses are open at the deepest place of the canonical form.
	depth() int
}

// constant is all() or global().
type constant string

func (c constant) matches(map[string]string) bool { return true }
func (c constant) print(b *strings.Builder)       { b.WriteString(string(c)) }
func (c constant) visit(f func(node))             { f(c) }
func (c constant) depth() int                     { return 0 }

type operator string

const (
	has        operator = "has"
	equal      operator = "=="
	unequal    operator = "!="
	contains   operator = "contains"
	startsWith operator = "starts with"
	endsWith   operator = "ends with"
	in         operator = "in"
	notIn      operator = "not in"
)

// comparison asks for one label.
type comparison struct {
	label string
	op    operator
	// values is empty for has, a sorted set for in and notIn, and one value for the others.
	values []string
}

func (c *comparison) matches(labels map[string]string) bool {
	value, present := labels[c.label]
	switch c.op {
	case unequal, notIn:
		return !present || !slices.Contains(c.values, value)
	case equal, in:
		return present && slices.Contains(c.values, value)
	case contains:
		return present && strings.Contains(value, c.values[0])
	case startsWith:
		return present && strings.HasPrefix(value, c.values[0])
	case endsWith:
		return present && strings.HasSuffix(value, c.values[0])
	}
	return present // has
}

func (c *comparison) print(b *strings.Builder) {
	if c.op == has {
		b.WriteString("has(" + c.label + ")")
		return
	}
	b.WriteString(c.label + " " + string(c.op) + " ")
	if c.op != in && c.op != notIn {
		b.WriteString(quote(c.values[0]))
		return
	}
	quoted := make([]string, len(c.values))
	for i, v := range c.values {
		quoted[i] = quote(v)
	}
	b.WriteString("{" + strings.Join(quoted, ", ") + "}")
}

func (c *comparison) visit(f func(node)) { f(c) }
func (c *comparison) depth() int         { return 0 }

// quote relies on what the grammar grants: no value has both kinds of quotes.
func quote(value string) string {
	if strings.Contains(value, `"`) {
		return "'" + value + "'"
	}
	return `"` + value + `"`
}

// negation is never of another negation.
type negation struct{ of node }

func (n *negation) matches(labels map[string]string) bool { return !n.of.matches(labels) }
func (n *negation) depth() int                            { return n.of.depth() }

func (n *negation) print(b *strings.Builder) {
	b.WriteByte('!')
	n.of.print(b)
}

func (n *negation) visit(f func(node)) {
	f(n)
	n.of.visit(f)
}

// junction joins at least two terms by && or ||.
type junction struct {
	or    bool
	terms []node
	deep  int
}

func (j *junction) matches(labels map[string]string) bool {
	for _, t := range j.terms {
		if t.matches(labels) == j.or {
			return j.or
		}
	}
	return !j.or
}

func (j *junction) print(b *strings.Builder) {
	operator := " && "
	if j.or {
		operator = " || "
	}
	b.WriteByte('(')
	for i, t := range j.terms {
		if i > 0 {
			b.WriteString(operator)
		}
		t.print(b)
	}
	b.WriteByte(')')
}

func (j *junction) visit(f func(node)) {
	f(j)
	for _, t := range j.terms {
		t.visit(f)
	}
}

func (j *junction) depth() int { return j.deep }
