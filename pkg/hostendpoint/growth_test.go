// SPDX-License-Identifier: Apache-2.0

package hostendpoint

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/pkg/resource"
	"github.com/untracked-cni/untracked/pkg/resource/resourcetest"
)

// manyHosts are so many endpoints, one a node, each of which gives the names a and b to ports of its own.
func manyHosts(n int) *resource.Set {
	set := &resource.Set{}
	for i := range n {
		h := hep(fmt.Sprintf("h%05d", i), fmt.Sprint("n", i), "eth0", netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}).String())
		h.Ports = []resource.NamedPort{{Name: "a", Protocol: policy.TCP, Port: uint16(1 + i)}, {Name: "b", Protocol: policy.TCP, Port: uint16(30000 + i)}}
		set.HostEndpoints = append(set.HostEndpoints, h)
	}
	return set
}

// Ports that have names and others that are excluded by name: each host has one pair of the two, and none with others.
func TestExpandGrowth(t *testing.T) {
	resourcetest.Linear(t, 200, func(n int) func() {
		set := manyHosts(n)
		p := resource.Policy{Meta: labelled("p"), Tier: "default", Selector: parse("all()"), Ingress: true}
		for range 20 {
			p.IngressRules = append(p.IngressRules, resource.Rule{Action: policy.Allow, Protocol: tcp(), Destination: resource.Entity{Ports: named("a"), NotPorts: named("b")}})
		}
		set.Policies = []resource.Policy{p}
		return func() {
			if rules, err := NewExpander(set, nil).Rules(nil); err != nil || len(rules.Ingress) != 20*n {
				t.Fatal(len(rules.Ingress), err)
			}
		}
	})
}

// An endpoint more costs no more than its own rules.
func TestExpanderGrowth(t *testing.T) {
	resourcetest.Linear(t, 100, func(n int) func() {
		set := manyHosts(n)
		set.Policies = []resource.Policy{{Meta: labelled("p"), Tier: "default", Selector: parse("all()"), Ingress: true, IngressRules: []resource.Rule{
			{Action: policy.Allow, Source: resource.Entity{Selector: parse("has(hep)")}},
		}}}
		expander := func() {
			x := NewExpander(set, nil)
			for i := range set.HostEndpoints {
				if rules, err := x.Rules(set.HostEndpoints[i].Labels); err != nil || len(rules.Ingress) != 1 {
					t.Fatal(len(rules.Ingress), err)
				}
			}
		}
		return func() {
			for range 20 {
				expander()
			}
		}
	})
}

func TestInspectGrowth(t *testing.T) {
	t.Run("one endpoint a node", func(t *testing.T) {
		resourcetest.Linear(t, 3000, func(n int) func() {
			set := manyHosts(n)
			return func() {
				if found := Inspect(set, nil); len(found) > 0 {
					t.Fatal(found)
				}
			}
		})
	})
	t.Run("many of one interface", func(t *testing.T) {
		resourcetest.Linear(t, 2000, func(n int) func() {
			set := manyHosts(n)
			for i := range set.HostEndpoints {
				set.HostEndpoints[i].Node = "node"
			}
			return func() {
				if found := Inspect(set, nil); len(found) != n-1 {
					t.Fatal(len(found))
				}
			}
		})
	})
	t.Run("policies of one order", func(t *testing.T) {
		resourcetest.Linear(t, 1000, func(n int) func() {
			set := manyHosts(10)
			for i := range n {
				p := resource.Policy{Meta: labelled(fmt.Sprintf("p%05d", i)), Tier: "default", Selector: parse("has(hep)"), Ingress: true}
				p.IngressRules = []resource.Rule{{Action: policy.Allow}}
				set.Policies = append(set.Policies, p)
			}
			return func() {
				if found := Inspect(set, nil); len(found) > 0 {
					t.Fatal(found)
				}
			}
		})
	})
}
