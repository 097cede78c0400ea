// SPDX-License-Identifier: Apache-2.0

// Package resource reads Calico's resources (projectcalico.org/v3) as far as they say something about untracked
// traffic: HostEndpoint, GlobalNetworkPolicy with doNotTrack, GlobalNetworkSet and Tier.
//
// Reading is strict. Every limit of Calico's API is checked as its validation does, every unknown field is an error
// with its place, and so is everything that is valid in Calico and cannot be honoured here: a policy that is silently
// not enforced, or not in full, is worse than a message.
//
// It differs from Calico where that is of use, or spares a surprise:
//   - interfaceName may be any glob, such as eth*, and not only "*";
//   - a HostEndpoint may have no profile but projectcalico-default-allow: the labels that others give are not known. Rules
//     of profiles have no say in untracked traffic, in Calico neither. Nor has a Tier's defaultAction: an untracked tier
//     ends with Pass;
//   - of a rule's namespaceSelector only global() is known, and says that the address must be one that selectors know;
//   - names of protocols are read in any case;
//   - 1000-2000 is no port, where Calico takes it for a name that nothing can have;
//   - IPv4 addresses in IPv6 form, and a rule whose fields are of two IP versions, are errors.
//
// YAML is read as kubectl reads it, with two exceptions: merge keys (<<) are refused, and aliases (*name) may repeat
// only so much of the text. JSON is read as the YAML that it is, so that a pair of escaped surrogates is an error.
//
// The package is pure: it is given bytes and returns values. Which interface a HostEndpoint is about, and what
// selectors select, is package hostendpoint's business.
package resource

import (
	"fmt"
	"iter"
	"net/netip"

	"github.com/untracked-cni/untracked/pkg/netset"
	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/pkg/selector"
)

// Position is where something is written. Line and Column count from 1, columns in bytes; Line is 0 where only the
// file is known.
type Position struct {
	// File is the file's name or, for what is inline, the key of the annotation or of the entry.
	File         string
	Line, Column int
}

func (p Position) String() string {
	if p.Line == 0 {
		return p.File
	}
	return fmt.Sprintf("%s:%d:%d", p.File, p.Line, p.Column)
}

// Set is all resources together, valid, each kind sorted by name.
type Set struct {
	Tiers         []Tier
	Policies      []Policy
	NetworkSets   []NetworkSet
	HostEndpoints []HostEndpoint
}

// Meta is what every resource has.
type Meta struct {
	Name   string
	Labels map[string]string
	// At is where metadata.name is written.
	At Position
}

// Tier is a group of policies. Whatever its defaultAction, an untracked tier ends with Pass.
type Tier struct {
	Meta
	// Order is nil for last.
	Order *float64
}

// Policy is a GlobalNetworkPolicy with doNotTrack.
type Policy struct {
	Meta
	// Tier is the tier's name, "default" where the policy says nothing.
	Tier string
	// Order within the tier is nil for last.
	Order *float64
	// Selector chooses host endpoints; never nil. SelectorAt is where it is written, or Meta.At where it is not.
	Selector   *selector.Selector
	SelectorAt Position
	// Ingress and Egress say which directions the policy is about: its types, defaulted as Calico does.
	// IngressRules and EgressRules are as written, also those of a direction that the types leave out.
	Ingress, Egress           bool
	IngressRules, EgressRules []Rule
}

// RulesOf are the rules of a direction, none if the policy is not about it.
func (p *Policy) RulesOf(d policy.Direction) []Rule {
	switch {
	case d == policy.Ingress && p.Ingress:
		return p.IngressRules
	case d == policy.Egress && p.Egress:
		return p.EgressRules
	}
	return nil
}

// RuleName is how messages call a rule of the policy.
func (p *Policy) RuleName(d policy.Direction, index int) string {
	return fmt.Sprintf("policy %s, %s rule %d", p.Name, d, index)
}

// Rule is one entry of spec.ingress or spec.egress.
type Rule struct {
	At     Position
	Action policy.Action // Allow, Deny, Log or Pass
	// IPVersion is 4, 6, or 0 for both. It is also set where the protocol or a net implies it, as in Calico.
	IPVersion             int
	Protocol, NotProtocol *uint8
	ICMP, NotICMP         *policy.ICMPMatch
	Source, Destination   Entity
}

// Sides are the source and the destination, with their names.
func (r *Rule) Sides() iter.Seq2[string, *Entity] {
	return func(yield func(string, *Entity) bool) {
		_ = yield("source", &r.Source) && yield("destination", &r.Destination)
	}
}

// Entity is one side of a rule: everything given must hold.
type Entity struct {
	// Nets and NotNets are nil where not given.
	Nets, NotNets []netip.Prefix
	// Selector and NotSelector choose host endpoints and network sets, whose addresses they stand for; nil where not
	// given, or empty. SelectorAt and NotSelectorAt are their places. A namespaceSelector alone is the Selector global().
	Selector, NotSelector     *selector.Selector
	SelectorAt, NotSelectorAt Position
	// Ports and NotPorts are nil where not given.
	Ports, NotPorts *Ports
}

// Ports are numbers, in ranges, or names; at least one of either.
type Ports struct {
	Ranges []policy.PortRange // as written
	Names  []string
	At     Position
}

// NetworkSet is a GlobalNetworkSet.
type NetworkSet struct {
	Meta
	Nets *netset.Set // never nil
}

// HostEndpoint is an interface of a node, or several.
type HostEndpoint struct {
	Meta
	Node string
	// InterfaceName is a name, "*" for all host interfaces or, beyond what Calico has, a glob such as "eth*". It may
	// be empty; then ExpectedIPs say which interface it is.
	InterfaceName string
	ExpectedIPs   []netip.Addr
	Ports         []NamedPort
}

// NamedPort gives a port a name that rules can use.
type NamedPort struct {
	Name     string
	Protocol uint8 // TCP, UDP or SCTP
	Port     uint16
}
