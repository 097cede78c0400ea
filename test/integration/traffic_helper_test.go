// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/pkg/node"
	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/test/lab"
)

// trafficPatience bounds every wait for something that must happen; nothing waits for as long on a good day.
const trafficPatience = 20 * time.Second

// trafficShort is how long a flow that must fail is given.
const trafficShort = 300 * time.Millisecond

var trafficModes = []string{"native", "generic", "tc"}

// trafficFamily is one of the two IP versions with what differs between them.
type trafficFamily struct {
	name    string
	node    netip.Addr
	clients []netip.Addr
	icmp    uint8
}

// trafficNode is a lab whose node has a stateful firewall that drops INVALID, and a policy.
type trafficNode struct {
	testing.TB
	Node, Client *lab.NS

	lab   *lab.Lab
	chain *lab.Chain
	fw    *lab.Stateful
	u     lab.Uplink
}

// newTraffic opens a lab with the firewall. No policy is applied yet.
func newTraffic(t testing.TB, c lab.Config) *trafficNode {
	t.Helper()
	l := lab.New(t, c)
	n := &trafficNode{TB: t, Node: l.Node, Client: l.Client, lab: l, u: l.Uplinks[0]}
	n.chain = must(l.Chain(lab.ChainConfig{Annotations: map[string]string{}}))(t)
	n.fw = must(lab.AddStateful(l.Node, true))(t)
	return n
}

func (n *trafficNode) families() []trafficFamily {
	return []trafficFamily{
		{"ipv4", n.u.Node4, n.u.Client4, policy.ICMP},
		{"ipv6", n.u.Node6, n.u.Client6, policy.ICMPv6},
	}
}

// with is the same node for a subtest.
func (n *trafficNode) with(t testing.TB) *trafficNode {
	c := *n
	c.TB = t
	return &c
}

// write replaces the conf list, apply puts it in force by the command and wants exit code 0.
func (n *trafficNode) write(annotations map[string]string) {
	n.Helper()
	check(n, n.chain.Rewrite(lab.ChainConfig{Annotations: annotations}))
}

func (n *trafficNode) apply(annotations map[string]string) {
	n.Helper()
	n.write(annotations)
	if code, out := n.applyFile(); code != 0 {
		n.Fatalf("apply: exit code %d\n%s", code, out)
	}
}

// applyFile runs `untracked apply CONFLIST`.
func (n *trafficNode) applyFile() (code int, output string) {
	n.Helper()
	cmd := lab.Command(n.Node, filepath.Join(n.chain.Bin, "untracked"), "apply", n.chain.File)
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		n.Fatalf("apply: %v", err)
	}
	return cmd.ProcessState.ExitCode(), string(out)
}

// status runs `untracked status -o json`.
func (n *trafficNode) status() (s node.Status, code int) {
	n.Helper()
	out := must(n.lab.Untracked("status", "-o", "json"))(n)
	if err := json.Unmarshal(out.Stdout, &s); err != nil {
		n.Fatalf("status: %v\n%s%s", err, out.Stdout, out.Stderr)
	}
	return s, out.ExitCode
}

// healthy wants a status without problems, and returns it.
func (n *trafficNode) healthy() node.Status {
	n.Helper()
	s, code := n.status()
	if code != 0 || len(s.Problems) > 0 {
		n.Fatalf("status: exit code %d, problems %+v", code, s.Problems)
	}
	return s
}

// problem wants status to tell of a problem with this code, whose message holds all the words.
func (n *trafficNode) problem(code string, words ...string) node.Status {
	n.Helper()
	s, _ := n.status()
	for _, p := range s.Problems {
		if p.Code == code && !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(p.Message, w) }) {
			return s
		}
	}
	n.Fatalf("status has no problem %q with %q: %+v", code, words, s.Problems)
	return s
}

// packets are the verdict counts of an interface.
func (n *trafficNode) packets(ifname string) node.Packets {
	n.Helper()
	return n.iface(ifname).Packets
}

