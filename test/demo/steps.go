// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/untracked-cni/untracked/test/lab"
)

// demo is the story so far.
type demo struct {
	*page
	lab   *lab.Lab
	begin time.Time

	firewall *lab.Stateful
	chain    *lab.Chain
	pods     []*lab.NS
	atFirst  []string // what lay in bpffs and run-dir
	xdp      bool     // there is an XDP program, not only one at tc
	limit    int      // what nf_conntrack_max is set to when the table shall be too small; 0: left alone

	measured [2]measured // before, after
	filled   [2]filled
	wrong    []string // claims that turned out false
}

// claim notes a claim that is not so. The demo goes on: the viewer shall see all of it.
func (d *demo) claim(so bool, format string, args ...any) {
	if !so {
		d.wrong = append(d.wrong, fmt.Sprintf(format, args...))
	}
}

func (d *demo) stage() (err error) {
	u := d.lab.Uplinks[0]
	d.step("A client and a node, each a network namespace, joined by a wire called eth0.")
	d.show(fmt.Sprintf("client %s … %s  ── eth0 ──  %s node", u.Client4[0], u.Client4[len(u.Client4)-1], u.Node4))
	d.say("   The node serves tcp/%d and udp/%d, the busy ones, and tcp/%d, an innocent neighbour. Like any node", tcpPort, udpPort, otherPort)
	d.say("   with kube-proxy or a firewall it asks for the state of every packet (and drops what is INVALID),")
	d.say("   so the kernel keeps an entry for each flow in its conntrack table.")
	if d.firewall, err = lab.AddStateful(d.lab.Node, true); err != nil {
		return err
	}
	for _, port := range []uint16{tcpPort, otherPort} {
		if _, err := lab.ServeTCP(d.lab.Node, port); err != nil {
			return err
		}
	}
	if _, err := lab.ServeUDP(d.lab.Node, udpPort); err != nil {
		return err
	}
	if d.atFirst, err = d.files(); err != nil {
		return err
	}
	return d.chooseLimit()
}

// chooseLimit spares the machine's own connections, which nf_conntrack_max is for as well.
func (d *demo) chooseLimit() error {
	own, err := lab.HostFlowCount()
	if err != nil {
		return err
	}
	if own < fullTable/2 {
		d.limit = fullTable
	}
	return nil
}

func (d *demo) before() (err error) {
	d.step("BEFORE. The node's CNI chain as it is: bridge with host-local. A pod joins, then the load comes.")
	if d.chain, err = d.lab.Chain(lab.ChainConfig{}); err != nil {
		return err
	}
	d.command("export " + d.chain.Environment())
	if err := d.addPod("before"); err != nil {
		return err
	}
	m, err := d.measure()
	if err != nil {
		return err
	}
	d.measured[0] = m
	d.say("   %s connections and %s datagrams later the table holds %s entries for tcp/%d and %s for udp/%d.",
		thousands(m.tcp.OK), thousands(m.udp.OK), thousands(m.tcpEntries), tcpPort, thousands(m.udpEntries), udpPort)
	d.claim(m.tcpEntries > 0 && m.udpEntries > 0, "before: %d entries for tcp and %d for udp, should be many", m.tcpEntries, m.udpEntries)
	return nil
}

// addPod has cnitool add a pod, as kubelet's runtime would.
func (d *demo) addPod(role string) error {
	pod, err := d.lab.AddNS("pod-" + role)
	if err != nil {
		return err
	}
	d.pods = append(d.pods, pod)
	d.command(d.chain.CommandLine("add", pod))
	out, err := d.chain.Add(pod)
	if err != nil {
		return err
	}
	var result struct {
		IPs []struct {
			Address string `json:"address"`
		} `json:"ips"`
	}
	if err := json.Unmarshal(out.Stdout, &result); err != nil {
		return fmt.Errorf("read the result of cnitool add: %w", err)
	}
	var addresses []string
	for _, ip := range result.IPs {
		addresses = append(addresses, ip.Address)
	}
	d.say("   pod with %s, in %d ms", strings.Join(addresses, " and "), out.Elapsed.Milliseconds())
	d.claim(len(addresses) > 0, "%s: the pod has no address", role)
	return nil
}

