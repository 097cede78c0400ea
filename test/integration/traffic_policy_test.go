// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/test/lab"
)

// A denied source gets no answer of any kind, is counted, and leaves no conntrack entry; its neighbours are served.
func TestTrafficDeny(t *testing.T) {
	for _, mode := range trafficModes {
		t.Run(mode, func(t *testing.T) {
			n := newTraffic(t, lab.Config{})
			tcp := must(lab.ServeTCP(n.Node, 8080))(t)
			udp := must(lab.ServeUDP(n.Node, 8080))(t)
			n.apply(map[string]string{
				"mode": mode, "ports": "tcp/6379",
				"deny": n.u.Client4[1].String() + "," + netip.PrefixFrom(n.u.Client6[1], 128).String(),
			})
			capture := must(lab.NewCapture(n.Client, "eth0"))(t)
			defer capture.Close()
			for _, f := range n.families() {
				n := n.with(t)
				before := n.packets("eth0")
				n.wantSilence(n.Client, lab.Load{Target: netip.AddrPortFrom(f.node, 8080), Sources: f.clients[1:2], Count: 10})
				if err := trafficPing(n.Client, f.clients[1], f.node, 1, trafficShort); !trafficNoAnswer(err) {
					t.Errorf("%s: ping from the denied source: %v, want no answer", f.name, err)
				}
				// 10 SYNs, 10 datagrams and a ping; what TCP sends again comes on top.
				if got := n.packets("eth0").Denied - before.Denied; got < 21 {
					t.Errorf("%s: %d packets denied, want at least 21", f.name, got)
				}
				n.wantFlows(0, lab.Host(f.clients[1]), func(flow *lab.Flow) bool { return flow.Protocol != 58 || flow.Source.Addr() == f.clients[1] })
				n.wantTCP(n.Client, lab.Load{Target: netip.AddrPortFrom(f.node, 8080), Sources: f.clients[2:3], Count: 10})
				n.wantUDP(n.Client, lab.Load{Target: netip.AddrPortFrom(f.node, 8080), Sources: f.clients[2:3], Count: 10})
			}
			if tcp.Served() != 20 || udp.Served() != 20 {
				t.Errorf("served %d and %d requests, want 20 and 20", tcp.Served(), udp.Served())
			}
			// Nothing but address resolution came back to the denied source.
			for {
				frame, leaving, err := capture.Next(time.Millisecond, nil)
				if errors.Is(err, lab.ErrNoFrame) {
					break
				}
				check(t, err)
				if to, ok := trafficDestination(frame); ok && !leaving && slices.Contains([]netip.Addr{n.u.Client4[1], n.u.Client6[1]}, to) {
					t.Errorf("the denied source got a frame: %x", frame)
				}
			}
			rule := n.rule(policy.Ingress, policy.DenyAnnotation, 0)
			if got := n.packets("eth0").Denied; rule.Packets != got || rule.Bytes < 20*got || rule.Action != "Deny" {
				t.Errorf("rule %+v, want the %d packets denied", rule, got)
			}
			n.wantNoInvalid()
		})
	}
}

// trafficDestination is where an IP packet goes that is no neighbour discovery.
func trafficDestination(frame []byte) (netip.Addr, bool) {
	switch {
	case len(frame) >= 34 && binary.BigEndian.Uint16(frame[12:]) == unix.ETH_P_IP:
		return netip.AddrFrom4([4]byte(frame[30:34])), true
	case len(frame) > 54 && binary.BigEndian.Uint16(frame[12:]) == unix.ETH_P_IPV6:
		discovery := frame[20] == policy.ICMPv6 && frame[54] >= 133 && frame[54] <= 136
		return netip.AddrFrom16([16]byte(frame[38:54])), !discovery
	}
	return netip.Addr{}, false
}

// With everything denied, the failsafe port still answers and neighbours are still found; all else is dropped.
func TestTrafficDenyEverything(t *testing.T) {
	for _, mode := range trafficModes {
		t.Run(mode, func(t *testing.T) {
			n := newTraffic(t, lab.Config{})
			for _, port := range []uint16{22, 8080} {
				must(lab.ServeTCP(n.Node, port))(t)
			}
			must(lab.ServeUDP(n.Node, 8080))(t)
			n.apply(map[string]string{"mode": mode, "deny": "0.0.0.0/0,::/0", "ports": "tcp/6379"})
			// Both sides have to find each other anew.
			trafficForgetNeighbours(t, n.Node, "eth0")
			trafficForgetNeighbours(t, n.Client, "eth0")
			for _, f := range n.families() {
				n.wantTCP(n.Client, lab.Load{Target: netip.AddrPortFrom(f.node, 22), Sources: f.clients[:2], Count: 20})
				n.wantFlows(20, lab.Protocol(policy.TCP), lab.Port(22), lab.Host(f.node))
				n.wantSilence(n.Client, lab.Load{Target: netip.AddrPortFrom(f.node, 8080), Sources: f.clients[:2], Count: 10})
				if err := trafficPing(n.Client, f.clients[0], f.node, 2, trafficShort); !trafficNoAnswer(err) {
					t.Errorf("%s: ping: %v, want no answer", f.name, err)
				}
				n.wantFlows(0, lab.Port(8080))
			}
			// Once more, now asked by the node: its discovery is answered and the answer not denied.
			trafficForgetNeighbours(t, n.Node, "eth0")
			n.wantTCP(n.Client, lab.Load{Target: netip.AddrPortFrom(n.u.Node6, 22), Sources: n.u.Client6[2:3], Count: 5})
			if p := n.packets("eth0"); p.Denied < 40 || p.Failsafe < 40*3 {
				t.Errorf("packets %+v, want at least 40 denied and 120 failsafe", p)
			}
			n.wantNoInvalid()
		})
	}
}

