// SPDX-License-Identifier: Apache-2.0

package config

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Error is one thing that is wrong with a config.
type Error struct {
	// Key is the annotation, such as untracked.cni/ports, or the field of the entry or the list. It is empty
	// for what is wrong with the text as a whole.
	Key string
	// Value is the bad value, or the bad item of a list. (optional)
	Value string
	// Problem says what is wrong and what would be right.
	Problem string

	// File, Line and Column are the place, counted from 1, columns in bytes. Line is 0 where the place says
	// nothing: an entry from stdin has been put on one line by a runtime.
	File         string
	Line, Column int

	kind valueKind
}

// valueKind says what an Error's Value is, which decides how it is shown.
type valueKind uint8

const (
	asGiven valueKind = iota // a string, shown unless it is empty
	asText                   // a string, shown even when it is empty
	asJSON                   // JSON, shown as it is
)

// maxShown is how many bytes of a value an error shows: a list or a policy can be very long.
const maxShown = 80

func (e *Error) Error() string {
	var b strings.Builder
	switch {
	case e.File != "" && e.Line > 0:
		fmt.Fprintf(&b, "%s:%d:%d: ", e.File, e.Line, e.Column)
	case e.File != "":
		b.WriteString(e.File + ": ")
	case e.Line > 0:
		fmt.Fprintf(&b, "line %d, column %d: ", e.Line, e.Column)
	}
	if e.Key != "" {
		b.WriteString(e.Key + ": ")
	}
	if e.Value != "" || e.kind == asText {
		b.WriteString(e.shownValue() + ": ")
	}
	b.WriteString(e.Problem)
	return b.String()
}

func (e *Error) shownValue() string {
	value, more := e.Value, ""
	if len(value) > maxShown {
		end := maxShown
		for !utf8.RuneStart(value[end]) && end > 0 {
			end--
		}
		value, more = value[:end], "…"
	}
	if e.kind == asJSON {
		return strings.Join(strings.Fields(value), " ") + more
	}
	return strconv.Quote(value) + more
}

// problem is an Error about a string, without its key and place.
func problem(value, format string, args ...any) *Error {
	return &Error{Value: value, Problem: fmt.Sprintf(format, args...), kind: asText}
}

// fault is an Error that shows no value, without its key and place.
func fault(format string, args ...any) *Error {
	return &Error{Problem: fmt.Sprintf(format, args...)}
}

// asProblem takes the bad item from the front of an error's text, where the parsers of this project put it
// in quotes: `"tcp/99999": port … is not …` or `"x" is not an address …`.
func asProblem(value string, err error) *Error {
	text := err.Error()
	quoted, noQuote := strconv.QuotedPrefix(text)
	if noQuote != nil {
		return problem(value, "%s", text)
	}
	item, _ := strconv.Unquote(quoted)
	rest := strings.TrimLeft(text[len(quoted):], ": ")
	return problem(item, "%s", strings.TrimPrefix(rest, "is "))
}

// join is errors.Join in the order of keys; nil if there are none.
func join(errs []*Error) error {
	slices.SortStableFunc(errs, func(a, b *Error) int { return cmp.Compare(a.Key, b.Key) })
	plain := make([]error, len(errs))
	for i, e := range errs {
		plain[i] = e
	}
	return errors.Join(plain...)
}
