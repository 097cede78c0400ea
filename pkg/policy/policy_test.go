// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/untracked-cni/untracked/pkg/netset"
)

func set(prefixes ...string) *netset.Set {
	var b netset.Builder
	for _, p := range prefixes {
		b.Add(netip.MustParsePrefix(p))
	}
	return b.Build()
}

func packet(protocol uint8, src string, sport uint16, dst string, dport uint16) *Packet {
	return &Packet{
		Src: netip.MustParseAddr(src), Dst: netip.MustParseAddr(dst), Protocol: protocol, HopLimit: 64,
		HasL4: true, SrcPort: sport, DstPort: dport,
	}
}

func TestEvaluate(t *testing.T) {
	redis := Rule{Action: Allow, Protocol: new(uint8(TCP)), Source: Entity{Nets: set("10.0.0.0/8", "2001:db8::/32")}, Destination: Entity{Ports: []PortRange{{6379, 6379}}}}
	deny := Rule{Action: Deny, Source: Entity{Nets: set("10.66.0.0/16")}}
	ssh := Rule{Action: Failsafe, Protocol: new(uint8(TCP)), Destination: Entity{Ports: []PortRange{{22, 22}}}}
	notDNS := Rule{Action: Deny, Protocol: new(uint8(UDP)), Destination: Entity{NotPorts: []PortRange{{53, 53}}}}
	echo := Rule{Action: Allow, Protocol: new(uint8(ICMP)), ICMP: &ICMPMatch{Type: 8}}
	all := []Rule{ssh, deny, redis, notDNS, echo}

	fragment := packet(TCP, "10.0.0.1", 0, "192.0.2.1", 0)
	fragment.HasL4, fragment.LaterFragment = false, true
	deniedFragment := packet(TCP, "10.66.0.1", 0, "192.0.2.1", 0)
	deniedFragment.HasL4, deniedFragment.LaterFragment = false, true
	solicitation := &Packet{
		Src: netip.MustParseAddr("fe80::1"), Dst: netip.MustParseAddr("ff02::1"), Protocol: ICMPv6, HopLimit: 255,
		HasL4: true, ICMPType: 135,
	}
	routedSolicitation := *solicitation
	routedSolicitation.HopLimit = 254
	icmpError := func(quoted *Packet) *Packet {
		return &Packet{
			Src: netip.MustParseAddr("203.0.113.9"), Dst: netip.MustParseAddr("192.0.2.1"), Protocol: ICMP, HopLimit: 60,
			HasL4: true, ICMPType: 3, ICMPCode: 4, Quoted: quoted,
		}
	}
	ping := &Packet{
		Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr("192.0.2.1"), Protocol: ICMP, HopLimit: 60,
		HasL4: true, ICMPType: 8,
	}
	pong := *ping
	pong.Src, pong.Dst, pong.ICMPType = ping.Dst, ping.Src, 0

	for _, c := range []struct {
		name string
		p    *Packet
		want Decision
	}{
		{"allowed", packet(TCP, "10.0.0.1", 1, "192.0.2.1", 6379), Decision{Verdict: Untracked, By: ByRule, Rule: 2}},
		{"allowed, other family", packet(TCP, "2001:db8::1", 1, "2001:db8::2", 6379), Decision{Verdict: Untracked, By: ByRule, Rule: 2}},
		{"a deny stands before", packet(TCP, "10.66.0.1", 1, "192.0.2.1", 6379), Decision{Verdict: Denied, By: ByRule, Rule: 1}},
		{"a failsafe before that", packet(TCP, "10.66.0.1", 1, "192.0.2.1", 22), Decision{Verdict: Tracked, By: ByFailsafe, Rule: 0}},
		{"wrong source", packet(TCP, "11.0.0.1", 1, "192.0.2.1", 6379), Decision{Verdict: Tracked, By: ByNoMatch, Rule: NoRule}},
		{"wrong protocol", packet(SCTP, "10.0.0.1", 1, "192.0.2.1", 6379), Decision{Verdict: Tracked, By: ByNoMatch, Rule: NoRule}},
		{"negated port, other", packet(UDP, "11.0.0.1", 1, "192.0.2.1", 54), Decision{Verdict: Denied, By: ByRule, Rule: 3}},
		{"negated port, the one", packet(UDP, "11.0.0.1", 1, "192.0.2.1", 53), Decision{Verdict: Tracked, By: ByNoMatch, Rule: NoRule}},
		{"a later fragment has no ports", fragment, Decision{Verdict: Tracked, By: ByFragment, Rule: NoRule}},
		{"but an address", deniedFragment, Decision{Verdict: Denied, By: ByRule, Rule: 1}},
		{"neighbour discovery", solicitation, Decision{Verdict: Tracked, By: ByFailsafe, Rule: NoRule}},
		{"from off the link it is any ICMPv6", &routedSolicitation, Decision{Verdict: Tracked, By: ByNoMatch, Rule: NoRule}},
		{"error about an untracked flow", icmpError(packet(TCP, "192.0.2.1", 6379, "10.0.0.1", 1)), Decision{Verdict: Untracked, By: ByRule, Rule: 2}},
		{"error about a tracked flow", icmpError(packet(TCP, "192.0.2.1", 80, "10.0.0.1", 1)), Decision{Verdict: Tracked, By: ByNoMatch, Rule: NoRule}},
		{"error about a denied flow is not denied", icmpError(packet(TCP, "192.0.2.1", 80, "10.66.0.1", 1)), Decision{Verdict: Tracked, By: ByNoMatch, Rule: NoRule}},
		{"error about a failsafe flow", icmpError(packet(TCP, "192.0.2.1", 22, "10.0.0.1", 1)), Decision{Verdict: Tracked, By: ByNoMatch, Rule: NoRule}},
		{"echo request", ping, Decision{Verdict: Untracked, By: ByRule, Rule: 4}},
		{"error about its reply", icmpError(&pong), Decision{Verdict: Untracked, By: ByRule, Rule: 4}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, Evaluate(all, c.p)); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
		})
	}
	if got := Evaluate([]Rule{{Action: Deny, Source: Entity{Nets: set("::/0")}}}, solicitation); got.Verdict != Tracked {
		t.Errorf("neighbour discovery was %s by a deny of ::/0", got.Verdict)
	}
	if got := Evaluate([]Rule{{Action: Deny, Source: Entity{Nets: set()}}}, ping); got.Verdict != Tracked {
		t.Errorf("an empty set matched: %v", got)
	}
}

