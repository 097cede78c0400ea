// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/pkg/nflog"
	"github.com/untracked-cni/untracked/pkg/policy"
)

// The node and its peer, and a network behind the node.
const (
	nodeLink, peerLink = "eth0", "eth0"
	node4, peer4       = "192.0.2.1", "192.0.2.2"
	node6, peer6       = "2001:db8::1", "2001:db8::2"
	behind4            = "198.51.100.7"

	testMark  = 0x1000
	otherMark = 0x0500
)

// patience is for what has to arrive: only a test that fails takes that long.
const patience = 10 * time.Second

// network is a node, whose namespace the test's thread is in, and a peer.
type network struct{ node, peer netns.NsHandle }

func newNetwork(t *testing.T) *network {
	t.Helper()
	node := enterNetns(t)
	peer, err := netns.New()
	must(t, err)
	t.Cleanup(func() { peer.Close() })
	must(t, netns.Set(node))
	n := &network{node, peer}
	must(t, netlink.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: nodeLink}, PeerName: peerLink, PeerNamespace: netlink.NsFd(peer),
	}))
	up(t, "lo")
	up(t, nodeLink, node4+"/24", node6+"/64")
	n.atPeer(t, func() {
		up(t, "lo")
		up(t, peerLink, peer4+"/24", peer6+"/64")
		route(t, "198.51.100.0/24", node4)
	})
	return n
}

// atPeer runs f in the peer's namespace. Sockets that it opens stay there.
func (n *network) atPeer(t *testing.T, f func()) {
	t.Helper()
	must(t, netns.Set(n.peer))
	defer func() {
		if err := netns.Set(n.node); err != nil {
			runtime.Goexit()
		}
	}()
	f()
}

func up(t *testing.T, name string, addresses ...string) {
	t.Helper()
	link, err := netlink.LinkByName(name)
	must(t, err)
	must(t, netlink.LinkSetUp(link))
	for _, a := range addresses {
		addr, err := netlink.ParseAddr(a)
		must(t, err)
		addr.Flags = unix.IFA_F_NODAD
		must(t, netlink.AddrAdd(link, addr))
	}
}

func route(t *testing.T, to, via string) {
	t.Helper()
	dst, err := netlink.ParseIPNet(to)
	must(t, err)
	must(t, netlink.RouteAdd(&netlink.Route{Dst: dst, Gw: net.ParseIP(via)}))
}

// testTable is the node's: it turns connection tracking on, stands in for tc, and observes.
var testTable = &nftables.Table{Name: "test", Family: nftables.TableFamilyINet}

// addTestTable marks arriving packets of the given protocols and ports (the source port in replies), and
// counts packets by their state: behind connection tracking, on their way out and in.
func addTestTable(t *testing.T, marked ...policy.Port) {
	t.Helper()
	c, err := nftables.New()
	must(t, err)
	c.AddTable(testTable)
	chain := func(name string, hook *nftables.ChainHook, priority nftables.ChainPriority) *nftables.Chain {
		return c.AddChain(&nftables.Chain{
			Name: name, Table: testTable, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: &priority,
		})
	}
	rule := func(chain *nftables.Chain, parts ...[]step) {
		var exprs []expr.Any
		for _, p := range parts {
			for _, s := range p {
				exprs = append(exprs, s.expr)
			}
		}
		c.AddRule(&nftables.Rule{Table: testTable, Chain: chain, Exprs: exprs})
	}
	count := func(name string) []step {
		c.AddObj(&nftables.CounterObj{Table: testTable, Name: name})
		return steps(&expr.Objref{Type: objCounter, Name: name})
	}
	state := func(bit uint32) []step {
		return steps(&expr.Ct{Key: expr.CtKeySTATE, Register: register}, and(hostOrder(bit)...), isNot(hostOrder(0)...))
	}

	tc := chain("tc", nftables.ChainHookPrerouting, priorityRaw-10)
	for _, p := range marked {
		for _, offset := range []int{0, 2} {
			rule(tc, steps(
				loadMeta(expr.MetaKeyIIFNAME), is(append([]byte(nodeLink), make([]byte, ifNameSize-len(nodeLink))...)...),
				loadMeta(expr.MetaKeyL4PROTO), is(p.Protocol),
				loadPayload(expr.PayloadBaseTransportHeader, offset, 2), is(byte(p.Range.First>>8), byte(p.Range.First)),
				&expr.Immediate{Register: register, Data: hostOrder(testMark | otherMark)},
				&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: register}))
		}
	}
	seen := chain("seen", nftables.ChainHookPrerouting, priorityRaw+10)
	rule(seen, steps(loadMeta(expr.MetaKeyMARK), and(hostOrder(testMark)...), isNot(hostOrder(0)...)), count("mark left"))
	rule(seen, steps(loadMeta(expr.MetaKeyMARK), is(hostOrder(otherMark)...)), count("other bits left"))

	icmp := func(v view) []step { return append(v.isFamily(), steps(v.protocol(), is(v.icmp()))...) }
	out := chain("out", nftables.ChainHookOutput, 0)
	rule(out, state(expr.CtStateBitINVALID), count("invalid out"))
	rule(out, icmp(view{family: 4}), state(expr.CtStateBitUNTRACKED), count("untracked icmp out"))
	rule(out, icmp(view{family: 6}),
		steps(loadPayload(expr.PayloadBaseTransportHeader, 0, 1), is(1)), // unreachable
		state(expr.CtStateBitUNTRACKED), count("untracked icmpv6 out"))
	rule(chain("in", nftables.ChainHookInput, 0), state(expr.CtStateBitINVALID), count("invalid in"))
	must(t, c.Flush())
}

