// SPDX-License-Identifier: Apache-2.0

package hostif

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/test/lab"
)

// inNewNetns moves the test into a network namespace of its own, with loopback up and nothing else. The
// thread stays locked, so that it and the namespace end with the test's goroutine.
func inNewNetns(t *testing.T) {
	t.Helper()
	lab.Enter(t)
	lo, err := netlink.LinkByName("lo")
	must(t, err)
	must(t, netlink.LinkSetUp(lo))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// addVeth makes a pair, name and name-p, both up.
func addVeth(t *testing.T, name string) netlink.Link {
	t.Helper()
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name + "-p"}))
	for _, end := range []string{name + "-p", name} {
		must(t, netlink.LinkSetUp(byName(t, end)))
	}
	return byName(t, name)
}

func byName(t *testing.T, name string) netlink.Link {
	t.Helper()
	l, err := netlink.LinkByName(name)
	must(t, err)
	return l
}

func addAddr(t *testing.T, l netlink.Link, cidr string) {
	t.Helper()
	a, err := netlink.ParseAddr(cidr)
	must(t, err)
	a.Flags = unix.IFA_F_NODAD
	must(t, netlink.AddrAdd(l, a))
	// The kernel makes the route of an IPv6 address in its own time.
	addr := netip.MustParsePrefix(cidr).Addr()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if local, err := IsLocal(addr); local || err != nil {
			return
		}
	}
}

func network(cidr string) *net.IPNet {
	_, n, err := net.ParseCIDR(cidr)
	if err != nil {
		panic(err)
	}
	return n
}

func resolve(t *testing.T, list string) []Interface {
	t.Helper()
	selectors, err := ParseSelectors(list)
	must(t, err)
	found, err := Resolve(selectors)
	must(t, err)
	return found
}

func names(found []Interface) []string {
	out := []string{}
	for _, i := range found {
		out = append(out, i.Name)
	}
	return out
}

func wantNames(t *testing.T, list string, want ...string) {
	t.Helper()
	if got := names(resolve(t, list)); !slices.Equal(got, want) {
		t.Errorf("Resolve(%q) = %v, want %v", list, got, want)
	}
}

func TestResolveNamesAndGlobs(t *testing.T) {
	inNewNetns(t)
	for _, n := range []string{"eth1", "eth0", "wan0"} {
		addVeth(t, n)
	}
	must(t, netlink.LinkAddAltName(byName(t, "wan0"), "enp0s31f6"))

	wantNames(t, "eth0", "eth0")
	wantNames(t, "wan0,eth1,eth0,eth1", "eth0", "eth1", "wan0")
	wantNames(t, "eth7")
	wantNames(t, "eth7,eth0", "eth0")
	wantNames(t, "enp0s31f6", "wan0")
	wantNames(t, "enp0s31f6,wan0", "wan0")
	wantNames(t, "eth?", "eth0", "eth1")
	wantNames(t, "eth[01],w*0", "eth0", "eth1", "wan0")
	wantNames(t, "lo", "lo")
	wantNames(t, "lo*,?o")
	wantNames(t, "*", "eth0", "eth0-p", "eth1", "eth1-p", "wan0", "wan0-p")
	wantNames(t, "*,lo,eth0", "eth0", "eth0-p", "eth1", "eth1-p", "lo", "wan0", "wan0-p")

	found := resolve(t, "w*0,enp0s31f6,eth9,x*")
	if len(found) != 1 || !slices.Equal(found[0].SelectedBy, []Selector{glob("w*0"), name("enp0s31f6")}) {
		t.Errorf("found %+v, want wan0 selected by its glob and its alternative name", found)
	}
	asked, err := ParseSelectors("w*0,enp0s31f6,eth9,x*")
	must(t, err)
	if got, want := Missing(asked, found), []Selector{name("eth9"), glob("x*")}; !slices.Equal(got, want) {
		t.Errorf("Missing = %v, want %v", got, want)
	}
}

