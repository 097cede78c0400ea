// SPDX-License-Identifier: Apache-2.0

package lint

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	redisEndpoint = `apiVersion: projectcalico.org/v3
kind: HostEndpoint
metadata: {name: node1-eth0, labels: {hep: redis-host}}
spec: {node: node1, interfaceName: eth0}
`
	denyBogons = `apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: bogons}
spec:
  selector: has(hep)
  doNotTrack: true
  applyOnForward: true
  ingress:
    - {action: Deny, source: {selector: set == "bogons"}}
`
	bogons = `apiVersion: projectcalico.org/v3
kind: GlobalNetworkSet
metadata: {name: bogons, labels: {set: bogons}}
spec: {nets: [240.0.0.0/4]}
`
)

func write(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// wantFindings compares what each finding begins with and, behind "…", has in it.
func wantFindings(t *testing.T, got []Finding, want ...string) {
	t.Helper()
	ok := len(got) == len(want)
	for i := 0; ok && i < len(got); i++ {
		begin, part, _ := strings.Cut(want[i], "…")
		ok = strings.HasPrefix(got[i].String(), begin) && strings.Contains(got[i].String(), part)
	}
	if !ok {
		t.Errorf("found %d:", len(got))
		for _, f := range got {
			t.Errorf("  %s", f)
		}
		t.Errorf("want %d:\n  %s", len(want), strings.Join(want, "\n  "))
	}
}

func TestFilesTogether(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	write(t, "hep.yaml", redisEndpoint)
	write(t, "policy.yml", denyBogons)
	write(t, "notes.txt", "not ours")
	const nothing = `policy.yml:9:41: warning: policy bogons, ingress rule 0: its source selector …chooses no host endpoint`
	wantFindings(t, Files([]string{"policy.yml", "hep.yaml"}, nil), nothing)
	wantFindings(t, Files([]string{"policy.yml", "hep.yaml", "policy.yml"}, nil), nothing)
	wantFindings(t, Files([]string{dir}, nil), filepath.Join(dir, nothing))
	write(t, "sets.json", `{"apiVersion": "projectcalico.org/v3", "kind": "GlobalNetworkSet", "metadata": {"name": "bogons", "labels": {"set": "bogons"}}, "spec": {"nets": ["240.0.0.0/4"]}}`)
	wantFindings(t, Files([]string{dir}, nil))
	wantFindings(t, Files([]string{"hep.yaml", "-", "policy.yml"}, strings.NewReader(bogons)))
	wantFindings(t, Files([]string{"-"}, strings.NewReader("kind: [")), "stdin:1:8: error: not valid YAML or JSON: … [invalid-resource]")
	wantFindings(t, Files([]string{"-"}, strings.NewReader(`{"type": "bridge"}`)), "stdin:1:1: error: type: … [invalid-config]")
	// Warnings wait until the errors are mended: the set may be what is missing.
	wantFindings(t, Files([]string{"hep.yaml", "none.yaml", "policy.yml"}, nil), "none.yaml: error: no such file")
	empty := t.TempDir()
	wantFindings(t, Files([]string{empty}, nil), empty+": error: no file of resources or conf list")
}

func TestConflistReadsItsFiles(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	conflist := func(annotations string) string {
		return write(t, path("net.conflist"), fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "bridge"},
  {"type": "untracked", "annotations": {
    "untracked.cni/node": "node1",
    %s}}]}`, annotations))
	}
	write(t, path("policy.yaml"), denyBogons)
	write(t, path("bogons.yaml"), bogons)
	write(t, path("deny.txt"), "192.0.2.0/24\n")
	write(t, path("more.txt"), "192.0.2.128/25\n")
	write(t, path("bad.txt"), "192.0.2.0/24\n192.0.2.300\n")
	write(t, path("bad.yaml"), "kind: Pod\n")

	list := conflist(fmt.Sprintf(`"untracked.cni/labels": "hep=redis-host", "untracked.cni/policy-files": %q, "untracked.cni/deny-files": %q`, path("*s.yaml")+","+path("policy.yaml"), path("deny.txt")))
	wantFindings(t, Files([]string{list}, nil))
	list = conflist(fmt.Sprintf(`"untracked.cni/deny-files": %q`, path("deny.txt")+","+path("more.txt")))
	wantFindings(t, Files([]string{list}, nil), list+":4:5: warning: untracked.cni/deny-files, ingress rule 1 can never match: untracked.cni/deny-files, ingress rule 0 takes")
	list = conflist(fmt.Sprintf(`"untracked.cni/policy-files": %q`, path("policy.yaml")+","+path("bogons.yaml")))
	wantFindings(t, Files([]string{list}, nil), path("policy.yaml")+":5:13: warning: policy bogons selects no host endpoint… [selects-nothing]")
	list = conflist(fmt.Sprintf(`"untracked.cni/policy-files": %q,
    "untracked.cni/deny-files": %q`, path("bad.yaml")+","+path("none.yaml"), path("bad.txt")+","+path("none.txt")))
	wantFindings(t, Files([]string{list}, nil),
		path("bad.yaml")+":1:7: error: …[invalid-resource]",
		list+":4:5: error: …none.yaml: no such file or directory; want a file, a directory or a glob [unreadable]",
		list+":5:5: error: …bad.txt:2:1: ",
		list+":5:5: error: …none.txt: no such file",
	)
}

func TestTooLarge(t *testing.T) {
	var names, ports []string
	for i := range 40 {
		names = append(names, fmt.Sprint("p", i))
		ports = append(ports, fmt.Sprintf("{name: p%d, protocol: TCP, port: %d}", i, i+1))
	}
	var text strings.Builder
	for i := range 40 { // each endpoint has its own ports, so that each name means another one on each
		fmt.Fprintf(&text, "---\napiVersion: projectcalico.org/v3\nkind: HostEndpoint\nmetadata: {name: h%d, labels: {hep: h}}\nspec: {node: node1, interfaceName: eth%d, expectedIPs: [192.0.2.%d], ports: [%s]}\n",
			i, i, i+1, ports[i])
	}
	fmt.Fprintf(&text, `---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: named}
