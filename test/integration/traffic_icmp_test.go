// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/test/lab"
)

// narrow puts a third host behind the client, which becomes a router with a narrow way out: the host
// believes in 1500 bytes, so only the router's errors can tell the node of less.
//
//	far ── 1500 ~~~ 1300 ── client ── 1500 ── node
func (n *trafficNode) narrow(mtu int) (far *lab.NS, families []trafficFamily) {
	n.Helper()
	far = must(n.lab.AddNS("far"))(n)
	check(n, lab.Veth(n.Client, "far0", far, "eth0", 1500))
	far4, far6 := netip.MustParseAddr("198.19.0.2"), netip.MustParseAddr("2001:db8:f::2")
	via4, via6 := far4.Prev(), far6.Prev()
	check(n, lab.AddAddrs(n.Client, "far0", netip.PrefixFrom(via4, 24), netip.PrefixFrom(via6, 64)))
	check(n, lab.AddAddrs(far, "eth0", netip.PrefixFrom(far4, 24), netip.PrefixFrom(far6, 64)))
	check(n, trafficSetMTU(n.Client, "far0", mtu))
	for _, key := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
		check(n, lab.SetSysctl(n.Client, key, "1"))
	}
	check(n, lab.AddRoute(far, netip.PrefixFrom(netip.IPv4Unspecified(), 0), via4))
	check(n, lab.AddRoute(far, netip.PrefixFrom(netip.IPv6Unspecified(), 0), via6))
	return far, []trafficFamily{
		{"ipv4", n.u.Node4, []netip.Addr{far4}, policy.ICMP},
		{"ipv6", n.u.Node6, []netip.Addr{far6}, policy.ICMPv6},
	}
}

// trafficLearner serves so many bytes a connection, and then tells what path MTU it learned meanwhile.
func trafficLearner(t testing.TB, ns *lab.NS, port uint16, size int) <-chan int {
	t.Helper()
	learned := make(chan int, 8)
	trafficAccept(t, ns, port, func(c net.Conn) error {
		if err := trafficSend(c, size); err != nil {
			return err
		}
		info, err := trafficTCPInfo(c)
		if err == nil {
			learned <- int(info.Pmtu)
		}
		return err
	})
	return learned
}

// A router's "too big" about an untracked flow reaches the node's TCP through a firewall that drops INVALID,
// and the transfer goes on in smaller packets.
func TestTrafficPathMTU(t *testing.T) {
	const mtu = 1300
	for _, mode := range trafficModes {
		t.Run(mode, func(t *testing.T) {
			n := newTraffic(t, lab.Config{})
			far, families := n.narrow(mtu)
			const size = 4 << 20
			learned := trafficLearner(t, n.Node, 6379, size)
			n.apply(map[string]string{"mode": mode, "ports": "tcp/6379"})
			for _, f := range families {
				capture := must(lab.NewCapture(n.Node, "eth0"))(t)
				c := trafficDial(t, far, f.clients[0], netip.AddrPortFrom(f.node, 6379))
				if err := trafficReceive(c, size); err != nil {
					t.Errorf("%s: %v", f.name, err)
				}
				select {
				case pmtu := <-learned:
					if pmtu != mtu {
						t.Errorf("%s: the node's TCP sends packets of %d bytes at most, want %d", f.name, pmtu, mtu)
					}
				case <-time.After(trafficPatience):
					t.Errorf("%s: the node did not send all", f.name)
				}
				// Was there an error to be learned from?
				if _, _, err := capture.Next(trafficPatience, func(frame []byte, leaving bool) bool {
					return !leaving && trafficIsTooBig(frame)
				}); err != nil {
					t.Errorf("%s: no error of the router came: %v", f.name, err)
				}
				capture.Close()
				n.wantFlows(0, lab.Port(6379))
			}
			n.wantNoInvalid()
			n.healthy()
		})
	}
}

func trafficIsTooBig(frame []byte) bool {
	if len(frame) < 14+48 {
		return false
	}
	if frame[12] == 0x08 {
		return frame[14+9] == policy.ICMP && frame[34] == 3 && frame[35] == 4
	}
	return frame[14+6] == policy.ICMPv6 && frame[54] == 2
}

func trafficSend(c net.Conn, size int) error {
	if _, err := c.Write(trafficPattern(size)); err != nil {
		return err
	}
	// Wait for the client's close: the path is learned by then.
	one := make([]byte, 1)
	c.Read(one)
	return nil
}

func trafficReceive(c net.Conn, size int) error {
	defer c.Close()
	c.SetReadDeadline(time.Now().Add(trafficPatience))
	buf := make([]byte, 1<<16)
	for got := 0; got < size; {
		n, err := c.Read(buf)
		if got += n; err != nil {
			return errors.Join(errors.New("the transfer stalled"), err)
		}
	}
	return nil
}

// "Port unreachable" about an untracked call reaches the caller's socket, on the node as at its clients.
func TestTrafficUnreachable(t *testing.T) {
	for _, mode := range trafficModes {
		t.Run(mode, func(t *testing.T) {
			n := newTraffic(t, lab.Config{})
			for _, ns := range []*lab.NS{n.Node, n.Client} {
				check(t, lab.SetSysctl(ns, "net/ipv6/icmp/ratelimit", "0"))
			}
			n.apply(map[string]string{"mode": mode, "ports": "udp/7777", "remote-ports": "udp/5353"})
			for _, f := range n.families() {
				for name, call := range map[string]struct {
					from   *lab.NS
					target netip.AddrPort
				}{
					// The error arrives on the node; the error leaves the node.
					"the node's call":   {n.Node, netip.AddrPortFrom(f.clients[0], 5353)},
					"the client's call": {n.Client, netip.AddrPortFrom(f.node, 7777)},
				} {
					r := must(lab.LoadUDP(call.from, lab.Load{Target: call.target, Count: 10, Timeout: trafficPatience}))(t)
					if r.Failed != 10 || !errors.Is(r.FirstFailure, unix.ECONNREFUSED) {
						t.Errorf("%s, %s: %v (%v), want 10 times ECONNREFUSED", f.name, name, r, r.FirstFailure)
					}
				}
				n.wantFlows(0, lab.Protocol(policy.UDP))
				// An entry for the error itself would be no better.
				n.wantFlows(0, lab.Protocol(f.icmp), lab.Host(f.node), lab.Host(f.clients[0]))
			}
			n.wantNoInvalid()
		})
	}
}
