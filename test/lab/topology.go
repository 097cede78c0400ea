// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Uplink is a wire between client and node; the interface has the same name on both sides.
type Uplink struct {
	Name           string
	Node4, Node6   netip.Addr
	Client4        []netip.Addr
	Client6        []netip.Addr
	NodeMAC        net.HardwareAddr
	ClientMAC      net.HardwareAddr
	Prefix4        netip.Prefix
	Prefix6        netip.Prefix
	NodeIndex, MTU int
}

// wire joins client and node: 198.18.N.0/24 (a benchmarking network, RFC 2544) and 2001:db8:N::/64 on
// uplink N, node .1, client from .2 on.
func (l *Lab) wire(c Config) error {
	for n := range c.Uplinks {
		u := Uplink{
			Name:    fmt.Sprintf("eth%d", n),
			MTU:     c.MTU,
			Prefix4: netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, byte(n), 0}), 24),
			Prefix6: netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 0, byte(n)}), 64),
		}
		u.Node4, u.Node6 = u.Prefix4.Addr().Next(), u.Prefix6.Addr().Next()
		if err := Veth(l.Node, u.Name, l.Client, u.Name, c.MTU); err != nil {
			return err
		}
		if err := AddAddrs(l.Node, u.Name, netip.PrefixFrom(u.Node4, 24), netip.PrefixFrom(u.Node6, 64)); err != nil {
			return err
		}
		client4, client6 := u.Node4, u.Node6
		for range c.ClientAddrs {
			client4, client6 = client4.Next(), client6.Next()
			u.Client4, u.Client6 = append(u.Client4, client4), append(u.Client6, client6)
			if err := AddAddrs(l.Client, u.Name, netip.PrefixFrom(client4, 24), netip.PrefixFrom(client6, 64)); err != nil {
				return err
			}
		}
		node, err := linkByName(l.Node, u.Name)
		if err != nil {
			return err
		}
		client, err := linkByName(l.Client, u.Name)
		if err != nil {
			return err
		}
		u.NodeMAC, u.ClientMAC, u.NodeIndex = node.Attrs().HardwareAddr, client.Attrs().HardwareAddr, node.Attrs().Index
		l.Uplinks = append(l.Uplinks, u)
	}

	// The node's default route is what `default-route` looks for; the client's makes pods reachable.
	u := l.Uplinks[0]
	for _, r := range []struct {
		ns  *NS
		via netip.Addr
	}{{l.Node, u.Client4[0]}, {l.Node, u.Client6[0]}, {l.Client, u.Node4}, {l.Client, u.Node6}} {
		if err := AddRoute(r.ns, netip.PrefixFrom(unspecified(r.via), 0), r.via); err != nil {
			return err
		}
	}
	for _, key := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
		if err := SetSysctl(l.Node, key, "1"); err != nil {
			return err
		}
	}
	return nil
}

func unspecified(like netip.Addr) netip.Addr {
	if like.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// Veth joins two namespaces by a pair of interfaces, both up.
func Veth(a *NS, aName string, b *NS, bName string, mtu int) error {
	err := In(a, func() error {
		peer, err := unix.Open(b.Path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(peer)
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = aName, mtu
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: bName, PeerNamespace: netlink.NsFd(peer)})
	})
	if err != nil {
		return fmt.Errorf("join %s in %s and %s in %s: %w", aName, a.Name, bName, b.Name, err)
	}
	for _, end := range []struct {
		ns     *NS
		ifname string
	}{{a, aName}, {b, bName}} {
		if err := SetLinkUp(end.ns, end.ifname, true); err != nil {
			return err
		}
	}
	if err := awaitUp(a, aName); err != nil {
		return err
	}
	return awaitUp(b, bName)
}

// awaitUp waits until an interface sends. The kernel switches a veth on some time after its peer is up; an
// ARP reply lost before that costs its asker a second.
func awaitUp(ns *NS, ifname string) error {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		l, err := linkByName(ns, ifname)
		if err != nil {
			return err
		}
		if l.Attrs().OperState == netlink.OperUp {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("interface %s in %s: is %s, not up", ifname, ns.Name, l.Attrs().OperState)
		}
	}
}

// AddAddrs sets addresses, with their networks, on an interface. If it is up they work when AddAddrs returns.
func AddAddrs(ns *NS, ifname string, addrs ...netip.Prefix) error {
	return onLink(ns, ifname, func(l netlink.Link) error {
		for _, p := range addrs {
			if err := netlink.AddrAdd(l, &netlink.Addr{IPNet: ipNet(p)}); err != nil {
				return fmt.Errorf("add address %s: %w", p, err)
			}
		}
		if l.Attrs().OperState != netlink.OperUp {
			return nil
		}
		return awaitAddrs(l)
	})
}

// awaitAddrs waits until IPv6 addresses are no longer tentative. No duplicate is looked for in our namespaces,
// yet the kernel joins the multicast group of neighbour discovery in a worker of its own time; a solicitation
// that comes before costs its sender a second. (With IFA_F_NODAD one could not see it happen.)
func awaitAddrs(l netlink.Link) error {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		addrs, err := netlink.AddrList(l, netlink.FAMILY_V6)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return err
		}
		tentative := slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.Flags&unix.IFA_F_TENTATIVE != 0 })
		if err == nil && !tentative {
			return nil
		}
		if time.Now().After(deadline) {
			return errors.New("IPv6 addresses stay tentative")
		}
	}
}

// AddRoute adds a route to dst (0.0.0.0/0 or ::/0 being the default route) by the neighbour via.
func AddRoute(ns *NS, dst netip.Prefix, via netip.Addr) error {
	err := In(ns, func() error {
		return netlink.RouteAdd(&netlink.Route{Dst: ipNet(dst), Gw: via.AsSlice()})
	})
	if err != nil {
		return fmt.Errorf("add route to %s via %s in %s: %w", dst, via, ns.Name, err)
	}
	return nil
}

// SetLinkUp brings an interface up or down.
func SetLinkUp(ns *NS, ifname string, up bool) error {
	return onLink(ns, ifname, func(l netlink.Link) error {
		if up {
			return netlink.LinkSetUp(l)
		}
		return netlink.LinkSetDown(l)
	})
}

// DeleteLink removes an interface; the other end of a veth goes with it.
func DeleteLink(ns *NS, ifname string) error {
	return onLink(ns, ifname, netlink.LinkDel)
}

// Links names the interfaces in ns, in the order of their indexes.
func Links(ns *NS) (names []string, err error) {
	err = In(ns, func() error {
		links, err := netlink.LinkList()
		for _, l := range links {
			names = append(names, l.Attrs().Name)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list links in %s: %w", ns.Name, err)
	}
	return names, nil
}

func linkByName(ns *NS, ifname string) (found netlink.Link, err error) {
	err = onLink(ns, ifname, func(l netlink.Link) error {
		found = l
		return nil
	})
	return found, err
}

func onLink(ns *NS, ifname string, fn func(netlink.Link) error) error {
	err := In(ns, func() error {
		l, err := netlink.LinkByName(ifname)
		if err != nil {
			return err
		}
		return fn(l)
	})
	if err != nil {
		return fmt.Errorf("interface %s in %s: %w", ifname, ns.Name, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
