// SPDX-License-Identifier: Apache-2.0

package resource

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/pkg/selector"
)

// The limits are Calico's.
const (
	maxNets  = 256
	maxPorts = 50
)

// Why a field of a rule is refused.
const (
	noHTTP            = "packets are judged one by one here, and no HTTP request is seen; want the field left out"
	noServices        = "Kubernetes Services are not known here; want the addresses in nets, or a GlobalNetworkSet and a selector"
	noServiceAccounts = "pods and their service accounts are not known here; want the addresses in nets, or a GlobalNetworkSet and a selector"
	noNamespaces      = "namespaces and their pods are not known here; want global(), or the field left out"
)

var actions = map[string]policy.Action{
	"Allow": policy.Allow, "Deny": policy.Deny, "Log": policy.Log, "Pass": policy.Pass,
}

func (v value) rules() []Rule {
	var out []Rule
	v.list(maxRules, func(v value) { out = append(out, v.rule()) })
	return out
}

// ruleReader reads one rule. What it says of IP versions, in several places, is held against each other in the end.
type ruleReader struct {
	Rule
	claims []claim
}

// claim is a field that makes a rule one of a single IP version.
type claim struct {
	value
	version int
	what    string
}

func (v value) rule() Rule {
	r := ruleReader{Rule: Rule{At: v.position()}}
	have := v.fields(map[string]func(value){
		"action":      func(v value) { r.Action = actions[v.oneOf("Allow", "Deny", "Log", "Pass")] },
		"ipVersion":   r.ipVersion,
		"protocol":    func(v value) { r.Protocol = v.protocol() },
		"notProtocol": func(v value) { r.NotProtocol = v.protocol() },
		"icmp":        func(v value) { r.ICMP = v.icmp() },
		"notICMP":     func(v value) { r.NotICMP = v.icmp() },
		"source":      func(v value) { r.entity(v, &r.Source) },
		"destination": func(v value) { r.entity(v, &r.Destination) },
		"http":        refuse(noHTTP),
		"metadata": func(v value) {
			v.fields(map[string]func(value){"annotations": value.annotations})
		},
	})
	if have == nil {
		return r.Rule
	}
	if _, ok := have["action"]; !ok {
		v.missing("action").fail("missing; want Allow, Deny, Log or Pass")
	}
	r.checkPorts(have)
	r.checkICMP(have)
	r.settleVersion(have)
	return r.Rule
}

func (r *ruleReader) ipVersion(v value) {
	n, ok := v.integer(4, 6)
	switch {
	case !ok:
	case n == 5:
		v.fail("not an IP version; want 4 or 6")
	default:
		r.IPVersion = n
		r.claims = append(r.claims, claim{v, n, "ipVersion"})
	}
}

// protocol reads a name, in any case, or a number, which may be in quotes.
func (v value) protocol() *uint8 {
	if !isText(v.node) {
		n, ok := v.integer(1, 255)
		if !ok {
			return nil
		}
		p := uint8(n)
		return &p
	}
	p, ok := policy.ProtocolNumber(strings.ToLower(v.node.Value))
	if n, err := strconv.ParseUint(v.node.Value, 10, 8); err == nil {
		p, ok = uint8(n), n > 0
	}
	if !ok {
		v.fail("not a protocol; want TCP, UDP, ICMP, ICMPv6, SCTP, UDPLite or a number from 1 to 255")
		return nil
	}
	return &p
}

// icmp reads a type and a code. Neither means any ICMP, which the protocol says already.
func (v value) icmp() *policy.ICMPMatch {
	var m policy.ICMPMatch
	have := v.fields(map[string]func(value){
		"type": func(v value) {
			n, _ := v.integer(0, 254)
			m.Type = uint8(n)
		},
		"code": func(v value) {
			if n, ok := v.integer(0, 255); ok {
				code := uint8(n)
				m.Code = &code
			}
		},
	})
	if _, ok := have["type"]; ok {
		return &m
	}
	if code, ok := have["code"]; ok {
		code.fail("a code without a type; want both, or the type alone")
	}
	return nil
}

