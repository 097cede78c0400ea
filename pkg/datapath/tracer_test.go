// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/google/go-cmp/cmp"

	"github.com/untracked-cni/untracked/pkg/packet"
	"github.com/untracked-cni/untracked/pkg/packet/packettest"
	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/pkg/policy/policytest"
	"github.com/untracked-cni/untracked/test/lab"
)

func (b *bench) tracer(a Attached) *Tracer {
	b.Helper()
	var tracer *Tracer
	b.in(func() (err error) {
		tracer, err = b.pins.Tracer(b.target.Index, a)
		return err
	})
	b.Cleanup(func() { tracer.Close() })
	return tracer
}

// What is attached can be asked about any frame, in any mode, and nothing counts it.
func TestTracer(t *testing.T) {
	for name, c := range map[string]struct {
		mode    Mode
		mtu     int
		clsact  bool
		program Kind
		rules   []policy.Rule
	}{
		"native":           {Native, 1500, false, XDP, packettest.Rules()},
		"native, logs":     {Native, 1500, false, XDP, logAll(packettest.Rules())},
		"native, frags":    {Native, 9000, false, XDPFrags, packettest.Rules()},
		"generic":          {Generic, 1500, false, XDP, packettest.Rules()},
		"tc":               {Classifier, 1500, false, TC, packettest.Rules()},
		"tc, logs, clsact": {Classifier, 1500, true, TC, logAll(packettest.Rules())},
	} {
		t.Run(name, func(t *testing.T) {
			if !slices.Contains(kinds(t), c.program) {
				t.Skipf("this kernel has no %s", c.program)
			}
			if c.clsact {
				withoutTCX(t)
			}
			b := newBenchIn(t, lab.Config{MTU: c.mtu})
			a := b.install(1, c.mode, c.rules...)
			tracer := b.tracer(a)
			if tracer.kind != c.program {
				t.Errorf("the program is %s, want %s", tracer.kind, c.program)
			}
			before, err := totalsOf(b)
			b.must(err)
			for _, f := range packettest.Fixtures() {
				want := packet.Decide(c.rules, f.Frame)
				got, err := tracer.Decide(f.Frame)
				if err != nil || got != want {
					t.Errorf("%s: %+v, %v, want %+v", f.Name, got, err, want)
				}
			}
			after, err := totalsOf(b)
			b.must(err)
			// The network itself may send something meanwhile, but nothing to these rules.
			if diff := cmp.Diff(before[counterRules:], after[counterRules:]); diff != "" {
				t.Errorf("counters moved (-before +after):\n%s", diff)
			}
			if before[counterMalformed] != after[counterMalformed] {
				t.Errorf("malformed frames were counted: %+v, then %+v", before[counterMalformed], after[counterMalformed])
			}
			if e, err := b.pins.Events(); err == nil {
				t.Cleanup(func() { e.Close() })
				wantSilence(t, "traced", e)
			}

			// A frame of any length: of each fixture, everything that may be left of it, and more than there is.
			for _, f := range packettest.Fixtures() {
				for n := range len(f.Frame) {
					if got, err := tracer.Decide(f.Frame[:n]); err != nil || got != packet.Decide(c.rules, f.Frame[:n]) {
						t.Fatalf("%s, %d bytes: %+v, %v, want %+v", f.Name, n, got, err, packet.Decide(c.rules, f.Frame[:n]))
					}
				}
				long := append(slices.Clone(f.Frame), make([]byte, 9000)...)
				if got, err := tracer.Decide(long); err != nil || got != packet.Decide(c.rules, long) {
					t.Fatalf("%s, %d bytes: %+v, %v, want %+v", f.Name, len(long), got, err, packet.Decide(c.rules, long))
				}
			}
		})
	}
}

func totalsOf(b *bench) ([]tally, error) {
	counters, ledger, err := b.pins.openCounters(b.target.Index, 1)
	if err != nil {
		return nil, err
	}
	defer counters.Close()
	defer ledger.Close()
	_, totals, err := readTotals(counters, ledger)
	return totals, err
}

// Tracing takes what is attached, not what somebody remembers.
func TestTracerOfWhatIsNotAttached(t *testing.T) {
	b := newBench(t)
	first := b.install(1, Native)
	b.install(2, Native)
	b.in(func() error {
		if _, err := b.pins.Tracer(b.target.Index, first); err == nil {
			t.Error("the program of the generation before can be asked")
		}
		if _, err := b.pins.Tracer(999999, first); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("an interface without pins: %v, want fs.ErrNotExist", err)
		}
		return nil
	})
}

// Whatever the rules are, and the constants, the instructions are the same: the copy has the original's tag.
func TestTracerTags(t *testing.T) {
	requireRoot(t)
	r := newReporter(t, logAll(nil), false)
	for seed := range uint64(6) {
		rules := policytest.New(seed).Rules(int(seed) * 20)
		for _, o := range []ProgramOptions{
			{MarkBit: 1, Ifindex: 3, Generation: 9},
			{MarkBit: 1 << 31, Events: r.events.events, Monitor: r.events.monitor},
		} {
			for _, kind := range kinds(t) {
				o.Layer3 = kind == TC && seed%2 == 1
				original := load(t, kind, rules, o)
				tracer, err := newTracer(original.Program)
				if err != nil {
					t.Fatalf("seed %d, %s: %v", seed, kind, err)
				}
				tracer.Close()
			}
		}
	}
}

