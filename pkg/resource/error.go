// SPDX-License-Identifier: Apache-2.0

package resource

import (
	"cmp"
	"errors"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Error is one thing that is wrong with a resource, or with a text that should hold some.
type Error struct {
	Position
	// Object is the resource's kind and name, such as "GlobalNetworkPolicy redis", as far as they are known.
	Object string
	// Path is the field, such as spec.ingress[0].source.ports[1]. (optional)
	Path string
	// Value is the bad value. It may be empty, also where one was given.
	Value string
	// Problem says what is wrong and what would be right.
	Problem string
}

// maxShown is how many bytes of a value an error shows.
const maxShown = 80

func (e *Error) Error() string {
	var b strings.Builder
	for _, part := range []string{e.Position.String(), e.Object, e.Path} {
		if part != "" {
			b.WriteString(part + ": ")
		}
	}
	if e.Value != "" {
		b.WriteString(strconv.Quote(shorten(e.Value)) + ": ")
	}
	b.WriteString(e.Problem)
	return b.String()
}

func shorten(s string) string { return cut(s, maxShown) }

func cut(s string, most int) string {
	if len(s) <= most {
		return s
	}
	for most > 0 && !utf8.RuneStart(s[most]) {
		most--
	}
	return s[:most] + "…"
}

// Errors returns all that an error of this package is made of, in its order.
func Errors(err error) []*Error { return Unjoin[*Error](err) }

// Unjoin returns the errors of a type that an error is made of, in the order in which they were joined.
func Unjoin[E error](err error) []E {
	type joined interface {
		error
		Unwrap() []error
	}
	if many, ok := errors.AsType[joined](err); ok {
		var out []E
		for _, e := range many.Unwrap() {
			out = append(out, Unjoin[E](e)...)
		}
		return out
	}
	if one, ok := errors.AsType[E](err); ok {
		return []E{one}
	}
	return nil
}

// join is errors.Join; nil if there are none.
func join(errs []*Error) error {
	plain := make([]error, len(errs))
	for i, e := range errs {
		plain[i] = e
	}
	return errors.Join(plain...)
}

// sortByPlace orders the errors of one text as a reader meets them.
func sortByPlace(errs []*Error) {
	slices.SortStableFunc(errs, func(a, b *Error) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
}
