// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/test/lab"
)

// A connection that is already tracked loses its entry the moment it becomes untracked, and goes on. When the
// policy goes away it is tracked again, and goes on.
func TestTrafficEvict(t *testing.T) {
	n := newTraffic(t, lab.Config{})
	must(lab.ServeTCP(n.Node, 6379))(t)
	must(lab.ServeTCP(n.Node, 8080))(t)
	must(lab.ServeTCP(n.Client, 9000))(t)
	must(lab.ServeUDP(n.Node, 5353))(t)
	for _, f := range n.families() {
		arriving := trafficDial(t, n.Client, f.clients[0], netip.AddrPortFrom(f.node, 6379))
		leaving := trafficDial(t, n.Node, f.node, netip.AddrPortFrom(f.clients[0], 9000))
		other := trafficDial(t, n.Client, f.clients[0], netip.AddrPortFrom(f.node, 8080))
		all := []net.Conn{arriving, leaving, other}
		ask := func(when string) {
			t.Helper()
			for _, c := range all {
				if err := trafficAsk(c); err != nil {
					t.Errorf("%s, %s -> %s %s: %v", f.name, c.LocalAddr(), c.RemoteAddr(), when, err)
				}
			}
		}
		n.wantUDP(n.Client, lab.Load{Target: netip.AddrPortFrom(f.node, 5353), Sources: f.clients, Count: 10})
		ask("before")
		n.wantFlows(3, lab.Protocol(policy.TCP), lab.Host(f.clients[0]))
		n.wantFlows(10, lab.Protocol(policy.UDP), lab.Host(f.node), lab.Port(5353))

		n.apply(map[string]string{"ports": "tcp/6379,udp/5353", "remote-ports": "tcp/9000"})
		n.wantFlows(1, lab.Protocol(policy.TCP), lab.Host(f.clients[0]))
		n.wantFlows(1, lab.Port(8080), lab.Host(f.clients[0]))
		n.wantFlows(0, lab.Protocol(policy.UDP), lab.Host(f.node), lab.Port(5353))
		ask("after")
		n.wantFlows(1, lab.Protocol(policy.TCP), lab.Host(f.clients[0]))

		out := must(n.lab.Untracked("remove"))(t)
		if out.ExitCode != 0 {
			t.Fatalf("remove: %s", out.Stderr)
		}
		ask("after removal")
		n.wantFlows(3, lab.Protocol(policy.TCP), lab.Host(f.clients[0]))
		for _, c := range all {
			c.Close()
		}
	}
	n.wantNoInvalid()
}

// A translated flow keeps its entry: without it, its packets would go nowhere.
func TestTrafficEvictNotNAT(t *testing.T) {
	n := newTraffic(t, lab.Config{})
	pod, _, _ := n.pod()
	must(lab.ServeTCP(n.Node, 6380))(t)
	must(lab.ServeTCP(n.Client, 9000))(t)
	// tcp dport 6379 redirect to :6380
	check(t, trafficNAT(n.Node, nftables.ChainHookPrerouting, *nftables.ChainPriorityNATDest,
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, 6379)},
		&expr.Immediate{Register: 1, Data: binary.BigEndian.AppendUint16(nil, 6380)},
		&expr.Redir{RegisterProtoMin: 1, Flags: unix.NF_NAT_RANGE_PROTO_SPECIFIED},
	))
	for _, f := range n.families() {
		redirected := trafficDial(t, n.Client, f.clients[0], netip.AddrPortFrom(f.node, 6379))
		forwarded := trafficDial(t, pod, netip.Addr{}, netip.AddrPortFrom(f.clients[0], 9000))
		for _, c := range []net.Conn{redirected, forwarded} {
			check(t, trafficAsk(c))
		}
	}
	translated := func(flow *lab.Flow) bool { return flow.ReplySource.Port() == 6380 }
	n.wantFlows(2, lab.Port(6379), translated)
	n.wantFlows(2, lab.Port(9000))
	n.apply(map[string]string{"interfaces": "eth0", "ports": "tcp/6379,tcp/9000"})
	n.wantFlows(2, lab.Port(6379), translated)
	n.wantFlows(2, lab.Port(9000))
}

// Flows over an interface that the policy does not cover keep their entries.
func TestTrafficEvictOtherInterface(t *testing.T) {
	n := newTraffic(t, lab.Config{Uplinks: 2})
	must(lab.ServeTCP(n.Node, 6379))(t)
	must(lab.ServeTCP(n.Client, 9000))(t)
	covered, other := n.lab.Uplinks[0], n.lab.Uplinks[1]
	var conns []net.Conn
	for _, u := range []lab.Uplink{covered, other} {
		for _, f := range []struct{ node, client netip.Addr }{{u.Node4, u.Client4[0]}, {u.Node6, u.Client6[0]}} {
			conns = append(conns,
				trafficDial(t, n.Client, f.client, netip.AddrPortFrom(f.node, 6379)),
				trafficDial(t, n.Node, f.node, netip.AddrPortFrom(f.client, 9000)))
		}
	}
	for _, c := range conns {
		check(t, trafficAsk(c))
	}
	n.apply(map[string]string{"interfaces": covered.Name, "ports": "tcp/6379", "remote-ports": "tcp/9000"})
	for _, client := range []netip.Addr{covered.Client4[0], covered.Client6[0]} {
		n.wantFlows(0, lab.Protocol(policy.TCP), lab.Host(client))
	}
	for _, client := range []netip.Addr{other.Client4[0], other.Client6[0]} {
		n.wantFlows(2, lab.Protocol(policy.TCP), lab.Host(client))
	}
	for _, c := range conns {
		if err := trafficAsk(c); err != nil {
			t.Errorf("%s -> %s: %v", c.LocalAddr(), c.RemoteAddr(), err)
		}
	}
	n.wantNoInvalid()
}
