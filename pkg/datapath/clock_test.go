// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/pkg/packet/packettest"
)

// window is a clock, and between which times it was read. The coarse clock goes on when jiffies do, so that a late tick
// makes no difference.
type window struct {
	clock
	from, to    time.Time
	least, most time.Duration // by the coarse clock
}

func readWindow(t *testing.T) (w window) {
	t.Helper()
	coarse := func() time.Duration {
		var now unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC_COARSE, &now); err != nil {
			t.Fatal(err)
		}
		return time.Duration(now.Nano())
	}
	var err error
	w.from, w.least = time.Now(), coarse()
	w.clock, err = readClock()
	w.to, w.most = time.Now(), coarse()
	if err != nil {
		t.Fatal(err)
	}
	if w.now.Before(w.from) || w.now.After(w.to) {
		t.Errorf("it is %s, want between %s and %s", w.now, w.from, w.to)
	}
	return w
}

// Jiffies pass as time does.
func TestClock(t *testing.T) {
	requireRoot(t)
	before := readWindow(t)
	if before.tick < time.Second/1000 || before.tick > time.Second/24 {
		t.Errorf("a tick of %s, want one of HZ 24 to 1000", before.tick)
	}
	time.Sleep(300 * time.Millisecond)
	after := readWindow(t)
	passed := time.Duration(after.jiffies-before.jiffies) * before.tick
	// Each end may be seen in the middle of a tick.
	least, most := after.least-before.most-2*before.tick, after.most-before.least+2*before.tick
	if passed < least || passed > most {
		t.Errorf("%s by jiffies, want %s to %s", passed, least, most)
	}
	if got := after.time(before.jiffies); !got.Equal(after.now.Add(-passed)) {
		t.Errorf("the jiffies of the first look were those of %s, want %s before %s", got, passed, after.now)
	}
	if got := before.time(before.after(time.Hour)).Sub(before.now); got < time.Hour || got > time.Hour+before.tick {
		t.Errorf("an hour ahead is %s ahead", got)
	}
	if !before.time(0).IsZero() {
		t.Error("what never was has a time")
	}
}

// A counter knows when it was last counted.
func TestCounterLast(t *testing.T) {
	requireRoot(t)
	program := load(t, XDP, packettest.Rules(), ProgramOptions{})
	count := func() (before, after clock) {
		t.Helper()
		var err error
		if before, err = readClock(); err != nil {
			t.Fatal(err)
		}
		if _, _, err := program.Test(packettest.Fixtures()[0].Frame); err != nil {
			t.Fatal(err)
		}
		if after, err = readClock(); err != nil {
			t.Fatal(err)
		}
		return before, after
	}
	count()
	time.Sleep(50 * time.Millisecond)
	before, after := count()
	_, totals, err := readTotals(program.counters, program.ledger)
	if err != nil {
		t.Fatal(err)
	}
	redis := totals[counterRules+packettest.AllowRedis]
	if redis.Packets != 2 || redis.Last < before.jiffies || redis.Last > after.jiffies {
		t.Errorf("counted %+v, want 2 packets, the last between ticks %d and %d", redis, before.jiffies, after.jiffies)
	}
	if ssh := totals[counterRules+packettest.FailsafeSSH]; ssh != (tally{}) {
		t.Errorf("a rule that never matched has %+v", ssh)
	}
}