func (n *trafficNode) iface(ifname string) node.InterfaceStatus {
	n.Helper()
	s, _ := n.status()
	for _, i := range s.Interfaces {
		if i.Name == ifname {
			return i
		}
	}
	n.Fatalf("status has no interface %s: %+v", ifname, s)
	return node.InterfaceStatus{}
}

// rules runs `untracked rules -o json`.
func (n *trafficNode) rules() (rules []node.RuleStatus) {
	n.Helper()
	out := must(n.lab.Untracked("rules", "-o", "json"))(n)
	if err := json.Unmarshal(out.Stdout, &rules); err != nil {
		n.Fatalf("rules: exit code %d, %v\n%s%s", out.ExitCode, err, out.Stdout, out.Stderr)
	}
	return rules
}

// rule finds one rule by direction, policy name and index.
func (n *trafficNode) rule(d policy.Direction, name string, index int) node.RuleStatus {
	n.Helper()
	for _, r := range n.rules() {
		if r.Direction == d && r.Policy == name && r.Index == index {
			return r
		}
	}
	n.Fatalf("there is no rule %s %s[%d]", d, name, index)
	return node.RuleStatus{}
}

// wantFlows compares the number of conntrack entries on the node. One entry in ten may be missing: now and then
// the kernel chooses a source port twice.
func (n *trafficNode) wantFlows(want int, match ...lab.Match) {
	n.Helper()
	flows := must(lab.Flows(n.Node, match...))(n)
	if len(flows) > want || len(flows) < want-want/10 {
		n.Errorf("%d conntrack entries, want %d", len(flows), want)
		for i := range min(len(flows), 5) {
			n.Logf("entry: %s", &flows[i])
		}
	}
}

// wantNoInvalid reads the firewall: nothing may have looked INVALID to it.
func (n *trafficNode) wantNoInvalid() {
	n.Helper()
	if s := must(n.fw.States())(n); s.Invalid != 0 {
		n.Errorf("the stateful firewall dropped %d packets as INVALID: %+v", s.Invalid, s)
	}
}

// wantTCP makes connections that all must succeed; wantUDP the same with datagrams.
func (n *trafficNode) wantTCP(from *lab.NS, l lab.Load) {
	n.Helper()
	l.Timeout = trafficPatience
	r := must(lab.LoadTCP(from, l))(n)
	if r.OK != l.Count {
		n.Errorf("tcp to %s: %v (%v); want %d ok", l.Target, r, r.FirstFailure, l.Count)
	}
}

func (n *trafficNode) wantUDP(from *lab.NS, l lab.Load) {
	n.Helper()
	l.Timeout = trafficPatience
	r := must(lab.LoadUDP(from, l))(n)
	if r.OK != l.Count {
		n.Errorf("udp to %s, %d bytes: %v (%v); want %d ok", l.Target, l.Payload, r, r.FirstFailure, l.Count)
	}
}

// wantSilence makes connections and datagrams that nobody may answer, not even with an error.
func (n *trafficNode) wantSilence(from *lab.NS, l lab.Load) {
	n.Helper()
	l.Timeout = trafficShort
	for name, load := range map[string]func(*lab.NS, lab.Load) (lab.Report, error){"tcp": lab.LoadTCP, "udp": lab.LoadUDP} {
		r := must(load(from, l))(n)
		if r.Timeouts != l.Count {
			n.Errorf("%s to %s from %v: %v (%v); want %d time-outs", name, l.Target, l.Sources, r, r.FirstFailure, l.Count)
		}
	}
}

