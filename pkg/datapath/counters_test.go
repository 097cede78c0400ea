// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"

	"github.com/untracked-cni/untracked/pkg/policy"
)

// portRule is a rule on one TCP port.
func portRule(action policy.Action, port uint16) policy.Rule {
	protocol := uint8(policy.TCP)
	return policy.Rule{
		Policy: "test", Index: int(port), Action: action, Protocol: &protocol,
		Destination: policy.Entity{Ports: []policy.PortRange{{First: port, Last: port}}},
	}
}

// n is a counter of packets whose times do not matter.
func n(packets, bytes uint64) Counter { return Counter{Packets: packets, Bytes: bytes} }

// testClock is at tick 1000.
var testClock = clock{time.Unix(1_000_000, 0), 1000, 4 * time.Millisecond}

// generationCounters are the maps of one generation, and a pretended past.
type generationCounters struct {
	t                testing.TB
	rules            []policy.Rule
	counters, ledger *ebpf.Map
}

func newGenerationCounters(t testing.TB, rules ...policy.Rule) *generationCounters {
	t.Helper()
	counters, ledger, err := NewCounters(rules)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		counters.Close()
		ledger.Close()
	})
	return &generationCounters{t, rules, counters, ledger}
}

// count adds to an entry as the programs do, spread over the CPUs.
func (g *generationCounters) count(entry int, packets, bytes uint64) {
	g.t.Helper()
	var perCPU []tally
	if err := g.counters.Lookup(uint32(entry), &perCPU); err != nil {
		g.t.Fatal(err)
	}
	for i := range perCPU {
		share := uint64(len(perCPU) - i)
		p, b := packets/share, bytes/share
		packets, bytes = packets-p, bytes-b
		perCPU[i].Packets += p
		perCPU[i].Bytes += b
	}
	if err := g.counters.Put(uint32(entry), perCPU); err != nil {
		g.t.Fatal(err)
	}
}

func (g *generationCounters) rule(i int, packets, bytes uint64) {
	g.t.Helper()
	g.count(counterRules+i, packets, bytes)
}

// counts are without the rules' identities, which are those of the rules in any case.
func (g *generationCounters) counts() Counts {
	g.t.Helper()
	c := newCounts(g.account(nil), testClock)
	if want := policy.IDs(g.rules); !slices.Equal(c.IDs, want) {
		g.t.Errorf("rules %d, want %d", c.IDs, want)
	}
	c.IDs = nil
	return c
}

func (g *generationCounters) carryTo(to *generationCounters) {
	g.t.Helper()
	if err := writeLedger(to.ledger, to.account(g.account(nil)).entries); err != nil {
		g.t.Fatal(err)
	}
}

func (g *generationCounters) account(before *account) *account {
	g.t.Helper()
	a, err := openAccount(g.counters, g.ledger, before)
	if err != nil {
		g.t.Fatal(err)
	}
	return a
}

func wantCounts(t testing.TB, when string, got, want Counts) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", when, diff)
	}
}

func TestCarry(t *testing.T) {
	requireRoot(t)
	a, b, c, d := portRule(policy.Allow, 1), portRule(policy.Deny, 2), portRule(policy.Allow, 3), portRule(policy.Failsafe, 4)

	first := newGenerationCounters(t, a, b, c, d)
	first.count(counterTracked, 7, 700)
	first.count(counterMalformed, 1, 0)
	first.count(counterFragment, 2, 200)
	first.count(counterFailsafe, 3, 300)
	first.count(counterNoMetadata, 4, 0)
	first.rule(0, 10, 1000)
	first.rule(1, 20, 2000)
	first.rule(2, 30, 3000)
	first.rule(3, 40, 4000)
	want := Counts{
		Untracked: n(40, 4000), Denied: n(20, 2000), Tracked: n(7, 700),
		Failsafe: n(43, 4300), Malformed: n(1, 0), Fragment: n(2, 200), NoMetadata: 4,
		Rules: []Counter{n(10, 1000), n(20, 2000), n(30, 3000), n(40, 4000)},
	}
	wantCounts(t, "before", first.counts(), want)

	// c and a change places, b and d retire, one rule is new.
	second := newGenerationCounters(t, c, portRule(policy.Deny, 5), a)
	first.carryTo(second)
	want.Rules = []Counter{n(30, 3000), {}, n(10, 1000)}
	wantCounts(t, "after a change", second.counts(), want)

	first.carryTo(second)
	wantCounts(t, "carried twice", second.counts(), want)

	// What the new generation counts meanwhile is not lost by carrying again.
	second.rule(0, 1, 60)
	second.rule(1, 2, 120)
	second.count(counterTracked, 1, 50)
	first.carryTo(second)
	want.Untracked.add(n(1, 60))
	want.Denied.add(n(2, 120))
	want.Tracked.add(n(1, 50))
	want.Rules = []Counter{n(31, 3060), n(2, 120), n(10, 1000)}
	wantCounts(t, "counted and carried", second.counts(), want)

	// A late packet of the old generation, which another CPU was still at, is found by carrying again.
	first.rule(0, 1, 100)
	first.carryTo(second)
	want.Untracked.add(n(1, 100))
	want.Rules[2] = n(11, 1100)
	wantCounts(t, "a late packet", second.counts(), want)

	// All rules retire; the sums stay through further generations.
	third, fourth := newGenerationCounters(t), newGenerationCounters(t, a)
	second.carryTo(third)
	third.carryTo(fourth)
	want.Rules = []Counter{{}}
	wantCounts(t, "two generations on", fourth.counts(), want)
}

