// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/test/lab"
)

// witnessHost is one of several hosts that are alike but for who enforces the policy. It says nothing of its own
// accord, and its gateway swallows everything:
//
//	sender ── to-NAME ~~~ eth0 ── host, the addresses of witnessAddresses
type witnessHost struct {
	name    string
	ns      *lab.NS
	mac     net.HardwareAddr
	sender  *lab.Sender
	raw     map[bool]int // sockets for packets that leave, by whether they are of IPv4
	nft     *nftables.Conn
	nsFile  *os.File
	closers []func() error
	// base is the last id given to a packet.
	base int
	// all says that nothing is dropped before netfilter.
	all bool
	// enforce puts a policy in force. The error says why it was refused.
	enforce func(*witnessCase) error
	// witnessed is the script by which a witness enforces it.
	witnessed func(*witnessCase) string
}

// witnessAddHost adds a host and joins it to the sender. The caller must close it.
func witnessAddHost(l *lab.Lab, sender *lab.NS, name string) (h *witnessHost, err error) {
	h = &witnessHost{name: name, raw: map[bool]int{}}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("host %s: %w", name, err), h.Close())
		}
	}()
	if h.ns, err = l.AddNS(name); err != nil {
		return h, err
	}
	if err := lab.Veth(sender, "to-"+name, h.ns, witnessInterface, 1500); err != nil {
		return h, err
	}
	for _, a := range witnessAddresses {
		if err := lab.AddAddrs(h.ns, witnessInterface, netip.PrefixFrom(a, a.BitLen())); err != nil {
			return h, err
		}
	}
	if h.sender, err = lab.NewSender(sender, "to-"+name); err != nil {
		return h, err
	}
	h.closers = append(h.closers, h.sender.Close)
	if err := lab.In(h.ns, h.open); err != nil {
		return h, err
	}
	if err := h.script(witnessObserver); err != nil {
		return h, err
	}
	// A flow that waits for its answer is to be in the table still when that is read, however busy the machine.
	err = lab.SetSysctl(h.ns, "net/netfilter/nf_conntrack_sctp_timeout_cookie_wait", "60")
	if errors.Is(err, os.ErrNotExist) { // a kernel for which SCTP is a protocol like any other
		err = nil
	}
	return h, err
}

// open makes what belongs inside the host.
func (h *witnessHost) open() error {
	link, err := netlink.LinkByName(witnessInterface)
	if err != nil {
		return err
	}
	h.mac = link.Attrs().HardwareAddr
	for _, gateway := range []string{"198.18.255.254", "2001:db8:ffff::1"} {
		via := net.ParseIP(gateway)
		dst := &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
		if via.To4() != nil {
			dst = &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
		}
		if err := netlink.NeighAdd(&netlink.Neigh{
			LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: via, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 1},
		}); err != nil {
			return fmt.Errorf("add neighbour %s: %w", gateway, err)
		}
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: dst, Gw: via, Flags: int(netlink.FLAG_ONLINK)}); err != nil {
			return fmt.Errorf("add route by %s: %w", gateway, err)
		}
	}
	for family, v4 := range map[int]bool{unix.AF_INET: true, unix.AF_INET6: false} {
		fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return os.NewSyscallError("socket", err)
		}
		h.closers = append(h.closers, func() error { return unix.Close(fd) })
		h.raw[v4] = fd
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, witnessMark); err != nil {
			return os.NewSyscallError("set mark", err)
		}
	}
	if h.nsFile, err = os.Open("/proc/thread-self/ns/net"); err != nil {
		return err
	}
	h.closers = append(h.closers, h.nsFile.Close)
	if h.nft, err = nftables.New(nftables.WithNetNSFd(int(h.nsFile.Fd())), nftables.AsLasting()); err != nil {
		return err
	}
	h.closers = append(h.closers, h.nft.CloseLasting)
	return nil
}

// Close closes the host's sockets; its namespace is the lab's.
func (h *witnessHost) Close() error {
	var errs []error
	for _, fn := range slices.Backward(h.closers) {
		errs = append(errs, fn())
	}
	h.closers = nil
	return errors.Join(errs...)
}

// listen has sockets wait on a port of every address: an answer to a call is untracked only if one does.
func (h *witnessHost) listen(port uint16) error {
	address := fmt.Sprintf(":%d", port)
	stream, err := lab.Listen(h.ns, "tcp", address)
	if err != nil {
		return err
	}
	h.closers = append(h.closers, stream.Close)
	datagram, err := lab.ListenPacket(h.ns, "udp", address)
	if err != nil {
		return err
	}
	h.closers = append(h.closers, datagram.Close)
	return nil
}

// script runs nft on the host.
func (h *witnessHost) script(script string) error {
	cmd := lab.Command(h.ns, "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("nft on %s: %w\n%s\n%s", h.name, err, out, script)
	}
	return nil
}

// witness has the host's policy enforced by the nft command, alter changing it before. (optional)
func (h *witnessHost) witness(alter func(*witnessResources)) {
	h.all = true
	h.witnessed = func(c *witnessCase) string {
		if alter != nil {
			c = c.with(c.clone())
			alter(c.witnessResources)
		}
		return c.script()
	}
	h.enforce = func(c *witnessCase) error { return h.script(h.witnessed(c)) }
}

// untracked has the host's policy enforced by `untracked apply`, in one mode.
func (h *witnessHost) untracked(l *lab.Lab, mode string) error {
	bpffs, files := filepath.Join(l.BPFFS, h.name), filepath.Join(l.Dir, h.name+"-policy")
	if err := os.Mkdir(bpffs, 0o700); err != nil {
		return err
	}
	chain, err := l.Chain(lab.ChainConfig{Annotations: map[string]string{}})
	if err != nil {
		return err
	}
	h.enforce = func(c *witnessCase) error {
		if err := c.write(files); err != nil {
			return err
		}
		annotations := map[string]string{
			"bpffs": bpffs, "run-dir": filepath.Join(l.RunDir, h.name), "mode": mode, "node": witnessNode, "interfaces": witnessInterface,
			"policy-files": files, "failsafe-inbound": "none", "failsafe-outbound": "none", "auto-return": "false",
		}
		if len(c.Labels) > 0 {
			annotations["labels"] = c.labels()
		}
		if err := chain.Rewrite(lab.ChainConfig{Annotations: annotations}); err != nil {
			return err
		}
		out, err := lab.Command(h.ns, filepath.Join(chain.Bin, "untracked"), "apply", chain.File).CombinedOutput()
		if err != nil {
			return fmt.Errorf("untracked apply on %s: %w\n%s", h.name, err, out)
		}
		return nil
	}
	return nil
}

// witnessTry puts a policy in force on each of some hosts, at once, and sends them the packets.
func witnessTry(hosts []*witnessHost, c *witnessCase, packets []witnessPacket) ([][]witnessSeen, error) {
	seen, errs := make([][]witnessSeen, len(hosts)), make([]error, len(hosts))
	var wait sync.WaitGroup
	for i, h := range hosts {
		wait.Go(func() {
			if errs[i] = h.enforce(c); errs[i] == nil {
				seen[i], errs[i] = h.observe(packets)
			}
		})
	}
	wait.Wait()
	return seen, errors.Join(errs...)
}
