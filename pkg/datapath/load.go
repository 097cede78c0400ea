// SPDX-License-Identifier: Apache-2.0

// Package datapath puts compiled rules into the kernel: it loads the programs, pins their maps and links
// below one directory of a BPF file system, attaches them to interfaces, swaps generations and reads counters.
//
// What it does not do: decide. Which interfaces get which rules in which mode is planned in package node; what
// the rules mean is package policy's business; the table inet untracked is package nft's.
package datapath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/bpf"
	"github.com/untracked-cni/untracked/pkg/compiler"
)

// Kind is one of the programs in bpf/untracked.bpf.c.
type Kind string

const (
	// XDP classifies in the driver. Requires at least Linux 5.9.
	XDP Kind = "untracked_xdp"
	// XDPFrags is the same for drivers that hand over packets in several buffers, as they do with an MTU above
	// about 3500 bytes. Requires at least Linux 5.18.
	XDPFrags Kind = "untracked_xdpf"
	// Mark turns XDP's metadata into the mark, in tc.
	Mark Kind = "untracked_mark"
	// TC classifies in tc, without XDP.
	TC Kind = "untracked_tc"
)

func (k Kind) usesTables() bool { return k != Mark }

// ProgramOptions says how a program is specialised.
type ProgramOptions struct {
	// MarkBit is the bit that tells the raw table of an untracked packet.
	MarkBit uint32
	// Layer3 is for interfaces without an Ethernet header (TC only).
	Layer3 bool
	// Trace makes the program return its whole decision, see DecodeTrace. Such a program is for
	// BPF_PROG_TEST_RUN and must never be attached.
	Trace bool
	// Layout describes the image in Tables.
	Layout compiler.Layout
	// Tables and Counters are the maps the program uses; Mark needs neither.
	Tables, Counters *ebpf.Map
	// Events and Monitor take reports of packets that Log rules match, of this interface and generation. Without
	// them nothing is reported. (optional)
	Events, Monitor *ebpf.Map
	Ifindex         int
	Generation      uint64
}

// ErrNotLoaded says that the kernel refused a program itself, on whatever interface.
var ErrNotLoaded = errors.New("load program")

// LoadProgram verifies one program and loads it into the kernel. The caller closes it.
func LoadProgram(kind Kind, o ProgramOptions) (*ebpf.Program, error) {
	spec, maps, err := Specialise(kind, o)
	if err != nil {
		return nil, err
	}
	return loadFitted(spec, kind, maps)
}

// Specialise is LoadProgram up to the kernel: it returns the one program with its constants set, and the maps that are
// to replace those of the same names. It is for who wants to put something in front of the program, as the benchmark
// does.
func Specialise(kind Kind, o ProgramOptions) (*ebpf.CollectionSpec, map[string]*ebpf.Map, error) {
	spec, err := programSpec(kind)
	if err != nil {
		return nil, nil, err
	}
	maps := map[string]*ebpf.Map{}
	if kind.usesTables() {
		maps[tablesMap], maps[countersMap] = o.Tables, o.Counters
	}
	if o.Events != nil && kind.usesTables() {
		maps[eventsMap], maps[monitorMap] = o.Events, o.Monitor
	}
	for name, value := range map[string]any{
		"mark": o.MarkBit, "layer3": boolByte(o.Layer3), "trace": boolByte(o.Trace), "layout": o.Layout,
		"reporting": boolByte(o.Events != nil), "ifindex": uint32(o.Ifindex), "generation": o.Generation,
	} {
		if err := spec.Variables[name].Set(value); err != nil {
			return nil, nil, fmt.Errorf("specialise program %s: %w", kind, err)
		}
	}
	fit(spec, kind, maps)
	return spec, maps, nil
}

// The maps' names in bpf/maps.h and bpf/event.h.
const (
	tablesMap   = "tables"
	countersMap = "counters"
	eventsMap   = "events"
	monitorMap  = "monitor"
	budgetMap   = "budget"
)

// embedded is the object with all programs and maps. It takes milliseconds to parse, and is shared: whoever changes
// anything of it takes a copy.
var embedded = sync.OnceValues(func() (*ebpf.CollectionSpec, error) {
	spec, err := bpf.LoadUntracked()
	if err != nil {
		return nil, fmt.Errorf("read the embedded programs: %w", err)
	}
	return spec, nil
})

// programSpec is a copy of one program of the embedded object, with all of its maps.
func programSpec(kind Kind) (*ebpf.CollectionSpec, error) {
	all, err := embedded()
	if err != nil {
		return nil, err
	}
	one := *all
	one.Programs = map[string]*ebpf.ProgramSpec{string(kind): all.Programs[string(kind)]}
	return one.Copy(), nil
}

// loadSpec loads a specialised program. It is given the maps that others use, too; where none are given, the program's
// code for them must be dead.
func loadSpec(spec *ebpf.CollectionSpec, kind Kind, maps map[string]*ebpf.Map) (*ebpf.Program, error) {
	fit(spec, kind, maps)
	return loadFitted(spec, kind, maps)
}

