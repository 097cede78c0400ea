// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"net/netip"
)

// Closest finds the rule that came closest to matching a packet which no rule decided about: of those that allow or
// deny, the one that the fewest conditions kept from matching; of several, the one that the most conditions spoke for,
// and of those the first. It returns that rule's index and, in words, what each of the conditions that were not met
// was about; NoRule if there is no such rule.
func Closest(rules []Rule, p *Packet) (rule int, misses []string) {
	rule, met := NoRule, 0
	for i := range rules {
		if a := rules[i].Action; a != Allow && a != Deny {
			continue
		}
		c := rules[i].conditions(p)
		if rule == NoRule || len(c.misses) < len(misses) || len(c.misses) == len(misses) && c.met > met {
			rule, misses, met = i, c.misses, c.met
		}
	}
	return rule, misses
}

// conditions are those of a rule, held against a packet.
type conditions struct {
	met    int
	misses []string
}

func (c *conditions) need(met bool, format string, args ...any) {
	if met {
		c.met++
		return
	}
	c.misses = append(c.misses, fmt.Sprintf(format, args...))
}

// conditions has no misses exactly if r matches p.
func (r *Rule) conditions(p *Packet) conditions {
	var c conditions
	if r.IPVersion != 0 {
		version := 6
		if p.Src.Is4() {
			version = 4
		}
		c.need(r.IPVersion == version, "IP version is %d, not %d", version, r.IPVersion)
	}
	protocol := ProtocolName(p.Protocol)
	if r.Protocol != nil {
		c.need(*r.Protocol == p.Protocol, "protocol is %s, not %s", protocol, ProtocolName(*r.Protocol))
	}
	if r.NotProtocol != nil {
		c.need(*r.NotProtocol != p.Protocol, "protocol is %s", protocol)
	}
	if r.ICMP != nil {
		c.need(p.icmpKnown() && r.ICMP.matches(p), "%s, not %s", p.icmpWords(), r.ICMP)
	}
	if r.NotICMP != nil {
		c.need(p.icmpKnown() && !r.NotICMP.matches(p), "%s", p.icmpWords())
	}
	r.Source.conditions(&c, p, "source", p.Src, p.SrcPort)
	r.Destination.conditions(&c, p, "destination", p.Dst, p.DstPort)
	return c
}

func (p *Packet) icmpWords() string {
	if !p.icmpKnown() {
		return "ICMP type is not known"
	}
	return fmt.Sprintf("ICMP type is %d code %d", p.ICMPType, p.ICMPCode)
}

func (e *Entity) conditions(c *conditions, p *Packet, side string, addr netip.Addr, port uint16) {
	if e.Nets != nil {
		c.need(e.Nets.Contains(addr), "%s address %s is not in %s", side, addr, netsWords(e.Nets, e.NetsName))
	}
	if e.NotNets != nil {
		c.need(!e.NotNets.Contains(addr), "%s address %s is in %s", side, addr, netsWords(e.NotNets, e.NotNetsName))
	}
	if e.Ports == nil && e.NotPorts == nil {
		return
	}
	if !p.portsKnown() {
		c.need(false, "%s port is not known", side)
		return
	}
	if e.Ports != nil {
		c.need(containsPort(e.Ports, port), "%s port %d is not among %s", side, port, PortWords(e.Ports))
	}
	if e.NotPorts != nil {
		c.need(!containsPort(e.NotPorts, port), "%s port %d is among %s", side, port, PortWords(e.NotPorts))
	}
}
