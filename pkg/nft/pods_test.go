// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/untracked-cni/untracked/pkg/netset"
	"github.com/untracked-cni/untracked/pkg/policy"
)

// aPod has tcp/6379, tcp/6380 and udp/53 of its addresses.
func aPod(owner string, addrs ...string) Pod {
	p := Pod{Owner: owner, Name: "ns/" + owner, Ports: []policy.Port{
		{Protocol: policy.TCP, Range: policy.PortRange{First: 6379, Last: 6380}},
		{Protocol: policy.UDP, Range: policy.PortRange{First: 53, Last: 53}},
	}}
	for _, a := range addrs {
		p.Addresses = append(p.Addresses, netip.MustParseAddr(a))
	}
	return p
}

// from gives a pod sources.
func (p Pod) from(sources ...string) Pod {
	var b netset.Builder
	for _, s := range sources {
		b.Add(netip.MustParsePrefix(s))
	}
	p.Sources = b.Build()
	return p
}

// wantPodElements compares the elements that are not quoted with pods', and the others with these.
func wantPodElements(t *testing.T, pods ...Pod) {
	t.Helper()
	want := map[string]string{}
	for _, p := range pods {
		for e := range p.elements() {
			want[e.String()] = p.Owner
			want[podSet{e.kind, view{e.family, true}}.String()+" "+e.String()] = p.Owner
		}
	}
	got, err := PodElements()
	must(t, err)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("elements (-want +got):\n%s", diff)
	}
}

