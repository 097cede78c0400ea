// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables/expr"
	mdlayher "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/pkg/netset"
	"github.com/untracked-cni/untracked/pkg/nflog"
	"github.com/untracked-cni/untracked/pkg/policy"
)

// udpTo is a rule for UDP to a port.
func udpTo(port uint16, action policy.Action) policy.Rule {
	return policy.Rule{
		Policy: "udp", Index: int(port), Action: action, Protocol: ptr(uint8(policy.UDP)),
		Destination: policy.Entity{Ports: []policy.PortRange{portRange(port, port)}},
	}
}

// everyKind has a rule with each of the ways to write one.
func everyKind() []policy.Rule {
	icmp := policy.ICMPMatch{Type: 8, Code: ptr(uint8(3))}
	rules := []policy.Rule{
		udpTo(67, policy.Failsafe),
		{Action: policy.Deny, Destination: policy.Entity{Nets: many(30), NetsName: "file /etc/deny.txt"}},
		{Action: policy.Deny, Source: policy.Entity{NotNets: many(30)}, Protocol: ptr(uint8(47))},
		{Action: policy.Allow, Source: policy.Entity{Nets: nets("10.0.0.0/8", "2001:db8::/32")}},
		{Action: policy.Allow, Source: policy.Entity{Nets: nets("10.0.0.1/32", "2001:db8::1/128")}},
		{Action: policy.Allow, Source: policy.Entity{Nets: nets("10.0.0.1/32", "10.0.0.2/31", "::1/128", "::2/127")}},
		{Action: policy.Allow, Source: policy.Entity{NotNets: nets("10.0.0.0/8", "11.0.0.0/16", "10.0.0.1/32", "2001::/32", "2003::/128")}},
		{Action: policy.Allow, IPVersion: 6, NotProtocol: ptr(uint8(6))},
		{Action: policy.Allow, Source: policy.Entity{Ports: []policy.PortRange{portRange(1, 2), portRange(9, 65535)}}},
		{Action: policy.Allow, Destination: policy.Entity{Ports: []policy.PortRange{portRange(1, 1), portRange(9, 9)}}},
		{Action: policy.Allow, Destination: policy.Entity{NotPorts: []policy.PortRange{portRange(5, 6)}}},
		{Action: policy.Allow, Destination: policy.Entity{NotPorts: []policy.PortRange{}}},
		{Action: policy.Allow, ICMP: &icmp},
		{Action: policy.Allow, NotICMP: &icmp},
		{Action: policy.Allow, Protocol: ptr(uint8(policy.SCTP))},
		{Action: policy.Log, Source: policy.Entity{NotNets: many(30), NotNetsName: "file /etc/ours.txt"}},
		{Action: policy.Allow},
		{Tier: "passing", Action: policy.Log, ICMP: &icmp},
		{Tier: "passing", Action: policy.Pass, Destination: policy.Entity{Nets: nets("10.0.0.0/8", "2001:db8::/32")}},
		{Tier: "passing", Action: policy.Deny, Source: policy.Entity{Ports: []policy.PortRange{portRange(1, 2)}}},
		{Tier: "passing", Action: policy.Pass},
		{Tier: "passing, too", Action: policy.Pass},
		{Tier: "passing, too", Action: policy.Allow},
		{Tier: "last", Action: policy.Log},
		{Tier: "last", Action: policy.Allow, Protocol: ptr(uint8(policy.TCP))},
	}
	for i := range rules {
		r := &rules[i]
		r.Policy, r.Index = "every-kind", i
		if r.Tier == "" {
			r.Tier = "default"
		}
	}
	return rules
}

