// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/pkg/netset"
	"github.com/untracked-cni/untracked/pkg/nflog"
	"github.com/untracked-cni/untracked/pkg/policy"
)

var (
	seedFlag  = flag.Uint64("nft.seed", 0, "seed of the differential test, 0 for a new one")
	listsFlag = flag.Int("nft.lists", 150, "lists of rules in the differential test")
)

const packetsPerList = 40

// TestDifferential asks the kernel and policy.Evaluate the same questions.
func TestDifferential(t *testing.T) {
	enterNetns(t)
	addDummy(t, "d0")
	raw := openRaw(t)
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	g := &generator{Rand: rand.New(rand.NewPCG(seed, 0))}
	defer func() {
		if t.Failed() {
			t.Logf("repeat with -args -nft.seed=%d", seed)
		}
	}()

	reader, err := nflog.Open(LogGroup, LogBytes)
	must(t, err)
	defer reader.Close()

	decisions := map[policy.Decision]int{}
	quoted, passed, reports, grouped := 0, 0, 0, 0
	for list := range *listsFlag {
		// The observer needs connection tracking, and with it comes defragmentation, which keeps IPv6 fragments:
		// they have their turn while there is none. It stays for the second half of the test.
		observed := list >= *listsFlag/2
		if observed && list == *listsFlag/2 {
			addObserver(t)
		}
		rules := g.rules()
		table := &Table{Mark: 0x1000, Endpoints: []Endpoint{{Interface: "d0", Rules: rules}, {Interface: "other", Rules: g.rules()}}}
		if err := table.Apply(); err != nil {
			t.Fatalf("%v\nrules:\n%s", err, describe(rules))
		}
		inForce(t, table)
		ids := policy.IDs(rules)
		inGroups := groupedRules(rules)
		before, err := Counters()
		must(t, err)
		var seen observation
		if observed {
			seen = observe(t)
		}
		for range packetsPerList {
			g.targets = rules
			p := g.packet(!observed)
			d := policy.Evaluate(rules, &p.Packet)
			decisions[policy.Decision{Verdict: d.Verdict, By: d.By, Rule: min(d.Rule, 0), Logged: d.Logged}]++
			if p.Quoted != nil && d.Verdict == policy.Untracked {
				quoted++
			}
			raw.send(t, p.bytes())
			after, err := Counters()
			must(t, err)

			want := map[CounterKey]uint64{}
			if d.Rule != policy.NoRule {
				want[CounterKey{"d0", ids[d.Rule]}] = 1
			}
			if d.Rule != policy.NoRule && inGroups[d.Rule] {
				grouped++
			}
			var wantReports []string
			for _, i := range via(rules, &p.Packet, d) {
				want[CounterKey{"d0", ids[i]}] = 1
				if rules[i].Action == policy.Log {
					wantReports = append(wantReports, reported(ids[i], p.bytes()))
				} else {
					passed++
				}
			}
			reports += len(wantReports)
			got := map[CounterKey]uint64{}
			for k, c := range after {
				if n := c.Packets - before[k].Packets; n != 0 {
					got[k] = n
				}
			}
			before = after
			diff := cmp.Diff(want, got)
			diff += cmp.Diff(wantReports, read(t, reader, len(wantReports)))
			if observed {
				now := observe(t)
				wantSeen := observation{passed: seen.passed, untracked: seen.untracked}
				if d.Verdict != policy.Denied {
					wantSeen.passed++
				}
				if d.Verdict == policy.Untracked {
					wantSeen.untracked++
				}
				if now != wantSeen {
					diff += fmt.Sprintf("behind our table: want %+v, got %+v\n", wantSeen, now)
				}
				seen = now
			}
			if diff != "" {
				t.Fatalf("packet %+v\nquotes %+v\nbytes % x\ndecision %+v\ncounters that moved, reports (-want +got):\n%s\nrules:\n%s",
					p, p.Quoted, p.bytes(), d, diff, describe(rules))
			}
		}
	}
	t.Logf("%d packets, %d of them untracked errors, %d matched in groups, %d passes, %d reports, decisions %v", *listsFlag*packetsPerList, quoted, grouped, passed, reports, decisions)
	if grouped == 0 && *listsFlag > 50 {
		t.Error("no packet matched in a group")
	}
}