func counted(t *testing.T, names ...string) map[string]uint64 {
	t.Helper()
	c, err := nftables.New()
	must(t, err)
	objects, err := c.GetObjects(testTable)
	must(t, err)
	out := map[string]uint64{}
	for _, o := range objects {
		if c := o.(*nftables.CounterObj); slices.Contains(names, c.Name) {
			out[c.Name] = c.Packets
		}
	}
	return out
}

// tracked lists the flows in the node's connection tracking table as "protocol port", ICMP without ports. The
// chatter of IPv6 itself is left out.
func tracked(t *testing.T) []string {
	t.Helper()
	out := []string{}
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, family)
		must(t, err)
		for _, f := range flows {
			text := policy.ProtocolName(f.Forward.Protocol)
			switch {
			case f.Forward.Protocol == policy.ICMPv6:
				continue
			case policy.HasPorts(f.Forward.Protocol):
				text += fmt.Sprintf(" %d", f.Forward.DstPort)
			}
			out = append(out, text)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func port(protocol uint8, n uint16) policy.Port {
	return policy.Port{Protocol: protocol, Range: portRange(n, n)}
}

// rulesFor is the egress half of a policy that untracks what the node calls and what it serves.
func rulesFor(calls, serves []policy.Port) []policy.Rule {
	s := policy.Shorthand{RemotePorts: calls, Ports: serves}
	return s.Allows().Egress
}

// packetsOf counts what a rule has seen.
func packetsOf(t *testing.T, rules []policy.Rule, i int) uint64 {
	t.Helper()
	all, err := Counters()
	must(t, err)
	return all[CounterKey{nodeLink, policy.IDs(rules)[i]}].Packets
}

func TestEgressTraffic(t *testing.T) {
	n := newNetwork(t)
	calls := []policy.Port{port(policy.UDP, 5000), port(policy.TCP, 6000)}
	addTestTable(t, calls...)
	udp := ptr(uint8(policy.UDP))
	rules := append(rulesFor(calls, nil), udpTo(5002, policy.Deny), udpTo(5003, policy.Failsafe),
		// Nothing gets to the last rule of this tier: not UDP, which passes it over, and not TCP.
		policy.Rule{Tier: "first", Action: policy.Log, Protocol: udp},
		policy.Rule{Tier: "first", Action: policy.Pass, Protocol: udp},
		policy.Rule{Tier: "first", Action: policy.Deny, Protocol: udp})
	rules = slices.Concat(rules[4:], rules[:4])
	reader, err := nflog.Open(LogGroup, LogBytes)
	must(t, err)
	t.Cleanup(func() { reader.Close() })
	apply := func() {
		t.Helper()
		must(t, (&Table{Mark: testMark, Endpoints: []Endpoint{{Interface: nodeLink, Rules: rules}}}).Apply())
	}
	apply()

	listeners := map[int]*net.UDPConn{}
	var tcp []net.Listener
	n.atPeer(t, func() {
		for p := 5000; p <= 5003; p++ {
			l, err := net.ListenUDP("udp", &net.UDPAddr{Port: p})
			must(t, err)
			t.Cleanup(func() { l.Close() })
			listeners[p] = l
		}
		for _, a := range []string{":6000", ":6001"} {
			l, err := net.Listen("tcp", a)
			must(t, err)
			t.Cleanup(func() { l.Close() })
			tcp = append(tcp, l)
		}
	})
	for _, l := range tcp {
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				c.Write([]byte("hello"))
				c.Close()
			}
		}()
	}
	for _, host := range []string{peer4, peer6} {
		for _, p := range []int{5002, 5000, 5001, 5003} {
			c, err := net.Dial("udp", net.JoinHostPort(host, fmt.Sprint(p)))
			must(t, err)
			_, err = c.Write([]byte("hello"))
			if (err != nil) != (p == 5002) {
				t.Errorf("send to udp port %d: %v", p, err)
			}
			c.Close()
			if p != 5002 {
				must(t, listeners[p].SetReadDeadline(time.Now().Add(patience)))
				_, _, err = listeners[p].ReadFrom(make([]byte, 100))
				must(t, err)
			}
		}
		// Later ones have arrived. What was sent before them and has not never will.
		raw, err := listeners[5002].SyscallConn()
		must(t, err)
		must(t, raw.Control(func(fd uintptr) {
			if n, _, err := unix.Recvfrom(int(fd), make([]byte, 100), unix.MSG_DONTWAIT); err != unix.EAGAIN {
				t.Errorf("port 5002 received %d bytes, %v", n, err)
			}
		}))
		for _, p := range []string{"6000", "6001"} {
			c, err := net.DialTimeout("tcp", net.JoinHostPort(host, p), patience)
			must(t, err)
			must(t, c.SetDeadline(time.Now().Add(patience)))
			_, err = c.Read(make([]byte, 100))
			must(t, err)
			c.Close()
		}
	}
	if diff := cmp.Diff([]string{"tcp 6001", "udp 5001", "udp 5003"}, tracked(t)); diff != "" {
		t.Errorf("tracked flows (-want +got):\n%s", diff)
	}
	const tcpRule = 4 // which sees at least SYN and ACK in each family
	for i, want := range []uint64{8, 8, 0, 2, 4, 2, 2} {
		if got := packetsOf(t, rules, i); got != want && (i != tcpRule || got < want) {
			t.Errorf("rule %s: %d packets, want %d", rules[i].Match(), got, want)
		}
	}
	report := LogPrefix(policy.IDs(rules)[0])
	want := slices.Concat(
		slices.Repeat([]string{report + ": version 4, 33 bytes"}, 4), slices.Repeat([]string{report + ": version 6, 53 bytes"}, 4))
	if diff := cmp.Diff(want, read(t, reader, len(want))); diff != "" {
		t.Errorf("reports (-want +got):\n%s", diff)
	}

	// An echo: tracked until a rule says otherwise.
	ping(t)
	if diff := cmp.Diff([]string{"icmp", "tcp 6001", "udp 5001", "udp 5003"}, tracked(t)); diff != "" {
		t.Errorf("tracked flows (-want +got):\n%s", diff)
	}
	must(t, netlink.ConntrackTableFlush(netlink.ConntrackTable))
	rules = append(rules, policy.Rule{Action: policy.Allow, IPVersion: 4, ICMP: &policy.ICMPMatch{Type: 8}})
	apply()
	before := counted(t, "untracked icmp out")["untracked icmp out"]
	ping(t)
	if got := counted(t, "untracked icmp out")["untracked icmp out"] - before; got != 1 {
		t.Errorf("%d untracked echo requests, want 1", got)
	}
	for _, flow := range tracked(t) {
		if flow == "icmp" {
			t.Error("the echo request is tracked")
		}
	}
	if diff := cmp.Diff(map[string]uint64{"invalid out": 0}, counted(t, "invalid out")); diff != "" {
		t.Errorf("packets (-want +got):\n%s", diff)
	}
}

