// SPDX-License-Identifier: Apache-2.0

package hostendpoint

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"

	"github.com/untracked-cni/untracked/pkg/netset"
	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/pkg/resource"
)

// portParts are the ports that are numbers, and the groups of addresses that give others the names.
func (m *members) portParts(r *resource.Rule, e *resource.Entity) []part {
	var parts []part
	if len(e.Ports.Ranges) > 0 {
		parts = append(parts, part{Entity: policy.Entity{Ports: policy.NormalizePorts(e.Ports.Ranges)}})
	}
	for _, g := range m.portGroups(r, e, e.Ports) {
		parts = append(parts, part{&g.protocol, policy.Entity{Nets: netsOf(g.addresses), NetsName: namesInWords(e.Ports.Names), Ports: g.ports}, g.addresses})
	}
	if parts == nil {
		parts = []part{{Entity: policy.Entity{Nets: new(netset.Set), NetsName: namesInWords(e.Ports.Names)}}}
	}
	return parts
}

// anyPort asks for no more than that the ports are known.
var anyPort = []policy.PortRange{{First: 0, Last: 65535}}

// notPortParts are, for each protocol, the groups of addresses on which more ports are excluded than those that are
// numbers, and all other addresses.
func (m *members) notPortParts(r *resource.Rule, e *resource.Entity) []part {
	numbers := policy.NormalizePorts(e.NotPorts.Ranges)
	others := policy.Entity{NotPorts: numbers}
	if len(numbers) == 0 {
		others = policy.Entity{Ports: anyPort}
	}
	groups := m.portGroups(r, e, e.NotPorts)
	if len(groups) == 0 {
		return []part{{Entity: others}}
	}
	name := namesInWords(e.NotPorts.Names)
	var parts []part
	for _, protocol := range []uint8{policy.TCP, policy.UDP, policy.SCTP, policy.UDPLite} {
		if !isAbout(r, protocol) {
			continue
		}
		rest := part{protocol: &protocol, Entity: others}
		var grouped []netip.Addr
		for _, g := range groups {
			if g.protocol != protocol {
				continue
			}
			grouped = append(grouped, g.addresses...)
			excluded := policy.NormalizePorts(slices.Concat(numbers, g.ports))
			parts = append(parts, part{&protocol, policy.Entity{Nets: netsOf(g.addresses), NetsName: name, NotPorts: excluded}, g.addresses})
		}
		if grouped != nil {
			rest.NotNets, rest.NotNetsName = netsOf(grouped), name
		}
		parts = append(parts, rest)
	}
	return parts
}

// namedPort is a port that has one of the names that are asked for.
type namedPort struct {
	protocol uint8
	address  netip.Addr
	port     uint16
}

func (p namedPort) compare(o namedPort) int {
	return cmp.Or(cmp.Compare(p.protocol, o.protocol), p.address.Compare(o.address), cmp.Compare(p.port, o.port))
}

// portGroup are the addresses on which the same ports have one of the names that are asked for.
type portGroup struct {
	protocol  uint8
	ports     []policy.PortRange
	addresses []netip.Addr
}

// portGroups finds what a side's port names mean: disjoint groups of addresses for each protocol. Ports that the list
// has as numbers, too, are left out.
func (m *members) portGroups(r *resource.Rule, e *resource.Entity, list *resource.Ports) []portGroup {
	var found []namedPort
	for _, name := range list.Names {
		for _, one := range m.naming[name] {
			for _, p := range one.portsNamed(r, e, name) {
				for _, a := range one.addresses {
					if !contains(list.Ranges, p.Port) {
						found = append(found, namedPort{p.Protocol, a, p.Port})
					}
				}
			}
		}
	}
	return group(found)
}

// group puts addresses with the same protocol and ports together.
func group(found []namedPort) []portGroup {
	slices.SortFunc(found, namedPort.compare)
	found = slices.Compact(found)
	var groups []portGroup
	with := map[string]int{} // the group of a protocol and its ports
	for len(found) > 0 {
		at, n := found[0], 0
		key := []byte{at.protocol}
		for ; n < len(found) && found[n].protocol == at.protocol && found[n].address == at.address; n++ {
			key = binary.BigEndian.AppendUint16(key, found[n].port)
		}
		g, ok := with[string(key)]
		if !ok {
			g = len(groups)
			with[string(key)] = g
			groups = append(groups, portGroup{protocol: at.protocol, ports: portsOf(found[:n])})
		}
		groups[g].addresses = append(groups[g].addresses, at.address)
		found = found[n:]
	}
	slices.SortFunc(groups, portGroup.compare)
	return groups
}

// compare orders groups by what their addresses have in common, so that new addresses move no rule.
func (g portGroup) compare(o portGroup) int {
	return cmp.Or(cmp.Compare(g.protocol, o.protocol), slices.CompareFunc(g.ports, o.ports, func(a, b policy.PortRange) int {
		return cmp.Or(cmp.Compare(a.First, b.First), cmp.Compare(a.Last, b.Last))
	}))
}

func portsOf(named []namedPort) []policy.PortRange {
	var out []policy.PortRange
	for _, p := range named {
		out = append(out, policy.PortRange{First: p.port, Last: p.port})
	}
	return policy.NormalizePorts(out)
}

// portsNamed returns an endpoint's ports of a name that the rule can be about: of its protocol, and of an endpoint that
// the side's selectors leave.
func (one *member) portsNamed(r *resource.Rule, e *resource.Entity, name string) []resource.NamedPort {
	if !one.chosenBy(e) {
		return nil
	}
	var out []resource.NamedPort
	for _, p := range one.written.Ports {
		if p.Name == name && isAbout(r, p.Protocol) {
			out = append(out, p)
		}
	}
	return out
}

// isAbout reports whether a rule can match packets of a protocol.
func isAbout(r *resource.Rule, protocol uint8) bool {
	return (r.Protocol == nil || *r.Protocol == protocol) && (r.NotProtocol == nil || *r.NotProtocol != protocol)
}

func contains(ranges []policy.PortRange, port uint16) bool {
	return slices.ContainsFunc(ranges, func(r policy.PortRange) bool { return r.First <= port && port <= r.Last })
}

// namesInWords stands for the addresses of a port group.
func namesInWords(names []string) string {
	sorted := slices.Compact(slices.Sorted(slices.Values(names)))
	if len(sorted) == 1 {
		return "endpoints with port " + sorted[0]
	}
	return "endpoints with ports " + strings.Join(sorted, ",")
}