// everyGroup has rules that are written as groups, in each of the ways to write one.
func everyGroup() (rules []policy.Rule) {
	tcp, udp := ptr(uint8(policy.TCP)), ptr(uint8(policy.UDP))
	add := func(kind string, n int, of func(i int) policy.Rule) {
		for i := range n {
			r := of(i)
			r.Tier, r.Policy, r.Index = "default", kind, i
			rules = append(rules, r)
		}
	}
	v4 := func(i int) *netset.Set { return nets(fmt.Sprintf("10.9.%d.0/24", i)) }
	v6 := func(i int) *netset.Set { return nets(fmt.Sprintf("2001:db8:0:%x::/64", i+1)) }
	port := func(i int) []policy.PortRange { return []policy.PortRange{portRange(uint16(1000+i), uint16(1000+i))} }
	add("alike", 20, func(i int) policy.Rule {
		return policy.Rule{Action: policy.Allow, Protocol: tcp, Source: policy.Entity{Ports: port(i)}, Destination: policy.Entity{Nets: v4(i)}}
	})
	add("alike6", 20, func(i int) policy.Rule {
		return policy.Rule{Action: policy.Allow, Protocol: tcp, Source: policy.Entity{Ports: port(i)}, Destination: policy.Entity{Nets: v6(i)}}
	})
	add("of-any-protocol", 20, func(i int) policy.Rule {
		return policy.Rule{Action: policy.Deny, Source: policy.Entity{Ports: port(i)}, Destination: policy.Entity{Ports: port(2 * i)}}
	})
	add("addresses", 5, func(i int) policy.Rule {
		return policy.Rule{Action: policy.Failsafe, Source: policy.Entity{Nets: v4(i)}}
	})
	add("addresses6", 5, func(i int) policy.Rule {
		return policy.Rule{Action: policy.Allow, Source: policy.Entity{Nets: v6(i)}}
	})
	add("three-fields", 20, func(i int) policy.Rule {
		return policy.Rule{Action: policy.Deny, Protocol: udp, Source: policy.Entity{Nets: v4(2 * i)}, Destination: policy.Entity{Nets: v4(i), Ports: port(i)}}
	})
	add("behind", 1, func(int) policy.Rule { return policy.Rule{Action: policy.Allow} })
	return rules
}

func TestApply(t *testing.T) {
	enterNetns(t)
	if _, err := InForce(); !errors.Is(err, ErrNoTable) || !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("without a table: %v, want %v", err, ErrNoTable)
	}
	must(t, Remove())
	if got := counters(t); len(got) > 0 {
		t.Errorf("without a table: counters %v", got)
	}
	tables := []*Table{
		{Mark: 0x1000},
		{Mark: 0x1000, Endpoints: []Endpoint{{Interface: "eth0", Rules: nil}}},
		{Mark: 0x1000, Endpoints: []Endpoint{{Interface: "eth0", Rules: everyKind()}, {Interface: "we!rd\"x*\xff", Rules: everyKind()}}},
		{Mark: 0x80000000, Endpoints: []Endpoint{{Interface: "eth0", Rules: everyKind()[3:]}}},
		{Mark: 0x1000, Endpoints: []Endpoint{{Interface: "eth0", Rules: everyGroup()}}},
		{Mark: 0x1000, Endpoints: []Endpoint{{Interface: "eth0", Rules: everyGroup()[3:]}}},
		{Mark: 0x1000, Endpoints: []Endpoint{{Interface: "eth0", Rules: everyKind(), Answers: everyKind()}}},
		{Mark: 0x1000},
	}
	for _, table := range tables {
		for range 2 {
			must(t, table.Apply())
			inForce(t, table)
			all, err := Counters()
			must(t, err)
			want := 0
			for _, e := range table.Endpoints {
				for _, id := range policy.IDs(e.Rules) {
					if _, ok := all[CounterKey{e.Interface, id}]; !ok {
						t.Errorf("no counter for %s %x", e.Interface, id)
					}
					want++
				}
			}
			if len(all) != want {
				t.Errorf("%d counters, want %d", len(all), want)
			}
		}
	}
	must(t, Remove())
	must(t, Remove())
	if _, err := InForce(); !errors.Is(err, ErrNoTable) {
		t.Fatalf("after Remove: %v, want %v", err, ErrNoTable)
	}
}

// TestSockets: no call leaves a file descriptor behind.
func TestSockets(t *testing.T) {
	enterNetns(t)
	table := &Table{Mark: 1, Endpoints: []Endpoint{{Interface: "eth0", Rules: everyKind()}}}
	sockets := func() int {
		n := 0
		entries, err := os.ReadDir("/proc/thread-self/fd")
		must(t, err)
		for _, e := range entries {
			if to, _ := os.Readlink("/proc/thread-self/fd/" + e.Name()); strings.HasPrefix(to, "socket:") {
				n++
			}
		}
		return n
	}
	use := func() {
		must(t, table.Apply())
		_, err := InForce()
		must(t, err)
		counters(t)
		must(t, Remove())
		_, err = InForce()
		if !errors.Is(err, ErrNoTable) {
			t.Fatal(err)
		}
	}
	use()
	before := sockets()
	for range 5 {
		use()
	}
	if after := sockets(); after != before {
		t.Errorf("%d sockets, %d before", after, before)
	}
}

