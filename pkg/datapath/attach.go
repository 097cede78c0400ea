// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Mode is how an interface's packets are classified.
type Mode string

const (
	// Native is XDP in the driver.
	Native Mode = "native"
	// Generic is XDP after the kernel has made an skb of the packet: for tests, as it may cost more than it saves.
	Generic Mode = "generic"
	// Classifier is the tc program, which needs no XDP.
	Classifier Mode = "tc"
)

const (
	xdpPin = "xdp"
	tcPin  = "tc"
)

// Target is an interface to install programs on.
type Target struct {
	Name   string
	Index  int
	Layer3 bool
	// XDPMode is how the program on the XDP hook is attached, empty where there is none.
	XDPMode Mode
	// ForeignXDP says that this program is somebody else's.
	ForeignXDP bool
}

// ErrForeignXDP says that the XDP hook is not ours to take.
var ErrForeignXDP = errors.New("another XDP program is attached")

// Attached names what holds an interface, so that a later look can tell whether it still does. A zero
// program ID means that there is none.
type Attached struct {
	Mode   Mode   `json:"mode"`
	XDP    uint32 `json:"xdp,omitempty"`
	TC     uint32 `json:"tc"`
	Clsact bool   `json:"clsact,omitempty"`
}

// Program is the ID of the program that classifies.
func (a Attached) Program() uint32 {
	if a.Mode == Classifier {
		return a.TC
	}
	return a.XDP
}

// errDefunct says that what a pin holds is attached to nothing any more.
var errDefunct = fmt.Errorf("no longer attached: %w", os.ErrNotExist)

// link opens an interface's pinned link. The error wraps fs.ErrNotExist where there is none, or none that is
// still attached to this interface: the number alone may be another interface's by now, in another network namespace.
func (p *Pins) link(ifindex int, name string) (link.Link, ebpf.ProgramID, error) {
	l, err := link.LoadPinnedLink(filepath.Join(p.of(ifindex), name), nil)
	if err != nil {
		return nil, 0, fmt.Errorf("open link %s of interface %d: %w", name, ifindex, err)
	}
	info, err := l.Info()
	if err != nil {
		l.Close()
		return nil, 0, fmt.Errorf("read link %s of interface %d: %w", name, ifindex, err)
	}
	at := uint32(0)
	if x := info.XDP(); x != nil {
		at = x.Ifindex
	} else if x := info.TCX(); x != nil {
		at = x.Ifindex
	}
	here := int(at) == ifindex
	if here {
		here, err = runsOn(ifindex, info)
	}
	if err != nil {
		l.Close()
		return nil, 0, fmt.Errorf("read the programs of interface %d: %w", ifindex, err)
	}
	if !here {
		l.Close()
		return nil, 0, fmt.Errorf("link %s of interface %d: %w", name, ifindex, errDefunct)
	}
	return l, info.Program, nil
}

// runsOn asks the interface whether it has a link's program. One that is not there has none.
func runsOn(ifindex int, l *link.Info) (bool, error) {
	if l.TCX() != nil {
		q, err := link.QueryPrograms(link.QueryOptions{Target: ifindex, Attach: ebpf.AttachTCXIngress})
		if err != nil {
			return false, unlessGone(err)
		}
		return slices.ContainsFunc(q.Programs, func(p link.AttachedProgram) bool { return p.ID == l.Program }), nil
	}
	on, err := netlink.LinkByIndex(ifindex)
	if err != nil {
		return false, unlessGone(err)
	}
	xdp := on.Attrs().Xdp
	return xdp != nil && xdp.ProgId == uint32(l.Program), nil
}

// unlessGone is nil where the error says that there is no such interface.
func unlessGone(err error) error {
	if errors.Is(err, unix.ENODEV) || errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	return err
}

// Verify returns an error that says what is missing where an interface does not have the programs in a. It
// only reads.
func (p *Pins) Verify(ifindex int, a Attached) error {
	check := func(name string, want uint32) error {
		l, id, err := p.link(ifindex, name)
		if err != nil {
			return err
		}
		l.Close()
		if uint32(id) != want {
			return fmt.Errorf("link %s of interface %d: program %d is attached, want %d", name, ifindex, id, want)
		}
		return nil
	}
	if a.XDP != 0 {
		if err := check(xdpPin, a.XDP); err != nil {
			return err
		}
	}
	if a.Clsact {
		return verifyClsact(ifindex, a.TC)
	}
	return check(tcPin, a.TC)
}

// OwnXDP returns the ID of the program that our link has on an interface's XDP hook, 0 if it has none.
func (p *Pins) OwnXDP(ifindex int) uint32 {
	l, id, err := p.link(ifindex, xdpPin)
	if err != nil {
		return 0
	}
	l.Close()
	return uint32(id)
}

// detach takes a pinned link off its interface. A link that is not there is no error.
func (p *Pins) detach(ifindex int, name string) error {
	path := filepath.Join(p.of(ifindex), name)
	l, err := link.LoadPinnedLink(path, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open link %s of interface %d: %w", name, ifindex, err)
	}
	defer l.Close()
	// Detaching at once, not when the last holder of the link closes it. Where the interface is gone or the
	// kernel cannot, unpinning and closing is all there is to do.
	_ = l.Detach()
	if err := l.Unpin(); err != nil {
		return fmt.Errorf("unpin link %s of interface %d: %w", name, ifindex, err)
	}
	return nil
}

