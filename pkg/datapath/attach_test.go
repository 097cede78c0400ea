// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/pkg/compiler"
	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/test/lab"
)

const testMark = 0x1000

// bench is a namespace with a veth on it and a BPF file system.
type bench struct {
	testing.TB
	lab    *lab.Lab
	pins   *Pins
	target Target
}

func newBench(t testing.TB) *bench {
	t.Helper()
	return newBenchIn(t, lab.Config{})
}

func newBenchIn(t testing.TB, c lab.Config) *bench {
	t.Helper()
	requireRoot(t)
	l := lab.New(t, c)
	b := &bench{t, l, PinsAt(l.BPFFS), Target{Name: "eth0", Index: l.Uplinks[0].NodeIndex}}
	b.must(b.pins.Create())
	return b
}

func (b *bench) must(err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

// in runs fn inside the namespace.
func (b *bench) in(fn func() error) {
	b.Helper()
	b.must(lab.In(b.lab.Node, fn))
}

func (b *bench) hooks() lab.Hooks {
	b.Helper()
	h, err := lab.ReadHooks(b.lab.Node, "eth0")
	b.must(err)
	return h
}

// install puts rules in force as a generation and completes the counters.
func (b *bench) install(gen uint64, mode Mode, rules ...policy.Rule) Attached {
	b.Helper()
	a, refused, err := b.tryInstall(gen, b.target, []Mode{mode}, rules...)
	if err != nil || len(refused) != 0 {
		b.Fatalf("install generation %d in mode %s: %v, %v", gen, mode, refused, err)
	}
	if a.Mode != mode {
		b.Fatalf("installed in mode %s, want %s", a.Mode, mode)
	}
	b.must(b.pins.Carry(b.target.Index))
	b.verify(a)
	return a
}

// tryInstall leaves t.XDPMode as the caller would: read from the interface.
func (b *bench) tryInstall(gen uint64, t Target, modes []Mode, rules ...policy.Rule) (a Attached, refused []error, err error) {
	b.Helper()
	if h := b.hooks(); h.XDP != 0 {
		t.XDPMode = Native
		if h.Generic {
			t.XDPMode = Generic
		}
	}
	image, compileErr := compiler.Compile(rules)
	b.must(compileErr)
	g := b.pins.NewGeneration(gen, testMark)
	defer g.Close()
	tables, tablesErr := g.Tables(rules, image)
	b.must(tablesErr)
	b.in(func() error {
		a, refused, err = g.Install(t, modes, tables)
		return nil
	})
	return a, refused, err
}

func (b *bench) verify(a Attached) {
	b.Helper()
	b.in(func() error { return b.pins.Verify(b.target.Index, a) })
}

// wantDrift wants Verify to see that something is missing.
func (b *bench) wantDrift(what string, a Attached) error {
	b.Helper()
	var err error
	b.in(func() error {
		err = b.pins.Verify(b.target.Index, a)
		return nil
	})
	if err == nil {
		b.Errorf("%s: Verify sees nothing", what)
	}
	return err
}

func (b *bench) prune(keep map[int]uint64) {
	b.Helper()
	b.in(func() error { return b.pins.Prune(keep, false) })
}

// pinned lists the pins below the directory, in order.
func (b *bench) pinned() (names []string) {
	b.Helper()
	err := filepath.WalkDir(b.pins.Dir(), func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			name, _ := filepath.Rel(b.pins.Dir(), path)
			names = append(names, name)
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		b.Fatal(err)
	}
	return names
}

func (b *bench) wantPinned(when string, names ...string) {
	b.Helper()
	for i, name := range names {
		if rest, ok := cutHere(name); ok {
			names[i] = fmt.Sprintf("interfaces/%d/%s", b.target.Index, rest)
		}
	}
	slices.Sort(names)
	if got := b.pinned(); !slices.Equal(got, names) {
		b.Errorf("%s: pinned are %v, want %v", when, got, names)
	}
}

// cutHere reports whether a name is below the interface's directory: those begin with a dot and a slash.
func cutHere(name string) (rest string, ok bool) {
	if len(name) > 2 && name[:2] == "./" {
		return name[2:], true
	}
	return "", false
}

// linkID is the identity of a pinned link.
func (b *bench) linkID(name string) link.ID {
	b.Helper()
	l, err := link.LoadPinnedLink(filepath.Join(b.pins.of(b.target.Index), name), nil)
	b.must(err)
	defer l.Close()
	info, err := l.Info()
	b.must(err)
	return info.ID
}

// wantFreed waits until the kernel has freed a program, which it does some time after its last use.
func (b *bench) wantFreed(id uint32) {
	b.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		p, err := ebpf.NewProgramFromID(ebpf.ProgramID(id))
		if err != nil {
			return
		}
		p.Close()
		if time.Now().After(deadline) {
			b.Errorf("program %d is still loaded", id)
			return
		}
	}
}

