// SPDX-License-Identifier: Apache-2.0

package hostendpoint

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/untracked-cni/untracked/pkg/netset"
	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/pkg/resource"
	"github.com/untracked-cni/untracked/pkg/selector"
)

// generator draws resources and packets from small pools, so that they meet.
type generator struct{ *rand.Rand }

func pick[T any](g generator, from ...T) T    { return from[g.IntN(len(from))] }
func (g generator) chance(percent int) bool   { return g.IntN(100) < percent }
func addr(s string) netip.Addr                { return netip.MustParseAddr(s) }
func maybe[T any](g generator, n int, v T) *T { return map[bool]*T{true: &v}[g.chance(n)] }
func parse(expression string) *selector.Selector {
	s, err := selector.Parse(expression)
	if err != nil {
		panic(err)
	}
	return s
}

var pool = []netip.Addr{
	addr("10.0.0.1"), addr("10.0.0.2"), addr("10.0.0.3"), addr("10.0.1.1"), addr("192.0.2.1"), addr("203.0.113.9"),
	addr("2001:db8::1"), addr("2001:db8::2"), addr("2001:db8:1::1"), addr("fd00::1"),
}

func (g generator) addresses(most int) []netip.Addr {
	var out []netip.Addr
	for range g.IntN(most + 1) {
		if a := pick(g, pool...); !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

func (g generator) nets(v6 bool) []netip.Prefix {
	var out []netip.Prefix
	for range 1 + g.IntN(3) {
		for {
			a := pick(g, pool...)
			if a.Is6() != v6 {
				continue
			}
			bits := a.BitLen() - pick(g, 0, 0, 1, 2, 8, 16, 32)
			p, _ := a.Prefix(bits)
			out = append(out, p)
			break
		}
	}
	return out
}

func (g generator) labels() map[string]string {
	labels := map[string]string{}
	if g.chance(80) {
		labels["role"] = pick(g, "redis", "client", "lb")
	}
	if g.chance(60) {
		labels["zone"] = pick(g, "a", "b")
	}
	return labels
}

func (g generator) selector() *selector.Selector {
	return parse(pick(g,
		"all()", `role == "redis"`, `role == "client"`, "has(zone)", "!has(zone)", `role in {"client", "lb"}`,
		`zone != "a"`, `zone == "b" && has(role)`, `role starts with "re" || zone == "a"`, `role == "nobody"`,
	))
}

func (g generator) order() *float64 { return maybe(g, 70, pick(g, -1.5, 1, 1, 2, 1000, 1e6, 1e7)) }

func (g generator) port() uint16 { return pick[uint16](g, 53, 80, 81, 6379, 6380, 40000) }

var portNames = []string{"redis", "dns", "web", "nobody"}

func (g generator) ports(numbers bool) *resource.Ports {
	var p resource.Ports
	for range g.IntN(3) {
		p.Names = append(p.Names, pick(g, portNames...))
	}
	if numbers && g.chance(60) || len(p.Names) == 0 {
		first, last := g.port(), g.port()
		p.Ranges = []policy.PortRange{{First: min(first, last), Last: max(first, last)}, {First: first, Last: first}}
		if g.chance(60) {
			p.Ranges = p.Ranges[1:]
		}
	}
	return &p
}

func (g generator) rule() resource.Rule {
	r := resource.Rule{Action: pick(g, policy.Allow, policy.Allow, policy.Deny, policy.Log, policy.Pass)}
	if g.chance(20) {
		r.IPVersion = pick(g, 4, 6)
	}
	if g.chance(65) {
		r.Protocol = new(pick[uint8](g, 6, 6, 6, 17, 17, 132, 136, 1, 58))
	}
	if g.chance(10) {
		r.NotProtocol = new(pick[uint8](g, 6, 17, 132, 47))
	}
	if r.Protocol != nil && (*r.Protocol == 1 || *r.Protocol == 58) {
		r.ICMP = maybe(g, 50, policy.ICMPMatch{Type: pick[uint8](g, 8, 128, 3), Code: maybe(g, 40, uint8(g.IntN(2)))})
		r.NotICMP = maybe(g, 20, policy.ICMPMatch{Type: pick[uint8](g, 8, 128, 3), Code: maybe(g, 40, uint8(g.IntN(2)))})
	}
	hasPorts := r.Protocol != nil && policy.HasPorts(*r.Protocol)
	v6 := g.chance(50) // nets of both families are not allowed in one rule
	for _, e := range []*resource.Entity{&r.Source, &r.Destination} {
		if g.chance(20) {
			e.Nets = g.nets(v6)
		}
		if g.chance(10) {
			e.NotNets = g.nets(v6)
		}
		if g.chance(30) {
			e.Selector = g.selector()
		}
		if g.chance(15) {
			e.NotSelector = g.selector()
		}
		// Numbers need a protocol; names do not.
		if hasPorts && g.chance(35) || g.chance(15) {
			e.Ports = g.ports(hasPorts || g.chance(20))
		}
		if hasPorts && g.chance(20) || g.chance(8) {
			e.NotPorts = g.ports(hasPorts || g.chance(20))
		}
	}
	return r
}

func (g generator) rules() []resource.Rule {
	rules := make([]resource.Rule, g.IntN(5))
	for i := range rules {
		rules[i] = g.rule()
	}
	return rules
}

// resources are a valid set: every kind sorted by name.
func (g generator) resources() *resource.Set {
	set := &resource.Set{}
	for i := range g.IntN(6) {
		h := resource.HostEndpoint{Meta: resource.Meta{Name: fmt.Sprintf("hep%d", i), Labels: g.labels()}, Node: pick(g, "n1", "n1", "n2")}
		h.InterfaceName = pick(g, "", "", "eth0", "eth1", "eth*", "*", "wan0")
		h.ExpectedIPs = g.addresses(3)
		for range g.IntN(4) {
			h.Ports = append(h.Ports, resource.NamedPort{Name: pick(g, portNames[:3]...), Protocol: pick[uint8](g, 6, 6, 17, 132), Port: g.port()})
		}
		set.HostEndpoints = append(set.HostEndpoints, h)
	}
	for i := range g.IntN(3) {
		nets := g.nets(false)
		if g.chance(50) {
			nets = append(nets, g.nets(true)...)
		}
		set.NetworkSets = append(set.NetworkSets, resource.NetworkSet{Meta: resource.Meta{Name: fmt.Sprintf("set%d", i), Labels: g.labels()}, Nets: netset.Of(nets...)})
	}
	tiers := []string{"alpha", "beta", "default", "kube-admin"}
	for _, name := range tiers {
		if g.chance(40) {
			set.Tiers = append(set.Tiers, resource.Tier{Meta: resource.Meta{Name: name}, Order: g.order()})
		}
	}
	for _, name := range []string{"p", "p-1", "p.a", "p1", "q"} {
		if g.chance(35) {
			continue
		}
		set.Policies = append(set.Policies, resource.Policy{
			Meta: resource.Meta{Name: name}, Tier: pick(g, append(tiers, "kube-baseline", "ghost", "default", "default")...), Order: g.order(),
			Selector: parse(pick(g, "all()", "all()", `role == "redis"`, "has(zone)")),
			Ingress:  g.chance(80), IngressRules: g.rules(), Egress: g.chance(60), EgressRules: g.rules(),
		})
	}
	return set
}

func (g generator) node() Node {
	n := Node{Name: "n1", Labels: g.labels()}
	for _, name := range []string{"eth0", "eth1", "wan0", "cali1"} {
		n.Interfaces = append(n.Interfaces, Interface{Name: name, Addresses: g.addresses(2), Host: name != "cali1", Selected: g.chance(60)})
	}
	return n
}

func (g generator) packet() *policy.Packet {
	p := &policy.Packet{HopLimit: 64, HasL4: g.chance(92)}
	p.LaterFragment = !p.HasL4
	for p.Src = pick(g, pool...); !p.Dst.IsValid() || p.Dst.Is4() != p.Src.Is4(); {
		p.Dst = pick(g, pool...)
	}
	p.Protocol = pick[uint8](g, 6, 6, 6, 17, 17, 132, 136, 1, 58, 47)
	switch {
	case !p.HasL4:
	case policy.HasPorts(p.Protocol):
		p.SrcPort, p.DstPort = g.port(), g.port()
	case p.Protocol == 1 && p.Src.Is4() || p.Protocol == 58 && p.Src.Is6():
		p.ICMPType, p.ICMPCode = pick[uint8](g, 8, 128, 3), uint8(g.IntN(3))
	}
	return p
}

// What an Expander makes of random resources gives random packets the verdict, by the rule and past the rules, that the
// resources themselves say; and no packet matches two parts of one written rule.
func TestExpandAgainstReference(t *testing.T) {
	var verdicts, byRule, past, parts int
	const sets = 1500
	for seed := range uint64(sets) {
		g := generator{rand.New(rand.NewPCG(seed, 3))}
		set, node := g.resources(), g.node()
		endpoints := Assign(set, node)
		ref, expander := &reference{set, endpoints}, NewExpander(set, endpoints)
		for n := range endpoints {
			e := &endpoints[n]
			rules, err := expander.Rules(e.Labels)
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			for _, d := range []policy.Direction{policy.Ingress, policy.Egress} {
				list := rules.Of(d)
				parts += len(list) - len(slices.CompactFunc(slices.Clone(list), func(a, b policy.Rule) bool { return a.Name() == b.Name() }))
				for range 40 {
					p := g.packet()
					got, want := evaluate(list, p), ref.evaluate(e, d, p)
					if diff := cmp.Diff(want, got, cmp.AllowUnexported(outcome{})); diff != "" {
						t.Fatalf("seed %d: endpoint %s, %s of %+v (-want +got):\n%s\nrules:\n%s", seed, e.Name, d, *p, diff, listing(list))
					}
					if twice := partsMatched(list, p); twice != nil {
						t.Fatalf("seed %d: %+v matches two parts of a rule:\n%s", seed, *p, listing(twice))
					}
					verdicts++
					if got.decided != "" {
						byRule++
					}
					past += len(got.via)
				}
			}
		}
	}
	t.Logf("%d verdicts of %d sets of resources: %d by a rule, %d rules matched on the way; %d more rules than written", verdicts, sets, byRule, past, parts)
	if byRule < verdicts/10 || past < verdicts/20 || parts < sets/2 {
		t.Error("the cases are badly chosen")
	}
}

func evaluate(list []policy.Rule, p *policy.Packet) outcome {
	out := outcome{verdict: policy.Evaluate(list, p).Verdict}
	decides, via := policy.Walk(list, p)
	if decides != policy.NoRule {
		out.decided = list[decides].Name()
	}
	for _, i := range via {
		out.via = append(out.via, list[i].Name())
	}
	return out
}

// partsMatched returns parts of the same written rule that match a packet, nil if there are no two of them. The parts
// of a rule stand together.
func partsMatched(list []policy.Rule, p *policy.Packet) []policy.Rule {
	last := policy.NoRule
	for i := range list {
		if decides, via := policy.Walk(list[i:i+1], p); decides == policy.NoRule && via == nil {
			continue
		}
		if last != policy.NoRule && list[last].Name() == list[i].Name() {
			return []policy.Rule{list[last], list[i]}
		}
		last = i
	}
	return nil
}

// listing has a line a rule.
func listing(rules []policy.Rule) string {
	var out string
	for i := range rules {
		out += fmt.Sprintf("%s %s %s\n", rules[i].Name(), rules[i].Action, rules[i].Match())
	}
	return out
}
