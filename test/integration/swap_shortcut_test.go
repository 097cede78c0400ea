// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/test/lab"
)

// What a change does not concern is not touched, and what is in force already is not put in force again.

// swapPins are the kernel's numbers of what is pinned for an interface, by name without the generation: link numbers
// for links, with their programs beside them.
type swapPins map[string]uint32

// swapState is all that may be touched.
type swapState struct {
	Generation uint64
	Interfaces map[string]swapPins
	// Table are the handles of the table's rules: the kernel gives a new one to each rule that is written.
	Table []uint64
}

func (n *trafficNode) swapState() swapState {
	n.Helper()
	s := swapState{Generation: n.healthy().Policy.Generation, Interfaces: map[string]swapPins{}}
	for _, u := range n.lab.Uplinks {
		pins := swapPins{}
		dir := filepath.Join(n.lab.BPFFS, "untracked", "interfaces", fmt.Sprint(u.NodeIndex))
		for _, e := range must(os.ReadDir(dir))(n) {
			path := filepath.Join(dir, e.Name())
			name, _, _ := strings.Cut(e.Name(), "-")
			if l, err := link.LoadPinnedLink(path, nil); err == nil {
				info := must(l.Info())(n)
				pins[name], pins[name+" program"] = uint32(info.ID), uint32(info.Program)
				l.Close()
				continue
			}
			m := must(ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{ReadOnly: true}))(n)
			id, _ := must(m.Info())(n).ID()
			pins[name] = uint32(id)
			m.Close()
		}
		s.Interfaces[u.Name] = pins
	}
	check(n, lab.In(n.Node, func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		table := &nftables.Table{Family: nftables.TableFamilyINet, Name: "untracked"}
		for _, chain := range []string{"prerouting", "output"} {
			rules, err := c.GetRules(table, &nftables.Chain{Name: chain, Table: table})
			if err != nil {
				return err
			}
			for _, r := range rules {
				s.Table = append(s.Table, r.Handle)
			}
		}
		return nil
	}))
	return s
}