// trafficUntil polls for something that must come true.
func trafficUntil(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(trafficPatience); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// trafficDial connects by TCP from a namespace.
func trafficDial(t testing.TB, ns *lab.NS, source netip.Addr, target netip.AddrPort) net.Conn {
	t.Helper()
	c := must(lab.Dial(ns, "tcp", source, target, trafficPatience))(t)
	t.Cleanup(func() { c.Close() })
	return c
}

// trafficAsk sends a line to a lab server and wants its answer.
func trafficAsk(c net.Conn) error {
	c.SetDeadline(time.Now().Add(trafficPatience))
	if _, err := io.WriteString(c, "GET\n"); err != nil {
		return err
	}
	answer := make([]byte, len(lab.Reply))
	if _, err := io.ReadFull(c, answer); err != nil {
		return err
	}
	if string(answer) != lab.Reply {
		return fmt.Errorf("answer %q, want %q", answer, lab.Reply)
	}
	return nil
}

// trafficAccept serves each TCP connection on a port of a namespace by fn, in a goroutine of its own.
func trafficAccept(t testing.TB, ns *lab.NS, port uint16, fn func(net.Conn) error) {
	t.Helper()
	lis := must(lab.Listen(ns, "tcp", fmt.Sprintf(":%d", port)))(t)
	t.Cleanup(func() { lis.Close() })
	go func() {
		for {
			c, err := lis.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(trafficPatience))
				_ = fn(c) // the client's side of the test says what went wrong
			}()
		}
	}()
}

// trafficEchoUDP returns datagrams from the very address they were sent to, which a socket on every address of
// a host with several does not.
func trafficEchoUDP(t testing.TB, ns *lab.NS, at netip.AddrPort) {
	t.Helper()
	c := must(lab.ListenPacket(ns, "udp", at.String()))(t)
	t.Cleanup(func() { c.Close() })
	go func() {
		buf := make([]byte, 65536)
		for {
			n, from, err := c.ReadFrom(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				c.WriteTo(buf[:n], from)
			}
		}
	}()
}

// trafficPattern is a stream whose every 8 bytes tell their place.
func trafficPattern(size int) []byte {
	b := make([]byte, 0, size+8)
	for i := uint64(0); len(b) < size; i++ {
		b = binary.BigEndian.AppendUint64(b, i*0x9e3779b97f4a7c15)
	}
	return b[:size]
}

// trafficBulk sends size bytes through a TCP echo and compares what comes back.
func trafficBulk(c net.Conn, size int) error {
	const chunk = 1 << 20
	pattern := trafficPattern(chunk)
	c.SetDeadline(time.Now().Add(trafficPatience))
	failed := make(chan error, 1)
	go func() {
		for sent := 0; sent < size; sent += chunk {
			if _, err := c.Write(pattern); err != nil {
				failed <- err
				return
			}
		}
		failed <- nil
	}()
	got := make([]byte, chunk)
	for received := 0; received < size; received += chunk {
		if _, err := io.ReadFull(c, got); err != nil {
			return fmt.Errorf("after %d bytes: %w (%s)", received, err, trafficTCPState(c))
		}
		if !bytes.Equal(got, pattern) {
			return fmt.Errorf("after %d bytes: the stream is not what was sent", received)
		}
	}
	return <-failed
}

// trafficTCPState says where a connection stands that got stuck.
func trafficTCPState(c net.Conn) string {
	i, err := trafficTCPInfo(c)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("tcp state %d, path mtu %d, window %d, unacked %d, lost %d, retransmitted %d, backoff %d, rto %d us, received %d ms ago",
		i.State, i.Pmtu, i.Snd_wnd, i.Unacked, i.Lost, i.Total_retrans, i.Backoff, i.Rto, i.Last_data_recv)
}

func trafficTCPInfo(c net.Conn) (info *unix.TCPInfo, err error) {
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		return nil, err
	}
	if e := raw.Control(func(fd uintptr) {
		info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	}); e != nil {
		return nil, e
	}
	return info, err
}

