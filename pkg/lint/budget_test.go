// SPDX-License-Identifier: Apache-2.0

package lint

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/pkg/resource"
	"github.com/untracked-cni/untracked/pkg/resource/resourcetest"
)

// onePolicy has these rules, in JSON, for all endpoints.
func onePolicy(name, selector string, ingress, egress []string) string {
	return fmt.Sprintf(`{"apiVersion":"projectcalico.org/v3","kind":"GlobalNetworkPolicy","metadata":{"name":%q},"spec":{"selector":%q,"doNotTrack":true,"applyOnForward":true,"ingress":[%s],"egress":[%s]}}`,
		name, selector, strings.Join(ingress, ","), strings.Join(egress, ","))
}

func rule(action, side string, port int) string {
	return fmt.Sprintf(`{"action":%q,"protocol":"UDP",%q:{"ports":[%d]}}`, action, side, port)
}

func read(t *testing.T, resources ...string) *unit {
	t.Helper()
	var r resource.Reader
	r.Add([]byte("["+strings.Join(resources, ",\n")+"]"), resource.Position{File: "f.json"})
	u := newUnit()
	if u.resolve(&r); u.set == nil {
		t.Fatal(u.findings)
	}
	return u
}

// What all profiles of a unit take is bounded. What was not found out is not said, and that is said once.
func TestBudget(t *testing.T) {
	var resources []string
	for i := range 40 { // each endpoint has all policies but one
		resources = append(resources,
			fmt.Sprintf(`{"apiVersion":"projectcalico.org/v3","kind":"HostEndpoint","metadata":{"name":"h%[1]d","labels":{"host":"%[1]d"}},"spec":{"node":"n%[1]d","interfaceName":"eth0"}}`, i),
			onePolicy(fmt.Sprint("p", i), fmt.Sprintf(`host != "%d"`, i), []string{rule("Deny", "destination", 7000+i), rule("Deny", "destination", 7000+i)}, []string{rule("Allow", "source", 8000+i)}))
	}
	find := func(budget int) []Finding {
		u := read(t, resources...)
		u.budget = budget
		u.check()
		return sorted(u.findings)
	}
	all := find(newUnit().budget)
	if len(all) != 80 { // half of the denials are shadowed, no answer is allowed
		t.Errorf("%d findings", len(all))
	}
	for _, budget := range []int{0, 1 << 16, 1 << 20, 1 << 22} {
		found := find(budget)
		if found[0].Code != NotExamined || found[0].String() != "f.json:1:1: warning: "+found[0].Message+" [not-examined]" {
			t.Errorf("budget %d: %s", budget, found[0])
		}
		for _, f := range found[1:] {
			if !slices.Contains(all, f) {
				t.Errorf("budget %d: %s", budget, f)
			}
		}
	}
}

func TestGrowth(t *testing.T) {
	t.Run("answers", func(t *testing.T) {
		resourcetest.Linear(t, 250, func(n int) func() {
			var ingress, egress []string
			for i := range n {
				ingress, egress = append(ingress, rule("Allow", "destination", 1+i)), append(egress, rule("Allow", "destination", 1+i))
			}
			u := read(t, onePolicy("tunnel", "all()", ingress, egress))
			p := u.profiles()[0]
			return func() {
				e := examination{unit: u, subjects: map[id]*subject{}}
				if list, _ := e.appendMirrors(nil, &p, policy.Egress); len(list) > 0 {
					t.Fatal(list)
				}
			}
		})
	})
	for name, separator := range map[string]string{"selectors on lines": "\n", "selectors on one line": " "} {
		t.Run(name, func(t *testing.T) {
			resourcetest.Linear(t, 1000, func(n int) func() {
				var policies []string
				for i := range n {
					policies = append(policies, onePolicy(fmt.Sprint("p", i), "", nil, nil))
				}
				text := []byte("[" + strings.Join(policies, ","+separator) + "]")
				var r resource.Reader
				r.Add(text, resource.Position{File: "f.json"})
				set, err := r.Result()
				if err != nil {
					t.Fatal(err)
				}
				return func() {
					u := newUnit()
					u.set, u.sources["f.json"] = set, &source{data: text}
					if u.selectors(); len(u.findings) != n {
						t.Fatal(len(u.findings))
					}
				}
			})
		})
	}
}
