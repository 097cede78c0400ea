// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/test/lab"
)

// Every file of conf/policies is put in force as it is, but for the addresses, and does what its comment says.

const policyExamples = "../../conf/policies"

// policyExample copies an example with other addresses, and applies it on node-1, as all of them call theirs.
func (n *trafficNode) policyExample(name string, addresses ...string) {
	n.Helper()
	text := must(os.ReadFile(filepath.Join(policyExamples, name)))(n)
	localised := strings.NewReplacer(addresses...).Replace(string(text))
	for i := 0; i < len(addresses); i += 2 {
		if !strings.Contains(string(text), addresses[i]) {
			n.Fatalf("%s has no %s", name, addresses[i])
		}
	}
	n.applyPolicy(localised, map[string]string{"node": "node-1"})
}

// policyFile is where applyPolicy writes its resources.
func (n *trafficNode) policyFile() string { return filepath.Join(n.lab.Dir, "policy.yaml") }

// applyPolicy puts resources in force from a file.
func (n *trafficNode) applyPolicy(resources string, annotations map[string]string) {
	n.Helper()
	check(n, os.WriteFile(n.policyFile(), []byte(resources), 0o600))
	all := map[string]string{"policy-files": n.policyFile()}
	for k, v := range annotations {
		all[k] = v
	}
	n.apply(all)
}

// lintClean wants `untracked lint` to find nothing in a file.
func (n *trafficNode) lintClean(path string) {
	n.Helper()
	out := must(n.lab.Untracked("lint", "-o", "json", path))(n)
	var findings []map[string]any
	if err := json.Unmarshal(out.Stdout, &findings); err != nil {
		n.Fatalf("lint: exit code %d, %v\n%s%s", out.ExitCode, err, out.Stdout, out.Stderr)
	}
	if len(findings) > 0 || out.ExitCode != 0 {
		n.Errorf("lint of %s: exit code %d, %v", path, out.ExitCode, findings)
	}
}

func TestPolicyExamplesAreClean(t *testing.T) {
	n := newTraffic(t, lab.Config{})
	examples := must(filepath.Glob(filepath.Join(policyExamples, "*.yaml")))(t)
	if len(examples) < 6 {
		t.Errorf("only %d examples", len(examples))
	}
	text := string(must(os.ReadFile("../../conf/README.md"))(t))
	for _, path := range examples {
		n.lintClean(path)
		if name := filepath.Base(path); !strings.Contains(text, "(policies/"+name+")") {
			t.Errorf("conf/README.md does not name policies/%s", name)
		}
	}
}

func TestPolicyExampleRedis(t *testing.T) {
	n := newTraffic(t, lab.Config{})
	for _, port := range []uint16{6379, 8080} {
		must(lab.ServeTCP(n.Node, port))(t)
	}
	n.policyExample("redis.yaml")
	n.healthy()
	if got := n.iface("eth0").HostEndpoint; got != "redis-host" {
		t.Errorf("host endpoint %q, want redis-host", got)
	}
	for _, f := range n.families() {
		n.wantTCP(n.Client, lab.Load{Target: netip.AddrPortFrom(f.node, 6379), Sources: f.clients, Count: 100})
		n.wantTCP(n.Client, lab.Load{Target: netip.AddrPortFrom(f.node, 8080), Sources: f.clients, Count: 20})
	}
	n.wantFlows(0, lab.Port(6379))
	n.wantFlows(40, lab.Port(8080))
	for _, d := range []policy.Direction{policy.Ingress, policy.Egress} {
		r := n.rule(d, "redis", 0)
		if r.Packets < 200*3 || r.Tier != "default" || !strings.HasPrefix(r.Origin, n.policyFile()+":") {
			t.Errorf("%s: %+v, want at least 600 packets, tier default, and the line of %s", d, r, n.policyFile())
		}
	}
	n.wantNoInvalid()
}

