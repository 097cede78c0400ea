// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"errors"
	"net/netip"
	"os"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/test/lab"
)

// What arrives on an interface with a policy and goes up to another one without (a VLAN, a bridge) leaves by that
// other one, tracked: so it must be tracked on arrival too, or a stateful firewall sees answers to nothing.
func TestTrafficUpperInterface(t *testing.T) {
	for name, up := range map[string]func(*trafficNode) error{
		"macvlan": func(n *trafficNode) error {
			parent, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			attrs := netlink.NewLinkAttrs()
			attrs.Name, attrs.ParentIndex = "upper0", parent.Attrs().Index
			return netlink.LinkAdd(&netlink.Macvlan{LinkAttrs: attrs, Mode: netlink.MACVLAN_MODE_BRIDGE})
		},
		"bridge": func(n *trafficNode) error {
			attrs := netlink.NewLinkAttrs()
			attrs.Name = "upper0"
			if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
				return err
			}
			bridge, err := netlink.LinkByName("upper0")
			if err != nil {
				return err
			}
			port, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			return netlink.LinkSetMaster(port, bridge)
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, mode := range trafficModes {
				n := newTraffic(t, lab.Config{})
				err := lab.In(n.Node, func() error { return up(n) })
				if errors.Is(err, unix.EOPNOTSUPP) {
					t.Skip("the kernel has no such device")
				}
				check(t, err)
				// The wire leads to both interfaces: each must answer for its own addresses alone. And what a bridge
				// forwards shall pass its tc hook before netfilter.
				check(t, lab.SetSysctl(n.Node, "net/ipv4/conf/all/arp_ignore", "1"))
				for _, key := range []string{"net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"} {
					if err := lab.SetSysctl(n.Node, key, "0"); err != nil && !errors.Is(err, os.ErrNotExist) {
						t.Fatal(err)
					}
				}
				// Addresses of its own: the uplink's stay where they are.
				check(t, lab.AddAddrs(n.Node, "upper0", netip.MustParsePrefix("198.18.99.1/24"), netip.MustParsePrefix("2001:db8:63::1/64")))
				check(t, lab.SetLinkUp(n.Node, "upper0", true))
				check(t, lab.AddAddrs(n.Client, "eth0", netip.MustParsePrefix("198.18.99.2/24"), netip.MustParsePrefix("2001:db8:63::2/64")))
				must(lab.ServeTCP(n.Node, 6379))(t)
				for _, interfaces := range []string{"eth0", "eth0,upper0", "upper0"} {
					annotations := map[string]string{"mode": mode, "interfaces": interfaces, "ports": "tcp/6379"}
					if interfaces != "eth0" {
						annotations["mode"] = "auto" // not every upper device has native XDP
					}
					check(t, lab.FlushFlows(n.Node))
					n.apply(annotations)
					want := 0
					if interfaces == "eth0" {
						want = 10
					}
					for _, target := range []string{"198.18.99.1", "2001:db8:63::1"} {
						addr := netip.MustParseAddr(target)
						r := must(lab.LoadTCP(n.Client, lab.Load{Target: netip.AddrPortFrom(addr, 6379), Count: 10}))(t)
						if r.OK != 10 {
							t.Errorf("%s, policy on %s, to %s: %v (%v)", mode, interfaces, target, r, r.FirstFailure)
						}
						n.wantFlows(want, lab.Protocol(policy.TCP), lab.Host(addr))
					}
				}
				n.wantNoInvalid()
			}
		})
	}
}
