// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/pkg/compiler"
	"github.com/untracked-cni/untracked/pkg/nft"
	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/test/lab"
)

// stack is a server as it stands in a rack: on either side of two wires a bond, and a VLAN on the bond.
//
//	client                     node
//	bond0.7                    bond0.7   203.0.113.1
//	bond0 ── port0 ──── port0 ── bond0   198.51.100.1
//	     └── port1 ──── port1 ──┘
type stack struct {
	*bench
	generation uint64
	senders    map[string]*lab.Sender
	mac        map[*lab.NS]net.HardwareAddr
}

const (
	stackVLAN  = 7
	bondName   = "bond0"
	vlanName   = "bond0.7"
	stackAllow = 700 // the ports of the policy: the first untracked,
	stackDeny  = 701 // the second denied,
	stackOther = 702 // the third in no rule
)

var bondPorts = []string{"port0", "port1"}

func newStack(t *testing.T, mode netlink.BondMode) *stack {
	t.Helper()
	requireRoot(t)
	// To load the module for a test would leave the machine with a bond that nobody asked for.
	if _, err := os.Stat("/sys/module/bonding"); err != nil {
		t.Skip("needs bonding in the kernel (modprobe bonding max_bonds=0)")
	}
	s := &stack{bench: newBench(t), senders: map[string]*lab.Sender{}, mac: map[*lab.NS]net.HardwareAddr{}}
	for _, port := range bondPorts {
		s.must(lab.Veth(s.lab.Node, port, s.lab.Client, port, 1500))
	}
	for _, ns := range []*lab.NS{s.lab.Node, s.lab.Client} {
		err := lab.In(ns, func() (err error) {
			s.mac[ns], err = addBond(mode)
			return err
		})
		if errors.Is(err, unix.EOPNOTSUPP) {
			t.Skip("needs bonds and VLANs in the kernel: ", err)
		}
		s.must(err)
	}
	for _, ns := range []*lab.NS{s.lab.Node, s.lab.Client} {
		s.await("bond in "+ns.Name, func() (ready bool, err error) {
			err = lab.In(ns, func() error {
				ready, err = bondReady(mode)
				return err
			})
			return ready, err
		})
	}
	s.must(lab.AddAddrs(s.lab.Node, bondName, netip.MustParsePrefix("198.51.100.1/24")))
	s.must(lab.AddAddrs(s.lab.Node, vlanName, netip.MustParsePrefix("203.0.113.1/24")))
	for _, name := range []string{bondName, vlanName} {
		sender, err := lab.NewSender(s.lab.Client, name)
		s.must(err)
		t.Cleanup(func() { sender.Close() })
		s.senders[name] = sender
	}
	// Connection tracking, and what the programs' verdict is for.
	_, err := lab.AddStateful(s.lab.Node, false)
	s.must(err)
	table := &nft.Table{Mark: testMark}
	for _, name := range append([]string{bondName, vlanName}, bondPorts...) {
		table.Endpoints = append(table.Endpoints, nft.Endpoint{Interface: name})
	}
	s.in(func() error { return table.Apply() })
	return s
}

// addBond makes the bond and the VLAN of one side, and returns their address.
func addBond(mode netlink.BondMode) (net.HardwareAddr, error) {
	bond := netlink.NewLinkBond(netlink.LinkAttrs{Name: bondName})
	bond.Mode, bond.Miimon = mode, 20
	if mode == netlink.BOND_MODE_802_3AD {
		bond.LacpRate = netlink.BOND_LACP_RATE_FAST
	}
	if err := netlink.LinkAdd(bond); err != nil {
		return nil, fmt.Errorf("add bond: %w", err)
	}
	for _, name := range bondPorts {
		port, err := netlink.LinkByName(name)
		if err != nil {
			return nil, err
		}
		for _, step := range []func() error{
			func() error { return netlink.LinkSetDown(port) }, // as the kernel wants it
			func() error { return netlink.LinkSetMaster(port, bond) },
			func() error { return netlink.LinkSetUp(port) },
		} {
			if err := step(); err != nil {
				return nil, fmt.Errorf("make %s part of the bond: %w", name, err)
			}
		}
	}
	if mode == netlink.BOND_MODE_ACTIVE_BACKUP {
		// Both sides are to use the same wire.
		port, err := netlink.LinkByName(bondPorts[0])
		if err != nil {
			return nil, err
		}
		change := netlink.NewLinkBond(netlink.LinkAttrs{Name: bondName})
		change.Primary = port.Attrs().Index
		if err := netlink.LinkModify(change); err != nil {
			return nil, fmt.Errorf("choose the wire of the bond: %w", err)
		}
	}
	made, err := netlink.LinkByName(bondName)
	if err != nil {
		return nil, err
	}
	vlan := &netlink.Vlan{LinkAttrs: netlink.LinkAttrs{Name: vlanName, ParentIndex: made.Attrs().Index}, VlanId: stackVLAN}
	if err := netlink.LinkAdd(vlan); err != nil {
		return nil, fmt.Errorf("add VLAN: %w", err)
	}
	return made.Attrs().HardwareAddr, errors.Join(netlink.LinkSetUp(made), netlink.LinkSetUp(vlan))
}

