// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"

	"github.com/untracked-cni/untracked/pkg/compiler"
	"github.com/untracked-cni/untracked/pkg/policy"
)

// Generation is a policy's lookup tables, complete in the kernel and pinned, in force nowhere yet.
type Generation struct {
	pins   *Pins
	number uint64
	rules  []policy.Rule
	image  *compiler.Image
	tables *ebpf.Map
	mark   uint32
}

// NewGeneration creates and pins the tables of generation number. The caller closes it.
func (p *Pins) NewGeneration(number uint64, rules []policy.Rule, image *compiler.Image, markBit uint32) (*Generation, error) {
	tables, err := NewTables(image)
	if err != nil {
		return nil, err
	}
	if err := pinMap(tables, p.tables(number)); err != nil {
		tables.Close()
		return nil, err
	}
	return &Generation{p, number, rules, image, tables, markBit}, nil
}

// Close releases the generation's handles; the pins stay.
func (g *Generation) Close() error { return g.tables.Close() }

// Discard removes the pins of a generation that was installed nowhere.
func (g *Generation) Discard() error { return os.Remove(g.pins.tables(g.number)) }

// Install puts the generation in force on an interface in one of the modes, the first that can be had, and
// returns what is attached with the errors of the modes that could not. Only if none could is the final error set;
// the interface is then as it was.
//
// While it runs, an interface that already had a policy goes from the old generation to the new one in a single
// update of its link; no packet meets a mixture.
func (g *Generation) Install(t Target, modes []Mode) (Attached, []error, error) {
	if err := g.pins.createInterface(t.Index); err != nil {
		return Attached{}, nil, err
	}
	counters, ledger, err := NewCounters(g.rules)
	if err != nil {
		return Attached{}, nil, err
	}
	defer counters.Close()
	defer ledger.Close()
	dir := g.pins.of(t.Index)
	// The ledger first: counters whose owner is unknown would be lost.
	if err := pinMap(ledger, generationPath(dir, "ledger", g.number)); err != nil {
		return Attached{}, nil, err
	}
	if err := pinMap(counters, generationPath(dir, "counters", g.number)); err != nil {
		return Attached{}, nil, err
	}
	i := installer{g, t, ProgramOptions{
		MarkBit: g.mark, Layer3: t.Layer3, Layout: g.image.Layout, Tables: g.tables, Counters: counters,
	}}
	var refused []error
	for _, mode := range modes {
		var a Attached
		if mode == Classifier {
			a, err = i.installTC()
		} else {
			a, err = i.installXDP(mode)
		}
		if err == nil {
			return a, refused, nil
		}
		refused = append(refused, err)
	}
	for _, what := range []string{"counters", "ledger"} {
		refused = append(refused, os.Remove(generationPath(dir, what, g.number)))
	}
	return Attached{}, refused, errors.Join(refused...)
}

type installer struct {
	*Generation
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
