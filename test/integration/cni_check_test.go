// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf/link"
	"github.com/google/nftables"
	"github.com/vishvananda/netns"

	"github.com/untracked-cni/untracked/pkg/node"
	"github.com/untracked-cni/untracked/test/lab"
)

// cniDetach takes a pinned link off its interface, as `xdp-loader unload` and others do.
func cniDetach(t *testing.T, path string) {
	t.Helper()
	l := must(link.LoadPinnedLink(path, nil))(t)
	defer l.Close()
	check(t, l.Detach())
}

// cniNft changes nftables in the node's namespace.
func cniNft(t *testing.T, l *lab.Lab, change func(*nftables.Conn, *nftables.Table)) {
	t.Helper()
	ns := must(netns.GetFromPath(l.Node.Path))(t)
	defer ns.Close()
	c := must(nftables.New(nftables.WithNetNSFd(int(ns))))(t)
	change(c, &nftables.Table{Family: nftables.TableFamilyINet, Name: "untracked"})
	check(t, c.Flush())
}

func cniDeleteRules(t *testing.T, c *nftables.Conn, table *nftables.Table, chain string, at func(n int) int) {
	t.Helper()
	rules := must(c.GetRules(table, &nftables.Chain{Table: table, Name: chain}))(t)
	if len(rules) == 0 {
		t.Fatalf("chain %s has no rules", chain)
	}
	r := rules[at(len(rules))]
	r.Table = table
	check(t, c.DelRule(r))
}

// Each of these takes away a part of what was applied. CHECK and status say so, and the next ADD puts it back.
func TestCNIDriftIsSeenAndRepaired(t *testing.T) {
	for _, mode := range []string{"auto", "tc"} {
		t.Run(mode, func(t *testing.T) { cniTestDrift(t, mode) })
	}
}

func cniTestDrift(t *testing.T, mode string) {
	l := lab.New(t, lab.Config{Uplinks: 2})
	policy := cniPolicy("mode", mode, "interfaces", "eth*", "remote-ports", "udp/5353")
	chain := must(l.Chain(lab.ChainConfig{Annotations: policy}))(t)
	pod := must(l.AddNS("pod"))(t)
	cniAdd(t, chain, pod)
	cniHealthy(t, l, chain, pod)

	pin := func(name string) string {
		return filepath.Join(l.BPFFS, "untracked/interfaces", fmt.Sprint(l.Uplinks[0].NodeIndex), name)
	}
	generation := func(name string) string { return fmt.Sprintf("%s-%d", name, cniRecord(t, l).Interfaces[0].Generation) }
	first := func(int) int { return 0 }
	last := func(n int) int { return n - 1 }
	for _, drift := range []struct {
		name string
		xdp  bool // only where there is an XDP program
		do   func(t *testing.T)
		want string
	}{
		{"xdp link detached", true, func(t *testing.T) { cniDetach(t, pin("xdp")) }, "eth0"},
		{"tc link detached", false, func(t *testing.T) { cniDetach(t, pin("tc")) }, "eth0"},
		{"xdp pin removed", true, func(t *testing.T) { check(t, os.Remove(pin("xdp"))) }, "eth0"},
		{"tc pin removed", false, func(t *testing.T) { check(t, os.Remove(pin("tc"))) }, "eth0"},
		{"counters removed", false, func(t *testing.T) { check(t, os.Remove(pin(generation("counters")))) }, "counters"},
		{"ledger removed", false, func(t *testing.T) { check(t, os.Remove(pin(generation("ledger")))) }, "ledger"},
		{"tables removed", false, func(t *testing.T) { check(t, os.Remove(pin(generation("tables")))) }, "tables"},
		{"all pins of an interface removed", false, func(t *testing.T) { check(t, os.RemoveAll(pin(""))) }, "eth0"},
		{"all pins removed", false, func(t *testing.T) { check(t, os.RemoveAll(filepath.Join(l.BPFFS, "untracked"))) }, "pinned at"},
		{"table deleted", false, func(t *testing.T) {
			cniNft(t, l, func(c *nftables.Conn, table *nftables.Table) { c.DelTable(table) })
		}, "table inet untracked"},
		{"ruleset flushed", false, func(t *testing.T) {
			cniNft(t, l, func(c *nftables.Conn, _ *nftables.Table) { c.FlushRuleset() })
		}, "table inet untracked"},
		{"table flushed", false, func(t *testing.T) {
			cniNft(t, l, func(c *nftables.Conn, table *nftables.Table) { c.FlushTable(table) })
		}, "table inet untracked"},
		{"first rule of prerouting deleted", false, func(t *testing.T) {
			cniNft(t, l, func(c *nftables.Conn, table *nftables.Table) { cniDeleteRules(t, c, table, "prerouting", first) })
		}, "table inet untracked"},
		{"last rule of output deleted", false, func(t *testing.T) {
			cniNft(t, l, func(c *nftables.Conn, table *nftables.Table) { cniDeleteRules(t, c, table, "output", last) })
		}, "table inet untracked"},
		{"rule of an interface deleted", false, func(t *testing.T) {
			cniNft(t, l, func(c *nftables.Conn, table *nftables.Table) { cniDeleteRules(t, c, table, "out-eth0", last) })
		}, "table inet untracked"},
		{"chain policy changed", false, func(t *testing.T) {
			cniNft(t, l, func(c *nftables.Conn, table *nftables.Table) {
				drop := nftables.ChainPolicyDrop
				c.AddChain(&nftables.Chain{Table: table, Name: "output", Policy: &drop})
			})
		}, "table inet untracked"},
		{"interface re-created", false, func(t *testing.T) { cniRecreate(t, l, 0) }, "eth0"},
		{"other interface re-created", false, func(t *testing.T) { cniRecreate(t, l, 1) }, "eth1"},
		{"interface vanished", false, func(t *testing.T) { check(t, lab.DeleteLink(l.Node, "eth1")) }, "eth1"},
		{"interface appeared", false, func(t *testing.T) { cniWire(t, l, 1) }, "eth1"},
		{"record removed", false, func(t *testing.T) { check(t, os.Remove(filepath.Join(l.RunDir, "record.json"))) }, "no policy"},
		{"record cut short", false, func(t *testing.T) { check(t, os.Truncate(filepath.Join(l.RunDir, "record.json"), 40)) }, "no policy"},
		{"run directory removed", false, func(t *testing.T) { check(t, os.RemoveAll(l.RunDir)) }, "no policy"},
	} {
		if drift.xdp && mode == "tc" {
			continue
		}
		t.Run(drift.name, func(t *testing.T) {
			drift.do(t)
			cniEventually(t, "programs without a pin go", func() bool { return cniSettled(t, l) })
			before := cniRead(t, l)
			_, err := chain.Plugin("CHECK", pod, chain.Stdin([]byte(cniPrev("1.1.0"))))
			if cniCode(err) != 101 || !strings.Contains(err.Error(), drift.want) {
				t.Errorf("CHECK: %v, want code 101 and a text that names %s", err, drift.want)
			}
			s, exit := cniStatus(t, l)
			if exit != 1 || cniProblem(s, node.ProblemDrift) == nil && cniProblem(s, node.ProblemNotApplied) == nil {
				t.Errorf("status: exit status %d, problems %+v", exit, s.Problems)
			}
			cniSame(t, "CHECK or status", before, cniRead(t, l))
			cniAdd(t, chain, pod)
			cniHealthy(t, l, chain, pod)
			for _, u := range l.Uplinks {
				links := must(lab.Links(l.Node))(t)
				if drift.name == "interface vanished" && u.Name == "eth1" {
					continue
				}
				if h := must(lab.ReadHooks(l.Node, u.Name))(t); len(h.TCXIngress) != 1 || (h.XDP != 0) != (mode == "auto") {
					t.Errorf("%s after the repair, of %v: %+v", u.Name, links, h)
				}
			}
			after := cniRead(t, l)
			cniAdd(t, chain, pod)
			cniSame(t, "an ADD after the repair", after, cniRead(t, l))
		})
	}
}