// bondReady reports whether the bond of one side has come to what it will stay with.
func bondReady(mode netlink.BondMode) (bool, error) {
	text, err := os.ReadFile("/proc/thread-self/net/bonding/" + bondName)
	if err != nil {
		return false, err
	}
	if mode == netlink.BOND_MODE_ACTIVE_BACKUP {
		return strings.Contains(string(text), "Currently Active Slave: "+bondPorts[0]+"\n"), nil
	}
	// Both wires, seen from both sides, are in an aggregate with short timeouts, in step, collecting and distributing.
	return strings.Count(string(text), "port state: 63\n") == 2*len(bondPorts), nil
}

func (s *stack) await(what string, ready func() (bool, error)) {
	s.Helper()
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		ok, err := ready()
		s.must(err)
		if ok {
			return
		}
		if time.Now().After(deadline) {
			s.Fatalf("%s: not ready after a minute", what)
		}
	}
}

// route is a way for a packet through the stack.
type route struct {
	name string
	// by is the client's interface, tagged says that the sender writes the tag itself.
	by     string
	tagged bool
	vlan   bool
	port   uint16 // source port, to tell flows apart
}

var routes = []route{
	{"untagged", bondName, false, false, 5001},
	{"tag in the frame", bondName, true, true, 5002}, // as with txvlan off
	{"tag beside the frame", vlanName, false, true, 5003},
}

// send sends a datagram.
func (s *stack) send(r route, port uint16) {
	s.Helper()
	subnet := [3]byte{198, 51, 100}
	if r.vlan {
		subnet = [3]byte{203, 0, 113}
	}
	frame := slices.Concat(s.mac[s.lab.Node], s.mac[s.lab.Client])
	if r.tagged {
		frame = append(frame, 0x81, 0x00, 0, stackVLAN)
	}
	ip := []byte{0x45, 0, 0, 28, 0, 0, 0, 0, 64, policy.UDP, 0, 0, subnet[0], subnet[1], subnet[2], 2, subnet[0], subnet[1], subnet[2], 1}
	sum := uint32(0)
	for i := 0; i < len(ip); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	sum = sum&0xffff + sum>>16
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum&0xffff+sum>>16))
	frame = slices.Concat(frame, []byte{0x08, 0x00}, ip)
	for _, n := range []uint16{r.port, port, 8, 0} {
		frame = binary.BigEndian.AppendUint16(frame, n)
	}
	s.must(s.senders[r.by].Send(frame))
}

// flows are the ports, source and destination, of the node's entries in connection tracking.
func (s *stack) flows() (out []string) {
	s.Helper()
	flows, err := lab.Flows(s.lab.Node, lab.Protocol(policy.UDP))
	s.must(err)
	for _, f := range flows {
		out = append(out, flowName(f.Source.Port(), f.Destination.Port()))
	}
	slices.Sort(out)
	return out
}

func flowName(source, destination uint16) string { return fmt.Sprintf("%d-%d", source, destination) }

// put installs the policy on interfaces in the first of the modes that can be had, and returns those that could not.
func (s *stack) put(modes []Mode, names ...string) (got []Attached, refused []error) {
	s.Helper()
	rules := []policy.Rule{udpRule(policy.Allow, stackAllow), udpRule(policy.Deny, stackDeny)}
	image, err := compiler.Compile(rules)
	s.must(err)
	s.generation++
	g := s.pins.NewGeneration(s.generation, testMark)
	defer g.Close()
	tables, err := g.Tables(rules, image)
	s.must(err)
	for _, name := range names {
		s.in(func() error {
			a, no, err := g.Install(Target{Name: name, Index: s.index(name)}, modes, tables)
			if err != nil {
				return err
			}
			got, refused = append(got, a), append(refused, no...)
			return s.pins.Verify(s.index(name), a)
		})
	}
	return got, refused
}

