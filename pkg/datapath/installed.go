// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/cilium/ebpf"

	"github.com/untracked-cni/untracked/pkg/compiler"
	"github.com/untracked-cni/untracked/pkg/policy"
)

// Installed is what an interface has been given, as noted beside its pins when all of it was there. By it the next
// caller knows what is in force, whatever became of its own files.
type Installed struct {
	Attached
	Generation uint64
	Identity   Identity
}

// Identity tells whether two lists of rules come to the same programs, or at least to the same counters.
type Identity struct {
	// Counters is the same for lists of the same rules in the same order, whatever their named sets hold.
	Counters [16]byte
	// Programs is the same where the programs, their tables and their constants are.
	Programs [16]byte
}

// Identify tells what Install would make of a list of rules and its image. It only reads.
func (p *Pins) Identify(markBit uint32, rules []policy.Rule, image *compiler.Image) (Identity, error) {
	counters := sha256.New()
	fmt.Fprintf(counters, "entries of %d and %d bytes, from %d on\n", counterSize, ledgerSize, counterRules)
	for i, id := range policy.IDs(rules) {
		fmt.Fprintf(counters, "%x %d\n", id, rules[i].Action)
	}
	sum := counters.Sum(nil)

	programs := sha256.New()
	fmt.Fprintf(programs, "%x mark %x layout %+v\n", sum, markBit, image.Layout)
	programs.Write(image.Bytes)
	if policy.Logs(rules) {
		// Programs that report hold the maps for it.
		for _, path := range []string{p.events(), p.monitor()} {
			id, err := pinnedID(path)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return Identity{}, err
			}
			fmt.Fprintf(programs, "map %d\n", id)
		}
	}
	code, err := codeSum()
	if err != nil {
		return Identity{}, err
	}
	programs.Write(code)
	return Identity{[16]byte(sum), [16]byte(programs.Sum(nil))}, nil
}

// loaderVersion is raised when [Specialise] makes another program of the same object and options: what an older
// version has installed is then not taken for what this one would.
const loaderVersion = 1

// codeSum tells the programs of this version from those of others.
var codeSum = sync.OnceValues(func() ([]byte, error) {
	spec, err := embedded()
	if err != nil {
		return nil, err
	}
	h := sha256.New()
	fmt.Fprintf(h, "loader %d\n", loaderVersion)
	for _, kind := range []Kind{XDP, XDPFrags, Mark, TC} {
		var text []byte
		for _, ins := range spec.Programs[string(kind)].Instructions {
			text = binary.NativeEndian.AppendUint16(text, uint16(ins.OpCode))
			text = append(text, byte(ins.Dst), byte(ins.Src), byte(ins.Offset>>8), byte(ins.Offset))
			text = binary.NativeEndian.AppendUint64(text, uint64(ins.Constant))
			text = append(text, ins.Reference()...)
		}
		h.Write(text)
	}
	return h.Sum(nil), nil
})

// pinnedID is the kernel's number of a pinned map.
func pinnedID(path string) (ebpf.MapID, error) {
	m, err := loadMap(path)
	if err != nil {
		return 0, err
	}
	defer m.Close()
	return mapID(m)
}

func mapID(m *ebpf.Map) (ebpf.MapID, error) {
	info, err := m.Info()
	if err != nil {
		return 0, fmt.Errorf("read map info: %w", err)
	}
	id, ok := info.ID()
	if !ok {
		return 0, errors.New("read map id: not supported by this kernel")
	}
	return id, nil
}

// note is the one value of the map in which all this is noted: a BPF file system takes no files.
type note struct {
	Mode     [8]byte
	XDP, TC  uint32
	Clsact   bool
	Layer3   bool
	_        [6]byte
	Identity Identity
}

// noteName is what the map is called in the kernel.
const noteName = "untracked_note"

func newNote(t Target, a Attached, id Identity) *note {
	n := &note{XDP: a.XDP, TC: a.TC, Clsact: a.Clsact, Layer3: t.Layer3, Identity: id}
	copy(n.Mode[:], a.Mode)
	return n
}