func TestAddReturns(t *testing.T) {
	in := Rule{Policy: "a", Action: Allow, Protocol: new(uint8(TCP)), Source: Entity{Nets: set("10.0.0.0/8")}, Destination: Entity{Ports: []PortRange{{80, 80}}}}
	ping := Rule{Policy: "b", Action: Allow, Protocol: new(uint8(ICMP)), ICMP: &ICMPMatch{Type: 8}}
	deny := Rule{Policy: "c", Action: Deny}
	r := Rules{Ingress: []Rule{in, ping, deny}, Egress: []Rule{in.mirror()}}
	r.AddReturns()
	if len(r.Ingress) != 3 || len(r.Egress) != 2 {
		t.Fatalf("got %d ingress and %d egress rules, want 3 and 2", len(r.Ingress), len(r.Egress))
	}
	got := r.Egress[1]
	if got.Name() != "auto-return[0]" || got.ICMP.Type != 0 {
		t.Errorf("the mirrored ping is %s %s", got.Name(), got.Match())
	}
	again := Rules{Ingress: r.Ingress, Egress: r.Egress}
	again.AddReturns()
	if len(again.Ingress) != 3 || len(again.Egress) != 2 {
		t.Error("mirroring what is complete added rules")
	}
	once := in.mirror()
	if twice := once.mirror(); twice.contentHash() != in.contentHash() {
		t.Error("the mirror of the mirror is another rule")
	}
}

