// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/pkg/netset"
	"github.com/untracked-cni/untracked/pkg/policy"
)

func ptr[T any](v T) *T { return &v }

func nets(prefixes ...string) *netset.Set {
	var b netset.Builder
	for _, p := range prefixes {
		b.Add(netip.MustParsePrefix(p))
	}
	return b.Build()
}

// many is a set of n ranges of each family, none a single address.
func many(n int) *netset.Set {
	var b netset.Builder
	for i := range n {
		b.Add(netip.PrefixFrom(netset.To4(uint32(i)<<8), 30))
		b.Add(netip.PrefixFrom(netset.Addr6{Hi: 0x20010db8_00000000, Lo: uint64(i) << 16}.Netip(), 126))
	}
	return b.Build()
}

func portRange(first, last uint16) policy.PortRange {
	return policy.PortRange{First: first, Last: last}
}

func TestNames(t *testing.T) {
	for _, ifname := range []string{"eth0", "br-1_2.100", "a-0123456789abcd", "0", "we!rd\"x*", "é\xff%", "out-eth0"} {
		k := CounterKey{Interface: ifname, RuleID: 0x0123456789abcdef}
		name := counterName(k)
		got, ok := parseCounterName(name)
		if diff := cmp.Diff(k, got); !ok || diff != "" {
			t.Errorf("%q: parsed %t (-want +got):\n%s", name, ok, diff)
		}
		if i := strings.IndexFunc(name, func(r rune) bool {
			return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./", r)
		}); i >= 0 {
			t.Errorf("%q cannot be parsed by nft", name)
		}
	}
	for _, name := range []string{
		"", "eth0", "out-", "out-eth0", "out--0123456789abcdef", "out-eth0-0123456789abcdeg", "out-eth0-0123456789ABCDEF",
		"out-a/2-0123456789abcdef", "out-a/zz-0123456789abcdef", "out-/61-0123456789abcdef", "eth0-0123456789abcdef",
	} {
		if k, ok := parseCounterName(name); ok {
			t.Errorf("%q parsed as %+v", name, k)
		}
	}
}

func TestValidate(t *testing.T) {
	for _, tt := range []struct {
		table Table
		want  string
	}{
		{Table{Mark: 0}, "the mark is 0"},
		{Table{Mark: 1, Endpoints: []Endpoint{{Interface: "a b"}}}, `"a b" is not an interface name`},
		{Table{Mark: 1, Endpoints: []Endpoint{{Interface: "0123456789abcdef"}}}, "is not an interface name"},
		{Table{Mark: 1, Endpoints: []Endpoint{{Interface: "a"}, {Interface: "a"}}}, "interface a has two egress lists"},
	} {
		if err := tt.table.Apply(); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: %v, want %q", tt.table, err, tt.want)
		}
	}
}