func (n *note) attached() Attached {
	mode, _, _ := bytes.Cut(n.Mode[:], []byte{0})
	return Attached{Mode: Mode(mode), XDP: n.XDP, TC: n.TC, Clsact: n.Clsact}
}

// note notes that a generation is in force on an interface and complete: it comes last.
func (p *Pins) note(gen uint64, t Target, a Attached, id Identity) error {
	n := newNote(t, a, id)
	m, err := newMap(&ebpf.MapSpec{
		Name: noteName, Type: ebpf.Array, KeySize: 4, ValueSize: uint32(binary.Size(n)), MaxEntries: 1,
	})
	if err != nil {
		return err
	}
	defer m.Close()
	if err := m.Put(uint32(0), n); err != nil {
		return fmt.Errorf("write note: %w", err)
	}
	return pinMap(m, p.generation(t.Index, notePin, gen))
}

// Installed reads what is in force on an interface, and verifies that it is. The error wraps fs.ErrNotExist where nothing
// is, or where a caller was killed before all of it was.
func (p *Pins) Installed(t Target) (*Installed, error) {
	gen, n, err := p.newestNote(t.Index)
	if err != nil {
		return nil, err
	}
	if n.Layer3 != t.Layer3 {
		return nil, fmt.Errorf("interface %d has other frames now: %w", t.Index, fs.ErrNotExist)
	}
	for _, what := range generationPins {
		if _, err := os.Stat(p.generation(t.Index, what, gen)); err != nil {
			return nil, err
		}
	}
	a := n.attached()
	if _, err := os.Stat(filepath.Join(p.of(t.Index), xdpPin)); a.XDP == 0 && err == nil {
		return nil, fmt.Errorf("interface %d has an XDP program of another generation: %w", t.Index, fs.ErrNotExist)
	}
	return &Installed{a, gen, n.Identity}, p.Verify(t.Index, a)
}

// newestNote reads the note of an interface's newest generation that has one.
func (p *Pins) newestNote(ifindex int) (gen uint64, _ *note, err error) {
	pinned, err := p.generations(ifindex)
	if err != nil {
		return 0, nil, err
	}
	gens := pinned[notePin]
	if len(gens) == 0 {
		return 0, nil, fmt.Errorf("note of interface %d: %w", ifindex, fs.ErrNotExist)
	}
	gen = gens[len(gens)-1]
	m, err := loadMap(p.generation(ifindex, notePin, gen))
	if err != nil {
		return 0, nil, err
	}
	defer m.Close()
	n := &note{}
	if err := m.Lookup(uint32(0), n); err != nil { // also where another version's is of another size
		return 0, nil, fmt.Errorf("read note of interface %d: %w", ifindex, err)
	}
	return gen, n, nil
}

// countersOf returns the counters for a list of rules on an interface: those of its newest generation where they are of
// the same rules, which go on as if nothing had happened, or else new ones. The caller closes both.
//
// Counters that tell of a driver without metadata are not taken over: it gets another chance.
func (p *Pins) countersOf(ifindex int, rules []policy.Rule, id Identity) (counters, ledger *ebpf.Map, err error) {
	if gen, ok := p.sameCounters(ifindex, id); ok {
		counters, err = ebpf.LoadPinnedMap(p.generation(ifindex, countersPin, gen), nil)
		if err == nil {
			if ledger, err = ebpf.LoadPinnedMap(p.generation(ifindex, ledgerPin, gen), nil); err == nil {
				return counters, ledger, nil
			}
			counters.Close()
		}
	}
	return NewCounters(rules)
}

// sameCounters finds the newest generation's counters if they are for the same rules. An older generation's would be
// carried over to themselves.
func (p *Pins) sameCounters(ifindex int, id Identity) (gen uint64, ok bool) {
	gen, was, err := p.newestNote(ifindex)
	if err != nil || was.Identity.Counters != id.Counters {
		return 0, false
	}
	pinned, err := p.generations(ifindex)
	if err != nil || len(pinned[countersPin]) == 0 || slices.Max(pinned[countersPin]) != gen {
		return 0, false
	}
	lacks, err := p.LacksMetadata(ifindex, gen)
	return gen, err == nil && !lacks
}