// send sends datagrams from the client to the node.
func (b *bench) send(port uint16, count uint64) {
	b.Helper()
	_, err := lab.FloodUDP(b.lab.Client, lab.Load{Target: netip.AddrPortFrom(b.lab.Uplinks[0].Node4, port), Count: count})
	b.must(err)
}

func (b *bench) counts() Counts {
	b.Helper()
	c, err := b.pins.Counts(b.target.Index)
	b.must(err)
	return c
}

// wantRule waits until a rule has counted that many packets: what was sent is on its way for a moment.
func (b *bench) wantRule(i int, packets uint64) {
	b.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		got := b.counts().Rules[i].Packets
		if got == packets {
			return
		}
		if time.Now().After(deadline) {
			b.Fatalf("rule %d has counted %d packets, want %d", i, got, packets)
		}
	}
}

func udpRule(action policy.Action, port uint16) policy.Rule {
	r := portRule(action, port)
	protocol := uint8(policy.UDP)
	r.Protocol = &protocol
	return r
}

// An interface gets its programs, goes from generation to generation by an update in place, and gives everything
// back.
func TestInstall(t *testing.T) {
	for _, mode := range []Mode{Native, Generic, Classifier} {
		t.Run(string(mode), func(t *testing.T) {
			b := newBench(t)
			links := []string{"./tc", "./xdp"}
			if mode == Classifier {
				links = links[:1]
			}
			first := b.install(1, mode, udpRule(policy.Allow, 700))
			b.wantPinned("generation 1", append(slices.Clone(links), "./tables-1", "./counters-1", "./ledger-1", "./note-1")...)
			h := b.hooks()
			if h.XDP != first.XDP || h.Generic != (mode == Generic) || !slices.Equal(h.TCXIngress, []uint32{first.TC}) || first.Clsact || h.Clsact {
				t.Errorf("hooks %+v do not fit %+v", h, first)
			}
			b.in(func() error {
				if own := b.pins.OwnXDP(b.target.Index); own != first.XDP {
					t.Errorf("our program on the XDP hook is %d, want %d", own, first.XDP)
				}
				return nil
			})
			if first.Program() == 0 {
				t.Errorf("no program classifies: %+v", first)
			}
			ids := []link.ID{b.linkID("tc")}
			b.send(700, 10)
			b.wantRule(0, 10)

			second := b.install(2, mode, udpRule(policy.Deny, 701), udpRule(policy.Allow, 700))
			if b.linkID("tc") != ids[0] {
				t.Errorf("the tc link was replaced, want it updated in place")
			}
			if second.Program() == first.Program() {
				t.Errorf("generation 2 has the program of generation 1")
			}
			b.wantDrift("the old programs", first)
			b.wantPinned("before pruning", append(slices.Clone(links), "./tables-1", "./counters-1", "./ledger-1", "./note-1", "./tables-2", "./counters-2", "./ledger-2", "./note-2")...)
			b.prune(map[int]uint64{b.target.Index: 2})
			b.wantPinned("after pruning", append(slices.Clone(links), "./tables-2", "./counters-2", "./ledger-2", "./note-2")...)
			b.wantFreed(first.Program())
			b.send(700, 5)
			b.send(701, 3)
			b.wantRule(1, 15)
			b.wantRule(0, 3)
			if c := b.counts(); c.Untracked.Packets != 15 || c.Denied.Packets != 3 {
				t.Errorf("counts %+v, want 15 untracked and 3 denied", c)
			}
			if gen, err := b.pins.LastGeneration(); gen != 2 || err != nil {
				t.Errorf("last generation %d, %v; want 2", gen, err)
			}

			for range 2 { // removing nothing is no error
				b.in(b.pins.Remove)
			}
			if h := b.hooks(); !h.None() {
				t.Errorf("after removal: hooks %+v", h)
			}
			if b.wantPinned("after removal"); b.pins.Exist() {
				t.Errorf("the directory is still there")
			}
			b.wantFreed(second.Program())
			b.wantDrift("removed", second)
		})
	}
}