// TestListing: nft can print what is written. It can also read what it prints: an administrator who saves the
// whole ruleset and loads it on the next boot must not find that it fails because of us.
func TestListing(t *testing.T) {
	enterNetns(t)
	rules := everyKind()
	for i := range uint16(20) { // enough rules with the same small sets for these to get names
		r := udpTo(i, policy.Log)
		r.Source = policy.Entity{Nets: nets("10.0.0.0/8", "12.0.0.0/8", "2001:db8::/32", "2001:db9::/32")}
		rules = append(rules, r)
	}
	rules = append(rules, everyGroup()...)
	table := &Table{Mark: 0x1000, Endpoints: []Endpoint{{Interface: "eth0", Rules: rules, Answers: rules}, {Interface: "a+b", Rules: rules}}}
	must(t, table.Apply())
	list := command(t, "", "nft", "-a", "list", "table", "inet", TableName)
	for _, want := range []string{
		`meta mark & 0x00001000 != 0x00001000 accept`,
		`fib daddr type local notrack`,
		`iifname "eth0" fib daddr type local jump in-eth0`,
		`iifname "a+b" fib daddr type local notrack`,
		`socket transparent 0 notrack`,
		`oifname "eth0" goto out-eth0`,
		`oifname "a+b" goto out-a/2bb`,
		`ip6 hoplimit 255 icmpv6 type`,
		`ip daddr @net4-`,
		`ip6 daddr @net6-`,
		`udp dport 67 counter name`,
		`ip saddr 10.0.0.1-10.0.0.3 `,
		`comment "default/every-kind[3]"`,
		`comment "file /etc/deny.txt"`,
		`comment "file /etc/ours.txt"`,
		`jump tier1.out-eth0 comment "tier passing"`,
		`jump tier2.out-eth0 comment "tier passing, too"`,
		`jump tier1.fragments-eth0 comment "tier passing"`,
		`jump tier1.quoted4-eth0 comment "tier passing"`,
		`jump tier2.quoted6-a/2bb comment "tier passing, too"`,
		` return comment "passing/every-kind[20]"`,
		` limit rate 100/second burst 100 packets log prefix "untracked `,
		` group 30062 snaplen 256 comment "last/every-kind[23]"`,
		`icmp type echo-request icmp code `,
		`tcp sport . ip daddr @rules4-`,
		`tcp sport . ip6 daddr @rules6-`,
		` counter name tcp sport map @counters4-`,
		` th sport . th dport @rules-`,
		` counter name th sport map @counters-`,
		`counter name ip saddr map { 10.9.0.0/24 : "out-eth0-`,
		`counter name ip6 saddr map { 2001:db8:0:1::/64 : "out-eth0-`,
		`@th,240,16 . @th,160,32 @quoted-rules4-`, // the quoted packet's destination port and source address
		` counter name @th,240,16 map { 1000 : "out-eth0-`,
		`udp dport . ip saddr . ip daddr @rules4-`,
		` comment "default/alike[0] and 19 more"`,
		` comment "default/alike[0] and 19 more of the quoted packet"`,
	} {
		if !strings.Contains(list, want) {
			t.Errorf("the listing lacks %q", want)
		}
	}
	if t.Failed() {
		t.Log(list)
	}
	var parsed any
	if err := json.Unmarshal([]byte(command(t, "", "nft", "-j", "list", "ruleset")), &parsed); err != nil {
		t.Errorf("JSON listing: %v", err)
	}

	list = command(t, "", "nft", "list", "ruleset")
	must(t, Remove())
	command(t, list, "nft", "-f", "-")
	if diff := cmp.Diff(list, command(t, "", "nft", "list", "ruleset")); diff != "" {
		t.Errorf("listing after it was loaded (-want +got):\n%s", diff)
	}
	must(t, table.Apply())
	inForce(t, table)
}

