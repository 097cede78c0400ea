// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/test/lab"
)

// witnessMark is on packets of ours that leave. Everything else that would leave is dropped.
const witnessMark = 2

// The observer sees each packet behind connection tracking, by its id and with its state. Nothing the policy does to
// ARP is worth anything, so that an ARP packet behind the others tells when they are all through.
//
// The sets neither grow beyond their first size nor shrink: while the kernel resizes one, a listing is not exact.
const witnessObserver = `
table inet observer
delete table inet observer
table inet observer {
  set arrived4 { typeof ip id; size 4096; flags dynamic; }
  set arrived6 { typeof ip6 flowlabel; size 4096; flags dynamic; }
  set seen4 { typeof ip id . ct state; size 4096; flags dynamic; }
  set seen6 { typeof ip6 flowlabel . ct state; size 4096; flags dynamic; }
  chain arriving {
    type filter hook prerouting priority -450
    iifname eth0 add @arrived4 { ip id }
    iifname eth0 add @arrived6 { ip6 flowlabel }
  }
  chain arrived {
    type filter hook prerouting priority -150
    iifname eth0 add @seen4 { ip id . ct state }
    iifname eth0 add @seen6 { ip6 flowlabel . ct state }
  }
  chain leaving {
    type filter hook output priority -450
    meta mark != 2 drop
  }
  chain left {
    type filter hook output priority -150
    add @seen4 { ip id . ct state }
    add @seen6 { ip6 flowlabel . ct state }
  }
  chain forwarded {
    type filter hook forward priority 0; policy drop
  }
}
table arp observer
delete table arp observer
table arp observer {
  counter markers { }
  chain input {
    type filter hook input priority 0; policy drop
    counter name markers
  }
}
`

// witnessSeen is what became of a packet.
type witnessSeen struct {
	// Passed says that it got behind connection tracking, Untracked that it had no state there.
	Passed, Untracked bool
	// Entry says that the connection tracking table has its flow.
	Entry bool
}

func (s witnessSeen) String() string {
	switch s {
	case witnessSeen{}:
		return "dropped"
	case witnessSeen{Passed: true, Untracked: true}:
		return "untracked"
	case witnessSeen{Passed: true, Entry: true}:
		return "tracked, with an entry"
	case witnessSeen{Passed: true}:
		return "tracked, without an entry"
	}
	return fmt.Sprintf("%+v", struct{ Passed, Untracked, Entry bool }(s))
}

// observe sends packets to the host, or from it, and returns what became of each.
func (h *witnessHost) observe(packets []witnessPacket) ([]witnessSeen, error) {
	if err := h.forget(len(packets)); err != nil {
		return nil, err
	}
	base := h.base
	if err := h.send(packets); err != nil {
		return nil, fmt.Errorf("send to %s: %w", h.name, err)
	}
	seen := make([]witnessSeen, len(packets))
	arrived := 0
	for _, family := range []struct {
		name string
		id   int // where the id stands in a set's key: IPv4's is 2 bytes long, a flow label 3
	}{{"4", 0}, {"6", 1}} {
		elements, err := h.elements("seen" + family.name)
		if err != nil {
			return nil, err
		}
		for _, e := range elements {
			if i := int(binary.BigEndian.Uint16(e.Key[family.id:])) - base - 1; 0 <= i && i < len(seen) {
				seen[i].Passed = true
				seen[i].Untracked = binary.NativeEndian.Uint32(e.Key[4:])&expr.CtStateBitUNTRACKED != 0
			}
		}
		if elements, err = h.elements("arrived" + family.name); err != nil {
			return nil, err
		}
		for _, e := range elements {
			if int(binary.BigEndian.Uint16(e.Key[family.id:])) > base {
				arrived++
			}
		}
	}
	if sent := witnessArriving(packets); h.all && arrived != sent {
		return nil, fmt.Errorf("%d of %d packets arrived at %s", arrived, sent, h.name)
	}
	flows, err := lab.Flows(h.ns)
	if err != nil {
		return nil, err
	}
	entries := make(map[string]bool, len(flows))
	for _, f := range flows {
		entries[fmt.Sprintf("%d %s %s", f.Protocol, f.Source, f.Destination)] = true
	}
	for i := range packets {
		seen[i].Entry = entries[packets[i].flow(uint16(base+i+1))]
	}
	return seen, nil
}

