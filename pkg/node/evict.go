// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/pkg/hostif"
	"github.com/untracked-cni/untracked/pkg/netset"
	"github.com/untracked-cni/untracked/pkg/policy"
)

// routeTimeout bounds each question for a route.
const routeTimeout = 5 * time.Second

// evict deletes the conntrack entries of flows that the rules now leave untracked, and returns how many there
// were. Otherwise they would stay until they time out, for days with TCP, and fill the table as before.
//
// installed are the interfaces that have the policy. An entry does not say by which interface its flow comes; the
// route to the other side does, as well as anything can.
func evict(lists []List, installed []InterfaceRecord) (int, error) {
	local, err := hostif.Local()
	if err != nil {
		return 0, err
	}
	routes, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return 0, fmt.Errorf("open rtnetlink socket: %w", err)
	}
	defer routes.Close()
	if err := routes.SetSocketTimeout(routeTimeout); err != nil {
		return 0, fmt.Errorf("set timeout of rtnetlink socket: %w", err)
	}
	m := flowMatcher{local: local}
	byInterface := map[int]*policy.Rules{}
	for _, i := range installed {
		if i.installed() {
			byInterface[i.Index] = &lists[i.List].Rules
		}
	}
	known := map[[2]netip.Addr]*policy.Rules{}
	m.rules = func(local, peer netip.Addr) *policy.Rules {
		key := [2]netip.Addr{local, peer}
		if rules, ok := known[key]; ok {
			return rules
		}
		// Where there is no route, there are no packets.
		found, _ := routes.RouteGetWithOptions(peer.AsSlice(), &netlink.RouteGetOptions{SrcAddr: local.AsSlice()})
		for _, r := range found {
			if rules := byInterface[r.LinkIndex]; rules != nil {
				known[key] = rules
				return rules
			}
		}
		known[key] = nil
		return nil
	}
	total := 0
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		n, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, m)
		total += int(n)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, netlink.ErrDumpInterrupted) {
			continue // entries that went away by themselves meanwhile
		}
		if err != nil {
			return total, fmt.Errorf("delete conntrack entries: %w", err)
		}
	}
	return total, nil
}

// flowMatcher finds the entries of flows between this host and others that neither direction tracks any more.
type flowMatcher struct {
	local *netset.Set
	// rules are those of the interface by which packets from a local address to a peer leave, nil if it has none.
	rules func(local, peer netip.Addr) *policy.Rules
}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (m flowMatcher) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	src, ok1 := netip.AddrFromSlice(f.Forward.SrcIP)
	dst, ok2 := netip.AddrFromSlice(f.Forward.DstIP)
	if !ok1 || !ok2 || !policy.HasPorts(f.Forward.Protocol) {
		return false
	}
	// A translated flow needs its entry: an untracked packet is never translated.
	if !f.Forward.SrcIP.Equal(f.Reverse.DstIP) || !f.Forward.DstIP.Equal(f.Reverse.SrcIP) ||
		f.Forward.SrcPort != f.Reverse.DstPort || f.Forward.DstPort != f.Reverse.SrcPort {
		return false
	}
	p := policy.Packet{
		Src: src.Unmap(), Dst: dst.Unmap(), Protocol: f.Forward.Protocol,
		HasL4: true, SrcPort: f.Forward.SrcPort, DstPort: f.Forward.DstPort,
	}
	from, to := m.local.Contains(p.Src), m.local.Contains(p.Dst)
	switch {
	case from == to: // forwarded, or within the host
		return false
	case to:
		rules := m.rules(p.Dst, p.Src)
		return rules != nil && policy.Evaluate(rules.Ingress, &p).Verdict == policy.Untracked
	}
	rules := m.rules(p.Src, p.Dst)
	return rules != nil && policy.Evaluate(rules.Egress, &p).Verdict == policy.Untracked
}
