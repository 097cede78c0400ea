// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"os"
	"reflect"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/untracked-cni/untracked/bpf"
	"github.com/untracked-cni/untracked/pkg/compiler"
	"github.com/untracked-cni/untracked/pkg/packet"
	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/pkg/policy/policytest"
)

func requireRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: it loads BPF programs")
	}
}

// loaded is one program with maps of its own.
type loaded struct {
	*ebpf.Program
	tables, counters, ledger *ebpf.Map
}

func load(t testing.TB, kind Kind, rules []policy.Rule, o ProgramOptions) *loaded {
	t.Helper()
	image, err := compiler.Compile(rules)
	if err != nil {
		t.Fatal(err)
	}
	l := &loaded{}
	if l.tables, err = NewTables(image); err != nil {
		t.Fatal(err)
	}
	if l.counters, l.ledger, err = NewCounters(rules); err != nil {
		t.Fatal(err)
	}
	o.Layout, o.Tables, o.Counters = image.Layout, l.tables, l.counters
	if l.Program, err = LoadProgram(kind, o); err != nil {
		var ve *ebpf.VerifierError
		if errors.As(err, &ve) {
			t.Logf("%+v", ve)
		}
		t.Fatal(err)
	}
	t.Cleanup(l.close)
	return l
}

func (l *loaded) close() {
	l.Program.Close()
	l.tables.Close()
	l.counters.Close()
	l.ledger.Close()
}

// The loaded programs decide and count as the specification says, on random policies and packets.
func TestDifferential(t *testing.T) {
	requireRoot(t)
	const policies, packets = 40, 500
	for _, kind := range []Kind{XDP, XDPFrags, TC} {
		t.Run(string(kind), func(t *testing.T) {
			compared, verified := 0, uint32(0)
			for seed := range uint64(policies) {
				g := policytest.New(seed)
				rules := g.Rules(g.IntN(6) * g.IntN(60))
				program := load(t, kind, rules, ProgramOptions{MarkBit: 0x1000, Trace: true})
				if info, err := program.Info(); err == nil {
					n, _ := info.VerifiedInstructions()
					verified = max(verified, n)
				}
				want := make([]Counter, len(rules))
				sums := map[policy.Reason]uint64{}
				for range packets {
					frame := g.Frame()
					if len(frame) < 14 {
						continue
					}
					if kind == TC && len(frame) < 14+40 {
						continue // for skbs, the test run itself refuses frames too short for their ethertype
					}
					expected := packet.Decide(rules, frame)
					got, err := Decide(program.Program, frame)
					if err != nil {
						t.Fatal(err)
					}
					if got != expected {
						p, _ := packet.Parse(frame)
						t.Fatalf("seed %d: frame %x\npacket %+v\nprogram: %+v\nwant:    %+v", seed, frame, p, got, expected)
					}
					if expected.Rule != policy.NoRule {
						want[expected.Rule].Packets++
					} else {
						sums[expected.By]++
					}
					compared++
				}
				entries, totals, err := readTotals(program.counters, program.ledger)
				if err != nil {
					t.Fatal(err)
				}
				counts := newCounts(entries, totals)
				for i := range want {
					if counts.Rules[i].Packets != want[i].Packets {
						t.Fatalf("seed %d: rule %d counted %d packets, want %d", seed, i, counts.Rules[i].Packets, want[i].Packets)
					}
				}
				if counts.Tracked.Packets != sums[policy.ByNoMatch] || counts.Fragment.Packets != sums[policy.ByFragment] ||
					counts.Malformed.Packets != sums[policy.ByMalformed] {
					t.Fatalf("seed %d: counted %+v, want %v", seed, counts, sums)
				}
				program.close()
			}
			t.Logf("%d packets compared, no mismatch; at most %d instructions verified", compared, verified)
		})
	}
}

// Go's Layout and C's struct table_layout are the same bytes.
func TestLayout(t *testing.T) {
	var shape func(reflect.Type) []string
	shape = func(s reflect.Type) []string {
		var out []string
		for i := range s.NumField() {
			f := s.Field(i)
			switch {
			case f.Name == "_":
			case f.Type.Kind() == reflect.Struct:
				out = append(out, shape(f.Type)...)
			default:
				out = append(out, f.Type.Kind().String())
			}
		}
		return out
	}
	c, g := reflect.TypeFor[bpf.UntrackedTableLayout](), reflect.TypeFor[compiler.Layout]()
	if c.Size() != g.Size() || !reflect.DeepEqual(shape(c), shape(g)) {
		t.Errorf("C has %d bytes %v, Go %d bytes %v", c.Size(), shape(c), g.Size(), shape(g))
	}
}