// Replies to whatever one direction leaves untracked are untracked in the other.
func TestShorthandCoversBothDirections(t *testing.T) {
	s := Shorthand{
		Ports: []Port{{TCP, PortRange{6379, 6379}}}, Sources: set("10.0.0.0/8"),
		RemotePorts: []Port{{UDP, PortRange{53, 53}}}, Destinations: set("192.0.2.53/32"),
	}
	rules := s.Allows()
	for _, p := range []*Packet{
		packet(TCP, "10.1.1.1", 40000, "192.0.2.1", 6379),
		packet(UDP, "192.0.2.53", 53, "192.0.2.1", 40000),
	} {
		if got := Evaluate(rules.Ingress, p).Verdict; got != Untracked {
			t.Errorf("%v arriving is %s", p, got)
		}
		reply := p.reversed()
		if got := Evaluate(rules.Egress, &reply).Verdict; got != Untracked {
			t.Errorf("the reply %v is %s", reply, got)
		}
	}
	before := len(rules.Ingress) + len(rules.Egress)
	rules.AddReturns()
	if len(rules.Ingress)+len(rules.Egress) != before {
		t.Error("the shorthand was not complete in itself")
	}
}

func TestFailsafes(t *testing.T) {
	inbound, err := ParseFailsafes(DefaultFailsafeInbound)
	if err != nil {
		t.Fatal(err)
	}
	outbound, err := ParseFailsafes("53, udp:10.0.0.0/8:67,tcp:[2001:db8::/32]:179, sctp:192.0.2.1:9")
	if err != nil {
		t.Fatal(err)
	}
	rules := FailsafeRules(inbound, outbound)
	for _, c := range []struct {
		direction Direction
		p         *Packet
		want      Reason
	}{
		{Ingress, packet(TCP, "203.0.113.1", 40000, "192.0.2.1", 22), ByFailsafe},
		{Egress, packet(TCP, "192.0.2.1", 22, "203.0.113.1", 40000), ByFailsafe},
		{Ingress, packet(TCP, "203.0.113.1", 22, "192.0.2.1", 40000), ByNoMatch},
		{Egress, packet(UDP, "192.0.2.1", 40000, "10.0.0.1", 67), ByFailsafe},
		{Ingress, packet(UDP, "10.0.0.1", 67, "192.0.2.1", 40000), ByFailsafe},
		{Ingress, packet(UDP, "11.0.0.1", 67, "192.0.2.1", 40000), ByNoMatch},
		{Egress, packet(TCP, "2001:db8::1", 40000, "2001:db8::2", 179), ByFailsafe},
		{Egress, packet(TCP, "192.0.2.1", 40000, "192.0.2.2", 53), ByFailsafe},
		{Egress, packet(UDP, "192.0.2.1", 40000, "192.0.2.2", 53), ByNoMatch},
		{Egress, packet(SCTP, "192.0.2.9", 40000, "192.0.2.1", 9), ByFailsafe},
	} {
		if got := Evaluate(rules.Of(c.direction), c.p).By; got != c.want {
			t.Errorf("%s %v: by %s, want %s", c.direction, c.p, got, c.want)
		}
	}
	if none, err := ParseFailsafes("none"); err != nil || none != nil {
		t.Errorf("none: %v, %v", none, err)
	}
	for in, want := range map[string]string{
		"":                     "not a number",
		"tcp:70000":            "not a number",
		"icmp:8":               "not tcp, udp or sctp",
		"tcp:2001:db8::/32:22": "[brackets]",
		"tcp:10.0.0.0/33:22":   "not a CIDR",
		"22,,23":               "not a number",
	} {
		if _, err := ParseFailsafes(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want something with %q", in, err, want)
		}
	}
}