func TestPolicyExampleDNS(t *testing.T) {
	n := newTraffic(t, lab.Config{})
	must(lab.ServeTCP(n.Node, 53))(t)
	must(lab.ServeUDP(n.Node, 53))(t)
	n.policyExample("dns.yaml")
	for _, f := range n.families() {
		n.wantTCP(n.Client, lab.Load{Target: netip.AddrPortFrom(f.node, 53), Sources: f.clients, Count: 50})
		n.wantUDP(n.Client, lab.Load{Target: netip.AddrPortFrom(f.node, 53), Sources: f.clients, Count: 200})
	}
	n.wantFlows(0, lab.Port(53))
	// What this host asks of others is a failsafe port.
	must(lab.ServeUDP(n.Client, 53))(t)
	n.wantUDP(n.Node, lab.Load{Target: netip.AddrPortFrom(n.u.Client4[0], 53), Sources: []netip.Addr{n.u.Node4}, Count: 10})
	n.wantFlows(10, lab.Port(53))
	n.wantNoInvalid()
}

func TestPolicyExampleMemcached(t *testing.T) {
	n := newTraffic(t, lab.Config{})
	must(lab.ServeTCP(n.Node, 11211))(t)
	must(lab.ServeUDP(n.Node, 11211))(t)
	n.policyExample("memcached.yaml",
		"10.20.0.0/16", n.u.Client4[0].String()+"/32", "2001:db8:20::/48", n.u.Client6[0].String()+"/128")
	for _, f := range n.families() {
		target := netip.AddrPortFrom(f.node, 11211)
		n.wantTCP(n.Client, lab.Load{Target: target, Sources: f.clients[:1], Count: 50})
		n.wantUDP(n.Client, lab.Load{Target: target, Sources: f.clients[:1], Count: 50})
		n.wantFlows(0, lab.Host(f.clients[0]), lab.Port(11211))
		// Others: TCP as before, UDP not at all.
		n.wantTCP(n.Client, lab.Load{Target: target, Sources: f.clients[1:2], Count: 10})
		r := must(lab.LoadUDP(n.Client, lab.Load{Target: target, Sources: f.clients[1:2], Count: 10, Timeout: trafficShort}))(t)
		if r.Timeouts != 10 {
			t.Errorf("%s: udp from another network: %v, want 10 time-outs", f.name, r)
		}
		n.wantFlows(10, lab.Host(f.clients[1]), lab.Port(11211))
	}
	if r := n.rule(policy.Ingress, "memcached", 2); r.Packets != 20 || r.Action != "Deny" {
		t.Errorf("%+v, want 20 packets denied", r)
	}
	n.wantNoInvalid()
}

func TestPolicyExampleIngressNode(t *testing.T) {
	n := newTraffic(t, lab.Config{Uplinks: 2})
	for _, port := range []uint16{80, 443, 8080} {
		must(lab.ServeTCP(n.Node, port))(t)
	}
	n.policyExample("ingress-node.yaml")
	for _, u := range n.lab.Uplinks {
		trafficEchoUDP(t, n.Node, netip.AddrPortFrom(u.Node4, 443))
		trafficEchoUDP(t, n.Node, netip.AddrPortFrom(u.Node6, 443))
		if got := n.iface(u.Name).HostEndpoint; got != "ingress-uplinks" {
			t.Errorf("%s: host endpoint %q", u.Name, got)
		}
		for _, target := range []netip.Addr{u.Node4, u.Node6} {
			sources := u.Client4
			if target.Is6() {
				sources = u.Client6
			}
			n.wantTCP(n.Client, lab.Load{Target: netip.AddrPortFrom(target, 80), Sources: sources, Count: 20})
			n.wantTCP(n.Client, lab.Load{Target: netip.AddrPortFrom(target, 443), Sources: sources, Count: 20})
			n.wantUDP(n.Client, lab.Load{Target: netip.AddrPortFrom(target, 443), Sources: sources, Count: 20})
			n.wantTCP(n.Client, lab.Load{Target: netip.AddrPortFrom(target, 8080), Sources: sources, Count: 5})
		}
	}
	n.wantFlows(0, lab.Port(80))
	n.wantFlows(0, lab.Port(443))
	n.wantFlows(20, lab.Port(8080))
	n.wantNoInvalid()
}

