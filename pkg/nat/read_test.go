// SPDX-License-Identifier: Apache-2.0

package nat

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/pkg/nfnetlink"
	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/test/lab"
)

// enterNetns puts the test's goroutine into a new network namespace, which vanishes with the test.
func enterNetns(t testing.TB) {
	t.Helper()
	lab.Enter(t)
	conn, err := nfnetlink.Dial()
	if err == nil {
		s := socket{conn, time.Now().Add(Timeout)}
		_, err = s.tables()
		conn.Close()
	}
	if errors.Is(err, nfnetlink.ErrNotSupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// command runs a command in the thread's namespace.
func command(t testing.TB, stdin string, name string, args ...string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("needs the %s command", name)
	}
	cmd := exec.Command(name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, &out, stdin)
	}
}

// found reads the translations to addresses, and says each in words.
func found(t testing.TB, addresses ...string) []string {
	t.Helper()
	var asked []netip.Addr
	for _, a := range addresses {
		asked = append(asked, netip.MustParseAddr(a))
	}
	translations, err := Read(context.Background(), asked)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for a, ts := range translations {
		for _, t := range ts {
			protocol := "any"
			if t.Protocol != 0 {
				protocol = policy.ProtocolName(t.Protocol)
			}
			out = append(out, fmt.Sprintf("%s %s %s: %s", a, protocol, t.Ports, &t))
		}
	}
	slices.Sort(out)
	return out
}

func expect(t testing.TB, got []string, want ...string) {
	t.Helper()
	slices.Sort(want)
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("translations (-want +got):\n%s", diff)
	}
}

func TestNothing(t *testing.T) {
	enterNetns(t)
	expect(t, found(t, "10.1.2.3"))
	command(t, `table ip nat {
		chain prerouting { type nat hook prerouting priority dstnat; tcp dport 80 dnat to 10.1.2.4; tcp dport 81 redirect to :80; }
		chain postrouting { type nat hook postrouting priority srcnat; ip saddr 10.1.2.3 snat to 10.1.2.3; masquerade; }
	}`, "nft", "-f", "-")
	expect(t, found(t, "10.1.2.3"))
	expect(t, found(t))
}