// TestCounters: a counter lives as long as a rule of its identity.
func TestCounters(t *testing.T) {
	enterNetns(t)
	addDummy(t, "d0")
	raw := openRaw(t)
	send := func(port uint16) { raw.send(t, udpPacket("10.0.0.1", "10.0.0.2", 1, port)) }
	apply := func(rules ...policy.Rule) {
		t.Helper()
		table := &Table{Mark: 1, Endpoints: []Endpoint{{Interface: "d0", Rules: rules}, {Interface: "other", Rules: rules}}}
		must(t, table.Apply())
		inForce(t, table)
	}
	expect := func(what string, want map[uint16]uint64) {
		t.Helper()
		got := map[uint16]uint64{}
		for k, c := range counters(t) {
			if k.Interface != "d0" || c.Bytes != 28*c.Packets {
				t.Errorf("%s: %+v %+v", what, k, c)
			}
			for port := range want {
				if policy.IDs([]policy.Rule{udpTo(port, policy.Allow)})[0] == k.RuleID {
					got[port] = c.Packets
				}
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("%s: packets by port (-want +got):\n%s", what, diff)
		}
	}
	a, b, c := udpTo(1, policy.Allow), udpTo(2, policy.Allow), udpTo(3, policy.Allow)
	apply(a, b)
	send(1)
	send(1)
	send(2)
	expect("first", map[uint16]uint64{1: 2, 2: 1})
	b.Policy, b.Tier, b.Index = "renamed", "tier", 7
	apply(c, b, a)
	send(1)
	send(3)
	expect("in another order and with another rule", map[uint16]uint64{1: 3, 2: 1, 3: 1})
	apply(a)
	expect("two rules gone", map[uint16]uint64{1: 3})
	apply(a, b)
	expect("one rule back", map[uint16]uint64{1: 3})
}

// TestNoPacketMissed: while the policy is rewritten all the time, each packet still meets exactly one rule.
func TestNoPacketMissed(t *testing.T) {
	enterNetns(t)
	addDummy(t, "d0")
	raw := openRaw(t)
	rules := []policy.Rule{
		{Action: policy.Deny, Destination: policy.Entity{Nets: many(200)}},
		udpTo(1, policy.Allow),
		{Action: policy.Deny},
	}
	table := &Table{Mark: 1, Endpoints: []Endpoint{{Interface: "d0", Rules: rules}}}
	must(t, table.Apply())
	var sent uint64
	var stop atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		p := udpPacket("192.0.2.1", "203.0.113.1", 1, 1)
		for !stop.Load() {
			if err := unix.Sendto(raw.v4, p, 0, &unix.SockaddrInet4{Addr: [4]byte{198, 51, 100, 1}}); err != nil {
				t.Errorf("send: %v", err)
				return
			}
			sent++
		}
	}()
	for i := range 60 {
		table.Endpoints[0].Rules = rules
		if i%2 == 0 {
			table.Endpoints[0].Rules = rules[1:]
		}
		if err := table.Apply(); err != nil {
			t.Error(err)
			break
		}
	}
	stop.Store(true)
	<-done
	want := map[CounterKey]Counter{{"d0", policy.IDs(rules)[1]}: {sent, 28 * sent}}
	if diff := cmp.Diff(want, counters(t)); diff != "" || sent == 0 {
		t.Errorf("%d packets (-want +got):\n%s", sent, diff)
	}
}

