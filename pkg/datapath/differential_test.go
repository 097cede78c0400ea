// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

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
	layout                   compiler.Layout
}

func load(t testing.TB, kind Kind, rules []policy.Rule, o ProgramOptions) *loaded {
	t.Helper()
	return loadAs(t, "", kind, rules, o)
}

// loadAs is load with tables of one of the compiler's methods, or the best if it is empty.
func loadAs(t testing.TB, method string, kind Kind, rules []policy.Rule, o ProgramOptions) *loaded {
	t.Helper()
	image, err := compiler.CompileAs(method, rules)
	if err != nil {
		t.Fatal(err)
	}
	l := &loaded{layout: image.Layout}
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

// kinds are those that classify, without the one that this kernel does not have.
func kinds(t testing.TB) []Kind {
	t.Helper()
	requireRoot(t)
	if err := noFrags(); err != nil {
		t.Logf("without %s, which needs Linux 5.18: %v", XDPFrags, err)
		return []Kind{XDP, TC}
	}
	return []Kind{XDP, XDPFrags, TC}
}

var noFrags = sync.OnceValue(func() error {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.XDP, Flags: unix.BPF_F_XDP_HAS_FRAGS, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()},
	})
	if err == nil {
		p.Close()
	}
	return err
})

func (l *loaded) close() {
	l.Program.Close()
	l.tables.Close()
	l.counters.Close()
	l.ledger.Close()
}

// expectation is what the specification says about some frames.
type expectation struct {
	decisions []policy.Decision
	counts    []tally // by the entries of the counters map; without times
}

// expect asks the specification about frames: for the decisions, and for what each of them counts.
func expect(rules []policy.Rule, frames [][]byte) expectation {
	e := expectation{counts: make([]tally, counterRules+len(rules))}
	for _, frame := range frames {
		d := packet.Decide(rules, frame)
		e.decisions = append(e.decisions, d)
		count := func(entry int) { e.counts[entry].add(tally{Packets: 1, Bytes: packetBytes(frame)}) }
		discovery := d.By == policy.ByFailsafe && d.Rule == policy.NoRule
		if p, _ := packet.Parse(frame); p != nil && !discovery {
			_, via := policy.Walk(rules, p)
			for _, i := range via {
				count(counterRules + i)
			}
		}
		switch {
		case d.Rule != policy.NoRule:
			count(counterRules + d.Rule)
		case discovery:
			count(counterFailsafe)
		case d.By == policy.ByMalformed:
			e.counts[counterMalformed].Packets++
		case d.By == policy.ByFragment:
			count(counterFragment)
		case d.By == policy.ByNoMatch:
			count(counterTracked)
		}
	}
	return e
}

// packetBytes is the length of the IP packet in a frame, by its own account.
func packetBytes(frame []byte) uint64 {
	at := 12
	for binary.BigEndian.Uint16(frame[at:]) == 0x8100 || binary.BigEndian.Uint16(frame[at:]) == 0x88a8 {
		at += 4
	}
	ip := frame[at+2:]
	if ip[0]>>4 == 4 {
		return uint64(binary.BigEndian.Uint16(ip[2:]))
	}
	if payload := binary.BigEndian.Uint16(ip[4:]); payload > 0 {
		return 40 + uint64(payload)
	}
	return uint64(len(ip))
}

// difference runs frames through a program and returns in words where it differs from what is expected, empty if
// nowhere, with the frames that may show it.
func difference(t testing.TB, program *loaded, frames [][]byte, want expectation) (string, [][]byte) {
	t.Helper()
	for i, frame := range frames {
		got, err := Decide(program.Program, frame)
		if err != nil {
			t.Fatal(err)
		}
		if got != want.decisions[i] {
			return fmt.Sprintf("the program says %+v, the specification %+v", got, want.decisions[i]), frames[i : i+1]
		}
	}
	_, totals, err := readTotals(program.counters, program.ledger)
	if err != nil {
		t.Fatal(err)
	}
	for i, got := range totals {
		if (got.Packets > 0) != (got.Last > 0) {
			return fmt.Sprintf("entry %d has counted %d packets, and its last at tick %d", i, got.Packets, got.Last), frames
		}
		got.Last = 0
		if got != want.counts[i] {
			return fmt.Sprintf("entry %d of the counters (rules begin at %d) is %+v, want %+v", i, counterRules, got, want.counts[i]), frames
		}
	}
	return "", nil
}

