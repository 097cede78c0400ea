// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"fmt"
	"time"

	"github.com/cilium/ebpf"

	"github.com/untracked-cni/untracked/bpf"
	"github.com/untracked-cni/untracked/pkg/policy"
)

// Entries of the counters map, as enum counter_index in bpf/maps.h.
const (
	counterTracked = iota
	counterFailsafe
	counterMalformed
	counterFragment
	counterUntracked
	counterDenied
	counterNoMetadata
	counterRules = 8
)

// Counter is a number of packets and of their bytes, IP header included.
type Counter struct {
	Packets, Bytes uint64
	// Last is when the last one was counted, to a few milliseconds; zero if none ever was.
	Last time.Time
}

func (c *Counter) add(o Counter) {
	c.Packets += o.Packets
	c.Bytes += o.Bytes
	if o.Last.After(c.Last) {
		c.Last = o.Last
	}
}

// tally is a Counter in the kernel's terms: the last packet is told in jiffies.
type tally bpf.UntrackedCounter

func (t *tally) add(o tally) {
	t.Packets += o.Packets
	t.Bytes += o.Bytes
	t.Last = max(t.Last, o.Last)
}

// ledgerEntry says whose counter the same entry of the counters map is, and what it had counted before this
// generation. Only user space writes it. Together with the pinned counters map it makes a generation's counts
// complete in themselves: no file has to agree with them.
type ledgerEntry struct {
	ID     uint64 // policy.IDs, or 0 below counterRules
	Action uint64 // policy.Action, or 0
	Past   tally
}

const (
	counterSize = 24 // of struct counter in bpf/maps.h
	ledgerSize  = 16 + counterSize
)

// NewCounters creates the counters of a generation: a per-CPU map that the programs write and a ledger that
// names its entries. The caller closes both.
func NewCounters(rules []policy.Rule) (counters, ledger *ebpf.Map, err error) {
	n := uint32(counterRules + len(rules))
	counters, err = newMap(&ebpf.MapSpec{
		Name: countersName, Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: counterSize, MaxEntries: n,
	})
	if err != nil {
		return nil, nil, err
	}
	ledger, err = newMap(&ebpf.MapSpec{
		Name: ledgerName, Type: ebpf.Array, KeySize: 4, ValueSize: ledgerSize, MaxEntries: n,
	})
	if err != nil {
		counters.Close()
		return nil, nil, err
	}
	entries := make([]ledgerEntry, n)
	for i, id := range policy.IDs(rules) {
		entries[counterRules+i] = ledgerEntry{ID: id, Action: uint64(rules[i].Action)}
	}
	if err := writeLedger(ledger, entries); err != nil {
		counters.Close()
		ledger.Close()
		return nil, nil, err
	}
	return counters, ledger, nil
}

func writeLedger(ledger *ebpf.Map, entries []ledgerEntry) error {
	for i := range entries {
		if entries[i] == (ledgerEntry{}) {
			continue
		}
		if err := ledger.Put(uint32(i), entries[i]); err != nil {
			return fmt.Errorf("write the ledger: %w", err)
		}
	}
	return nil
}

// readCounters returns the ledger and, for each entry, what its generation counted by itself.
func readCounters(counters, ledger *ebpf.Map) ([]ledgerEntry, []tally, error) {
	n := int(counters.MaxEntries())
	entries, counted := make([]ledgerEntry, n), make([]tally, n)
	var perCPU []tally
	for i := range n {
		key := uint32(i)
		if err := ledger.Lookup(key, &entries[i]); err != nil {
			return nil, nil, fmt.Errorf("read the ledger: %w", err)
		}
		if err := counters.Lookup(key, &perCPU); err != nil {
			return nil, nil, fmt.Errorf("read counters: %w", err)
		}
		for _, c := range perCPU {
			counted[i].add(c)
		}
	}
	return entries, counted, nil
}

// account is a ledger with, for each entry, all that was ever counted for it.
type account struct {
	entries []ledgerEntry
	totals  []tally
}

// openAccount reads a generation's account. before is that of the generation before it, nil if there is none: what it
// has is handed on, whatever the ledger says so far.
func openAccount(counters, ledger *ebpf.Map, before *account) (*account, error) {
	entries, totals, err := readCounters(counters, ledger)
	if err != nil {
		return nil, err
	}
	if before != nil {
		before.handOn(entries)
	}
	for i := range totals {
		totals[i].add(entries[i].Past)
	}
	return &account{entries, totals}, nil
}

// handOn sets what a ledger remembers to all that the generation before it counted: rule by rule where the rule is still
// there, into the sum of its action where it is not (there is none of what does not decide). It sets and never adds, so
// that doing it twice, after a crash, is doing it once.
func (a *account) handOn(to []ledgerEntry) {
	place := make(map[uint64]int, len(to))
	for i := range to {
		to[i].Past = tally{}
		if to[i].ID != 0 {
			place[to[i].ID] = i
		}
	}
	retired := map[policy.Action]int{
		policy.Allow: counterUntracked, policy.Deny: counterDenied, policy.Failsafe: counterFailsafe,
	}
	for i, e := range a.entries {
		at := i
		if e.ID != 0 {
			kept, ok := place[e.ID]
			if !ok {
				if kept, ok = retired[policy.Action(e.Action)]; !ok {
					continue
				}
			}
			at = kept
		}
		to[at].Past.add(a.totals[i])
	}
}

// Counts is what one interface's programs have counted on arrival, policy changes included.
type Counts struct {
	Untracked, Denied, Tracked, Failsafe, Malformed, Fragment Counter
	// NoMetadata counts untracked packets that could not be handed over to tc, because the driver gives XDP no
	// room for metadata: they stayed tracked.
	NoMetadata uint64
	// Rules has one entry for each ingress rule, in order, and IDs the rule's policy.IDs: beside an apply, the rules
	// may be others already than those on record.
	Rules []Counter
	IDs   []uint64
}

// Places finds the entry of a rule in Rules by its identity.
func (c *Counts) Places() map[uint64]int {
	out := make(map[uint64]int, len(c.IDs))
	for at, id := range c.IDs {
		out[id] = at
	}
	return out
}

func newCounts(a *account, c clock) Counts {
	counters := make([]Counter, len(a.totals))
	for i, t := range a.totals {
		counters[i] = Counter{t.Packets, t.Bytes, c.time(t.Last)}
	}
	out := Counts{
		Tracked: counters[counterTracked], Failsafe: counters[counterFailsafe], Malformed: counters[counterMalformed],
		Fragment: counters[counterFragment], Untracked: counters[counterUntracked], Denied: counters[counterDenied],
		NoMetadata: counters[counterNoMetadata].Packets,
		Rules:      counters[counterRules:],
	}
	for i, e := range a.entries {
		if i >= counterRules {
			out.IDs = append(out.IDs, e.ID)
		}
		switch policy.Action(e.Action) {
		case policy.Allow:
			out.Untracked.add(counters[i])
		case policy.Deny:
			out.Denied.add(counters[i])
		case policy.Failsafe:
			out.Failsafe.add(counters[i])
		}
	}
	return out
}
