// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// witnessRandom makes policies and packets out of small pools, so that rules overlap and packets meet them at their
// edges. Left out is where the two sides differ by design, and no more:
//
//   - neighbour discovery (ICMPv6 133 to 136 with hop limit 255), which is exempt here: packets have hop limit 64 (the
//     kernel itself leaves these types untracked, so that of them only Deny shows);
//   - malformed headers, which are dropped here;
//   - ICMP errors that quote a packet, which go untracked here when its flow does: errors quote nothing;
//   - fragments, which both sides' kernels reassemble before any rule of nftables, and rules in XDP see one by one;
//   - arriving packets for addresses that are not the host's, which are never untracked here: only whether they pass
//     is compared (see [witnessPacket.foreign]);
//   - answers to calls of this host, which are untracked here if a local socket waits for them: sockets wait on all
//     ports of [witnessPorts];
//   - a HostEndpoint without expectedIPs stands for its interface's addresses here, for none in Calico: only the one
//     in force may be without.
//
// And where Calico itself is of two minds: a named port in a rule without a protocol is TCP's to its code, any
// protocol's to its documentation; such rules name ports that have one protocol only.
type witnessRandom struct {
	*rand.Rand
	selectors map[string]witnessPredicate
}

func newWitnessRandom(seed uint64) *witnessRandom {
	return &witnessRandom{rand.New(rand.NewPCG(seed, 3)), map[string]witnessPredicate{}}
}

func (g *witnessRandom) chance(percent int) bool { return g.IntN(100) < percent }

func witnessPick[T any](g *witnessRandom, from ...T) T { return from[g.IntN(len(from))] }

// witnessSome picks a few different ones.
func witnessSome[T any](g *witnessRandom, most int, from ...T) (out []T) {
	for _, i := range g.Perm(len(from))[:1+g.IntN(min(most, len(from)))] {
		out = append(out, from[i])
	}
	return out
}

// Where rules and packets get their values from.
var (
	witnessHostNets   = []string{"198.18.0.1/32", "198.18.0.0/24", "10.0.1.0/24", "10.0.1.0/25", "10.0.1.129/32", "2001:db8::/33", "2001:db8::1/128", "2001:db8:1::/48", "2001:db8:1::/113", "2001:db8:1::8000/113"}
	witnessRemoteNets = []string{
		"0.0.0.0/0", "128.0.0.0/1", "10.0.0.0/8", "10.0.0.0/15", "10.1.0.0/16", "10.1.2.0/24", "10.1.2.128/25", "10.1.2.4/30", "10.1.2.7/32", "192.0.2.0/24", "172.16.0.0/12",
		"::/0", "2000::/3", "2001:db8::/32", "2001:db8:2::/48", "2001:db8:2:3::/64", "2001:db8:2:3::/65", "2001:db8:2:3::4/126", "2001:db8:2:3::7/128", "fd00::/8",
	}
	witnessPortEdges = []uint16{1, 53, 80, 443, 1023, 6379, 6400, 30000, 32767, 40000, 65534}
	witnessPortNames = []witnessNamedPort{{"redis", "TCP", 6379}, {"dns", "UDP", 53}, {"sctp-port", "SCTP", 443}, {"web", "TCP", 80}, {"web", "TCP", 1023}, {"web", "UDP", 443}}
)

// witnessPorts are all ports that packets are for.
func witnessPorts() (ports []uint16) {
	for _, p := range witnessPortEdges {
		for _, near := range []uint16{p - 1, p, p + 1} {
			if near != 0 {
				ports = append(ports, near)
			}
		}
	}
	slices.Sort(ports)
	return slices.Compact(ports)
}

