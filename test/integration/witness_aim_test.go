// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// packets makes packets for a policy: most of them for one of its rules, true to it in all but a few respects.
func (g *witnessRandom) packets(c *witnessCase, n int) (packets []witnessPacket) {
	type aim struct {
		rule   witnessRule
		egress bool
	}
	aims := []aim{{}, {egress: true}}
	for _, tier := range c.stack(c.endpoint().Metadata.Labels, "Ingress") {
		for _, r := range tier {
			aims = append(aims, aim{r, false}, aim{r, false})
		}
	}
	for _, tier := range c.stack(c.endpoint().Metadata.Labels, "Egress") {
		for _, r := range tier {
			aims = append(aims, aim{r, true})
		}
	}
	flows := map[string]bool{}
	for len(packets) < n {
		a := witnessPick(g, aims...)
		p := g.packet(c, &a.rule, a.egress)
		if key := p.flow(uint16(len(packets) + 1)); !flows[key] || !witnessHasPorts(p.Protocol) {
			flows[key] = true
			packets = append(packets, p)
		}
	}
	return packets
}

func (g *witnessRandom) packet(c *witnessCase, r *witnessRule, egress bool) witnessPacket {
	family := r.IPVersion
	for _, n := range slices.Concat(r.Source.Nets, r.Destination.Nets, r.Source.NotNets, r.Destination.NotNets) {
		family = 6
		if netip.MustParsePrefix(n).Addr().Is4() {
			family = 4
		}
	}
	protocol := witnessNumber(r.Protocol)
	switch {
	case family != 0:
	case protocol == unix.IPPROTO_ICMP:
		family = 4
	case protocol == unix.IPPROTO_ICMPV6:
		family = 6
	default:
		family = witnessPick(g, 4, 6)
	}
	if g.chance(5) {
		family = 10 - family
	}
	if protocol == 0 || g.chance(6) {
		protocol = witnessPick[uint8](g, unix.IPPROTO_TCP, unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_UDP, unix.IPPROTO_SCTP, unix.IPPROTO_UDPLITE,
			map[int]uint8{4: unix.IPPROTO_ICMP, 6: unix.IPPROTO_ICMPV6}[family], 50, 89, 253)
	}
	p := witnessPacket{
		Egress: egress, Protocol: protocol, Options: g.chance(8),
		Src: g.address(c, &r.Source, family == 4, egress), Dst: g.address(c, &r.Destination, family == 4, !egress),
		// A source port that no rule knows keeps flows apart.
		SPort: 11000 + uint16(g.IntN(9000)), DPort: g.port(r.Destination.Ports, r.Destination.NotPorts),
	}
	if len(r.Source.Ports)+len(r.Source.NotPorts) > 0 || g.chance(10) {
		p.SPort = g.port(r.Source.Ports, r.Source.NotPorts)
	}
	if egress && slices.Contains(witnessAddresses, p.Dst) { // that would not leave
		p.Dst = map[int]netip.Addr{4: netip.MustParseAddr("10.1.2.5"), 6: netip.MustParseAddr("2001:db8:2:3::5")}[family]
	}
	if p.hasType() {
		p.Type, p.Code = g.icmpType(family == 4), uint8(g.IntN(3))
		for _, m := range []*witnessICMP{r.ICMP, r.NotICMP} {
			if m != nil && g.chance(60) {
				p.Type = m.Type
				if m.Code != nil && g.chance(70) {
					p.Code = *m.Code
				}
			}
		}
	}
	return p
}

// port is on or next to the edge of a range.
func (g *witnessRandom) port(lists ...[]witnessIntOrString) uint16 {
	numbers, names := witnessSplitPorts(slices.Concat(lists...))
	ports := []uint16{witnessPick(g, witnessPortEdges...)}
	for _, n := range numbers {
		for end := range strings.SplitSeq(n, "-") {
			v, _ := strconv.Atoi(end)
			ports = append(ports, uint16(v), uint16(v), uint16(v), uint16(v+1), uint16(max(1, v-1)))
		}
	}
	for _, p := range witnessPortNames {
		if slices.Contains(names, p.Name) {
			ports = append(ports, p.Port, p.Port, p.Port)
		}
	}
	return max(1, witnessPick(g, ports...))
}

// address is one of the host's, or at the edge of a net that the rule or a resource names.
func (g *witnessRandom) address(c *witnessCase, e *witnessEntity, v4, local bool) netip.Addr {
	nets := witnessPrefixes(slices.Concat(e.Nets, e.Nets, e.NotNets))
	if e.Selector+e.NotSelector+e.NamespaceSelector != "" || len(e.Ports)+len(e.NotPorts) > 0 {
		nets = append(nets, c.members(func(map[string]string) bool { return true })...)
	}
	if len(nets) == 0 || g.chance(10) {
		nets = append(nets, witnessPrefixes(witnessRemoteNets)...)
	}
	own := slices.DeleteFunc(slices.Clone(witnessAddresses), func(a netip.Addr) bool { return a.Is4() != v4 })
	if local && g.chance(90) {
		inside := slices.DeleteFunc(slices.Clone(own), func(a netip.Addr) bool {
			return !slices.ContainsFunc(nets, func(p netip.Prefix) bool { return p.Bits() > 0 && p.Contains(a) })
		})
		if len(inside) > 0 && g.chance(60) {
			return witnessPick(g, inside...)
		}
		return witnessPick(g, own...)
	}
	for range 20 {
		p := witnessPick(g, nets...)
		if p.Addr().Is4() != v4 {
			continue
		}
		first, last := p.Addr(), witnessLast(p)
		if a := witnessPick(g, first, first, last, first.Prev(), last.Next()); witnessUnicast(a) {
			return a
		}
	}
	return map[bool]netip.Addr{true: netip.MustParseAddr("10.1.2.7"), false: netip.MustParseAddr("2001:db8:2:3::7")}[v4]
}

func witnessLast(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < 8*len(b); i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	last, _ := netip.AddrFromSlice(b)
	return last
}

// witnessUnicast excludes what IP drops before any rule, or never sends.
func witnessUnicast(a netip.Addr) bool {
	if !a.IsValid() || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast() {
		return false
	}
	b := a.As16()
	return a.Is6() || b[12] != 0 && b[12] != 127 && b[12] < 240
}

// foreign says that the packet is not for this host.
func (p *witnessPacket) foreign() bool { return !p.Egress && !slices.Contains(witnessAddresses, p.Dst) }