// groupedRules are the rules that are written in a group.
func groupedRules(rules []policy.Rule) map[int]bool {
	out := map[int]bool{}
	l := list{compiler: &compiler{hashes: map[*netset.Set]uint64{}}, rules: rules}
	for first, end := 0, 0; first < len(rules); first = end {
		for end = first; end < len(rules) && rules[end].Tier == rules[first].Tier; {
			end++
		}
		for _, g := range groups(rules, l.items(direct, first, end)) {
			for _, m := range g.members {
				out[m.rule] = out[m.rule] || len(g.members) >= minGroup
			}
		}
	}
	return out
}

// via are the rules that count without deciding.
func via(rules []policy.Rule, p *policy.Packet, d policy.Decision) []int {
	if d.By == policy.ByFailsafe && d.Rule == policy.NoRule { // neighbour discovery
		return nil
	}
	_, via := policy.Walk(rules, p)
	return via
}

// reported is what a report says: which rule, and how much of the packet.
func reported(ruleID uint64, ip []byte) string {
	return fmt.Sprintf("%s: version %d, %d bytes", LogPrefix(ruleID), ip[0]>>4, min(len(ip), LogBytes))
}

// read waits for n reports.
func read(t *testing.T, r *nflog.Reader, n int) (out []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for range n {
		m, err := r.Read(ctx)
		if err != nil {
			return append(out, err.Error())
		}
		id, ok := ParseLogPrefix(m.Prefix)
		if !ok || m.Lost != 0 || m.Hook != unix.NF_INET_LOCAL_OUT || len(m.Packet) == 0 {
			return append(out, fmt.Sprintf("%+v", m))
		}
		out = append(out, reported(id, m.Packet))
	}
	return out
}

func describe(rules []policy.Rule) (out string) {
	for i, id := range policy.IDs(rules) {
		out += fmt.Sprintf("%2d %016x %-8s %-3s %s\n", i, id, rules[i].Action, rules[i].Tier, rules[i].Match())
	}
	return out
}

// observation counts what comes by between our table and connection tracking.
type observation struct{ passed, untracked uint64 }

var observer = &nftables.Table{Name: "observer", Family: nftables.TableFamilyINet}

func addObserver(t *testing.T) {
	t.Helper()
	c, err := nftables.New()
	must(t, err)
	c.AddTable(observer)
	chain := c.AddChain(&nftables.Chain{
		Name: "output", Table: observer, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityRef(-250),
	})
	c.AddObj(&nftables.CounterObj{Table: observer, Name: "passed"})
	c.AddObj(&nftables.CounterObj{Table: observer, Name: "untracked"})
	c.AddRule(&nftables.Rule{Table: observer, Chain: chain, Exprs: []expr.Any{
		&expr.Objref{Type: objCounter, Name: "passed"},
		&expr.Ct{Key: expr.CtKeySTATE, Register: register},
		and(hostOrder(expr.CtStateBitUNTRACKED)...), isNot(hostOrder(0)...),
		&expr.Objref{Type: objCounter, Name: "untracked"},
	}})
	must(t, c.Flush())
}

func observe(t *testing.T) (o observation) {
	t.Helper()
	c, err := nftables.New()
	must(t, err)
	objects, err := c.GetObjects(observer)
	must(t, err)
	for _, obj := range objects {
		switch counter := obj.(*nftables.CounterObj); counter.Name {
		case "passed":
			o.passed = counter.Packets
		case "untracked":
			o.untracked = counter.Packets
		}
	}
	return o
}

// generator makes random rules and packets that have a fair chance to meet.
type generator struct {
	*rand.Rand
	// targets are rules that packets are made for. (optional)
	targets []policy.Rule
}

func (g *generator) chance(percent int) bool { return g.IntN(100) < percent }

func pick[T any](g *generator, values ...T) T { return values[g.IntN(len(values))] }