// TestPlain has the shapes that nft gives a rule with dnat.
func TestPlain(t *testing.T) {
	enterNetns(t)
	command(t, `
	table ip nat {
		map backends { type inet_service : ipv4_addr . inet_service; elements = { 80 : 10.1.2.3 . 8080, 81 : 10.1.2.4 . 8081 } }
		map nets { type ipv4_addr : interval ipv4_addr; flags interval; elements = { 192.0.2.0/30 : 10.1.2.0/30 } }
		chain prerouting {
			type nat hook prerouting priority dstnat
			tcp dport 6379 dnat to 10.1.2.3:6380 comment "cache"
			udp dport 53 dnat to 10.1.2.3
			ip protocol udp ct direction reply dnat to 10.1.2.3:54
			sctp dport != 5 dnat to 10.1.2.1-10.1.2.9:80-90
			dnat ip addr . port to tcp dport map @backends
			dnat ip prefix to ip daddr map @nets
			jump elsewhere
		}
		chain elsewhere { ip daddr 192.0.2.1 dnat to numgen inc mod 2 map { 0 : 10.1.2.3, 1 : 10.1.2.4 }; }
	}
	table inet both {
		chain prerouting {
			type nat hook prerouting priority dstnat
			meta l4proto { tcp, udp } th dport 90 dnat ip to 10.1.2.3:90
			ip6 daddr 2001:db8::1 tcp dport 80 dnat ip6 to [fd00::3]:8080
		}
	}
	table ip6 nat {
		chain output {
			type nat hook output priority -100
			udp dport 90-91 dnat to fd00::3
			tcp dport 1-2 dnat ip6 addr . port to numgen random mod 1 map { 0 : fd00::3 . 99 }
		}
	}
	table ip asleep {
		flags dormant
		chain prerouting { type nat hook prerouting priority dstnat; dnat to 10.1.2.3; }
	}`, "nft", "-f", "-")
	expect(t, found(t, "10.1.2.3", "fd00::3", "10.1.2.2"),
		"10.1.2.3 tcp 6380: a nat rule for port 6379 (table ip nat, chain prerouting)",
		"10.1.2.3 udp 53: a nat rule for port 53 (table ip nat, chain prerouting)",
		"10.1.2.3 udp 54: a nat rule (table ip nat, chain prerouting)",
		"10.1.2.2 sctp 80-90: a nat rule (table ip nat, chain prerouting)",
		"10.1.2.3 sctp 80-90: a nat rule (table ip nat, chain prerouting)",
		"10.1.2.3 tcp 8080: a nat rule (table ip nat, chain prerouting)",
		"10.1.2.2 any 0-65535: a nat rule (table ip nat, chain prerouting)",
		"10.1.2.3 any 0-65535: a nat rule (table ip nat, chain prerouting)",
		"10.1.2.3 any 0-65535: a nat rule (table ip nat, chain elsewhere)",
		"10.1.2.3 any 90: a nat rule for port 90 (table inet both, chain prerouting)",
		"fd00::3 tcp 8080: a nat rule for port 80 (table inet both, chain prerouting)",
		"fd00::3 udp 0-65535: a nat rule (table ip6 nat, chain output)",
		"fd00::3 tcp 99: a nat rule (table ip6 nat, chain output)",
	)
	translations, err := Read(context.Background(), []netip.Addr{netip.MustParseAddr("10.1.2.3")})
	if err != nil {
		t.Fatal(err)
	}
	for _, got := range translations {
		slices.SortFunc(got, func(a, b Translation) int { return -cmp.Compare(a.Comment, b.Comment) })
		if got[0].Comment != "cache" {
			t.Errorf("no rule has the comment cache: %v", got)
		}
	}
}

// TestKubeProxyIPTables has the rules of kube-proxy's iptables mode, by iptables as Debian and kube-proxy's image have it.
func TestKubeProxyIPTables(t *testing.T) {
	enterNetns(t)
	restore(t, "iptables-nft-restore", `*nat
:KUBE-SERVICES - [0:0]
:KUBE-SVC-XPGD46QRK7WJZT7O - [0:0]
:KUBE-SEP-SXIVWICOYRO3J4NJ - [0:0]
:KUBE-SEP-OTHER - [0:0]
:KUBE-MARK-MASQ - [0:0]
:DOCKER - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-SERVICES -m comment --comment "default/redis:6379 cluster IP" -m tcp -p tcp -d 172.30.0.41 --dport 6379 -j KUBE-SVC-XPGD46QRK7WJZT7O
-A KUBE-SVC-XPGD46QRK7WJZT7O -m comment --comment default/redis:6379 -m statistic --mode random --probability 0.5000000000 -j KUBE-SEP-SXIVWICOYRO3J4NJ
-A KUBE-SVC-XPGD46QRK7WJZT7O -m comment --comment default/redis:6379 -j KUBE-SEP-OTHER
-A KUBE-SEP-SXIVWICOYRO3J4NJ -m comment --comment default/redis:6379 -s 10.1.2.3 -j KUBE-MARK-MASQ
-A KUBE-SEP-SXIVWICOYRO3J4NJ -m comment --comment default/redis:6379 -m tcp -p tcp -j DNAT --to-destination 10.1.2.3:6379
-A KUBE-SEP-OTHER -m comment --comment default/redis:6379 -m tcp -p tcp -j DNAT --to-destination 10.1.2.4:6379
-A DOCKER ! -i docker0 -p udp -m udp --dport 5353 -j DNAT --to-destination 10.1.2.3-10.1.2.5
-A POSTROUTING -s 10.1.2.3 -j SNAT --to-source 10.1.2.3
COMMIT
`)
	restore(t, "ip6tables-nft-restore", `*nat
:KUBE-SEP-SIX - [0:0]
-A KUBE-SEP-SIX -m comment --comment default/redis:6379 -m tcp -p tcp -j DNAT --to-destination [fd00::3]:6379
COMMIT
`)
	expect(t, found(t, "10.1.2.3", "fd00::3"),
		"10.1.2.3 tcp 6379: Service default/redis:6379 (table ip nat, chain KUBE-SEP-SXIVWICOYRO3J4NJ)",
		"10.1.2.3 udp 5353: a nat rule for port 5353 (table ip nat, chain DOCKER)",
		"fd00::3 tcp 6379: Service default/redis:6379 (table ip6 nat, chain KUBE-SEP-SIX)",
	)
}

