// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/bpf"
	"github.com/untracked-cni/untracked/pkg/compiler"
	"github.com/untracked-cni/untracked/pkg/packet"
	"github.com/untracked-cni/untracked/pkg/packet/packettest"
	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/pkg/policy/policytest"
)

// logAll are rules behind one that logs every packet.
func logAll(rules []policy.Rule) []policy.Rule {
	return append([]policy.Rule{{Policy: "log", Action: policy.Log}}, rules...)
}

// patience is how long a test waits for what must come.
const patience = 20 * time.Second

func (b *bench) events() *Events {
	b.Helper()
	e, err := b.pins.Events()
	b.must(err)
	b.Cleanup(func() { e.Close() })
	return e
}

func readEvent(t testing.TB, e *Events) Event {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	event, err := e.Read(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return event
}

// wantSilence wants no event since the last read.
func wantSilence(t testing.TB, when string, e *Events) {
	t.Helper()
	if n := e.reader.AvailableBytes(); n != 0 {
		t.Errorf("%s: %d bytes of events are there, want none", when, n)
	}
}

// A listener gets the packets that a Log rule matched, with what became of them.
func TestEvents(t *testing.T) {
	for _, mode := range []Mode{Native, Generic, Classifier} {
		t.Run(string(mode), func(t *testing.T) {
			b := newBench(t)
			rules := []policy.Rule{
				udpRule(policy.Log, 700), udpRule(policy.Log, 701), udpRule(policy.Allow, 700), udpRule(policy.Allow, 702),
			}
			b.install(7, mode, rules...)
			e := b.events()
			b.send(700, 3)
			b.wantRule(0, 3)
			b.wantRule(2, 3)
			wantSilence(t, "nobody has asked", e)

			b.must(e.Renew(time.Hour))
			start := time.Now()
			b.send(700, 2)
			for range 2 {
				got := readEvent(t, e)
				if got.Time.Before(start.Add(-time.Second)) || got.Time.After(time.Now().Add(time.Second)) {
					t.Errorf("time %s, want one from %s on", got.Time, start)
				}
				want := Event{
					Time: got.Time, Ifindex: b.target.Index, Generation: 7, Log: 0, Bytes: 20 + 8 + 18,
					Decision: policy.Decision{Verdict: policy.Untracked, By: policy.ByRule, Rule: 2, Logged: true},
					Packet: policy.Packet{
						Src: got.Packet.Src, Dst: b.lab.Uplinks[0].Node4, Protocol: policy.UDP, HopLimit: 64,
						HasL4: true, SrcPort: got.Packet.SrcPort, DstPort: 700,
					},
				}
				if got != want || !slices.Contains(b.lab.Uplinks[0].Client4, got.Packet.Src) || got.Packet.SrcPort == 0 {
					t.Errorf("got %+v, want %+v", got, want)
				}
			}
			b.send(702, 5) // not logged
			b.wantRule(3, 5)
			wantSilence(t, "not logged", e)
			b.send(701, 1)
			if got := readEvent(t, e); got.Log != 1 || got.Decision.By != policy.ByNoMatch || got.Decision.Rule != policy.NoRule {
				t.Errorf("logged and not decided: %+v", got)
			}

			b.must(e.Renew(-time.Hour)) // a listener that died an hour ago
			b.send(700, 3)
			b.wantRule(0, 8)
			wantSilence(t, "the time is over", e)
			b.must(e.Renew(time.Hour))
			b.must(e.Close())
			again := b.events()
			b.send(700, 3)
			b.wantRule(0, 11)
			wantSilence(t, "closed", again)
		})
	}
}

// Read ends with its context, and the next one goes on.
func TestEventsContext(t *testing.T) {
	b := newBench(t)
	b.install(1, Classifier, udpRule(policy.Log, 700))
	e := b.events()
	for range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		if event, err := e.Read(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%+v, %v, want the context's error", event, err)
		}
		cancel()
	}
	b.must(e.Renew(time.Hour))
	b.send(700, 1)
	readEvent(t, e)
}