func TestElements(t *testing.T) {
	all := func(s *set) (out []string) {
		for e := range s.elements(s.interval(), s.blank()) {
			text := hex.EncodeToString(e.key)
			if e.end {
				text += " end"
			}
			if e.counter != "" {
				text += " " + e.counter
			}
			out = append(out, text)
		}
		return out
	}
	adjacent := func(name string) *set {
		s := octets("", nftables.TypeInetProto, []uint8{4, 5, 7})
		s.ranges = func(yield func(lo, hi []byte) bool) {
			_ = yield([]byte{4}, []byte{4}) && yield([]byte{5}, []byte{6}) && yield([]byte{9}, []byte{9})
		}
		s.counters, s.name = []string{"a", "b", "c"}, name
		return s
	}
	for _, tt := range []struct {
		name string
		set  *set
		want []string
	}{
		{"adjacent in a map with a name", adjacent("m"), []string{"00 end", "04 a", "05 end", "05 b", "07 end", "09 c", "0a end"}},
		{"adjacent in a map without", adjacent(""), []string{"00 end", "04 a", "05 b", "07 end", "09 c", "0a end"}},
		{"from zero", addresses(4, nets("0.0.0.0/8", "10.0.0.0/8"), 0, ""),
			[]string{"00000000", "01000000 end", "0a000000", "0b000000 end"}},
		{"to the last address", addresses(4, nets("10.0.0.0/8", "255.255.255.255/32"), 0, ""),
			[]string{"00000000 end", "0a000000", "0b000000 end", "ffffffff"}},
		{"everything", addresses(4, nets("0.0.0.0/0"), 0, ""), []string{"00000000"}},
		{"single values", addresses(4, nets("10.0.0.1/32", "10.0.0.3/32"), 0, ""), []string{"0a000001", "0a000003"}},
		{"ipv6", addresses(6, nets("10.0.0.0/8", "2001:db8::/127", "ffff:ffff:ffff:ffff::/64"), 0, ""), []string{
			"00000000000000000000000000000000 end",
			"20010db8000000000000000000000000", "20010db8000000000000000000000002 end", "ffffffffffffffff0000000000000000"}},
		{"carry", addresses(6, nets("1::ffff:ffff:ffff/128", "2::/64"), 0, ""), []string{
			"00000000000000000000000000000000 end",
			"00010000000000000000ffffffffffff", "00010000000000000001000000000000 end",
			"00020000000000000000000000000000", "00020000000000010000000000000000 end"}},
		{"ports out of order", ports([]policy.PortRange{{First: 100, Last: 65535}, {First: 1, Last: 2}, {First: 3, Last: 3}}),
			[]string{"0000 end", "0001", "0004 end", "0064"}},
		{"single ports", ports([]policy.PortRange{{First: 9, Last: 9}, {First: 7, Last: 7}}), []string{"0007", "0009"}},
	} {
		if diff := cmp.Diff(tt.want, all(tt.set)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

func TestPrefixMask(t *testing.T) {
	for _, tt := range []struct{ lo, hi, want string }{
		{"0a000000", "0affffff", "ff000000"},
		{"0a000001", "0a000001", "ffffffff"},
		{"00000000", "ffffffff", "00000000"},
		{"0a000000", "0a00007f", "ffffff80"},
		{"0a000001", "0a000002", ""},
		{"0a000000", "0a000002", ""},
		{"0a000080", "0a00017f", ""},
	} {
		lo, _ := hex.DecodeString(tt.lo)
		hi, _ := hex.DecodeString(tt.hi)
		if got := hex.EncodeToString(prefixMask(lo, hi)); got != tt.want {
			t.Errorf("%s-%s: %s, want %s", tt.lo, tt.hi, got, tt.want)
		}
	}
}

// TestFamilies counts the nftables rules of a policy rule: one a family where needed, none where it cannot
// match. The counter is there all the same.
func TestFamilies(t *testing.T) {
	udp := ptr(uint8(policy.UDP))
	v4, v6, both := nets("10.0.0.0/8"), nets("2001:db8::/32"), nets("10.0.0.0/8", "2001:db8::/32")
	side := func(n *netset.Set) policy.Entity { return policy.Entity{Nets: n} }
	for _, tt := range []struct {
		name string
		rule policy.Rule
		want int
	}{
		{"anything", policy.Rule{}, 1},
		{"protocol", policy.Rule{Protocol: udp}, 1},
		{"ipv6", policy.Rule{IPVersion: 6}, 1},
		{"ipv4 set", policy.Rule{Source: side(v4)}, 1},
		{"both families", policy.Rule{Source: side(both)}, 2},
		{"both families, ipv4 only", policy.Rule{IPVersion: 4, Source: side(both)}, 1},
		{"families that never meet", policy.Rule{Source: side(v4), Destination: side(v6)}, 0},
		{"empty set", policy.Rule{Source: side(nets())}, 0},
		{"nothing excluded", policy.Rule{Source: policy.Entity{NotNets: nets()}}, 2},
		{"one family excluded", policy.Rule{Source: policy.Entity{NotNets: nets("0.0.0.0/0")}}, 1},
		{"all excluded", policy.Rule{Source: policy.Entity{NotNets: nets("0.0.0.0/0", "::/0")}}, 0},
		{"no ports", policy.Rule{Source: policy.Entity{Ports: []policy.PortRange{}}}, 0},
		{"all ports excluded", policy.Rule{Source: policy.Entity{NotPorts: []policy.PortRange{portRange(0, 65535)}}}, 0},
		{"ports of a protocol without", policy.Rule{Protocol: ptr(uint8(47)), Source: policy.Entity{NotPorts: []policy.PortRange{}}}, 0},
		{"contradiction", policy.Rule{Protocol: udp, NotProtocol: udp}, 0},
		{"icmp", policy.Rule{ICMP: &policy.ICMPMatch{Type: 8}}, 2},
		{"icmp in ipv4", policy.Rule{Protocol: ptr(uint8(policy.ICMP)), ICMP: &policy.ICMPMatch{Type: 8}}, 1},
		{"not a type", policy.Rule{IPVersion: 4, NotICMP: &policy.ICMPMatch{Type: 8}}, 1},
		{"not a type with code", policy.Rule{IPVersion: 4, NotICMP: &policy.ICMPMatch{Type: 8, Code: ptr(uint8(1))}}, 2},
	} {
		tt.rule.Action = policy.Deny // so that there is no chain for quoted packets
		rs := (&Table{Mark: 1, Endpoints: []Endpoint{{Interface: "eth0", Rules: []policy.Rule{tt.rule}}}}).ruleset()
		got := -3 // fragments in both families, and neighbour discovery
		for _, r := range rs.rules {
			if r.chain == "out-eth0" {
				got++
			}
		}
		if got != tt.want || len(rs.counters) != 1 {
			t.Errorf("%s: %d rules and %d counters, want %d and 1", tt.name, got, len(rs.counters), tt.want)
		}
	}
}

// TestTiers: a tier with a Pass has a chain of its own wherever that Pass can match. No chain of a tier leads to
// another chain.
func TestTiers(t *testing.T) {
	udp, v4 := ptr(uint8(policy.UDP)), policy.Entity{Nets: nets("10.0.0.0/8")}
	port := policy.Entity{Ports: []policy.PortRange{portRange(9, 9)}}
	rules := []policy.Rule{
		{Policy: "failsafe", Action: policy.Failsafe, Protocol: udp},
		{Tier: "a", Policy: "deny", Action: policy.Deny, Protocol: udp, Source: v4},
		{Tier: "a", Policy: "log", Action: policy.Log, Source: v4},
		{Tier: "b", Policy: "pass", Action: policy.Pass, Source: v4},
		{Tier: "b", Policy: "allow", Action: policy.Allow, Source: v4},
		{Tier: "c", Policy: "pass", Action: policy.Pass, Destination: port},
		{Tier: "c", Policy: "deny", Action: policy.Deny, Protocol: udp},
		{Tier: "d", Policy: "pass", Action: policy.Pass, Source: policy.Entity{Nets: nets()}},
		{Tier: "d", Policy: "allow", Action: policy.Allow, IPVersion: 4},
		{Tier: "e", Policy: "pass", Action: policy.Pass},
		{Policy: "deny", Action: policy.Deny, Source: v4},
	}
	rs := (&Table{Mark: 1, Endpoints: []Endpoint{{Interface: "eth0", Rules: rules}}}).ruleset()
	got := map[string][]string{}
	for _, r := range rs.rules {
		ends := ""
		for _, s := range r.steps {
			if v, ok := s.expr.(*expr.Verdict); ok {
				ends = strings.TrimSpace(fmt.Sprintf(" %s %s", verdictNames[v.Kind], v.Chain))
			}
		}
		got[r.chain] = append(got[r.chain], r.comment+": "+ends)
	}
	delete(got, preroutingChain)
	delete(got, outputChain)
	want := map[string][]string{
		"out-eth0": {
			"a fragment but the first: goto fragments-eth0", "a fragment but the first: goto fragments-eth0",
			"neighbour discovery: accept",
			"failsafe[0]: accept", "a/deny[0]: drop", "a/log[0]: ",
			"tier b: jump tier1.out-eth0", "tier c: jump tier2.out-eth0", "d/allow[0]: accept", "tier e: jump tier3.out-eth0",
			"deny[0]: drop",
			"which packet is this error about?: goto quoted4-eth0",
		},
		"tier1.out-eth0": {"b/pass[0]: return", "b/allow[0]: accept"},
		"tier2.out-eth0": {"c/pass[0]: return", "c/deny[0]: drop"},
		"tier3.out-eth0": {"e/pass[0]: return"},
		"fragments-eth0": {
			"failsafe[0] for fragments: accept", "a/deny[0] for fragments: drop", "a/log[0] for fragments: ",
			"tier b: jump tier1.fragments-eth0", "c/deny[0] for fragments: drop", "d/allow[0] for fragments: accept",
			"tier e: jump tier2.fragments-eth0", "deny[0] for fragments: drop",
		},
		"tier1.fragments-eth0": {"b/pass[0] for fragments: return", "b/allow[0] for fragments: accept"},
		"tier2.fragments-eth0": {"e/pass[0] for fragments: return"},
		"quoted4-eth0": {
			"failsafe[0] of the quoted packet: accept", "a/deny[0] of the quoted packet: accept",
			"tier b: jump tier1.quoted4-eth0", "tier c: jump tier2.quoted4-eth0", "d/allow[0] of the quoted packet: accept",
		},
		"tier1.quoted4-eth0": {"b/pass[0] of the quoted packet: return", "b/allow[0] of the quoted packet: accept"},
		"tier2.quoted4-eth0": {"c/pass[0] of the quoted packet: return", "c/deny[0] of the quoted packet: accept"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("rules by chain (-want +got):\n%s", diff)
	}
	if len(rs.chains) != len(want) || len(rs.counters) != len(rules) {
		t.Errorf("%d chains and %d counters, want %d and %d", len(rs.chains), len(rs.counters), len(want), len(rules))
	}
}

var verdictNames = map[expr.VerdictKind]string{
	expr.VerdictAccept: "accept", expr.VerdictDrop: "drop", expr.VerdictReturn: "return", expr.VerdictJump: "jump", expr.VerdictGoto: "goto",
}

func TestLogPrefix(t *testing.T) {
	for _, id := range []uint64{1, 0x0123456789abcdef, 1<<64 - 1} {
		if got, ok := ParseLogPrefix(LogPrefix(id)); got != id || !ok {
			t.Errorf("%x: %q is %x, %t", id, LogPrefix(id), got, ok)
		}
	}
	for _, text := range []string{"", "untracked", "untracked ", "untracked 1", "untracked 0123456789ABCDEF", "0123456789abcdef", "other 0123456789abcdef"} {
		if id, ok := ParseLogPrefix(text); ok {
			t.Errorf("%q is %x", text, id)
		}
	}
}

func TestDigest(t *testing.T) {
	table := func() *Table {
		return &Table{Mark: 0x1000, Endpoints: []Endpoint{
			{Interface: "eth0", Rules: []policy.Rule{
				{Policy: "a", Action: policy.Allow, Protocol: ptr(uint8(17)), Destination: policy.Entity{Ports: []policy.PortRange{portRange(53, 53)}}},
				{Policy: "b", Action: policy.Deny, Destination: policy.Entity{Nets: many(100), NetsName: "file x"}},
			}},
			{Interface: "eth1", Rules: []policy.Rule{{Policy: "c", Action: policy.Allow, ICMP: &policy.ICMPMatch{Type: 8}}}},
		}}
	}
	want := table().Digest()
	if got := table().Digest(); got != want {
		t.Errorf("twice the same table: %s and %s", want, got)
	}
	for _, tt := range []struct {
		name   string
		same   bool
		change func(*Table)
	}{
		{"order of endpoints", true, func(t *Table) {
			t.Endpoints[0], t.Endpoints[1] = t.Endpoints[1], t.Endpoints[0]
		}},
		{"mark", false, func(t *Table) { t.Mark = 0x2000 }},
		{"interface", false, func(t *Table) { t.Endpoints[0].Interface = "eth2" }},
		{"one endpoint less", false, func(t *Table) { t.Endpoints = t.Endpoints[:1] }},
		{"order of rules", false, func(t *Table) {
			r := t.Endpoints[0].Rules
			r[0], r[1] = r[1], r[0]
		}},
		{"tier", false, func(t *Table) { t.Endpoints[0].Rules[1].Tier = "d" }},
		{"log", false, func(t *Table) { t.Endpoints[0].Rules[0].Action = policy.Log }},
		{"pass", false, func(t *Table) { t.Endpoints[0].Rules[0].Action = policy.Pass }},
		{"answers", false, func(t *Table) { t.Endpoints[0].Answers = t.Endpoints[0].Rules }},
		{"action", false, func(t *Table) { t.Endpoints[0].Rules[0].Action = policy.Failsafe }},
		{"name", false, func(t *Table) { t.Endpoints[0].Rules[0].Policy = "d" }},
		{"port", false, func(t *Table) { t.Endpoints[0].Rules[0].Destination.Ports[0].Last = 54 }},
		{"icmp code", false, func(t *Table) { t.Endpoints[1].Rules[0].ICMP.Code = ptr(uint8(0)) }},
		{"content of a named list", false, func(t *Table) { t.Endpoints[0].Rules[1].Destination.Nets = many(101) }},
	} {
		changed := table()
		tt.change(changed)
		if got := changed.Digest(); (got == want) != tt.same {
			t.Errorf("%s: %s and %s, want the same: %t", tt.name, want, got, tt.same)
		}
	}
}

// TestSharedSets: equal large sets are written once, whoever uses them.
func TestSharedSets(t *testing.T) {
	one, again, other := many(100), many(100), many(101)
	rule := func(n *netset.Set) policy.Rule {
		return policy.Rule{Action: policy.Allow, Destination: policy.Entity{Nets: n}}
	}
	rs := (&Table{Mark: 1, Endpoints: []Endpoint{
		{Interface: "eth0", Rules: []policy.Rule{rule(one), rule(other)}},
		{Interface: "eth1", Rules: []policy.Rule{rule(again)}},
	}}).ruleset()
	var got []string
	names := map[string]bool{}
	for _, s := range rs.sets {
		got = append(got, fmt.Sprintf("%s %d", s.kind, s.count))
		names[s.name] = true
		if !strings.HasPrefix(s.name, s.kind+"-") {
			t.Errorf("a set of kind %s is called %s", s.kind, s.name)
		}
	}
	if diff := cmp.Diff([]string{
		"net4 100", "net6 100", "net4 101", "net6 101",
		"quoted-net4 100", "quoted-net4 101", "quoted-net6 100", "quoted-net6 101",
	}, got); diff != "" || len(names) != len(rs.sets) {
		t.Errorf("sets %v (-want +got):\n%s", names, diff)
	}
}

// TestWire checks the lengths of all attributes of a large batch: one that wrapped at 64 KiB would show here.
func TestWire(t *testing.T) {
	table := &Table{Mark: 1, Endpoints: []Endpoint{{Interface: "eth0", Rules: []policy.Rule{
		{Action: policy.Allow, Destination: policy.Entity{Nets: many(50000)}},
	}}}}
	var b batch
	if err := table.ruleset().transform(&b, &found{}); err != nil {
		t.Fatal(err)
	}
	elements := 0
	for i, m := range b.messages {
		for rest := m.Data[4:]; len(rest) > 0; {
			length := int(binary.NativeEndian.Uint16(rest))
			if length < unix.SizeofNlAttr || length > len(rest) {
				t.Fatalf("message %d (%s): attribute of %d bytes with %d left", i, b.names[i], length, len(rest))
			}
			if m.Header.Type&0xff == unix.NFT_MSG_NEWSETELEM && binary.NativeEndian.Uint16(rest[2:])&^unix.NLA_F_NESTED == unix.NFTA_SET_ELEM_LIST_ELEMENTS {
				for inner := rest[4:length]; len(inner) > 0; elements++ {
					inner = inner[min(len(inner), int(binary.NativeEndian.Uint16(inner))):]
				}
			}
			rest = rest[min(len(rest), (length+3)&^3):]
		}
	}
	// 50,000 ranges of two elements in each family, and the empty space before the first IPv6 range, twice: for
	// the packet and for the quoted one. Then the sets of ICMP types (5 and 4) and of extension headers (5).
	if want := 2*(2*100000+1) + 14; elements != want {
		t.Errorf("%d elements, want %d", elements, want)
	}
}

func TestUserData(t *testing.T) {
	for _, text := range []string{"", "default/x[0]", strings.Repeat("é", 200), "a\"b\\c\n\xff"} {
		data := ruleUserData(text, 42)
		if d, ok := digestOf(data); !ok || d != 42 {
			t.Errorf("%q: digest %d, %t", text, d, ok)
		}
		if len(data) > 256 || strings.ContainsAny(comment(text), "\"\\\n") {
			t.Errorf("%q: comment %q", text, comment(text))
		}
	}
	for _, data := range []string{"", "\x00", "\x00\x05abc", "\xd1\x04abcd", "\xd1\x08abc"} {
		if _, ok := digestOf([]byte(data)); ok {
			t.Errorf("%q has a digest", data)
		}
	}
}