// TestDamage: whatever was done to the table, Apply mends it and counters go on.
func TestDamage(t *testing.T) {
	enterNetns(t)
	addDummy(t, "d0")
	raw := openRaw(t)
	rules := append([]policy.Rule{udpTo(1, policy.Allow)}, everyKind()...)
	table := &Table{Mark: 0x1000, Endpoints: []Endpoint{{Interface: "d0", Rules: rules}}}
	netsName := ""
	for _, s := range table.ruleset().sets {
		if s.kind == "net4" {
			netsName = s.name
		}
	}
	const silent = "no harm, and not seen"
	// Not every kernel has flow tables.
	flowTables := exec.Command("nft", "-f", "-")
	flowTables.Stdin = strings.NewReader("table inet t { flowtable f { hook ingress priority 0; devices = { lo }; }; }; delete table inet t")
	hasFlowTables := flowTables.Run() == nil
	for _, tt := range []struct{ name, script, silent string }{
		{name: "flushed table", script: "flush table inet untracked"},
		{name: "flushed chain", script: "flush chain inet untracked out-d0"},
		{name: "flushed output", script: "flush chain inet untracked output"},
		{name: "deleted output", script: "flush chain inet untracked output; delete chain inet untracked output"},
		{name: "rule added", script: "add rule inet untracked out-d0 udp dport 9 drop"},
		{name: "rule inserted", script: "insert rule inet untracked prerouting drop"},
		{name: "policy drop", script: "add chain inet untracked output { policy drop; }"},
		{name: "other priority", script: `flush chain inet untracked output; delete chain inet untracked output
			add chain inet untracked output { type filter hook output priority 0; }
			add rule inet untracked output oifname d0 goto out-d0`},
		{name: "output without a hook", script: `flush chain inet untracked output; delete chain inet untracked output
			add chain inet untracked output; add rule inet untracked output oifname d0 goto out-d0`},
		{name: "our name with a hook", script: `flush table inet untracked; delete chain inet untracked out-d0
			add chain inet untracked out-d0 { type filter hook input priority 0; }`},
		{name: "asleep", script: "add table inet untracked { flags dormant; }"},
		{name: "deleted, counters with it", script: "delete table inet untracked"},
		{name: "a chain more", script: "add chain inet untracked foreign; add rule inet untracked foreign accept"},
		{name: "a base chain more", script: `add chain inet untracked foreign { type filter hook forward priority 0; policy drop; }
			add rule inet untracked foreign goto out-d0`},
		{name: "a chain within a rule", script: "add rule inet untracked out-d0 udp dport 9 jump { counter; drop; }"},
		{name: "a map to our chain", script: `add map inet untracked m { type inet_service : verdict; elements = { 9 : goto out-d0 }; }
			add chain inet untracked foreign; add rule inet untracked foreign udp dport vmap @m`},
		{name: "a map to a foreign chain", script: `add chain inet untracked foreign
			add map inet untracked m { type inet_service : verdict; elements = { 9 : goto foreign }; }`, silent: silent},
		{name: "an unused set", script: "add set inet untracked s { type ipv4_addr; }", silent: silent},
		{name: "a counter", script: "add counter inet untracked c", silent: silent},
		{name: "a map to a counter", script: `add counter inet untracked c
			add map inet untracked m { type inet_service : counter; elements = { 9 : "c" }; }`, silent: silent},
		{name: "a quota", script: "add quota inet untracked q { over 1 mbytes; }", silent: silent},
		{name: "a flow table", script: `add flowtable inet untracked f { hook ingress priority 0; devices = { lo }; }`, silent: silent},
		{name: "a flow table in use", script: `add flowtable inet untracked f { hook ingress priority 0; devices = { lo }; }
			add chain inet untracked foreign { type filter hook forward priority 0; }
			add rule inet untracked foreign flow add @f`},
		{name: "a set of our name", script: fmt.Sprintf(`flush table inet untracked; delete set inet untracked %[1]s
			add set inet untracked %[1]s { type ipv6_addr; }`, netsName)},
	} {
		if strings.Contains(tt.script, "flowtable") && !hasFlowTables {
			t.Logf("%s: the kernel has none", tt.name)
			continue
		}
		must(t, Remove())
		must(t, table.Apply())
		raw.send(t, udpPacket("192.0.2.1", "203.0.113.1", 1, 1))
		command(t, tt.script, "nft", "-f", "-")
		got, err := InForce()
		if err != nil && !errors.Is(err, ErrNoTable) {
			t.Fatalf("%s: %v", tt.name, err)
		}
		if seen := got != table.Digest(); seen != (tt.silent == "") {
			t.Errorf("%s: seen %t", tt.name, seen)
		}
		if err := table.Apply(); err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		inForce(t, table)
		raw.send(t, udpPacket("192.0.2.1", "203.0.113.1", 1, 1))
		want := Counter{2, 56}
		if strings.HasPrefix(tt.name, "deleted, counters") {
			want = Counter{1, 28}
		}
		if got := counters(t)[CounterKey{"d0", policy.IDs(rules)[0]}]; got != want {
			t.Errorf("%s: counter %+v, want %+v", tt.name, got, want)
		}
		list := command(t, "", "nft", "list", "table", "inet", TableName)
		for _, foreign := range []string{"foreign", "flowtable", "map m", "set s ", "quota", "counter c ", "dormant"} {
			if strings.Contains(list, foreign) {
				t.Errorf("%s: %s is still there", tt.name, foreign)
			}
		}
	}
}

// TestReplace: the last resort, a new table in the place of the old one, takes the counters' values along.
func TestReplace(t *testing.T) {
	enterNetns(t)
	addDummy(t, "d0")
	raw := openRaw(t)
	table := &Table{Mark: 1, Endpoints: []Endpoint{{Interface: "d0", Rules: everyKind()}}}
	must(t, table.Apply())
	raw.send(t, udpPacket("192.0.2.1", "203.0.113.1", 1, 67))
	want := counters(t)
	s, err := dial()
	must(t, err)
	defer s.Close()
	before, err := s.find()
	must(t, err)
	var b batch
	must(t, table.ruleset().replace(&b, before))
	must(t, s.commit(&b))
	inForce(t, table)
	if diff := cmp.Diff(want, counters(t)); diff != "" || len(want) != 1 {
		t.Errorf("counters (-want +got):\n%s", diff)
	}
}

