// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"io"
	"net"
	"net/netip"
	"testing"

	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/test/lab"
)

// In every mode and both families, what the policy names leaves the conntrack table and all else stays in it.
func TestTrafficModes(t *testing.T) {
	for _, mode := range trafficModes {
		t.Run(mode, func(t *testing.T) {
			n := newTraffic(t, lab.Config{})
			for _, port := range []uint16{6379, 8080} {
				must(lab.ServeTCP(n.Node, port))(t)
			}
			for _, port := range []uint16{5353, 5354} {
				must(lab.ServeUDP(n.Node, port))(t)
			}
			trafficAccept(t, n.Node, 7000, func(c net.Conn) error {
				_, err := io.Copy(c, c)
				return err
			})
			n.apply(map[string]string{"mode": mode, "interfaces": "eth0", "ports": "tcp/6379,tcp/7000,udp/5353"})
			if s := n.healthy(); len(s.Interfaces) != 1 || s.Interfaces[0].Mode != mode || !s.Interfaces[0].Attached {
				t.Fatalf("status: %+v, want eth0 attached in mode %s", s.Interfaces, mode)
			}
			hooks := must(lab.ReadHooks(n.Node, "eth0"))(t)
			if hooks.Generic != (mode == "generic") || (hooks.XDP == 0) != (mode == "tc") || len(hooks.TCXIngress) != 1 {
				t.Errorf("hooks %+v do not fit mode %s", hooks, mode)
			}
			for _, f := range n.families() {
				t.Run(f.name, func(t *testing.T) { n.with(t).wantModes(f) })
			}
			n.wantNoInvalid()
			if s := must(n.fw.States())(t); s.Untracked == 0 || s.New == 0 {
				t.Errorf("the firewall saw %+v, want untracked and new packets", s)
			}
			n.healthy()
		})
	}
}

func (n *trafficNode) wantModes(f trafficFamily) {
	load := func(port uint16, count uint64, payload int) lab.Load {
		return lab.Load{Target: netip.AddrPortFrom(f.node, port), Sources: f.clients, Count: count, Payload: payload}
	}
	tcp, udp, family := lab.Protocol(policy.TCP), lab.Protocol(policy.UDP), lab.Host(f.node)

	before := n.packets("eth0")
	n.wantTCP(n.Client, load(6379, 300, 0))
	n.wantUDP(n.Client, load(5353, 300, 0))
	after := n.packets("eth0")
	// A connection is at least SYN, ACK with request, RST; a datagram one packet.
	if got := after.Untracked - before.Untracked; got < 300*3+300 {
		n.Errorf("%d packets arrived untracked, want at least %d", got, 300*3+300)
	}
	n.wantFlows(0, tcp, family)
	n.wantFlows(0, udp, family)

	if err := trafficBulk(trafficDial(n, n.Client, f.clients[0], netip.AddrPortFrom(f.node, 7000)), 32<<20); err != nil {
		n.Errorf("bulk: %v; packets %+v, firewall %+v", err, n.packets("eth0"), must(n.fw.States())(n))
	}
	n.wantFlows(0, tcp, family)

	// The ports are in the first fragment only, yet the datagram is one to the policy, there and back.
	before = n.packets("eth0")
	for _, size := range []int{4000, 9000} {
		n.wantUDP(n.Client, load(5353, 40, size))
	}
	n.wantFlows(0, udp, family)
	after = n.packets("eth0")
	if got := after.Untracked - before.Untracked; got < 80 {
		n.Errorf("%d first fragments arrived untracked, want 80 at least", got)
	}
	if got := after.Fragment - before.Fragment; got < 40*2+40*6 {
		n.Errorf("%d later fragments arrived, want at least %d", got, 40*2+40*6)
	}

	// All else is tracked as ever.
	n.wantTCP(n.Client, load(8080, 50, 0))
	n.wantUDP(n.Client, load(5354, 50, 0))
	n.wantUDP(n.Client, load(5354, 5, 4000))
	n.wantFlows(50, tcp, family, lab.Port(8080))
	n.wantFlows(55, udp, family, lab.Port(5354))
	if err := trafficPing(n.Client, f.clients[0], f.node, 4711, trafficPatience); err != nil {
		n.Errorf("ping: %v", err)
	}
	n.wantFlows(1, lab.Protocol(f.icmp), family, func(flow *lab.Flow) bool { return flow.Replied() })
}
