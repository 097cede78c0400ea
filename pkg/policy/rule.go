// SPDX-License-Identifier: Apache-2.0

// Package policy is the specification: what an ordered list of rules says about a packet.
//
// Everything else in this project is a faster way to the same answer. The lookup tables that the BPF
// programs read and the nftables rules of the way out are tested against [Evaluate], packet by packet.
// The package is pure: no kernel, no files, no clock.
package policy

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/untracked-cni/untracked/pkg/netset"
)

// Protocol numbers with fields that rules can match, by IANA's names.
const (
	ICMP    = 1
	TCP     = 6
	UDP     = 17
	ICMPv6  = 58
	SCTP    = 132
	UDPLite = 136
)

// Direction says on which way through the host a list of rules is asked.
type Direction string

// Ingress rules see packets arriving on an interface, Egress rules those that local sockets send.
const (
	Ingress Direction = "ingress"
	Egress  Direction = "egress"
)

// Action is what a matching rule does with a packet.
type Action uint8

const (
	// Allow takes the packet out of connection tracking.
	Allow Action = iota + 1
	// Deny drops the packet.
	Deny
	// Failsafe leaves the packet alone: tracked, and never denied here.
	Failsafe
	// Log reports the packet and leaves the decision to the rules behind it.
	Log
	// Pass leaves the decision to the next tier.
	Pass
)

// Decides reports whether no further rule is asked once one with this action matches.
func (a Action) Decides() bool { return a != Log && a != Pass }

// Logs reports whether some rule of a list has action Log.
func Logs(rules []Rule) bool {
	return slices.ContainsFunc(rules, func(r Rule) bool { return r.Action == Log })
}

func (a Action) String() string {
	switch a {
	case Allow:
		return "Allow"
	case Deny:
		return "Deny"
	case Failsafe:
		return "Failsafe"
	case Log:
		return "Log"
	case Pass:
		return "Pass"
	}
	return "Action(" + strconv.Itoa(int(a)) + ")"
}

// PortRange is an inclusive range of ports.
type PortRange struct{ First, Last uint16 }