// An update of the XDP link keeps the link, so that no driver resets its rings.
func TestUpdateXDPInPlace(t *testing.T) {
	for _, mode := range []Mode{Native, Generic} {
		b := newBench(t)
		b.install(1, mode)
		id := b.linkID("xdp")
		b.install(2, mode, udpRule(policy.Allow, 700))
		if b.linkID("xdp") != id {
			t.Errorf("%s: the xdp link was replaced", mode)
		}
	}
}

// From any mode to any other, nothing of the old one stays.
func TestChangeMode(t *testing.T) {
	b := newBench(t)
	var before Attached
	for i, mode := range []Mode{Native, Classifier, Generic, Native, Generic, Classifier, Native} {
		gen := uint64(i + 1)
		a := b.install(gen, mode, udpRule(policy.Allow, 700))
		b.prune(map[int]uint64{b.target.Index: gen})
		h := b.hooks()
		if h.XDP != a.XDP || h.Generic != (mode == Generic) || len(h.TCXIngress) != 1 || h.Clsact {
			t.Errorf("from %q to %q: hooks %+v", before.Mode, mode, h)
		}
		b.send(700, 10)
		b.wantRule(0, 10*gen)
		if before.Mode != "" {
			b.wantFreed(before.Program())
		}
		before = a
	}
}

// released waits until the kernel has let go of links whose last pin was removed, which it does in its own time.
func (b *bench) released(name string) {
	b.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		h := b.hooks()
		xdp, tc := h.XDP != 0, len(h.TCXIngress) > 0
		waits := name == "xdp unpinned" && xdp || name == "tc unpinned" && tc || name == "directory gone" && (xdp || tc)
		if !waits {
			return
		}
		if time.Now().After(deadline) {
			b.Fatalf("%s: the hooks still have %+v", name, h)
		}
	}
}

func TestVerify(t *testing.T) {
	pin := func(b *bench, name string) string { return filepath.Join(b.pins.of(b.target.Index), name) }
	detach := func(name string) func(*bench) {
		return func(b *bench) {
			l, err := link.LoadPinnedLink(pin(b, name), nil)
			b.must(err)
			defer l.Close()
			b.must(l.Detach())
		}
	}
	unpin := func(name string) func(*bench) { return func(b *bench) { b.must(os.Remove(pin(b, name))) } }
	for name, c := range map[string]struct {
		mode Mode
		do   func(*bench)
	}{
		"xdp detached":        {Native, detach(xdpPin)},
		"xdp unpinned":        {Native, unpin(xdpPin)},
		"tc detached":         {Native, detach(tcPin)},
		"tc unpinned":         {Generic, unpin(tcPin)},
		"classifier detached": {Classifier, detach(tcPin)},
		"interface gone":      {Native, func(b *bench) { b.must(lab.DeleteLink(b.lab.Node, "eth0")) }},
		"directory gone":      {Classifier, func(b *bench) { b.must(os.RemoveAll(b.pins.Dir())) }},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			a := b.install(1, c.mode)
			c.do(b)
			if err := b.wantDrift(name, a); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("Verify: %v, want an error that wraps fs.ErrNotExist", err)
			}
			if name == "interface gone" {
				b.in(b.pins.Remove)
				b.wantPinned("after removal")
				return
			}
			b.released(name)
			b.must(b.pins.Create())
			again := b.install(2, c.mode)
			if h := b.hooks(); h.XDP != again.XDP || len(h.TCXIngress) != 1 {
				t.Errorf("repaired: hooks %+v, want those of %+v", h, again)
			}
		})
	}

	b := newBench(t)
	a := b.install(1, Native)
	for _, wrong := range []Attached{
		{Mode: Native, XDP: a.XDP + 1, TC: a.TC},
		{Mode: Native, XDP: a.XDP, TC: a.TC + 1},
		{Mode: Native, XDP: a.XDP, TC: a.TC, Clsact: true},
	} {
		b.wantDrift(fmt.Sprintf("%+v", wrong), wrong)
	}
}