// comparison compares a kind of program with the specification. The rules that the specification is asked about are
// as(rules), in a test of the comparison itself.
type comparison struct {
	testing.TB
	kind   Kind
	method string // of the compiler
	as     func([]policy.Rule) []policy.Rule
}

// compare returns in words the smallest policy and frame that show a difference, empty if there is none.
func (c comparison) compare(rules []policy.Rule, frames [][]byte) string {
	c.Helper()
	words, suspects := c.difference(rules, frames)
	if words == "" {
		return ""
	}
	fails := func(rules []policy.Rule, frame []byte) bool {
		if !runnable(c.kind, frame) {
			return false
		}
		words, _ := c.difference(rules, [][]byte{frame})
		return words != ""
	}
	i := slices.IndexFunc(suspects, func(frame []byte) bool { return fails(rules, frame) })
	if i < 0 {
		return words + "\nno frame alone shows it"
	}
	rules, frame := policytest.Shrink(rules, suspects[i], fails)
	words, _ = c.difference(rules, [][]byte{frame})
	p, _ := packet.Parse(frame)
	words = fmt.Sprintf("%s\nframe %x\npacket %+v", words, frame, p)
	for i := range rules {
		words += fmt.Sprintf("\n%d: tier %q: %s %s", i, rules[i].Tier, rules[i].Action, rules[i].Match())
	}
	return words
}

func (c comparison) difference(rules []policy.Rule, frames [][]byte) (string, [][]byte) {
	c.Helper()
	return c.differenceFrom(expect(c.as(rules), frames), rules, frames)
}

func (c comparison) differenceFrom(want expectation, rules []policy.Rule, frames [][]byte) (string, [][]byte) {
	c.Helper()
	program := loadAs(c, c.method, c.kind, rules, ProgramOptions{MarkBit: testMark, Trace: true})
	defer program.close()
	return difference(c, program, frames, want)
}

// tournament compares programs of all kinds, with tables of all methods, with the specification.
type tournament struct {
	testing.TB
	kinds     []Kind
	compared  int
	byMethod  map[string]int
	decisions map[policy.Decision]int
}

func newTournament(t testing.TB) *tournament {
	return &tournament{TB: t, kinds: kinds(t), byMethod: map[string]int{}, decisions: map[policy.Decision]int{}}
}

// play is about one list of rules and some frames. Where lists have combined tables, bit vectors are put to the test,
// too, if they can be had.
func (t *tournament) play(name string, rules []policy.Rule, frames [][]byte) {
	t.Helper()
	image, err := compiler.Compile(rules)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	methods := []string{image.Method.Name}
	if image.Method.Name == compiler.Combined && len(rules) <= compiler.MaxVectorRules {
		methods = append(methods, compiler.BitVectors)
	}
	for i, method := range methods {
		for _, kind := range t.kinds {
			if i > 0 && kind == XDPFrags {
				continue // the same code as XDP
			}
			c := comparison{t, kind, method, asTheyAre}
			frames := slices.DeleteFunc(slices.Clone(frames), func(f []byte) bool { return !runnable(kind, f) })
			want := expect(rules, frames)
			if words, _ := c.differenceFrom(want, rules, frames); words != "" {
				t.Fatalf("%s, %s, %s, %d rules: %s", name, kind, method, len(rules), c.compare(rules, frames))
			}
			t.compared += len(frames)
			t.byMethod[method] += len(frames)
			for _, d := range want.decisions {
				d.Rule = min(d.Rule, 0)
				t.decisions[d]++
			}
		}
	}
}