func (d *demo) fillBefore() error {
	d.step("BEFORE, and the table is too small for the load: nf_conntrack_max = %s for %.0f seconds.", thousands(fullTable), fill.Seconds())
	if d.limit == 0 {
		d.say("   Skipped, here and below: this machine has connections of its own that would not fit either.")
		return nil
	}
	return d.overflow(0)
}

func (d *demo) overflow(n int) error {
	f, err := d.overfill()
	if err != nil {
		return err
	}
	d.filled[n] = f
	d.say("   tcp/%d: %s connections answered, %s timed out%s.", tcpPort, thousands(f.load.OK), thousands(f.load.Timeouts), failedToo(f.load))
	d.say("   tcp/%d, the neighbour: %d of %d answered.", otherPort, f.other.OK, knocks)
	return nil
}

func failedToo(r lab.Report) string {
	if r.Failed == 0 {
		return ""
	}
	return fmt.Sprintf(", %s failed (%v)", thousands(r.Failed), r.FirstFailure)
}

func (d *demo) switchOn() error {
	d.step("One entry more in the conflist: our services leave connection tracking, and %s is not welcome.", d.denied())
	before, err := d.knock()
	if err != nil {
		return err
	}
	d.claim(before.OK == denyKnocks, "before: %s got %d answers of %d", d.denied(), before.OK, denyKnocks)
	err = d.chain.Rewrite(lab.ChainConfig{Annotations: map[string]string{
		"interfaces": "eth0",
		"ports":      fmt.Sprintf("tcp/%d,udp/%d", tcpPort, udpPort),
		"deny":       d.denied().String() + "/32",
	}})
	if err != nil {
		return err
	}
	conflist, err := os.ReadFile(d.chain.File)
	if err != nil {
		return err
	}
	d.show(string(conflist))
	d.say("   The next pod that comes carries it into the kernel.")
	if err := d.addPod("after"); err != nil {
		return err
	}
	hooks, err := lab.ReadHooks(d.lab.Node, "eth0")
	if err != nil {
		return err
	}
	tables, err := lab.Tables(d.lab.Node)
	if err != nil {
		return err
	}
	var on []string
	if hooks.XDP != 0 {
		on = append(on, fmt.Sprintf("XDP program %d", hooks.XDP))
	}
	for _, id := range hooks.TCXIngress {
		on = append(on, fmt.Sprintf("tc program %d", id))
	}
	if hooks.Filters > 0 {
		on = append(on, fmt.Sprintf("%d tc filter", hooks.Filters))
	}
	d.xdp = hooks.XDP != 0
	d.say("   Now on the node: on eth0 %s; nftables tables %s.", strings.Join(on, ", "), strings.Join(tables, ", "))
	d.claim(!hooks.None(), "after: no program is attached to eth0")
	d.claim(slices.Contains(tables, "inet untracked"), "after: there is no table inet untracked")
	return nil
}

