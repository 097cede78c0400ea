// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/pkg/compiler"
	"github.com/untracked-cni/untracked/pkg/datapath"
	"github.com/untracked-cni/untracked/pkg/frame"
	"github.com/untracked-cni/untracked/pkg/policy"
)

// Counters below this one are not of rules (enum counter_index in bpf/maps.h).
const counterRules = 8

// benchPackets measures the programs as they are attached to interfaces, behind a prologue.
func benchPackets(e effort) ([]Row, error) {
	b := packetBench{effort: e, keys: map[*shape]*ebpf.Map{}}
	defer b.close()
	restore, err := pin()
	if err != nil {
		return nil, err
	}
	defer restore()

	if err := b.addEmpty(); err != nil {
		return nil, err
	}
	for _, add := range []func() error{b.addRules, b.addSets, b.addLists} {
		if err := add(); err != nil {
			return nil, err
		}
	}
	return interleave(b.subjects, e.rounds, "ns", emptyCase)
}

// pin keeps this goroutine on the last CPU, the one that usually has the fewest interrupts.
func pin() (restore func(), err error) {
	runtime.LockOSThread()
	var before, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return nil, os.NewSyscallError("sched_getaffinity", err)
	}
	for cpu := range 1024 {
		if before.IsSet(cpu) {
			one.Zero()
			one.Set(cpu)
		}
	}
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return nil, os.NewSyscallError("sched_setaffinity", err)
	}
	return func() {
		if unix.SchedSetaffinity(0, &before) == nil {
			runtime.UnlockOSThread()
		}
	}, nil
}

type packetBench struct {
	effort
	subjects []subject
	closers  []interface{ Close() error }
	keys     map[*shape]*ebpf.Map
}

func (b *packetBench) close() {
	for _, c := range b.closers {
		c.Close()
	}
}

// variant is one way to run our program on a shape.
type variant struct {
	subject
	kind datapath.Kind
	pace pace
}

// addOurs compiles the rules of a shape and adds variants of it. If they are refused, the rows say so.
func (b *packetBench) addOurs(s *shape, variants ...variant) error {
	progress("preparing %s", s.name)
	image, err := compiler.Compile(s.rules)
	if err != nil {
		for _, v := range variants {
			v.note = "refused: " + err.Error()
			b.subjects = append(b.subjects, v.subject)
		}
		return nil
	}
	tables, err := datapath.NewTables(image)
	if err != nil {
		return err
	}
	b.closers = append(b.closers, tables)
	for _, v := range variants {
		counters, ledger, err := datapath.NewCounters(s.rules)
		if err != nil {
			return err
		}
		b.closers = append(b.closers, counters, ledger)
		spec, maps, err := datapath.Specialise(v.kind, datapath.ProgramOptions{
			MarkBit: 0x1000, Layout: image.Layout, Tables: tables, Counters: counters,
		})
		if err != nil {
			return err
		}
		t := target{xdp: v.kind != datapath.TC, counters: counters}
		if err := b.addSpec(v.subject, spec, string(v.kind), maps, t, s, v.pace); err != nil {
			return fmt.Errorf("%s: %w", v.name, err)
		}
	}
	return nil
}

// addPeer adds a peer with the lines of a shape.
func (b *packetBench) addPeer(p peer, s *shape, sub subject, pace pace) error {
	progress("preparing %s", sub.name)
	counters, ledger, err := datapath.NewCounters(s.rules)
	if err != nil {
		return err
	}
	b.closers = append(b.closers, counters, ledger)
	spec, maps, err := p.spec(s)
	if err != nil {
		return fmt.Errorf("%s: %w", sub.name, err)
	}
	for _, m := range maps {
		b.closers = append(b.closers, m)
	}
	spec.Maps["counters"].MaxEntries = counters.MaxEntries()
	maps["counters"] = counters
	if err := b.addSpec(sub, spec, string(p), maps, target{xdp: true, counters: counters}, s, pace); err != nil {
		return fmt.Errorf("%s: %w", sub.name, err)
	}
	return nil
}