// cniSettled reports whether no program without a pinned link is attached any more: the kernel takes them off
// when it gets round to it.
func cniSettled(t *testing.T, l *lab.Lab) bool {
	t.Helper()
	links := must(lab.Links(l.Node))(t)
	for _, u := range l.Uplinks {
		if !slices.Contains(links, u.Name) {
			continue
		}
		pinned := func(name string) bool {
			_, err := os.Stat(filepath.Join(l.BPFFS, "untracked/interfaces", fmt.Sprint(u.NodeIndex), name))
			return err == nil
		}
		if h := must(lab.ReadHooks(l.Node, u.Name))(t); h.XDP != 0 && !pinned("xdp") || len(h.TCXIngress) > 0 && !pinned("tc") {
			return false
		}
	}
	return true
}

// cniRecreate deletes an uplink and makes one of the same name, as a driver's reload does.
func cniRecreate(t *testing.T, l *lab.Lab, n int) {
	t.Helper()
	check(t, lab.DeleteLink(l.Node, l.Uplinks[n].Name))
	cniWire(t, l, n)
}

func cniWire(t *testing.T, l *lab.Lab, n int) {
	t.Helper()
	u := &l.Uplinks[n]
	check(t, lab.Veth(l.Node, u.Name, l.Client, u.Name, u.MTU))
	check(t, lab.AddAddrs(l.Node, u.Name, netip.PrefixFrom(u.Node4, u.Prefix4.Bits()), netip.PrefixFrom(u.Node6, u.Prefix6.Bits())))
	for i := range u.Client4 {
		check(t, lab.AddAddrs(l.Client, u.Name, netip.PrefixFrom(u.Client4[i], u.Prefix4.Bits()), netip.PrefixFrom(u.Client6[i], u.Prefix6.Bits())))
	}
	if n == 0 {
		check(t, lab.AddRoute(l.Node, netip.PrefixFrom(netip.IPv4Unspecified(), 0), u.Client4[0]))
		check(t, lab.AddRoute(l.Node, netip.PrefixFrom(netip.IPv6Unspecified(), 0), u.Client6[0]))
	}
	check(t, lab.In(l.Node, func() error {
		i, err := net.InterfaceByName(u.Name)
		if err == nil {
			u.NodeIndex = i.Index
		}
		return err
	}))
}
