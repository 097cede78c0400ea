// SPDX-License-Identifier: Apache-2.0

package hostendpoint

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/untracked-cni/untracked/pkg/hostif"
	"github.com/untracked-cni/untracked/pkg/resource"
)

func addrs(list string) []netip.Addr {
	var out []netip.Addr
	for _, a := range strings.Fields(list) {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func hep(name, node, interfaceName, expected string) resource.HostEndpoint {
	return resource.HostEndpoint{
		Meta: resource.Meta{Name: name, Labels: map[string]string{"hep": name}}, Node: node,
		InterfaceName: interfaceName, ExpectedIPs: addrs(expected),
	}
}

// heps are sorted by name, as a set has them.
func heps(list ...resource.HostEndpoint) *resource.Set {
	slices.SortFunc(list, func(a, b resource.HostEndpoint) int { return strings.Compare(a.Name, b.Name) })
	return &resource.Set{HostEndpoints: list}
}

// inWords says which endpoint an interface has: "redis: eth0 eth1 (10.0.0.1)".
func inWords(endpoints []Endpoint) []string {
	var out []string
	for _, e := range endpoints {
		var list []string
		for _, a := range e.Addresses {
			list = append(list, a.String())
		}
		out = append(out, e.Name+": "+strings.Join(e.Interfaces, " ")+" ("+strings.Join(list, " ")+")")
	}
	return out
}

func TestAssign(t *testing.T) {
	eth0 := Interface{Name: "eth0", Addresses: addrs("10.0.0.1 2001:db8::1"), Host: true, Selected: true}
	eth1 := Interface{Name: "eth1", Addresses: addrs("10.1.0.1"), Host: true}
	wan0 := Interface{Name: "wan0", Host: true, Selected: true}
	cali := Interface{Name: "cali1"}
	all := []Interface{eth0, eth1, wan0, cali}
	for _, c := range []struct {
		name       string
		set        *resource.Set
		interfaces []Interface
		want       []string
	}{
		{"nothing", heps(), nil, nil},
		{"nobody wrote one", heps(), all, []string{"implicit: eth0 wan0 (10.0.0.1 2001:db8::1)"}},
		{"by name, addresses learned", heps(hep("a", "n1", "eth0", "")), all, []string{"a: eth0 (10.0.0.1 2001:db8::1)", "implicit: wan0 ()"}},
		{"by name, addresses written", heps(hep("a", "n1", "eth0", "192.0.2.2 192.0.2.1")), all, []string{"a: eth0 (192.0.2.1 192.0.2.2)", "implicit: wan0 ()"}},
		{"an interface that nothing else selects", heps(hep("a", "n1", "eth1", "")), all, []string{"a: eth1 (10.1.0.1)", "implicit: eth0 wan0 (10.0.0.1 2001:db8::1)"}},
		{"by any expected address", heps(hep("a", "n1", "", "203.0.113.1 2001:db8::1")), []Interface{eth0, eth1}, []string{"a: eth0 (203.0.113.1 2001:db8::1)"}},
		{"by addresses of two interfaces", heps(hep("a", "n1", "", "10.0.0.1 10.1.0.1")), []Interface{eth0, eth1}, []string{"a: eth0 eth1 (10.0.0.1 10.1.0.1)"}},
		{"another name, whatever is expected", heps(hep("a", "n1", "eth7", "10.0.0.1")), []Interface{eth0}, []string{"implicit: eth0 (10.0.0.1 2001:db8::1)"}},
		{"another node's", heps(hep("a", "n2", "eth0", ""), hep("b", "N1", "eth0", ""), hep("c", "n1.example.org", "eth0", "")), []Interface{eth0}, []string{"implicit: eth0 (10.0.0.1 2001:db8::1)"}},
		{
			"the smallest name of several", heps(hep("b", "n1", "eth0", ""), hep("a", "n2", "eth0", ""), hep("c", "n1", "eth0", ""), hep("d", "n1", "", "10.0.0.1")),
			[]Interface{eth0}, []string{"b: eth0 (10.0.0.1 2001:db8::1)"},
		},
		{"an address is as good as a name", heps(hep("a", "n1", "", "10.0.0.1"), hep("b", "n1", "eth0", "")), []Interface{eth0}, []string{"a: eth0 (10.0.0.1)"}},
		{"a glob", heps(hep("a", "n1", "eth*", "")), all, []string{"a: eth0 eth1 (10.0.0.1 10.1.0.1 2001:db8::1)", "implicit: wan0 ()"}},
		{"a glob is behind a name", heps(hep("a", "n1", "eth?", ""), hep("b", "n1", "eth0", "")), []Interface{eth0, eth1}, []string{"a: eth1 (10.1.0.1)", "b: eth0 (10.0.0.1 2001:db8::1)"}},
		{"of two globs, the smallest name", heps(hep("a", "n1", "e*", ""), hep("b", "n1", "eth0*", "")), []Interface{eth0}, []string{"a: eth0 (10.0.0.1 2001:db8::1)"}},
		{"a glob may mean a pod's", heps(hep("a", "n1", "cali*", "")), all, []string{"a: cali1 ()", "implicit: eth0 wan0 (10.0.0.1 2001:db8::1)"}},
		{"all host interfaces", heps(hep("a", "n1", "*", "")), all, []string{"a: eth0 eth1 wan0 (10.0.0.1 10.1.0.1 2001:db8::1)"}},
		{
			"all is behind a glob and a name", heps(hep("a", "n1", "*", ""), hep("b", "n1", "eth*", ""), hep("c", "n1", "eth0", ""), hep("d", "n1", "*", "")),
			all, []string{"a: wan0 ()", "b: eth1 (10.1.0.1)", "c: eth0 (10.0.0.1 2001:db8::1)"},
		},
		{"a pattern that is none", heps(hep("a", "n1", "eth[", "")), []Interface{eth0}, []string{"implicit: eth0 (10.0.0.1 2001:db8::1)"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			node := Node{Name: "n1", Labels: map[string]string{"who": "nobody"}, Interfaces: c.interfaces}
			endpoints := Assign(c.set, node)
			if diff := cmp.Diff(c.want, inWords(endpoints)); diff != "" {
				t.Errorf("endpoints (-want +got):\n%s", diff)
			}
			for _, e := range endpoints {
				labels := map[string]string{"hep": e.Name}
				if e.Resource == nil {
					labels = node.Labels
				} else if e.Resource.Name != e.Name {
					t.Errorf("%s has the resource %s", e.Name, e.Resource.Name)
				}
				if diff := cmp.Diff(labels, e.Labels); diff != "" {
					t.Errorf("labels of %s (-want +got):\n%s", e.Name, diff)
				}
			}
		})
	}
}

func TestSelectors(t *testing.T) {
	set := heps(
		hep("a", "n1", "eth0", "10.0.0.1"), hep("b", "n1", "", "10.0.0.2 10.0.0.3 2001:db8::1"), hep("c", "n2", "eth2", ""),
		hep("d", "n1", "en[ops]*", ""), hep("e", "n1", "*", ""), hep("f", "n1", "eth0", ""), hep("g", "n1", "", "10.0.0.2"),
	)
	net := func(cidr string) hostif.Selector {
		return hostif.Selector{Kind: hostif.ByNet, Net: netip.MustParsePrefix(cidr)}
	}
	want := []hostif.Selector{
		{Kind: hostif.ByName, Pattern: "eth0"}, net("10.0.0.2/32"), net("10.0.0.3/32"), net("2001:db8::1/128"),
		{Kind: hostif.ByGlob, Pattern: "en[ops]*"}, {Kind: hostif.ByHost},
	}
	if got := Selectors(set, "n1"); !slices.Equal(got, want) {
		t.Errorf("Selectors = %v, want %v", got, want)
	}
	if got := Selectors(set, "n3"); got != nil {
		t.Errorf("Selectors of a node without endpoints = %v", got)
	}
}
