// SPDX-License-Identifier: Apache-2.0

package hostendpoint

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/untracked-cni/untracked/pkg/netset"
	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/pkg/resource"
)

func prefixes(list string) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range strings.Fields(list) {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func labelled(name string, labels ...string) resource.Meta {
	m := resource.Meta{Name: name, Labels: map[string]string{}, At: resource.Position{File: name + ".yaml", Line: 1, Column: 1}}
	for _, l := range labels {
		key, value, _ := strings.Cut(l, "=")
		m.Labels[key] = value
	}
	return m
}

func named(names ...string) *resource.Ports { return &resource.Ports{Names: names} }

func numbered(first, last uint16, names ...string) *resource.Ports {
	return &resource.Ports{Ranges: []policy.PortRange{{First: first, Last: last}}, Names: names}
}

// fleet is three Redis hosts, of which redis-a is this node's and does not list its address, one client and a set.
func fleet() (*resource.Set, []Endpoint) {
	port := func(name string, protocol uint8, n uint16) resource.NamedPort {
		return resource.NamedPort{Name: name, Protocol: protocol, Port: n}
	}
	set := &resource.Set{
		HostEndpoints: []resource.HostEndpoint{
			{Meta: labelled("client", "role=client"), Node: "c", InterfaceName: "eth0", ExpectedIPs: addrs("10.0.9.1")},
			{Meta: labelled("redis-a", "role=redis"), Node: "a", InterfaceName: "eth0", Ports: []resource.NamedPort{port("redis", policy.TCP, 6379), port("dns", policy.UDP, 53)}},
			{Meta: labelled("redis-b", "role=redis"), Node: "b", InterfaceName: "eth0", ExpectedIPs: addrs("10.0.0.2 2001:db8::2"), Ports: []resource.NamedPort{port("redis", policy.TCP, 6379)}},
			{Meta: labelled("redis-c", "role=redis", "old=yes"), Node: "c", InterfaceName: "eth1", ExpectedIPs: addrs("10.0.0.3"), Ports: []resource.NamedPort{port("redis", policy.TCP, 7000), port("admin", policy.TCP, 7001)}},
		},
		NetworkSets: []resource.NetworkSet{{Meta: labelled("office", "role=client"), Nets: netset.Of(prefixes("192.0.2.0/24")...)}},
	}
	endpoints := Assign(set, Node{
		Name: "a", Labels: map[string]string{"role": "spare"},
		Interfaces: []Interface{{Name: "eth0", Addresses: addrs("10.0.0.1")}, {Name: "eth1", Addresses: addrs("10.1.0.1"), Selected: true}},
	})
	return set, endpoints
}

func tcp() *uint8 { return new(uint8(policy.TCP)) }

func TestExpandRule(t *testing.T) {
	client := parse(`role == "client"`)
	for _, c := range []struct {
		name string
		rule resource.Rule
		want []string // what each rule matches
	}{
		{"all fields", resource.Rule{
			IPVersion: 4, Protocol: tcp(), NotProtocol: new(uint8(policy.UDP)),
			Source:      resource.Entity{Nets: prefixes("10.0.0.0/8"), NotNets: prefixes("10.9.0.0/16"), NotPorts: numbered(22, 22)},
			Destination: resource.Entity{Ports: &resource.Ports{Ranges: []policy.PortRange{{First: 80, Last: 81}, {First: 82, Last: 82}}}},
		}, []string{"tcp not udp from 10.0.0.0/8 not 10.9.0.0/16 not port 22 to ports 80-82"}},
		{"ICMP", resource.Rule{IPVersion: 6, Protocol: new(uint8(policy.ICMPv6)), ICMP: &policy.ICMPMatch{Type: 128}, NotICMP: &policy.ICMPMatch{Type: 128, Code: new(uint8(1))}},
			[]string{"icmpv6 type 128 not type 128 code 1"}},
		{"selector: endpoints and sets", resource.Rule{Source: resource.Entity{Selector: client}},
			[]string{`from selector role == "client" (2 CIDRs): 10.0.9.1,192.0.2.0/24`}},
		{"selector: what is learned here, and the implicit endpoint", resource.Rule{Source: resource.Entity{Selector: parse(`role in {"redis", "spare"}`)}},
			[]string{`from selector role in {"redis", "spare"} (5 CIDRs): 10.0.0.1,10.0.0.2/31,10.1.0.1,2001:db8::2`}},
		{"selector and nets", resource.Rule{Source: resource.Entity{Selector: client, Nets: prefixes("192.0.2.128/25 10.0.0.0/24")}},
			[]string{`from selector role == "client" in 10.0.0.0/24,192.0.2.128/25 (1 CIDR): 192.0.2.128/25`}},
		{"selector that chooses nothing", resource.Rule{Source: resource.Entity{Selector: parse("has(nothing)")}},
			[]string{`from selector has(nothing) (0 CIDRs): `}},
		{"selector and notSelector", resource.Rule{Destination: resource.Entity{Selector: parse(`role == "redis"`), NotSelector: parse("has(old)")}},
			[]string{`to selector role == "redis" and not has(old) (3 CIDRs): 10.0.0.1,10.0.0.2,2001:db8::2`}},
		{"notSelector alone", resource.Rule{Destination: resource.Entity{NotSelector: client}},
			[]string{`to not selector role == "client" (2 CIDRs): not 10.0.9.1,192.0.2.0/24`}},
		{"notSelector and notNets", resource.Rule{Destination: resource.Entity{NotSelector: client, NotNets: prefixes("10.0.0.0/16")}},
			[]string{`to not selector role == "client" or 10.0.0.0/16 (3 CIDRs): not 10.0.0.0/16,192.0.2.0/24`}},
		{"port name", resource.Rule{Protocol: tcp(), Destination: resource.Entity{Ports: named("redis")}}, []string{
			"tcp to endpoints with port redis (3 CIDRs) port 6379: 10.0.0.1,10.0.0.2,2001:db8::2",
			"tcp to endpoints with port redis (1 CIDR) port 7000: 10.0.0.3",
		}},
		{"port names of two protocols, one number", resource.Rule{Destination: resource.Entity{Ports: numbered(7000, 7000, "redis", "dns")}}, []string{
			"to port 7000",
			"tcp to endpoints with ports dns,redis (3 CIDRs) port 6379: 10.0.0.1,10.0.0.2,2001:db8::2",
			"udp to endpoints with ports dns,redis (1 CIDR) port 53: 10.0.0.1",
		}},
		{"a protocol that is excluded", resource.Rule{NotProtocol: tcp(), Destination: resource.Entity{Ports: named("redis", "dns")}},
			[]string{"udp to endpoints with ports dns,redis (1 CIDR) port 53: 10.0.0.1"}},
		{"two port names of one endpoint", resource.Rule{Protocol: tcp(), Destination: resource.Entity{Ports: named("admin", "redis"), Selector: parse("has(old)")}},
			[]string{"tcp to endpoints with ports admin,redis in selector has(old) (1 CIDR) ports 7000-7001: 10.0.0.3"}},
		{"port name and nets", resource.Rule{Protocol: tcp(), Destination: resource.Entity{Ports: named("redis"), Nets: prefixes("10.0.0.0/31")}},
			[]string{"tcp to endpoints with port redis in 10.0.0.0/31 (1 CIDR) port 6379: 10.0.0.1"}},
		{"port name that nobody gives", resource.Rule{Protocol: tcp(), Destination: resource.Entity{Ports: named("smtp")}},
			[]string{"tcp to endpoints with port smtp (0 CIDRs): "}},
		{"port name of another protocol", resource.Rule{Protocol: tcp(), Destination: resource.Entity{Ports: named("dns")}},
			[]string{"tcp to endpoints with port dns (0 CIDRs): "}},
		{"port names at both ends", resource.Rule{Source: resource.Entity{Ports: named("admin")}, Destination: resource.Entity{Ports: named("redis")}}, []string{
			"tcp from endpoints with port admin (1 CIDR) port 7001 to endpoints with port redis (3 CIDRs) port 6379: 10.0.0.3: 10.0.0.1,10.0.0.2,2001:db8::2",
			"tcp from endpoints with port admin (1 CIDR) port 7001 to endpoints with port redis (1 CIDR) port 7000: 10.0.0.3: 10.0.0.3",
		}},
		{"port names at both ends, without a common protocol", resource.Rule{Source: resource.Entity{Ports: named("dns")}, Destination: resource.Entity{Ports: named("redis")}},
			[]string{"from endpoints with port dns (1 CIDR) port 53 to no address port 6379: 10.0.0.1: "}},
		{"port name that is excluded", resource.Rule{Protocol: tcp(), Destination: resource.Entity{NotPorts: numbered(22, 22, "redis")}}, []string{
			"tcp to endpoints with port redis (3 CIDRs) not ports 22,6379: 10.0.0.1,10.0.0.2,2001:db8::2",
			"tcp to endpoints with port redis (1 CIDR) not ports 22,7000: 10.0.0.3",
			"tcp to not endpoints with port redis (4 CIDRs) not port 22: not 10.0.0.1,10.0.0.2/31,2001:db8::2",
		}},
		{"port name that is excluded, of any protocol", resource.Rule{Destination: resource.Entity{NotPorts: named("dns")}}, []string{
			"tcp to ports 0-65535",
			"udp to endpoints with port dns (1 CIDR) not port 53: 10.0.0.1",
			"udp to not endpoints with port dns (1 CIDR) ports 0-65535: not 10.0.0.1",
			"sctp to ports 0-65535",
			"udplite to ports 0-65535",
		}},
		{"port name that is excluded where there is no other address", resource.Rule{Protocol: tcp(), Destination: resource.Entity{Selector: parse("has(old)"), NotPorts: named("redis")}},
			[]string{"tcp to endpoints with port redis in selector has(old) (1 CIDR) not port 7000: 10.0.0.3"}},
		{"excluded port name that nobody gives", resource.Rule{Destination: resource.Entity{NotPorts: named("smtp")}}, []string{"to ports 0-65535"}},
		{"a port and one that is excluded", resource.Rule{Protocol: tcp(), Destination: resource.Entity{Ports: named("admin"), NotPorts: numbered(7001, 7001, "smtp")}},
			[]string{"tcp to endpoints with port admin (1 CIDR) port 7001 not port 7001: 10.0.0.3"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			set, endpoints := fleet()
			c.rule.At, c.rule.Action = resource.Position{File: "p.yaml", Line: 7, Column: 3}, policy.Log
			set.Policies = []resource.Policy{{
				Meta: labelled("p"), Tier: "default", Selector: parse("all()"), Ingress: true,
				IngressRules: []resource.Rule{{Action: policy.Deny}, c.rule}, EgressRules: []resource.Rule{c.rule},
			}}
			rules, err := NewExpander(set, endpoints).Rules(endpoints[0].Labels)
			if err != nil {
				t.Fatal(err)
			}
			if len(rules.Egress) > 0 {
				t.Errorf("a policy of ingress has egress rules:\n%s", listing(rules.Egress))
			}
			var got []string
			for i, r := range rules.Ingress {
				if i == 0 {
					continue
				}
				if r.Name() != "default/p[1]" || r.Origin != "p.yaml:7" || r.Action != policy.Log {
					t.Errorf("rule %d is %s, %s, of %s", i, r.Name(), r.Action, r.Origin)
				}
				got = append(got, r.Match()+content(&r.Source)+content(&r.Destination))
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
		})
	}
}

// content spells out the sets that a rule's words have only the name of.
func content(e *policy.Entity) string {
	var out string
	if e.Nets != nil && (e.NetsName != "" || e.Nets.Empty()) && !(e.Nets.Empty() && e.NetsName == "" && e.Ports == nil) {
		out += ": " + e.Nets.String()
	}
	if e.NotNetsName != "" {
		out += ": not " + e.NotNets.String()
	}
	return out
}

func TestExpandOrder(t *testing.T) {
	at := func(order float64) *float64 { return &order }
	inTier := func(name, tier string, order *float64) resource.Policy {
		rules := []resource.Rule{{Action: policy.Deny, At: resource.Position{File: "annotation policy"}}}
		return resource.Policy{Meta: labelled(name), Tier: tier, Order: order, Selector: parse(`role == "redis"`), Ingress: true, Egress: true, IngressRules: rules, EgressRules: rules}
	}
	set, endpoints := fleet()
	set.Tiers = []resource.Tier{
		{Meta: labelled("early"), Order: at(500)}, {Meta: labelled("endless"), Order: at(math.MaxFloat64)}, {Meta: labelled("kube-baseline"), Order: at(2e6)},
		{Meta: labelled("last")}, {Meta: labelled("like-admin"), Order: at(1000)}, {Meta: labelled("like-default"), Order: at(1e6)},
	}
	other := inTier("others", "early", at(-10))
	other.Selector = parse(`role == "client"`)
	onlyIngress := inTier("only-ingress", "early", at(-5))
	onlyIngress.Egress = false
	set.Policies = []resource.Policy{
		other, onlyIngress, inTier("a", "a-ghost", at(1)), inTier("b", "default", nil), inTier("c", "default", at(7)), inTier("d", "default", at(-7.5)),
		inTier("e", "early", nil), inTier("f", "endless", nil), inTier("g", "kube-admin", nil), inTier("h", "kube-baseline", nil),
		inTier("i", "last", at(1)), inTier("j", "like-default", at(1)), inTier("k", "b-ghost", at(0)), inTier("l", "like-admin", nil),
		inTier("web", "default", at(1)), inTier("web-1", "default", at(1)), inTier("web.x", "default", at(1)), inTier("web0", "default", at(1)),
	}
	want := []string{
		"early/only-ingress[0]", "early/e[0]", "kube-admin/g[0]", "like-admin/l[0]",
		"default/d[0]", "default/web-1[0]", "default/web.x[0]", "default/web[0]", "default/web0[0]", "default/c[0]", "default/b[0]",
		"like-default/j[0]", "kube-baseline/h[0]", "endless/f[0]", "last/i[0]", "a-ghost/a[0]", "b-ghost/k[0]",
	}
	rules, err := NewExpander(set, endpoints).Rules(endpoints[0].Labels)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, ruleNames(rules.Ingress)); diff != "" {
		t.Errorf("ingress (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want[1:], ruleNames(rules.Egress)); diff != "" {
		t.Errorf("egress (-want +got):\n%s", diff)
	}
	if got := rules.Ingress[0].Origin; got != "annotation policy" {
		t.Errorf("the origin is %q", got)
	}
	rules, err = NewExpander(set, endpoints).Rules(endpoints[1].Labels) // the implicit endpoint
	if err != nil || len(rules.Ingress)+len(rules.Egress) != 0 {
		t.Errorf("an endpoint that no policy selects has %d rules, %v", len(rules.Ingress)+len(rules.Egress), err)
	}
}

func ruleNames(rules []policy.Rule) []string {
	var out []string
	for i := range rules {
		out = append(out, rules[i].Name())
	}
	return out
}

// A rule keeps its identity, and so its counters, when hosts come and go.
func TestExpandIdentity(t *testing.T) {
	set, endpoints := fleet()
	set.Policies = []resource.Policy{{Meta: labelled("p"), Tier: "default", Selector: parse("all()"), Ingress: true, IngressRules: []resource.Rule{
		{Action: policy.Allow, Source: resource.Entity{Selector: parse(`role == "client"`)}},
		{Action: policy.Allow, Source: resource.Entity{NotSelector: parse(`role == "client"`)}},
		{Action: policy.Allow, Source: resource.Entity{Selector: parse(`role == "client"`), NotSelector: parse("has(old)")}},
		{Action: policy.Allow, Source: resource.Entity{Selector: parse(`role == "client"`), Nets: prefixes("192.0.2.0/24")}},
		{Action: policy.Allow, Source: resource.Entity{Selector: parse(`role == "client"`), Nets: manyNets(0)}},
		{Action: policy.Allow, Source: resource.Entity{Selector: parse(`role == "client"`), Nets: manyNets(1)}},
		{Action: policy.Allow, Protocol: tcp(), Destination: resource.Entity{Ports: named("redis")}},
		{Action: policy.Allow, Protocol: tcp(), Destination: resource.Entity{NotPorts: named("redis")}},
	}}}
	var content []uint64 // what identities are made of, had every rule a list of its own
	identities := func() []uint64 {
		rules, err := NewExpander(set, endpoints).Rules(endpoints[0].Labels)
		if err != nil {
			t.Fatal(err)
		}
		content = nil
		for i := range rules.Ingress {
			content = append(content, policy.IDs(rules.Ingress[i:i+1])...)
		}
		return policy.IDs(rules.Ingress)
	}
	before := identities()
	if distinct := slices.Compact(slices.Sorted(slices.Values(content))); len(distinct) != len(content) {
		t.Errorf("%d rules have %d identities", len(content), len(distinct))
	}
	set.NetworkSets[0].Nets = netset.Of(prefixes("198.51.100.0/24 192.0.2.0/25")...)
	set.HostEndpoints[2].ExpectedIPs = addrs("10.0.0.7")
	endpoints[0].Addresses = addrs("10.0.0.77")
	if diff := cmp.Diff(before, identities()); diff != "" {
		t.Errorf("identities changed with the addresses:\n%s", diff)
	}
}

// manyNets are more than words spell out.
func manyNets(n int) []netip.Prefix {
	var out []netip.Prefix
	for i := range 20 {
		out = append(out, netip.MustParsePrefix(fmt.Sprintf("10.%d.%d.0/24", n, 2*i)))
	}
	return out
}

func TestExpandTooMany(t *testing.T) {
	hosts := func(n int) *resource.Set {
		set := &resource.Set{}
		for i := range n {
			h := hep(fmt.Sprintf("h%05d", i), "n2", "eth0", fmt.Sprintf("10.%d.%d.1", i>>8, i&255))
			h.Ports = []resource.NamedPort{{Name: "web", Protocol: policy.TCP, Port: uint16(1000 + 2*i)}}
			set.HostEndpoints = append(set.HostEndpoints, h)
		}
		return set
	}
	one := resource.Entity{Ports: named("web")}
	for _, c := range []struct {
		hosts int
		rule  resource.Rule
		rules int // 0: refused
	}{
		{1024, resource.Rule{Destination: one}, 1024},
		{1025, resource.Rule{Destination: one}, 0},
		{1025, resource.Rule{Source: one}, 0},
		{32, resource.Rule{Source: one, Destination: one}, 1024},
		{33, resource.Rule{Source: one, Destination: one}, 0},
		{1023, resource.Rule{Protocol: tcp(), Destination: resource.Entity{NotPorts: named("web")}}, 1024},
		{1024, resource.Rule{Protocol: tcp(), Destination: resource.Entity{NotPorts: named("web")}}, 0},
		{900, resource.Rule{Protocol: tcp(), Destination: resource.Entity{Ports: named("web"), NotPorts: named("web")}}, 900},
		// Endpoints that are left out do not count.
		{5000, resource.Rule{Destination: resource.Entity{Selector: parse(`hep == "h00001"`), Ports: named("web")}}, 1},
	} {
		set := hosts(c.hosts)
		c.rule.Action, c.rule.At = policy.Allow, resource.Position{File: "p.yaml", Line: 9, Column: 3}
		set.Policies = []resource.Policy{{Meta: labelled("p"), Tier: "default", Selector: parse("all()"), Egress: true, EgressRules: []resource.Rule{{Action: policy.Log}, c.rule}}}
		rules, err := NewExpander(set, nil).Rules(nil)
		if c.rules > 0 {
			if err != nil || len(rules.Egress) != 1+c.rules {
				t.Errorf("%d hosts: %d rules, %v, want %d", c.hosts, len(rules.Egress), err, 1+c.rules)
			}
			continue
		}
		const want = "p.yaml:9:3: policy p, egress rule 1: its port names stand for so many different ports that it becomes more than 1024 rules; "
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%d hosts: %d rules, %v, want the error %s", c.hosts, len(rules.Egress), err, want)
		}
	}
}
