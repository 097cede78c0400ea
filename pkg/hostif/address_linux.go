// SPDX-License-Identifier: Apache-2.0

package hostif

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/pkg/netset"
)

// Local returns what this network namespace takes for its own addresses (fib daddr type local): those that interfaces
// hold, loopback and link-local ones included, and what a local route says, as for a load balancer's addresses.
func Local() (*netset.Set, error) {
	var b netset.Builder
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		filter := &netlink.Route{Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_LOCAL}
		routes, err := undisturbed(maxAddrDumps, withRtnetlink(func(h *netlink.Handle) ([]netlink.Route, error) {
			return h.RouteListFiltered(family, filter, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_TYPE)
		}))
		if err != nil {
			return nil, fmt.Errorf("list local routes: %w", err)
		}
		for _, r := range routes {
			if r.Dst == nil {
				continue
			}
			addr, ok := netip.AddrFromSlice(r.Dst.IP)
			bits, _ := r.Dst.Mask.Size()
			if ok {
				b.Add(netip.PrefixFrom(addr.Unmap(), bits))
			}
		}
	}
	return b.Build(), nil
}

// IsLocal reports whether this network namespace takes an address for its own.
func IsLocal(addr netip.Addr) (bool, error) {
	routes, err := withRtnetlink(func(h *netlink.Handle) ([]netlink.Route, error) { return h.RouteGet(addr.AsSlice()) })()
	if errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH) {
		return false, nil // nor anybody's
	}
	if err != nil {
		return false, fmt.Errorf("look up the route to %s: %w", addr, err)
	}
	return slices.ContainsFunc(routes, func(r netlink.Route) bool { return r.Type == unix.RTN_LOCAL }), nil
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
	addrs, err := undisturbed(maxAddrDumps, dumpAddrs)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	return addrs, nil
}

// dumpAddrs is a variable for tests.
var dumpAddrs = withRtnetlink(func(h *netlink.Handle) ([]netlink.Addr, error) { return h.AddrList(nil, netlink.FAMILY_ALL) })

// undisturbed reads a list until nothing changed meanwhile, and for at most so many times. What it returns without an
// error is complete.
func undisturbed[T any](times int, dump func() ([]T, error)) ([]T, error) {
	var err error
	for range times {
		var list []T
		if list, err = dump(); err == nil {
			return list, nil
		}
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return nil, err
}

// withRtnetlink gives a dump a socket of its own, each of whose answers has a deadline.
func withRtnetlink[T any](dump func(*netlink.Handle) ([]T, error)) func() ([]T, error) {
	return func() ([]T, error) {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return nil, err
		}
		defer h.Close()
		if err := h.SetSocketTimeout(socketTimeout); err != nil {
			return nil, err
		}
		return dump(h)
	}
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
