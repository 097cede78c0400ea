// SPDX-License-Identifier: Apache-2.0

package selector

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

const (
	// MaxDepth bounds how many parentheses are open at once, as written and in canonical form. Calico has no such
	// bound. Here selectors come from files, and reading, printing and evaluating one recurse as deep as it nests:
	// without a bound, a file of parentheses overflows the stack, which no Go program survives.
	MaxDepth = 64
	// MaxLabel is the most bytes a label's name can have.
	MaxLabel = 512
)

// Error says why a text is no selector.
type Error struct {
	// Offset is the byte that the problem begins at; the text's length if it ends too early.
	Offset int
	// Problem says what is wrong and what would be right.
	Problem string
}

func (e *Error) Error() string { return fmt.Sprintf("byte %d: %s", e.Offset, e.Problem) }

// Parse reads an expression. An empty one is all(). The error is an [*Error].
func Parse(s string) (*Selector, error) {
	p := parser{text: s}
	p.space()
	if p.atEnd() {
		return &Selector{constant("all()")}, nil
	}
	root, err := p.or()
	if err != nil {
		return nil, err
	}
	if p.at(")") {
		return nil, p.fail("no parenthesis is open here")
	}
	if !p.atEnd() {
		return nil, p.unexpected("&&, || or the end")
	}
	return &Selector{root}, nil
}

// parser reads the text from left to right. Each method that reads something also reads the white space behind it.
type parser struct {
	text string
	pos  int
	open int // parentheses
}

func (p *parser) or() (node, error)  { return p.junction("||", p.and) }
func (p *parser) and() (node, error) { return p.junction("&&", p.operation) }

func (p *parser) junction(operator string, term func() (node, error)) (node, error) {
	start := p.pos
	n, err := term()
	if err != nil {
		return nil, err
	}
	terms, deep := []node{n}, n.depth()
	for p.accept(operator) {
		n, err := term()
		if err != nil {
			return nil, err
		}
		terms, deep = append(terms, n), max(deep, n.depth())
	}
	if len(terms) == 1 {
		return n, nil
	}
	if deep == MaxDepth {
		return nil, tooDeep(start)
	}
	return &junction{or: operator == "||", terms: terms, deep: deep + 1}, nil
}

// operation reads what && and || join.
func (p *parser) operation() (node, error) {
	negative := false
	for !p.at("!=") && p.accept("!") {
		negative = !negative
	}
	n, err := p.positive()
	if err != nil || !negative {
		return n, err
	}
	if not, ok := n.(*negation); ok {
		return not.of, nil
	}
	return &negation{n}, nil
}

func (p *parser) positive() (node, error) {
	start := p.pos
	if p.accept("(") {
		if p.open == MaxDepth {
			return nil, tooDeep(start)
		}
		p.open++
		n, err := p.or()
		if err != nil {
			return nil, err
		}
		p.open--
		return n, p.close(start, "&&, || or )")
	}
	if p.at(`"`) || p.at("'") {
		return nil, p.fail(`a value in front; want the label there, as in label == "value"`)
	}
	label := p.word()
	if label == "" {
		return nil, p.unexpected(`a condition, such as label == "value" or has(label)`)
	}
	// Only with the parenthesis right behind it is it one of these, and not a label of that name.
	if p.at("(") {
		switch label {
		case "has":
			return p.has(start)
		case "all", "global":
			p.accept("(")
			return constant(label + "()"), p.close(start+len(label), ")")
		}
	}
	if len(label) > MaxLabel {
		return nil, tooLong(start, label)
	}
	p.space()
	return p.comparison(label)
}

// has reads on behind the word, which is at start.
func (p *parser) has(start int) (node, error) {
	p.accept("(")
	at := p.pos
	label := p.word()
	if label == "" {
		return nil, p.unexpected("a label's name, as in has(label)")
	}
	if len(label) > MaxLabel {
		return nil, tooLong(at, label)
	}
	p.space()
	return &comparison{label: label, op: has}, p.close(start+len("has"), ")")
}

// comparison reads on behind the label.
func (p *parser) comparison(label string) (node, error) {
	op, err := p.operator(label)
	if err != nil {
		return nil, err
	}
	var values []string
	if op == in || op == notIn {
		values, err = p.set(op)
	} else {
		values = make([]string, 1)
		values[0], err = p.value(op)
	}
	return &comparison{label, op, values}, err
}

const operators = `==, !=, contains, starts with, ends with, in or not in`

func (p *parser) operator(label string) (operator, error) {
	switch {
	case p.accept("=="):
		return equal, nil
	case p.accept("!="):
		return unequal, nil
	case p.at("="):
		return "", p.fail("a single =, want ==")
	case p.at("(") && (label == "has" || label == "all" || label == "global"):
		return "", p.fail(fmt.Sprintf("a space in front of the parenthesis, want %s(", label))
	}
	start := p.pos
	first := p.word()
	p.space()
	switch first {
	case "contains":
		return contains, nil
	case "in":
		return in, nil
	case "notin":
		return notIn, nil
	case "startswith":
		return startsWith, nil
	case "endswith":
		return endsWith, nil
	case "starts", "ends", "not":
		op := map[string]operator{"starts": startsWith, "ends": endsWith, "not": notIn}[first]
		at, want := p.pos, strings.TrimPrefix(string(op), first+" ")
		second := p.word()
		p.space()
		if second == want {
			return op, nil
		}
		p.pos = at
		return "", p.unexpected(fmt.Sprintf("%s behind %s", want, first))
	}
	p.pos = start
	return "", p.unexpected(fmt.Sprintf("one of %s behind the label %s", operators, abbreviated(label)))
}

