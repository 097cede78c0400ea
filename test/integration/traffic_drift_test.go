// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"

	"github.com/untracked-cni/untracked/test/lab"
)

// trafficForeign is an XDP program that lets everything pass.
func trafficForeign(t testing.TB) (p *ebpf.Program, id uint32) {
	t.Helper()
	p = must(ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "somebody_elses", Type: ebpf.XDP, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()}, // XDP_PASS
	}))(t)
	t.Cleanup(func() { p.Close() })
	info := must(p.Info())(t)
	programID, _ := info.ID()
	return p, uint32(programID)
}

// Somebody else's XDP program is never touched: the interface goes on in tc mode, status names the program, and
// when it is gone the interface goes back to native XDP.
func TestTrafficForeignXDP(t *testing.T) {
	type attach func(t testing.TB, n *trafficNode, p *ebpf.Program) (detach func())
	byLink := func(t testing.TB, n *trafficNode, p *ebpf.Program) func() {
		var l link.Link
		check(t, lab.In(n.Node, func() (err error) {
			l, err = link.AttachXDP(link.XDPOptions{Program: p, Interface: n.u.NodeIndex})
			return err
		}))
		t.Cleanup(func() { l.Close() })
		return func() { l.Close() }
	}
	byNetlink := func(flags int) attach {
		return func(t testing.TB, n *trafficNode, p *ebpf.Program) func() {
			set := func(fd int) {
				t.Helper()
				check(t, lab.In(n.Node, func() error {
					l, err := netlink.LinkByName("eth0")
					if err != nil {
						return err
					}
					return netlink.LinkSetXdpFdWithFlags(l, fd, flags)
				}))
			}
			set(p.FD())
			return func() { set(-1) }
		}
	}
	for name, attach := range map[string]attach{
		"by link":                       byLink,
		"by netlink, native":            byNetlink(nl.XDP_FLAGS_DRV_MODE),
		"by netlink, generic":           byNetlink(nl.XDP_FLAGS_SKB_MODE),
		"by netlink, kernel's own mode": byNetlink(0),
	} {
		t.Run(name, func(t *testing.T) {
			n := newTraffic(t, lab.Config{})
			must(lab.ServeTCP(n.Node, 6379))(t)
			foreign, id := trafficForeign(t)
			detach := attach(t, n, foreign)
			annotations := map[string]string{"interfaces": "eth0", "ports": "tcp/6379"}
			stays := func() {
				t.Helper()
				if h := must(lab.ReadHooks(n.Node, "eth0"))(t); h.XDP != id {
					t.Fatalf("program %d is on the XDP hook, want the foreign %d", h.XDP, id)
				}
			}
			untracked := func() {
				t.Helper()
				n.wantTCP(n.Client, lab.Load{Target: netip.AddrPortFrom(n.u.Node4, 6379), Sources: n.u.Client4, Count: 20})
				n.wantFlows(0, lab.Port(6379))
			}

			n.apply(annotations)
			stays()
			s := n.problem("foreign-xdp", "eth0", fmt.Sprintf("%d (somebody_elses)", id))
			if i := s.Interfaces[0]; i.Mode != "tc" || !i.Attached {
				t.Errorf("eth0: %+v, want it attached in tc mode", i)
			}
			untracked()
			// A second time, now with our own program beside it.
			n.apply(annotations)
			stays()

			// Asked for native XDP, it says no rather than push the other one off.
			n.write(map[string]string{"interfaces": "eth0", "ports": "tcp/6379", "mode": "native"})
			if code, out := n.applyFile(); code != 1 {
				t.Errorf("apply in native mode: exit code %d, want 1\n%s", code, out)
			}
			stays()
			n.problem("foreign-xdp", "somebody_elses")
			n.apply(annotations)
			untracked()

			detach()
			n.problem("drift", "eth0")
			n.apply(annotations)
			if i := n.healthy().Interfaces[0]; i.Mode != "native" || !i.Attached {
				t.Errorf("eth0: %+v, want it attached in native mode", i)
			}
			untracked()
			n.wantNoInvalid()
		})
	}
}