func passProgram(t testing.TB, kind ebpf.ProgramType, ret int32) *ebpf.Program {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "somebody_elses", Type: kind, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, ret), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// A foreign program stays whether the caller knows of it or finds out, and nothing of ours is left beside it.
func TestForeignXDP(t *testing.T) {
	for name, known := range map[string]bool{"known": true, "appeared meanwhile": false} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			foreign := passProgram(t, ebpf.XDP, 2)
			var held link.Link
			b.in(func() (err error) {
				held, err = link.AttachXDP(link.XDPOptions{Program: foreign, Interface: b.target.Index})
				return err
			})
			defer held.Close()
			id := b.hooks().XDP

			target := b.target
			target.ForeignXDP = known
			_, refused, err := b.tryInstall(1, target, []Mode{Native})
			if !errors.Is(err, ErrForeignXDP) || len(refused) == 0 {
				t.Errorf("install: %v, %v; want ErrForeignXDP", refused, err)
			}
			if h := b.hooks(); h.XDP != id || len(h.TCXIngress) != 0 {
				t.Errorf("hooks %+v, want the foreign program alone", h)
			}
			b.wantPinned("refused")

			a, refused, err := b.tryInstall(2, target, []Mode{Native, Classifier})
			if err != nil || a.Mode != Classifier || len(refused) != 1 || !errors.Is(refused[0], ErrForeignXDP) {
				t.Errorf("install: %+v, %v, %v; want the classifier", a, refused, err)
			}
			b.verify(a)
			if h := b.hooks(); h.XDP != id || len(h.TCXIngress) != 1 {
				t.Errorf("hooks %+v, want the foreign program and ours on tc", h)
			}
			b.in(b.pins.Remove)
			if h := b.hooks(); h.XDP != id || len(h.TCXIngress) != 0 {
				t.Errorf("after removal: hooks %+v, want the foreign program alone", h)
			}
		})
	}
}

// Ours stands before what others have on tcx, and stays there.
func TestForeignTCX(t *testing.T) {
	b := newBench(t)
	foreign := passProgram(t, ebpf.SchedCLS, 0) // TCX_PASS: nobody behind it sees the packet
	var held link.Link
	b.in(func() (err error) {
		held, err = link.AttachTCX(link.TCXOptions{Interface: b.target.Index, Program: foreign, Attach: ebpf.AttachTCXIngress})
		if errors.Is(err, ebpf.ErrNotSupported) {
			t.Skip("needs tcx (Linux 6.6)")
		}
		return err
	})
	defer held.Close()
	for gen := uint64(1); gen <= 2; gen++ {
		a := b.install(gen, Classifier, udpRule(policy.Allow, 700))
		if h := b.hooks(); len(h.TCXIngress) != 2 || h.TCXIngress[0] != a.TC {
			t.Errorf("generation %d: programs %v on tcx, want ours, %d, first", gen, h.TCXIngress, a.TC)
		}
		b.send(700, 10)
		b.wantRule(0, 10*gen)
	}
	b.in(b.pins.Remove)
	if h := b.hooks(); len(h.TCXIngress) != 1 {
		t.Errorf("after removal: programs %v on tcx, want the foreign one", h.TCXIngress)
	}
}

func TestLayer3NeedsTC(t *testing.T) {
	b := newBench(t)
	target := b.target
	target.Layer3 = true
	if _, _, err := b.tryInstall(1, target, []Mode{Native, Generic}); err == nil {
		t.Errorf("XDP was installed on an interface without Ethernet headers")
	}
	if h := b.hooks(); !h.None() {
		t.Errorf("refused, but hooks %+v", h)
	}
}