func TestResolveNothing(t *testing.T) {
	found, err := Resolve(nil)
	if err != nil || len(found) != 0 {
		t.Errorf("Resolve(nil) = %v, %v", found, err)
	}
	if _, err := Resolve([]Selector{{}}); err == nil && os.Getuid() == 0 {
		t.Error("a selector of no kind was resolved")
	}
}

func TestResolveAttributes(t *testing.T) {
	inNewNetns(t)
	must(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}))
	eth0 := addVeth(t, "eth0")
	must(t, netlink.LinkSetMTU(eth0, 1400))
	must(t, netlink.LinkSetMaster(eth0, byName(t, "br0")))

	want := []Interface{
		{Name: "br0", Kind: "bridge", LinkType: "ether", Index: byName(t, "br0").Attrs().Index, MTU: 1400},
		{
			Name: "eth0", Kind: "veth", LinkType: "ether", Index: eth0.Attrs().Index, MTU: 1400, Up: true,
			Master: Master{Name: "br0", Index: byName(t, "br0").Attrs().Index},
		},
		{Name: "lo", Kind: "device", LinkType: "loopback", Index: 1, MTU: 65536, Up: true},
	}
	for _, list := range []string{"br0,eth0,lo", "br*,eth0,lo"} {
		got := resolve(t, list)
		if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(Interface{}, "SelectedBy")); diff != "" {
			t.Errorf("Resolve(%q) (-want +got):\n%s", list, diff)
		}
	}

	must(t, netlink.LinkSetDown(eth0))
	if got := resolve(t, "eth0"); len(got) != 1 || got[0].Up {
		t.Errorf("eth0 after it was set down: %+v", got)
	}
}

func TestResolveNets(t *testing.T) {
	inNewNetns(t)
	eth0, eth1, eth2 := addVeth(t, "eth0"), addVeth(t, "eth1"), addVeth(t, "eth2")
	addAddr(t, eth0, "10.1.2.3/24")
	addAddr(t, eth0, "10.9.9.9/24")
	addAddr(t, eth1, "192.0.2.1/32")
	addAddr(t, eth1, "2001:db8::1/64")
	addAddr(t, byName(t, "lo"), "10.255.0.1/32")
	must(t, netlink.AddrAdd(eth2, &netlink.Addr{IPNet: network("172.16.0.1/32"), Peer: network("172.17.0.1/32")}))

	wantNames(t, "10.0.0.0/8", "eth0")
	wantNames(t, "10.1.2.3", "eth0")
	wantNames(t, "10.1.2.4")
	wantNames(t, "10.255.0.0/16")
	wantNames(t, "127.0.0.0/8,::1")
	wantNames(t, "10.0.0.0/8,192.0.2.0/24", "eth0", "eth1")
	wantNames(t, "2001:db8::/32", "eth1")
	wantNames(t, "172.16.0.0/16", "eth2")
	wantNames(t, "172.17.0.0/16")
	wantNames(t, "0.0.0.0/0", "eth0", "eth1", "eth2")
	wantNames(t, "10.0.0.0/8,eth*[0-9],lo", "eth0", "eth1", "eth2", "lo")
}

func TestResolveDefaultRoute(t *testing.T) {
	inNewNetns(t)
	wantNames(t, "default-route")

	var index []int
	for i, n := range []string{"eth0", "eth1", "eth2", "eth3", "eth4", "eth5"} {
		l := addVeth(t, n)
		addAddr(t, l, fmt.Sprintf("10.0.%d.1/24", i))
		addAddr(t, l, fmt.Sprintf("2001:db8:%d::1/64", i))
		index = append(index, l.Attrs().Index)
	}
	wantNames(t, "default-route")

	// A default route in another table, and one that goes nowhere, are not what is meant.
	must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: index[5], Dst: network("0.0.0.0/0"), Table: 100}))
	must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: index[5], Dst: network("0.0.0.0/0"), Table: 1000}))
	must(t, netlink.RouteAdd(&netlink.Route{Dst: network("0.0.0.0/0"), Type: unix.RTN_BLACKHOLE, Priority: 9999}))
	must(t, netlink.RouteAdd(&netlink.Route{Dst: network("::/0"), Type: unix.RTN_UNREACHABLE, Priority: 9999}))
	must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: index[5], Dst: network("0.0.0.0/1")}))
	wantNames(t, "default-route")

	must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: index[1], Dst: network("0.0.0.0/0"), Gw: net.ParseIP("10.0.1.2")}))
	wantNames(t, "default-route", "eth1")

	// A second one of worse metric counts: traffic arrives there too, and takes over when the first goes.
	must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: index[0], Dst: network("0.0.0.0/0"), Gw: net.ParseIP("10.0.0.2"), Priority: 100}))
	wantNames(t, "default-route", "eth0", "eth1")
	wantNames(t, "default-route,eth1,eth5", "eth0", "eth1", "eth5")

	must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: index[2], Dst: network("::/0"), Gw: net.ParseIP("2001:db8:2::2")}))
	wantNames(t, "default-route", "eth0", "eth1", "eth2")
}

