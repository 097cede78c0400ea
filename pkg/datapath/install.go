// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/untracked-cni/untracked/pkg/compiler"
	"github.com/untracked-cni/untracked/pkg/policy"
)

// Generation is one change of the node's policy: lists of rules that are put in force on the interfaces, one by one.
type Generation struct {
	pins   *Pins
	number uint64
	mark   uint32
	tables []*Tables
	// events are the maps for reports, once a list has needed them.
	events, monitor *ebpf.Map
}

// Tables is a list of rules in the kernel, in force nowhere yet.
type Tables struct {
	rules []policy.Rule
	image *compiler.Image
	m     *ebpf.Map
	// identity is found out by the first install: an image may be large.
	identity *Identity
}

// NewGeneration begins generation number. It touches nothing. The caller closes it.
func (p *Pins) NewGeneration(number uint64, markBit uint32) *Generation {
	return &Generation{pins: p, number: number, mark: markBit}
}

// Tables creates the lookup tables of a list of rules from its image. Lists that come to the same tables share one
// map, whatever their rules are called. They are kept by what they are installed on, and by the generation until it is
// closed.
func (g *Generation) Tables(rules []policy.Rule, image *compiler.Image) (*Tables, error) {
	for _, t := range g.tables {
		if t.image.Layout == image.Layout && bytes.Equal(t.image.Bytes, image.Bytes) {
			return &Tables{rules: rules, image: image, m: t.m}, nil
		}
	}
	m, err := NewTables(image)
	if err != nil {
		return nil, err
	}
	t := &Tables{rules: rules, image: image, m: m}
	g.tables = append(g.tables, t)
	return t, nil
}

// Close releases the generation's handles; the pins stay.
func (g *Generation) Close() error {
	var errs []error
	for _, t := range g.tables {
		errs = append(errs, t.m.Close())
	}
	if g.events != nil {
		errs = append(errs, g.events.Close(), g.monitor.Close())
	}
	return errors.Join(errs...)
}

// ErrNotPinned says that the BPF file system took no pins, so that nothing was tried on the interface.
var ErrNotPinned = errors.New("pin maps")

// Install puts tables in force on an interface in one of the modes, the first that can be had, and returns what is
// attached with the errors of the modes that could not. Only if none could is the final error set; the interface is
// then as it was.
//
// While it runs, an interface that already had a policy goes from the old generation to the new one in a single
// update of its link; no packet meets a mixture.
func (g *Generation) Install(target Target, modes []Mode, t *Tables) (Attached, []error, error) {
	if policy.Logs(t.rules) {
		if err := g.openEvents(); err != nil {
			return Attached{}, nil, err
		}
	}
	if t.identity == nil {
		identity, err := g.pins.Identify(g.mark, t.rules, t.image)
		if err != nil {
			return Attached{}, nil, err
		}
		t.identity = &identity
	}
	counters, ledger, err := g.pins.countersOf(target.Index, t.rules, *t.identity)
	if err != nil {
		return Attached{}, nil, err
	}
	defer counters.Close()
	defer ledger.Close()
	options := ProgramOptions{
		MarkBit: g.mark, Layer3: target.Layer3, Layout: t.image.Layout, Tables: t.m, Counters: counters,
		Ifindex: target.Index, Generation: g.number,
	}
	if policy.Logs(t.rules) {
		options.Events, options.Monitor = g.events, g.monitor
	}
	if err := g.pin(target.Index, t.m, counters, ledger); err != nil {
		return Attached{}, nil, fmt.Errorf("%w: %w", ErrNotPinned, errors.Join(err, g.unpin(target.Index)))
	}
	i := installer{g.pins, target, options}
	var refused []error
	for _, mode := range modes {
		var a Attached
		if mode == Classifier {
			a, err = i.installTC()
		} else {
			a, err = i.installXDP(mode)
		}
		if err == nil {
			// Without the note, all that happens is that it will be done again.
			_ = g.pins.note(g.number, target, a, *t.identity)
			return a, refused, nil
		}
		refused = append(refused, err)
	}
	return Attached{}, refused, errors.Join(append(slices.Clone(refused), g.unpin(target.Index))...)
}