// When a rule last matched goes on with it, whichever generation saw it; sums have the newest of what they sum up.
func TestCarryLast(t *testing.T) {
	requireRoot(t)
	saw := func(g *generationCounters, entry int, ticks ...uint64) {
		t.Helper()
		perCPU := make([]tally, ebpf.MustPossibleCPU())
		for i, tick := range ticks {
			perCPU[i%len(perCPU)].add(tally{Packets: 1, Bytes: 1, Last: tick})
		}
		if err := g.counters.Put(uint32(entry), perCPU); err != nil {
			t.Fatal(err)
		}
	}
	at := func(tick uint64, packets uint64) Counter { return Counter{packets, packets, testClock.time(tick)} }
	a, b, never := portRule(policy.Allow, 1), portRule(policy.Allow, 2), portRule(policy.Deny, 3)
	first := newGenerationCounters(t, a, b, never)
	saw(first, counterRules, 500, 700, 600)
	saw(first, counterRules+1, 900)
	saw(first, counterTracked, 300)
	second := newGenerationCounters(t, b, a, never)
	saw(second, counterRules+1, 800)
	first.carryTo(second)
	wantCounts(t, "carried", second.counts(), Counts{
		Untracked: at(900, 5), Tracked: at(300, 1), Rules: []Counter{at(900, 1), at(800, 4), {}},
	})
	third := newGenerationCounters(t, a)
	second.carryTo(third)
	wantCounts(t, "carried without the newest", third.counts(), Counts{
		Untracked: at(900, 5), Tracked: at(300, 1), Rules: []Counter{at(800, 4)},
	})
}

// Rules that do not decide count what they matched, and nothing in sum: another rule decides about the packet.
func TestCarryLogAndPass(t *testing.T) {
	requireRoot(t)
	first := newGenerationCounters(t, portRule(policy.Log, 1), portRule(policy.Pass, 2), portRule(policy.Log, 3))
	for i := range 3 {
		first.rule(i, 1, 10)
	}
	second := newGenerationCounters(t, portRule(policy.Log, 3))
	first.carryTo(second)
	wantCounts(t, "two of three retired", second.counts(), Counts{Rules: []Counter{n(1, 10)}})
}

// Of equal rules, each keeps its own count.
func TestCarryEqualRules(t *testing.T) {
	requireRoot(t)
	a := portRule(policy.Allow, 1)
	first := newGenerationCounters(t, a, a, a)
	first.rule(0, 1, 10)
	first.rule(1, 2, 20)
	first.rule(2, 4, 40)
	second := newGenerationCounters(t, portRule(policy.Deny, 9), a, a)
	first.carryTo(second)
	wantCounts(t, "one of three retired", second.counts(), Counts{
		Untracked: n(7, 70), Rules: []Counter{{}, n(1, 10), n(2, 20)},
	})
}

// A rule that changes what it does is another rule: its past stays with what it did.
func TestCarryChangedAction(t *testing.T) {
	requireRoot(t)
	first := newGenerationCounters(t, portRule(policy.Allow, 1))
	first.rule(0, 5, 50)
	second := newGenerationCounters(t, portRule(policy.Deny, 1))
	first.carryTo(second)
	second.rule(0, 1, 10)
	wantCounts(t, "allow became deny", second.counts(), Counts{
		Untracked: n(5, 50), Denied: n(1, 10), Rules: []Counter{n(1, 10)},
	})
}

// readTotals returns a generation's ledger and, for each entry, all that was ever counted for it.
func readTotals(counters, ledger *ebpf.Map) ([]ledgerEntry, []tally, error) {
	a, err := openAccount(counters, ledger, nil)
	if err != nil {
		return nil, nil, err
	}
	return a.entries, a.totals, nil
}