// What others take off an interface, status and CHECK tell of, and the next ADD or apply puts back.
func TestTrafficDetached(t *testing.T) {
	detach := func(pin string) func(t testing.TB, n *trafficNode) {
		return func(t testing.TB, n *trafficNode) {
			l := must(link.LoadPinnedLink(filepath.Join(n.pins(), pin), nil))(t)
			defer l.Close()
			check(t, l.Detach())
		}
	}
	for name, c := range map[string]struct {
		mode string
		do   func(testing.TB, *trafficNode)
	}{
		"xdp link detached":         {"native", detach("xdp")},
		"tc link detached":          {"native", detach("tc")},
		"generic xdp link detached": {"generic", detach("xdp")},
		"classifier detached":       {"tc", detach("tc")},
		"xdp link unpinned":         {"native", func(t testing.TB, n *trafficNode) { check(t, os.Remove(filepath.Join(n.pins(), "xdp"))) }},
		"tc link unpinned":          {"tc", func(t testing.TB, n *trafficNode) { check(t, os.Remove(filepath.Join(n.pins(), "tc"))) }},
		"all pins gone": {"native", func(t testing.TB, n *trafficNode) {
			check(t, os.RemoveAll(filepath.Join(n.lab.BPFFS, "untracked")))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			n := newTraffic(t, lab.Config{})
			must(lab.ServeTCP(n.Node, 6379))(t)
			annotations := map[string]string{"mode": c.mode, "interfaces": "eth0", "ports": "tcp/6379"}
			pod := must(n.lab.AddNS("pod"))(t)
			n.write(annotations)
			must(n.chain.Add(pod))(t)
			for _, repair := range []struct {
				name string
				do   func()
			}{
				{"ADD", func() {
					second := must(n.lab.AddNS("second"))(t)
					must(n.chain.Add(second))(t)
				}},
				{"apply", func() { n.apply(annotations) }},
			} {
				n.healthy()
				c.do(t, n)
				word := "eth0"
				if name == "all pins gone" {
					word = "nothing is pinned"
				}
				if s := n.problem("drift", word); s.Interfaces[0].Attached {
					t.Errorf("status says attached: %+v", s.Interfaces[0])
				}
				if _, code := n.status(); code != 1 {
					t.Errorf("status: exit code %d, want 1", code)
				}
				if _, err := n.chain.Check(pod); err == nil {
					t.Errorf("CHECK does not notice")
				}
				repair.do()
				if i := n.healthy().Interfaces[0]; i.Mode != c.mode || !i.Attached {
					t.Errorf("after %s: %+v", repair.name, i)
				}
				if _, err := n.chain.Check(pod); err != nil {
					t.Errorf("CHECK after %s: %v", repair.name, err)
				}
				h := must(lab.ReadHooks(n.Node, "eth0"))(t)
				if (h.XDP == 0) != (c.mode == "tc") || len(h.TCXIngress) != 1 {
					t.Errorf("after %s: hooks %+v", repair.name, h)
				}
				n.wantTCP(n.Client, lab.Load{Target: netip.AddrPortFrom(n.u.Node4, 6379), Sources: n.u.Client4, Count: 10})
				n.wantFlows(0, lab.Port(6379))
			}
			n.wantNoInvalid()
		})
	}
}

// pins is where the pins of eth0 are.
func (n *trafficNode) pins() string {
	return filepath.Join(n.lab.BPFFS, "untracked", "interfaces", fmt.Sprint(n.u.NodeIndex))
}

// rewire makes an uplink anew, with the same names and addresses.
func (n *trafficNode) rewire(u lab.Uplink) {
	n.Helper()
	check(n, lab.Veth(n.Node, u.Name, n.Client, u.Name, 1500))
	check(n, lab.AddAddrs(n.Node, u.Name, netip.PrefixFrom(u.Node4, 24), netip.PrefixFrom(u.Node6, 64)))
	for i := range u.Client4 {
		check(n, lab.AddAddrs(n.Client, u.Name, netip.PrefixFrom(u.Client4[i], 24), netip.PrefixFrom(u.Client6[i], 64)))
	}
}

