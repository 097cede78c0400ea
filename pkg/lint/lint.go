// SPDX-License-Identifier: Apache-2.0

// Package lint finds what is wrong with a policy, and what is valid and hardly meant, before any node sees it.
//
// Files with resources are one set, as if a conf list named them all. A conf list is read as apply reads it: with what
// its entry holds and names, with its shorthand, labels, failsafe ports and auto-return; without one, defaults stand in
// their place. Whatever apply would refuse is an error. Warnings are about what it would do without a word.
//
// What is said about packets is true of all packets there can be, on every node: package compiler's classes tell. Where
// it would depend on addresses that only a node knows, nothing is said. The one exception is that answers are not taken
// to be allowed by a rule with such addresses. Nor is anything said where it would take too long to find out, but that
// this is so.
// Out of scope: whatever asks the machine, such as which interfaces there are.
package lint

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/untracked-cni/untracked/pkg/hostendpoint"
	"github.com/untracked-cni/untracked/pkg/resource"
)

// Severity says whether a policy with a finding can be applied.
type Severity string

const (
	// Error: apply refuses it.
	Error Severity = "error"
	// Warning: it can be applied, and hardly does what is meant.
	Warning Severity = "warning"
)

// Code says what a finding is about.
type Code = hostendpoint.Code

// The codes of errors.
const (
	// Unreadable: a file cannot be read.
	Unreadable Code = "unreadable"
	// InvalidConfig: a conf list is wrong.
	InvalidConfig Code = "invalid-config"
	// InvalidResource: a resource is wrong, or the text that should hold some.
	InvalidResource Code = "invalid-resource"
	// InvalidList: a plain list of addresses is wrong.
	InvalidList Code = "invalid-list"
	// TooLarge: the policy is more than can be compiled.
	TooLarge Code = "too-large"
)

// The codes of warnings. Those of package hostendpoint are about how resources fit together.
const (
	// MissingReturn: an Allow lets packets of one direction through untracked, and no rule does so with the answers.
	MissingReturn Code = "missing-return"
	// ShadowedRule: rules before it take all packets that a rule matches.
	ShadowedRule Code = "shadowed-rule"
	// ImpossibleRule: no packet meets the conditions of a rule.
	ImpossibleRule Code = "impossible-rule"
	// EmptySelector: a selector that selects everything, where that is easily written and seldom meant.
	EmptySelector Code = "empty-selector"
	// FailsafeDenied: a Deny names ports that are failsafe, and so never denied.
	FailsafeDenied Code = "failsafe-denied"
	// CatchAllUntracked: an Allow for everything.
	CatchAllUntracked Code = "catch-all-untracked"
	// UnusedRules: a policy has rules of a direction that its types leave out.
	UnusedRules Code = "unused-rules"
	// SlowLookup: what a packet costs grows with the rules.
	SlowLookup Code = "slow-lookup"
	// PodsUnheard: pods may ask for ports, and the runtime is not asked for what they ask.
	PodsUnheard Code = "pods-unheard"
	// NotExamined: whether rules are reached and answered is not known of all of them, as it would take too long.
	NotExamined Code = "not-examined"

	SelectsNothing       = hostendpoint.SelectsNothing
	NoAddress            = hostendpoint.NoAddress
	HEPShadowed          = hostendpoint.HEPShadowed
	OverlappingTierOrder = hostendpoint.OverlappingTierOrder
	UnknownTier          = hostendpoint.UnknownTier
	UnknownPortName      = hostendpoint.UnknownPortName
)

// Finding is one thing that is wrong, and where. Line is 0 where only the file is known.
type Finding struct {
	File     string   `json:"file"`
	Line     int      `json:"line"`
	Column   int      `json:"column"`
	Severity Severity `json:"severity"`
	Code     Code     `json:"code"`
	Message  string   `json:"message"`
}

// String is the finding on one line, with its place in front as compilers write it.
func (f Finding) String() string {
	return fmt.Sprintf("%s: %s: %s [%s]", resource.Position{File: f.File, Line: f.Line, Column: f.Column}, f.Severity, f.Message, f.Code)
}

// sorted orders findings by place, each once: a file may be named more than once, and by a conf list, too.
func sorted(findings []Finding) []Finding {
	slices.SortFunc(findings, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column),
			cmp.Compare(a.Severity, b.Severity), cmp.Compare(a.Code, b.Code), cmp.Compare(a.Message, b.Message))
	})
	return slices.Compact(findings)
}
