// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/test/lab"
)

// pod puts a host behind the node, which forwards between it and the client.
func (n *trafficNode) pod() (pod *lab.NS, pod4, pod6 netip.Addr) {
	n.Helper()
	pod = must(n.lab.AddNS("pod"))(n)
	check(n, lab.Veth(n.Node, "pod0", pod, "eth0", 1500))
	pod4, pod6 = netip.MustParseAddr("10.99.0.2"), netip.MustParseAddr("2001:db8:99::2")
	check(n, lab.AddAddrs(n.Node, "pod0", netip.PrefixFrom(pod4.Prev(), 24), netip.PrefixFrom(pod6.Prev(), 64)))
	check(n, lab.AddAddrs(pod, "eth0", netip.PrefixFrom(pod4, 24), netip.PrefixFrom(pod6, 64)))
	check(n, lab.AddRoute(pod, netip.PrefixFrom(netip.IPv4Unspecified(), 0), pod4.Prev()))
	check(n, lab.AddRoute(pod, netip.PrefixFrom(netip.IPv6Unspecified(), 0), pod6.Prev()))
	return pod, pod4, pod6
}

// A packet that the policy calls untracked but that is forwarded stays tracked, so that a stateful forward chain
// lets it and its answers pass; and the mark goes no further than the raw table.
func TestTrafficForwarded(t *testing.T) {
	for _, mode := range trafficModes {
		t.Run(mode, func(t *testing.T) {
			n := newTraffic(t, lab.Config{})
			pod, pod4, pod6 := n.pod()
			for _, ns := range []*lab.NS{pod, n.Node} {
				must(lab.ServeTCP(ns, 6379))(t)
				must(lab.ServeUDP(ns, 5353))(t)
			}
			marked := must(trafficCountMarked(n.Node, 0x1000))(t)
			n.apply(map[string]string{"mode": mode, "interfaces": "eth0", "ports": "tcp/6379,udp/5353"})
			for _, f := range n.families() {
				target := pod4
				if f.node.Is6() {
					target = pod6
				}
				before := n.packets("eth0")
				n.wantTCP(n.Client, lab.Load{Target: netip.AddrPortFrom(target, 6379), Sources: f.clients, Count: 50})
				n.wantUDP(n.Client, lab.Load{Target: netip.AddrPortFrom(target, 5353), Sources: f.clients, Count: 50})
				n.wantUDP(n.Client, lab.Load{Target: netip.AddrPortFrom(target, 5353), Sources: f.clients, Count: 5, Payload: 4000})
				if n.packets("eth0").Untracked-before.Untracked < 200 {
					t.Errorf("%s: the program did not call the forwarded packets untracked, so nothing was tried", f.name)
				}
				replied := (*lab.Flow).Replied
				n.wantFlows(50, lab.Protocol(policy.TCP), lab.Host(target), lab.Port(6379), replied)
				n.wantFlows(55, lab.Protocol(policy.UDP), lab.Host(target), lab.Port(5353), replied)

				// The node's own service on the same port is untracked all the same.
				n.wantTCP(n.Client, lab.Load{Target: netip.AddrPortFrom(f.node, 6379), Sources: f.clients, Count: 20})
				n.wantFlows(0, lab.Protocol(policy.TCP), lab.Host(f.node))
			}
			n.wantNoInvalid()
			if got := must(marked())(t); got != 0 {
				t.Errorf("%d packets still had the mark behind the raw table", got)
			}
		})
	}
}

// trafficCountMarked counts packets on input and forward that have a mark bit.
func trafficCountMarked(ns *lab.NS, bit uint32) (read func() (uint64, error), err error) {
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: "lab-marked"}
	mask := binary.NativeEndian.AppendUint32(nil, bit)
	err = lab.In(ns, func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		c.AddTable(table)
		c.AddObj(&nftables.NamedObj{Table: table, Name: "marked", Type: nftables.ObjTypeCounter, Obj: &expr.Counter{}})
		for name, hook := range map[string]*nftables.ChainHook{"input": nftables.ChainHookInput, "forward": nftables.ChainHookForward} {
			chain := c.AddChain(&nftables.Chain{Name: name, Table: table, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: nftables.ChainPriorityFilter})
			c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
				&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
				&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: make([]byte, 4)},
				&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
				&expr.Objref{Type: int(nftables.ObjTypeCounter), Name: "marked"},
			}})
		}
		return c.Flush()
	})
	read = func() (count uint64, err error) {
		err = lab.In(ns, func() error {
			c, err := nftables.New()
			if err != nil {
				return err
			}
			obj, err := c.GetObject(&nftables.NamedObj{Table: table, Name: "marked", Type: nftables.ObjTypeCounter})
			if err != nil {
				return err
			}
			count = obj.(*nftables.NamedObj).Obj.(*expr.Counter).Packets
			return nil
		})
		return count, err
	}
	return read, err
}

// trafficNAT adds a chain of type nat with one rule.
func trafficNAT(ns *lab.NS, hook *nftables.ChainHook, priority nftables.ChainPriority, exprs ...expr.Any) error {
	return lab.In(ns, func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "lab-nat"})
		chain := c.AddChain(&nftables.Chain{Name: "nat", Table: table, Type: nftables.ChainTypeNAT, Hooknum: hook, Priority: &priority})
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: exprs})
		return c.Flush()
	})
}