// trafficPing sends one echo request and waits for its reply; os.ErrDeadlineExceeded if there is none.
func trafficPing(ns *lab.NS, source, target netip.Addr, id uint16, patience time.Duration) error {
	network, request, reply := "ip4:icmp", uint8(8), uint8(0)
	if target.Is6() {
		network, request, reply = "ip6:ipv6-icmp", 128, 129
	}
	c, err := lab.ListenPacket(ns, network, source.String())
	if err != nil {
		return err
	}
	defer c.Close()
	message := []byte{request, 0, 0, 0, byte(id >> 8), byte(id), 0, 1, 'p', 'i', 'n', 'g'}
	if target.Is4() { // ICMPv6's is the kernel's job
		binary.BigEndian.PutUint16(message[2:], trafficChecksum(message))
	}
	if _, err := c.WriteTo(message, &net.IPAddr{IP: target.AsSlice()}); err != nil {
		return err
	}
	c.SetReadDeadline(time.Now().Add(patience))
	buf := make([]byte, 1500)
	for {
		n, _, err := c.ReadFrom(buf)
		if err != nil {
			return err
		}
		if n >= 8 && buf[0] == reply && binary.BigEndian.Uint16(buf[4:]) == id {
			return nil
		}
	}
}

// trafficNoAnswer reports whether err says that nothing came in time.
func trafficNoAnswer(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }

func trafficChecksum(parts ...[]byte) uint16 {
	sum := uint32(0)
	for _, p := range parts {
		for i := 0; i < len(p); i += 2 {
			if i+1 < len(p) {
				sum += uint32(p[i])<<8 | uint32(p[i+1])
			} else {
				sum += uint32(p[i]) << 8
			}
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// trafficUDPPacket is an IP packet that a socket takes.
func trafficUDPPacket(src, dst netip.AddrPort, payload string) []byte {
	udp := binary.BigEndian.AppendUint16(nil, src.Port())
	udp = binary.BigEndian.AppendUint16(udp, dst.Port())
	udp = binary.BigEndian.AppendUint16(udp, uint16(8+len(payload)))
	udp = append(udp, 0, 0)
	udp = append(udp, payload...)
	pseudo := slices.Concat(src.Addr().AsSlice(), dst.Addr().AsSlice(), []byte{0, policy.UDP, 0, byte(len(udp))})
	binary.BigEndian.PutUint16(udp[6:], trafficChecksum(pseudo, udp))
	if src.Addr().Is6() {
		ip := []byte{6 << 4, 0, 0, 0, 0, byte(len(udp)), policy.UDP, 64}
		return slices.Concat(ip, src.Addr().AsSlice(), dst.Addr().AsSlice(), udp)
	}
	ip := []byte{4<<4 | 5, 0, 0, byte(20 + len(udp)), 0, 0, 0x40, 0, 64, policy.UDP, 0, 0}
	ip = slices.Concat(ip, src.Addr().AsSlice(), dst.Addr().AsSlice())
	binary.BigEndian.PutUint16(ip[10:], trafficChecksum(ip))
	return append(ip, udp...)
}

// trafficFrame puts an Ethernet header with VLAN tags before an IP packet. A tag is its ethertype and ID.
func trafficFrame(u lab.Uplink, ip []byte, tags ...[2]uint16) []byte {
	frame := slices.Concat(u.NodeMAC, u.ClientMAC)
	for _, tag := range tags {
		frame = binary.BigEndian.AppendUint16(frame, tag[0])
		frame = binary.BigEndian.AppendUint16(frame, tag[1])
	}
	etherType := uint16(unix.ETH_P_IP)
	if ip[0]>>4 == 6 {
		etherType = unix.ETH_P_IPV6
	}
	return append(binary.BigEndian.AppendUint16(frame, etherType), ip...)
}

// programName is a loaded program's name.
func trafficProgramName(t testing.TB, id uint32) string {
	t.Helper()
	p := must(ebpf.NewProgramFromID(ebpf.ProgramID(id)))(t)
	defer p.Close()
	return must(p.Info())(t).Name
}

// trafficTempFile writes a file and returns its path.
func trafficTempFile(dir, name, content string) (path string, err error) {
	path = filepath.Join(dir, name)
	return path, os.WriteFile(path, []byte(content), 0o600)
}

func trafficSetMTU(ns *lab.NS, ifname string, mtu int) error {
	return lab.In(ns, func() error {
		l, err := netlink.LinkByName(ifname)
		if err != nil {
			return err
		}
		return netlink.LinkSetMTU(l, mtu)
	})
}