// target is what a prologue and the check of the counts need to know of the program behind.
type target struct {
	xdp      bool
	counters *ebpf.Map
}

func (b *packetBench) addSpec(sub subject, spec *ebpf.CollectionSpec, name string, maps map[string]*ebpf.Map, t target, s *shape, pace pace) error {
	if err := b.prepend(spec.Programs[name], t, s, pace); err != nil {
		return err
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: maps})
	if err != nil {
		return fmt.Errorf("load: %w", err)
	}
	defer coll.Close()
	program := coll.DetachProgram(name)
	b.closers = append(b.closers, program)
	if err := b.add(sub, program, s); err != nil {
		return err
	}
	return s.check(t.counters, pace)
}

func (b *packetBench) prepend(spec *ebpf.ProgramSpec, t target, s *shape, pace pace) error {
	if pace == fixed && !t.xdp {
		return nil // nothing to prepare
	}
	if pace != fixed && b.keys[s] == nil {
		keys, err := newKeys(s.keys)
		if err != nil {
			return err
		}
		b.closers = append(b.closers, keys)
		b.keys[s] = keys
	}
	p := prologue{
		xdp: t.xdp, pace: pace, keys: b.keys[s], n: len(s.keys), ipv6: s.last.src.Is6(),
		counters: t.counters, entry: uint32(counterRules + s.first),
	}
	return p.prepend(spec)
}

// check fails unless all packets so far were counted by rules of the shape.
func (s *shape) check(counters *ebpf.Map, pace pace) error {
	first := counterRules + s.first
	if pace == fixed {
		first = counterRules + s.lines[len(s.lines)-1].rule
	}
	var counted uint64
	for i := range counters.MaxEntries() {
		var cells []struct{ Packets, Bytes, Last uint64 }
		if err := counters.Lookup(i, &cells); err != nil {
			return fmt.Errorf("read counters: %w", err)
		}
		for _, c := range cells {
			if c.Packets > 0 && int(i) < first {
				return fmt.Errorf("%d packets were counted by entry %d, want all of them from %d on", c.Packets, i, first)
			}
			counted += c.Packets
		}
	}
	if counted == 0 {
		return errors.New("no packet was counted by any rule")
	}
	return nil
}

// add has a program measured on the last packet of a shape. First it runs long enough to see how often a sample can.
func (b *packetBench) add(sub subject, p *ebpf.Program, s *shape) error {
	frame, err := s.frame()
	if err != nil {
		return err
	}
	const trial = 20_000
	each, err := nanoseconds(p, frame, trial)
	if err != nil {
		return err
	}
	repeat := b.repeat
	if longest := b.sample / time.Duration(max(1, each)); repeat > int(longest) {
		repeat = max(trial, int(longest))
	}
	sub.sample = func() (float64, error) { return nanoseconds(p, frame, repeat) }
	b.subjects = append(b.subjects, sub)
	return nil
}

// nanoseconds is what one run of p on a frame takes: CPU time of this thread, so that neither other processes count nor
// the RCU grace periods that the kernel waits for at the begin and the end. The kernel's own figure is of whole nanoseconds.
func nanoseconds(p *ebpf.Program, frame []byte, repeat int) (float64, error) {
	begin := threadTime()
	// Interrupted by a signal, it begins anew.
	_, _, err := p.Benchmark(frame, repeat, func() { begin = threadTime() })
	return float64(threadTime()-begin) / float64(repeat), err
}

func threadTime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
		panic(err) // it is there since Linux 2.6.12
	}
	return time.Duration(t.Nano())
}

// frame is a packet with the last key, no shorter than Ethernet has it.
func (s *shape) frame() ([]byte, error) {
	host := "192.0.2.1"
	if s.last.src.Is6() {
		host = "[2001:db8::1]"
	}
	f, err := frame.Words([]string{policy.ProtocolName(policy.TCP), netip.AddrPortFrom(s.last.src, s.last.sport).String(),
		fmt.Sprintf("%s:%d", host, s.last.dport)})
	if err != nil {
		return nil, err
	}
	return append(f.Ethernet, make([]byte, max(0, 60-len(f.Ethernet)))...), nil
}