// ping sends an echo request to the peer.
func ping(t *testing.T) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
	must(t, err)
	defer unix.Close(fd)
	request := []byte{8, 0, 0xf7, 0xfd, 0, 1, 0, 1}
	must(t, unix.Sendto(fd, request, 0, &unix.SockaddrInet4{Addr: [4]byte{192, 0, 2, 2}}))
}

// TestPrerouting: the mark of an arriving packet becomes notrack, if it is for this node, and goes away.
func TestPrerouting(t *testing.T) {
	n := newNetwork(t)
	serves := []policy.Port{port(policy.UDP, 7000)}
	addTestTable(t, serves...)
	rules := rulesFor(nil, serves)
	must(t, (&Table{Mark: testMark, Endpoints: []Endpoint{{Interface: nodeLink, Rules: rules}}}).Apply())
	forward(t)

	server := map[uint16]*net.UDPConn{}
	for _, p := range []uint16{7000, 7001} {
		l, err := net.ListenUDP("udp", &net.UDPAddr{Port: int(p)})
		must(t, err)
		t.Cleanup(func() { l.Close() })
		server[p] = l
	}
	for _, host := range []string{node4, node6} {
		for p, l := range server {
			var c net.Conn
			n.atPeer(t, func() {
				var err error
				c, err = net.Dial("udp", net.JoinHostPort(host, fmt.Sprint(p)))
				must(t, err)
			})
			_, err := c.Write([]byte("ask"))
			must(t, err)
			must(t, l.SetReadDeadline(time.Now().Add(patience)))
			buffer := make([]byte, 100)
			_, from, err := l.ReadFrom(buffer)
			must(t, err)
			_, err = l.WriteTo([]byte("answer"), from)
			must(t, err)
			must(t, c.SetReadDeadline(time.Now().Add(patience)))
			_, err = c.Read(buffer)
			must(t, err)
			c.Close()
		}
	}
	if diff := cmp.Diff([]string{"udp 7001"}, tracked(t)); diff != "" {
		t.Errorf("tracked flows (-want +got):\n%s", diff)
	}
	if got := packetsOf(t, rules, 0); got != 2 {
		t.Errorf("%d untracked answers, want 2", got)
	}

	// The same port, but of a host behind this one: tracked like any forwarded packet.
	n.atPeer(t, func() {
		c, err := net.Dial("udp", behind4+":7000")
		must(t, err)
		defer c.Close()
		_, err = c.Write([]byte("ask"))
		must(t, err)
	})
	flows, end := tracked(t), time.Now().Add(patience)
	for ; !slices.Contains(flows, "udp 7000") && time.Now().Before(end); flows = tracked(t) {
		time.Sleep(time.Millisecond)
	}
	if diff := cmp.Diff([]string{"udp 7000", "udp 7001"}, flows); diff != "" {
		t.Errorf("tracked flows (-want +got):\n%s", diff)
	}
	want := map[string]uint64{"mark left": 0, "other bits left": 3, "invalid in": 0, "invalid out": 0}
	if diff := cmp.Diff(want, counted(t, "mark left", "other bits left", "invalid in", "invalid out")); diff != "" {
		t.Errorf("packets (-want +got):\n%s", diff)
	}
}