func restore(t testing.TB, name, rules string) {
	t.Helper()
	command(t, rules, name)
}

// TestRevisions has the targets that older versions of iptables write: the kernel still takes them.
func TestRevisions(t *testing.T) {
	enterNetns(t)
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	ip := net.ParseIP("10.1.2.3").To4()
	const both = uint(xt.NatRangeMapIPs | xt.NatRangeProtoSpecified)
	four := func(port uint16) xt.NatRange {
		return xt.NatRange{Flags: both, MinIP: ip, MaxIP: ip, MinPort: port, MaxPort: port}
	}
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "nat"})
	chain := c.AddChain(&nftables.Chain{
		Name: "PREROUTING", Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest,
	})
	tcp := []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 9, Len: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{policy.TCP}},
		&expr.Match{Name: "tcp", Info: &xt.Tcp{SrcPorts: [2]uint16{0, 65535}, DstPorts: [2]uint16{80, 80}}},
	}
	one, two := four(6001), xt.NatRange2{NatRange: four(6002)}
	for rev, info := range []xt.InfoAny{
		&xt.NatIPv4MultiRangeCompat{xt.NatIPv4Range(four(6000))}, &one, &two,
	} {
		c.AddRule(&nftables.Rule{
			Table: table, Chain: chain, Exprs: append(slices.Clone(tcp), &expr.Target{Name: "DNAT", Rev: uint32(rev), Info: info}),
		})
	}
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	expect(t, found(t, "10.1.2.3"),
		"10.1.2.3 tcp 6000: a nat rule for port 80 (table ip nat, chain PREROUTING)",
		"10.1.2.3 tcp 6001: a nat rule for port 80 (table ip nat, chain PREROUTING)",
		"10.1.2.3 tcp 6002: a nat rule for port 80 (table ip nat, chain PREROUTING)",
	)
}

