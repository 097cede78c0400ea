// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/untracked-cni/untracked/pkg/node"
	"github.com/untracked-cni/untracked/test/lab"
)

// A policy file is edited, and the edit has a mistake: ADD fails with the file, line and column, the log has the same, the
// policy in force stays in force, and status says that pods cannot start, and why. The next edit mends it.
func TestBadDayPolicyTypo(t *testing.T) {
	l := lab.New(t, lab.Config{})
	file, log := filepath.Join(l.Dir, "redis.yaml"), filepath.Join(l.Dir, "untracked.log")
	policy := func(port string) []byte {
		return []byte(`apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata:
  name: redis
spec:
  selector: role == "db"
  doNotTrack: true
  applyOnForward: true
  ingress:
  - action: Allow
    protocol: TCP
    destination:
      ` + port + `
`)
	}
	check(t, os.WriteFile(file, policy("ports: [6379]"), 0o600))
	chain := must(l.Chain(lab.ChainConfig{Annotations: map[string]string{"labels": "role=db", "policy-files": file, "log-file": log}}))(t)
	pod := must(l.AddNS("pod"))(t)
	must(lab.AddStateful(l.Node, true))(t)
	must(lab.ServeTCP(l.Node, 6379))(t)
	cniAdd(t, chain, pod)

	for typo, words := range map[string][]string{
		"port: [6379]":   {file + ":13:7", "destination.port: unknown field; did you mean ports?"},
		"ports: [70000]": {file + ":13:15", "70000"},
		"ports: [6379":   {file + ":1"},
	} {
		check(t, os.WriteFile(file, policy(typo), 0o600))
		os.Remove(log)
		said := cniFailure(t, cniRun(t, l, cniEnv(chain, "ADD", pod), chain.Stdin([]byte(cniPrev("1.1.0")))), 7)
		logged := string(must(os.ReadFile(log))(t))
		s, exit := cniStatus(t, l)
		p := cniProblem(s, node.ProblemBadPolicy)
		if exit != 1 || p == nil {
			t.Fatalf("%s: status: exit status %d, %+v", typo, exit, s.Problems)
		}
		for _, w := range append(words, lab.AnnotationPrefix+"policy-files") {
			for where, text := range map[string]string{"ADD": said, "the log": strings.ReplaceAll(logged, `\"`, `"`), "status": p.Message} {
				if !strings.Contains(text, w) {
					t.Errorf("%s: %s does not say %q: %s", typo, where, w, text)
				}
			}
		}
		if out := must(l.Untracked("apply", chain.File))(t); out.ExitCode != 2 || !strings.Contains(string(out.Stderr), words[0]) {
			t.Errorf("%s: apply: exit status %d, %s", typo, out.ExitCode, out.Stderr)
		}
		badDayUntracked(t, l, 6379)
		// A pod that is going goes.
		if out := cniRun(t, l, cniEnv(chain, "DEL", pod), chain.Stdin(nil)); out.ExitCode != 0 {
			t.Errorf("%s: DEL: exit status %d, %s", typo, out.ExitCode, out.Stdout)
		}
	}
	check(t, os.WriteFile(file, policy("ports: [6379]"), 0o600))
	cniAdd(t, chain, pod)
	cniHealthy(t, l, chain, pod)
}