// Pruning takes programs off interfaces that are out of the policy, alive or gone, and spares those in it.
func TestPrune(t *testing.T) {
	b := newBench(t)
	a := b.install(1, Native)
	b.install(2, Native)
	b.install(3, Native)
	// Pins of an interface that is gone, as an apply before a reboot of the NIC left them.
	b.must(b.pins.createInterface(999999))

	b.prune(map[int]uint64{b.target.Index: 3})
	b.wantPinned("of three generations", "./tables-3", "./counters-3", "./ledger-3", "./note-3", "./tc", "./xdp")
	if indexes, err := b.pins.Interfaces(); err != nil || !slices.Equal(indexes, []int{b.target.Index}) {
		t.Errorf("interfaces %v, %v; want %d alone", indexes, err, b.target.Index)
	}
	// What is kept is what the caller says, not the newest.
	b.install(4, Native)
	b.prune(map[int]uint64{b.target.Index: 3})
	b.wantPinned("an interface behind", "./tables-3", "./counters-3", "./ledger-3", "./note-3", "./tc", "./xdp")

	b.prune(nil)
	b.wantPinned("out of the policy")
	if h := b.hooks(); !h.None() {
		t.Errorf("out of the policy: hooks %+v", h)
	}
	b.wantDrift("out of the policy", a)
}

// Counts pass through generations however often a caller is killed in between.
func TestCarryPins(t *testing.T) {
	b := newBench(t)
	stays, goes := udpRule(policy.Allow, 700), udpRule(policy.Deny, 701)
	b.install(1, Native, stays, goes)
	b.send(700, 4)
	b.send(701, 2)
	b.wantRule(0, 4)
	b.wantRule(1, 2)
	// Generations 2 and 3 go into force, but nobody carries or prunes.
	for gen := uint64(2); gen <= 3; gen++ {
		if _, _, err := b.tryInstall(gen, b.target, []Mode{Native}, stays); err != nil {
			t.Fatal(err)
		}
		b.send(700, 1)
		b.wantRule(0, 3+gen) // what is not carried yet is counted all the same
	}
	// Somebody was killed between the two pins of a generation: a ledger, and no counters.
	_, ledger, err := NewCounters(nil)
	b.must(err)
	defer ledger.Close()
	b.must(pinMap(ledger, b.pins.generation(b.target.Index, ledgerPin, 4)))

	for range 3 {
		b.must(b.pins.Carry(b.target.Index))
		if c := b.counts(); c.Rules[0].Packets != 6 || c.Untracked.Packets != 6 || c.Denied.Packets != 2 {
			t.Errorf("counts %+v, want 6 packets of the rule that stayed and 2 denied", c)
		}
	}
	b.install(5, Native, goes, stays)
	b.prune(map[int]uint64{b.target.Index: 5})
	if c := b.counts(); c.Rules[0].Packets != 0 || c.Rules[1].Packets != 6 || c.Denied.Packets != 2 {
		t.Errorf("after pruning: counts %+v, want 0 and 6 by rule, 2 denied in all", c)
	}
	b.wantPinned("after pruning", "./tables-5", "./counters-5", "./ledger-5", "./note-5", "./tc", "./xdp")
}

// Who reads counts while the pins of one generation after the other go is told of none that are missing.
func TestCountsBesideGenerations(t *testing.T) {
	b := newBench(t)
	b.install(1, Native, udpRule(policy.Allow, 700))
	b.send(700, 4)
	counters, ledger, err := b.pins.openCounters(b.target.Index, 1)
	b.must(err)
	defer counters.Close()
	defer ledger.Close()
	var end atomic.Bool
	turned := make(chan error, 1)
	go func() {
		turned <- func() error {
			for gen := uint64(2); !end.Load(); gen++ {
				path := func(what string, gen uint64) string { return b.pins.generation(b.target.Index, what, gen) }
				if err := errors.Join(
					pinMap(ledger, path(ledgerPin, gen)), pinMap(counters, path(countersPin, gen)),
					os.Remove(path(countersPin, gen-1)), os.Remove(path(ledgerPin, gen-1)),
				); err != nil {
					return err
				}
			}
			return nil
		}()
	}()
	for range 1000 {
		if c, err := b.pins.Counts(b.target.Index); err != nil || c.Untracked.Packets != 4 {
			t.Errorf("counts %+v, %v; want 4 untracked packets", c, err)
			break
		}
	}
	end.Store(true)
	b.must(<-turned)
}

func TestCountsWithoutPins(t *testing.T) {
	b := newBench(t)
	if _, err := b.pins.Counts(b.target.Index); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("counts of an interface without pins: %v, want fs.ErrNotExist", err)
	}
	b.must(b.pins.Carry(b.target.Index))
	if gen, err := b.pins.LastGeneration(); gen != 0 || err != nil {
		t.Errorf("last generation %d, %v; want 0", gen, err)
	}
}