// index is an interface's, in the thread's namespace.
func (s *stack) index(name string) int {
	s.Helper()
	l, err := net.InterfaceByName(name)
	s.must(err)
	return l.Index
}

// counted adds up what interfaces have counted.
func (s *stack) counted(names ...string) (untracked, denied uint64) {
	s.Helper()
	s.in(func() error {
		for _, name := range names {
			c, err := s.pins.Counts(s.index(name))
			if err != nil {
				return err
			}
			untracked, denied = untracked+c.Untracked.Packets, denied+c.Denied.Packets
		}
		return nil
	})
	return untracked, denied
}

// check sends packets to all ports by all routes and compares what became of them. covers says which routes lead through
// the policy, names which interfaces are to have counted each of their packets once.
func (s *stack) check(covers func(route) bool, names ...string) {
	s.Helper()
	const each = 3
	s.must(lab.FlushFlows(s.lab.Node))
	var want []string
	covered := uint64(0)
	for _, r := range routes {
		// Packets of one route come in order: those to the port that is always tracked last.
		for _, port := range []uint16{stackAllow, stackDeny, stackOther} {
			for range each {
				s.send(r, port)
			}
			if port == stackOther || !covers(r) {
				want = append(want, flowName(r.port, port))
			}
		}
		if covers(r) {
			covered += each
		}
	}
	slices.Sort(want)
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		got := s.flows()
		untracked, denied := s.counted(names...)
		if slices.Equal(got, want) && (names == nil || untracked == covered && denied == covered) {
			return
		}
		if time.Now().After(deadline) {
			s.Fatalf("tracked are %v, want %v; %d packets counted as untracked and %d as denied, want %d of each", got, want, untracked, denied, covered)
		}
	}
}

// place is where on the stack a policy stands.
type place struct {
	name       string
	interfaces []string
	covers     func(route) bool
	// refuses says that there are kernels without native XDP here.
	refuses bool
}

var (
	everyRoute = func(route) bool { return true }
	onBond     = place{"bond", []string{bondName}, everyRoute, true}
	onPorts    = place{"ports", bondPorts, everyRoute, false}
	onVLAN     = place{"vlan", []string{vlanName}, func(r route) bool { return r.vlan }, true}
)

// try puts the policy in force in a mode, or tc where there is no native XDP, sees it work, and takes it away.
func (s *stack) try(p place, mode Mode) {
	s.Helper()
	s.must(s.pins.Create())
	defer s.in(s.pins.Remove)
	got, refused := s.put(slices.Compact([]Mode{mode, Classifier}), p.interfaces...)
	want := mode
	if mode == Native && p.refuses {
		err := errors.Join(refused...)
		tellFeature(s, "native-XDP-on-"+p.name, err)
		if err != nil {
			want = Classifier
			if !errors.Is(err, unix.EOPNOTSUPP) || !strings.Contains(err.Error(), "attach xdp to "+p.interfaces[0]+": ") {
				s.Errorf("refused with %v, want EOPNOTSUPP that names the interface", err)
			}
		}
	}
	for _, a := range got {
		if a.Mode != want {
			s.Errorf("%s on %s: installed is %+v, refused was %v", mode, p.name, a, refused)
		}
	}
	s.check(p.covers, p.interfaces...)
	if s.Failed() {
		s.Fatalf("%s on %s", mode, p.name)
	}
}

// On bonds, their ports and VLANs the policy is in force in every mode that the kernel has there, and `auto` comes to one
// that works.
func TestStacks(t *testing.T) {
	t.Run("active-backup", func(t *testing.T) {
		s := newStack(t, netlink.BOND_MODE_ACTIVE_BACKUP)
		s.try(onBond, Native)
		s.try(onBond, Generic)
		s.try(onBond, Classifier)
		s.try(onPorts, Native)
		s.try(onPorts, Classifier)
		s.try(onVLAN, Native)
		s.try(onVLAN, Generic)

		// The bond's program occupies the ports, too: there it has to be tc.
		s.must(s.pins.Create())
		got, refused := s.put([]Mode{Native, Classifier}, bondName, bondPorts[0], bondPorts[1])
		t.Logf("together: %+v, refused: %v", got, refused)
		s.check(everyRoute)
		s.in(s.pins.Remove)
	})
	t.Run("802.3ad", func(t *testing.T) {
		newStack(t, netlink.BOND_MODE_802_3AD).try(onBond, Native)
	})
}
