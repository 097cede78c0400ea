// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"cmp"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// The host that resources are about, as the witness knows it.
const (
	witnessNode      = "this-node"
	witnessInterface = "eth0"
)

var witnessAddresses = []netip.Addr{
	netip.MustParseAddr("198.18.0.1"), netip.MustParseAddr("10.0.1.1"), netip.MustParseAddr("10.0.1.129"),
	netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8:1::1"), netip.MustParseAddr("2001:db8:1::8001"),
}

// witnessCase is a policy with the meaning of its selectors. Whoever made up a selector's text knows what it selects,
// so that the witness needs no parser.
type witnessCase struct {
	*witnessResources
	selectors map[string]witnessPredicate
}

type witnessPredicate func(labels map[string]string) bool

func (c *witnessCase) with(r *witnessResources) *witnessCase { return &witnessCase{r, c.selectors} }

// script is the policy in the nft command's language. It is Calico's documentation put into nftables in the plainest
// way, a chain for each tier and a line for each rule and family, and shares no code with what it is a witness of.
func (c *witnessCase) script() string {
	s := &witnessScript{witnessCase: c}
	labels := c.endpoint().Metadata.Labels
	for _, hook := range []struct{ direction, hook, match string }{
		{"Ingress", "prerouting", "iifname"}, {"Egress", "output", "oifname"},
	} {
		var base strings.Builder
		fmt.Fprintf(&base, "chain %s {\n  type filter hook %[1]s priority raw\n", hook.hook)
		for i, tier := range c.stack(labels, hook.direction) {
			chain := fmt.Sprintf("%s-%d", hook.hook, i)
			fmt.Fprintf(&base, "  %s %s jump %s\n", hook.match, witnessInterface, chain)
			s.text.WriteString("chain " + chain + " {\n")
			for _, r := range tier {
				s.rule(&r)
			}
			s.text.WriteString("}\n")
		}
		s.text.WriteString(base.String() + "}\n")
	}
	return "table inet witness\ndelete table inet witness\ntable inet witness {\n" + s.sets.String() + s.text.String() + "}\n"
}

// endpoint is the host endpoint of the interface: of those that match it by name or address the one with the smallest
// name; where there is none, of those with a glob, then of those for all interfaces; and at last the one that the
// labels annotation makes.
func (c *witnessCase) endpoint() *witnessResource[witnessHostEndpoint] {
	const never = 3
	rank := func(h *witnessHostEndpoint) int {
		glob, _ := path.Match(h.InterfaceName, witnessInterface)
		expected := slices.ContainsFunc(h.ExpectedIPs, func(a string) bool {
			return slices.Contains(witnessAddresses, netip.MustParseAddr(a))
		})
		switch {
		case h.Node != witnessNode:
			return never
		case h.InterfaceName == witnessInterface, h.InterfaceName == "" && expected:
			return 0
		case h.InterfaceName == "*":
			return 2
		case glob:
			return 1
		}
		return never
	}
	best := &witnessResource[witnessHostEndpoint]{Metadata: witnessMeta{Labels: c.Labels}}
	first := never
	for i := range c.HostEndpoints {
		h := &c.HostEndpoints[i]
		if n := rank(&h.Spec); n < first || n == first && n != never && h.Metadata.Name < best.Metadata.Name {
			best, first = h, n
		}
	}
	return best
}

// stack is the rules of one direction that apply to an endpoint, in the order of their evaluation, by tier.
func (c *witnessCase) stack(labels map[string]string, direction string) (stack [][]witnessRule) {
	const last = 1e300
	order := func(o *float64) float64 {
		if o == nil {
			return last
		}
		return *o
	}
	tiers := slices.Clone(c.Tiers)
	for name, place := range map[string]float64{"kube-admin": 1000, "default": 1e6, "kube-baseline": 1e7} {
		tiers = append(tiers, witnessNew("Tier", name, nil, witnessTier{&place})) // which nobody need write
	}
	for _, p := range c.Policies { // of tiers that nobody wrote: behind all others
		if !slices.ContainsFunc(tiers, func(t witnessResource[witnessTier]) bool { return t.Metadata.Name == cmp.Or(p.Spec.Tier, "default") }) {
			tiers = append(tiers, witnessNew("Tier", p.Spec.Tier, nil, witnessTier{new(2 * last)}))
		}
	}
	slices.SortFunc(tiers, func(a, b witnessResource[witnessTier]) int {
		return cmp.Or(cmp.Compare(order(a.Spec.Order), order(b.Spec.Order)), cmp.Compare(a.Metadata.Name, b.Metadata.Name))
	})
	policies := slices.Clone(c.Policies)
	slices.SortFunc(policies, func(a, b witnessResource[witnessPolicy]) int {
		// Calico compares name, namespace and kind as one string.
		return cmp.Or(cmp.Compare(order(a.Spec.Order), order(b.Spec.Order)), cmp.Compare(a.Metadata.Name+"//", b.Metadata.Name+"//"))
	})
	for _, t := range tiers {
		var rules []witnessRule
		for _, p := range policies {
			s := &p.Spec
			if cmp.Or(s.Tier, "default") != t.Metadata.Name || s.Selector != "" && !c.selectors[s.Selector](labels) {
				continue
			}
			types := s.Types
			if len(types) == 0 {
				if len(s.Ingress) > 0 || len(s.Egress) == 0 {
					types = append(types, "Ingress")
				}
				if len(s.Egress) > 0 {
					types = append(types, "Egress")
				}
			}
			if !slices.Contains(types, direction) {
				continue
			}
			rules = append(rules, map[string][]witnessRule{"Ingress": s.Ingress, "Egress": s.Egress}[direction]...)
		}
		if len(rules) > 0 {
			stack = append(stack, rules)
		}
	}
	return stack
}

