// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/pkg/compiler"
	"github.com/untracked-cni/untracked/pkg/config"
	"github.com/untracked-cni/untracked/pkg/node"
	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/test/lab"
)

// The flows that the swap tests send, and the two policies A and B that decide about them. Each kind of flow meets
// another pair of verdicts, and meets them by another dimension: A denies by source and allows by port, B denies by
// port and allows by source and port. Each policy comes in shapes that say the same of all flows and have other tables.

// swapKind is a kind of flow: what the policies say of it, and which subnet its sources are in.
type swapKind struct {
	a, b   policy.Verdict
	subnet byte // A denies the first three
}

var swapKinds = []swapKind{
	{policy.Denied, policy.Denied, 0},
	{policy.Untracked, policy.Untracked, 4},
	{policy.Tracked, policy.Tracked, 5},
	{policy.Denied, policy.Untracked, 1},
	{policy.Untracked, policy.Denied, 6},
	{policy.Denied, policy.Tracked, 2},
	{policy.Tracked, policy.Denied, 7},
	{policy.Untracked, policy.Tracked, 8},
}

// swapPort is the destination port of a kind's flows.
func swapPort(kind int) uint16 { return uint16(7000 + kind) }

const (
	swapFlows = 64
	// swapLast is a flow on top, of a kind that both policies leave untracked: it ends each burst.
	swapLast = swapFlows
)

// swapFlow is a flow with the frame of its packets.
type swapFlow struct {
	kind   int // in swapKinds
	packet policy.Packet
	frame  []byte
}

// swapPayload is a burst's number, its complement so that the checksum is always the same, and the flow's number.
const swapPayload = 12

// number puts the burst's number into the frame.
func (f *swapFlow) number(burst uint32) {
	at := f.frame[len(f.frame)-swapPayload:]
	binary.BigEndian.PutUint32(at, burst)
	binary.BigEndian.PutUint32(at[4:], ^burst)
}

// swapNewFlows makes the flows: every kind, over TCP and UDP, IPv4 and IPv6, twice.
func swapNewFlows(u lab.Uplink) []swapFlow {
	flows := make([]swapFlow, swapFlows+1)
	for i := range flows {
		kind, protocol, six, nth := i%8, uint8(policy.UDP), i/16%2 == 1, byte(i/32%2)
		if i/8%2 == 1 {
			protocol = policy.TCP
		}
		if i == swapLast {
			kind = slices.IndexFunc(swapKinds, func(k swapKind) bool { return k.a == policy.Untracked && k.b == policy.Untracked })
		}
		src, dst := swapSource(kind, nth, six), u.Node4
		if six {
			dst = u.Node6
		}
		p := policy.Packet{
			Src: src, Dst: dst, Protocol: protocol, HasL4: true,
			SrcPort: uint16(20000 + i), DstPort: swapPort(kind),
		}
		flows[i] = swapFlow{kind, p, trafficFrame(u, swapPacket(&p, uint32(i)))}
	}
	return flows
}

// swapSource is one of the addresses that a kind's flows come from.
func swapSource(kind int, nth byte, six bool) netip.Addr {
	subnet := swapKinds[kind].subnet
	if six {
		return netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 0, 9, 0, subnet, 15: 1 + nth})
	}
	return netip.AddrFrom4([4]byte{10, 9, subnet, 1 + nth})
}

// swapPacket is an IP packet that nobody answers: TCP ones are resets.
func swapPacket(p *policy.Packet, flow uint32) []byte {
	l4 := binary.BigEndian.AppendUint16(nil, p.SrcPort)
	l4 = binary.BigEndian.AppendUint16(l4, p.DstPort)
	checksum := 6
	if p.Protocol == policy.TCP {
		const dataOffset, rst = 5 << 4, 1 << 2
		l4 = append(l4, 0, 0, 0, 0, 0, 0, 0, 0, dataOffset, rst, 0, 0, 0, 0, 0, 0)
		checksum = 16
	} else {
		l4 = binary.BigEndian.AppendUint16(l4, 8+swapPayload)
		l4 = append(l4, 0, 0)
	}
	l4 = append(l4, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff)
	l4 = binary.BigEndian.AppendUint32(l4, flow)
	pseudo := slices.Concat(p.Src.AsSlice(), p.Dst.AsSlice(), []byte{0, p.Protocol, 0, byte(len(l4))})
	binary.BigEndian.PutUint16(l4[checksum:], trafficChecksum(pseudo, l4))
	if p.Src.Is6() {
		ip := []byte{6 << 4, 0, 0, 0, 0, byte(len(l4)), p.Protocol, 64}
		return slices.Concat(ip, p.Src.AsSlice(), p.Dst.AsSlice(), l4)
	}
	ip := []byte{4<<4 | 5, 0, 0, byte(20 + len(l4)), 0, 0, 0x40, 0, 64, p.Protocol, 0, 0}
	ip = slices.Concat(ip, p.Src.AsSlice(), p.Dst.AsSlice())
	binary.BigEndian.PutUint16(ip[10:], trafficChecksum(ip))
	return append(ip, l4...)
}