// The maps of events are made for the first list that logs, go on through generations and go with the last.
func TestEventsPins(t *testing.T) {
	b := newBench(t)
	plain, logs := udpRule(policy.Allow, 700), udpRule(policy.Log, 700)
	missing := func(when string) {
		t.Helper()
		if e, err := b.pins.Events(); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: Events: %v, %v, want fs.ErrNotExist", when, e, err)
		}
	}
	b.install(1, Native, plain)
	missing("no rule logs")
	b.install(2, Native, logs)
	e := b.events()
	b.install(3, Native, logs, plain)
	b.in(func() error { return b.pins.Prune(map[int]uint64{b.target.Index: 3}, true) })
	b.must(e.Renew(time.Hour))
	b.send(700, 1)
	if got := readEvent(t, e); got.Generation != 3 || got.Decision.Rule != 1 || got.Log != 0 {
		t.Errorf("the next generation sends its events elsewhere: %+v", got)
	}
	b.prune(map[int]uint64{b.target.Index: 3})
	missing("pruned")

	// Another version's maps are replaced.
	other, err := newMap(&ebpf.MapSpec{Name: "other", Type: ebpf.Array, KeySize: 4, ValueSize: 16, MaxEntries: 1})
	b.must(err)
	defer other.Close()
	b.must(pinMap(other, b.pins.events()))
	b.must(pinMap(other, b.pins.monitor()))
	b.install(4, Native, logs)
	e = b.events()
	b.must(e.Renew(time.Hour))
	b.send(700, 1)
	readEvent(t, e)
	b.in(b.pins.Remove)
	missing("removed")
}

// What cannot be opened is not replaced: other interfaces may send their events there.
func TestEventsPinsUnreadable(t *testing.T) {
	b := newBench(t)
	image, err := compiler.Compile(nil)
	b.must(err)
	program, err := LoadProgram(Mark, ProgramOptions{MarkBit: testMark})
	b.must(err)
	defer program.Close()
	for _, path := range []string{b.pins.events(), b.pins.monitor()} {
		b.must(program.Pin(path)) // which no open of a map can take
		g := b.pins.NewGeneration(1, testMark)
		tables, err := g.Tables(logAll(nil), image)
		b.must(err)
		b.in(func() error {
			_, _, err = g.Install(b.target, []Mode{Native}, tables)
			return nil
		})
		if !errors.Is(err, ErrNotPinned) || !strings.Contains(err.Error(), "open pinned "+filepath.Base(path)) {
			t.Errorf("%s cannot be opened: %v, want %v and its name", path, err, ErrNotPinned)
		}
		b.must(g.Close())
		still, err := ebpf.LoadPinnedProgram(path, nil)
		b.must(err)
		b.must(still.Close())
		b.must(program.Unpin())
	}
	if h := b.hooks(); !h.None() {
		t.Errorf("%+v is attached", h)
	}
}

// What was left out for one listener is no loss of the next.
func TestEventsForgetSuppressed(t *testing.T) {
	const flood, few = 1000, 50 // more and less than a burst
	for name, mode := range map[string]Mode{"xdp": Native, "tcx": Classifier, "clsact": Classifier} {
		t.Run(name, func(t *testing.T) {
			if name == "clsact" {
				withoutTCX(t)
			}
			b := newBench(t)
			a := b.install(1, mode, udpRule(policy.Log, 700))
			listen := func() (e *Events) {
				b.in(func() (err error) {
					e, err = b.pins.Events()
					return err
				})
				b.Cleanup(func() { e.Close() })
				b.must(e.Renew(time.Hour))
				return e
			}
			budgets := func() (suppressed uint64, lastSpent time.Duration) {
				m, err := openBudget(ebpf.ProgramID(a.Program()))
				b.must(err)
				defer m.Close()
				var perCPU []bpf.UntrackedBudget
				b.must(m.Lookup(uint32(0), &perCPU))
				for _, c := range perCPU {
					suppressed += c.Suppressed
					lastSpent = max(lastSpent, time.Duration(c.Spent))
				}
				return suppressed, lastSpent
			}
			listen() // and be killed
			b.send(700, flood)
			b.wantRule(0, flood)
			before, spent := budgets()
			if before == 0 {
				t.Fatalf("of %d packets at once none was left out", flood)
			}
			e := listen()
			if left, stays := budgets(); left != 0 || stays != spent {
				t.Errorf("%d packets are still told as left out, and the budget is spent until %s, want 0 and %s", left, stays, spent)
			}
			time.Sleep(time.Second) // until there is a whole burst again
			b.send(700, few)
			for range few {
				if got := readEvent(t, e); got.Suppressed != 0 {
					t.Errorf("%d packets were left out before an event, want 0", got.Suppressed)
				}
			}
			b.wantRule(0, flood+few)
			wantSilence(t, "the first listener's events are forgotten", e)
		})
	}
}