// policy makes everything that a user writes.
func (g *witnessRandom) policy() *witnessCase {
	r := &witnessResources{}
	tiers := []string{"", "", witnessPick(g, "default", "kube-admin", "kube-baseline", "ghost")}
	for i := range g.IntN(4) {
		name := witnessPick(g, "a", "b", "t") + strconv.Itoa(i)
		tiers = append(tiers, name)
		r.Tiers = append(r.Tiers, witnessNew("Tier", name, nil, witnessTier{g.order()}))
	}
	for i := range g.IntN(4) {
		var nets []string
		if g.chance(90) {
			nets = witnessSome(g, 4, append(witnessRemoteNets, witnessHostNets...)...)
		}
		r.NetworkSets = append(r.NetworkSets, witnessNew("GlobalNetworkSet", fmt.Sprintf("set-%d", i), g.labels(), witnessNetworkSet{nets}))
	}
	g.hostEndpoints(r)
	if g.chance(60) {
		r.Labels = g.labels()
	}
	for i := range 1 + g.IntN(5) {
		tier := witnessPick(g, tiers...)
		name := fmt.Sprintf("p%d", i)
		if g.chance(30) { // where one name begins another it matters what the names are compared as
			name = witnessPick(g, "p", "p-a", "p.a", "p0-a")
		}
		if tier != "" && tier != "default" {
			name = tier + "." + strings.ReplaceAll(name, ".", "-")
		}
		if slices.ContainsFunc(r.Policies, func(p witnessResource[witnessPolicy]) bool { return p.Metadata.Name == name }) {
			continue
		}
		s := witnessPolicy{Tier: tier, Order: g.order(), DoNotTrack: true, ApplyOnForward: true}
		if g.chance(50) {
			s.Selector = g.selector(2)
		}
		if g.chance(40) {
			s.Types = witnessPick(g, []string{"Ingress"}, []string{"Egress"}, []string{"Egress", "Ingress"})
		}
		for range g.IntN(6) {
			s.Ingress = append(s.Ingress, g.rule(false))
		}
		for range g.IntN(4) {
			s.Egress = append(s.Egress, g.rule(true))
		}
		r.Policies = append(r.Policies, witnessNew("GlobalNetworkPolicy", name, nil, s))
	}
	return &witnessCase{r, g.selectors}
}

func (g *witnessRandom) order() *float64 {
	if g.chance(30) {
		return nil
	}
	return new(witnessPick(g, -1, 0, 10, 10, 10.5, 1e6, 2e6))
}

// hostEndpoints are of this node and of others, for our interface and for others, by name and by address.
func (g *witnessRandom) hostEndpoints(r *witnessResources) {
	for i := range g.IntN(4) {
		h := witnessHostEndpoint{Node: witnessPick(g, witnessNode, witnessNode, "other-node")}
		h.InterfaceName = witnessPick(g, witnessInterface, witnessInterface, "eth7", "", "*", "eth?", "*7")
		own, others := g.addresses(witnessAddresses), g.addresses([]netip.Addr{
			netip.MustParseAddr("10.1.2.5"), netip.MustParseAddr("10.1.2.200"), netip.MustParseAddr("2001:db8:2:3::5"), netip.MustParseAddr("192.0.2.77"),
		})
		h.ExpectedIPs = others
		if h.Node == witnessNode && (!strings.HasSuffix(h.InterfaceName, "7") || g.chance(20)) {
			h.ExpectedIPs = own
		}
		for _, p := range witnessSome(g, 3, witnessPortNames...) {
			if g.chance(70) && !slices.ContainsFunc(h.Ports, func(q witnessNamedPort) bool { return q.Name == p.Name }) {
				h.Ports = append(h.Ports, p)
			}
		}
		r.HostEndpoints = append(r.HostEndpoints, witnessNew("HostEndpoint", witnessPick(g, "h", "g", "k")+strconv.Itoa(i), g.labels(), h))
	}
	// The one in force may leave its addresses to the interface.
	if h := (&witnessCase{r, nil}).endpoint(); h.Spec.InterfaceName != "" && g.chance(50) {
		h.Spec.ExpectedIPs = nil
	}
}

func (g *witnessRandom) addresses(from []netip.Addr) (out []string) {
	for _, a := range witnessSome(g, 3, from...) {
		out = append(out, a.String())
	}
	return out
}