// hostInterfaces is what ByHost chooses.
func hostInterfaces(t *testing.T) []Interface {
	t.Helper()
	found, err := Resolve([]Selector{{Kind: ByHost}})
	must(t, err)
	return found
}

func wantHostInterfaces(t *testing.T, want ...string) {
	t.Helper()
	if got := names(hostInterfaces(t)); !slices.Equal(got, want) {
		t.Errorf("ByHost chose %v, want %v", got, want)
	}
}

// A node as CNI plugins and kube-proxy leave it.
func TestResolveHost(t *testing.T) {
	inNewNetns(t)
	wantHostInterfaces(t) // loopback has 127.0.0.0/8
	addAddr(t, byName(t, "lo"), "10.255.0.1/24")
	wantHostInterfaces(t)

	for _, n := range []string{"cni0", "br0"} {
		must(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: n}}))
		must(t, netlink.LinkSetUp(byName(t, n)))
	}
	addAddr(t, byName(t, "cni0"), "10.244.1.1/24")
	addAddr(t, byName(t, "br0"), "192.0.2.5/24")
	// Their kind does not matter, and not every kernel has dummy and vxlan devices.
	addAddr(t, addVeth(t, "nodelocaldns"), "169.254.20.10/32")
	ipvs := addVeth(t, "kube-ipvs0")
	addAddr(t, ipvs, "10.96.0.1/32")
	addAddr(t, ipvs, "2001:db8:96::1/128")
	addAddr(t, addVeth(t, "flannel.1"), "10.244.1.0/32")
	pod := addVeth(t, "cali12345") // both ends have a link-local address by now, or soon
	addAddr(t, pod, "169.254.1.1/16")
	addAddr(t, addVeth(t, "ptp0"), "10.244.1.9/32")
	addVeth(t, "bare0")
	wantHostInterfaces(t)

	addAddr(t, addVeth(t, "eth1"), "10.1.0.2/24")
	addAddr(t, addVeth(t, "eth2"), "2001:db8:2::1/64")
	wantHostInterfaces(t, "eth1", "eth2")

	// A default route is enough without a network, as clouds have it, and makes a bridge the host's own.
	eth0 := addVeth(t, "eth0")
	addAddr(t, eth0, "192.0.2.1/32")
	must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: network("0.0.0.0/0"), Scope: netlink.SCOPE_LINK}))
	wantHostInterfaces(t, "eth0", "eth1", "eth2")
	must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: byName(t, "br0").Attrs().Index, Dst: network("0.0.0.0/0"), Gw: net.ParseIP("192.0.2.9"), Priority: 100}))
	wantHostInterfaces(t, "br0", "eth0", "eth1", "eth2")

	must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: pod.Attrs().Index, Dst: network("::/0"), Scope: netlink.SCOPE_LINK}))
	wantHostInterfaces(t, "br0", "cali12345", "eth0", "eth1", "eth2")

	for _, i := range hostInterfaces(t) {
		if !slices.Equal(i.SelectedBy, []Selector{{Kind: ByHost}}) {
			t.Errorf("%s was selected by %v", i.Name, i.SelectedBy)
		}
	}
	// Together with selectors that ask for the same lists.
	selectors := []Selector{defaultRoute, {Kind: ByHost}, nets("10.1.0.0/16"), name("eth9")}
	found, err := Resolve(selectors)
	must(t, err)
	if got := names(found); !slices.Equal(got, []string{"br0", "cali12345", "eth0", "eth1", "eth2"}) {
		t.Errorf("with others, ByHost chose %v", got)
	}
	for _, i := range found {
		if i.Name == "eth1" && !slices.Equal(i.SelectedBy, []Selector{{Kind: ByHost}, nets("10.1.0.0/16")}) {
			t.Errorf("eth1 was selected by %v", i.SelectedBy)
		}
	}
	if got := Missing(selectors, found); !slices.Equal(got, []Selector{name("eth9")}) {
		t.Errorf("missing: %v", got)
	}
}