// reporter is a program with maps for its events.
type reporter struct {
	*loaded
	events *Events
}

// newReporter loads a program that is run here, not attached.
func newReporter(t testing.TB, rules []policy.Rule, trace bool) *reporter {
	t.Helper()
	requireRoot(t)
	r := &reporter{events: &Events{}}
	var err error
	for spec, m := range map[*ebpf.MapSpec]**ebpf.Map{&eventsSpec: &r.events.events, &monitorSpec: &r.events.monitor} {
		if *m, err = newMap(spec); err != nil {
			t.Fatal(err)
		}
	}
	if r.events.reader, err = ringbuf.NewReader(r.events.events); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.events.Close() })
	if err := r.events.Renew(time.Hour); err != nil {
		t.Fatal(err)
	}
	r.reload(t, rules, trace)
	return r
}

// reload loads another program for the same maps, with a budget of its own.
func (r *reporter) reload(t testing.TB, rules []policy.Rule, trace bool) {
	t.Helper()
	r.loaded = load(t, XDP, rules, ProgramOptions{
		Trace: trace, Events: r.events.events, Monitor: r.events.monitor, Ifindex: 42, Generation: 1 << 40,
	})
}

func (r *reporter) run(t testing.TB, times int) {
	t.Helper()
	for range times {
		if _, err := r.Run(&ebpf.RunOptions{Data: packettest.Fixtures()[0].Frame}); err != nil {
			t.Fatal(err)
		}
	}
}

// drain reads what is there.
func (r *reporter) drain(t testing.TB) (events []Event) {
	t.Helper()
	for r.events.reader.AvailableBytes() > 0 {
		events = append(events, readEvent(t, r.events))
	}
	return events
}

// onOneCPU keeps the test on one CPU: budgets are each CPU's own.
func onOneCPU(t testing.TB) {
	t.Helper()
	runtime.LockOSThread() // and never unlock: the thread ends with the test
	var all, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		t.Fatal(err)
	}
	for cpu := 0; one.Count() == 0; cpu++ {
		if all.IsSet(cpu) {
			one.Set(cpu)
		}
	}
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		t.Fatal(err)
	}
}

// An event has all that rules can see of a packet, whatever the packet is.
func TestEventPackets(t *testing.T) {
	rules := logAll(packettest.Rules())
	var r *reporter
	seen := 0
	for i, f := range packettest.Fixtures() {
		if i%50 == 0 { // before the budget of one program is spent
			r = newReporter(t, rules, false)
		}
		if _, _, err := r.Test(f.Frame); err != nil {
			t.Fatal(err)
		}
		want := packet.Decide(rules, f.Frame)
		if !want.Logged {
			wantSilence(t, f.Name, r.events)
			continue
		}
		got := readEvent(t, r.events)
		p, _ := packet.Parse(f.Frame)
		p.Quoted = nil
		if got.Decision != want || got.Packet != *p || got.Bytes != int(packetBytes(f.Frame)) ||
			got.Log != 0 || got.Ifindex != 42 || got.Generation != 1<<40 || got.Suppressed != 0 {
			t.Errorf("%s: %+v, want decision %+v of %+v", f.Name, got, want, *p)
		}
		seen++
	}
	if seen < 50 {
		t.Errorf("only %d frames were logged", seen)
	}
}

// A flood becomes a burst of events and then a trickle, and what is left out is counted.
func TestEventsRate(t *testing.T) {
	onOneCPU(t)
	const burst, interval, flood = 100, 10 * time.Millisecond, 1000
	r := newReporter(t, logAll(nil), false)
	start := time.Now()
	r.run(t, flood)
	most := burst + int(time.Since(start)/interval) + 1
	events := r.drain(t)
	if len(events) < burst || len(events) > most {
		t.Fatalf("%d events of %d packets, want %d to %d", len(events), flood, burst, most)
	}
	time.Sleep(2 * interval)
	r.run(t, 1)
	last := readEvent(t, r.events)
	told := last.Suppressed
	for _, e := range events {
		told += e.Suppressed
	}
	if int(told) != flood-len(events) || last.Suppressed == 0 {
		t.Errorf("%d events, and %d packets told as left out, want %d", len(events), told, flood-len(events))
	}
}

