// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/test/lab"
)

// podsEnds are the addresses of a pod with those who call it from outside.
func (n *podsNode) ends(p pod) []trafficFamily {
	return []trafficFamily{
		{"ipv4", p.v4, n.u.Client4, policy.ICMP},
		{"ipv6", p.v6, n.u.Client6, policy.ICMPv6},
	}
}

// A pod's port is untracked for whoever calls it: from outside, from the host and from another pod, with the answers,
// through a firewall that drops INVALID. Its other ports stay tracked.
func TestPodsTraffic(t *testing.T) {
	n := newPods(t)
	redis := n.start("redis", map[string]string{"ports": "tcp/6379,udp/53"})
	other := n.start("other", nil)
	for _, port := range []uint16{6379, 6380} {
		must(lab.ServeTCP(redis.NS, port))(t)
	}
	must(lab.ServeUDP(redis.NS, 53))(t)
	must(lab.ServeTCP(other.NS, 6379))(t)
	if s := n.healthy(); s.Pods.Mode != "allow" || s.Pods.Count != 1 || s.Pods.Ports != 4 {
		t.Errorf("status: pods %+v, want one with 2 ports of 2 addresses", s.Pods)
	}
	for command, want := range map[string]string{"status": "allow: 1 with 4 ports untracked", "pods": redis.v4.String() + "," + redis.v6.String() + "  tcp/6379,udp/53  any"} {
		if out := must(n.lab.Untracked(command))(t); !strings.Contains(string(out.Stdout), want) {
			t.Errorf("%s: %s%s, want %q", command, out.Stdout, out.Stderr, want)
		}
	}
	for _, f := range n.ends(redis) {
		for name, from := range map[string]struct {
			ns      *lab.NS
			sources []netip.Addr
		}{"outside": {n.Client, f.clients}, "host": {n.Node, nil}, "pod": {other.NS, nil}} {
			t.Run(f.name+" from "+name, func(t *testing.T) {
				n := &podsNode{n.with(t), n.annotations}
				load := func(addr netip.Addr, port uint16) lab.Load {
					return lab.Load{Target: netip.AddrPortFrom(addr, port), Sources: from.sources, Count: 20}
				}
				check(t, lab.FlushFlows(n.Node))
				n.wantTCP(from.ns, load(f.node, 6379))
				n.wantUDP(from.ns, load(f.node, 53))
				n.wantFlows(0, lab.Port(6379))
				n.wantFlows(0, lab.Port(53))
				n.wantTCP(from.ns, load(f.node, 6380))
				if name != "pod" { // bridged, and nothing of IP's
					n.wantFlows(20, lab.Port(6380))
				}
			})
		}
	}
	// The same port of a pod that asked for nothing.
	check(t, lab.FlushFlows(n.Node))
	n.wantTCP(n.Client, lab.Load{Target: netip.AddrPortFrom(other.v4, 6379), Sources: n.u.Client4, Count: 20})
	n.wantFlows(20, lab.Port(6379))
	n.wantNoInvalid()

	must(n.chain.Check(redis.NS))(t)
	for _, question := range [][]string{
		{"tcp", "198.18.0.2:40000", redis.v4.String() + ":6379"},
		{"udp", "[" + n.u.Client6[0].String() + "]:40000", "[" + redis.v6.String() + "]:53"},
		{"--egress", "tcp", n.u.Node4.String() + ":40000", redis.v4.String() + ":6379"},
		{"--interface", "cni0", "tcp", redis.v4.String() + ":6379", "198.18.0.2:40000"},
	} {
		out := must(n.lab.Untracked(append([]string{"explain", "-o", "json"}, question...)...))(t)
		for _, want := range []string{`"verdict": "untracked"`, `"by": "pod"`, `"pod": "ns/pod"`} {
			if !strings.Contains(string(out.Stdout), want) {
				t.Errorf("explain %v: %s%s, want %s", question, out.Stdout, out.Stderr, want)
			}
		}
	}
	for _, ns := range []*lab.NS{redis.NS, other.NS} {
		must(n.chain.Del(ns))(t)
	}
	n.wantPods()
	n.wantElements(0)
}

// Who is not among the sources uses the port as well, tracked.
func TestPodsSources(t *testing.T) {
	n := newPods(t)
	p := n.start("pod", map[string]string{
		"ports": "tcp/6379", "sources": n.u.Client4[1].String() + "," + n.u.Client6[1].String() + ",192.0.2.0/24",
	})
	must(lab.ServeTCP(p.NS, 6379))(t)
	for _, f := range n.ends(p) {
		for i, want := range []int{20, 0, 20} {
			check(t, lab.FlushFlows(n.Node))
			n.wantTCP(n.Client, lab.Load{Target: netip.AddrPortFrom(f.node, 6379), Sources: f.clients[i : i+1], Count: 20})
			n.wantFlows(want, lab.Port(6379))
		}
	}
	n.wantNoInvalid()
	out := must(n.lab.Untracked("explain", "tcp", n.u.Client4[0].String()+":40000", p.v4.String()+":6379"))(t)
	if strings.Contains(string(out.Stdout), "ns/pod") {
		t.Errorf("explain: %s%s, want it by no pod", out.Stdout, out.Stderr)
	}
	must(n.chain.Del(p.NS))(t)
	n.wantElements(0)
}

