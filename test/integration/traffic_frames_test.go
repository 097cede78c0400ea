// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/test/lab"
)

// A denied source is denied behind one and two VLAN tags too, and an untracked port seen.
func TestTrafficVLANFrames(t *testing.T) {
	const dot1q, dot1ad = unix.ETH_P_8021Q, unix.ETH_P_8021AD
	for _, mode := range trafficModes {
		t.Run(mode, func(t *testing.T) {
			n := newTraffic(t, lab.Config{})
			n.apply(map[string]string{
				"mode": mode, "ports": "udp/5353", "deny": n.u.Client4[1].String() + "," + n.u.Client6[1].String(),
			})
			for _, f := range n.families() {
				to := netip.AddrPortFrom(f.node, 5353)
				denied := trafficUDPPacket(netip.AddrPortFrom(f.clients[1], 20000), to, "denied")
				allowed := trafficUDPPacket(netip.AddrPortFrom(f.clients[0], 20000), to, "allowed")
				for name, tags := range map[string][][2]uint16{
					"no tag":       nil,
					"802.1Q":       {{dot1q, 7}},
					"802.1ad":      {{dot1ad, 7}},
					"QinQ":         {{dot1ad, 100}, {dot1q, 7}},
					"802.1Q twice": {{dot1q, 100}, {dot1q, 7}},
					"priority tag": {{dot1q, 0xe000}},
				} {
					capture := must(lab.NewCapture(n.Node, "eth0"))(t)
					before := n.packets("eth0")
					for range 5 {
						check(t, lab.SendFrame(n.Client, "eth0", trafficFrame(n.u, denied, tags...)))
					}
					for range 3 {
						check(t, lab.SendFrame(n.Client, "eth0", trafficFrame(n.u, allowed, tags...)))
					}
					trafficUntil(t, f.name+", "+name+": 5 frames denied and 3 untracked", func() bool {
						after := n.packets("eth0")
						return after.Denied-before.Denied == 5 && after.Untracked-before.Untracked == 3
					})
					// The tap is behind XDP, but before tc.
					passed := 0
					for {
						frame, leaving, err := capture.Next(time.Millisecond, nil)
						if errors.Is(err, lab.ErrNoFrame) {
							break
						}
						check(t, err)
						if !leaving && slices.Equal(frame[max(0, len(frame)-6):], []byte("denied")) {
							passed++
						}
					}
					if mode != "tc" && passed != 0 {
						t.Errorf("%s, %s: %d denied frames passed XDP", f.name, name, passed)
					}
					capture.Close()
				}
			}
		})
	}
}

// An interface in a VLAN gets its share of an untracked flow too: the parent's programs look behind the tag.
func TestTrafficVLANInterface(t *testing.T) {
	n := newTraffic(t, lab.Config{})
	prefix := netip.MustParsePrefix("198.18.77.0/24")
	for ns, addr := range map[*lab.NS]string{n.Node: "198.18.77.1/24", n.Client: "198.18.77.2/24"} {
		err := lab.In(ns, func() error {
			parent, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			attrs := netlink.NewLinkAttrs()
			attrs.Name, attrs.ParentIndex = "eth0.77", parent.Attrs().Index
			return netlink.LinkAdd(&netlink.Vlan{LinkAttrs: attrs, VlanId: 77})
		})
		if errors.Is(err, unix.EOPNOTSUPP) {
			t.Skip("the kernel has no VLAN devices (CONFIG_VLAN_8021Q)")
		}
		check(t, err)
		check(t, lab.AddAddrs(ns, "eth0.77", netip.MustParsePrefix(addr)))
		check(t, lab.SetLinkUp(ns, "eth0.77", true))
	}
	must(lab.ServeTCP(n.Node, 6379))(t)
	for _, interfaces := range []string{"eth0", "eth0,eth0.77"} {
		for _, mode := range trafficModes {
			n.apply(map[string]string{"mode": mode, "interfaces": interfaces, "ports": "tcp/6379"})
			before := n.packets("eth0")
			n.wantTCP(n.Client, lab.Load{Target: netip.AddrPortFrom(prefix.Addr().Next(), 6379), Count: 20})
			if n.packets("eth0").Untracked == before.Untracked {
				t.Errorf("%s on %s: no packet was untracked", mode, interfaces)
			}
		}
	}
	n.wantNoInvalid()
}

