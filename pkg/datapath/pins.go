// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Pins is our directory in a BPF file system:
//
//	untracked/
//	    interfaces/2/            one directory for each interface index
//	        tables-7               the lookup tables of generation 7; interfaces with the same list share one map
//	        counters-7, ledger-7   what its programs count, and whose counts they are: the same maps as of generation 6
//	                               where the rules are, but for what named sets hold
//	        note-7                 that generation 7 is complete, and what it is made of
//	        xdp, tc                links: while they are pinned, the programs stay attached
//	    events, monitor          where Log rules report packets to, and until when somebody listens; where some rule logs
//
// Names have no dots, which bpffs forbids, and no interface names, which may have any character. Everything is
// complete before the link that makes it effective is updated, so a caller killed at any point leaves either
// the old generation in force or the new one, and names from which the next call sees what is left to do.
type Pins struct{ dir string }

// PinsAt returns the pins below the BPF file system mounted at bpffs. It touches nothing.
func PinsAt(bpffs string) *Pins { return &Pins{filepath.Join(bpffs, "untracked")} }

// Dir is the directory all pins are in.
func (p *Pins) Dir() string { return p.dir }

// Exist reports whether the directory is there, in this mount namespace.
func (p *Pins) Exist() bool {
	_, err := os.Stat(p.dir)
	return err == nil
}

// Create makes the directory, for root's eyes only.
func (p *Pins) Create() error {
	for _, dir := range []string{p.dir, p.interfaces()} {
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("create pin directory: %w", err)
		}
	}
	return nil
}

func (p *Pins) createInterface(ifindex int) error {
	if err := os.Mkdir(p.of(ifindex), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("create pin directory: %w", err)
	}
	return nil
}

// The pins that each generation has of its own.
const (
	tablesPin   = "tables"
	countersPin = "counters"
	ledgerPin   = "ledger"
	notePin     = "note"
)

var generationPins = []string{tablesPin, countersPin, ledgerPin, notePin}

func (p *Pins) interfaces() string    { return filepath.Join(p.dir, "interfaces") }
func (p *Pins) of(ifindex int) string { return filepath.Join(p.interfaces(), strconv.Itoa(ifindex)) }

func (p *Pins) generation(ifindex int, what string, gen uint64) string {
	return filepath.Join(p.of(ifindex), what+"-"+strconv.FormatUint(gen, 10))
}

// Interfaces lists the interface indexes that have pins, in order.
func (p *Pins) Interfaces() ([]int, error) {
	entries, err := os.ReadDir(p.interfaces())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list pins: %w", err)
	}
	var out []int
	for _, e := range entries {
		if n, err := strconv.Atoi(e.Name()); err == nil {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out, nil
}

// LastGeneration is the highest generation that any pin is of, 0 if there is none.
func (p *Pins) LastGeneration() (uint64, error) {
	indexes, err := p.Interfaces()
	if err != nil {
		return 0, err
	}
	last := uint64(0)
	for _, i := range indexes {
		pinned, err := p.generations(i)
		if err != nil {
			return 0, err
		}
		for _, gens := range pinned {
			last = max(last, slices.Max(gens))
		}
	}
	return last, nil
}

// generations lists the generations that an interface has pins of, ascending, by what the pins are.
func (p *Pins) generations(ifindex int) (map[string][]uint64, error) {
	entries, err := os.ReadDir(p.of(ifindex))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list pins: %w", err)
	}
	out := map[string][]uint64{}
	for _, e := range entries {
		what, number, _ := strings.Cut(e.Name(), "-")
		if g, err := strconv.ParseUint(number, 10, 64); err == nil && slices.Contains(generationPins, what) {
			out[what] = append(out[what], g)
		}
	}
	for _, gens := range out {
		slices.Sort(gens)
	}
	return out, nil
}

