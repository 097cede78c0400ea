// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Our filter among those that other tools (Cilium, Calico) put on the same qdisc: first in order, under a
// handle and a name nobody else takes.
const (
	filterHandle   = 0x756e7472 // "untr"
	filterPriority = 1
	filterName     = "untracked"
)

// attachClsact is the way into tc before Linux 6.6. Replacing the filter is one step for the packets.
func attachClsact(ifindex int, program *ebpf.Program) error {
	qdisc := &netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{
			LinkIndex: ifindex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
		},
		QdiscType: "clsact",
	}
	if err := netlink.QdiscAdd(qdisc); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("add clsact qdisc: %w", err)
	}
	return netlink.FilterReplace(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: ifindex, Parent: netlink.HANDLE_MIN_INGRESS, Handle: filterHandle,
			Priority: filterPriority, Protocol: unix.ETH_P_ALL,
		},
		Fd: program.FD(), Name: filterName, DirectAction: true,
	})
}

// ownFilter finds our filter on an interface, nil if there is none.
func ownFilter(ifindex int) (own *netlink.BpfFilter, others bool, err error) {
	nl, err := netlink.LinkByIndex(ifindex)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("find interface %d: %w", ifindex, err)
	}
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		filters, err := netlinksafe.FilterList(nl, parent)
		if err != nil {
			if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENODEV) {
				continue // no clsact qdisc, or no interface any more
			}
			return nil, false, fmt.Errorf("list tc filters of %s: %w", nl.Attrs().Name, err)
		}
		for _, f := range filters {
			if b, ok := f.(*netlink.BpfFilter); ok && b.Handle == filterHandle && b.Name == filterName {
				own = b
			} else {
				others = true
			}
		}
	}
	return own, others, nil
}

func verifyClsact(ifindex int, want uint32) error {
	own, _, err := ownFilter(ifindex)
	if err != nil {
		return err
	}
	if own == nil {
		return fmt.Errorf("tc filter of interface %d: %w", ifindex, errDefunct)
	}
	if uint32(own.Id) != want {
		return fmt.Errorf("tc filter of interface %d: program %d is attached, want %d", ifindex, own.Id, want)
	}
	return nil
}

// detachClsact removes our filter, and the qdisc with it when nobody else has a filter there.
func detachClsact(ifindex int) error {
	own, others, err := ownFilter(ifindex)
	if err != nil || own == nil {
		return err
	}
	if err := netlink.FilterDel(own); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("delete tc filter of interface %d: %w", ifindex, err)
	}
	if others {
		return nil
	}
	nl, err := netlink.LinkByIndex(ifindex)
	if err != nil {
		return nil // the interface went away, and the qdisc with it
	}
	qdiscs, err := netlinksafe.QdiscList(nl)
	if err != nil {
		return fmt.Errorf("list qdiscs of interface %d: %w", ifindex, err)
	}
	for _, q := range qdiscs {
		if q.Type() == "clsact" {
			if err := netlink.QdiscDel(q); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
				return fmt.Errorf("delete clsact qdisc of interface %d: %w", ifindex, err)
			}
		}
	}
	return nil
}