// withoutTCX has the kernel do as before Linux 6.6.
func withoutTCX(t testing.TB) {
	real := attachTCX
	attachTCX = func(Target, *ebpf.Program) (link.Link, error) {
		return nil, fmt.Errorf("attach tcx: %w", ebpf.ErrNotSupported)
	}
	t.Cleanup(func() { attachTCX = real })
}

// Where there is no tcx, a filter on a clsact qdisc does the same.
func TestClsact(t *testing.T) {
	withoutTCX(t)
	for _, mode := range []Mode{Native, Generic, Classifier} {
		t.Run(string(mode), func(t *testing.T) {
			b := newBench(t)
			var before Attached
			for gen := uint64(1); gen <= 3; gen++ {
				a := b.install(gen, mode, udpRule(policy.Allow, 700))
				b.prune(map[int]uint64{b.target.Index: gen})
				if h := b.hooks(); !a.Clsact || !h.Clsact || h.Filters != 1 || len(h.TCXIngress) != 0 || h.XDP != a.XDP {
					t.Errorf("generation %d: %+v, hooks %+v; want one filter on clsact", gen, a, h)
				}
				b.send(700, 10)
				b.wantRule(0, 10*gen)
				if gen > 1 {
					b.wantDrift("the old program", before)
					b.wantFreed(before.TC)
				}
				before = a
			}
			// Somebody takes the qdisc away, and our filter with it.
			b.in(func() error { return delClsact(b.target.Index) })
			if err := b.wantDrift("no qdisc", before); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("Verify: %v, want an error that wraps fs.ErrNotExist", err)
			}
			a := b.install(4, mode, udpRule(policy.Allow, 700))
			b.prune(map[int]uint64{b.target.Index: 4})
			for range 2 {
				b.in(b.pins.Remove)
			}
			if h := b.hooks(); !h.None() {
				t.Errorf("after removal: hooks %+v", h)
			}
			b.wantFreed(a.TC)
		})
	}
}

func delClsact(ifindex int) error {
	l, err := netlink.LinkByIndex(ifindex)
	if err != nil {
		return err
	}
	qdiscs, err := netlink.QdiscList(l)
	if err != nil {
		return err
	}
	for _, q := range qdiscs {
		if q.Type() == "clsact" {
			return netlink.QdiscDel(q)
		}
	}
	return errors.New("there is no clsact qdisc")
}

// Others' filters on the same qdisc stay, and so does the qdisc.
func TestClsactForeignFilter(t *testing.T) {
	withoutTCX(t)
	for name, parent := range map[string]uint32{"ingress": netlink.HANDLE_MIN_INGRESS, "egress": netlink.HANDLE_MIN_EGRESS} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			foreign := passProgram(t, ebpf.SchedCLS, -1) // TC_ACT_UNSPEC: on to the next
			b.in(func() error {
				qdisc := &netlink.GenericQdisc{
					QdiscAttrs: netlink.QdiscAttrs{LinkIndex: b.target.Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT},
					QdiscType:  "clsact",
				}
				if err := netlink.QdiscAdd(qdisc); err != nil {
					return err
				}
				return netlink.FilterAdd(&netlink.BpfFilter{
					FilterAttrs: netlink.FilterAttrs{LinkIndex: b.target.Index, Parent: parent, Handle: 1, Priority: 1, Protocol: unix.ETH_P_ALL},
					Fd:          foreign.FD(), Name: "somebody_elses", DirectAction: true,
				})
			})
			for gen := uint64(1); gen <= 2; gen++ {
				b.install(gen, Classifier, udpRule(policy.Allow, 700))
				b.prune(map[int]uint64{b.target.Index: gen})
				if h := b.hooks(); h.Filters != 2 {
					t.Errorf("generation %d: %d filters, want ours and the foreign one", gen, h.Filters)
				}
				b.send(700, 10)
				b.wantRule(0, 10*gen)
			}
			b.in(b.pins.Remove)
			if h := b.hooks(); !h.Clsact || h.Filters != 1 {
				t.Errorf("after removal: hooks %+v, want the foreign filter to stay", h)
			}
		})
	}
}
