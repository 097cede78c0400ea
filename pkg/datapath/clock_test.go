// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"testing"
	"time"

	"github.com/untracked-cni/untracked/pkg/packet/packettest"
)

// Jiffies pass as time does.
func TestClock(t *testing.T) {
	requireRoot(t)
	before, err := readClock()
	if err != nil {
		t.Fatal(err)
	}
	if before.tick < time.Second/1000 || before.tick > time.Second/24 {
		t.Errorf("a tick of %s, want one of HZ 24 to 1000", before.tick)
	}
	time.Sleep(300 * time.Millisecond)
	after, err := readClock()
	if err != nil {
		t.Fatal(err)
	}
	passed := time.Duration(after.jiffies-before.jiffies) * before.tick
	if off := (passed - after.now.Sub(before.now)).Abs(); off > 100*time.Millisecond {
		t.Errorf("%s by jiffies in %s", passed, after.now.Sub(before.now))
	}
	if got := after.time(before.jiffies).Sub(before.now).Abs(); got > 100*time.Millisecond {
		t.Errorf("the jiffies of the first look are told %s off its time", got)
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