// rules makes a list. A part of them is much alike, so that they can be written as groups, or nearly can.
func (g *generator) rules() []policy.Rule {
	var (
		rules  []policy.Rule
		shared []*netset.Set
	)
	for range 3 {
		shared = append(shared, g.nets())
	}
	tiers := 0
	alike := pick(g, 10, 90)
	for range 1 + g.IntN(12) {
		next := []policy.Rule{g.rule(shared)}
		if g.chance(alike) {
			next = g.variants(next[0])
		}
		if g.chance(25) {
			tiers++
		}
		pass := g.chance(33)
		for _, r := range next {
			if tiers > 0 { // the first rules may be of none
				r.Tier = fmt.Sprint("t", tiers)
				if pass {
					r.Action = policy.Pass
				}
			}
			r.Policy, r.Index = "p", len(rules)
			rules = append(rules, r)
		}
		if g.chance(10) { // the same once more, behind others or in the next tier
			shuffled := slices.Clone(next)
			g.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
			rules = append(rules, shuffled...)
		}
	}
	tier := ""
	for i := range rules { // rules of one tier stand together, and those of none first
		r := &rules[i]
		if r.Tier < tier {
			r.Tier = tier
		}
		if tier = r.Tier; tier == "" && r.Action == policy.Pass {
			r.Action = policy.Allow
		}
		r.Index = i
	}
	return rules
}

func (g *generator) rule(shared []*netset.Set) (r policy.Rule) {
	r.Action = pick(g, policy.Allow, policy.Allow, policy.Deny, policy.Failsafe, policy.Log)
	if g.chance(20) {
		r.IPVersion = pick(g, 4, 6)
	}
	if g.chance(50) {
		r.Protocol = ptr(g.protocol())
	}
	if g.chance(15) {
		r.NotProtocol = ptr(g.protocol())
	}
	if g.chance(20) {
		r.ICMP = g.icmp()
	}
	if g.chance(15) {
		r.NotICMP = g.icmp()
	}
	for _, e := range []*policy.Entity{&r.Source, &r.Destination} {
		if g.chance(30) {
			e.Nets = pick(g, g.nets(), shared[0], shared[1])
		}
		if g.chance(15) {
			e.NotNets = pick(g, g.nets(), shared[1], shared[2])
		}
		if g.chance(20) {
			e.Ports = g.ports()
		}
		if g.chance(12) {
			e.NotPorts = g.ports()
		}
	}
	return r
}

// variants are rules that differ from one another in the values of some fields. Some pairs share values, and some
// differ in more.
func (g *generator) variants(r policy.Rule) []policy.Rule {
	if g.chance(60) {
		r = policy.Rule{Action: r.Action, Protocol: ptr(pick[uint8](g, policy.TCP, policy.UDP))}
	}
	var used fieldSet
	for used == 0 {
		used = fieldSet(g.IntN(1<<fields) & g.IntN(1<<fields))
	}
	if g.chance(30) {
		used = 1<<sourcePort | 1<<destinationAddress // what auto-return makes of many
	}
	at, step := g.IntN(256), pick(g, 1, 1, 3, 16)
	out := make([]policy.Rule, minGroup-1+g.IntN(12))
	for i := range out {
		v := r
		for f := range fields {
			e := side(&v, f.source())
			switch {
			case !used.has(f) || g.chance(2):
			case f.address():
				e.NotNets = nil
				e.Nets = g.block(at+i*step, pick(g, 0, 0, 0, 0, 0, 0, 2))
				if g.chance(3) {
					e.Nets = g.nets()
				}
			default:
				first := uint16(at+i*pick(g, 1, 1, 1, 1, 1, 2)) % 12
				e.NotPorts, e.Ports = nil, []policy.PortRange{portRange(first, first+pick[uint16](g, 0, 0, 0, 0, 1))}
				if g.chance(5) {
					e.Ports = append(e.Ports, g.ports()...)
				}
			}
		}
		if g.chance(3) {
			v.Action = pick(g, policy.Allow, policy.Deny)
		}
		out[i] = v
	}
	return out
}

// block is the n-th block of 4 addresses in one family or both, wrapped round and enlarged.
func (g *generator) block(n, larger int) *netset.Set {
	var b netset.Builder
	n %= 256
	if family := g.IntN(3); family != 1 {
		b.Add(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(n / 64), byte(4 * n)}), 30-larger))
		if family != 0 {
			return b.Build()
		}
	}
	b.Add(netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 14: byte(n / 64), 15: byte(4 * n)}), 126-larger))
	return b.Build()
}