func (d *demo) after() error {
	d.step("AFTER. The same load.")
	m, err := d.measure()
	if err != nil {
		return err
	}
	d.measured[1] = m
	b := d.measured[0]
	d.table(
		[]string{"", "before", "after"},
		[]string{"tcp/6379  connections answered", thousands(b.tcp.OK), thousands(m.tcp.OK)},
		[]string{"          conntrack entries", thousands(b.tcpEntries), thousands(m.tcpEntries)},
		[]string{"udp/5353  datagrams answered, each a flow", thousands(b.udp.OK), thousands(m.udp.OK)},
		[]string{"          conntrack entries", thousands(b.udpEntries), thousands(m.udpEntries)},
		[]string{"tcp/8080  connections answered", thousands(b.other.OK), thousands(m.other.OK)},
		[]string{"          conntrack entries", thousands(b.otherEntries), thousands(m.otherEntries)},
		[]string{"packets the firewall saw as new", thousands(b.states.New), thousands(m.states.New)},
		[]string{"                          untracked", thousands(b.states.Untracked), thousands(m.states.Untracked)},
		[]string{"                          invalid", thousands(b.states.Invalid), thousands(m.states.Invalid)},
	)
	d.say("   The services answer as before, without an entry; the neighbour is tracked as ever.")
	for _, c := range []struct {
		entries int
		port    string
	}{{m.tcpEntries, "tcp/6379"}, {m.udpEntries, "udp/5353"}} {
		d.claim(c.entries == 0, "after: %d conntrack entries for %s, should be none", c.entries, c.port)
	}
	d.claim(allTracked(m.otherEntries), "after: %d conntrack entries for tcp/8080, should be 100", m.otherEntries)
	d.claim(m.states.Invalid == 0, "after: %d packets were INVALID", m.states.Invalid)
	d.claim(m.states.Untracked > m.tcp.OK, "after: the firewall saw only %d untracked packets", m.states.Untracked)
	for _, r := range []lab.Report{m.tcp, m.udp, m.other} {
		d.claim(r.OK > 0 && (r.Timeouts+r.Failed)*1000 <= r.OK, "after: %v", r)
	}
	return nil
}

func (d *demo) race() error {
	d.step("How fast? In turns, %d times, without our entry (`untracked remove`) and with it (`untracked apply`).", turns)
	without, with, err := d.takeTurns()
	if err != nil {
		return err
	}
	d.table(
		[]string{"per second, median", "before", "after", "gain"},
		[]string{"tcp/6379  connections", thousands(median(without.tcp)), thousands(median(with.tcp)), gain(without.tcp, with.tcp)},
		[]string{"udp/5353  new flows", thousands(median(without.udp)), thousands(median(with.udp)), gain(without.udp, with.udp)},
	)
	d.say("   A veth pays for native XDP what no real NIC does (some 0.2 µs a packet), which here can be more than")
	d.say("   tracking cost; and both ends share this machine's processors. What one wins everywhere is the table:")
	return nil
}

// allTracked reports whether 100 connections have their entries; one that used a port again took the old one.
func allTracked(entries int) bool { return entries >= 90 && entries <= 100 }

func (d *demo) fillAfter() error {
	d.step("AFTER, and the table is too small again: nf_conntrack_max = %s for %.0f seconds.", thousands(fullTable), fill.Seconds())
	if d.limit == 0 {
		d.say("   Skipped, as above.")
		return nil
	}
	if err := d.overflow(1); err != nil {
		return err
	}
	b, a := d.filled[0], d.filled[1]
	outOf := func(r lab.Report) string { return fmt.Sprintf("%d of %d", r.OK, knocks) }
	d.table(
		[]string{"table of " + thousands(fullTable), "before", "after"},
		[]string{"tcp/6379  connections answered", thousands(b.load.OK), thousands(a.load.OK)},
		[]string{"          timed out", thousands(b.load.Timeouts), thousands(a.load.Timeouts)},
		[]string{"          last answer after", milliseconds(b.load.LastOK), milliseconds(a.load.LastOK)},
		[]string{"tcp/8080  the neighbour answered", outOf(b.other), outOf(a.other)},
		[]string{"packets conntrack dropped", thousands(b.dropped), thousands(a.dropped)},
	)
	if b.slow {
		d.say("   This machine is too busy to fill even this table, so there is nothing to see here now.")
		return nil
	}
	d.say("   Before, the busy service filled the table and took the neighbour down with it; now it does not touch it.")
	d.claim(b.load.Timeouts > 0 && b.load.OK < 2*fullTable, "a full table did not stop tracked connections: %v", b.load)
	d.claim(b.other.OK < knocks, "a full table did not stop the neighbour")
	d.claim(a.load.OK > 2*fullTable && (a.load.Timeouts+a.load.Failed)*100 <= a.load.OK, "a full table stopped untracked connections: %v", a.load)
	d.claim(a.other.OK == knocks, "after: the neighbour answered only %d of %d", a.other.OK, knocks)
	d.claim(a.dropped == 0, "after: conntrack dropped %d packets", a.dropped)
	return nil
}