func witnessArriving(packets []witnessPacket) (n int) {
	for _, p := range packets {
		if !p.Egress {
			n++
		}
	}
	return n
}

func (h *witnessHost) elements(set string) ([]nftables.SetElement, error) {
	elements, err := h.nft.GetSetElements(h.set(set))
	if err != nil {
		return nil, fmt.Errorf("read set %s of %s: %w", set, h.name, err)
	}
	return elements, nil
}

func (h *witnessHost) set(name string) *nftables.Set {
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: "observer"}
	return &nftables.Set{Table: table, Name: name, Concatenation: true, KeyType: nftables.SetDatatype{Name: "id", Bytes: 8}}
}

// forget takes away what earlier packets left, and has room for some more.
func (h *witnessHost) forget(packets int) error {
	if h.base+packets > 4000 {
		if err := h.script(witnessObserver); err != nil {
			return err
		}
		h.base = 0
	}
	return lab.FlushFlows(h.ns)
}

// send returns when the packets are through. What arrives does so in the order of sending, all being sent on one CPU.
func (h *witnessHost) send(packets []witnessPacket) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var all, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		return os.NewSyscallError("sched_getaffinity", err)
	}
	for cpu := 0; one.Count() == 0; cpu++ {
		if all.IsSet(cpu) {
			one.Set(cpu)
		}
	}
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return os.NewSyscallError("sched_setaffinity", err)
	}
	defer unix.SchedSetaffinity(0, &all)

	for _, p := range packets {
		h.base++
		ip := p.ip(uint16(h.base))
		if p.Egress {
			if err := h.leave(p.Dst, ip); err != nil {
				return fmt.Errorf("%s: %w", &p, err)
			}
			continue
		}
		if err := h.sender.Send(trafficFrame(lab.Uplink{NodeMAC: h.mac, ClientMAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}}, ip)); err != nil {
			return err
		}
	}
	before, err := h.markers()
	if err != nil {
		return err
	}
	marker := slices.Concat(h.mac, []byte{2, 0, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 2}, make([]byte, 20)) // an ARP reply
	if err := h.sender.Send(marker); err != nil {
		return err
	}
	for deadline := time.Now().Add(trafficPatience); ; {
		now, err := h.markers()
		if err != nil || now > before {
			return err
		}
		if time.Now().After(deadline) {
			return errors.New("the last frame did not arrive")
		}
	}
}

func (h *witnessHost) leave(dst netip.Addr, ip []byte) error {
	var to unix.Sockaddr = &unix.SockaddrInet6{Addr: dst.As16()}
	if dst.Is4() {
		to = &unix.SockaddrInet4{Addr: dst.As4()}
	}
	err := unix.Sendto(h.raw[dst.Is4()], ip, 0, to)
	if errors.Is(err, unix.EPERM) { // dropped on the way
		return nil
	}
	return err
}

func (h *witnessHost) markers() (uint64, error) {
	table := &nftables.Table{Family: nftables.TableFamilyARP, Name: "observer"}
	obj, err := h.nft.GetObject(&nftables.NamedObj{Table: table, Name: "markers", Type: nftables.ObjTypeCounter})
	if err != nil {
		return 0, fmt.Errorf("counter markers: %w", err)
	}
	if o, ok := obj.(*nftables.NamedObj); ok {
		if c, ok := o.Obj.(*expr.Counter); ok {
			return c.Packets, nil
		}
	}
	return 0, fmt.Errorf("counter markers: got a %T", obj)
}