func (r *ruleReader) entity(v value, e *Entity) {
	var namespaces value
	v.fields(map[string]func(value){
		"nets":     func(v value) { e.Nets = r.nets(v, false) },
		"notNets":  func(v value) { e.NotNets = r.nets(v, true) },
		"ports":    func(v value) { e.Ports = v.ports() },
		"notPorts": func(v value) { e.NotPorts = v.ports() },
		"selector": func(v value) {
			e.Selector, e.SelectorAt = v.optionalSelector()
			v.refuseGlobal(e.Selector)
		},
		"notSelector": func(v value) { e.NotSelector, e.NotSelectorAt = v.optionalSelector() },
		"namespaceSelector": func(v value) {
			if s, ok := v.string(); ok && s != "" {
				namespaces = v
				if strings.TrimSpace(s) != "global()" {
					v.fail("%s", noNamespaces)
				}
			}
		},
		"services":        refuse(noServices),
		"serviceAccounts": refuse(noServiceAccounts),
	})
	// Calico ANDs global() to the selector. All that can be selected here is of no namespace, so that only its being a
	// selector is left of it: the address must be that of something known.
	if namespaces.source != nil && e.Selector == nil {
		e.Selector, _ = selector.Parse("global()")
		e.SelectorAt = namespaces.position()
	}
}

// optionalSelector reads a rule's selector: empty, it selects nothing and asks for nothing, but has its place.
func (v value) optionalSelector() (*selector.Selector, Position) {
	if s, ok := v.string(); !ok || s == "" {
		return nil, v.position()
	}
	return v.selector(), v.position()
}

// nets reads nets or, where they are excluded, notNets. An empty list asks for nothing, like none.
func (r *ruleReader) nets(v value, excluded bool) []netip.Prefix {
	var out []netip.Prefix
	v.set(maxNets, func(v value, s string) {
		p, ok := v.cidr(s)
		if !ok {
			return
		}
		version := 4
		if p.Addr().Is6() {
			version = 6
		}
		if excluded && p.Bits() == 0 {
			v.fail("all of IPv%d excluded, so that the rule matches nothing; want less, or the rule left out", version)
		}
		c := claim{v, version, fmt.Sprintf("an IPv%d network", version)}
		if !slices.ContainsFunc(r.claims, func(d claim) bool { return d.what == c.what }) {
			r.claims = append(r.claims, c)
		}
		out = append(out, p)
	})
	return out
}

// cidr reads a network as a rule has it: with a length, and all bits behind that clear.
func (v value) cidr(s string) (netip.Prefix, bool) {
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil && !strings.Contains(s, "/"):
		if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
			v.fail("no length; want a CIDR, %s/%d for this one address", s, a.BitLen())
			return p, false
		}
		fallthrough
	case err != nil:
		v.fail("not a CIDR; want one such as 10.0.0.0/8 or 2001:db8::/32")
	case p.Addr().Is4In6():
		v.fail("an IPv4 address in IPv6 form; want it in IPv4 form")
	case p != p.Masked():
		v.fail("has bits behind its length; want %s", p.Masked())
	default:
		return p, true
	}
	return p, false
}

func (v value) ports() *Ports {
	p := Ports{At: v.position()}
	v.list(maxPorts, func(v value) {
		switch r, name, problem := parsePort(v); {
		case problem != "":
			v.fail("%s; want 1 to 65535, a range such as 1000:2000 or a port's name", problem)
		case name != "":
			p.Names = append(p.Names, name)
		default:
			p.Ranges = append(p.Ranges, r)
		}
	})
	if len(p.Ranges)+len(p.Names) == 0 {
		return nil
	}
	return &p
}