// Between two pods of a bridge, whether the bridge hands its frames to netfilter, as Kubernetes wants it, or not: neither
// half of a flow is tracked, also of datagrams in fragments, of which only the first has ports.
func TestPodsBridged(t *testing.T) {
	n := newPods(t)
	p := n.start("pod", map[string]string{"ports": "tcp/6379,udp/53"})
	other := n.start("other", nil)
	must(lab.ServeTCP(p.NS, 6379))(t)
	for _, port := range []uint16{53, 54} {
		must(lab.ServeUDP(p.NS, port))(t)
	}
	for _, filter := range []string{"0", "1"} {
		for _, key := range []string{"net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"} {
			if err := lab.SetSysctl(n.Node, key, filter); err != nil && filter == "1" {
				t.Skip("needs br_netfilter")
			}
		}
		for _, f := range n.ends(p) {
			for _, size := range []int{18, 4000} {
				udp := func(port uint16) lab.Load {
					return lab.Load{Target: netip.AddrPortFrom(f.node, port), Count: 20, Payload: size}
				}
				check(t, lab.FlushFlows(n.Node))
				n.wantTCP(other.NS, lab.Load{Target: netip.AddrPortFrom(f.node, 6379), Count: 20})
				n.wantUDP(other.NS, udp(53))
				n.wantFlows(0, lab.Port(6379))
				n.wantFlows(0, lab.Port(53))
				n.wantUDP(other.NS, udp(54))
				if filter == "1" {
					n.wantFlows(20, lab.Port(54))
				}
				outside := udp(53)
				outside.Sources = f.clients
				n.wantUDP(n.Client, outside)
				n.wantFlows(0, lab.Port(53))
			}
		}
	}
	n.wantNoInvalid()
}

// A router's "too big" about an untracked flow of a pod reaches the pod.
func TestPodsPathMTU(t *testing.T) {
	for _, sources := range []string{"", "198.19.0.0/16,2001:db8:f::/48"} {
		n := newPods(t)
		far, families := n.narrow(1300)
		asks := map[string]string{"ports": "tcp/6379"}
		if sources != "" {
			asks["sources"] = sources
		}
		p := n.start("pod", asks)
		const size = 4 << 20
		learned := trafficLearner(t, p.NS, 6379, size)
		for i, f := range families {
			target := netip.AddrPortFrom([]netip.Addr{p.v4, p.v6}[i], 6379)
			c := trafficDial(t, far, f.clients[0], target)
			if err := trafficReceive(c, size); err != nil {
				t.Errorf("%s: %v", f.name, err)
			}
			select {
			case pmtu := <-learned:
				if pmtu != 1300 {
					t.Errorf("%s: the pod's TCP sends packets of %d bytes at most, want 1300", f.name, pmtu)
				}
			case <-time.After(trafficPatience):
				t.Errorf("%s: the pod did not send all", f.name)
			}
		}
		n.wantFlows(0, lab.Port(6379))
		n.wantNoInvalid()
	}
}

// That nobody serves a port of a pod reaches who calls it, through a firewall that drops INVALID: an error that the pod sends.
func TestPodsRefuses(t *testing.T) {
	n := newPods(t)
	p := n.start("pod", map[string]string{"ports": "udp/53"})
	sourced := n.start("sourced", map[string]string{"ports": "udp/53", "sources": "198.18.0.0/15,2001:db8::/32"})
	for _, p := range []pod{p, sourced} {
		for _, f := range n.ends(p) {
			r := must(lab.LoadUDP(n.Client, lab.Load{Target: netip.AddrPortFrom(f.node, 53), Sources: f.clients[:1], Count: 3}))(t)
			if r.Failed != 3 {
				t.Errorf("%s: %v, want all refused", f.node, r)
			}
		}
	}
	n.wantFlows(0, lab.Port(53))
	n.wantNoInvalid()
}

// What the policy denies never gets to the table of pods, on the way in and on the way out.
func TestPodsDenied(t *testing.T) {
	n := newPods(t, "deny", "198.18.0.3,2001:db8::3")
	p := n.start("pod", map[string]string{"ports": "tcp/6379,udp/53"})
	must(lab.ServeTCP(p.NS, 6379))(t)
	must(lab.ServeUDP(p.NS, 53))(t)
	for _, f := range n.ends(p) {
		for _, port := range []uint16{6379, 53} {
			n.wantSilence(n.Client, lab.Load{Target: netip.AddrPortFrom(f.node, port), Sources: f.clients[1:2], Count: 3})
		}
		n.wantTCP(n.Client, lab.Load{Target: netip.AddrPortFrom(f.node, 6379), Sources: f.clients[:1], Count: 3})
	}
	out := must(n.lab.Untracked("explain", "tcp", "198.18.0.3:40000", p.v4.String()+":6379"))(t)
	if !strings.Contains(string(out.Stdout), "denied") || strings.Contains(string(out.Stdout), "ns/pod") {
		t.Errorf("explain: %s%s, want it denied", out.Stdout, out.Stderr)
	}

	// On the way out: the bridge has an egress policy that denies.
	for _, key := range []string{"net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"} {
		_ = lab.SetSysctl(n.Node, key, "0") // only where br_netfilter is loaded, with which a bridge has no policy
	}
	n.annotations = map[string]string{"pods": "allow", "interfaces": "cni0", "mode": "tc", "policy": `
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: no-redis}
spec:
  doNotTrack: true
  applyOnForward: true
  selector: all()
  types: [Egress]
  egress:
  - {action: Deny, protocol: TCP, destination: {ports: [6379]}}
`}
	n.ask(nil)
	if code, out := n.applyFile(); code != 0 {
		t.Fatalf("apply: %s", out)
	}
	for _, f := range n.ends(p) {
		r := must(lab.LoadTCP(n.Node, lab.Load{Target: netip.AddrPortFrom(f.node, 6379), Count: 3, Timeout: trafficShort}))(t)
		if r.OK != 0 {
			t.Errorf("%s: denied on the way out, and %v", f.name, r)
		}
		n.wantUDP(n.Node, lab.Load{Target: netip.AddrPortFrom(f.node, 53), Count: 3})
	}
	n.wantFlows(0, lab.Port(53))
}