func TestResolveDefaultRouteMultipath(t *testing.T) {
	inNewNetns(t)
	var hops4, hops6 []*netlink.NexthopInfo
	for i, n := range []string{"eth0", "eth1", "eth2", "eth3"} {
		l := addVeth(t, n)
		addAddr(t, l, fmt.Sprintf("10.0.%d.1/24", i))
		addAddr(t, l, fmt.Sprintf("2001:db8:%d::1/64", i))
		hop4 := &netlink.NexthopInfo{LinkIndex: l.Attrs().Index, Gw: net.ParseIP(fmt.Sprintf("10.0.%d.2", i))}
		hop6 := &netlink.NexthopInfo{LinkIndex: l.Attrs().Index, Gw: net.ParseIP(fmt.Sprintf("2001:db8:%d::2", i))}
		if i < 2 {
			hops4 = append(hops4, hop4)
		} else {
			hops6 = append(hops6, hop6)
		}
	}
	must(t, netlink.RouteAdd(&netlink.Route{Dst: network("0.0.0.0/0"), MultiPath: hops4}))
	wantNames(t, "default-route", "eth0", "eth1")
	must(t, netlink.RouteAdd(&netlink.Route{Dst: network("::/0"), MultiPath: hops6}))
	wantNames(t, "default-route", "eth0", "eth1", "eth2", "eth3")
}

func TestResolveDefaultRouteNexthopObjects(t *testing.T) {
	inNewNetns(t)
	ip, err := exec.LookPath("ip")
	if err != nil {
		t.Skip("needs the ip command to make nexthop objects")
	}
	for i, n := range []string{"eth0", "eth1", "eth2"} {
		addAddr(t, addVeth(t, n), fmt.Sprintf("10.0.%d.1/24", i))
	}
	batch := exec.Command(ip, "-batch", "-") // a child of this thread, so in its namespace
	batch.Stdin = bytes.NewBufferString(`nexthop add id 1 via 10.0.0.2 dev eth0
nexthop add id 2 via 10.0.1.2 dev eth1
nexthop add id 3 via 10.0.2.2 dev eth2
nexthop add id 10 group 1/2
route add default nhid 10
route add default nhid 3 metric 50
`)
	if out, err := batch.CombinedOutput(); err != nil {
		t.Skipf("cannot make nexthop objects here: %v: %s", err, out)
	}
	wantNames(t, "default-route", "eth0", "eth1", "eth2")
}

func TestResolveDefaultRouteAmongMany(t *testing.T) {
	inNewNetns(t)
	eth0 := addVeth(t, "eth0")
	addAddr(t, eth0, "192.0.2.1/24")
	addAddr(t, eth0, "2001:db8::1/64")
	for i := range 3000 {
		must(t, netlink.RouteAdd(&netlink.Route{
			LinkIndex: eth0.Attrs().Index, Dst: network(fmt.Sprintf("10.%d.%d.0/24", i>>8, i&255)), Gw: net.ParseIP("192.0.2.2"),
		}))
	}
	wantNames(t, "default-route")
	must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: network("0.0.0.0/0"), Gw: net.ParseIP("192.0.2.2")}))
	wantNames(t, "default-route", "eth0")
}

