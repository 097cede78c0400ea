// SPDX-License-Identifier: Apache-2.0

package hostif

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// LocalAddrs returns every address that an interface of this network namespace holds, loopback and
// link-local ones included, sorted, each once. IPv6 addresses have no zone.
func LocalAddrs() ([]netip.Addr, error) {
	addrs, err := listAddrs()
	if err != nil {
		return nil, err
	}
	out := make([]netip.Addr, 0, len(addrs))
	for i := range addrs {
		if a, ok := localAddr(&addrs[i]); ok {
			out = append(out, a)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out), nil
}

// AddAddresses fills in the addresses of interfaces, with one listing for all of them. One that is gone has none.
func AddAddresses(of []Interface) error {
	if len(of) == 0 {
		return nil
	}
	addrs, err := listAddrs()
	if err != nil {
		return err
	}
	byIndex := make(map[int][]netip.Prefix)
	for i := range addrs {
		if p, ok := globalPrefix(&addrs[i]); ok {
			byIndex[addrs[i].LinkIndex] = append(byIndex[addrs[i].LinkIndex], p)
		}
	}
	for i := range of {
		found := byIndex[of[i].Index]
		slices.SortFunc(found, netip.Prefix.Compare)
		of[i].Addresses = slices.Compact(found)
	}
	return nil
}

// maxAddrDumps is how often a list of addresses that changed while it was read is read again. It takes a fraction of a
// millisecond, so that even where a hundred pods start at once one of the readings is undisturbed.
const maxAddrDumps = 20

// listAddrs lists all addresses, or fails: to act on a part of them would be to take the others for gone.
// (netlinksafe.AddrList returns what it has, without an error, when it was interrupted too often.)
func listAddrs() ([]netlink.Addr, error) {
	var err error
	for range maxAddrDumps {
		var addrs []netlink.Addr
		if addrs, err = dumpAddrs(); err == nil {
			return addrs, nil
		}
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return nil, fmt.Errorf("list addresses: %w", err)
}

// dumpAddrs is a variable for tests.
var dumpAddrs = func() ([]netlink.Addr, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	if err := h.SetSocketTimeout(socketTimeout); err != nil {
		return nil, err
	}
	return h.AddrList(nil, netlink.FAMILY_ALL)
}

// localAddr is the interface's own address; of a point-to-point address the near end.
func localAddr(a *netlink.Addr) (netip.Addr, bool) {
	if a.IPNet == nil {
		return netip.Addr{}, false
	}
	addr, ok := netip.AddrFromSlice(a.IP)
	return addr.Unmap(), ok
}

// globalPrefix is the interface's own address with the length of its network's prefix, which keeps its host bits. It
// leaves out what is of a narrower scope than global. Of a point-to-point address it is the near end alone.
func globalPrefix(a *netlink.Addr) (netip.Prefix, bool) {
	addr, ok := localAddr(a)
	if !ok || a.Scope != unix.RT_SCOPE_UNIVERSE || !addr.IsGlobalUnicast() {
		return netip.Prefix{}, false
	}
	bits, _ := a.Mask.Size()
	return netip.PrefixFrom(addr, bits), true
}
