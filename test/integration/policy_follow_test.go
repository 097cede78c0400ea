// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/untracked-cni/untracked/pkg/node"
	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/test/lab"
)

// policyAllow is a policy that takes TCP ports out for the endpoints with a role.
func policyAllow(name, role string, ports ...string) string {
	return fmt.Sprintf(`apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: %s}
spec:
  selector: role == "%s"
  doNotTrack: true
  applyOnForward: true
  ingress:
  - {action: Allow, protocol: TCP, destination: {ports: [%s]}}
---
`, name, role, strings.Join(ports, ", "))
}

func policyEndpoint(name, role, where string) string {
	return fmt.Sprintf(`apiVersion: projectcalico.org/v3
kind: HostEndpoint
metadata: {name: %s, labels: {role: %s}}
spec: {node: n1, %s}
---
`, name, role, where)
}

// Each interface has the rules of its own host endpoint, by name, by address, by glob, by "*", and by annotation.
func TestPolicyPerInterface(t *testing.T) {
	for _, mode := range []string{"native", "tc"} {
		t.Run(mode, func(t *testing.T) {
			n := newTraffic(t, lab.Config{Uplinks: 4})
			for port := uint16(8000); port < 8005; port++ {
				must(lab.ServeTCP(n.Node, port))(t)
			}
			n.applyPolicy(
				policyEndpoint("by-name", "name", "interfaceName: eth0")+
					policyEndpoint("by-address", "address", "expectedIPs: ["+n.lab.Uplinks[1].Node6.String()+"]")+
					policyEndpoint("any", "any", `interfaceName: "*"`)+
					policyAllow("for-name", "name", "8000")+policyAllow("for-address", "address", "8001")+
					policyAllow("for-any", "any", "8002")+policyAllow("for-all", `name" || role != "nobody`, "8004"),
				map[string]string{"node": "n1", "mode": mode, "interfaces": "eth0,eth1", "ports": "tcp/8003"})
			untracked := map[string][]uint16{
				"eth0": {8000, 8003, 8004}, "eth1": {8001, 8003, 8004}, "eth2": {8002, 8004}, "eth3": {8002, 8004},
			}
			endpoints := map[string]string{"eth0": "by-name", "eth1": "by-address", "eth2": "any", "eth3": "any"}
			for _, u := range n.lab.Uplinks {
				if got := n.iface(u.Name); got.HostEndpoint != endpoints[u.Name] || !got.Attached {
					t.Errorf("%s: %+v, want host endpoint %s", u.Name, got, endpoints[u.Name])
				}
				for port := uint16(8000); port < 8005; port++ {
					want := 10
					for _, p := range untracked[u.Name] {
						if p == port {
							want = 0
						}
					}
					n.wantTCP(n.Client, lab.Load{Target: netip.AddrPortFrom(u.Node4, port), Sources: u.Client4, Count: 10})
					n.wantFlows(want, lab.Host(u.Node4), lab.Port(port))
				}
			}
			n.wantNoInvalid()
			// One that is none of this node's host interfaces has no program.
			if out := must(n.lab.Untracked("status"))(t); strings.Contains(string(out.Stdout), "lo ") {
				t.Errorf("loopback has a policy:\n%s", out.Stdout)
			}
		})
	}
}