func (g *generator) protocol() uint8 {
	return pick[uint8](g, policy.TCP, policy.UDP, policy.UDP, policy.UDPLite, policy.SCTP, policy.ICMP, policy.ICMPv6, 47, 59)
}

func (g *generator) icmp() *policy.ICMPMatch {
	m := &policy.ICMPMatch{Type: g.icmpType()}
	if g.chance(50) {
		m.Code = ptr(uint8(g.IntN(2)))
	}
	return m
}

func (g *generator) icmpType() uint8 {
	if g.chance(50) { // those that have a reverse
		return pick[uint8](g, 0, 8, 13, 14, 128, 129)
	}
	return pick[uint8](g, 0, 1, 2, 3, 4, 5, 8, 11, 12, 13, 14, 42, 128, 129, 133, 135, 136)
}

func (g *generator) ports() []policy.PortRange {
	out := make([]policy.PortRange, pick(g, 0, 1, 1, 2, 3, 5))
	for i := range out {
		out[i].First = g.port()
		out[i].Last = max(out[i].First, g.port())
		if g.chance(50) {
			out[i].Last = out[i].First
		}
		if g.chance(3) {
			out[i] = portRange(0, 65535)
		}
	}
	return out
}

func (g *generator) port() uint16 {
	return pick(g, uint16(g.IntN(12)), uint16(65535-g.IntN(3)))
}

// address is one of 1024 a family, or the first or last one there is. 0.0.0.0 as a source would be filled in by
// the kernel.
func (g *generator) address(v4 bool) netip.Addr {
	n := byte(g.IntN(4))
	low := byte(g.IntN(256))
	switch {
	case v4 && g.chance(4):
		return netip.MustParseAddr(pick(g, "255.255.255.255", "0.0.0.1", "127.255.255.255"))
	case v4:
		return netip.AddrFrom4([4]byte{10, 0, n, low})
	case g.chance(4):
		return netip.MustParseAddr(pick(g, "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "::", "8000::"))
	}
	return netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 14: n, 15: low})
}

func (g *generator) nets() *netset.Set {
	var b netset.Builder
	for range pick(g, 0, 1, 1, 2, 4, 12, 40, 300) {
		a := g.address(g.chance(60))
		host := pick(g, 0, 0, 1, 3, 5, 8, 9, 10)
		if g.chance(1) {
			host = a.BitLen()
		}
		b.Add(netip.PrefixFrom(a, a.BitLen()-host))
	}
	return b.Build()
}

// packet is any that a socket could send. extended allows IPv6 fragments.
func (g *generator) packet(extended bool) *ipPacket {
	v4 := g.chance(50)
	p := g.flow(v4, false)
	p.HopLimit = pick[uint8](g, 1, 64, 255)
	if v4 {
		p.options = pick(g, 0, 0, 0, 1, 10)
	} else {
		for range pick(g, 0, 0, 0, 1, 2) {
			p.ext = append(p.ext, pick[uint8](g, 60, 60, 0, 43))
		}
		// Hop-by-hop options stand first or not at all.
		for i := range p.ext {
			if i > 0 && p.ext[i] == 0 {
				p.ext[i] = 60
			}
		}
	}
	if g.chance(12) && (v4 || extended) {
		first, later := uint16(0x2000), uint16(0x2000|185)
		if !v4 {
			first, later = 1, 185<<3|1
		}
		p.fragment = ptr(pick(g, first, later))
		if *p.fragment == later {
			p.LaterFragment, p.HasL4 = true, false
			p.SrcPort, p.DstPort, p.ICMPType, p.ICMPCode = 0, 0, 0, 0
		}
	}
	version := 6
	if v4 {
		version = 4
	}
	icmp := v4 && p.Protocol == policy.ICMP || !v4 && p.Protocol == policy.ICMPv6
	if icmp && !p.LaterFragment && policy.IsICMPError(version, p.ICMPType) {
		g.quote(p, v4)
	}
	return p
}

