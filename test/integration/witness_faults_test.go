// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
)

// witnessFaults are misreadings of a policy that the comparison must be able to see.
var witnessFaults = map[string]func(*witnessResources){
	"a denied packet goes to the next tier": witnessEachRule(func(r *witnessRule) { r.Action = strings.Replace(r.Action, "Deny", "Pass", 1) }),
	"a logged packet is let through":        witnessEachRule(func(r *witnessRule) { r.Action = strings.Replace(r.Action, "Log", "Allow", 1) }),
	"Pass leaves all tiers":                 witnessEachRule(func(r *witnessRule) { r.Action = strings.Replace(r.Action, "Pass", "Allow", 1) }),
	"ipVersion is not looked at":            witnessEachRule(func(r *witnessRule) { r.IPVersion = 0 }),
	"notProtocol is not looked at":          witnessEachRule(func(r *witnessRule) { r.NotProtocol = "" }),
	"the code of icmp is not looked at": witnessEachRule(func(r *witnessRule) {
		if r.ICMP != nil {
			r.ICMP.Code = nil
		}
	}),
	"notICMP is not looked at":                   witnessEachRule(func(r *witnessRule) { r.NotICMP = nil }),
	"notNets is not looked at":                   witnessEachEntity(func(e *witnessEntity) { e.NotNets = nil }),
	"notPorts is not looked at":                  witnessEachEntity(func(e *witnessEntity) { e.NotPorts = nil }),
	"selector is not looked at":                  witnessEachEntity(func(e *witnessEntity) { e.Selector = "" }),
	"notSelector is not looked at":               witnessEachEntity(func(e *witnessEntity) { e.NotSelector = "" }),
	"namespaceSelector is not looked at":         witnessEachEntity(func(e *witnessEntity) { e.NamespaceSelector = "" }),
	"a range of ports ends before its last port": witnessEachEntity(func(e *witnessEntity) { e.Ports = witnessLastOff(e.Ports) }),
	"named ports match nothing": func(r *witnessResources) {
		for i := range r.HostEndpoints {
			r.HostEndpoints[i].Spec.Ports = nil
		}
	},
	"the order of policies is not looked at": func(r *witnessResources) {
		for i := range r.Policies {
			r.Policies[i].Spec.Order = nil
		}
	},
	"the order of tiers is not looked at": func(r *witnessResources) {
		for i := range r.Tiers {
			r.Tiers[i].Spec.Order = nil
		}
	},
	"a policy's selector is not looked at": func(r *witnessResources) {
		for i := range r.Policies {
			r.Policies[i].Spec.Selector = ""
		}
	},
	"types are not looked at": func(r *witnessResources) {
		for i := range r.Policies {
			r.Policies[i].Spec.Types = nil
		}
	},
	"the labels of the annotation are lost": func(r *witnessResources) { r.Labels = nil },
	"the last name of host endpoints wins": func(r *witnessResources) {
		for i := range r.HostEndpoints {
			name := r.HostEndpoints[i].Metadata.Name
			r.HostEndpoints[i].Metadata.Name = string('z'-name[0]+'a') + string('9'-name[1]+'0')
		}
	},
}

func witnessEachRule(fn func(*witnessRule)) func(*witnessResources) {
	return func(r *witnessResources) {
		for i := range r.Policies {
			for _, rules := range [][]witnessRule{r.Policies[i].Spec.Ingress, r.Policies[i].Spec.Egress} {
				for j := range rules {
					fn(&rules[j])
				}
			}
		}
	}
}

func witnessEachEntity(fn func(*witnessEntity)) func(*witnessResources) {
	return witnessEachRule(func(r *witnessRule) {
		fn(&r.Source)
		fn(&r.Destination)
	})
}

func witnessLastOff(ports []witnessIntOrString) (out []witnessIntOrString) {
	for _, p := range ports {
		var first, last int
		if n, _ := fmt.Sscanf(string(p), "%d:%d", &first, &last); n == 2 && first < last {
			p = witnessIntOrString(fmt.Sprintf("%d:%d", first, last-1))
		}
		out = append(out, p)
	}
	return out
}

// Every fault is seen within the policies and packets of an ordinary run, and what is reported is about little more
// than the fault.
func TestWitnessSeesFaults(t *testing.T) {
	_, hosts := witnessLab(t, "witness", "faulty")
	witness, faulty := hosts[0], hosts[1]
	witness.witness(nil)
	unseen, shrunk := maps.Clone(witnessFaults), false
	for seed := uint64(1); len(unseen) > 0 && seed <= 50; seed++ {
		g := newWitnessRandom(seed)
		c := g.policy()
		packets := g.packets(c, witnessPackets)
		want := must(witnessTry(hosts[:1], c, packets))(t)[0]
		for _, fault := range slices.Sorted(maps.Keys(unseen)) {
			faulty.witness(unseen[fault])
			if faulty.witnessed(c) == witness.witnessed(c) {
				continue
			}
			found := witnessDiffer(c, packets, want, faulty, must(witnessTry(hosts[1:], c, packets))(t)[0])
			if len(found) == 0 {
				continue
			}
			delete(unseen, fault)
			t.Logf("seed %d, %d packets: %s", seed, len(found), fault)
			if shrunk {
				continue
			}
			shrunk = true
			m, rules := found[0].shrink(witness), 0
			witnessEachRule(func(*witnessRule) { rules++ })(m.witnessResources)
			if rules > 2 {
				t.Errorf("the report is about %d rules:\n%s", rules, m)
			}
			t.Logf("the report: %s", m)
		}
	}
	for fault := range unseen {
		t.Errorf("not seen: %s", fault)
	}
}