// addresses are those of a host endpoint: the expected ones, or the interface's own where none are given.
func (c *witnessCase) addresses(h *witnessResource[witnessHostEndpoint]) (out []netip.Prefix) {
	addrs := []netip.Addr{}
	for _, a := range h.Spec.ExpectedIPs {
		addrs = append(addrs, netip.MustParseAddr(a))
	}
	if len(addrs) == 0 && h.Metadata.Name == c.endpoint().Metadata.Name {
		addrs = witnessAddresses
	}
	for _, a := range addrs {
		out = append(out, netip.PrefixFrom(a, a.BitLen()))
	}
	return out
}

func (c *witnessCase) endpoints() []witnessResource[witnessHostEndpoint] {
	if h := c.endpoint(); h.Metadata.Name == "" {
		return append(slices.Clone(c.HostEndpoints), *h)
	}
	return c.HostEndpoints
}

// members are the addresses behind a selector.
func (c *witnessCase) members(selects witnessPredicate) (out []netip.Prefix) {
	for _, s := range c.NetworkSets {
		if selects(s.Metadata.Labels) {
			out = append(out, witnessPrefixes(s.Spec.Nets)...)
		}
	}
	for _, h := range c.endpoints() {
		if selects(h.Metadata.Labels) {
			out = append(out, c.addresses(&h)...)
		}
	}
	return out
}

func witnessPrefixes(nets []string) (out []netip.Prefix) {
	for _, n := range nets {
		out = append(out, netip.MustParsePrefix(n))
	}
	return out
}

// witnessScript is a script being written.
type witnessScript struct {
	*witnessCase
	sets, text strings.Builder
	n          int
}

// set declares a set and returns its name.
func (s *witnessScript) set(kind string, elements []string) string {
	s.n++
	flags := "flags interval; auto-merge; "
	if strings.Contains(kind, ".") {
		flags = ""
	}
	fmt.Fprintf(&s.sets, "set s%d { type %s; %selements = { %s }; }\n", s.n, kind, flags, strings.Join(elements, ", "))
	return fmt.Sprintf("@s%d", s.n)
}

// rule writes a rule: a line for each family and each way to match it.
func (s *witnessScript) rule(r *witnessRule) {
	verdict := map[string]string{"Allow": "notrack accept", "Deny": "drop", "Pass": "return", "Log": "counter"}[r.Action]
	for _, family := range []int{4, 6} {
		match, possible := s.header(r, family)
		source, possibleSource := s.entity(r, &r.Source, "s", family)
		destination, possibleDestination := s.entity(r, &r.Destination, "d", family)
		if !possible || !possibleSource || !possibleDestination {
			continue
		}
		for _, m := range match {
			for _, from := range source {
				for _, to := range destination {
					fmt.Fprintf(&s.text, "  %s %s %s %s\n", m, from, to, verdict)
				}
			}
		}
	}
}

// header is everything of a rule but addresses and ports, as alternatives. It is impossible if no packet of the family
// matches.
func (s *witnessScript) header(r *witnessRule, family int) (alternatives []string, possible bool) {
	icmp, icmpProtocol, match := "icmp", unix.IPPROTO_ICMP, "meta nfproto ipv4"
	if family == 6 {
		icmp, icmpProtocol, match = "icmpv6", unix.IPPROTO_ICMPV6, "meta nfproto ipv6"
	}
	// A protocol's name implies the family. A number does not.
	if r.IPVersion != 0 && r.IPVersion != family || r.Protocol == "ICMP" && family == 6 || r.Protocol == "ICMPv6" && family == 4 {
		return nil, false
	}
	if r.Protocol != "" {
		match += fmt.Sprintf(" meta l4proto %d", witnessNumber(r.Protocol))
	}
	if r.NotProtocol != "" {
		match += fmt.Sprintf(" meta l4proto != %d", witnessNumber(r.NotProtocol))
	}
	if (r.ICMP != nil || r.NotICMP != nil) && int(witnessNumber(r.Protocol)) != icmpProtocol {
		return nil, false
	}
	if m := r.ICMP; m != nil {
		match += fmt.Sprintf(" %s type %d", icmp, m.Type)
		if m.Code != nil {
			match += fmt.Sprintf(" %s code %d", icmp, *m.Code)
		}
	}
	m := r.NotICMP
	if m == nil {
		return []string{match}, true
	}
	alternatives = append(alternatives, fmt.Sprintf("%s %s type != %d", match, icmp, m.Type))
	if m.Code != nil {
		alternatives = append(alternatives, fmt.Sprintf("%s %s type %d %s code != %d", match, icmp, m.Type, icmp, *m.Code))
	}
	return alternatives, true
}