// A ring that nobody empties holds what fits, and the rest is counted.
func TestEventsFullRing(t *testing.T) {
	onOneCPU(t)
	rules := logAll(nil)
	r := newReporter(t, rules, false)
	full := func() bool { return r.events.reader.AvailableBytes() > int(eventsSpec.MaxEntries)-200 }
	const burst, most = 100, 60
	for range most {
		if full() {
			break
		}
		r.reload(t, rules, false)
		r.run(t, burst)
	}
	if !full() {
		t.Fatalf("%d bytes of events after %d bursts", r.events.reader.AvailableBytes(), most)
	}
	r.reload(t, rules, false)
	r.run(t, 7)
	kept := len(r.drain(t))
	r.run(t, 1)
	if got := readEvent(t, r.events); got.Suppressed != 7 && got.Suppressed != 6 && got.Suppressed != 5 {
		t.Errorf("%d packets told as left out by a full ring of %d events, want about 7", got.Suppressed, kept)
	}
}

// A program that is asked and not attached sends nothing.
func TestTraceSendsNothing(t *testing.T) {
	r := newReporter(t, logAll(packettest.Rules()), true)
	for _, f := range packettest.Fixtures() {
		if _, err := Decide(r.Program, f.Frame); err != nil {
			t.Fatal(err)
		}
	}
	wantSilence(t, "traced", r.events)
}

// A program has the maps that its rules need, and no others.
func TestMapsOfPrograms(t *testing.T) {
	requireRoot(t)
	pass := policy.Rule{Tier: "a", Action: policy.Pass}
	maps := func(p *ebpf.Program) (names []string) {
		t.Helper()
		info, err := p.Info()
		if err != nil {
			t.Fatal(err)
		}
		ids, _ := info.MapIDs()
		for _, id := range ids {
			m, err := ebpf.NewMapFromID(id)
			if err != nil {
				t.Fatal(err)
			}
			info, err := m.Info()
			m.Close()
			if err != nil {
				t.Fatal(err)
			}
			names = append(names, info.Name)
		}
		slices.Sort(names)
		return names
	}
	plain := []string{rodataMap, countersName, tablesName}
	slices.Sort(plain)
	for name, rules := range map[string][]policy.Rule{"none": nil, "deciding": packettest.Rules(), "passing": {pass}} {
		for _, kind := range kinds(t) {
			if got := maps(load(t, kind, rules, ProgramOptions{}).Program); !slices.Equal(got, plain) {
				t.Errorf("%s with %s rules has the maps %v, want %v", kind, name, got, plain)
			}
		}
	}
	mark, err := LoadProgram(Mark, ProgramOptions{MarkBit: testMark})
	if err != nil {
		t.Fatal(err)
	}
	defer mark.Close()
	if got := maps(mark); !slices.Equal(got, []string{rodataMap}) {
		t.Errorf("%s has the maps %v", Mark, got)
	}
	logging := append(slices.Clone(plain), budgetMap, eventsName, monitorName)
	slices.Sort(logging)
	if got := maps(newReporter(t, logAll(nil), false).Program); !slices.Equal(got, logging) {
		t.Errorf("a program that sends events has the maps %v, want %v", got, logging)
	}
}

// mostVerified is how many instructions the kernel may have to follow for a program. It gives up at a million. Old
// verifiers, on the machines of test/kernels, see less often that they have been somewhere before.
func mostVerified() uint32 {
	if scaled(100) < 100 {
		return 500_000
	}
	return 150_000
}

// The longest lists there may be load.
func TestLargestLists(t *testing.T) {
	requireRoot(t)
	rules := policytest.New(5).Rules(compiler.MaxVectorRules)
	every := len(rules) / compiler.MaxHops
	for i := range rules {
		rules[i].Tier, rules[i].Action = "", policy.Allow
		if i%every == 0 && i/every < compiler.MaxHops {
			rules[i].Action = policy.Log
		}
	}
	r := newReporter(t, rules, false)
	if r.layout.Hops != compiler.MaxHops {
		t.Fatalf("%d hops, want %d", r.layout.Hops, compiler.MaxHops)
	}
	for _, kind := range kinds(t) {
		p := load(t, kind, rules, ProgramOptions{Events: r.events.events, Monitor: r.events.monitor})
		info, err := p.Info()
		if err != nil {
			t.Fatal(err)
		}
		n, ok := info.VerifiedInstructions()
		t.Logf("%s: %d rules, %d of them log: %d instructions verified", kind, len(rules), r.layout.Hops, n)
		if ok && n > mostVerified() {
			t.Errorf("%s: %d instructions were verified", kind, n)
		}
	}
}