// parsePort reads a number, also in quotes, a range or a name.
func parsePort(v value) (r policy.PortRange, name, problem string) {
	const notPort = "not a port"
	if !isText(v.node) {
		var n int64
		if v.what() != "a number" {
			return r, "", v.what()
		}
		if v.node.Decode(&n) != nil || n < 1 || n > 65535 {
			return r, "", notPort
		}
		return policy.PortRange{First: uint16(n), Last: uint16(n)}, "", ""
	}
	text := v.node.Value
	first, last, isRange := strings.Cut(text, ":")
	if !isRange {
		last = first
	}
	from, err1 := strconv.ParseUint(first, 10, 16)
	to, err2 := strconv.ParseUint(last, 10, 16)
	switch {
	case err1 == nil && err2 == nil && (from == 0 || to == 0):
		return r, "", "port 0 is none"
	case err1 == nil && err2 == nil && from > to:
		return r, "", "the range ends before it begins"
	case err1 == nil && err2 == nil:
		return policy.PortRange{First: uint16(from), Last: uint16(to)}, "", ""
	case isRange, onlyHas(text, isDigit):
		return r, "", notPort
	case onlyHas(text, func(b byte) bool { return isDigit(b) || b == '-' }):
		// Calico takes it for a name, which no endpoint's port can have.
		return r, "", "a range is written with ':'"
	case len(text) > 128 || !onlyHas(text, func(b byte) bool { return isAlphanumeric(b) || b == '_' || b == '.' || b == '-' }):
		return r, "", notPort
	}
	return r, text, ""
}

func isDigit(b byte) bool { return '0' <= b && b <= '9' }

func onlyHas(s string, in func(byte) bool) bool {
	for i := range len(s) {
		if !in(s[i]) {
			return false
		}
	}
	return s != ""
}

// checkPorts holds ports against the protocol.
func (r *ruleReader) checkPorts(have map[string]value) {
	_, written := have["protocol"]
	check := func(side, field string, ports *Ports) {
		switch {
		case ports == nil:
		case r.Protocol != nil && !takesPorts(*r.Protocol):
			have[side].peek(field).fail("ports in a rule for %s; want protocol TCP, UDP or SCTP, or no ports", policy.ProtocolName(*r.Protocol))
		case !written && len(ports.Ranges) > 0:
			have[side].peek(field).fail("port numbers in a rule without protocol; want protocol TCP, UDP or SCTP")
		}
	}
	check("source", "ports", r.Source.Ports)
	check("source", "notPorts", r.Source.NotPorts)
	check("destination", "ports", r.Destination.Ports)
	check("destination", "notPorts", r.Destination.NotPorts)
}

// checkICMP holds icmp against the protocol. Calico leaves notICMP alone.
func (r *ruleReader) checkICMP(have map[string]value) {
	v, ok := have["icmp"]
	_, written := have["protocol"]
	if ok && (!written || r.Protocol != nil && *r.Protocol != policy.ICMP && *r.Protocol != policy.ICMPv6) {
		v.fail("icmp in a rule for something else; want protocol ICMP or ICMPv6")
	}
}

// settleVersion sets the IP version that the rule's fields imply, and reports what contradicts it.
func (r *ruleReader) settleVersion(have map[string]value) {
	claimICMP := func(field string, protocol *uint8) {
		if protocol == nil || *protocol != policy.ICMP && *protocol != policy.ICMPv6 {
			return
		}
		v, version, name := have[field], 4, "ICMP"
		if *protocol == policy.ICMPv6 {
			version, name = 6, "ICMPv6"
		}
		// By number the protocol may be in packets of either version, and what is not ICMP may be too. Next to
		// ipVersion, Calico wants them to agree all the same.
		if r.IPVersion != 0 || field == "protocol" && strings.EqualFold(v.scalar(), name) {
			r.claims = append(r.claims, claim{v, version, field + " " + name})
		}
	}
	claimICMP("protocol", r.Protocol)
	claimICMP("notProtocol", r.NotProtocol)
	for _, c := range r.claims {
		first := r.claims[0]
		r.IPVersion = first.version
		if c.version != first.version {
			c.fail("%s in a rule that is for IPv%d only, because of %s at %s; want one IP version in a rule",
				c.what, first.version, first.what, first.position())
		}
	}
}