func TestLogAndPass(t *testing.T) {
	anyTCP := func(tier string, a Action) Rule { return Rule{Tier: tier, Action: a, Protocol: new(uint8(TCP))} }
	rules := []Rule{
		anyTCP("a", Log),
		{Tier: "a", Action: Pass, Source: Entity{Nets: set("10.0.0.0/8")}},
		anyTCP("a", Deny),
		anyTCP("b", Pass),
		anyTCP("b", Deny),
		{Action: Allow, Source: Entity{Nets: set("10.1.0.0/16")}},
		{Action: Log},
	}
	for _, c := range []struct {
		p    *Packet
		want Decision
		via  []int
	}{
		{packet(TCP, "192.0.2.1", 1, "192.0.2.2", 2), Decision{Denied, ByRule, 2, true}, []int{0}},
		{packet(TCP, "10.1.0.1", 1, "192.0.2.2", 2), Decision{Untracked, ByRule, 5, true}, []int{0, 1, 3}},
		{packet(TCP, "10.2.0.1", 1, "192.0.2.2", 2), Decision{Tracked, ByNoMatch, NoRule, true}, []int{0, 1, 3, 6}},
		{packet(UDP, "10.1.0.1", 1, "192.0.2.2", 2), Decision{Untracked, ByRule, 5, false}, []int{1}},
		{packet(UDP, "192.0.2.1", 1, "192.0.2.2", 2), Decision{Tracked, ByNoMatch, NoRule, true}, []int{6}},
	} {
		if got := Evaluate(rules, c.p); got != c.want {
			t.Errorf("%v from %v: %+v, want %+v", c.p.Protocol, c.p.Src, got, c.want)
		}
		if _, via := Walk(rules, c.p); !cmp.Equal(via, c.via) {
			t.Errorf("%v from %v: by way of %v, want %v", c.p.Protocol, c.p.Src, via, c.via)
		}
	}
}

func TestAsksForAnswers(t *testing.T) {
	tcp := new(uint8(TCP))
	for _, c := range []struct {
		what string
		rule Rule
		want []uint8
	}{
		{"from a port of others", Rule{Action: Allow, Protocol: tcp, Source: Entity{Ports: []PortRange{{53, 53}}}}, []uint8{TCP}},
		{"anything", Rule{Action: Allow}, []uint8{TCP, UDP}},
		{"anything but tcp", Rule{Action: Allow, NotProtocol: tcp}, []uint8{UDP}},
		{"to a port", Rule{Action: Allow, Protocol: tcp, Destination: Entity{Ports: []PortRange{{40000, 40000}}}}, nil},
		{"to low ports", Rule{Action: Allow, Protocol: tcp, Destination: Entity{Ports: []PortRange{{1, 1023}}}}, nil},
		{"to ports that masquerading takes", Rule{Action: Allow, Protocol: tcp, Destination: Entity{Ports: []PortRange{{7000, 7100}}}}, []uint8{TCP}},
		{"to ephemeral ports", Rule{Action: Allow, Protocol: tcp, Destination: Entity{Ports: []PortRange{{30000, 40000}}}}, []uint8{TCP}},
		{"ICMP", Rule{Action: Allow, Protocol: new(uint8(ICMP))}, nil},
		{"denied", Rule{Action: Deny}, nil},
	} {
		var got []uint8
		for _, r := range c.rule.AsksForAnswers() {
			got = append(got, *r.Protocol)
		}
		if !cmp.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.what, got, c.want)
		}
	}
}

func TestParsePorts(t *testing.T) {
	got, err := ParsePorts("tcp/6379, udp/53,SCTP/7000-7100")
	want := []Port{{TCP, PortRange{6379, 6379}}, {UDP, PortRange{53, 53}}, {SCTP, PortRange{7000, 7100}}}
	if err != nil || !cmp.Equal(want, got) {
		t.Errorf("got %v, %v", got, err)
	}
	for _, bad := range []string{"", "6379", "tcp/0", "tcp/65536", "tcp/9-8", "icmp/8", "tcp/", "tcp/1,,", "tcp/-1", "tcp/1-2-3"} {
		if _, err := ParsePorts(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestIDs(t *testing.T) {
	a := Rule{Policy: "x", Index: 1, Action: Deny, Source: Entity{Nets: set("10.0.0.0/8")}}
	moved := a
	moved.Index = 7
	changed := a
	changed.Source.Nets = set("10.0.0.0/9")
	list := Rule{Action: Deny, Source: Entity{Nets: set("10.0.0.0/8"), NetsName: "file /etc/deny.txt"}}
	refreshed := list
	refreshed.Source.Nets = set("192.0.2.0/24")

	before := IDs([]Rule{a, a, list})
	after := IDs([]Rule{refreshed, changed, moved, moved})
	if before[0] != after[2] || before[1] != after[3] {
		t.Error("moving a rule changed its identity")
	}
	if before[0] == before[1] || after[1] == before[0] {
		t.Error("different rules have one identity")
	}
	if before[2] != after[0] {
		t.Error("refreshing a named list changed its rule's identity")
	}
}
