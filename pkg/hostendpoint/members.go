// SPDX-License-Identifier: Apache-2.0

package hostendpoint

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/untracked-cni/untracked/pkg/netset"
	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/pkg/resource"
)

// member is what selectors in rules choose from: a host endpoint of any node, or a network set.
type member struct {
	labels map[string]string
	nets   *netset.Set
	// endpoint says that it is no network set. written is nil for the implicit one.
	endpoint bool
	written  *resource.HostEndpoint
	// addresses are the endpoint's own, which are nets, too.
	addresses []netip.Addr
}

// members are all of them.
type members struct {
	list []member
	// naming has those that give a port of theirs a name.
	naming map[string][]*member
	// chosen is what was chosen before, by the words for it.
	chosen map[string]*netset.Set
}

// newMembers collects the members. What is in force on this node may have learned addresses; a HostEndpoint of
// another node has those that are written.
func newMembers(set *resource.Set, endpoints []Endpoint) *members {
	m := &members{naming: map[string][]*member{}, chosen: map[string]*netset.Set{}}
	inForce := map[string][]netip.Addr{}
	for _, e := range endpoints {
		if e.Resource == nil {
			m.list = append(m.list, newEndpointMember(e.Labels, e.Addresses, nil))
		} else {
			inForce[e.Name] = e.Addresses
		}
	}
	for i := range set.HostEndpoints {
		h := &set.HostEndpoints[i]
		addresses, ok := inForce[h.Name]
		if !ok {
			addresses = h.ExpectedIPs
		}
		m.list = append(m.list, newEndpointMember(h.Labels, addresses, h))
	}
	for i := range set.NetworkSets {
		m.list = append(m.list, member{labels: set.NetworkSets[i].Labels, nets: set.NetworkSets[i].Nets})
	}
	for i := range m.list {
		one := &m.list[i]
		for _, name := range one.portNames() {
			m.naming[name] = append(m.naming[name], one)
		}
	}
	return m
}

func newEndpointMember(labels map[string]string, addresses []netip.Addr, h *resource.HostEndpoint) member {
	return member{labels: labels, nets: netsOf(addresses), endpoint: true, written: h, addresses: addresses}
}

// portNames are the names that it gives to ports, each once.
func (one *member) portNames() []string {
	var names []string
	if one.written != nil {
		for _, p := range one.written.Ports {
			if !slices.Contains(names, p.Name) {
				names = append(names, p.Name)
			}
		}
	}
	return names
}

func netsOf(addresses []netip.Addr) *netset.Set {
	var b netset.Builder
	for _, a := range addresses {
		b.Add(netip.PrefixFrom(a, a.BitLen()))
	}
	return b.Build()
}

// chosenBy reports whether a side's selectors leave a member.
func (one *member) chosenBy(e *resource.Entity) bool {
	return (e.Selector == nil || e.Selector.Matches(one.labels)) && (e.NotSelector == nil || !e.NotSelector.Matches(one.labels))
}

// addressesOf is a side's selectors and nets as addresses.
func (m *members) addressesOf(e *resource.Entity) policy.Entity {
	var out policy.Entity
	if e.Nets != nil {
		out.Nets = netset.Of(e.Nets...)
	}
	if e.NotNets != nil {
		out.NotNets = netset.Of(e.NotNets...)
	}
	switch {
	case e.Selector != nil: // notSelector only narrows it
		name := "selector " + e.Selector.String()
		if e.NotSelector != nil {
			name += " and not " + e.NotSelector.String()
		}
		chosen := m.choose(name, func(one *member) bool { return one.chosenBy(e) })
		out.Nets, out.NetsName = narrow(chosen, name, out.Nets, "")
	case e.NotSelector != nil: // all others match, also those that nobody knows
		name := "selector " + e.NotSelector.String()
		excluded := m.choose(name, func(one *member) bool { return e.NotSelector.Matches(one.labels) })
		out.NotNets, out.NotNetsName = widen(excluded, name, out.NotNets, "")
	}
	return out
}

func (m *members) choose(name string, chosen func(*member) bool) *netset.Set {
	set, ok := m.chosen[name]
	if !ok {
		var sets []*netset.Set
		for i := range m.list {
			if chosen(&m.list[i]) {
				sets = append(sets, m.list[i].nets)
			}
		}
		set = netset.Union(sets...)
		m.chosen[name] = set
	}
	return set
}

// narrow is what two conditions on an address leave, and widen what two exclusions exclude. Either may be nil, for
// none. The name tells what is meant, whatever addresses that is at the moment; literal nets have none.
func narrow(a *netset.Set, aName string, b *netset.Set, bName string) (*netset.Set, string) {
	switch {
	case b == nil:
		return a, aName
	case a == nil:
		return b, bName
	}
	return a.Intersect(b), namesOfBoth(a, aName, b, bName)
}

func namesOfBoth(a *netset.Set, aName string, b *netset.Set, bName string) string {
	return words(a, aName) + " in " + words(b, bName)
}

func widen(a *netset.Set, aName string, b *netset.Set, bName string) (*netset.Set, string) {
	switch {
	case b == nil:
		return a, aName
	case a == nil:
		return b, bName
	}
	return netset.Union(a, b), words(a, aName) + " or " + words(b, bName)
}

func words(nets *netset.Set, name string) string {
	if name != "" {
		return name
	}
	const few = 8
	if len(nets.Prefixes()) > few {
		return fmt.Sprintf("%d CIDRs (%x)", nets.Entries(), nets.Hash())
	}
	return nets.String()
}
