// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Hooks is what hangs on an interface where untracked may hang something. The numbers are program IDs.
type Hooks struct {
	XDP     uint32
	Generic bool // the XDP program runs in generic (skb) mode
	// TCX are the programs on tcx, which needs Linux 6.6.
	TCXIngress, TCXEgress []uint32
	// Clsact says that the interface has that qdisc, Filters how many filters are on it.
	Clsact  bool
	Filters int
}

// None reports whether nothing hangs there.
func (h Hooks) None() bool {
	return h.XDP == 0 && len(h.TCXIngress)+len(h.TCXEgress) == 0 && !h.Clsact
}

// ReadHooks asks the kernel, not our own records.
func ReadHooks(ns *NS, ifname string) (h Hooks, err error) {
	err = onLink(ns, ifname, func(l netlink.Link) error {
		if x := l.Attrs().Xdp; x != nil && x.Attached {
			h.XDP, h.Generic = x.ProgId, x.AttachMode == nl.XDP_ATTACHED_SKB
		}
		for attach, to := range map[ebpf.AttachType]*[]uint32{ebpf.AttachTCXIngress: &h.TCXIngress, ebpf.AttachTCXEgress: &h.TCXEgress} {
			result, err := link.QueryPrograms(link.QueryOptions{Target: l.Attrs().Index, Attach: attach})
			if errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, unix.EINVAL) {
				continue
			}
			if err != nil {
				return fmt.Errorf("query %s: %w", attach, err)
			}
			for _, p := range result.Programs {
				*to = append(*to, uint32(p.ID))
			}
		}
		qdiscs, err := netlink.QdiscList(l)
		if err != nil {
			return err
		}
		for _, q := range qdiscs {
			h.Clsact = h.Clsact || q.Type() == "clsact"
		}
		if h.Clsact {
			for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
				filters, err := netlink.FilterList(l, parent)
				if err != nil {
					return err
				}
				h.Filters += len(filters)
			}
		}
		return nil
	})
	return h, err
}
