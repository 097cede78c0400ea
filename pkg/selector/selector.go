// SPDX-License-Identifier: Apache-2.0

// Package selector is Calico's language for choosing resources by their labels.
package selector

// Selector is a parsed expression.
type Selector struct{}

// Parse reads an expression.
func Parse(s string) (*Selector, error) { return &Selector{}, nil }

// Matches reports whether the expression is true of a resource's labels.
func (s *Selector) Matches(labels map[string]string) bool { return true }

// String is the expression in canonical form.
func (s *Selector) String() string { return "" }
