// SPDX-License-Identifier: Apache-2.0

package resource

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/untracked-cni/untracked/pkg/netset"
	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/pkg/selector"
)

func read(texts ...string) (*Set, error) {
	var r Reader
	for i, text := range texts {
		name := "f"
		if i > 0 {
			name = fmt.Sprint("f", i+1)
		}
		r.Add([]byte(text), Position{File: name})
	}
	return r.Result()
}

// wantErrors compares each error as a whole with a line that may end in "…".
func wantErrors(t *testing.T, err error, want ...string) {
	t.Helper()
	got := Errors(err)
	var lines []string
	for _, e := range got {
		lines = append(lines, e.Error())
	}
	if len(got) != len(want) {
		t.Errorf("%d errors, want %d:\n%s", len(got), len(want), strings.Join(lines, "\n"))
		return
	}
	for i, w := range want {
		prefix, cut := strings.CutSuffix(w, "…")
		if lines[i] != w && !(cut && strings.HasPrefix(lines[i], prefix)) {
			t.Errorf("error %d is\n  %s\nwant\n  %s", i, lines[i], w)
		}
	}
}

const everything = `
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata:
  name: redis
  labels: {team: cache, "example.org/x": ""}
spec:
  tier: edge
  order: 10.5
  selector: has(hep) && hep == "redis-host"
  doNotTrack: true
  applyOnForward: true
  types: [Ingress, Egress]
  performanceHints: [AssumeNeededOnEveryNode]
  ingress:
  - action: Allow
    protocol: TCP
    source:
      nets: [10.0.0.0/8, 192.0.2.1/32]
      notNets:
      - 10.9.0.0/16
      selector: role == 'client'
      notSelector: has(bad)
      namespaceSelector: global()
      ports: [1024:65535]
    destination:
      ports: [6379, "6380", "7000:7100", redis]
      notPorts: [7050]
    metadata:
      annotations: {why: "because"}
  - action: Deny
    ipVersion: 6
    notProtocol: udp
  - action: Log
    protocol: ICMP
    icmp: {type: 8, code: 0}
    notICMP: {type: 3}
  - action: Pass
    protocol: "58"
    icmp: {}
  egress:
  - {action: Allow, protocol: 17, source: {namespaceSelector: global()}, destination: {notNets: ["fd00::/8"]}}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkSet
metadata: {name: bad.hosts, labels: {list: deny}}
spec:
  nets: [198.51.100.7, 203.0.113.9/24, 203.0.113.0/25, "2001:db8::/32"]
---
apiVersion: projectcalico.org/v3
kind: HostEndpoint
metadata: {name: node1-eth0, labels: {hep: redis-host}}
spec:
  node: node1.example.org
  interfaceName: eth0
  expectedIPs: [192.0.2.10, "2001:db8::10"]
  profiles: [projectcalico-default-allow]
  ports:
  - {name: redis, protocol: TCP, port: 6379}
  - {name: sig-1, protocol: 132, port: 1}
---
apiVersion: projectcalico.org/v3
kind: HostEndpoint
metadata: {name: all}
spec: {node: n, interfaceName: "eth*"}
---
apiVersion: projectcalico.org/v3
kind: Tier
metadata: {name: edge}
spec: {order: 5, defaultAction: Pass}
---
apiVersion: projectcalico.org/v3
kind: Tier
metadata: {name: aaa}
`

func pointer[T any](v T) *T { return &v }