// attachXDP puts an XDP program on the hook and returns it. load gives the program of a kind; the plain one runs
// on every driver, so its twin is tried only where the kernel refuses that, as it does with a large MTU. An
// attached link of ours is updated in place: no packet goes unclassified, and no driver resets its rings.
func (p *Pins) attachXDP(t Target, mode Mode, load func(Kind) (*ebpf.Program, error)) (*ebpf.Program, error) {
	kinds := []Kind{XDP, XDPFrags}
	if old, _, err := p.link(t.Index, xdpPin); err == nil && t.XDPMode == mode {
		defer old.Close()
		for _, kind := range kinds {
			program, err := load(kind)
			if err != nil && kind == XDPFrags {
				break // before Linux 5.18 there is no such kind
			}
			if err != nil {
				return nil, err
			}
			if old.Update(program) == nil {
				return program, nil
			}
		}
		// The kernel refuses to exchange the programs, say because an older version of this plugin loaded its
		// own with another attach type. A short gap is better than the wrong policy.
	} else if err == nil {
		old.Close()
	}
	if t.ForeignXDP {
		return nil, errors.Join(ErrForeignXDP, p.detach(t.Index, xdpPin))
	}
	former := p.former(t)
	defer former.Close() // nil has nothing to close
	if err := p.detach(t.Index, xdpPin); err != nil {
		return nil, err
	}
	flags := xdpFlags(mode)
	var first error
	refused := func(err error) {
		// The twin is mostly refused for the same reason, which needs no telling twice.
		if first == nil {
			first = err
		} else if first.Error() != err.Error() {
			first = fmt.Errorf("%w; with fragments: %w", first, err)
		}
	}
	for _, kind := range kinds {
		program, err := load(kind)
		if err != nil {
			refused(err)
			continue
		}
		l, err := link.AttachXDP(link.XDPOptions{Program: program, Interface: t.Index, Flags: flags})
		if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EEXIST) {
			return nil, ErrForeignXDP
		}
		if err != nil {
			refused(err)
			continue
		}
		defer l.Close()
		if err := l.Pin(filepath.Join(p.of(t.Index), xdpPin)); err != nil {
			return nil, fmt.Errorf("pin xdp link of %s: %w", t.Name, err)
		}
		return program, nil
	}
	return nil, errors.Join(fmt.Errorf("attach xdp to %s: %w", t.Name, first), p.restore(t, former))
}

func xdpFlags(mode Mode) link.XDPAttachFlags {
	if mode == Generic {
		return link.XDPGenericMode
	}
	return link.XDPDriverMode
}

// former is our program on an XDP hook, for when no other can be had; nil if there is none. The caller closes it.
func (p *Pins) former(t Target) *ebpf.Program {
	id := p.OwnXDP(t.Index)
	if id == 0 {
		return nil
	}
	program, err := ebpf.NewProgramFromID(ebpf.ProgramID(id))
	if err != nil {
		return nil
	}
	return program
}

// restore attaches the former program again.
func (p *Pins) restore(t Target, former *ebpf.Program) error {
	if former == nil {
		return nil
	}
	l, err := link.AttachXDP(link.XDPOptions{Program: former, Interface: t.Index, Flags: xdpFlags(t.XDPMode)})
	if err != nil {
		return fmt.Errorf("attach the former program to %s: %w", t.Name, err)
	}
	defer l.Close()
	return l.Pin(filepath.Join(p.of(t.Index), xdpPin))
}

// attachTC puts a program on the ingress of tc: by tcx (Linux 6.6), in front of everybody else's, or else as a
// filter of a clsact qdisc.
func (p *Pins) attachTC(t Target, program *ebpf.Program) (clsact bool, err error) {
	if old, _, err := p.link(t.Index, tcPin); err == nil {
		defer old.Close()
		if err := old.Update(program); err == nil {
			return false, nil
		}
	}
	if err := p.detach(t.Index, tcPin); err != nil {
		return false, err
	}
	l, err := attachTCX(t, program)
	if errors.Is(err, ebpf.ErrNotSupported) {
		if err := attachClsact(t.Index, program); err != nil {
			return false, fmt.Errorf("attach tc filter to %s: %w", t.Name, err)
		}
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("attach tcx to %s: %w", t.Name, err)
	}
	defer l.Close()
	if err := l.Pin(filepath.Join(p.of(t.Index), tcPin)); err != nil {
		return false, fmt.Errorf("pin tcx link of %s: %w", t.Name, err)
	}
	return false, nil
}

// attachTCX is a variable so that the tests can show what happens on a kernel without it.
var attachTCX = func(t Target, program *ebpf.Program) (link.Link, error) {
	return link.AttachTCX(link.TCXOptions{
		Interface: t.Index, Program: program, Attach: ebpf.AttachTCXIngress, Anchor: link.Head(),
	})
}

// detachTC takes our program off tc, however it was attached.
func (p *Pins) detachTC(ifindex int) error {
	if err := p.detach(ifindex, tcPin); err != nil {
		return err
	}
	return detachClsact(ifindex)
}

// ProgramName names any loaded program as bpftool does: its ID and name.
func ProgramName(id uint32) string {
	program, err := ebpf.NewProgramFromID(ebpf.ProgramID(id))
	if err != nil {
		return fmt.Sprintf("%d", id)
	}
	defer program.Close()
	info, err := program.Info()
	if err != nil {
		return fmt.Sprintf("%d", id)
	}
	return fmt.Sprintf("%d (%s)", id, info.Name)
}