// An interface that is deleted and made anew has the same name and another index.
func TestTrafficInterfaceRecreated(t *testing.T) {
	for _, mode := range []string{"auto", "tc"} {
		t.Run(mode, func(t *testing.T) {
			n := newTraffic(t, lab.Config{})
			must(lab.ServeTCP(n.Node, 6379))(t)
			annotations := map[string]string{"mode": mode, "interfaces": "eth0", "ports": "tcp/6379"}
			n.apply(annotations)
			old := n.pins()
			load := lab.Load{Target: netip.AddrPortFrom(n.u.Node4, 6379), Sources: n.u.Client4, Count: 10}
			n.wantTCP(n.Client, load)

			check(t, lab.DeleteLink(n.Node, "eth0"))
			if s := n.problem("drift", "eth0", "gone"); s.Interfaces[0].Attached {
				t.Errorf("status says attached: %+v", s.Interfaces[0])
			}
			n.rewire(n.u)
			n.problem("drift", "eth0", "re-created")

			pod := must(n.lab.AddNS("pod"))(t)
			must(n.chain.Add(pod))(t)
			i := n.healthy().Interfaces[0]
			if i.Index == n.u.NodeIndex || !i.Attached {
				t.Errorf("eth0: %+v, want it attached with another index than %d", i, n.u.NodeIndex)
			}
			n.wantTCP(n.Client, load)
			n.wantFlows(0, lab.Port(6379))
			if n.packets("eth0").Untracked == 0 {
				t.Errorf("nothing was untracked on the new interface")
			}
			if _, err := os.Stat(old); !os.IsNotExist(err) {
				t.Errorf("the pins of the old index are still there: %v", err)
			}
			n.wantNoInvalid()
		})
	}
}

// Interfaces that a glob selects come and go.
func TestTrafficInterfacesComeAndGo(t *testing.T) {
	n := newTraffic(t, lab.Config{Uplinks: 2})
	must(lab.ServeTCP(n.Node, 6379))(t)
	second := n.lab.Uplinks[1]
	check(t, lab.DeleteLink(n.Node, second.Name))
	annotations := map[string]string{"interfaces": "eth*", "ports": "tcp/6379"}
	n.apply(annotations)
	if s := n.healthy(); len(s.Interfaces) != 1 {
		t.Fatalf("interfaces %+v, want eth0 alone", s.Interfaces)
	}

	n.rewire(second)
	n.problem("drift", "eth1", "new")
	load := lab.Load{Target: netip.AddrPortFrom(second.Node4, 6379), Sources: second.Client4, Count: 10}
	n.wantTCP(n.Client, load)
	n.wantFlows(10, lab.Port(6379))
	pod := must(n.lab.AddNS("pod"))(t)
	must(n.chain.Add(pod))(t)
	if s := n.healthy(); len(s.Interfaces) != 2 || !s.Interfaces[1].Attached {
		t.Fatalf("interfaces %+v, want eth0 and eth1 attached", s.Interfaces)
	}
	n.wantFlows(0, lab.Port(6379)) // those from before are gone
	n.wantTCP(n.Client, load)
	n.wantFlows(0, lab.Port(6379))

	check(t, lab.DeleteLink(n.Node, second.Name))
	n.problem("drift", "eth1", "gone")
	n.apply(annotations)
	if s := n.healthy(); len(s.Interfaces) != 1 {
		t.Fatalf("interfaces %+v, want eth0 alone", s.Interfaces)
	}
	n.wantTCP(n.Client, lab.Load{Target: netip.AddrPortFrom(n.u.Node4, 6379), Sources: n.u.Client4, Count: 10})
	n.wantFlows(0, lab.Port(6379))
	pins := must(os.ReadDir(filepath.Dir(n.pins())))(t)
	if len(pins) != 1 {
		t.Errorf("%d interfaces have pins, want 1", len(pins))
	}

	// An interface that is no longer selected is left in peace.
	n.apply(map[string]string{"interfaces": "eth0", "ports": "tcp/6379"})
	n.rewire(second)
	n.apply(map[string]string{"interfaces": "eth1", "ports": "tcp/6379"})
	if h := must(lab.ReadHooks(n.Node, "eth0"))(t); !h.None() {
		t.Errorf("eth0 still has %+v", h)
	}
	n.healthy()
	n.wantNoInvalid()
}

// A name that no interface has is a problem, not a silence.
func TestTrafficNoInterface(t *testing.T) {
	n := newTraffic(t, lab.Config{})
	n.write(map[string]string{"interfaces": "eth7", "ports": "tcp/6379"})
	if code, out := n.applyFile(); code != 1 {
		t.Errorf("apply: exit code %d, want 1\n%s", code, out)
	}
	n.problem("no-interface", "eth7")
	// With another interface that is there, it is advice: eth7 may appear later.
	n.apply(map[string]string{"interfaces": "eth0,eth7", "ports": "tcp/6379"})
	if s := n.problem("no-interface", "eth7"); len(s.Interfaces) != 1 || !s.Interfaces[0].Attached {
		t.Errorf("interfaces %+v, want eth0 attached", s.Interfaces)
	}
}