func milliseconds(t time.Duration) string { return fmt.Sprintf("%d ms", t.Milliseconds()) }

// knock has the client's unwelcome address connect.
func (d *demo) knock() (lab.Report, error) {
	return lab.LoadTCP(d.lab.Client, lab.Load{
		Target: d.target(tcpPort), Sources: d.lab.Uplinks[0].Client4[len(d.allowed()):],
		Count: denyKnocks, InFlight: denyKnocks, Timeout: 500 * time.Millisecond,
	})
}

func (d *demo) deny() error {
	d.step("The denied source, %s, knocks %d times at tcp/%d. Before, it was answered each time.", d.denied(), denyKnocks, tcpPort)
	before, err := d.deniedPackets()
	if err != nil {
		return err
	}
	r, err := d.knock()
	if err != nil {
		return err
	}
	after, err := d.deniedPackets()
	if err != nil {
		return err
	}
	where := "in the driver's hook, before the kernel spent memory or a conntrack entry on them"
	if !d.xdp {
		where = "at tc ingress (no XDP on this kernel's veth), before connection tracking"
	}
	d.say("   %d answered, %d timed out; the deny rule counted %d packets. They died", r.OK, r.Timeouts, after-before)
	d.say("   %s.", where)
	d.claim(r.OK == 0 && r.Timeouts == denyKnocks, "denied source: %v", r)
	d.claim(after-before >= denyKnocks, "the deny rule counted %d packets, should be %d", after-before, denyKnocks)
	return nil
}

// rule is an item of `untracked rules -o json`.
type rule struct {
	Interface, Direction, Action string
	Packets                      uint64
}

func (d *demo) deniedPackets() (packets uint64, err error) {
	rules, err := d.rules()
	for _, r := range rules {
		if strings.EqualFold(r.Action, "deny") && r.Direction == "ingress" {
			packets += r.Packets
		}
	}
	return packets, err
}

func (d *demo) rules() (rules []rule, err error) {
	out, err := d.untracked("rules", "-o", "json")
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(out, &rules); err != nil {
		return nil, fmt.Errorf("read `untracked rules -o json`: %w", err)
	}
	return rules, nil
}

// untracked runs our command on the node.
func (d *demo) untracked(args ...string) ([]byte, error) {
	out, err := d.lab.Untracked(args...)
	if err != nil {
		return nil, err
	}
	if out.ExitCode != 0 {
		return nil, fmt.Errorf("untracked %s: exit status %d: %s", strings.Join(args, " "), out.ExitCode, out.Stderr)
	}
	return out.Stdout, nil
}

func (d *demo) look() error {
	d.step("What the operator sees: every rule with its counters, and the state of the node.")
	for _, command := range []string{"rules", "status"} {
		out, err := d.untracked(command)
		if err != nil {
			return err
		}
		d.command("untracked " + command)
		d.show(string(out))
	}
	rules, err := d.rules()
	if err != nil {
		return err
	}
	var counted uint64
	for _, r := range rules {
		if strings.EqualFold(r.Action, "allow") || strings.EqualFold(r.Action, "untracked") {
			counted += r.Packets
		}
	}
	d.claim(counted > d.filled[1].load.OK, "the rules counted %d untracked packets, should be more than %d connections", counted, d.filled[1].load.OK)

	text, err := d.untracked("status", "-o", "json")
	if err != nil {
		return err
	}
	var status struct {
		Interfaces []struct {
			Name     string
			Attached bool
			Packets  struct{ Untracked, Denied, Malformed uint64 }
		}
		Problems []struct{ Code, Message string }
	}
	if err := json.Unmarshal(text, &status); err != nil {
		return fmt.Errorf("read `untracked status -o json`: %w", err)
	}
	d.claim(len(status.Interfaces) == 1 && status.Interfaces[0].Name == "eth0" && status.Interfaces[0].Attached, "status does not say that eth0 is attached")
	for _, i := range status.Interfaces {
		d.claim(i.Packets.Untracked > 0 && i.Packets.Denied >= denyKnocks && i.Packets.Malformed == 0, "status of %s counts %+v", i.Name, i.Packets)
	}
	for _, p := range status.Problems {
		d.claim(false, "status reports a problem: %s: %s", p.Code, p.Message)
	}
	return nil
}