// value reads a quoted string. There are no escapes.
func (p *parser) value(behind operator) (string, error) {
	if p.at("{") {
		return "", p.fail(fmt.Sprintf(`a set behind %s, which wants one value; sets go with in and not in`, behind))
	}
	if !p.at(`"`) && !p.at("'") {
		start := p.pos
		word := p.word()
		p.pos = start
		if word != "" {
			return "", p.fail(fmt.Sprintf(`%s has no quotes, want a value: %s "%s"`, abbreviated(word), behind, abbreviated(word)))
		}
		return "", p.unexpected(fmt.Sprintf(`a value in quotes behind %s`, behind))
	}
	value, _, closed := strings.Cut(p.text[p.pos+1:], p.text[p.pos:p.pos+1])
	if !closed {
		return "", p.fail(fmt.Sprintf("the string that begins here has no closing %c", p.text[p.pos]))
	}
	p.pos += len(value) + 2
	p.space()
	return value, nil
}

// set reads strings in braces, sorts them and drops doubles. The last may have a comma behind it.
func (p *parser) set(behind operator) ([]string, error) {
	start := p.pos
	if !p.accept("{") {
		return nil, p.unexpected(fmt.Sprintf(`a set behind %s: %[1]s {"value", "value"}`, behind))
	}
	values := []string{}
	for p.at(`"`) || p.at("'") {
		v, err := p.value(behind)
		if err != nil {
			return nil, err
		}
		values = append(values, v)
		if !p.accept(",") {
			break
		}
	}
	if p.atEnd() {
		return nil, &Error{start, "the set that begins here has no closing }"}
	}
	if !p.accept("}") {
		return nil, p.unexpected("strings in quotes with commas between them, and a }")
	}
	slices.Sort(values)
	return slices.Compact(values), nil
}

// close reads the parenthesis that closes the one at start.
func (p *parser) close(start int, want string) error {
	if p.accept(")") {
		return nil
	}
	if p.atEnd() {
		return &Error{start, "the parenthesis that opens here has no closing )"}
	}
	return p.unexpected(want)
}

func (p *parser) atEnd() bool           { return p.pos == len(p.text) }
func (p *parser) at(prefix string) bool { return strings.HasPrefix(p.text[p.pos:], prefix) }

// accept skips the token, if it is the next one, with the white space behind it.
func (p *parser) accept(token string) bool {
	if !p.at(token) {
		return false
	}
	p.pos += len(token)
	p.space()
	return true
}

func (p *parser) space() {
	for !p.atEnd() && (p.text[p.pos] == ' ' || p.text[p.pos] == '\t') {
		p.pos++
	}
}

// word reads the longest run of bytes that labels are made of, and nothing behind it.
func (p *parser) word() string {
	rest := p.text[p.pos:]
	end := strings.IndexFunc(rest, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("_./-", r)
	})
	if end < 0 {
		end = len(rest)
	}
	p.pos += end
	return rest[:end]
}

func (p *parser) fail(problem string) error { return &Error{p.pos, problem} }

// unexpected says what is here instead of what is wanted.
func (p *parser) unexpected(want string) error {
	start := p.pos
	word := p.word()
	p.pos = start
	next, _ := utf8.DecodeRuneInString(p.text[p.pos:])
	var found string
	switch {
	case p.atEnd():
		found = "ends too early"
	case word != "":
		found = "unexpected " + abbreviated(word)
	case next == '\n' || next == '\r':
		return p.fail("a line break; want spaces and tabs only (a YAML block is folded into one line by >-)")
	case p.at("&") && !p.at("&&"):
		return p.fail("a single &, want &&")
	case p.at("|") && !p.at("||"):
		return p.fail("a single |, want ||")
	case p.at("&&"), p.at("||"), p.at("=="), p.at("!="):
		found = "unexpected " + p.text[p.pos:p.pos+2]
	default:
		found = fmt.Sprintf("unexpected %+q", next)
	}
	return p.fail(found + ", want " + want)
}

func tooDeep(at int) error {
	return &Error{at, fmt.Sprintf("more than %d parentheses inside each other; want fewer", MaxDepth)}
}

func tooLong(at int, label string) error {
	return &Error{at, fmt.Sprintf("a label's name of %d bytes, want at most %d", len(label), MaxLabel)}
}

// abbreviated keeps messages short: a word can be as long as the text.
func abbreviated(word string) string {
	if len(word) <= 40 {
		return word
	}
	return word[:40] + "..."
}