func TestPolicyExampleDenyList(t *testing.T) {
	n := newTraffic(t, lab.Config{})
	must(lab.ServeTCP(n.Node, 8080))(t)
	must(lab.ServeUDP(n.Node, 8080))(t)
	must(lab.ServeTCP(n.Client, 8081))(t)
	n.policyExample("deny-list.yaml",
		"198.51.100.7/32", n.u.Client4[1].String()+"/32", "2001:db8:bad::/48", n.u.Client6[1].String()+"/128")
	for _, f := range n.families() {
		target := netip.AddrPortFrom(f.node, 8080)
		n.wantSilence(n.Client, lab.Load{Target: target, Sources: f.clients[1:2], Count: 10})
		n.wantTCP(n.Client, lab.Load{Target: target, Sources: f.clients[2:3], Count: 10})
		if conn, err := lab.Dial(n.Node, "tcp", f.node, netip.AddrPortFrom(f.clients[1], 8081), trafficShort); err == nil {
			conn.Close()
			t.Errorf("%s: the node could call a denied address", f.name)
		}
	}
	logged, denied := n.rule(policy.Ingress, "blocklist.unwanted", 0), n.rule(policy.Ingress, "blocklist.unwanted", 1)
	if logged.Action != "Log" || denied.Action != "Deny" || denied.Packets < 40 || logged.Packets != denied.Packets || denied.Tier != "blocklist" {
		t.Errorf("logged %+v\ndenied %+v\nwant at least 40 packets each", logged, denied)
	}
	if r := n.rule(policy.Egress, "blocklist.unwanted", 0); r.Packets == 0 {
		t.Errorf("nothing was denied on the way out: %+v", r)
	}
	n.wantFlows(20, lab.Port(8080))
	n.wantNoInvalid()
}

func TestPolicyExampleOverlay(t *testing.T) {
	const port = 4789
	n := newTraffic(t, lab.Config{})
	n.policyExample("overlay.yaml", "10.10.0.0/24", n.u.Client4[0].String()+"/32")
	inner := confTunnel(t, n.Node, n.u.Node4, n.u.Client4[0], port, "10.244.0.1/16")
	peer := confTunnel(t, n.Client, n.u.Client4[0], n.u.Node4, port, "10.244.1.1/16")
	must(lab.ServeTCP(n.Client, 80))(t)
	conn := must(lab.Dial(n.Node, "tcp", inner, netip.AddrPortFrom(peer, 80), 5*time.Second))(t)
	conn.Close()
	n.wantFlows(0, lab.Protocol(unix.IPPROTO_UDP))
	if flows := must(lab.CountFlows(n.Node, lab.Protocol(unix.IPPROTO_TCP), lab.Port(80)))(t); flows == 0 {
		t.Error("the inner flow is not tracked")
	}
	for _, d := range []policy.Direction{policy.Ingress, policy.Egress} {
		if r := n.rule(d, "overlay", 0); r.Packets == 0 {
			t.Errorf("%s: no packet of the tunnel matched", d)
		}
	}
	// To everybody else the port is closed.
	before := n.packets("eth0").Denied
	r := must(lab.LoadUDP(n.Client, lab.Load{Target: netip.AddrPortFrom(n.u.Node4, port), Sources: n.u.Client4[1:2], Count: 5, Timeout: trafficShort}))(t)
	if got := n.packets("eth0").Denied - before; got != 5 || r.OK != 0 {
		t.Errorf("%d packets of a stranger denied (%v), want 5", got, r)
	}
}