// kubeProxy is the table of kube-proxy's nftables mode with services of one endpoint each, and one with session affinity.
func kubeProxy(services int) string {
	var b, elements strings.Builder
	b.WriteString(`table ip kube-proxy {
	comment "rules for kube-proxy"
	set cluster-ips { type ipv4_addr; comment "Active ClusterIPs"; }
	set nodeport-ips { type ipv4_addr; comment "IPs that accept NodePort traffic"; }
	map service-nodeports { type inet_proto . inet_service : verdict; comment "NodePort traffic"; }
	set affinity-GTK6MW7G-ns5/svc5/tcp/p80__10.180.0.3/80 { type ipv4_addr; flags dynamic,timeout; timeout 3h; }
	chain endpoint-GTK6MW7G-ns5/svc5/tcp/p80__10.180.0.3/80 {
		update @affinity-GTK6MW7G-ns5/svc5/tcp/p80__10.180.0.3/80 { ip saddr }
		meta l4proto tcp dnat to 10.180.0.3:80
	}
	chain service-HVFWP5L3-ns5/svc5/tcp/p80 {
		ip saddr @affinity-GTK6MW7G-ns5/svc5/tcp/p80__10.180.0.3/80 goto endpoint-GTK6MW7G-ns5/svc5/tcp/p80__10.180.0.3/80
		numgen random mod 1 vmap { 0 : goto endpoint-GTK6MW7G-ns5/svc5/tcp/p80__10.180.0.3/80 }
	}
`)
	for i := range services {
		name := fmt.Sprintf("ULMVA6XW-ns%d/svc/tcp/p80", i)
		service, external := netip.AddrFrom4([4]byte{172, 30, byte(i >> 8), byte(i)}), netip.AddrFrom4([4]byte{192, 168, byte(i >> 8), byte(i)})
		fmt.Fprintf(&b, `	chain service-%s {
		meta l4proto tcp dnat ip addr . port to numgen random mod 1 map { 0 : 10.1.%d.%d . 80 }
	}
	chain external-%s {
		meta mark set meta mark | 0x4000 comment "masquerade"
		goto service-%s
	}
`, name, i>>8, i&255, name, name)
		fmt.Fprintf(&elements, "\t\t%s . tcp . 80 : goto service-%s,\n\t\t%s . tcp . 80 : goto external-%s,\n", service, name, external, name)
	}
	fmt.Fprintf(&b, `	map service-ips {
		type ipv4_addr . inet_proto . inet_service : verdict
		comment "ClusterIP, ExternalIP and LoadBalancer IP traffic"
		elements = {
%s		172.30.255.45 . tcp . 80 : goto service-HVFWP5L3-ns5/svc5/tcp/p80
		}
	}
	chain services {
		ip daddr @cluster-ips ip saddr != 10.0.0.0/8 meta mark set meta mark | 0x4000 comment "masquerade clusterIP traffic from outside cluster"
		ip daddr . meta l4proto . th dport vmap @service-ips
		ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
	}
	chain nat-prerouting { type nat hook prerouting priority -100; jump services; }
	chain nat-output { type nat hook output priority -100; jump services; }
	chain nat-postrouting { type nat hook postrouting priority 100; meta mark & 0x4000 != 0 masquerade fully-random; }
}
`, &elements)
	return b.String()
}

func TestKubeProxyNFTables(t *testing.T) {
	enterNetns(t)
	command(t, kubeProxy(300), "nft", "-f", "-")
	expect(t, found(t, "10.1.0.7", "10.1.1.2", "10.180.0.3", "172.30.0.7"),
		"10.1.0.7 tcp 80: Service ns7/svc:p80 (table ip kube-proxy, chain service-ULMVA6XW-ns7/svc/tcp/p80)",
		"10.1.1.2 tcp 80: Service ns258/svc:p80 (table ip kube-proxy, chain service-ULMVA6XW-ns258/svc/tcp/p80)",
		"10.180.0.3 tcp 80: Service ns5/svc5:p80 (table ip kube-proxy, chain endpoint-GTK6MW7G-ns5/svc5/tcp/p80__10.180.0.3/80)",
	)
}

// TestDeadline has a caller that cannot wait: it gets an error and no half of an answer.
func TestDeadline(t *testing.T) {
	enterNetns(t)
	command(t, kubeProxy(10), "nft", "-f", "-")
	for name, end := range map[string]time.Time{"past": time.Now().Add(-time.Second), "now": time.Now()} {
		ctx, cancel := context.WithDeadline(context.Background(), end)
		defer cancel()
		if got, err := Read(ctx, []netip.Addr{netip.MustParseAddr("10.1.0.7")}); err == nil {
			t.Errorf("deadline %s: got %v, want an error", name, got)
		}
	}
}