spec:
  selector: has(hep)
  doNotTrack: true
  applyOnForward: true
  ingress:
    - {action: Deny, protocol: TCP, source: {ports: [%s]}, destination: {ports: [%s]}}
`, strings.Join(names, ","), strings.Join(names, ","))
	wantFindings(t, Inputs([]Input{{"large.yaml", []byte(text.String())}}), "large.yaml:210:7: error: policy named, ingress rule 0: …[too-large]")

	text.Reset()
	text.WriteString(redisEndpoint)
	for i := range 17 {
		fmt.Fprintf(&text, "---\napiVersion: projectcalico.org/v3\nkind: GlobalNetworkPolicy\nmetadata: {name: p%d}\nspec:\n  order: %d\n  selector: has(hep)\n  doNotTrack: true\n  applyOnForward: true\n  egress:\n", i, i)
		for n := range 1000 {
			fmt.Fprintf(&text, "    - {action: Deny, protocol: UDP, destination: {ports: [%d]}}\n", 10000+i*1000+n)
		}
	}
	wantFindings(t, Inputs([]Input{{"many.yaml", []byte(text.String())}}), "many.yaml: error: the policy of host endpoint node1-eth0 has … egress rules, at most 16384 are supported [too-large]")
}

// Whatever the text, there is an answer: every example, with a few bytes changed or left out.
func TestMutations(t *testing.T) {
	paths, err := filepath.Glob("testdata/*-*.*")
	if err != nil {
		t.Fatal(err)
	}
	paths = slices.DeleteFunc(paths, func(path string) bool { return filepath.Ext(path) == ".want" })
	r := rand.New(rand.NewPCG(1, 2))
	errors := 0
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for range 40 {
			changed := slices.Clone(data)
			for range 1 + r.IntN(2) {
				at := r.IntN(len(changed))
				if r.IntN(2) == 0 {
					changed = slices.Delete(changed, at, min(at+1+r.IntN(12), len(changed)))
				} else {
					changed[at] = data[r.IntN(len(data))]
				}
			}
			for _, f := range Inputs([]Input{{path, changed}}) {
				if f.Severity == Error {
					errors++
				}
				if f.File != path || f.Line < 0 || f.Message == "" || f.Line > 0 && f.Column < 1 {
					t.Fatalf("%+v of\n%s", f, changed)
				}
			}
		}
	}
	if errors < 100 {
		t.Errorf("only %d errors", errors)
	}
}

// A pipe among the files of a directory is refused; opened, it would block for ever.
func TestPipeInDirectory(t *testing.T) {
	dir := t.TempDir()
	pipe := filepath.Join(dir, "x.yaml")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	found := Files([]string{dir}, nil)
	if len(found) != 1 || found[0].File != pipe || found[0].Code != Unreadable || !strings.Contains(found[0].Message, "not a regular file") {
		t.Errorf("found %+v", found)
	}
}