// swapPolicy is one shape of A or B.
type swapPolicy struct {
	name      string
	resources string
	list      node.List
	image     *compiler.Image
	// verdicts are the specification's, by flow.
	verdicts []policy.Verdict
}

// swapPolicies are A and B in turns, each in all shapes, so that the layout changes with every swap.
func swapPolicies(t testing.TB, flows []swapFlow) []*swapPolicy {
	t.Helper()
	// Sources as single addresses, so that only the size of a set with them differs.
	sources := func(kinds ...int) (nets []string) {
		for _, kind := range kinds {
			for nth := range byte(2) {
				nets = append(nets, swapSource(kind, nth, false).String()+"/32", swapSource(kind, nth, true).String()+"/128")
			}
		}
		return nets
	}
	random := rand.New(rand.NewPCG(4, 500))
	more4 := func(n int) (nets []string) {
		for range n {
			nets = append(nets, fmt.Sprintf("172.%d.%d.%d/32", 16+random.IntN(16), random.IntN(256), random.IntN(256)))
		}
		return nets
	}
	more6 := func(n int) (nets []string) {
		for range n {
			nets = append(nets, fmt.Sprintf("2001:db8:f%03x:%x::/64", random.IntN(1<<12), random.IntN(1<<16)))
		}
		return nets
	}
	deniedByA, peersOfB := sources(0, 3, 5), sources(1, 3)
	policies := []*swapPolicy{
		{name: "A, one CIDR of each family", resources: swapA([]string{"10.9.0.0/22", "2001:db8:9::/62"})},
		{name: "B, few addresses", resources: swapB(peersOfB, 0)},
		{name: "A, 10,000 CIDRs", resources: swapA(append(more4(10_000), deniedByA...))},
		{name: "B, 300 more rules", resources: swapB(peersOfB, 300)},
		{name: "A, 5,000 IPv6 networks", resources: swapA(append(more6(5_000), deniedByA...))},
		{name: "B, 10,000 CIDRs of both families", resources: swapB(slices.Concat(more4(5_000), peersOfB, more6(5_000)), 20)},
	}
	for i, p := range policies {
		p.compile(t)
		for n := range flows {
			want := swapKinds[flows[n].kind].a
			if i%2 == 1 {
				want = swapKinds[flows[n].kind].b
			}
			got := policy.Evaluate(p.list.Ingress, &flows[n].packet).Verdict
			if got != want {
				t.Fatalf("%s: flow %d is %s, want it %s: the test is wrong", p.name, n, got, want)
			}
			p.verdicts = append(p.verdicts, got)
		}
	}
	return policies
}

const swapHead = `
apiVersion: projectcalico.org/v3
kind: GlobalNetworkSet
metadata: {name: sources, labels: {role: sources}}
spec:
  nets: [%s]
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: swap}
spec:
  selector: all()
  doNotTrack: true
  applyOnForward: true
  types: [Ingress]
  ingress:
`

func swapA(denied []string) string {
	return fmt.Sprintf(swapHead, strings.Join(denied, ", ")) + `
  - {action: Deny, source: {selector: role == "sources"}}
  - {action: Allow, protocol: TCP, destination: {ports: [7001, 7004, 7007]}}
  - {action: Allow, protocol: UDP, destination: {ports: [7001, 7004, 7007]}}
`
}

