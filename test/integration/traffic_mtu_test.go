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

// With an MTU that no single buffer holds, the twin for packets in several buffers is attached, and such packets
// are classified as any others.
func TestTrafficLargeMTU(t *testing.T) {
	for _, mode := range []string{"auto", "native", "generic", "tc"} {
		t.Run(mode, func(t *testing.T) {
			n := newTraffic(t, lab.Config{MTU: 9000})
			must(lab.ServeTCP(n.Node, 6379))(t)
			must(lab.ServeUDP(n.Node, 5353))(t)
			must(lab.ServeUDP(n.Node, 5354))(t)
			trafficAccept(t, n.Node, 7000, func(c net.Conn) error {
				_, err := io.Copy(c, c)
				return err
			})
			n.apply(map[string]string{
				"mode": mode, "interfaces": "eth0", "ports": "tcp/6379,tcp/7000,udp/5353",
				"deny": n.u.Client4[1].String() + "," + n.u.Client6[1].String(),
			})
			i := n.healthy().Interfaces[0]
			want := mode
			if mode == "auto" {
				want = "native"
			}
			if i.Mode != want || !i.Attached {
				t.Fatalf("eth0: %+v, want it attached in mode %s", i, want)
			}
			if name := trafficProgramName(t, i.ProgramID); want == "native" && name != "untracked_xdpf" {
				t.Errorf("program %s is attached, want untracked_xdpf", name)
			}
			for _, f := range n.families() {
				load := func(port uint16, payload int) lab.Load {
					return lab.Load{Target: netip.AddrPortFrom(f.node, port), Sources: f.clients[2:], Count: 20, Payload: payload}
				}
				n.wantTCP(n.Client, load(6379, 0))
				// 8900 bytes are one packet in three pages, 20,000 three of them.
				before := n.packets("eth0")
				n.wantUDP(n.Client, load(5353, 8900))
				if got := n.packets("eth0"); got.Untracked-before.Untracked != 20 || got.Fragment != before.Fragment {
					t.Errorf("%s: packets were %+v, now %+v; want 20 more untracked, no fragments", f.name, before, got)
				}
				n.wantUDP(n.Client, load(5353, 20000))
				if err := trafficBulk(trafficDial(t, n.Client, f.clients[2], netip.AddrPortFrom(f.node, 7000)), 32<<20); err != nil {
					t.Errorf("%s, bulk: %v", f.name, err)
				}
				n.wantFlows(0, lab.Protocol(policy.TCP))
				n.wantFlows(0, lab.Port(5353))
				n.wantUDP(n.Client, load(5354, 8900))
				n.wantFlows(20, lab.Port(5354), lab.Host(f.node))

				denied := load(5353, 8900)
				denied.Sources, denied.Count, denied.Timeout = f.clients[1:2], 5, trafficShort
				before = n.packets("eth0")
				if r := must(lab.LoadUDP(n.Client, denied))(t); r.Timeouts != 5 {
					t.Errorf("%s: from the denied source: %v, want 5 time-outs", f.name, r)
				}
				if got := n.packets("eth0").Denied - before.Denied; got != 5 {
					t.Errorf("%s: %d packets denied, want 5", f.name, got)
				}
			}
			n.wantNoInvalid()
		})
	}
}

// The MTU may change between two applies, and the program with it. (While a program for single buffers is attached,
// drivers refuse a large MTU; in tc mode they do not.)
func TestTrafficChangingMTU(t *testing.T) {
	n := newTraffic(t, lab.Config{})
	must(lab.ServeUDP(n.Node, 5353))(t)
	for _, step := range []struct {
		mtu     int
		mode    string
		program string
	}{
		{1500, "auto", "untracked_xdp"},
		{3000, "auto", "untracked_xdp"},
		{3000, "tc", "untracked_tc"},
		{9000, "tc", "untracked_tc"},
		{9000, "auto", "untracked_xdpf"},
		{1500, "auto", ""}, // either will do
	} {
		for _, ns := range []*lab.NS{n.Client, n.Node} {
			check(t, trafficSetMTU(ns, "eth0", step.mtu))
		}
		n.apply(map[string]string{"mode": step.mode, "interfaces": "eth0", "ports": "udp/5353"})
		i := n.healthy().Interfaces[0]
		if name := trafficProgramName(t, i.ProgramID); !i.Attached || step.program != "" && name != step.program {
			t.Errorf("%+v: program %s, %+v", step, name, i)
		}
		for _, f := range n.families() {
			n.wantUDP(n.Client, lab.Load{Target: netip.AddrPortFrom(f.node, 5353), Sources: f.clients, Count: 10, Payload: step.mtu - 100})
		}
		n.wantFlows(0, lab.Port(5353))
	}
	n.wantNoInvalid()
}