// openEvents opens the maps for reports, or makes them.
func (g *Generation) openEvents() (err error) {
	if g.events == nil {
		g.events, g.monitor, err = g.pins.createEvents()
	}
	return err
}

// pin pins what an interface has of the generation.
func (g *Generation) pin(ifindex int, tables, counters, ledger *ebpf.Map) error {
	if err := g.pins.createInterface(ifindex); err != nil {
		return err
	}
	// The ledger before the counters: counters whose owner is unknown would be lost.
	for _, pin := range []struct {
		what string
		m    *ebpf.Map
	}{{tablesPin, tables}, {ledgerPin, ledger}, {countersPin, counters}} {
		if err := pinMap(pin.m, g.pins.generation(ifindex, pin.what, g.number)); err != nil {
			return err
		}
	}
	return nil
}

// unpin takes back what pin did, as far as it came.
func (g *Generation) unpin(ifindex int) error {
	var errs []error
	for _, what := range generationPins {
		if err := os.Remove(g.pins.generation(ifindex, what, g.number)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	_ = os.Remove(g.pins.of(ifindex)) // unless there is anything else in it
	return errors.Join(errs...)
}

type installer struct {
	pins    *Pins
	target  Target
	options ProgramOptions
}

// installXDP attaches the XDP program and, behind it, the one that turns metadata into the mark.
func (i *installer) installXDP(mode Mode) (Attached, error) {
	if i.target.Layer3 {
		return Attached{}, fmt.Errorf("%s has no Ethernet header, which XDP needs", i.target.Name)
	}
	programs := map[Kind]*ebpf.Program{}
	defer func() {
		for _, program := range programs {
			program.Close()
		}
	}()
	load := func(kind Kind) (program *ebpf.Program, err error) {
		if programs[kind] == nil {
			if program, err = LoadProgram(kind, i.options); err != nil {
				return nil, err
			}
			programs[kind] = program
		}
		return programs[kind], nil
	}
	mark, err := LoadProgram(Mark, i.options)
	if err != nil {
		return Attached{}, err
	}
	defer mark.Close()

	// XDP first: where it is refused nothing was changed, and where it takes over from the tc classifier, no packet
	// slips through between the two.
	xdp, err := i.pins.attachXDP(i.target, mode, load)
	if err != nil {
		return Attached{}, err
	}
	clsact, err := i.pins.attachTC(i.target, mark)
	if err != nil {
		return Attached{}, errors.Join(err, i.pins.detach(i.target.Index, xdpPin))
	}
	a := Attached{Mode: mode, Clsact: clsact}
	if a.XDP, err = programID(xdp); err != nil {
		return Attached{}, err
	}
	a.TC, err = programID(mark)
	return a, err
}

// installTC attaches the classifier to tc and takes our XDP program, if there is one, off its hook.
func (i *installer) installTC() (Attached, error) {
	program, err := LoadProgram(TC, i.options)
	if err != nil {
		return Attached{}, err
	}
	defer program.Close()
	clsact, err := i.pins.attachTC(i.target, program)
	if err != nil {
		return Attached{}, err
	}
	if err := i.pins.detach(i.target.Index, xdpPin); err != nil {
		return Attached{}, err
	}
	a := Attached{Mode: Classifier, Clsact: clsact}
	a.TC, err = programID(program)
	return a, err
}

func programID(p *ebpf.Program) (uint32, error) {
	info, err := p.Info()
	if err != nil {
		return 0, fmt.Errorf("read program info: %w", err)
	}
	id, ok := info.ID()
	if !ok {
		return 0, errors.New("read program id: not supported by this kernel")
	}
	return uint32(id), nil
}