func (d *demo) leave() error {
	d.step("The way out: the pods go, the entry goes, one command takes everything away.")
	for _, pod := range d.pods {
		d.command(d.chain.CommandLine("del", pod))
		if _, err := d.chain.Del(pod); err != nil {
			return err
		}
	}
	d.command("untracked remove")
	out, err := d.untracked("remove")
	if err != nil {
		return err
	}
	if text := strings.TrimSpace(string(out)); text != "" {
		d.show(text)
	}

	left, err := d.remains()
	if err != nil {
		return err
	}
	// And the kernel tracks again.
	r, err := lab.LoadTCP(d.lab.Client, lab.Load{Target: d.target(tcpPort), Sources: d.lab.Uplinks[0].Client4, Count: 100})
	if err != nil {
		return err
	}
	entries, err := lab.CountFlows(d.lab.Node, lab.Port(tcpPort))
	if err != nil {
		return err
	}
	if len(left) == 0 {
		left = []string{"nothing"}
	}
	d.say("   Left of us on the node (programs, pins, table, records): %s.", strings.Join(left, ", "))
	d.say("   100 connections to tcp/%d, the denied address among them: %d answered, %d conntrack entries. As at first.", tcpPort, r.OK, entries)
	d.claim(left[0] == "nothing", "after remove there is still: %s", strings.Join(left, ", "))
	d.claim(r.OK == 100 && allTracked(entries), "after remove: %v, %d entries", r, entries)
	return nil
}

// remains looks for itself instead of asking the command.
func (d *demo) remains() (left []string, err error) {
	hooks, err := lab.ReadHooks(d.lab.Node, "eth0")
	if err != nil {
		return nil, err
	}
	if !hooks.None() {
		left = append(left, fmt.Sprintf("on eth0 %+v", hooks))
	}
	tables, err := lab.Tables(d.lab.Node)
	if err != nil {
		return nil, err
	}
	if slices.Contains(tables, "inet untracked") {
		left = append(left, "table inet untracked")
	}
	files, err := d.files()
	for _, f := range files {
		if !slices.Contains(d.atFirst, f) {
			left = append(left, f)
		}
	}
	return left, err
}

// files lists bpffs and run-dir.
func (d *demo) files() (files []string, err error) {
	for _, dir := range []string{d.lab.BPFFS, d.lab.RunDir} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		for _, e := range entries {
			// A lock file must stay: were it removed, two could hold it.
			if e.Name() != "lock" {
				files = append(files, dir+"/"+e.Name())
			}
		}
	}
	return files, nil
}

// conclude says what was seen, or what was not as it should be.
func (d *demo) conclude() error {
	if len(d.wrong) > 0 {
		return fmt.Errorf("this turned out false:\n  %s", strings.Join(d.wrong, "\n  "))
	}
	b, a := d.measured[0], d.measured[1]
	full := ""
	if d.limit > 0 && !d.filled[0].slow {
		full = fmt.Sprintf(", and a full table stopped %s connections before and none after", thousands(d.filled[0].load.Timeouts))
	}
	d.say("\nYou saw, in %.0f s: %s conntrack entries for two services became %s by one conflist entry%s; now nothing of it is left.",
		time.Since(d.begin).Seconds(), thousands(b.tcpEntries+b.udpEntries), thousands(a.tcpEntries+a.udpEntries), full)
	return nil
}