func witnessNumber(protocol witnessIntOrString) uint8 {
	for number, name := range witnessProtocols {
		if name == string(protocol) {
			return number
		}
	}
	n, _ := strconv.Atoi(string(protocol))
	return uint8(n)
}

// entity is one side of a rule, s for source or d for destination.
func (s *witnessScript) entity(r *witnessRule, e *witnessEntity, side string, family int) (alternatives []string, possible bool) {
	addr, kind := "ip "+side+"addr", "ipv4_addr"
	if family == 6 {
		addr, kind = "ip6 "+side+"addr", "ipv6_addr"
	}
	port := "th " + side + "port"
	var match []string

	// in demands that the address is in one of the prefixes, or not, and reports whether it can be.
	in := func(prefixes []netip.Prefix, not bool) bool {
		var own []string
		for _, p := range prefixes {
			if p.Addr().Is4() != (family == 4) {
				continue
			}
			if p.Bits() == 0 {
				return !not
			}
			own = append(own, p.String())
		}
		switch {
		case len(own) == 0:
			return not
		case not:
			match = append(match, addr+" != "+s.set(kind, own))
		default:
			match = append(match, addr+" "+s.set(kind, own))
		}
		return true
	}
	ofFamily := func(p netip.Prefix) bool { return p.Addr().Is4() == (family == 4) }
	if len(e.Nets) > 0 && !in(witnessPrefixes(e.Nets), false) {
		return nil, false
	}
	if len(e.NotNets) > 0 {
		// A list that is all of the other family makes the rule one for that family.
		nets := witnessPrefixes(e.NotNets)
		if !slices.ContainsFunc(nets, ofFamily) || !in(nets, true) {
			return nil, false
		}
	}

	// With a selector beside it, notSelector takes resources away from those selected. Alone, it takes away addresses.
	selects := func(map[string]string) bool { return true }
	if e.Selector != "" {
		selects = s.selectors[e.Selector]
	}
	positive := e.Selector != "" || e.NamespaceSelector != ""
	switch {
	case positive && e.NotSelector != "":
		yes, no := selects, s.selectors[e.NotSelector]
		selects = func(labels map[string]string) bool { return yes(labels) && !no(labels) }
		fallthrough
	case positive:
		if !in(s.members(selects), false) {
			return nil, false
		}
	case e.NotSelector != "":
		if !in(s.members(s.selectors[e.NotSelector]), true) {
			return nil, false
		}
	}

	numbers, names := witnessSplitPorts(e.NotPorts)
	if len(numbers) > 0 {
		match = append(match, port+" != "+s.set("inet_service", numbers))
	}
	if triples := s.named(names, r.Protocol, selects, family); len(triples) > 0 {
		match = append(match, addr+" . meta l4proto . "+port+" != "+s.set(kind+" . inet_proto . inet_service", triples))
	}
	common := strings.Join(match, " ")
	if len(e.Ports) == 0 {
		return []string{common}, true
	}
	numbers, names = witnessSplitPorts(e.Ports)
	if len(numbers) > 0 {
		alternatives = append(alternatives, common+" "+port+" "+s.set("inet_service", numbers))
	}
	if triples := s.named(names, r.Protocol, selects, family); len(triples) > 0 {
		alternatives = append(alternatives, common+" "+addr+" . meta l4proto . "+port+" "+s.set(kind+" . inet_proto . inet_service", triples))
	}
	return alternatives, len(alternatives) > 0
}

// witnessSplitPorts tells numbers and ranges, in nft's notation, from names.
func witnessSplitPorts(ports []witnessIntOrString) (numbers, names []string) {
	for _, p := range ports {
		if p[0] >= '0' && p[0] <= '9' {
			numbers = append(numbers, strings.Replace(string(p), ":", "-", 1))
		} else {
			names = append(names, string(p))
		}
	}
	return numbers, names
}

// named are the addresses, protocols and ports that the selected host endpoints give a name.
func (s *witnessScript) named(names []string, protocol witnessIntOrString, selects witnessPredicate, family int) (triples []string) {
	for _, h := range s.endpoints() {
		for _, p := range h.Spec.Ports {
			number := witnessNumber(witnessIntOrString(p.Protocol))
			if !slices.Contains(names, p.Name) || !selects(h.Metadata.Labels) || protocol != "" && witnessNumber(protocol) != number {
				continue
			}
			for _, a := range s.addresses(&h) {
				if a.Addr().Is4() == (family == 4) {
					triples = append(triples, fmt.Sprintf("%s . %d . %d", a.Addr(), number, p.Port))
				}
			}
		}
	}
	return triples
}
