// SPDX-License-Identifier: Apache-2.0

package node

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/untracked-cni/untracked/pkg/hostif"
)

const twoEndpoints = `
apiVersion: projectcalico.org/v3
kind: HostEndpoint
metadata: {name: uplink, labels: {role: uplink}}
spec: {node: n1, interfaceName: eth0}
---
apiVersion: projectcalico.org/v3
kind: HostEndpoint
metadata: {name: storage, labels: {role: storage}}
spec: {node: n1, interfaceName: "stor*"}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: web}
spec:
  selector: role == "uplink"
  doNotTrack: true
  applyOnForward: true
  ingress:
  - {action: Allow, protocol: TCP, destination: {ports: [80]}}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: iscsi}
spec:
  selector: role == "storage"
  doNotTrack: true
  applyOnForward: true
  ingress:
  - {action: Allow, protocol: TCP, source: {selector: role == "storage"}, destination: {ports: [3260]}}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: everywhere}
spec:
  order: 1
  selector: all()
  doNotTrack: true
  applyOnForward: true
  ingress:
  - {action: Deny, source: {nets: [192.0.2.0/24]}}
`

// TestAssign: each interface has the rules of its host endpoint, and the shorthand where the annotation says.
func TestAssign(t *testing.T) {
	path := filepath.Join(t.TempDir(), "policy.yaml")
	if err := os.WriteFile(path, []byte(twoEndpoints), 0o600); err != nil {
		t.Fatal(err)
	}
	d := desired(t, parse(t, map[string]string{
		"node": "n1", "interfaces": "eth0,eth9", "policy-files": path, "ports": "udp/53", "deny": "198.51.100.1",
		"failsafe-inbound": "none", "failsafe-outbound": "none", "labels": "role=other",
	}))
	var found []hostif.Interface
	for _, name := range []string{"eth0", "eth9", "stor1", "stor2"} {
		i := hostif.Interface{Name: name, Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/24")}}
		for _, s := range d.selectors() {
			if s.Kind == hostif.ByName && s.Pattern == name || s.Kind == hostif.ByGlob && strings.HasPrefix(name, "stor") {
				i.SelectedBy = append(i.SelectedBy, s)
			}
		}
		found = append(found, i)
	}
	assigned, lists, err := d.Assign(found)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][]string{
		"eth0":  {"uplink", "deny[0]", "default/everywhere[0]", "default/web[0]", "ports[0]"},
		"eth9":  {"implicit", "deny[0]", "default/everywhere[0]", "ports[0]"},
		"stor1": {"storage", "default/everywhere[0]", "default/iscsi[0]"},
		"stor2": {"storage", "default/everywhere[0]", "default/iscsi[0]"},
	}
	got := map[string][]string{}
	for name, a := range assigned {
		if a.Policy != lists[a.List].Hash {
			t.Errorf("%s: hash %s of list %d, which has %s", name, a.Policy, a.List, lists[a.List].Hash)
		}
		got[name] = append([]string{a.HostEndpoint}, names(lists[a.List].Ingress)...)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	if assigned["stor1"].List != assigned["stor2"].List || len(lists) != 3 {
		t.Errorf("%d lists, %v", len(lists), assigned)
	}
	// The endpoint's own address was learned from its interfaces.
	iscsi := lists[assigned["stor1"].List].Ingress[1]
	if !iscsi.Source.Nets.Contains(netip.MustParseAddr("10.0.0.1")) {
		t.Errorf("iscsi matches %s", iscsi.Match())
	}
	if want := path + ":30"; iscsi.Origin != want {
		t.Errorf("origin %q, want %q", iscsi.Origin, want)
	}
}

func TestResourceErrors(t *testing.T) {
	path := filepath.Join(t.TempDir(), "policy.yaml")
	if err := os.WriteFile(path, []byte("apiVersion: projectcalico.org/v3\nkind: Tier\nmetadata: {name: a}\nspec: {ordre: 3}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Read(parse(t, map[string]string{"policy-files": path, "policy": "kind: [", "deny-files": "/nonexistent"}))
	if err == nil || !IsConfigError(err) {
		t.Fatalf("accepted: %v", err)
	}
	for _, want := range []string{
		"untracked.cni/policy-files: " + path + ":4:8: Tier a: spec.ordre: ",
		"untracked.cni/policy:1:",
		"untracked.cni/deny-files: /nonexistent: ",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v\ndoes not say %q", err, want)
		}
	}
}

func TestNodeNameAdvice(t *testing.T) {
	for name, want := range map[string]string{
		"n2":      `HostEndpoints are of n1, none of this node, which is called "n2" (set untracked.cni/node to the name`,
		"n1.corp": `HostEndpoints are of n1, none of this node, which is called "n1.corp" (if this is n1, set untracked.cni/node to that`,
		"":        `HostEndpoints are of n1, and which of them this node is cannot be told: the host has no name (set untracked.cni/node)`,
		"N1":      `HostEndpoints are of n1, none of this node, which is called "N1" (if this is n1, set untracked.cni/node to that`,
		"n1":      ``,
	} {
		c := parse(t, map[string]string{"node": "n1", "policy": twoEndpoints})
		c.Node = name
		var got string
		for _, p := range advice(t, c) {
			if p.Code == ProblemNoHostEndpoint {
				got = p.String()
				if p.Broken {
					t.Error("pods would not start where the policy is required")
				}
			}
		}
		if !strings.HasPrefix(got, want) || want == "" && got != "" {
			t.Errorf("on %q: %s\nwant %s", name, got, want)
		}
	}
}

func TestEndpointAdvice(t *testing.T) {
	for _, c := range []struct {
		annotations map[string]string
		want        []string
	}{
		{map[string]string{"node": "n1", "policy": twoEndpoints}, nil},
		{map[string]string{"node": "n1", "policy": twoEndpoints + "---" + strings.Replace(twoEndpoints[:strings.Index(twoEndpoints, "---")], "uplink", "another", 1)}, []string{ProblemShadowed}},
		{map[string]string{"node": "n2", "policy": twoEndpoints}, []string{ProblemNoHostEndpoint}},
		{map[string]string{"node": "n2", "policy": strings.ReplaceAll(twoEndpoints, "all()", `role == "x"`)}, []string{ProblemNoHostEndpoint, ProblemEmptyPolicy}},
	} {
		var got []string
		for _, p := range advice(t, parse(t, c.annotations)) {
			if p.Code != ProblemNoInterface { // of the globs and names that this node does not have
				got = append(got, p.Code)
			}
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%v: -want +got\n%s", c.annotations["node"], diff)
		}
	}
}