// An interface without Ethernet headers is classified in tc.
func TestTrafficTun(t *testing.T) {
	n := newTraffic(t, lab.Config{})
	tun, err := trafficTun(n.Node, "tun0")
	if errors.Is(err, os.ErrNotExist) {
		t.Skip("the kernel has no tun devices")
	}
	check(t, err)
	defer tun.Close()
	check(t, lab.AddAddrs(n.Node, "tun0", netip.MustParsePrefix("10.200.0.1/24"), netip.MustParsePrefix("2001:db8:200::1/64")))
	check(t, lab.SetLinkUp(n.Node, "tun0", true))
	must(lab.ServeUDP(n.Node, 5353))(t)
	must(lab.ServeUDP(n.Node, 5354))(t)
	n.apply(map[string]string{"interfaces": "tun0", "ports": "udp/5353", "deny": "10.200.0.66,2001:db8:200::66"})
	if i := n.healthy().Interfaces[0]; i.Mode != "tc" || !i.Attached {
		t.Fatalf("tun0: %+v, want it attached in tc mode", i)
	}
	for _, f := range []struct{ name, node, peer, denied string }{
		{"ipv4", "10.200.0.1", "10.200.0.2", "10.200.0.66"},
		{"ipv6", "2001:db8:200::1", "2001:db8:200::2", "2001:db8:200::66"},
	} {
		at := func(addr string, port uint16) netip.AddrPort {
			return netip.AddrPortFrom(netip.MustParseAddr(addr), port)
		}
		before := n.packets("tun0")
		for port := range uint16(10) {
			from := at(f.peer, 20000+port)
			for _, to := range []uint16{5353, 5354} {
				if !tun.echo(t, trafficUDPPacket(from, at(f.node, to), "over tun"), from, trafficPatience) {
					t.Errorf("%s: no answer from port %d", f.name, to)
				}
			}
		}
		for port := range uint16(3) {
			from := at(f.denied, 20000+port)
			if tun.echo(t, trafficUDPPacket(from, at(f.node, 5354), "denied"), from, 50*time.Millisecond) {
				t.Errorf("%s: an answer to the denied source", f.name)
			}
		}
		after := n.packets("tun0")
		if u, d := after.Untracked-before.Untracked, after.Denied-before.Denied; u != 10 || d != 3 || after.Malformed != 0 {
			t.Errorf("%s: %d packets untracked, %d denied, want 10 and 3: %+v", f.name, u, d, after)
		}
		n.wantFlows(0, lab.Protocol(policy.UDP), lab.Port(5353))
		n.wantFlows(10, lab.Protocol(policy.UDP), lab.Port(5354), lab.Host(netip.MustParseAddr(f.node)))
	}
	n.wantNoInvalid()

	// XDP needs the header: asked for by name, it is refused with the reason.
	n.write(map[string]string{"interfaces": "tun0", "mode": "native", "ports": "udp/5353"})
	if code, out := n.applyFile(); code != 1 {
		t.Errorf("apply in native mode: exit code %d, want 1\n%s", code, out)
	}
	n.problem("not-attached", "tun0", "no Ethernet header")
}

// trafficTunFile is the far end of a tun device: what is written arrives on the device.
type trafficTunFile int

func trafficTun(ns *lab.NS, name string) (f trafficTunFile, err error) {
	err = lab.In(ns, func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return os.NewSyscallError("open /dev/net/tun", err)
		}
		request, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
			unix.Close(fd)
			return os.NewSyscallError("TUNSETIFF", err)
		}
		f = trafficTunFile(fd)
		return nil
	})
	return f, err
}

func (f trafficTunFile) Close() error { return unix.Close(int(f)) }

// echo writes a UDP packet and reports whether one came back to where it came from.
func (f trafficTunFile) echo(t testing.TB, packet []byte, from netip.AddrPort, patience time.Duration) bool {
	t.Helper()
	if _, err := unix.Write(int(f), packet); err != nil {
		t.Fatalf("write to tun: %v", err)
	}
	buf := make([]byte, 2000)
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		poll := []unix.PollFd{{Fd: int32(f), Events: unix.POLLIN}}
		unix.Poll(poll, 5)
		size, err := unix.Read(int(f), buf)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			t.Fatalf("read from tun: %v", err)
		}
		answer := buf[:size]
		to, l4 := netip.Addr{}, 0
		switch {
		case size >= 28 && answer[0]>>4 == 4 && answer[9] == policy.UDP:
			to, l4 = netip.AddrFrom4([4]byte(answer[16:20])), 20
		case size >= 48 && answer[0]>>4 == 6 && answer[6] == policy.UDP:
			to, l4 = netip.AddrFrom16([16]byte(answer[24:40])), 40
		}
		if to == from.Addr() && binary.BigEndian.Uint16(answer[l4+2:]) == from.Port() {
			return true
		}
	}
	return false
}
