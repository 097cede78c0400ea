// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Flow is one entry of a connection tracking table.
type Flow struct {
	Protocol uint8
	// Source and Destination are the first packet's. For ICMP both ports are the identifier's or 0.
	Source, Destination           netip.AddrPort
	ReplySource, ReplyDestination netip.AddrPort
	Status                        uint32 // IPS_* bits of the kernel
	TCPState                      uint8  // TCP_CONNTRACK_*, such as nl.TCP_CONNTRACK_ESTABLISHED
}

// Replied reports whether the flow has seen packets in both directions.
func (f *Flow) Replied() bool { return f.Status&(1<<1) != 0 } // IPS_SEEN_REPLY

func (f *Flow) String() string {
	return fmt.Sprintf("proto %d %s -> %s status %#x", f.Protocol, f.Source, f.Destination, f.Status)
}

// Match is a condition on flows.
type Match func(*Flow) bool

// Protocol matches flows of an IP protocol, unix.IPPROTO_TCP for instance.
func Protocol(n uint8) Match { return func(f *Flow) bool { return f.Protocol == n } }

// Port matches flows that have the port on either side.
func Port(n uint16) Match {
	return func(f *Flow) bool { return f.Source.Port() == n || f.Destination.Port() == n }
}

// Host matches flows that have the address on either side.
func Host(a netip.Addr) Match {
	return func(f *Flow) bool { return f.Source.Addr() == a || f.Destination.Addr() == a }
}

// Flows reads the connection tracking table of ns, both families, and returns what matches all conditions.
func Flows(ns *NS, match ...Match) (flows []Flow, err error) {
	messages, err := ctnetlink(ns, nl.IPCTNL_MSG_CT_GET)
	if err != nil {
		return nil, fmt.Errorf("list conntrack entries of %s: %w", ns.Name, err)
	}
next:
	for _, m := range messages {
		f, err := parseFlow(m)
		if err != nil {
			return nil, fmt.Errorf("list conntrack entries of %s: %w", ns.Name, err)
		}
		for _, ok := range match {
			if !ok(&f) {
				continue next
			}
		}
		flows = append(flows, f)
	}
	return flows, nil
}

// CountFlows is the number of flows that match.
func CountFlows(ns *NS, match ...Match) (int, error) {
	if len(match) == 0 {
		return flowCount(ns)
	}
	flows, err := Flows(ns, match...)
	return len(flows), err
}

// flowCount asks the kernel's own counter, which is what nf_conntrack_max is compared with.
func flowCount(ns *NS) (n int, err error) {
	err = In(ns, func() error {
		n, err = readFlowCount()
		return err
	})
	return n, err
}

func readFlowCount() (int, error) {
	text, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_count")
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

// HostFlowCount is the number of entries of the namespace that this process is in: connections that a limit
// would hit as well.
func HostFlowCount() (int, error) { return readFlowCount() }

// FlushFlows empties the connection tracking table of ns.
func FlushFlows(ns *NS) error {
	if err := In(ns, func() error { return netlink.ConntrackTableFlush(netlink.ConntrackTable) }); err != nil {
		return fmt.Errorf("flush conntrack entries of %s: %w", ns.Name, err)
	}
	return nil
}

// Conntrack counters of the kernel, by their names in `conntrack -S`.
const (
	ctStatInvalid      = 4
	ctStatInsertFailed = 9
	ctStatDrop         = 10
	ctStatEarlyDrop    = 11
)

// ConntrackStats counts packets since the namespace began.
type ConntrackStats struct {
	Invalid      uint64
	InsertFailed uint64
	Drop         uint64 // what a full table turned away
	EarlyDrop    uint64 // entries evicted to make room
}

// ReadConntrackStats reads the connection tracking statistics of ns.
func ReadConntrackStats(ns *NS) (s ConntrackStats, err error) {
	const msgStatsCPU = 4 // IPCTNL_MSG_CT_GET_STATS_CPU
	messages, err := ctnetlink(ns, msgStatsCPU)
	if err != nil {
		return s, fmt.Errorf("read conntrack statistics of %s: %w", ns.Name, err)
	}
	for _, m := range messages {
		attrs, err := attributes(m)
		if err != nil {
			return s, fmt.Errorf("read conntrack statistics of %s: %w", ns.Name, err)
		}
		for kind, to := range map[int]*uint64{ctStatInvalid: &s.Invalid, ctStatInsertFailed: &s.InsertFailed, ctStatDrop: &s.Drop, ctStatEarlyDrop: &s.EarlyDrop} {
			if v := attrs[kind]; len(v) == 4 {
				*to += uint64(binary.BigEndian.Uint32(v))
			}
		}
	}
	return s, nil
}

// ctnetlink dumps a kind of message, for every family.
func ctnetlink(ns *NS, message int) (messages [][]byte, err error) {
	err = In(ns, func() error {
		for range 5 {
			req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_CTNETLINK<<8|message, unix.NLM_F_DUMP)
			req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC, Version: nl.NFNETLINK_V0})
			messages, err = req.Execute(unix.NETLINK_NETFILTER, 0)
			if !errors.Is(err, nl.ErrDumpInterrupted) {
				break
			}
		}
		return err
	})
	return messages, err
}