// TestUpdate: what is in force is changed by what differs. The kernel tells which sets are the same ones as before by
// their handles.
func TestUpdate(t *testing.T) {
	enterNetns(t)
	v4 := func(skip, n int) *netset.Set {
		var b netset.Builder
		for i := range n {
			if i >= 5 && i < 5+skip {
				continue
			}
			bits := 30
			if i%1000 == 7 {
				bits -= skip % 3 // the same first address, another last one
			}
			b.Add(netip.PrefixFrom(netset.To4(uint32(i+skip)<<8), bits))
			b.Add(netip.PrefixFrom(netset.Addr6{Hi: 0x20010db8_00000000, Lo: uint64(i) << 16}.Netip(), 96+bits))
		}
		b.Add(netip.MustParsePrefix("255.255.255.255/32"))
		return b.Build()
	}
	const large = minUpdate + 100
	first := v4(0, large)
	one := func(s *netset.Set) *Table {
		return &Table{Mark: 1, Endpoints: []Endpoint{{Interface: "d0", Rules: []policy.Rule{
			{Policy: "p", Action: policy.Allow, Destination: policy.Entity{Nets: s, NetsName: "file a"}},
			{Policy: "p", Action: policy.Deny, Destination: policy.Entity{Nets: many(100), NetsName: "file b"}},
			{Policy: "p", Action: policy.Allow},
		}}}}
	}
	zero := netset.Union(first, nets("0.0.0.0/32", "::/128"))
	shifted := func() *netset.Set { // nothing stays
		var b netset.Builder
		for i := range large {
			b.Add(netip.PrefixFrom(netset.To4(uint32(i)<<8+128), 30))
		}
		return b.Build()
	}()
	renamed := one(first)
	renamed.Endpoints[0].Rules[0].Policy = "q"
	other := one(first)
	other.Endpoints[0].Rules = append(everyGroup(), other.Endpoints[0].Rules...)
	for _, tt := range []struct {
		name     string
		from, to *Table
		keeps    []string // kinds of sets
	}{
		{"the same", one(first), one(first), []string{"file a", "file b"}},
		{"rules only", one(first), renamed, []string{"file a", "file b"}},
		{"rules more", one(first), other, []string{"file a", "file b"}},
		{"rules less", other, one(first), []string{"file a", "file b"}},
		{"a few ranges", one(first), one(v4(3, large)), []string{"file a", "file b"}},
		{"a few ranges at the end", one(first), one(v4(0, large+5)), []string{"file a", "file b"}},
		{"the first address", one(first), one(zero), []string{"file a", "file b"}},
		{"not the first address", one(zero), one(first), []string{"file a", "file b"}},
		{"everything", one(first), one(shifted), []string{"file b"}},
		{"small now", one(first), one(v4(0, 100)), []string{"file b"}},
	} {
		for _, inForce := range []bool{true, false} {
			must(t, Remove())
			before, err := tt.from.Compile()
			must(t, err)
			must(t, before.Apply(nil))
			if !inForce {
				s, err := dial()
				must(t, err)
				var b batch
				b.flushRules()
				must(t, s.commit(&b))
				s.Close()
			}
			was := handles(t)
			after, err := tt.to.Compile()
			must(t, err)
			must(t, after.Apply(before))
			if got, err := InForce(); err != nil || got != after.Digest() {
				t.Errorf("%s: in force is %s, %v, want %s", tt.name, got, err, after.Digest())
			}
			var kept []string
			now := handles(t)
			for _, s := range after.rs.sets {
				if h := now[s.name]; h == was[s.name] && s.comment != "" {
					kept = append(kept, s.comment)
				}
			}
			slices.Sort(kept)
			want := tt.keeps
			if !inForce {
				want = nil
			}
			if diff := cmp.Diff(want, slices.Compact(kept)); diff != "" {
				t.Errorf("%s: sets that stayed (-want +got):\n%s", tt.name, diff)
			}
			got := contents(t)
			must(t, Remove())
			must(t, tt.to.Apply())
			if diff := cmp.Diff(contents(t), got); diff != "" {
				t.Errorf("%s: the sets differ from those of a table that is written anew (-want +got):\n%s", tt.name, diff)
			}
		}
	}
}

// contents are the elements of the named sets, in an order of their own.
func contents(t *testing.T) map[string][]string {
	t.Helper()
	s, err := dial()
	must(t, err)
	defer s.Close()
	names, err := s.sets()
	must(t, err)
	out := map[string][]string{}
	for _, name := range names {
		a := s.ofTable()
		a.text(unix.NFTA_SET_ELEM_LIST_SET, name)
		replies, err := s.dump(unix.NFT_MSG_GETSETELEM, a)
		must(t, err)
		for _, m := range replies {
			must(t, decode(m, func(ad *mdlayher.AttributeDecoder) {
				if ad.Type() == unix.NFTA_SET_ELEM_LIST_ELEMENTS {
					must(t, decodeAttributes(ad.Bytes(), func(ad *mdlayher.AttributeDecoder) {
						out[name] = append(out[name], hex.EncodeToString(ad.Bytes()))
					}))
				}
			}))
		}
		slices.Sort(out[name])
	}
	return out
}