// VerifyGenerations returns an error that says which pin is missing, or was left behind by a caller that was
// killed. interfaces are the indexes that may have pins, with the generation in force there, 0 for none. It only
// reads names.
func (p *Pins) VerifyGenerations(interfaces map[int]uint64) error {
	pinned, err := p.Interfaces()
	if err != nil {
		return err
	}
	for _, i := range pinned {
		if _, known := interfaces[i]; !known {
			return fmt.Errorf("pins of interface %d are there, which the policy does not cover", i)
		}
	}
	for i, gen := range interfaces {
		if gen == 0 {
			continue
		}
		pinned, err := p.generations(i)
		if err != nil {
			return err
		}
		for _, what := range generationPins {
			switch gens := pinned[what]; {
			case !slices.Contains(gens, gen):
				return fmt.Errorf("pin %s is missing", p.generation(i, what, gen))
			case len(gens) > 1:
				return fmt.Errorf("pins %s-* of several generations are there, but one is in force", filepath.Join(p.of(i), what))
			}
		}
	}
	return nil
}

// pinMap pins m at path, beside where else it may be pinned, replacing what an earlier call that was killed may have
// left there.
func pinMap(m *ebpf.Map, path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove stale pin: %w", err)
	}
	// A handle knows one pin only, and would move it.
	other, err := m.Clone()
	if err != nil {
		return fmt.Errorf("pin %s: %w", filepath.Base(path), err)
	}
	defer other.Close()
	if err := other.Pin(path); err != nil {
		return fmt.Errorf("pin %s: %w", filepath.Base(path), err)
	}
	return nil
}

// Prune removes, for each interface, the pins of all generations but the one in keep. Interfaces that are not in
// keep lose their programs. events says that there are still rules that log.
func (p *Pins) Prune(keep map[int]uint64, events bool) error {
	var errs []error
	pinned, err := p.Interfaces()
	if err != nil {
		return err
	}
	for _, i := range pinned {
		if gen, ok := keep[i]; ok {
			errs = append(errs, p.removeGenerations(i, gen))
		} else {
			errs = append(errs, p.removeInterface(i))
		}
	}
	if !events {
		errs = append(errs, p.removeEvents())
	}
	return errors.Join(errs...)
}

func (p *Pins) removeGenerations(ifindex int, keep uint64) error {
	pinned, err := p.generations(ifindex)
	if err != nil {
		return err
	}
	var errs []error
	for what, gens := range pinned {
		for _, g := range gens {
			if g != keep {
				errs = append(errs, os.Remove(p.generation(ifindex, what, g)))
			}
		}
	}
	return errors.Join(errs...)
}

// removeInterface detaches our programs from an interface, alive or gone, and removes its pins.
func (p *Pins) removeInterface(ifindex int) error {
	if err := p.detach(ifindex, xdpPin); err != nil {
		return err
	}
	if err := p.detachTC(ifindex); err != nil {
		return err
	}
	if err := os.RemoveAll(p.of(ifindex)); err != nil {
		return fmt.Errorf("remove pins of interface %d: %w", ifindex, err)
	}
	return nil
}

// Remove detaches everything and removes the directory. Removing nothing is no error.
func (p *Pins) Remove() error {
	indexes, err := p.Interfaces()
	if err != nil {
		return err
	}
	var errs []error
	for _, i := range indexes {
		errs = append(errs, p.removeInterface(i))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := os.RemoveAll(p.dir); err != nil {
		return fmt.Errorf("remove pins: %w", err)
	}
	return nil
}

// loadMap opens a pinned map for reading.
func loadMap(path string) (*ebpf.Map, error) {
	m, err := ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return nil, fmt.Errorf("open pinned %s: %w", filepath.Base(path), err)
	}
	return m, nil
}

// Counts reads what an interface has counted up to now, also while one generation takes over from another. It returns an
// error wrapping fs.ErrNotExist if the interface has no counters.
func (p *Pins) Counts(ifindex int) (Counts, error) {
	var a *account
	var err error
	for range 100 {
		a, err = p.accounts(ifindex, func(*ebpf.Map, *account) error { return nil })
		if !errors.Is(err, fs.ErrNotExist) {
			break // or else what was listed has gone, and what took over from it is there by now
		}
	}
	if err != nil {
		return Counts{}, err
	}
	if a == nil {
		return Counts{}, fmt.Errorf("counters of interface %d: %w", ifindex, fs.ErrNotExist)
	}
	clock, err := readClock() // after the counters, as nothing is counted in the future
	if err != nil {
		return Counts{}, err
	}
	return newCounts(a, clock), nil
}

