// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"bytes"
	"errors"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/test/lab"
)

// enterNetns puts the test's goroutine into a new network namespace, which vanishes with the test. Subtests
// run on other threads and are not in it.
func enterNetns(t testing.TB) netns.NsHandle {
	t.Helper()
	ns := lab.Enter(t)
	if _, err := InForce(); errors.Is(err, ErrNotSupported) {
		t.Skip(err)
	}
	return ns
}

// must ends the test on an error.
func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// command runs a command in the thread's namespace and returns what it printed. Any complaint is an error.
func command(t *testing.T, stdin string, name string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("needs the %s command", name)
	}
	cmd := exec.Command(name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var out, complaints bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaints
	if err := cmd.Run(); err != nil || complaints.Len() > 0 {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, &complaints, stdin)
	}
	return out.String()
}

// addDummy creates an interface that swallows everything, with routes that lead everything there. It has no
// address, so that the kernel has nothing of its own to send.
func addDummy(t testing.TB, name string) {
	t.Helper()
	attrs := netlink.LinkAttrs{Name: name}
	err := netlink.LinkAdd(&netlink.Dummy{LinkAttrs: attrs})
	if errors.Is(err, unix.EOPNOTSUPP) { // a kernel without; what is sent to an ifb is dropped as well
		err = netlink.LinkAdd(&netlink.Ifb{LinkAttrs: attrs})
	}
	if errors.Is(err, unix.EOPNOTSUPP) {
		t.Skip("needs dummy or ifb interfaces")
	}
	must(t, err)
	link, err := netlink.LinkByName(name)
	must(t, err)
	const none = 1 // IN6_ADDR_GEN_MODE_NONE
	must(t, netlink.LinkSetIP6AddrGenMode(link, none))
	must(t, netlink.LinkSetUp(link))
	lo, err := netlink.LinkByName("lo")
	must(t, err)
	must(t, netlink.LinkSetUp(lo))
	for _, a := range []string{"192.0.2.1/32", "2001:db8:ffff::1/128"} {
		addr, err := netlink.ParseAddr(a)
		must(t, err)
		must(t, netlink.AddrAdd(lo, addr))
	}
	for _, d := range []string{"0.0.0.0/0", "::/0"} {
		dst, err := netlink.ParseIPNet(d)
		must(t, err)
		must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: dst, Scope: netlink.SCOPE_LINK}))
	}
}

// rawSockets send packets with headers of our own making out of the namespace they were opened in.
type rawSockets struct{ v4, v6 int }

func openRaw(t testing.TB) rawSockets {
	t.Helper()
	v4, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	must(t, err)
	t.Cleanup(func() { unix.Close(v4) })
	const nodefrag = 22 // IP_NODEFRAG: fragments of ours are not to be put together again
	must(t, unix.SetsockoptInt(v4, unix.IPPROTO_IP, nodefrag, 1))
	v6, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	must(t, err)
	t.Cleanup(func() { unix.Close(v6) })
	return rawSockets{v4, v6}
}

// send gives a packet to the output hook. Where it leads is the routes' business and not that of its
// destination address. A packet that is dropped there is not an error.
func (s rawSockets) send(t testing.TB, ip []byte) {
	t.Helper()
	var err error
	if ip[0]>>4 == 4 {
		err = unix.Sendto(s.v4, ip, 0, &unix.SockaddrInet4{Addr: [4]byte{198, 51, 100, 1}})
	} else {
		err = unix.Sendto(s.v6, ip, 0, &unix.SockaddrInet6{Addr: [16]byte{0x20, 1, 0xd, 0xb8, 15: 1}})
	}
	if err != nil && err != unix.EPERM {
		t.Fatalf("send % x: %v", ip, err)
	}
}

// counters is Counters without the ones that stand at 0.
func counters(t *testing.T) map[CounterKey]Counter {
	t.Helper()
	all, err := Counters()
	must(t, err)
	for k, c := range all {
		if c == (Counter{}) {
			delete(all, k)
		}
	}
	return all
}

// inForce checks that the kernel has exactly this table.
func inForce(t *testing.T, table *Table) {
	t.Helper()
	got, err := InForce()
	must(t, err)
	if diff := cmp.Diff(table.Digest(), got); diff != "" {
		t.Fatalf("table in force (-want +got):\n%s", diff)
	}
}
