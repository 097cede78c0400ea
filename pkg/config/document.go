// SPDX-License-Identifier: Apache-2.0

package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// document is a JSON text that is known to be well-formed.
//
// encoding/json tells neither where a value stands, nor that a key is there twice, nor "annotations" from
// "Annotations". So the few objects that matter are taken apart here, member by member, and encoding/json
// does what is hard: it checks the grammar and decodes the strings.
type document struct {
	name string // for the places in errors, empty if they would say nothing
	data []byte
}

// member is one key with its value, and where they stand in the document.
type member struct {
	key            string
	keyAt, valueAt int
}

// newDocument checks the grammar. Its error has the place.
func newDocument(name string, data []byte) (*document, *Error) {
	doc := &document{name: name, data: data}
	var whole json.RawMessage
	err := json.Unmarshal(data, &whole)
	if err == nil {
		return doc, nil
	}
	e := &Error{File: name, Problem: "not valid JSON: " + err.Error()}
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		// Offset counts the bytes read up to and with the offending one.
		e.Line, e.Column = doc.position(max(int(syntax.Offset)-1, 0))
	}
	return nil, e
}

// errorAt is a problem with a key and, if places say anything in this document, a place.
func (d *document) errorAt(at int, key string, e *Error) *Error {
	e.Key = key
	if d.name != "" {
		e.File = d.name
		e.Line, e.Column = d.position(at)
	}
	return e
}

func (d *document) position(at int) (line, column int) {
	before := d.data[:min(at, len(d.data))]
	return bytes.Count(before, []byte("\n")) + 1, len(before) - bytes.LastIndexByte(before, '\n')
}

// start is where the document's value begins.
func (d *document) start() int { return d.skipSpace(0) }

// members takes an object apart, in its order. It returns false for any other value.
func (d *document) members(at int) ([]member, bool) {
	if d.data[at] != '{' {
		return nil, false
	}
	var out []member
	for at = d.skipSpace(at + 1); d.data[at] != '}'; at = d.skipSpace(at) {
		if d.data[at] == ',' {
			at = d.skipSpace(at + 1)
		}
		m := member{keyAt: at}
		m.key, _ = d.stringAt(at)
		at = d.skipSpace(d.skipValue(at)) // the colon
		m.valueAt = d.skipSpace(at + 1)
		at = d.skipValue(m.valueAt)
		out = append(out, m)
	}
	return out, true
}

// elements returns where the values of an array stand. It returns false for any other value.
func (d *document) elements(at int) ([]int, bool) {
	if d.data[at] != '[' {
		return nil, false
	}
	var out []int
	for at = d.skipSpace(at + 1); d.data[at] != ']'; at = d.skipSpace(at) {
		if d.data[at] == ',' {
			at = d.skipSpace(at + 1)
		}
		out = append(out, at)
		at = d.skipValue(at)
	}
	return out, true
}

// value is the JSON text of the value at an offset.
func (d *document) value(at int) []byte { return d.data[at:d.skipValue(at)] }

func (d *document) isNull(at int) bool { return d.data[at] == 'n' }

// problemAt is a problem with the value at an offset, of whatever type it is.
func (d *document) problemAt(at int, format string, args ...any) *Error {
	if s, ok := d.stringAt(at); ok {
		return problem(s, format, args...)
	}
	return &Error{Value: string(d.value(at)), Problem: fmt.Sprintf(format, args...), kind: asJSON}
}

// stringAt decodes a string. It returns false for any other value.
func (d *document) stringAt(at int) (string, bool) {
	if d.data[at] != '"' {
		return "", false
	}
	var s string
	err := json.Unmarshal(d.value(at), &s)
	return s, err == nil
}

// typeAt is the JSON type of a value in words.
func (d *document) typeAt(at int) string {
	switch d.data[at] {
	case '{':
		return "an object"
	case '[':
		return "an array"
	case '"':
		return "a string"
	case 't', 'f':
		return "a boolean"
	case 'n':
		return "null"
	}
	return "a number"
}

func (d *document) skipSpace(at int) int {
	for at < len(d.data) {
		switch d.data[at] {
		case ' ', '\t', '\n', '\r':
			at++
		default:
			return at
		}
	}
	return at
}

func (d *document) skipValue(at int) int {
	depth := 0
	for at < len(d.data) {
		switch d.data[at] {
		case '"':
			at = d.skipString(at)
		case '{', '[':
			depth++
			at++
		case '}', ']':
			depth--
			at++
		default:
			at++
			if depth == 0 { // a number or a literal ends where something else begins
				for at < len(d.data) && !strings.ContainsRune(" \t\r\n,]}", rune(d.data[at])) {
					at++
				}
			}
		}
		if depth == 0 {
			return at
		}
	}
	return at
}

func (d *document) skipString(at int) int {
	for at++; d.data[at] != '"'; at++ {
		if d.data[at] == '\\' {
			at++
		}
	}
	return at + 1
}