// forward makes the node a router for a host that swallows everything.
func forward(t *testing.T) {
	t.Helper()
	addDummy(t, "behind")
	must(t, os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0)) // of this thread's namespace
}

// TestICMPErrors: an error about an untracked flow is untracked. Tracked, it would be about nothing.
func TestICMPErrors(t *testing.T) {
	n := newNetwork(t)
	serves := []policy.Port{port(policy.UDP, 9999)}
	addTestTable(t, serves...)
	rules := rulesFor(nil, serves)

	// refused asks a port where nobody listens, over both families, and waits for the errors to come back.
	refused := func() {
		t.Helper()
		for _, host := range []string{node4, node6} {
			var c net.Conn
			n.atPeer(t, func() {
				var err error
				c, err = net.Dial("udp", net.JoinHostPort(host, "9999"))
				must(t, err)
			})
			_, err := c.Write([]byte("anybody?"))
			must(t, err)
			must(t, c.SetReadDeadline(time.Now().Add(patience)))
			if _, err = c.Read(make([]byte, 100)); err == nil || !isRefused(err) {
				t.Fatalf("%s: %v, want a refusal", host, err)
			}
			c.Close()
		}
	}
	names := []string{"invalid out", "untracked icmp out", "untracked icmpv6 out"}

	// Without the rule, to see that the observers see.
	must(t, (&Table{Mark: testMark, Endpoints: []Endpoint{{Interface: nodeLink, Rules: nil}}}).Apply())
	refused()
	if diff := cmp.Diff(map[string]uint64{names[0]: 2, names[1]: 0, names[2]: 0}, counted(t, names...)); diff != "" {
		t.Errorf("packets without a rule (-want +got):\n%s", diff)
	}
	must(t, (&Table{Mark: testMark, Endpoints: []Endpoint{{Interface: nodeLink, Rules: rules}}}).Apply())
	refused()
	if diff := cmp.Diff(map[string]uint64{names[0]: 2, names[1]: 1, names[2]: 1}, counted(t, names...)); diff != "" {
		t.Errorf("packets with the rule (-want +got):\n%s", diff)
	}
	if got := packetsOf(t, rules, 0); got != 2 {
		t.Errorf("the rule has counted %d errors, want 2", got)
	}
}

func isRefused(err error) bool { return errors.Is(err, unix.ECONNREFUSED) }