func TestResolveInterfaceMadeAnew(t *testing.T) {
	inNewNetns(t)
	before := addVeth(t, "eth0")
	first := resolve(t, "eth0")
	must(t, netlink.LinkDel(before))
	wantNames(t, "eth0")
	addVeth(t, "other")
	after := addVeth(t, "eth0")
	second := resolve(t, "eth0")
	if len(first) != 1 || len(second) != 1 || first[0].Index != before.Attrs().Index ||
		second[0].Index != after.Attrs().Index || first[0].Index == second[0].Index {
		t.Errorf("eth0 was %+v, made anew %+v", first, second)
	}
}

func TestResolveLayer3(t *testing.T) {
	inNewNetns(t)
	tun := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "tun0"}, Mode: netlink.TUNTAP_MODE_TUN}
	if err := netlink.LinkAdd(tun); err != nil {
		t.Skipf("cannot make a tun device here: %v", err)
	}
	addVeth(t, "eth0")
	got := map[string]bool{}
	for _, i := range resolve(t, "tun0,eth0,lo") {
		got[i.Name] = i.Layer3
	}
	if diff := cmp.Diff(map[string]bool{"tun0": true, "eth0": false, "lo": false}, got); diff != "" {
		t.Errorf("Layer3 (-want +got):\n%s", diff)
	}
}

func TestResolveXDP(t *testing.T) {
	inNewNetns(t)
	eth0 := addVeth(t, "eth0")
	addAddr(t, eth0, "192.0.2.1/24")
	must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: network("0.0.0.0/0"), Gw: net.ParseIP("192.0.2.2")}))
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.XDP, License: "Apache-2.0",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2 /* XDP_PASS */), asm.Return()},
	})
	if err != nil {
		t.Skipf("cannot load an XDP program here: %v", err)
	}
	defer program.Close()
	info, err := program.Info()
	must(t, err)
	id, _ := info.ID()

	for mode, flags := range map[XDPMode]link.XDPAttachFlags{XDPNative: link.XDPDriverMode, XDPGeneric: link.XDPGenericMode} {
		attached, err := link.AttachXDP(link.XDPOptions{Program: program, Interface: eth0.Attrs().Index, Flags: flags})
		must(t, err)
		want := XDPState{Attached: true, ProgID: uint32(id), Mode: mode}
		// Each asks the kernel in another way: by name, by index and by listing all.
		for _, list := range []string{"eth0", "default-route", "eth?"} {
			if got := resolve(t, list); len(got) != 1 || got[0].XDP != want {
				t.Errorf("Resolve(%q) = %+v, want XDP %+v", list, got, want)
			}
		}
		must(t, attached.Close())
		if got := resolve(t, "eth0"); len(got) != 1 || got[0].XDP != (XDPState{}) {
			t.Errorf("after detaching: %+v", got)
		}
	}
}

func TestDescribe(t *testing.T) {
	inNewNetns(t)
	eth0 := addVeth(t, "eth0")
	found := resolve(t, "eth0,lo")
	got := map[string]string{}
	for i := range found {
		must(t, Describe(&found[i]))
		got[found[i].Name] = found[i].Driver
	}
	if diff := cmp.Diff(map[string]string{"eth0": "veth", "lo": ""}, got); diff != "" {
		t.Errorf("drivers (-want +got):\n%s", diff)
	}
	must(t, netlink.LinkDel(eth0))
	if err := Describe(&found[0]); !errors.Is(err, unix.ENODEV) {
		t.Errorf("Describe of a vanished interface: %v, want ENODEV", err)
	}
}

func TestLocal(t *testing.T) {
	inNewNetns(t)
	eth0, eth1 := addVeth(t, "eth0"), addVeth(t, "eth1")
	addAddr(t, eth0, "10.1.2.3/24")
	addAddr(t, eth0, "2001:db8::1/64")
	addAddr(t, eth1, "10.1.2.3/24")
	// As for the address of a load balancer, which no interface holds.
	must(t, netlink.RouteAdd(&netlink.Route{
		LinkIndex: eth0.Attrs().Index, Dst: &net.IPNet{IP: net.IPv4(198, 51, 100, 0), Mask: net.CIDRMask(24, 32)},
		Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_LOCAL, Scope: unix.RT_SCOPE_HOST,
	}))
	local, err := Local()
	must(t, err)
	for addr, want := range map[string]bool{
		"10.1.2.3": true, "127.0.0.1": true, "127.9.9.9": true, "::1": true, "2001:db8::1": true, "198.51.100.77": true,
		"10.1.2.4": false, "10.1.2.255": false, "2001:db8::2": false, "224.0.0.1": false, "ff02::1": false, "198.51.101.1": false,
	} {
		if got := local.Contains(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s is local: %v, want %v", addr, got, want)
		}
	}
}