// swapWant compares two states but for what is named: "table", or the names of an interface's pins as in "eth0 tables".
// Those must have changed. The generation must be as many higher.
func swapWant(t testing.TB, what string, before, after swapState, generations uint64, changed ...string) {
	t.Helper()
	before.Generation += generations
	interfaces := map[string]swapPins{}
	for name, pins := range before.Interfaces {
		interfaces[name] = maps.Clone(pins)
	}
	before.Interfaces = interfaces
	for _, c := range changed {
		if c == "table" {
			if cmp.Equal(before.Table, after.Table) {
				t.Errorf("%s: the table was not written", what)
			}
			before.Table = after.Table
			continue
		}
		ifname, pin, _ := strings.Cut(c, " ")
		if was, is := before.Interfaces[ifname][pin], after.Interfaces[ifname][pin]; was == is {
			t.Errorf("%s: %s is %d as before", what, c, is)
		}
		before.Interfaces[ifname][pin] = after.Interfaces[ifname][pin]
	}
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// swapTwoInterfaces gives eth0 a list that denies a set, and eth1 one that serves a port.
func swapTwoInterfaces(nets, port string) string {
	return fmt.Sprintf(`
apiVersion: projectcalico.org/v3
kind: HostEndpoint
metadata: {name: outer, labels: {side: outer}}
spec: {node: swap, interfaceName: eth0}
---
apiVersion: projectcalico.org/v3
kind: HostEndpoint
metadata: {name: inner, labels: {side: inner}}
spec: {node: swap, interfaceName: eth1}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkSet
metadata: {name: bad, labels: {reputation: bad}}
spec: {nets: [%s]}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: outer}
spec:
  selector: side == "outer"
  doNotTrack: true
  applyOnForward: true
  types: [Ingress]
  ingress:
  - {action: Deny, source: {selector: reputation == "bad"}}
  - {action: Allow, protocol: UDP, destination: {ports: [7001]}}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: inner}
spec:
  selector: side == "inner"
  doNotTrack: true
  applyOnForward: true
  types: [Ingress]
  ingress:
  - {action: Allow, protocol: UDP, destination: {ports: [%s]}}
`, nets, port)
}

func (n *trafficNode) applySwapped(mode, nets, port string) swapState {
	n.Helper()
	n.applyPolicy(swapTwoInterfaces(nets, port), map[string]string{"node": "swap", "interfaces": "eth0", "mode": mode})
	return n.swapState()
}

// swapClassifier are the pins that a change of an interface's rules replaces. In XDP modes the program that hands the
// verdict over is loaded anew, too.
func swapClassifier(ifname, mode string, counters bool) []string {
	out := []string{ifname + " tables", ifname + " note", ifname + " tc program"}
	if mode != "tc" {
		out = append(out, ifname+" xdp program")
	}
	if counters {
		out = append(out, ifname+" counters", ifname+" ledger")
	}
	return out
}

func TestSwapTouchesOnlyWhatChanges(t *testing.T) {
	for _, mode := range []string{"native", "tc"} {
		t.Run(mode, func(t *testing.T) {
			n := newTraffic(t, lab.Config{Uplinks: 2})
			must(lab.ServeUDP(n.Node, 7001))(t)
			bad := n.u.Client4[1]
			first := n.applySwapped(mode, "192.0.2.0/24", "7001")
			load := lab.Load{Target: netip.AddrPortFrom(n.u.Node4, 7001), Sources: n.u.Client4[:1], Count: 10}
			n.wantUDP(n.Client, load)
			served := n.rule(policy.Ingress, "outer", 1).Packets
			if served < 10 {
				t.Fatalf("the rule has counted %d packets, want 10 at least", served)
			}

			swapWant(t, "the same once more", first, n.applySwapped(mode, "192.0.2.0/24", "7001"), 0)

			// The set gets another network: the counters go on, and the table and the other interface are left alone.
			n.swapTrack()
			second := n.applySwapped(mode, "192.0.2.0/24, "+bad.String()+"/32", "7001")
			swapWant(t, "another network in the set", first, second, 1, swapClassifier("eth0", mode, false)...)
			n.swapWantTracked(false, true)
			n.wantSilence(n.Client, lab.Load{Target: load.Target, Sources: []netip.Addr{bad}, Count: 2})
			n.wantUDP(n.Client, load)
			if got := n.rule(policy.Ingress, "outer", 1).Packets; got != served+10 {
				t.Errorf("the rule has counted %d packets, want %d", got, served+10)
			}

			// The other interface gets another rule: this one is left alone.
			third := n.applySwapped(mode, "192.0.2.0/24, "+bad.String()+"/32", "7001, 7002")
			swapWant(t, "another rule on the other interface", second, third, 1, append(swapClassifier("eth1", mode, true), "table")...)

			// Somebody deletes the table: the programs are left alone.
			check(t, lab.In(n.Node, func() error {
				c, err := nftables.New()
				if err != nil {
					return err
				}
				c.DelTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "untracked"})
				return c.Flush()
			}))
			n.problem("drift", "table")
			n.swapTrack()
			pod := must(n.lab.AddNS("pod"))(t)
			must(n.chain.Add(pod))(t)
			fourth := n.swapState()
			swapWant(t, "the table was deleted", third, fourth, 1, "table")
			n.swapWantTracked(false, false)

			// Somebody takes a program off: the other interface and the table are left alone.
			check(t, os.Remove(filepath.Join(n.pins(), "tc")))
			n.problem("drift", "eth0")
			fifth := n.applySwapped(mode, "192.0.2.0/24, "+bad.String()+"/32", "7001, 7002")
			swapWant(t, "a program was taken off", fourth, fifth, 1, append(swapClassifier("eth0", mode, false), "eth0 tc")...)
			if got := n.rule(policy.Ingress, "outer", 1).Packets; got < served+10 {
				t.Errorf("the rule has counted %d packets, want %d at least", got, served+10)
			}
			n.wantNoInvalid()
		})
	}
}

// swapTrack makes a conntrack entry on each interface for a flow that is to be untracked. Where nothing has changed there
// can be none, so a later look at it tells whether the interface was gone over again.
func (n *trafficNode) swapTrack() {
	n.Helper()
	for _, u := range n.lab.Uplinks {
		client, node := net.IP(u.Client4[0].AsSlice()), net.IP(u.Node4.AsSlice())
		flow := &netlink.ConntrackFlow{
			FamilyType: unix.AF_INET, TimeOut: 300,
			Forward: netlink.IPTuple{Protocol: unix.IPPROTO_UDP, SrcIP: client, DstIP: node, SrcPort: 33333, DstPort: 7001},
			Reverse: netlink.IPTuple{Protocol: unix.IPPROTO_UDP, SrcIP: node, DstIP: client, SrcPort: 7001, DstPort: 33333},
		}
		check(n, lab.In(n.Node, func() error { return netlink.ConntrackCreate(netlink.ConntrackTable, unix.AF_INET, flow) }))
	}
}