// handles tells sets of the same name from one another.
func handles(t *testing.T) map[string]uint64 {
	t.Helper()
	s, err := dial()
	must(t, err)
	defer s.Close()
	replies, err := s.dump(unix.NFT_MSG_GETSET, s.ofTable())
	must(t, err)
	out := map[string]uint64{}
	for _, m := range replies {
		var name string
		must(t, decode(m, func(ad *mdlayher.AttributeDecoder) {
			switch ad.Type() {
			case unix.NFTA_SET_NAME:
				name = ad.String()
			case 16: // NFTA_SET_HANDLE
				out[name] = ad.Uint64()
			}
		}))
	}
	return out
}

// TestNoLog: a kernel that cannot report packets gets the rest of the table.
func TestNoLog(t *testing.T) {
	enterNetns(t)
	addDummy(t, "d0")
	raw := openRaw(t)
	rules := []policy.Rule{udpTo(1, policy.Log), udpTo(2, policy.Log), udpTo(1, policy.Allow)}
	rs := (&Table{Mark: 1, Endpoints: []Endpoint{{Interface: "d0", Rules: rules}}}).ruleset()
	// The kernel says of an expression that it does not have what it says of an object that is not there.
	missing := steps(&expr.Objref{Type: objCounter, Name: "missing"})
	for i := range rs.rules {
		if r := &rs.rules[i]; r.report != nil {
			r.report = missing
		}
	}
	s, err := dial()
	must(t, err)
	defer s.Close()
	for range 2 {
		rs.silent = false
		if err := s.apply(rs, nil); !errors.Is(err, ErrNoLog) {
			t.Fatalf("%v, want %v", err, ErrNoLog)
		}
		got, err := InForce()
		must(t, err)
		if got != rs.digest() {
			t.Errorf("in force is %s, want %s", got, rs.digest())
		}
	}
	raw.send(t, udpPacket("192.0.2.1", "203.0.113.1", 1, 1))
	ids := policy.IDs(rules)
	want := map[CounterKey]Counter{{"d0", ids[0]}: {1, 28}, {"d0", ids[2]}: {1, 28}}
	if diff := cmp.Diff(want, counters(t)); diff != "" {
		t.Errorf("counters (-want +got):\n%s", diff)
	}

	// Whatever else the kernel lacks is not made up for.
	rs.silent = false
	rs.rules[0].steps = append(rs.rules[0].steps, missing...)
	if err := s.apply(rs, nil); err == nil || errors.Is(err, ErrNoLog) || !strings.Contains(err.Error(), "does the kernel have nft_fib_inet") {
		t.Errorf("without something else: %v", err)
	}
	must(t, (&Table{Mark: 1, Endpoints: []Endpoint{{Interface: "d0", Rules: rules}}}).Apply())
}

// TestLogLimit: the limit is one of reports, and not of packets.
func TestLogLimit(t *testing.T) {
	enterNetns(t)
	addDummy(t, "d0")
	raw := openRaw(t)
	reader, err := nflog.Open(LogGroup, LogBytes)
	must(t, err)
	defer reader.Close()
	rules := []policy.Rule{udpTo(1, policy.Log), udpTo(1, policy.Allow), udpTo(2, policy.Log)}
	must(t, (&Table{Mark: 1, Endpoints: []Endpoint{{Interface: "d0", Rules: rules}}}).Apply())
	const sent = 100 * LogRate
	begin := time.Now()
	for range sent {
		raw.send(t, udpPacket("192.0.2.1", "203.0.113.1", 1, 1))
	}
	most := LogRate + 1 + int(time.Since(begin).Seconds()*LogRate)
	raw.send(t, udpPacket("192.0.2.1", "203.0.113.1", 1, 2))

	ids := policy.IDs(rules)
	want := map[CounterKey]Counter{{"d0", ids[0]}: {sent, 28 * sent}, {"d0", ids[1]}: {sent, 28 * sent}, {"d0", ids[2]}: {1, 28}}
	if diff := cmp.Diff(want, counters(t)); diff != "" {
		t.Errorf("counters (-want +got):\n%s", diff)
	}
	reports := 0
	for {
		next := read(t, reader, 1)[0]
		if strings.HasPrefix(next, LogPrefix(ids[2])) {
			break
		}
		if !strings.HasPrefix(next, LogPrefix(ids[0])) {
			t.Fatal(next)
		}
		reports++
	}
	if reports < LogRate || reports > most || most >= sent {
		t.Errorf("%d reports of %d packets, want %d to %d", reports, sent, LogRate, most)
	}
}