func at(line, column int) Position { return Position{"f", line, column} }

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// bySelectorText lets cmp compare what only has methods.
var bySelectorText = cmp.Options{
	cmp.Transformer("selector", func(s *selector.Selector) string {
		if s == nil {
			return "none"
		}
		return s.String()
	}),
	cmp.Transformer("netset", func(s *netset.Set) string { return fmt.Sprintf("%d: %s", s.Entries(), s) }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
}

func mustSelect(t *testing.T, text string) *selector.Selector {
	t.Helper()
	s, err := selector.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestEveryField(t *testing.T) {
	got, err := read(everything)
	if err != nil {
		t.Fatal(err)
	}
	ports := func(at Position, names []string, ranges ...policy.PortRange) *Ports {
		return &Ports{Ranges: ranges, Names: names, At: at}
	}
	want := &Set{
		Tiers: []Tier{
			{Meta: Meta{Name: "aaa", At: at(74, 18)}},
			{Meta: Meta{Name: "edge", At: at(69, 18)}, Order: pointer(5.0)},
		},
		Policies: []Policy{{
			Meta:       Meta{Name: "redis", Labels: map[string]string{"team": "cache", "example.org/x": ""}, At: at(5, 9)},
			Tier:       "edge",
			Order:      pointer(10.5),
			Selector:   mustSelect(t, `has(hep) && hep == "redis-host"`),
			SelectorAt: at(10, 13),
			Ingress:    true,
			Egress:     true,
			IngressRules: []Rule{
				{
					At: at(16, 5), Action: policy.Allow, IPVersion: 4, Protocol: pointer[uint8](policy.TCP),
					Source: Entity{
						Nets: prefixes("10.0.0.0/8", "192.0.2.1/32"), NotNets: prefixes("10.9.0.0/16"),
						Selector: mustSelect(t, `role == "client"`), SelectorAt: at(22, 17),
						NotSelector: mustSelect(t, "has(bad)"), NotSelectorAt: at(23, 20),
						Ports: ports(at(25, 14), nil, policy.PortRange{First: 1024, Last: 65535}),
					},
					Destination: Entity{
						Ports: ports(at(27, 14), []string{"redis"}, policy.PortRange{First: 6379, Last: 6379},
							policy.PortRange{First: 6380, Last: 6380}, policy.PortRange{First: 7000, Last: 7100}),
						NotPorts: ports(at(28, 17), nil, policy.PortRange{First: 7050, Last: 7050}),
					},
				},
				{At: at(31, 5), Action: policy.Deny, IPVersion: 6, NotProtocol: pointer[uint8](policy.UDP)},
				{
					At: at(34, 5), Action: policy.Log, IPVersion: 4, Protocol: pointer[uint8](policy.ICMP),
					ICMP: &policy.ICMPMatch{Type: 8, Code: pointer[uint8](0)}, NotICMP: &policy.ICMPMatch{Type: 3},
				},
				{At: at(38, 5), Action: policy.Pass, Protocol: pointer[uint8](policy.ICMPv6)},
			},
			EgressRules: []Rule{{
				At: at(42, 5), Action: policy.Allow, IPVersion: 6, Protocol: pointer[uint8](policy.UDP),
				Source:      Entity{Selector: mustSelect(t, "global()"), SelectorAt: at(42, 63)},
				Destination: Entity{NotNets: prefixes("fd00::/8")},
			}},
		}},
		NetworkSets: []NetworkSet{{
			Meta{Name: "bad.hosts", Labels: map[string]string{"list": "deny"}, At: at(46, 18)},
			netset.Of(prefixes("198.51.100.7/32", "203.0.113.0/24", "203.0.113.0/25", "2001:db8::/32")...),
		}},
		HostEndpoints: []HostEndpoint{
			{Meta: Meta{Name: "all", At: at(64, 18)}, Node: "n", InterfaceName: "eth*"},
			{
				Meta: Meta{Name: "node1-eth0", Labels: map[string]string{"hep": "redis-host"}, At: at(52, 18)},
				Node: "node1.example.org", InterfaceName: "eth0",
				ExpectedIPs: []netip.Addr{netip.MustParseAddr("192.0.2.10"), netip.MustParseAddr("2001:db8::10")},
				Ports:       []NamedPort{{"redis", policy.TCP, 6379}, {"sig-1", policy.SCTP, 1}},
			},
		},
	}
	if diff := cmp.Diff(want, got, bySelectorText); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

// What a policy leaves out has Calico's defaults.
func TestDefaults(t *testing.T) {
	for spec, want := range map[string]string{
		"":                                 "default in=true/0 out=false/0",
		"ingress: R":                       "default in=true/1 out=false/0",
		"egress: R":                        "default in=false/0 out=true/1",
		"ingress: R, egress: R":            "default in=true/1 out=true/1",
		"types: [Ingress], egress: R":      "default in=true/0 out=false/1",
		"types: null, order: ~, tier: ''":  "default in=true/0 out=false/0",
		"types: [Egress, Ingress]":         "default in=true/0 out=true/0",
		"ingress: [], egress: , tier: abc": "abc in=true/0 out=false/0",
	} {
		got, err := read("{apiVersion: projectcalico.org/v3, kind: GlobalNetworkPolicy, metadata: {name: p}, spec: {doNotTrack: yes, applyOnForward: true, " +
			strings.ReplaceAll(spec, "R", "[{action: Allow}]") + "}}")
		if err != nil {
			t.Errorf("%s: %v", spec, err)
			continue
		}
		p := got.Policies[0]
		if s := fmt.Sprintf("%s in=%v/%d out=%v/%d", p.Tier, p.Ingress, len(p.IngressRules), p.Egress, len(p.EgressRules)); s != want {
			t.Errorf("%s: %s, want %s", spec, s, want)
		}
		if p.Selector.String() != "all()" || p.SelectorAt != p.At || p.Order != nil {
			t.Errorf("%s: selector %s at %s, order %v", spec, p.Selector, p.SelectorAt, p.Order)
		}
	}
}

// The same resources, as kubectl and calicoctl print several.
func TestForms(t *testing.T) {
	tier := func(name string) string {
		return "{\"apiVersion\": \"projectcalico.org/v3\", \"kind\": \"Tier\", \"metadata\": {\"name\": \"" + name + "\"}}"
	}
	for form, text := range map[string]string{
		"documents":              tier("a") + "\n---\n" + tier("b"),
		"JSON array":             "[" + tier("a") + ",\n\t" + tier("b") + "]",
		"JSON with tabs":         strings.ReplaceAll("{\n\t\"apiVersion\":\t\"v1\",\n\t\"kind\": \"List\",\n\t\"items\": [ A,\n\t\tB\n\t]\n}", "A", tier("a")),
		"List":                   "apiVersion: v1\nkind: List\nmetadata: {resourceVersion: ''}\nitems:\n- " + tier("a") + "\n- " + tier("b"),
		"typed list":             "apiVersion: projectcalico.org/v3\nkind: TierList\nmetadata: {resourceVersion: '7'}\nitems:\n- " + tier("b") + "\n- " + tier("a"),
		"typed list, bare items": "apiVersion: projectcalico.org/v3\nkind: TierList\nitems:\n- metadata: {name: a}\n- metadata: {name: b}",
		"list of lists":          "- " + tier("a") + "\n- {apiVersion: v1, kind: List, items: [B]}",
		"empty documents":        "# nothing\n---\n" + tier("a") + "\n---\n---\n# only this\n---\n" + tier("b") + "\n...\n",
		"BOM and CRLF":           "\ufeff---\r\napiVersion: projectcalico.org/v3\r\nkind: Tier\r\nmetadata:\r\n  name: a\r\n---\r\n" + tier("b") + "\r\n",
		"aliases":                "- apiVersion: &v projectcalico.org/v3\n  kind: &k Tier\n  metadata: {name: a}\n- {apiVersion: *v, kind: *k, metadata: {name: b}}",
	} {
		t.Run(form, func(t *testing.T) {
			got, err := read(strings.ReplaceAll(text, "B", tier("b")))
			if err != nil {
				t.Fatal(err)
			}
			if len(got.Tiers) != 2 || got.Tiers[0].Name != "a" || got.Tiers[1].Name != "b" {
				t.Errorf("%+v", got.Tiers)
			}
		})
	}
	for _, text := range []string{"", "\n", "# nothing", "---\n---\n", "null", "[]", "{apiVersion: v1, kind: List, items: []}", "\ufeff"} {
		if got, err := read(text); err != nil || !cmp.Equal(got, &Set{}) {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
}

func TestKubectlOutput(t *testing.T) {
	data, err := os.ReadFile("testdata/kubectl.yaml")
	if err != nil {
		t.Fatal(err)
	}
	got, err := read(string(data))
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Policies) != 1 || len(got.Policies[0].IngressRules) != 2 || len(got.Policies[0].EgressRules) != 1 ||
		len(got.Tiers) != 1 || len(got.HostEndpoints) != 1 || len(got.NetworkSets) != 1 || got.NetworkSets[0].Nets.Entries() != 2 {
		t.Errorf("%+v", got)
	}
}