// TestIncomplete has time for rules, and not for maps.
func TestIncomplete(t *testing.T) {
	enterNetns(t)
	command(t, kubeProxy(1), "nft", "-f", "-")
	conn, err := dial(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	rules, err := conn.rules(table{unix.NFPROTO_IPV4, "kube-proxy"})
	if err != nil {
		t.Fatal(err)
	}
	choosing := slices.DeleteFunc(rules, func(r *rule) bool { return r.mapName() == "" })
	address := netip.MustParseAddr("10.1.0.0")
	f := finder{wanted: newWanted([]netip.Addr{address}), found: map[netip.Addr][]Translation{}}
	if conn.end = time.Now().Add(-time.Second); !errors.Is(f.readMaps(conn, choosing), ErrIncomplete) || len(f.found) > 0 {
		t.Errorf("without time, found %v: want ErrIncomplete", f.found)
	}
	if conn.end = time.Now().Add(Timeout); f.readMaps(conn, choosing) != nil || len(f.found[address]) != 1 {
		t.Errorf("with time, found %v", f.found)
	}
}

// TestChanging reads while the rules change all the time.
func TestChanging(t *testing.T) {
	enterNetns(t)
	command(t, kubeProxy(300), "nft", "-f", "-")
	done := make(chan struct{})
	stop := make(chan struct{})
	ns, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	changes := 0
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if err := netns.Set(ns); err != nil {
			return
		}
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
			}
			cmd := exec.Command("nft", "-f", "-")
			cmd.Stdin = strings.NewReader("flush chain ip kube-proxy service-ULMVA6XW-ns7/svc/tcp/p80\n" +
				"add rule ip kube-proxy service-ULMVA6XW-ns7/svc/tcp/p80 meta l4proto tcp dnat ip addr . port to numgen random mod 1 map { 0 : 10.1.0.7 . 80 }\n")
			if cmd.Run() == nil {
				changes++
			}
		}
	}()
	for range 20 {
		expect(t, found(t, "10.1.1.2"), "10.1.1.2 tcp 80: Service ns258/svc:p80 (table ip kube-proxy, chain service-ULMVA6XW-ns258/svc/tcp/p80)")
	}
	close(stop)
	<-done
	t.Logf("%d changes in the meantime", changes)
}

// BenchmarkRead has 5,000 addresses asked about at once, in the shapes that there are most of.
func BenchmarkRead(b *testing.B) {
	var asked []netip.Addr
	for i := range 5000 {
		asked = append(asked, netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}))
	}
	var iptables, filter strings.Builder
	iptables.WriteString("*nat\n")
	for i := range 5000 {
		fmt.Fprintf(&iptables, ":KUBE-SEP-%016d - [0:0]\n", i)
	}
	for i := range 5000 {
		fmt.Fprintf(&iptables, "-A KUBE-SEP-%016d -m comment --comment ns%d/svc:p80 -s 10.1.%d.%d -j ACCEPT\n", i, i, i>>8, i&255)
		fmt.Fprintf(&iptables, "-A KUBE-SEP-%016d -m comment --comment ns%d/svc:p80 -m tcp -p tcp -j DNAT --to-destination 10.1.%d.%d:80\n", i, i, i>>8, i&255)
	}
	iptables.WriteString("COMMIT\n")
	filter.WriteString("table inet filter {\n chain input { type filter hook input priority 0;\n")
	for i := range 10000 {
		fmt.Fprintf(&filter, "ip saddr 10.1.%d.%d tcp dport 80 counter accept\n", i>>8, i&255)
	}
	filter.WriteString("}\n}\n")
	for _, bench := range []struct {
		name, command, rules string
		want                 int
	}{
		{"iptables-10000-rules", "iptables-nft-restore", iptables.String(), 5000},
		{"kube-proxy-nftables-1000-services", "nft", kubeProxy(1000), 1000},
		{"filter-10000-rules", "nft", filter.String(), 0},
	} {
		b.Run(bench.name, func(b *testing.B) {
			enterNetns(b)
			args := []string{"-f", "-"}
			if bench.command != "nft" {
				args = nil
			}
			command(b, bench.rules, bench.command, args...)
			for b.Loop() {
				got, err := Read(context.Background(), asked)
				if err != nil {
					b.Fatal(err)
				}
				if len(got) != bench.want {
					b.Fatalf("translations to %d addresses, want %d", len(got), bench.want)
				}
			}
		})
	}
}
