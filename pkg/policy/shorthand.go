// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/untracked-cni/untracked/pkg/netset"
)

// Policy names of the rules that the shorthand annotations expand into.
const (
	DenyAnnotation        = "deny"
	DenyFilesAnnotation   = "deny-files"
	PortsAnnotation       = "ports"
	RemotePortsAnnotation = "remote-ports"
)

// Port is one item of a port list: a protocol with ports and a range of them.
type Port struct {
	Protocol uint8
	Range    PortRange
}

// String is as ParsePorts reads it, tcp/6379.
func (p Port) String() string { return ProtocolName(p.Protocol) + "/" + p.Range.String() }

// ParsePorts reads `tcp/6379,udp/53,tcp/7000-7100`: protocols with ports, ports from 1 to 65535.
func ParsePorts(s string) ([]Port, error) {
	var out []Port
	for _, item := range strings.Split(s, ",") {
		item = strings.TrimSpace(item)
		p, err := parsePort(item)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

func parsePort(item string) (Port, error) {
	bad := func(format string, args ...any) (Port, error) {
		return Port{}, fmt.Errorf("%q: %s; want protocol/port or protocol/first-last, as in tcp/6379 or udp/7000-7100", item, fmt.Sprintf(format, args...))
	}
	name, ports, found := strings.Cut(item, "/")
	if !found {
		return bad("no protocol")
	}
	protocol, ok := ProtocolNumber(strings.ToLower(name))
	if !ok || !HasPorts(protocol) {
		return bad("protocol %q is not tcp, udp, udplite or sctp", name)
	}
	first, last, ranged := strings.Cut(ports, "-")
	if !ranged {
		last = first
	}
	var n [2]uint16
	for i, text := range []string{first, last} {
		v, err := strconv.ParseUint(text, 10, 32)
		if err != nil || v < 1 || v > 65535 {
			return bad("port %q is not a number from 1 to 65535", text)
		}
		n[i] = uint16(v)
	}
	if n[0] > n[1] {
		return bad("the range runs backwards")
	}
	return Port{protocol, PortRange{n[0], n[1]}}, nil
}

// NamedSet is a set of addresses with the name of where it comes from.
type NamedSet struct {
	Name string
	Set  *netset.Set
}

// Shorthand is a policy as the annotations write it. Nil sets mean any address, or for Deny none.
type Shorthand struct {
	Deny      *netset.Set
	DenyFiles []NamedSet

	Ports   []Port
	Sources *netset.Set

	RemotePorts  []Port
	Destinations *netset.Set
}

// Denies are the rules that stand before all written resources: one for the inline list, one a file.
func (s *Shorthand) Denies() Rules {
	var r Rules
	if s.Deny != nil {
		r.Ingress = append(r.Ingress, Rule{
			Policy: DenyAnnotation, Action: Deny, Source: Entity{Nets: s.Deny},
		})
	}
	for i, f := range s.DenyFiles {
		r.Ingress = append(r.Ingress, Rule{
			Policy: DenyFilesAnnotation, Index: i, Action: Deny,
			Source: Entity{Nets: f.Set, NetsName: "file " + f.Name},
		})
	}
	return r
}

// Around puts written rules between those that stand before and those that stand after them.
func (s *Shorthand) Around(written Rules) Rules { return Join(s.Denies(), written, s.Allows()) }

// Allows are the rules that stand after all written resources: both directions of each port, one rule an
// item, so that each has its own counters. They are complete in themselves; auto-return has nothing to add.
func (s *Shorthand) Allows() Rules {
	var r Rules
	for i, p := range s.Ports {
		arriving := p.rule(PortsAnnotation, i)
		arriving.Source.Nets = s.Sources
		arriving.Destination.Ports = []PortRange{p.Range}
		r.Ingress = append(r.Ingress, arriving)
		r.Egress = append(r.Egress, arriving.mirror())
	}
	for i, p := range s.RemotePorts {
		leaving := p.rule(RemotePortsAnnotation, i)
		leaving.Destination.Nets = s.Destinations
		leaving.Destination.Ports = []PortRange{p.Range}
		r.Egress = append(r.Egress, leaving)
		r.Ingress = append(r.Ingress, leaving.mirror())
	}
	return r
}

func (p *Port) rule(policy string, index int) Rule {
	protocol := p.Protocol
	return Rule{Policy: policy, Index: index, Action: Allow, Protocol: &protocol}
}

// Join concatenates lists, direction by direction.
func Join(parts ...Rules) Rules {
	var r Rules
	for _, p := range parts {
		r.Ingress = append(r.Ingress, p.Ingress...)
		r.Egress = append(r.Egress, p.Egress...)
	}
	return r
}