// The library's own parser takes every flow for one with ports.
func parseFlow(message []byte) (f Flow, err error) {
	attrs, err := attributes(message)
	if err != nil {
		return f, err
	}
	if f.Protocol, f.Source, f.Destination, err = parseTuple(attrs[nl.CTA_TUPLE_ORIG]); err != nil {
		return f, err
	}
	if _, f.ReplySource, f.ReplyDestination, err = parseTuple(attrs[nl.CTA_TUPLE_REPLY]); err != nil {
		return f, err
	}
	if v := attrs[nl.CTA_STATUS]; len(v) == 4 {
		f.Status = binary.BigEndian.Uint32(v)
	}
	if info, err := nested(attrs[nl.CTA_PROTOINFO]); err == nil {
		tcp, err := nested(info[nl.CTA_PROTOINFO_TCP])
		if v := tcp[nl.CTA_PROTOINFO_TCP_STATE]; err == nil && len(v) == 1 {
			f.TCPState = v[0]
		}
	}
	return f, nil
}

func parseTuple(b []byte) (protocol uint8, source, destination netip.AddrPort, err error) {
	const icmpID, icmp6ID = 4, 7 // CTA_PROTO_ICMP_ID, CTA_PROTO_ICMPV6_ID
	tuple, err := nested(b)
	if err != nil {
		return 0, source, destination, err
	}
	ip, err := nested(tuple[nl.CTA_TUPLE_IP])
	if err != nil {
		return 0, source, destination, err
	}
	proto, err := nested(tuple[nl.CTA_TUPLE_PROTO])
	if err != nil {
		return 0, source, destination, err
	}
	address := func(kinds ...int) netip.Addr {
		for _, kind := range kinds {
			if a, ok := netip.AddrFromSlice(ip[kind]); ok {
				return a
			}
		}
		return netip.Addr{}
	}
	port := func(kinds ...int) uint16 {
		for _, kind := range kinds {
			if v := proto[kind]; len(v) == 2 {
				return binary.BigEndian.Uint16(v)
			}
		}
		return 0
	}
	if v := proto[nl.CTA_PROTO_NUM]; len(v) == 1 {
		protocol = v[0]
	}
	source = netip.AddrPortFrom(address(nl.CTA_IP_V4_SRC, nl.CTA_IP_V6_SRC), port(nl.CTA_PROTO_SRC_PORT, icmpID, icmp6ID))
	destination = netip.AddrPortFrom(address(nl.CTA_IP_V4_DST, nl.CTA_IP_V6_DST), port(nl.CTA_PROTO_DST_PORT, icmpID, icmp6ID))
	return protocol, source, destination, nil
}

func attributes(message []byte) (map[int][]byte, error) {
	if len(message) < nl.SizeofNfgenmsg {
		return nil, syscall.EINVAL
	}
	return nested(message[nl.SizeofNfgenmsg:])
}

func nested(b []byte) (map[int][]byte, error) {
	list, err := nl.ParseRouteAttr(b)
	if err != nil {
		return nil, err
	}
	attrs := make(map[int][]byte, len(list))
	for _, a := range list {
		attrs[int(a.Attr.Type&nl.NLA_TYPE_MASK)] = a.Value
	}
	return attrs, nil
}
