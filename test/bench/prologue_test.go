// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/untracked-cni/untracked/pkg/compiler"
	"github.com/untracked-cni/untracked/pkg/datapath"
	"github.com/untracked-cni/untracked/pkg/packet"
)

// TestPrologue runs programs a few times behind each prologue and looks at the last packet: it has the key whose turn
// it was, and nothing else was changed.
func TestPrologue(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for _, family := range []int{4, 6} {
		s := denyShape("test", randomNets(1000, family))
		before, err := s.frame()
		if err != nil {
			t.Fatal(err)
		}
		image, err := compiler.Compile(s.rules)
		if err != nil {
			t.Fatal(err)
		}
		tables, err := datapath.NewTables(image)
		if err != nil {
			t.Fatal(err)
		}
		defer tables.Close()
		for _, kind := range []datapath.Kind{datapath.XDP, datapath.TC} {
			for _, pace := range []pace{fixed, rotating, dependent} {
				b := packetBench{keys: map[*shape]*ebpf.Map{}}
				defer b.close()
				counters, ledger, err := datapath.NewCounters(s.rules)
				if err != nil {
					t.Fatal(err)
				}
				defer counters.Close()
				defer ledger.Close()
				spec, maps, err := datapath.Specialise(kind, datapath.ProgramOptions{
					MarkBit: 0x1000, Layout: image.Layout, Tables: tables, Counters: counters,
				})
				if err != nil {
					t.Fatal(err)
				}
				if err := b.prepend(spec.Programs[string(kind)], target{kind != datapath.TC, counters}, s, pace); err != nil {
					t.Fatal(err)
				}
				coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: maps})
				if err != nil {
					t.Fatalf("%s, pace %d, IPv%d: %v", kind, pace, family, err)
				}
				defer coll.Close()

				restore, err := pin() // the counters are each CPU's own
				if err != nil {
					t.Fatal(err)
				}
				const runs = 500
				after := make([]byte, len(before))
				_, err = coll.Programs[string(kind)].Run(&ebpf.RunOptions{Data: before, DataOut: after, Repeat: runs})
				restore()
				if err != nil {
					t.Fatal(err)
				}
				if err := s.check(counters, rotating); err != nil {
					t.Errorf("%s, pace %d, IPv%d: %v", kind, pace, family, err)
				}
				want := s.last
				if pace != fixed {
					want = s.keys[runs-1]
				}
				if got := keyOf(t, after); got != want {
					t.Errorf("%s, pace %d, IPv%d: after %d runs the packet has key %v, want %v", kind, pace, family, runs, got, want)
				}
				source, ports := source4, ports4
				n := 4
				if family == 6 {
					source, ports, n = source6, ports6, 16
				}
				for _, b := range [][]byte{before, after} {
					clear(b[source : source+n])
					clear(b[ports : ports+4])
				}
				if !bytes.Equal(before, after) {
					t.Errorf("%s, pace %d, IPv%d: more was changed than the key:\n%x\n%x", kind, pace, family, before, after)
				}
				if before, err = s.frame(); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

func keyOf(t *testing.T, frame []byte) key {
	t.Helper()
	p, reason := packet.Parse(frame)
	if p == nil {
		t.Fatalf("%x: %v", frame, reason)
	}
	return key{p.Src, p.SrcPort, p.DstPort}
}