// What is changed on disk is in force at the next start of a pod; what is wrong is refused, and all stays as it was.
func TestPolicyFilesFollowed(t *testing.T) {
	n := newTraffic(t, lab.Config{Uplinks: 2})
	dir := filepath.Join(n.lab.Dir, "policies")
	check(t, os.Mkdir(dir, 0o700))
	write := func(name, text string) {
		t.Helper()
		check(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	write("endpoint.yaml", policyEndpoint("uplink", "web", "interfaceName: eth0"))
	write("web.yaml", policyAllow("web", "web", "80"))
	n.write(map[string]string{"node": "n1", "policy-files": dir})
	pods := 0
	add := func() (*lab.Outcome, error) {
		t.Helper()
		pods++
		pod := must(n.lab.AddNS(fmt.Sprintf("pod%d", pods)))(t)
		return n.chain.Add(pod)
	}
	generation := func() uint64 {
		t.Helper()
		s, _ := n.status()
		return s.Policy.Generation
	}
	rules := func() (names []string) {
		t.Helper()
		for _, r := range n.rules() {
			if r.Direction == policy.Ingress && r.Tier != "" {
				names = append(names, r.Policy+" "+r.Match)
			}
		}
		return names
	}
	must(add())(t)
	n.healthy()
	if got := fmt.Sprint(rules()); got != "[web tcp to port 80]" || generation() != 1 {
		t.Fatalf("rules %s, generation %d", got, generation())
	}
	must(add())(t)
	if generation() != 1 {
		t.Error("a pod that changes nothing made a new generation")
	}

	write("web.yaml", policyAllow("web", "web", "80", "443"))
	must(add())(t)
	if got := fmt.Sprint(rules()); got != "[web tcp to ports 80,443]" || generation() != 2 {
		t.Errorf("after an edit: rules %s, generation %d", got, generation())
	}
	write("more.yml", policyAllow("more", "web", "9000"))
	write("README.md", "not: [a resource")
	must(add())(t)
	if got := fmt.Sprint(rules()); got != "[more tcp to port 9000 web tcp to ports 80,443]" {
		t.Errorf("after a new file: rules %s", got)
	}

	before := generation()
	write("more.yml", strings.Replace(policyAllow("more", "web", "9000"), "doNotTrack: true", "doNotTrack: false", 1))
	if _, err := add(); err == nil || !strings.Contains(err.Error(), filepath.Join(dir, "more.yml")+":") || !strings.Contains(err.Error(), "GlobalNetworkPolicy more") {
		t.Errorf("a policy that is not untracked: %v", err)
	}
	if code, out := n.applyFile(); code != 2 || !strings.Contains(out, "GlobalNetworkPolicy more") {
		t.Errorf("apply: exit code %d\n%s", code, out)
	}
	if got := fmt.Sprint(rules()); got != "[more tcp to port 9000 web tcp to ports 80,443]" || generation() != before {
		t.Errorf("after a bad edit: rules %s, generation %d, want %d", got, generation(), before)
	}
	check(t, os.Remove(filepath.Join(dir, "more.yml")))
	must(add())(t)
	if got := fmt.Sprint(rules()); got != "[web tcp to ports 80,443]" {
		t.Errorf("after a file went: rules %s", got)
	}
	n.healthy()
}

// An endpoint's addresses are those that its interface has, when it has them.
func TestPolicyLearnsAddresses(t *testing.T) {
	n := newTraffic(t, lab.Config{})
	other := netip.MustParsePrefix("198.18.0.100/24")
	for _, ns := range []*lab.NS{n.Node} {
		must(lab.ServeTCP(ns, 6379))(t)
	}
	n.applyPolicy(policyEndpoint("uplink", "db", "interfaceName: eth0, ports: [{name: redis, protocol: TCP, port: 6379}]")+
		strings.Replace(policyAllow("db", "db", "redis"), "ports: [redis]", `selector: role == "db", ports: [redis]`, 1),
		map[string]string{"node": "n1"})
	load := func(target netip.Addr, want int) {
		t.Helper()
		n.wantTCP(n.Client, lab.Load{Target: netip.AddrPortFrom(target, 6379), Sources: n.u.Client4, Count: 10})
		n.wantFlows(want, lab.Host(target))
	}
	load(n.u.Node4, 0)
	check(t, lab.AddAddrs(n.Node, "eth0", other))
	load(other.Addr(), 10)
	n.problem(node.ProblemDrift, "eth0", "other addresses")
	pod := must(n.lab.AddNS("pod"))(t)
	must(n.chain.Add(pod))(t)
	n.wantFlows(0, lab.Host(other.Addr()))
	load(other.Addr(), 0)
	n.healthy()
	n.wantNoInvalid()
}

// Resources may stand in the entry itself, in two ways, next to files; the same name twice is an error.
func TestPolicyInTheEntry(t *testing.T) {
	n := newTraffic(t, lab.Config{})
	must(lab.ServeTCP(n.Node, 80))(t)
	check(t, os.WriteFile(n.policyFile(), []byte(policyEndpoint("uplink", "web", "interfaceName: eth0")), 0o600))
	tier := map[string]any{
		"apiVersion": "projectcalico.org/v3", "kind": "Tier", "metadata": map[string]any{"name": "first"}, "spec": map[string]any{"order": 1},
	}
	annotations := map[string]string{"node": "n1", "policy-files": n.policyFile(), "policy": policyAllow("web", "web", "80")}
	check(t, n.chain.Rewrite(lab.ChainConfig{Annotations: annotations, Entry: map[string]any{"resources": []any{tier}}}))
	if code, out := n.applyFile(); code != 0 {
		t.Fatalf("exit code %d\n%s", code, out)
	}
	n.wantTCP(n.Client, lab.Load{Target: netip.AddrPortFrom(n.u.Node4, 80), Sources: n.u.Client4, Count: 10})
	n.wantFlows(0, lab.Port(80))
	n.healthy() // also says that the record knows the entry's resources

	annotations["policy"] += policyAllow("web", "web", "81")
	check(t, n.chain.Rewrite(lab.ChainConfig{Annotations: annotations, Entry: map[string]any{"resources": []any{tier, tier}}}))
	code, out := n.applyFile()
	for _, want := range []string{"untracked.cni/policy:1", "GlobalNetworkPolicy web", "Tier first", n.chain.File + ":"} {
		if code != 2 || !strings.Contains(out, want) {
			t.Errorf("exit code %d, want 2 and %q:\n%s", code, want, out)
		}
	}
	n.healthy()
}

// However a host endpoint finds its interface, the next pod finds nothing to do.
func TestPolicySettles(t *testing.T) {
	for name, c := range map[string]struct {
		where   string
		prepare func(t *testing.T, n *trafficNode)
	}{
		"by alternative name": {"interfaceName: enp3s0", func(t *testing.T, n *trafficNode) {
			check(t, lab.In(n.Node, func() error {
				l, err := netlink.LinkByName("eth0")
				if err != nil {
					return err
				}
				return netlink.LinkAddAltName(l, "enp3s0")
			}))
		}},
		"by a link-local address": {"expectedIPs: [169.254.20.10]", func(t *testing.T, n *trafficNode) {
			check(t, lab.AddAddrs(n.Node, "eth0", netip.MustParsePrefix("169.254.20.10/32")))
		}},
		"by address":         {"expectedIPs: [198.18.0.1]", nil},
		"by glob":            {`interfaceName: "et?0"`, nil},
		"any":                {`interfaceName: "*"`, nil},
		"one that is absent": {"interfaceName: eth9", nil},
	} {
		t.Run(name, func(t *testing.T) {
			n := newTraffic(t, lab.Config{})
			if c.prepare != nil {
				c.prepare(t, n)
			}
			check(t, os.WriteFile(n.policyFile(), []byte(policyEndpoint("uplink", "web", c.where)+policyAllow("web", "web", "80")), 0o600))
			n.write(map[string]string{"node": "n1", "policy-files": n.policyFile()})
			for i := range 3 {
				pod := must(n.lab.AddNS(fmt.Sprintf("pod%d", i)))(t)
				must(n.chain.Add(pod))(t)
				must(n.chain.Check(pod))(t)
				if s, _ := n.status(); s.Policy.Generation != 1 {
					t.Fatalf("pod %d: generation %d, want 1: %+v", i+1, s.Policy.Generation, s.Problems)
				}
			}
			want := "uplink"
			if name == "one that is absent" {
				want = "implicit"
			}
			if got := n.iface("eth0").HostEndpoint; got != want {
				t.Errorf("host endpoint %q, want %q", got, want)
			}
		})
	}
}

// An address that comes or goes, such as a virtual one, fails no pod's CHECK, and is no reason to apply a policy that
// does not ask for addresses.
func TestPolicyAddressesMove(t *testing.T) {
	n := newTraffic(t, lab.Config{})
	vip := netip.MustParsePrefix("198.18.0.77/32")
	byAddress := strings.Replace(policyAllow("db", "db", "6379"), "destination:", `destination: {selector: role == "db"}, source:`, 1)
	for text, want := range map[string]uint64{policyAllow("db", "db", "6379"): 0, byAddress: 1} {
		n.applyPolicy(policyEndpoint("uplink", "db", "interfaceName: eth0")+text, map[string]string{"node": "n1"})
		before, _ := n.status()
		pod := must(n.lab.AddNS(fmt.Sprintf("pod%d", want)))(t)
		must(n.chain.Add(pod))(t)
		check(t, lab.AddAddrs(n.Node, "eth0", vip))
		must(n.chain.Check(pod))(t)
		must(n.chain.Add(must(n.lab.AddNS(fmt.Sprintf("next%d", want)))(t)))(t)
		if after, _ := n.status(); after.Policy.Generation != before.Policy.Generation+want {
			t.Errorf("generation %d, then %d, want %d more", before.Policy.Generation, after.Policy.Generation, want)
		}
		check(t, lab.In(n.Node, func() error {
			l, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			return netlink.AddrDel(l, &netlink.Addr{IPNet: confIPNet(vip, vip.Addr())})
		}))
	}
}
