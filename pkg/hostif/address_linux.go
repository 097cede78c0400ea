// SPDX-License-Identifier: Apache-2.0

package hostif

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
)

// LocalAddrs returns every address that an interface of this network namespace holds, loopback and
// link-local ones included, sorted, each once. IPv6 addresses have no zone.
func LocalAddrs() ([]netip.Addr, error) {
	addrs, err := netlinksafe.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
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
