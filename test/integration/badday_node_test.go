// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"strings"
	"testing"

	"github.com/untracked-cni/untracked/pkg/node"
	"github.com/untracked-cni/untracked/test/lab"
)

// Where the HostEndpoints are all other nodes', pods start, also with required, and every place where an operator may
// look says what this node is called, what the others are, and what to set.
func TestBadDayNodeNameUnknown(t *testing.T) {
	const endpoint = "{apiVersion: projectcalico.org/v3, kind: HostEndpoint, metadata: {name: %s, labels: {role: db}}, spec: {node: %s, interfaceName: eth0}}\n---\n"
	policy := fmt.Sprintf(endpoint, "one", "db-1.example.org") + fmt.Sprintf(endpoint, "two", "db-2.example.org") +
		"{apiVersion: projectcalico.org/v3, kind: GlobalNetworkPolicy, metadata: {name: redis}, " +
		"spec: {selector: role == 'db', doNotTrack: true, applyOnForward: true, ingress: [{action: Allow, protocol: TCP, destination: {ports: [6379]}}]}}\n"
	annotations := map[string]string{"policy": policy, "node": "db-1", "required": "true"}
	l, chain, pod := cniChain(t, annotations)
	want := []string{`called "db-1"`, "db-1.example.org, db-2.example.org", "untracked.cni/node"}
	says := func(what, text string) {
		t.Helper()
		for _, w := range want {
			if !strings.Contains(strings.ReplaceAll(text, `\"`, `"`), w) {
				t.Errorf("%s does not say %q:\n%s", what, w, text)
			}
		}
	}
	out := must(l.Untracked("apply", chain.File, "--dry-run"))(t)
	says("apply --dry-run", string(out.Stdout))
	says("ADD's log", string(cniAdd(t, chain, pod).Stderr))
	out = must(l.Untracked("apply", chain.File))(t)
	says("apply", string(out.Stdout))
	if out.ExitCode != 0 {
		t.Errorf("apply: exit status %d, %s", out.ExitCode, out.Stderr)
	}
	says("status", string(must(l.Untracked("status"))(t).Stdout))
	if s, exit := cniStatus(t, l); exit != 0 || cniProblem(s, node.ProblemNoHostEndpoint) == nil {
		t.Errorf("status: exit status %d, %+v", exit, s.Problems)
	}

	annotations["node"] = "db-1.example.org"
	check(t, chain.Rewrite(lab.ChainConfig{Annotations: annotations}))
	cniAdd(t, chain, pod)
	cniHealthy(t, l, chain, pod)
}