// rule makes one that Calico's validation accepts.
func (g *witnessRandom) rule(egress bool) witnessRule {
	rule := witnessRule{Action: witnessPick(g, "Allow", "Allow", "Allow", "Deny", "Deny", "Deny", "Deny", "Pass", "Log")}
	family := witnessPick(g, 0, 0, 0, 4, 6) // of everything in the rule
	if family != 0 && g.chance(50) {
		rule.IPVersion = family
	}
	switch g.IntN(10) {
	case 0, 1, 2:
		rule.Protocol = witnessPick[witnessIntOrString](g, "TCP", "TCP", "6")
	case 3, 4:
		rule.Protocol = witnessPick[witnessIntOrString](g, "UDP", "UDP", "17")
	case 5:
		rule.Protocol = witnessPick[witnessIntOrString](g, "SCTP", "132")
	case 6, 7:
		if family == 0 {
			family = witnessPick(g, 4, 6)
		}
		rule.Protocol = map[int]witnessIntOrString{4: witnessPick[witnessIntOrString](g, "ICMP", "1"), 6: witnessPick[witnessIntOrString](g, "ICMPv6", "58")}[family]
		if g.chance(60) {
			rule.ICMP = g.icmp(family)
		}
		if g.chance(25) {
			rule.NotICMP = g.icmp(family)
		}
	case 8:
		rule.Protocol = witnessPick[witnessIntOrString](g, "UDPLite", "136", "89", "253")
	}
	if g.chance(15) {
		rule.NotProtocol = witnessPick[witnessIntOrString](g, "TCP", "17", "SCTP", "UDPLite", "253")
		if family != 0 {
			rule.NotProtocol = map[int]witnessIntOrString{4: "ICMP", 6: "ICMPv6"}[family]
		}
	}
	hasPorts := map[witnessIntOrString]bool{"TCP": true, "6": true, "UDP": true, "17": true, "SCTP": true, "132": true}[rule.Protocol]
	for _, side := range []struct {
		*witnessEntity
		local bool
	}{{&rule.Source, egress}, {&rule.Destination, !egress}} {
		e := side.witnessEntity
		nets := witnessRemoteNets
		if side.local != g.chance(8) {
			nets = witnessHostNets
		}
		if g.chance(30) {
			e.Nets = g.nets(&family, nets, true)
		}
		if g.chance(15) {
			e.NotNets = g.nets(&family, nets, false)
		}
		if g.chance(20) {
			e.Selector = g.selector(2)
		}
		if g.chance(12) {
			e.NotSelector = g.selector(1)
		}
		if g.chance(5) {
			e.NamespaceSelector = "global()"
		}
		destination := e == &rule.Destination
		if hasPorts && g.chance(map[bool]int{true: 50, false: 20}[destination]) {
			e.Ports = g.ports()
		} else if rule.Protocol == "" && rule.NotProtocol == "" && g.chance(6) {
			e.Ports = []witnessIntOrString{witnessIntOrString(witnessPick(g, "redis", "redis", "dns"))}
			if e.Ports[0] == "dns" {
				rule.Protocol = "UDP"
			}
		}
		if hasPorts && g.chance(12) {
			e.NotPorts = g.ports()
		}
	}
	return rule
}

func (g *witnessRandom) icmp(family int) *witnessICMP {
	m := &witnessICMP{Type: g.icmpType(family == 4)}
	if g.chance(40) {
		m.Code = new(uint8(g.IntN(3)))
	}
	return m
}

func (g *witnessRandom) icmpType(v4 bool) uint8 {
	if v4 {
		return witnessPick[uint8](g, 8, 8, 0, 3, 13, 254)
	}
	return witnessPick[uint8](g, 128, 128, 129, 1, 133, 136, 254)
}

// nets picks some of one family, which is the rule's from then on.
func (g *witnessRandom) nets(family *int, from []string, zero bool) []string {
	if *family == 0 {
		*family = witnessPick(g, 4, 6)
	}
	own := slices.DeleteFunc(slices.Clone(from), func(n string) bool {
		p := netip.MustParsePrefix(n)
		return p.Addr().Is4() != (*family == 4) || !zero && p.Bits() == 0
	})
	return witnessSome(g, 3, own...)
}

func (g *witnessRandom) ports() (ports []witnessIntOrString) {
	for range 1 + g.IntN(3) {
		a, b := witnessPick(g, witnessPortEdges...), witnessPick(g, witnessPortEdges...)
		switch g.IntN(4) {
		case 0:
			ports = append(ports, witnessIntOrString(fmt.Sprintf("%d:%d", min(a, b), max(a, b))))
		case 1:
			ports = append(ports, witnessIntOrString(witnessPick(g, witnessPortNames...).Name))
		default:
			ports = append(ports, witnessIntOrString(strconv.Itoa(int(a))))
		}
	}
	return ports
}