// Programs that only look like ours are told apart.
func TestTracerOfAnotherVersion(t *testing.T) {
	requireRoot(t)
	rules := packettest.Rules()
	original := load(t, XDP, rules, ProgramOptions{})
	another := func(change func(*ebpf.CollectionSpec)) *ebpf.Program {
		t.Helper()
		spec, err := programSpec(XDP)
		if err != nil {
			t.Fatal(err)
		}
		if err := spec.Variables["layout"].Set(original.layout); err != nil {
			t.Fatal(err)
		}
		change(spec)
		p, err := loadSpec(spec, XDP, map[string]*ebpf.Map{tablesMap: original.tables, countersMap: original.counters})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { p.Close() })
		return p
	}
	same := another(func(*ebpf.CollectionSpec) {})
	if tracer, err := newTracer(same); err != nil {
		t.Error(err)
	} else {
		tracer.Close()
	}
	for name, p := range map[string]*ebpf.Program{
		"one more instruction": another(func(spec *ebpf.CollectionSpec) {
			code := spec.Programs[string(XDP)].Instructions
			more := asm.Mov.Imm(asm.R0, 0)
			more.Metadata, code[0].Metadata = code[0].Metadata, asm.Metadata{}
			spec.Programs[string(XDP)].Instructions = append(asm.Instructions{more}, code...)
		}),
		"more constants": another(func(spec *ebpf.CollectionSpec) {
			m := spec.Maps[rodataMap]
			m.ValueSize += 8
			m.Contents[0].Value = append(slices.Clone(m.Contents[0].Value.([]byte)), make([]byte, 8)...)
			m.Value = nil // as its type information no longer fits
		}),
		"somebody else's": passProgram(t, ebpf.XDP, 2),
	} {
		tracer, err := newTracer(p)
		if err == nil {
			tracer.Close()
			t.Errorf("%s: it was taken for ours", name)
			continue
		}
		if name != "somebody else's" && !strings.Contains(err.Error(), "another version's") {
			t.Errorf("%s: %v, want it to name another version", name, err)
		}
	}
}

// Headers that reach beyond what the kernel can be asked about are not guessed at.
func TestTracerFarHeaders(t *testing.T) {
	requireRoot(t)
	rules := packettest.Rules()
	original := load(t, XDP, rules, ProgramOptions{})
	tracer, err := newTracer(original.Program)
	if err != nil {
		t.Fatal(err)
	}
	defer tracer.Close()
	frame := func(extensions int) []byte {
		const options, bytes = 60, 2048
		var body []byte
		for i := range extensions {
			header := make([]byte, bytes)
			if header[0], header[1] = options, bytes/8-1; i == extensions-1 {
				header[0] = policy.TCP
			}
			body = append(body, header...)
		}
		body = append(body, make([]byte, 20)...)
		binary.BigEndian.PutUint16(body[len(body)-18:], 6379)
		ip := make([]byte, 40)
		ip[0], ip[6], ip[7] = 0x60, options, 64
		binary.BigEndian.PutUint16(ip[4:], uint16(len(body)))
		return slices.Concat(make([]byte, 12), []byte{0x86, 0xdd}, ip, body)
	}
	near, far := frame(1), frame(2)
	for _, f := range [][]byte{near, far} {
		if d := packet.Decide(rules, f); d.Rule != packettest.AllowRedis {
			t.Fatalf("the test's own frame is decided as %+v", d)
		}
	}
	if got, err := tracer.Decide(append(near, make([]byte, 5000)...)); err != nil || got.Rule != packettest.AllowRedis {
		t.Errorf("headers within reach: %+v, %v", got, err)
	}
	if got, err := tracer.Decide(far); err == nil {
		t.Errorf("headers out of reach: %+v, want an error", got)
	}
}

// Without an Ethernet header on the interface, one is put in front; what does not fit its type is no packet to the
// program.
func TestTracerLayer3(t *testing.T) {
	requireRoot(t)
	original := load(t, TC, packettest.Rules(), ProgramOptions{Layer3: true})
	tracer, err := newTracer(original.Program)
	if err != nil {
		t.Fatal(err)
	}
	defer tracer.Close()
	for _, f := range packettest.Fixtures() {
		etherType := binary.BigEndian.Uint16(append(slices.Clone(f.Frame), make([]byte, 14)...)[12:])
		if etherType != 0x0800 && etherType != 0x86dd || len(f.Frame) < 14 {
			continue
		}
		want := f.Want
		if len(f.Frame) == 14 || f.Frame[14]>>4 != map[uint16]byte{0x0800: 4, 0x86dd: 6}[etherType] {
			want = policy.Decision{Verdict: policy.Tracked, By: policy.ByNotIP, Rule: policy.NoRule}
		}
		if got, err := tracer.Decide(f.Frame); err != nil || got != want {
			t.Errorf("%s: %+v, %v, want %+v", f.Name, got, err, want)
		}
	}
}