// swapWantTracked says on which interface the entry must still be there, and removes those that are.
func (n *trafficNode) swapWantTracked(want ...bool) {
	n.Helper()
	for i, u := range n.lab.Uplinks {
		flows := must(lab.CountFlows(n.Node, lab.Host(u.Node4), lab.Port(33333)))(n)
		if (flows > 0) != want[i] {
			n.Errorf("%s has %d entries of a flow that was tracked, want some: %t", u.Name, flows, want[i])
		}
	}
	check(n, lab.FlushFlows(n.Node))
}

// What is pinned and in force is known again without the record, or with another version's, and nothing is touched.
func TestSwapAdopts(t *testing.T) {
	forget := func(n *trafficNode) { check(n, os.RemoveAll(n.lab.RunDir)) }
	for name, c := range map[string]struct {
		mode string
		do   func(n *trafficNode)
	}{
		"the run directory is gone":              {"native", forget},
		"the run directory is gone, generic":     {"generic", forget},
		"the run directory is gone, tc":          {"tc", forget},
		"the record is gone, the rules are left": {"tc", func(n *trafficNode) { check(n, os.Remove(filepath.Join(n.lab.RunDir, "record.json"))) }},
		"another version has applied it": {"native", func(n *trafficNode) {
			path := filepath.Join(n.lab.RunDir, "record.json")
			var record map[string]any
			check(n, json.Unmarshal(must(os.ReadFile(path))(n), &record))
			record["version"] = "another"
			check(n, os.WriteFile(path, must(json.Marshal(record))(n), 0o600))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			n := newTraffic(t, lab.Config{Uplinks: 2})
			must(lab.ServeUDP(n.Node, 7001))(t)
			n.applySwapped(c.mode, "192.0.2.0/24", "7001")
			before := n.applySwapped(c.mode, "198.51.100.0/24", "7001") // generation 2, and still 1 on eth1
			load := lab.Load{Target: netip.AddrPortFrom(n.u.Node4, 7001), Sources: n.u.Client4[:1], Count: 10}
			n.wantUDP(n.Client, load)
			counted := n.rule(policy.Ingress, "outer", 1).Packets

			pod := must(n.lab.AddNS("pod"))(t)
			for verb, repair := range map[string]func(){
				"ADD":   func() { must(n.chain.Add(pod))(t) },
				"apply": func() { n.applySwapped(c.mode, "198.51.100.0/24", "7001") },
			} {
				c.do(n)
				repair()
				swapWant(t, verb, before, n.swapState(), 0)
				if got := n.rule(policy.Ingress, "outer", 1).Packets; got != counted {
					t.Errorf("after %s the rule has counted %d packets, want %d", verb, got, counted)
				}
			}

			// Another policy, brought by the first caller since, is put in force over it.
			c.do(n)
			after := n.applySwapped(c.mode, "192.0.2.0/24", "7001")
			swapWant(t, "another policy", before, after, 1, swapClassifier("eth0", c.mode, false)...)
			n.wantNoInvalid()
		})
	}
}

// Where neither the record nor the pins say that all of a generation is there, the next caller puts it in force again: by
// one swap, with the counters, and without a packet going another way.
func TestSwapWhatIsUncertain(t *testing.T) {
	for _, mode := range []string{"native", "tc"} {
		t.Run(mode, func(t *testing.T) {
			b := newSwapBench(t)
			b.order = []int{0}
			swapMarkUntracked(t, b.lab.Node)
			n := &trafficNode{TB: t, Node: b.lab.Node, Client: b.lab.Client, lab: b.lab, u: b.lab.Uplinks[0]}
			annotations := b.at(0).annotations()
			annotations["mode"] = mode
			n.chain = must(b.lab.Chain(lab.ChainConfig{Annotations: annotations}))(t)
			n.apply(annotations)
			before := n.swapState()
			tally := b.run(3, func(int64) error {
				notes, err := filepath.Glob(filepath.Join(n.pins(), "note-*"))
				if err != nil || len(notes) != 1 {
					return fmt.Errorf("notes %v, %v; want one", notes, err)
				}
				check(t, os.Remove(notes[0]))
				check(t, os.RemoveAll(b.lab.RunDir))
				if code, out := n.applyFile(); code != 0 {
					return fmt.Errorf("apply: exit code %d\n%s", code, out)
				}
				return nil
			})
			tally.wantRight(t)
			p := n.packets("eth0")
			swapWantCounts(t, tally, p.Untracked, p.Tracked, p.Denied)
			swapWant(t, "three times", before, n.swapState(), 3, swapClassifier("eth0", mode, true)...)
		})
	}
}