// swapB has some rules before those that count.
func swapB(peers []string, more int) string {
	var b strings.Builder
	fmt.Fprintf(&b, swapHead, strings.Join(peers, ", "))
	for i := range more {
		fmt.Fprintf(&b, "  - {action: Deny, protocol: TCP, source: {nets: [198.51.100.%d/32]}, destination: {ports: [%d]}}\n", i%250, 30000+i)
	}
	for _, protocol := range []string{"TCP", "UDP"} {
		fmt.Fprintf(&b, `
  - {action: Deny, protocol: %[1]s, destination: {ports: [7000, 7004, 7006]}}
  - {action: Allow, protocol: %[1]s, source: {selector: role == "sources"}, destination: {ports: [7001, 7003]}}
`, protocol)
	}
	return b.String()
}

func (p *swapPolicy) annotations() map[string]string {
	return map[string]string{"interfaces": "eth0", "policy": p.resources}
}

// swapJSON are annotations with their prefix.
func swapJSON(t testing.TB, annotations map[string]string) string {
	t.Helper()
	full := map[string]string{}
	for k, v := range annotations {
		full[lab.AnnotationPrefix+k] = v
	}
	return string(must(json.Marshal(full))(t))
}

// compile goes the way of the command, as far as it needs no kernel.
func (p *swapPolicy) compile(t testing.TB) {
	t.Helper()
	c, bad := config.Parse(cniStdin("swap", "1.1.0", swapJSON(t, p.annotations()), ""))
	if bad != nil {
		t.Fatal(bad)
	}
	_, lists, err := must(node.Read(c))(t).Assign(nil)
	check(t, err)
	p.list = lists[0]
	p.image = must(compiler.Compile(p.list.Ingress))(t)
}

// swapReceiver sees the packets that reach the node's sockets, each with its mark.
type swapReceiver struct {
	sockets []int
	buf     []byte
	oob     []byte
}

// swapSeen is what became of a flow's packet in a burst.
type swapSeen struct {
	count int
	mark  uint32
}

func swapListen(t testing.TB, ns *lab.NS) *swapReceiver {
	t.Helper()
	r := &swapReceiver{buf: make([]byte, 2048), oob: make([]byte, 256)}
	check(t, lab.In(ns, func() error {
		for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
			for _, protocol := range []int{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
				fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, protocol)
				if err != nil {
					return err
				}
				r.sockets = append(r.sockets, fd)
				if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20); err != nil {
					return err
				}
				if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVMARK, 1); err != nil {
					return err
				}
			}
		}
		return nil
	}))
	t.Cleanup(func() {
		for _, fd := range r.sockets {
			unix.Close(fd)
		}
	})
	// So that the kernel has no reason to tell that nobody is there.
	for kind := range swapKinds {
		c := must(lab.ListenPacket(ns, "udp", fmt.Sprintf(":%d", swapPort(kind))))(t)
		t.Cleanup(func() { c.Close() })
	}
	return r
}

// drain reads all there is and notes the packets of a burst.
func (r *swapReceiver) drain(burst uint32, seen []swapSeen) error {
	for _, fd := range r.sockets {
		for {
			n, oobn, _, _, err := unix.Recvmsg(fd, r.buf, r.oob, 0)
			if errors.Is(err, unix.EAGAIN) {
				break
			}
			if err != nil {
				return err
			}
			if n < swapPayload {
				continue
			}
			payload := r.buf[n-swapPayload : n]
			flow := binary.BigEndian.Uint32(payload[8:])
			if got := binary.BigEndian.Uint32(payload); got != burst || int(flow) >= len(seen) {
				return fmt.Errorf("a packet of burst %d, flow %d came with burst %d", got, flow, burst)
			}
			messages, err := unix.ParseSocketControlMessage(r.oob[:oobn])
			if err != nil {
				return err
			}
			seen[flow].count++
			for _, m := range messages {
				if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SO_MARK {
					seen[flow].mark = binary.NativeEndian.Uint32(m.Data)
				}
			}
		}
	}
	return nil
}

// verdict is what must have been decided about the packet.
func (s swapSeen) verdict() policy.Verdict {
	switch {
	case s.count == 0:
		return policy.Denied
	case s.mark&swapMark != 0:
		return policy.Untracked
	}
	return policy.Tracked
}
