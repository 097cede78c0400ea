// SPDX-License-Identifier: Apache-2.0

package lint

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/untracked-cni/untracked/pkg/compiler"
	"github.com/untracked-cni/untracked/pkg/config"
	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/pkg/resource"
)

// unit is what makes one policy: resources, and the entry of a conf list if there is one.
type unit struct {
	set        *resource.Set
	entry      *entry // nil for resources alone
	shorthand  policy.Shorthand
	autoReturn bool
	failsafes  policy.Rules
	// budget is what may be spent on all rules, in the steps of [compiler.Reachability].
	budget int

	sources  map[string]*source // by what positions call them
	findings []Finding
	tables   []Tables
}

// source is a text that resources are in.
type source struct {
	data  []byte
	lines [][]byte // once they were asked for
}

// entry is a conf list's, with the text it is written in.
type entry struct {
	*config.Config
	Input
}

// newUnit has the defaults of an entry.
func newUnit() *unit {
	u := &unit{sources: map[string]*source{}, autoReturn: true, budget: compiler.DefaultBudget}
	inbound, _ := policy.ParseFailsafes(policy.DefaultFailsafeInbound) // which is known to be valid
	outbound, _ := policy.ParseFailsafes(policy.DefaultFailsafeOutbound)
	u.failsafes = policy.FailsafeRules(inbound, outbound)
	return u
}

// at is where an annotation is written. It has no line if the key is written with escapes.
func (e *entry) at(name string) resource.Position {
	place := resource.Position{File: e.Name}
	if offset := bytes.Index(e.Data, []byte(`"`+config.Prefix+name+`"`)); offset >= 0 {
		before := e.Data[:offset]
		place.Line = bytes.Count(before, []byte("\n")) + 1
		place.Column = offset - bytes.LastIndexByte(before, '\n')
	}
	return place
}

func (u *unit) add(at resource.Position, severity Severity, code Code, format string, args ...any) {
	message := fmt.Sprintf(format, args...)
	if name, inside := strings.CutPrefix(at.File, config.Prefix); inside && u.entry != nil {
		// A place within an annotation's value: it has lines of its own.
		message = fmt.Sprintf("%s: %s", at, message)
		at = u.entry.at(name)
	}
	u.findings = append(u.findings, Finding{at.File, at.Line, at.Column, severity, code, message})
}

func (u *unit) warn(at resource.Position, code Code, format string, args ...any) {
	u.add(at, Warning, code, format, args...)
}

// textAt is the rest of the line from a place on.
func (u *unit) textAt(at resource.Position) []byte {
	s := u.sources[at.File]
	if s == nil {
		return nil
	}
	if s.lines == nil {
		s.lines = bytes.Split(s.data, []byte("\n"))
	}
	if at.Line < 1 || at.Line > len(s.lines) {
		return nil
	}
	line := s.lines[at.Line-1]
	return line[min(at.Column-1, len(line)):]
}

// check looks for everything that can be looked for.
func (u *unit) check() {
	if u.set == nil || slices.ContainsFunc(u.findings, func(f Finding) bool { return f.Severity == Error }) {
		return // what depends on what is missing would be found wrong, too
	}
	reported := u.inspect()
	u.selectors()
	u.unusedRules()
	u.rules(reported)
}