func (r PortRange) String() string {
	if r.First == r.Last {
		return strconv.Itoa(int(r.First))
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}

// ICMPMatch matches ICMP (in IPv4) or ICMPv6 (in IPv6) by type and, unless Code is nil, by code.
type ICMPMatch struct {
	Type uint8
	Code *uint8
}

// Entity is one side of a rule: everything given must hold.
type Entity struct {
	// Nets is nil for any address. An empty set matches no packet.
	Nets *netset.Set
	// NetsName says where a large set comes from ("file /etc/deny.txt"). It stands for the set's content in
	// the rule's identity, so that a list which is refreshed every day keeps its counters. (optional)
	NetsName string
	// NotNets excludes addresses; nil excludes none. NotNetsName is to it what NetsName is to Nets.
	NotNets     *netset.Set
	NotNetsName string
	// Ports is nil for any. Given, it matches only packets of TCP, UDP, UDPLite or SCTP whose ports are known.
	Ports []PortRange
	// NotPorts excludes ports. Given, the ports must be known.
	NotPorts []PortRange
}

// Rule is one line of an ordered list. All conditions that are present must hold.
type Rule struct {
	// Tier, Policy and Index name the rule. Rules of one tier stand together; those that are of none have an empty
	// one.
	Tier, Policy string
	Index        int
	// Origin is where the rule was written, such as "redis.yaml:12" or an annotation's key. It is no part of the
	// rule's identity. (optional)
	Origin string

	Action Action
	// IPVersion is 4, 6, or 0 for both.
	IPVersion int
	// Protocol and NotProtocol are IP protocol numbers, nil for any.
	Protocol, NotProtocol *uint8
	ICMP, NotICMP         *ICMPMatch
	Source, Destination   Entity
}

// Rules is the policy of one interface: an ordered list for each direction, first match wins.
type Rules struct {
	Ingress, Egress []Rule
}

// Of returns the list of a direction.
func (r Rules) Of(d Direction) []Rule {
	if d == Egress {
		return r.Egress
	}
	return r.Ingress
}

// Name is how listings and messages call the rule: tier/policy[index].
func (r *Rule) Name() string {
	if r.Tier == "" {
		return fmt.Sprintf("%s[%d]", r.Policy, r.Index)
	}
	return fmt.Sprintf("%s/%s[%d]", r.Tier, r.Policy, r.Index)
}

// Match says in words what the rule matches.
func (r *Rule) Match() string {
	var w []string
	if r.IPVersion != 0 && !r.namesVersion() {
		w = append(w, "ipv"+strconv.Itoa(r.IPVersion))
	}
	if r.Protocol != nil {
		w = append(w, ProtocolName(*r.Protocol))
	}
	if r.NotProtocol != nil {
		w = append(w, "not "+ProtocolName(*r.NotProtocol))
	}
	if r.ICMP != nil {
		w = append(w, r.ICMP.String())
	}
	if r.NotICMP != nil {
		w = append(w, "not "+r.NotICMP.String())
	}
	w = append(w, r.Source.words("from")...)
	w = append(w, r.Destination.words("to")...)
	if len(w) == 0 {
		return "any packet"
	}
	return strings.Join(w, " ")
}

// namesVersion reports whether the addresses that the rule asks for, or its protocol, say by themselves which IP
// version it is about.
func (r *Rule) namesVersion() bool {
	for _, nets := range []*netset.Set{r.Source.Nets, r.Destination.Nets} {
		if nets == nil || nets.Empty() {
			continue
		}
		if r.IPVersion == 4 && len(nets.Ranges6()) == 0 || r.IPVersion == 6 && len(nets.Ranges4()) == 0 {
			return true
		}
	}
	return r.Protocol != nil && (r.IPVersion == 4 && *r.Protocol == ICMP || r.IPVersion == 6 && *r.Protocol == ICMPv6)
}

func (m ICMPMatch) String() string {
	if m.Code == nil {
		return fmt.Sprintf("type %d", m.Type)
	}
	return fmt.Sprintf("type %d code %d", m.Type, *m.Code)
}

func (e *Entity) words(preposition string) []string {
	var w []string
	if e.Nets != nil {
		w = append(w, netsWords(e.Nets, e.NetsName))
	}
	if e.NotNets != nil {
		w = append(w, "not "+netsWords(e.NotNets, e.NotNetsName))
	}
	if e.Ports != nil {
		w = append(w, PortWords(e.Ports))
	}
	if e.NotPorts != nil {
		w = append(w, "not "+PortWords(e.NotPorts))
	}
	if len(w) > 0 {
		w = append([]string{preposition}, w...)
	}
	return w
}

func netsWords(nets *netset.Set, name string) string {
	switch {
	case name != "":
		if nets.Entries() == 1 {
			return name + " (1 CIDR)"
		}
		return fmt.Sprintf("%s (%d CIDRs)", name, nets.Entries())
	case nets.Empty():
		return "no address"
	}
	return nets.String()
}

// PortWords says a list of ports in words.
func PortWords(ports []PortRange) string {
	parts := make([]string, len(ports))
	for i, p := range ports {
		parts[i] = p.String()
	}
	if len(ports) == 1 && ports[0].First == ports[0].Last {
		return "port " + parts[0]
	}
	return "ports " + strings.Join(parts, ",")
}

var protocolNames = map[uint8]string{
	ICMP: "icmp", TCP: "tcp", UDP: "udp", ICMPv6: "icmpv6", SCTP: "sctp", UDPLite: "udplite",
}

// ProtocolName is the usual lower-case name of a protocol, "protocol N" for one that has none here.
func ProtocolName(n uint8) string {
	if name, ok := protocolNames[n]; ok {
		return name
	}
	return "protocol " + strconv.Itoa(int(n))
}

// ProtocolNumber is the inverse of ProtocolName for the protocols with names.
func ProtocolNumber(name string) (uint8, bool) {
	for n, s := range protocolNames {
		if s == name {
			return n, true
		}
	}
	return 0, false
}

// HasPorts reports whether a protocol's header begins with two 16-bit ports that rules may match.
func HasPorts(protocol uint8) bool {
	return protocol == TCP || protocol == UDP || protocol == UDPLite || protocol == SCTP
}

// IDs gives each rule of a list an identity that survives a policy change: it depends on what the rule
// matches and does, not on its place. Of several equal rules, the n-th keeps the n-th identity.
// An identity is never 0.
func IDs(rules []Rule) []uint64 {
	ids := make([]uint64, len(rules))
	seen := make(map[uint64]uint64, len(rules))
	for i := range rules {
		content := rules[i].contentHash()
		nth := seen[content]
		seen[content] = nth + 1
		var b [16]byte
		binary.BigEndian.PutUint64(b[:8], content)
		binary.BigEndian.PutUint64(b[8:], nth)
		ids[i] = max(hash(b[:]), 1)
	}
	return ids
}

// NormalizePorts sorts and merges overlapping and adjacent ranges.
func NormalizePorts(in []PortRange) []PortRange {
	if in == nil {
		return nil
	}
	sorted := slices.Clone(in)
	slices.SortFunc(sorted, func(a, b PortRange) int { return int(a.First) - int(b.First) })
	out := make([]PortRange, 0, len(sorted))
	for _, r := range sorted {
		if n := len(out); n > 0 && int(r.First) <= int(out[n-1].Last)+1 {
			out[n-1].Last = max(out[n-1].Last, r.Last)
			continue
		}
		out = append(out, r)
	}
	return out
}