// flow is a packet without anything unusual. It may be near the edges of what a rule matches, reversed if the
// rule is to match the packet turned round.
func (g *generator) flow(v4, reversed bool) *ipPacket {
	p := &ipPacket{}
	p.Src, p.Dst, p.Protocol, p.HopLimit = g.address(v4), g.address(v4), g.protocol(), 64
	if g.chance(35) {
		p.Protocol = policy.ICMPv6
		if v4 {
			p.Protocol = policy.ICMP
		}
	}
	target := policy.Rule{}
	if g.chance(70) && len(g.targets) > 0 {
		target = g.targets[g.IntN(len(g.targets))]
	}
	if target.Protocol != nil && g.chance(90) {
		p.Protocol = *target.Protocol
	}
	switch {
	case policy.HasPorts(p.Protocol):
		p.HasL4, p.SrcPort, p.DstPort = true, g.port(), g.port()
	case v4 && p.Protocol == policy.ICMP, !v4 && p.Protocol == policy.ICMPv6:
		p.HasL4, p.ICMPType, p.ICMPCode = true, g.icmpType(), uint8(g.IntN(2))
		if g.chance(40) {
			p.ICMPType = pick[uint8](g, 3, 1, 11, 4)
		}
	}
	from, to := &target.Source, &target.Destination
	if reversed {
		from, to = to, from
	}
	p.Src, p.Dst = g.near(from.Nets, p.Src), g.near(to.Nets, p.Dst)
	if policy.HasPorts(p.Protocol) {
		p.SrcPort, p.DstPort = g.nearPort(from.Ports, p.SrcPort), g.nearPort(to.Ports, p.DstPort)
	}
	return p
}

// near is an address at the edge of one of the set's ranges, or beside it.
func (g *generator) near(nets *netset.Set, otherwise netip.Addr) netip.Addr {
	if nets == nil {
		return otherwise
	}
	var lo, hi netip.Addr
	if r := nets.Ranges4(); otherwise.Is4() && len(r) > 0 {
		one := r[g.IntN(len(r))]
		lo, hi = netset.To4(one.Lo), netset.To4(one.Hi)
	} else if r := nets.Ranges6(); otherwise.Is6() && len(r) > 0 {
		one := r[g.IntN(len(r))]
		lo, hi = one.Lo.Netip(), one.Hi.Netip()
	}
	if a := pick(g, lo, lo, hi, hi, lo.Prev(), hi.Next()); a.IsValid() && a != netip.IPv4Unspecified() {
		return a
	}
	return otherwise
}

func (g *generator) nearPort(ports []policy.PortRange, otherwise uint16) uint16 {
	if len(ports) == 0 {
		return otherwise
	}
	r := ports[g.IntN(len(ports))]
	return pick(g, r.First, r.First, r.Last, r.Last, r.First-1, r.Last+1)
}

// quote puts a packet into an ICMP error. The table does not look at quoted packets with a header of unusual
// length or later fragments, so that for it they quote nothing.
func (g *generator) quote(p *ipPacket, v4 bool) {
	q := g.flow(v4, true)
	if g.chance(30) { // echoes and timestamps, for rules with types
		q.Protocol, q.HasL4, q.SrcPort, q.DstPort = policy.ICMPv6, true, 0, 0
		q.ICMPType, q.ICMPCode = pick[uint8](g, 128, 129), uint8(g.IntN(2))
		if v4 {
			q.Protocol, q.ICMPType = policy.ICMP, pick[uint8](g, 0, 8, 13, 14)
		}
	}
	unusual := g.chance(15)
	if unusual {
		switch {
		case v4 && g.chance(50):
			q.options = 1
		case v4:
			q.fragment = ptr(uint16(7))
		case g.chance(50):
			q.ext = []uint8{60}
		default:
			q.fragment = ptr(uint16(0))
		}
	}
	p.more = q.header(q.transport()[:8])
	if g.chance(50) {
		p.more = q.bytes()
	}
	switch {
	case v4 && g.chance(10):
		p.more[0] = 0x35 // not IPv4
		unusual = true
	case !v4 && g.chance(10):
		p.more[0] = 0x4f // not IPv6
		unusual = true
	case !v4:
		p.more[0] |= byte(g.IntN(16)) // traffic class
	}
	if !unusual {
		p.Quoted = &q.Packet
	}
}