// The loaded programs decide, log and count as the specification says, on random policies and packets.
func TestDifferential(t *testing.T) {
	requireRoot(t)
	policies, packets := scaled(120), max(scaled(3000), 600)
	tournament := newTournament(t)
	hops := uint32(0)
	for seed := range uint64(policies) {
		g := policytest.New(seed)
		rules := g.Rules(g.IntN(6) * g.IntN(80))
		if seed%2 == 1 {
			rules = g.Shaped(policytest.Any, g.IntN(6)*g.IntN(80))
		}
		image, err := compiler.Compile(rules)
		if err != nil {
			t.Fatal(err)
		}
		hops = max(hops, image.Layout.Hops)
		tournament.play(fmt.Sprintf("seed %d", seed), rules, randomFrames(g, packets))
	}
	t.Logf("%d verdicts compared, no mismatch: %v; lists with up to %d Log and Pass rules in a row", tournament.compared, tournament.byMethod, hops)
	for d, n := range tournament.decisions {
		t.Logf("%7d %+v", n, d)
	}
	if want := policies * packets * len(tournament.kinds); tournament.compared < want*9/10 {
		t.Errorf("%d verdicts are too few, want about %d", tournament.compared, want)
	}
	if policies >= 20 && len(tournament.decisions) < 12 { // each reason, most of them also logged, failsafes of a rule and without one
		t.Errorf("only %d kinds of decisions were met", len(tournament.decisions))
	}
}

// So they do for large lists, and right at the edges of their nets and ports.
func TestDifferentialShapes(t *testing.T) {
	requireRoot(t)
	sizes := []int{1, 40, 500, 3000, compiler.MaxRules}
	shapes := policytest.Shapes
	if scaled(100) < 50 {
		sizes, shapes = sizes[1:2], []policytest.Shape{policytest.Flows, policytest.Sides, policytest.Nested}
	}
	tournament := newTournament(t)
	for _, shape := range shapes {
		for _, n := range sizes {
			g := policytest.New(uint64(n))
			rules := g.Shaped(shape, n)
			if _, err := compiler.Compile(rules); err != nil && n > compiler.MaxVectorRules {
				t.Logf("%d rules of shape %s are refused: %v", n, shape, err)
				continue
			}
			g.Aim(rules)
			frames := randomFrames(g, scaled(600))
			for range scaled(1400) {
				frames = append(frames, g.FrameFor(&rules[g.IntN(n)]))
			}
			tournament.play(string(shape), rules, frames)
		}
	}
	t.Logf("%d verdicts compared, no mismatch: %v", tournament.compared, tournament.byMethod)
}

func asTheyAre(rules []policy.Rule) []policy.Rule { return rules }

func randomFrames(g *policytest.Generator, n int) [][]byte {
	frames := make([][]byte, n)
	for i := range frames {
		frames[i] = g.Frame()
	}
	return frames
}

// A mismatch comes with the smallest policy and frame that show it.
func TestMismatch(t *testing.T) {
	requireRoot(t)
	// A specification by which a Pass leads to the next rule, not to the next tier.
	noTiers := func(rules []policy.Rule) []policy.Rule {
		rules = slices.Clone(rules)
		for i := range rules {
			rules[i].Tier = strconv.Itoa(i)
		}
		return rules
	}
	for seed := range uint64(20) {
		g := policytest.New(seed)
		words := comparison{t, XDP, "", noTiers}.compare(g.Rules(40), randomFrames(g, 300))
		if words == "" {
			continue
		}
		if !strings.Contains(words, ": Pass any packet\n1: tier") || strings.Contains(words, "\n2: tier") {
			t.Errorf("want a policy of a Pass and the rule behind it, got %s", words)
		}
		return
	}
	t.Error("the comparison sees no difference where there is one")
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
	if n := reflect.TypeFor[tally]().Size(); n != counterSize {
		t.Errorf("a counter has %d bytes, want %d", n, counterSize)
	}
	if n := reflect.TypeFor[ledgerEntry]().Size(); n != ledgerSize {
		t.Errorf("an entry of the ledger has %d bytes, want %d", n, ledgerSize)
	}
}

// A large set is looked up right at the edges of its prefixes, through every depth of the tables.
func TestLargeSets(t *testing.T) {
	requireRoot(t)
	for _, n := range []int{30, 33, 1000, scaled(200_000)} {
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