// accounts goes through an interface's counters, generation by generation, and returns the newest account, nil if there
// is none. take is called for each that takes over from another.
func (p *Pins) accounts(ifindex int, take func(ledger *ebpf.Map, a *account) error) (newest *account, err error) {
	pinned, err := p.generations(ifindex)
	if err != nil {
		return nil, err
	}
	var last ebpf.MapID
	gens := pinned[countersPin]
	for i, gen := range gens {
		counters, ledger, err := p.openCounters(ifindex, gen)
		if errors.Is(err, fs.ErrNotExist) && i < len(gens)-1 {
			continue // a caller was killed between the two pins, and nothing was ever counted; or they go at this moment
		}
		if err != nil {
			return nil, err
		}
		before := newest
		id, err := mapID(counters)
		if err == nil && id != last { // or else they are shared
			newest, err = openAccount(counters, ledger, before)
			if err == nil && before != nil {
				err = take(ledger, newest)
			}
		}
		counters.Close()
		ledger.Close()
		if err != nil {
			return nil, fmt.Errorf("counters of generation %d: %w", gen, err)
		}
		last = id
	}
	return newest, nil
}

// LacksMetadata reports whether an interface's driver has refused, in a generation, to carry the verdict from
// XDP to tc.
func (p *Pins) LacksMetadata(ifindex int, gen uint64) (bool, error) {
	m, err := loadMap(p.generation(ifindex, countersPin, gen))
	if err != nil {
		return false, err
	}
	defer m.Close()
	var perCPU []tally
	if err := m.Lookup(uint32(counterNoMetadata), &perCPU); err != nil {
		return false, fmt.Errorf("read counters: %w", err)
	}
	return slices.ContainsFunc(perCPU, func(c tally) bool { return c.Packets > 0 }), nil
}

func (p *Pins) openCounters(ifindex int, gen uint64) (counters, ledger *ebpf.Map, err error) {
	if counters, err = loadMap(p.generation(ifindex, countersPin, gen)); err != nil {
		return nil, nil, err
	}
	// The ledger is written by carry, so it is opened for both.
	ledger, err = ebpf.LoadPinnedMap(p.generation(ifindex, ledgerPin, gen), nil)
	if err != nil {
		counters.Close()
		return nil, nil, fmt.Errorf("open pinned ledger: %w", err)
	}
	return counters, ledger, nil
}

// Carry completes the counters of interfaces after a swap: generation by generation, each takes over what the one
// before it had counted. It may be repeated, and picks up where a killed caller stopped.
func (p *Pins) Carry(ifindexes ...int) error {
	var errs []error
	carry := func(ifindex int, take func(ledger *ebpf.Map, a *account) error) {
		if _, err := p.accounts(ifindex, take); err != nil {
			errs = append(errs, fmt.Errorf("carry counters of interface %d: %w", ifindex, err))
		}
	}
	var several []int
	for _, i := range ifindexes {
		carry(i, func(*ebpf.Map, *account) error {
			several = append(several, i)
			return nil
		})
	}
	if len(several) > 0 {
		awaitPrograms()
	}
	for _, i := range several {
		carry(i, func(ledger *ebpf.Map, a *account) error { return writeLedger(ledger, a.entries) })
	}
	return errors.Join(errs...)
}

// awaitPrograms waits until programs that were taken off their hooks have done with the packets they were at, some
// milliseconds: what they count after they were read would be lost.
func awaitPrograms() {
	const global = 1 // MEMBARRIER_CMD_GLOBAL, which waits for an RCU grace period, as programs run in
	if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, global, 0, 0); errno != 0 {
		time.Sleep(50 * time.Millisecond) // with nohz_full the kernel does not offer it
	}
}