// TestOthersUntouched: other tables are none of our business.
func TestOthersUntouched(t *testing.T) {
	enterNetns(t)
	command(t, `table inet other { chain output { type filter hook output priority 0; udp dport 1 counter; }; }
		table ip untracked { chain output { type filter hook output priority 0; }; }`, "nft", "-f", "-")
	list := func() string {
		return command(t, "", "nft", "list", "table", "inet", "other") + command(t, "", "nft", "list", "table", "ip", "untracked")
	}
	before := list()
	table := &Table{Mark: 1, Endpoints: []Endpoint{{Interface: "d0", Rules: everyKind()}}}
	must(t, table.Apply())
	must(t, table.Apply())
	inForce(t, table)
	must(t, Remove())
	if diff := cmp.Diff(before, list()); diff != "" {
		t.Errorf("other tables (-before +after):\n%s", diff)
	}
}

// TestLargeSets writes 50,000 ranges of each family and asks for their edges.
func TestLargeSets(t *testing.T) {
	enterNetns(t)
	addDummy(t, "d0")
	raw := openRaw(t)
	var b netset.Builder
	for i := range uint32(50000) {
		b.Add(netip.PrefixFrom(netset.To4(0xffffffff-i*60000), 28))
		b.Add(netip.PrefixFrom(netset.Addr6{Hi: 1<<63 | uint64(i)<<40, Lo: 1 << 40}.Netip(), 100))
	}
	s := b.Build()
	if len(s.Ranges4()) != 50000 || len(s.Ranges6()) != 50000 {
		t.Fatalf("%d and %d ranges", len(s.Ranges4()), len(s.Ranges6()))
	}
	rules := []policy.Rule{
		{Action: policy.Deny, Destination: policy.Entity{Nets: s}},
		{Action: policy.Allow, Destination: policy.Entity{NotNets: s}},
	}
	table := &Table{Mark: 1, Endpoints: []Endpoint{{Interface: "d0", Rules: rules}, {Interface: "d1", Rules: rules}}}
	for range 2 {
		must(t, table.Apply())
		inForce(t, table)
	}
	ids := policy.IDs(rules)
	probe := func(dst netip.Addr) {
		t.Helper()
		src := "192.0.2.1"
		if dst.Is6() {
			src = "2001:db8:ffff::1"
		}
		before, err := Counters()
		must(t, err)
		raw.send(t, udpPacket(src, dst.String(), 1, 1))
		after, err := Counters()
		must(t, err)
		in := after[CounterKey{"d0", ids[0]}].Packets - before[CounterKey{"d0", ids[0]}].Packets
		out := after[CounterKey{"d0", ids[1]}].Packets - before[CounterKey{"d0", ids[1]}].Packets
		if s.Contains(dst) && (in != 1 || out != 0) || !s.Contains(dst) && (in != 0 || out != 1) {
			t.Errorf("%s: in the set %t, counted %d inside and %d outside", dst, s.Contains(dst), in, out)
		}
	}
	for i := 0; i < 50000; i += 1249 {
		r4, r6 := s.Ranges4()[i], s.Ranges6()[i]
		for _, a := range []netip.Addr{
			netset.To4(r4.Lo), netset.To4(r4.Hi), netset.To4(r4.Lo).Prev(), netset.To4(r4.Hi).Next(),
			r6.Lo.Netip(), r6.Hi.Netip(), r6.Lo.Netip().Prev(), r6.Hi.Netip().Next(),
		} {
			if a.IsValid() {
				probe(a)
			}
		}
	}
	probe(netip.MustParseAddr("255.255.255.255"))
}

// TestManyRules: a batch of thousands of messages fits through the socket, refusals included.
func TestManyRules(t *testing.T) {
	enterNetns(t)
	rules := make([]policy.Rule, 3000)
	for i := range rules {
		rules[i] = udpTo(uint16(i), policy.Allow)
		rules[i].Source.Nets = nets("10.0.0.0/8", "12.0.0.0/8", "2001:db8::/32")
	}
	for _, table := range []*Table{{Mark: 1, Endpoints: []Endpoint{{Interface: "d0", Rules: rules}}}, thousands()} {
		for range 2 {
			must(t, table.Apply())
			inForce(t, table)
		}
	}
	// Each message of this batch is refused. The first refusal is the one that is told.
	s, err := dial()
	must(t, err)
	defer s.Close()
	var b batch
	for i := range 3000 {
		b.deleteChain("none")
		b.names[i] += "!"
	}
	if err := s.commit(&b); err == nil || !strings.HasPrefix(err.Error(), "delete chain none!: ") || !errors.Is(err, unix.ENOENT) {
		t.Errorf("deleting what is not there: %v", err)
	}
}