func TestAddAddresses(t *testing.T) {
	inNewNetns(t)
	eth0, eth1 := addVeth(t, "eth0"), addVeth(t, "eth1")
	for _, cidr := range []string{"10.1.2.3/24", "2001:db8::1/64", "10.0.0.1/8", "fd00::1/128", "fe80::77/64", "169.254.7.7/16"} {
		addAddr(t, eth0, cidr)
	}
	for _, scope := range []netlink.Scope{netlink.SCOPE_LINK, netlink.SCOPE_HOST} {
		must(t, netlink.AddrAdd(eth0, &netlink.Addr{IPNet: network(fmt.Sprintf("192.0.2.%d/32", scope)), Scope: int(scope)}))
	}
	must(t, netlink.AddrAdd(eth1, &netlink.Addr{IPNet: network("172.16.0.1/32"), Peer: network("172.17.0.1/32")}))
	addVeth(t, "eth2")

	found := resolve(t, "lo,eth0,eth1,eth2")
	if found[0].Addresses != nil {
		t.Errorf("Resolve alone gave %s addresses: %v", found[0].Name, found[0].Addresses)
	}
	must(t, netlink.LinkDel(byName(t, "eth2")))
	must(t, AddAddresses(found))
	got := map[string]string{}
	for _, i := range found {
		got[i.Name] = fmt.Sprint(i.Addresses)
	}
	want := map[string]string{
		"lo": "[]", "eth0": "[10.0.0.1/8 10.1.2.3/24 2001:db8::1/64 fd00::1/128]", "eth1": "[172.16.0.1/32]", "eth2": "[]",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("addresses (-want +got):\n%s", diff)
	}
	must(t, AddAddresses(nil))
}

func FuzzRouteIndexes(f *testing.F) {
	header := []byte{unix.AF_INET, 0, 0, 0, unix.RT_TABLE_MAIN, 0, 0, unix.RTN_UNICAST, 0, 0, 0, 0}
	f.Add(header)
	f.Add(append(slices.Clone(header), 8, 0, unix.RTA_OIF, 0, 3, 0, 0, 0))
	f.Add(append(slices.Clone(header), 20, 0, unix.RTA_MULTIPATH, 0, 8, 0, 0, 0, 3, 0, 0, 0, 8, 0, 0, 0, 4, 0, 0, 0))
	f.Fuzz(func(t *testing.T, m []byte) {
		routeIndexes(m[:len(m)&^(rtaAlign-1)], unix.AF_INET) // must come back; the kernel pads, and nl relies on it
	})
}

func TestRouteIndexes(t *testing.T) {
	header := []byte{unix.AF_INET, 0, 0, 0, unix.RT_TABLE_MAIN, 0, 0, unix.RTN_UNICAST, 0, 0, 0, 0}
	hops := []byte{8, 0, 0, 0, 3, 0, 0, 0, 8, 0, 0, 0, 4, 0, 0, 0}
	got, err := routeIndexes(append(append(slices.Clone(header), 20, 0, unix.RTA_MULTIPATH, 0), hops...), unix.AF_INET)
	if err != nil || !slices.Equal(got, []int{3, 4}) {
		t.Errorf("two hops: %v, %v", got, err)
	}
	if _, err := routeIndexes(header[:4], unix.AF_INET); err == nil {
		t.Error("half a header was read as a route")
	}
	for _, broken := range [][]byte{hops[:7], {0, 0, 0, 0, 3, 0, 0, 0}, {200, 0, 0, 0, 3, 0, 0, 0}} {
		hopIndexes(broken) // must come back
	}
}