// fit finishes a specialised program for the maps that it is to be given.
func fit(spec *ebpf.CollectionSpec, kind Kind, maps map[string]*ebpf.Map) {
	if m := maps[tablesMap]; m != nil {
		spec.Maps[tablesMap].ValueSize = m.ValueSize()
		spec.Maps[countersMap].MaxEntries = maps[countersMap].MaxEntries()
	} else {
		removeMaps(spec, kind, tablesMap, countersMap)
	}
	if maps[eventsMap] == nil {
		removeMaps(spec, kind, eventsMap, monitorMap, budgetMap)
	}
	inlineLayout(spec, kind)
}

// loadFitted verifies and loads.
func loadFitted(spec *ebpf.CollectionSpec, kind Kind, maps map[string]*ebpf.Map) (*ebpf.Program, error) {
	var coll *ebpf.Collection
	err := withMemlock(func() (err error) {
		coll, err = ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: maps})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrNotLoaded, kind, err)
	}
	defer coll.Close()
	return coll.DetachProgram(string(kind)), nil
}

// MAGIC_NUMBER and MAGIC_TABLE of bpf/maps.h.
const (
	magicNumber = 0x7ab1e000
	magicTable  = 0x7ab1e000_7ab1e000
)

// inlineLayout puts the numbers of the layout, which is set already, where a program uses them. A move of the magic
// number plus a number's place in the layout becomes a move of that number; a 64-bit one of the magic table plus that
// place becomes the address of what is so far behind the beginning of the tables.
func inlineLayout(spec *ebpf.CollectionSpec, kind Kind) {
	numbers := spec.Variables["layout"].Value
	instructions := spec.Programs[string(kind)].Instructions
	for i, ins := range instructions {
		number := func(magic int64) (n uint32, found bool) {
			place := ins.Constant - magic
			if found = 0 <= place && place < int64(len(numbers)); found {
				n = binary.NativeEndian.Uint32(numbers[place:])
			}
			return n, found
		}
		switch ins.OpCode {
		case asm.Mov.Op(asm.ImmSource):
			if n, found := number(magicNumber); found {
				instructions[i].Constant = int64(n)
			}
		case asm.LoadImmOp(asm.DWord):
			if n, found := number(magicTable); found && ins.Src == asm.R0 {
				value := asm.LoadMapValue(ins.Dst, 0, n)
				value.Metadata = ins.Metadata
				instructions[i] = value.WithReference(tablesMap)
			}
		}
	}
}

// removeMaps has the program do without some maps. The kernel wants every map that any instruction names, even where
// the constants make it dead code; there the name becomes a 0. Were it not dead, the verifier would refuse it.
func removeMaps(spec *ebpf.CollectionSpec, kind Kind, names ...string) {
	instructions := spec.Programs[string(kind)].Instructions
	for _, name := range names {
		delete(spec.Maps, name)
		for i, ins := range instructions {
			if ins.IsLoadFromMap() && ins.Reference() == name {
				null := asm.LoadImm(ins.Dst, 0, asm.DWord)
				null.Metadata = ins.Metadata
				instructions[i] = null.WithReference("")
			}
		}
	}
}

// What the maps that user space makes are called in the kernel, which cuts names after 15 bytes.
const (
	tablesName   = "untracked_tabl"
	countersName = "untracked_cnt"
	ledgerName   = "untracked_ledg"
	eventsName   = "untracked_event"
	monitorName  = "untracked_monit"
)

// NewTables creates the map of a generation's lookup tables and fills it. The caller closes it.
func NewTables(im *compiler.Image) (*ebpf.Map, error) {
	spec := &ebpf.MapSpec{
		Name: tablesName, Type: ebpf.Array, KeySize: 4, ValueSize: uint32(len(im.Bytes)), MaxEntries: 1,
		Flags: unix.BPF_F_RDONLY_PROG | unix.BPF_F_MMAPABLE,
	}
	m, err := newMap(spec)
	if err != nil {
		if errors.Is(err, unix.E2BIG) {
			return nil, fmt.Errorf("create map of %d bytes: this kernel takes at most 4 MiB a value; use a newer kernel or a smaller policy: %w", len(im.Bytes), err)
		}
		return nil, err
	}
	if err := m.Put(uint32(0), im.Bytes); err != nil {
		m.Close()
		return nil, fmt.Errorf("fill the lookup tables: %w", err)
	}
	return m, nil
}

func newMap(spec *ebpf.MapSpec) (m *ebpf.Map, err error) {
	err = withMemlock(func() (err error) {
		m, err = ebpf.NewMap(spec)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("create map %s: %w", spec.Name, err)
	}
	return m, nil
}

// withMemlock calls create and, where it is not permitted, once more with the limit on locked memory lifted:
// before Linux 5.11 that limit holds for BPF objects. (cilium/ebpf's rlimit package would do it, but probes at
// the start of every process that imports it.)
func withMemlock(create func() error) error {
	err := create()
	if !errors.Is(err, unix.EPERM) {
		return err
	}
	unlimited := unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
	if unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unlimited) != nil {
		return fmt.Errorf("%w (CAP_BPF and CAP_NET_ADMIN, or root, are needed; before Linux 5.11 also a higher RLIMIT_MEMLOCK)", err)
	}
	return create()
}

func boolByte(b bool) uint8 {
	if b {
		return 1
	}
	return 0
}