// trafficForgetNeighbours empties an interface's neighbour tables.
func trafficForgetNeighbours(t testing.TB, ns *lab.NS, ifname string) {
	t.Helper()
	check(t, lab.In(ns, func() error {
		l, err := netlink.LinkByName(ifname)
		if err != nil {
			return err
		}
		neighbours, err := netlink.NeighList(l.Attrs().Index, netlink.FAMILY_ALL)
		if err != nil {
			return err
		}
		for i := range neighbours {
			if neighbours[i].State&unix.NUD_NOARP == 0 {
				_ = netlink.NeighDel(&neighbours[i]) // some are not there any more
			}
		}
		return nil
	}))
}

// sources and destinations limit which peers' flows are untracked; others are served, tracked.
func TestTrafficPeers(t *testing.T) {
	n := newTraffic(t, lab.Config{})
	must(lab.ServeTCP(n.Node, 6379))(t)
	for _, f := range n.families() {
		trafficEchoUDP(t, n.Client, netip.AddrPortFrom(f.clients[2], 5353))
		trafficEchoUDP(t, n.Client, netip.AddrPortFrom(f.clients[3], 5353))
	}
	n.apply(map[string]string{
		"ports": "tcp/6379", "sources": n.u.Client4[0].String() + "," + n.u.Client6[0].String(),
		"remote-ports": "udp/5353", "destinations": n.u.Client4[2].String() + "," + n.u.Client6[2].String(),
	})
	for _, f := range n.families() {
		in := lab.Load{Target: netip.AddrPortFrom(f.node, 6379), Count: 20}
		in.Sources = f.clients[:1]
		n.wantTCP(n.Client, in)
		n.wantFlows(0, lab.Host(f.clients[0]), lab.Protocol(policy.TCP))
		in.Sources = f.clients[1:2]
		n.wantTCP(n.Client, in)
		n.wantFlows(20, lab.Host(f.clients[1]), lab.Protocol(policy.TCP))

		n.wantUDP(n.Node, lab.Load{Target: netip.AddrPortFrom(f.clients[2], 5353), Count: 20})
		n.wantFlows(0, lab.Host(f.clients[2]), lab.Protocol(policy.UDP))
		n.wantUDP(n.Node, lab.Load{Target: netip.AddrPortFrom(f.clients[3], 5353), Count: 20})
		n.wantFlows(20, lab.Host(f.clients[3]), lab.Protocol(policy.UDP))
	}
	n.wantNoInvalid()
	n.healthy()
}

// The host's own calls to remote-ports leave no entry, and the answers find their way back.
func TestTrafficRemotePorts(t *testing.T) {
	for _, mode := range trafficModes {
		t.Run(mode, func(t *testing.T) {
			n := newTraffic(t, lab.Config{})
			must(lab.ServeTCP(n.Client, 9000))(t)
			must(lab.ServeTCP(n.Client, 9001))(t)
			for _, f := range n.families() {
				trafficEchoUDP(t, n.Client, netip.AddrPortFrom(f.clients[0], 5353))
			}
			n.apply(map[string]string{"mode": mode, "remote-ports": "tcp/9000,udp/5353"})
			for _, f := range n.families() {
				to := func(port uint16, count uint64, payload int) lab.Load {
					return lab.Load{Target: netip.AddrPortFrom(f.clients[0], port), Count: count, Payload: payload}
				}
				before := n.packets("eth0")
				n.wantTCP(n.Node, to(9000, 50, 0))
				n.wantUDP(n.Node, to(5353, 50, 0))
				if got := n.packets("eth0").Untracked - before.Untracked; got < 50*2+50 {
					t.Errorf("%s: %d answers arrived untracked, want at least %d", f.name, got, 50*2+50)
				}
				n.wantUDP(n.Node, to(5353, 10, 4000))
				n.wantUDP(n.Node, to(5353, 10, 9000))
				n.wantFlows(0, lab.Port(9000))
				n.wantFlows(0, lab.Port(5353))
				n.wantTCP(n.Node, to(9001, 20, 0))
				n.wantFlows(20, lab.Port(9001), lab.Host(f.clients[0]))
			}
			if r := n.rule(policy.Egress, policy.RemotePortsAnnotation, 1); r.Packets < 2*70 || r.Action != "Allow" {
				t.Errorf("egress rule %+v, want the datagrams of udp/5353", r)
			}
			n.wantNoInvalid()
			n.healthy()
		})
	}
}

// A failsafe port stays tracked although the policy names it, and status says so.
func TestTrafficFailsafe(t *testing.T) {
	n := newTraffic(t, lab.Config{})
	must(lab.ServeTCP(n.Node, 22))(t)
	n.apply(map[string]string{"ports": "tcp/22,tcp/6379"})
	n.problem("failsafe-port", "tcp/22")
	for _, f := range n.families() {
		n.wantTCP(n.Client, lab.Load{Target: netip.AddrPortFrom(f.node, 22), Sources: f.clients[:1], Count: 20})
		n.wantFlows(20, lab.Port(22), lab.Host(f.node))
	}
	if r := n.rule(policy.Ingress, policy.PortsAnnotation, 0); r.Packets != 0 {
		t.Errorf("rule %+v, want no packet: the failsafe stands before it", r)
	}

	// Without failsafes the same port is untracked.
	n.apply(map[string]string{"ports": "tcp/22", "failsafe-inbound": "none", "failsafe-outbound": "none"})
	n.healthy()
	for _, f := range n.families() {
		n.wantTCP(n.Client, lab.Load{Target: netip.AddrPortFrom(f.node, 22), Sources: f.clients[1:2], Count: 20})
		n.wantFlows(0, lab.Port(22), lab.Host(f.clients[1]))
	}
	n.wantNoInvalid()
}
