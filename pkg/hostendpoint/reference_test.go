// SPDX-License-Identifier: Apache-2.0

package hostendpoint

import (
	"fmt"
	"math"
	"net/netip"
	"slices"

	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/pkg/resource"
)

// reference says what resources mean for a packet by asking each written rule about it: no address sets, no parts of
// rules, and as little as possible in common with what it is a reference for.
type reference struct {
	set       *resource.Set
	endpoints []Endpoint
}

// outcome is what happens to a packet of an endpoint.
type outcome struct {
	verdict policy.Verdict
	// decided names the rule that decides, empty if none does. via are those that matched before.
	decided string
	via     []string
}

func (f *reference) evaluate(e *Endpoint, d policy.Direction, p *policy.Packet) outcome {
	out := outcome{verdict: policy.Tracked}
	for _, tier := range f.tiers() {
		passed := false
		for _, one := range f.policiesOf(tier) {
			written, rules := one.Ingress, one.IngressRules
			if d == policy.Egress {
				written, rules = one.Egress, one.EgressRules
			}
			if !written || !one.Selector.Matches(e.Labels) {
				continue
			}
			for i, r := range rules {
				if passed || !f.matches(&r, p) {
					continue
				}
				name := fmt.Sprintf("%s/%s[%d]", tier, one.Name, i)
				switch r.Action {
				case policy.Log:
					out.via = append(out.via, name)
				case policy.Pass:
					out.via = append(out.via, name)
					passed = true
				case policy.Allow:
					out.verdict, out.decided = policy.Untracked, name
					return out
				case policy.Deny:
					out.verdict, out.decided = policy.Denied, name
					return out
				}
			}
		}
	}
	return out
}

// tiers are those that policies name. Sorting by insertion, least wanted criterion first, needs no comparison of pairs.
func (f *reference) tiers() []string {
	var names []string
	for _, p := range f.set.Policies {
		names = append(names, p.Tier)
	}
	slices.Sort(names)
	names = slices.Compact(names)
	orders := map[string]float64{}
	for _, name := range names {
		orders[name] = math.MaxFloat64 // behind any written one, even behind those without an order
	}
	for name, order := range map[string]float64{"kube-admin": 1e3, "default": 1e6, "kube-baseline": 1e7} {
		orders[name] = order
	}
	for _, tier := range f.set.Tiers {
		orders[tier.Name] = math.MaxFloat64 / 2
		if tier.Order != nil {
			orders[tier.Name] = *tier.Order
		}
	}
	slices.SortStableFunc(names, func(a, b string) int {
		if orders[a] < orders[b] {
			return -1
		}
		if orders[a] > orders[b] {
			return 1
		}
		return 0
	})
	return names
}

func (f *reference) policiesOf(tier string) []resource.Policy {
	var out []resource.Policy
	for _, p := range f.set.Policies {
		if p.Tier != tier {
			continue
		}
		at := 0
		for at < len(out) && !before(p, out[at]) {
			at++
		}
		out = slices.Insert(out, at, p)
	}
	return out
}

func before(a, b resource.Policy) bool {
	switch {
	case a.Order != nil && b.Order != nil && *a.Order != *b.Order:
		return *a.Order < *b.Order
	case (a.Order == nil) != (b.Order == nil):
		return b.Order == nil
	}
	return a.Name+"//GlobalNetworkPolicy" < b.Name+"//GlobalNetworkPolicy"
}

func (f *reference) matches(r *resource.Rule, p *policy.Packet) bool {
	v4 := p.Src.Is4()
	icmp := p.HasL4 && (v4 && p.Protocol == 1 || !v4 && p.Protocol == 58)
	switch {
	case r.IPVersion == 4 && !v4, r.IPVersion == 6 && v4:
		return false
	case r.Protocol != nil && *r.Protocol != p.Protocol:
		return false
	case r.NotProtocol != nil && *r.NotProtocol == p.Protocol:
		return false
	case r.ICMP != nil && (!icmp || r.ICMP.Type != p.ICMPType || r.ICMP.Code != nil && *r.ICMP.Code != p.ICMPCode):
		return false
	case r.NotICMP != nil && (!icmp || r.NotICMP.Type == p.ICMPType && (r.NotICMP.Code == nil || *r.NotICMP.Code == p.ICMPCode)):
		return false
	}
	return f.matchesSide(&r.Source, p, p.Src, p.SrcPort) && f.matchesSide(&r.Destination, p, p.Dst, p.DstPort)
}

func (f *reference) matchesSide(e *resource.Entity, p *policy.Packet, a netip.Addr, port uint16) bool {
	inside := func(n netip.Prefix) bool { return n.Contains(a) }
	if e.Nets != nil && !slices.ContainsFunc(e.Nets, inside) || slices.ContainsFunc(e.NotNets, inside) {
		return false
	}
	if e.Selector != nil && !f.holds(a, func(labels map[string]string) bool { return selects(e, labels) }) {
		return false
	}
	if e.Selector == nil && e.NotSelector != nil && f.holds(a, e.NotSelector.Matches) {
		return false
	}
	portsKnown := p.HasL4 && slices.Contains([]uint8{6, 17, 132, 136}, p.Protocol)
	return (e.Ports == nil || portsKnown && f.isPort(e, e.Ports, p.Protocol, a, port)) &&
		(e.NotPorts == nil || portsKnown && !f.isPort(e, e.NotPorts, p.Protocol, a, port))
}

func selects(e *resource.Entity, labels map[string]string) bool {
	return e.Selector == nil || e.Selector.Matches(labels) && (e.NotSelector == nil || !e.NotSelector.Matches(labels))
}

// holds reports whether a host endpoint or a network set with such labels has the address.
func (f *reference) holds(a netip.Addr, labels func(map[string]string) bool) bool {
	for _, h := range f.set.HostEndpoints {
		if labels(h.Labels) && slices.Contains(f.addresses(&h), a) {
			return true
		}
	}
	for _, s := range f.set.NetworkSets {
		if labels(s.Labels) && s.Nets.Contains(a) {
			return true
		}
	}
	for _, e := range f.endpoints {
		if e.Resource == nil && labels(e.Labels) && slices.Contains(e.Addresses, a) {
			return true
		}
	}
	return false
}

func (f *reference) addresses(h *resource.HostEndpoint) []netip.Addr {
	if h.ExpectedIPs == nil {
		for _, e := range f.endpoints {
			if e.Resource != nil && e.Name == h.Name {
				return e.Addresses
			}
		}
	}
	return h.ExpectedIPs
}

func (f *reference) isPort(e *resource.Entity, list *resource.Ports, protocol uint8, a netip.Addr, port uint16) bool {
	for _, r := range list.Ranges {
		if r.First <= port && port <= r.Last {
			return true
		}
	}
	for _, h := range f.set.HostEndpoints {
		if !selects(e, h.Labels) || !slices.Contains(f.addresses(&h), a) {
			continue
		}
		for _, n := range h.Ports {
			if n.Protocol == protocol && n.Port == port && slices.Contains(list.Names, n.Name) {
				return true
			}
		}
	}
	return false
}
