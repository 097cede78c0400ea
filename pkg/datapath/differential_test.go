// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"net/netip"
	"os"
	"reflect"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/untracked-cni/untracked/bpf"
	"github.com/untracked-cni/untracked/pkg/compiler"
	"github.com/untracked-cni/untracked/pkg/netset"
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

// A large set is looked up right at the edges of its prefixes, through every depth of the tables.
func TestLargeSets(t *testing.T) {
	requireRoot(t)
	for _, n := range []int{30, 33, 1000, 200_000} {
		g := policytest.New(uint64(n))
		var b netset.Builder
		var edges []netip.Addr
		for i := range n {
			p4 := netip.PrefixFrom(netset.To4(g.Uint32()), 12+g.IntN(21)).Masked()
			if g.IntN(2) == 0 { // a crowd below one top half
				p4 = netip.PrefixFrom(netset.To4(0x0a0b0000|g.Uint32()&0xffff), 24+g.IntN(9)).Masked()
			}
			p6 := netip.PrefixFrom(netset.Addr6{Hi: 0x2001_0db8_0000_0000 | g.Uint64N(1<<24), Lo: g.Uint64()}.Netip(), 40+g.IntN(89)).Masked()
			b.Add(p4)
			b.Add(p6)
			if i < 500 {
				lo4, hi4 := netset.Bounds4(p4)
				lo6, hi6 := netset.Bounds6(p6)
				edges = append(edges, netset.To4(lo4-1), netset.To4(lo4), netset.To4(hi4), netset.To4(hi4+1),
					lo6.Netip(), lo6.Netip().Prev(), hi6.Netip(), hi6.Next().Netip())
			}
		}
		edges = append(edges, netset.To4(0), netset.To4(^uint32(0)), netset.Max6.Netip(), netset.Addr6{}.Netip())
		rules := []policy.Rule{{Action: policy.Deny, Source: policy.Entity{Nets: b.Build()}}}
		program := load(t, XDP, rules, ProgramOptions{Trace: true})
		for _, a := range edges {
			frame := udpFrame(a)
			want := packet.Decide(rules, frame)
			got, err := Decide(program.Program, frame)
			if err != nil {
				t.Fatal(err)
			}
			if got != want {
				t.Fatalf("%d CIDRs: %s: %+v, want %+v", n, a, got, want)
			}
		}
	}
}

// udpFrame is a datagram from src to the host of the same family.
func udpFrame(src netip.Addr) []byte {
	frame := make([]byte, 14, 80)
	if src.Is4() {
		frame[12], frame[13] = 0x08, 0x00
		ip := [20]byte{0: 0x45, 3: 28, 8: 64, 9: policy.UDP, 16: 192, 18: 2, 19: 1}
		copy(ip[12:], src.AsSlice())
		return append(append(frame, ip[:]...), 0, 1, 0, 2, 0, 8, 0, 0)
	}
	frame[12], frame[13] = 0x86, 0xdd
	ip := [40]byte{0: 0x60, 5: 8, 6: policy.UDP, 7: 64, 24: 0x20, 25: 0x01, 39: 1}
	copy(ip[8:], src.AsSlice())
	return append(append(frame, ip[:]...), 0, 1, 0, 2, 0, 8, 0, 0)
}
