// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/untracked-cni/untracked/pkg/node"
	"github.com/untracked-cni/untracked/test/lab"
)

// The node has one policy. Of two networks with different ones, the last caller's is in force, and status says so.
func TestCNINetworksWithDifferentPolicies(t *testing.T) {
	l, one, pod := cniChain(t, cniPolicy())
	two := must(l.Chain(lab.ChainConfig{Annotations: map[string]string{"ports": "udp/514"}}))(t)
	pod2 := must(l.AddNS("pod2"))(t)
	inForce := func(ports string) {
		t.Helper()
		out := must(l.Untracked("rules", "-o", "json"))(t)
		var rules []node.RuleStatus
		check(t, json.Unmarshal(out.Stdout, &rules))
		for _, r := range rules {
			if r.Direction == "ingress" && r.Policy == "ports" && strings.Contains(r.Match, ports) {
				return
			}
		}
		t.Errorf("no ingress rule for %s is in force: %s", ports, out.Stdout)
	}
	must(one.Add(pod))(t)
	inForce("6379")
	must(two.Add(pod2))(t)
	inForce("514")

	s, exit := cniStatus(t, l)
	p := cniProblem(s, node.ProblemConflict)
	if p == nil || !strings.Contains(p.Message, one.Network) || !strings.Contains(p.Message, two.Network) || p.Remedy == "" {
		t.Errorf("problems %+v: want one that names %s and %s", s.Problems, one.Network, two.Network)
	}
	if s.Policy.Network != two.Network {
		t.Errorf("the policy in force is said to be of %s, want %s", s.Policy.Network, two.Network)
	}
	if exit != 0 {
		t.Errorf("status: exit status %d: a policy is in force", exit)
	}
	// Both networks' pods are as well off as before: a failing CHECK would fail a pod on some runtimes.
	must(one.Check(pod))(t)
	must(two.Check(pod2))(t)
	cniTidy(t, l)

	cniAdd(t, one, pod)
	inForce("6379")
	if s, _ := cniStatus(t, l); s.Policy.Network != one.Network || cniProblem(s, node.ProblemConflict) == nil {
		t.Errorf("the first network called again: %+v", s)
	}

	// Once they agree, an ADD of each is enough, and from then on nothing is written.
	check(t, two.Rewrite(lab.ChainConfig{Annotations: cniPolicy()}))
	cniAdd(t, two, pod2)
	cniAdd(t, one, pod)
	if s, exit := cniStatus(t, l); exit != 0 || len(s.Problems) != 0 {
		t.Errorf("after they agree: exit status %d, problems %+v", exit, s.Problems)
	}
	before := cniRead(t, l)
	cniAdd(t, two, pod2)
	cniAdd(t, one, pod)
	cniSame(t, "ADDs of two networks that agree", before, cniRead(t, l))

	// An operator who applies one conf list has decided.
	check(t, two.Rewrite(lab.ChainConfig{Annotations: map[string]string{"ports": "udp/514"}}))
	cniAdd(t, two, pod2)
	if s, _ := cniStatus(t, l); cniProblem(s, node.ProblemConflict) == nil {
		t.Error("no conflict after a change of one network")
	}
	out := cniRun(t, l, nil, nil, "apply", one.File)
	if s, exit := cniStatus(t, l); out.ExitCode != 0 || exit != 0 || len(s.Problems) != 0 {
		t.Errorf("apply: exit status %d, %s%s; then %+v", out.ExitCode, out.Stdout, out.Stderr, s)
	}
}