func TestPodsElements(t *testing.T) {
	p := aPod("a/eth0", "10.1.1.2", "fd00::2", "fd00::3")
	list := func(p Pod) (out []string) {
		for e := range p.elements() {
			out = append(out, e.podSet.String()+" "+e.String())
		}
		return out
	}
	if got := list(p); len(got) != 9 || got[0] != "ports4 10.1.1.2 tcp/6379" || got[8] != "ports6 fd00::3 udp/53" {
		t.Errorf("elements %q", got)
	}
	// Sources of one family are nobody of the other.
	want := []string{
		"sources4 10.1.1.2 from 10.0.0.0", "sources4 10.1.1.2 from 192.0.2.1",
		"sourced4 10.1.1.2 tcp/6379", "sourced4 10.1.1.2 tcp/6380", "sourced4 10.1.1.2 udp/53",
	}
	if diff := cmp.Diff(want, list(p.from("10.0.0.0/8", "192.0.2.1/32"))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestPodsLabel(t *testing.T) {
	for _, test := range []struct{ owner, name, label string }{
		{"a/eth0", "ns/pod", "a/eth0 ns/pod"},
		{"a/eth0", "", "a/eth0"},
		{`a/e"0`, "x", "a/e_0 x"},
		{strings.Repeat("c", 64) + "/eth0", strings.Repeat("n", 63) + "/" + strings.Repeat("p", 253), strings.Repeat("c", 64) + "/eth0 " + strings.Repeat("n", 57)},
	} {
		p := Pod{Owner: test.owner, Name: test.name}
		if got := p.label(); got != test.label || ownerOf(got) != p.owner() || len(got) > maxComment {
			t.Errorf("%q %q: label %q, owner %q, want %q", test.owner, test.name, got, p.owner(), test.label)
		}
	}
}

func TestPodsComeAndGo(t *testing.T) {
	enterNetns(t)
	a, b := aPod("a/eth0", "10.1.1.2", "fd00::2"), aPod("b/eth0", "10.1.1.3", "fd00::3").from("10.0.0.0/8", "192.168.1.1/32", "2001:db8::/32")
	if err := EditPods(nil, []Pod{a}); !errors.Is(err, ErrNoPodsTable) || !errors.Is(err, ErrNoTable) {
		t.Errorf("edit without a table: %v", err)
	}
	if _, err := PodsInForce(); !errors.Is(err, ErrNoPodsTable) {
		t.Errorf("in force without a table: %v", err)
	}
	must(t, RemovePods())
	must(t, WritePods([]Pod{a}))
	wantPodElements(t, a)
	must(t, EditPods(nil, []Pod{b}))
	wantPodElements(t, a, b)
	must(t, EditPods([]Pod{a, b}, []Pod{a, b})) // the same again, as when a runtime repeats an ADD
	wantPodElements(t, a, b)
	missing, err := MissingPods(a, b, aPod("c/eth0", "10.1.1.2"))
	if must(t, err); !slices.Equal(missing, []string{"10.1.1.2 tcp/6379", "10.1.1.2 tcp/6380", "10.1.1.2 udp/53"}) {
		t.Errorf("missing %q, want what c has not of what a has", missing)
	}
	if digest, err := PodsInForce(); err != nil || digest != PodsDigest() {
		t.Errorf("in force: %s, %v, want %s", digest, err, PodsDigest())
	}

	// One batch: what was a's becomes c's, and a keeps the rest.
	c := aPod("c/eth0", "10.1.1.2").from("198.51.100.0/24")
	rest := a
	rest.Addresses = a.Addresses[1:]
	must(t, EditPods([]Pod{a}, []Pod{rest, c}))
	wantPodElements(t, rest, b, c)
	must(t, EditPods([]Pod{a}, nil)) // a is late, and still thinks that it has all
	wantPodElements(t, b, c)
	must(t, EditPods([]Pod{a}, nil))
	if err := EditPods(nil, []Pod{aPod("d/eth0", "10.1.1.3").from("10.0.0.0/8")}); !errors.Is(err, ErrPodsTableChanged) {
		t.Errorf("what is another's was put in: %v", err)
	}
	wantPodElements(t, b, c)
	must(t, EditPods([]Pod{b, c}, nil))
	wantPodElements(t)
	must(t, RemovePods())
	must(t, RemovePods())
}

// Somebody else's changes are seen in the table's rules, or when the elements are needed.
func TestPodsTableChanged(t *testing.T) {
	enterNetns(t)
	p := aPod("a/eth0", "10.1.1.2").from("10.0.0.0/8")
	for _, harm := range []string{"flush chain inet untracked-pods pods4", "flush table inet untracked-pods", "add rule inet untracked-pods pods4 drop"} {
		must(t, WritePods([]Pod{p}))
		command(t, "", "nft", strings.Fields(harm)...)
		if digest, err := PodsInForce(); err != nil || digest == PodsDigest() {
			t.Errorf("%s: in force: %s, %v, want another", harm, digest, err)
		}
	}
	must(t, WritePods([]Pod{p}))
	command(t, "", "nft", "flush", "set", "inet", PodsTable, "quoted-sourced4")
	// However many are asked about, and thereby however the table is read.
	for _, more := range [][]Pod{nil, make([]Pod, fewPods)} {
		if missing, err := MissingPods(append(more, p)...); err != nil || len(missing) != 3 {
			t.Errorf("missing %q, %v, want the three ports", missing, err)
		}
	}
	if err := EditPods([]Pod{p}, nil); !errors.Is(err, ErrPodsTableChanged) {
		t.Errorf("with half of the elements gone: %v", err)
	}
	must(t, WritePods(nil))
	wantPodElements(t)
}

// What nft lists, it can load, with the owners.
func TestPodsListing(t *testing.T) {
	enterNetns(t)
	pods := []Pod{aPod("a/eth0", "10.1.1.2", "fd00::2"), aPod("b/eth0", "10.1.1.3", "fd00::3").from("10.0.0.0/8", "192.168.1.1/32", "2001:db8::/32", "fd00::7/128")}
	must(t, WritePods(pods))
	list := command(t, "", "nft", "list", "table", "inet", PodsTable)
	for _, want := range []string{
		`10.1.1.2 . tcp . 6379 comment "a/eth0 ns/a/eth0"`,
		`10.1.1.3 . 10.0.0.0/8 comment "b/eth0 ns/b/eth0"`,
		`ip daddr . meta l4proto . th dport @ports4 counter name "requests" notrack accept`,
		`ip6 saddr . meta l4proto . th sport @sourced6 ip6 saddr . ip6 daddr @sources6 counter name "replies" notrack accept`,
		"@th,160,32 . @th,136,8 . @th,224,16 @quoted-ports4 notrack accept",
	} {
		if !strings.Contains(list, want) {
			t.Errorf("the listing lacks %q:\n%s", want, list)
		}
	}
	must(t, RemovePods())
	command(t, list, "nft", "-f", "-")
	if diff := cmp.Diff(list, command(t, "", "nft", "list", "table", "inet", PodsTable)); diff != "" {
		t.Errorf("loaded again (-before +after):\n%s", diff)
	}
	wantPodElements(t, pods...)
	must(t, EditPods(pods, nil))
	wantPodElements(t)
}

// Which packets are a pod's, by the counters. What happens to them then is shown by test/integration.
func TestPodsPackets(t *testing.T) {
	enterNetns(t)
	addDummy(t, "dummy0")
	raw := openRaw(t)
	must(t, WritePods([]Pod{
		aPod("a/eth0", "10.1.1.2", "fd00::2"),
		aPod("b/eth0", "10.1.1.3", "fd00::3").from("198.51.100.0/24", "2001:db8:1::/48"),
	}))
	for _, test := range []struct {
		src, dst          string
		sport, dport      uint16
		requests, replies uint64
	}{
		{"192.0.2.1", "10.1.1.2", 40000, 53, 1, 0},
		{"10.1.1.2", "192.0.2.1", 53, 40000, 0, 1},
		{"192.0.2.1", "10.1.1.2", 53, 40000, 0, 0},
		{"192.0.2.1", "10.1.1.2", 40000, 6379, 0, 0}, // that is TCP's
		{"192.0.2.1", "10.1.1.4", 40000, 53, 0, 0},
		{"2001:db8::1", "fd00::2", 40000, 53, 1, 0},
		{"fd00::2", "2001:db8::1", 53, 40000, 0, 1},
		{"198.51.100.9", "10.1.1.3", 40000, 53, 1, 0},
		{"10.1.1.3", "198.51.100.9", 53, 40000, 0, 1},
		{"198.51.101.9", "10.1.1.3", 40000, 53, 0, 0},
		{"10.1.1.3", "198.51.101.9", 53, 40000, 0, 0},
		{"198.51.100.9", "10.1.1.3", 40000, 54, 0, 0},
		{"2001:db8:1::1", "fd00::3", 40000, 53, 1, 0},
		{"2001:db8:2::1", "fd00::3", 40000, 53, 0, 0},
		// A pod with sources that calls another's port, by its own.
		{"10.1.1.3", "10.1.1.2", 53, 53, 1, 0},
		{"10.1.1.2", "10.1.1.3", 53, 53, 0, 1},
	} {
		requests, replies, err := PodCounters()
		must(t, err)
		raw.send(t, udpPacket(test.src, test.dst, test.sport, test.dport))
		r1, r2, err := PodCounters()
		must(t, err)
		if r1.Packets-requests.Packets != test.requests || r2.Packets-replies.Packets != test.replies {
			t.Errorf("%s:%d > %s:%d: %d requests and %d replies, want %d and %d", test.src, test.sport, test.dst, test.dport,
				r1.Packets-requests.Packets, r2.Packets-replies.Packets, test.requests, test.replies)
		}
	}
	before, _, err := PodCounters()
	must(t, err)
	must(t, WritePods(nil))
	if after, _, err := PodCounters(); err != nil || after != before || after.Packets == 0 {
		t.Errorf("the counter was %+v, and is %+v, %v, in a new table", before, after, err)
	}
}

// Five thousand pods, half of them with sources, are written in one batch, and come and go one by one as well.
func TestPodsScale(t *testing.T) {
	enterNetns(t)
	const n = 5000
	pods := make([]Pod, n)
	for i := range pods {
		p := aPod(fmt.Sprintf("%064x/eth0", i), netip.AddrFrom4([4]byte{10, 2, byte(i >> 8), byte(i)}).String())
		p.Ports = []policy.Port{{Protocol: policy.TCP, Range: policy.PortRange{First: 7000, Last: 7007}}}
		if pods[i] = p; i%2 == 0 {
			pods[i] = p.from("10.0.0.0/8")
		}
	}
	must(t, WritePods(pods))
	wantCount := func() { // in a while, see podElements
		t.Helper()
		const want = 2 * (8*n + n/2)
		got := 0
		for end := time.Now().Add(10 * time.Second); got != want && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
			elements, err := PodElements()
			must(t, err)
			got = len(elements)
		}
		if got != want {
			t.Errorf("%d elements, want %d", got, want)
		}
	}
	wantCount()
	for i := range 10 {
		must(t, EditPods(pods[i:i+1], nil))
	}
	must(t, WritePods(pods[10:]))
	must(t, EditPods(nil, pods[:10]))
	if missing, err := MissingPods(pods...); err != nil || len(missing) > 0 {
		t.Errorf("missing: %d, %v", len(missing), err)
	}
	// The most that one pod may ask for.
	large := aPod("large/eth0", "10.3.0.1", "fd00::1").from("0.0.0.0/0", "::/0")
	large.Ports = []policy.Port{{Protocol: policy.TCP, Range: policy.PortRange{First: 1, Last: 1000}}}
	must(t, EditPods(nil, []Pod{large}))
	if missing, err := MissingPods(large); err != nil || len(missing) > 0 {
		t.Errorf("missing: %d, %v", len(missing), err)
	}
	must(t, EditPods([]Pod{large}, nil))
	wantCount()
}
