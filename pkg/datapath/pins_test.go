// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/untracked-cni/untracked/pkg/compiler"
	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/test/lab"
)

// named makes a directory that looks like pins: what only reads names needs no kernel.
func named(t *testing.T, names ...string) *Pins {
	t.Helper()
	p := PinsAt(t.TempDir())
	for _, name := range names {
		path := filepath.Join(p.interfaces(), name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

func TestVerifyGenerations(t *testing.T) {
	complete := []string{"2/tables-7", "2/counters-7", "2/ledger-7", "2/note-7", "2/xdp", "2/tc"}
	with := func(more ...string) []string { return append(more, complete...) }
	for name, c := range map[string]struct {
		pins       []string
		interfaces map[int]uint64
		want       string // in the error; empty: none
	}{
		"nothing":                      {nil, nil, ""},
		"complete":                     {complete, map[int]uint64{2: 7}, ""},
		"an interface without a list":  {complete, map[int]uint64{2: 7, 3: 0}, ""},
		"two generations":              {with("3/tables-5", "3/counters-5", "3/ledger-5", "3/note-5"), map[int]uint64{2: 7, 3: 5}, ""},
		"unknown names":                {with("2/tables-x", "2/other-3", "x/y"), map[int]uint64{2: 7}, ""},
		"no tables":                    {complete[1:], map[int]uint64{2: 7}, "tables-7 is missing"},
		"no ledger":                    {complete[:2], map[int]uint64{2: 7}, "ledger-7 is missing"},
		"no note":                      {complete[:3], map[int]uint64{2: 7}, "note-7 is missing"},
		"another generation":           {complete, map[int]uint64{2: 8}, "tables-8 is missing"},
		"no pins":                      {complete, map[int]uint64{2: 7, 3: 7}, "interfaces/3/tables-7 is missing"},
		"tables of the one before":     {with("2/tables-6"), map[int]uint64{2: 7}, "tables-* of several generations"},
		"counters of one under way":    {with("2/counters-8"), map[int]uint64{2: 7}, "counters-* of several generations"},
		"an interface out of the list": {with("9/tc"), map[int]uint64{2: 7}, "pins of interface 9"},
	} {
		err := named(t, c.pins...).VerifyGenerations(c.interfaces)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// No number is given out twice, whatever of a generation a killed caller left.
func TestLastGeneration(t *testing.T) {
	for want, pins := range map[uint64][]string{
		0:  {"2/xdp", "2/tc"},
		7:  {"2/tables-7", "2/counters-6", "2/ledger-6"},
		12: {"2/tables-7", "2/counters-7", "2/ledger-7", "3/ledger-12"},
	} {
		if got, err := named(t, pins...).LastGeneration(); got != want || err != nil {
			t.Errorf("%v: %d, %v, want %d", pins, got, err, want)
		}
	}
}

// Every interface has a list of its own; those that have the same one share its tables.
func TestListsOfInterfaces(t *testing.T) {
	b := newBenchIn(t, lab.Config{Uplinks: 3})
	same, other := []policy.Rule{udpRule(policy.Allow, 700)}, []policy.Rule{udpRule(policy.Deny, 700)}
	renamed := []policy.Rule{same[0]}
	renamed[0].Policy = "renamed"

	g := b.pins.NewGeneration(1, testMark)
	tables := func(rules []policy.Rule) *Tables {
		t.Helper()
		image, err := compiler.Compile(rules)
		b.must(err)
		out, err := g.Tables(rules, image)
		b.must(err)
		return out
	}
	lists := []*Tables{tables(same), tables(renamed), tables(other)}
	if pinned := b.pinned(); len(pinned) != 0 {
		t.Errorf("tables alone have pinned %v", pinned)
	}
	interfaces := map[int]uint64{}
	ids := make([]ebpf.MapID, len(lists))
	for i, list := range lists {
		target := Target{Name: "eth" + strconv.Itoa(i), Index: b.lab.Uplinks[i].NodeIndex}
		interfaces[target.Index] = 1
		b.in(func() error {
			_, _, err := g.Install(target, []Mode{Native}, list)
			return err
		})
		m, err := loadMap(b.pins.generation(target.Index, tablesPin, 1))
		b.must(err)
		defer m.Close()
		info, err := m.Info()
		b.must(err)
		ids[i], _ = info.ID()
	}
	b.must(g.Close())
	if ids[0] != ids[1] || ids[0] == ids[2] {
		t.Errorf("the tables are maps %v, want the first two to be one", ids)
	}
	b.must(b.pins.VerifyGenerations(interfaces))

	for i := range lists {
		_, err := lab.FloodUDP(b.lab.Client, lab.Load{Target: netip.AddrPortFrom(b.lab.Uplinks[i].Node4, 700), Count: uint64(i + 1)})
		b.must(err)
	}
	for i, verdict := range []policy.Verdict{policy.Untracked, policy.Untracked, policy.Denied} {
		b.target.Index = b.lab.Uplinks[i].NodeIndex
		b.wantRule(0, uint64(i+1))
		c := b.counts()
		if got := map[policy.Verdict]uint64{policy.Untracked: c.Untracked.Packets, policy.Denied: c.Denied.Packets}; got[verdict] != uint64(i+1) {
			t.Errorf("eth%d counted %v, want %d packets %s", i, got, i+1, verdict)
		}
		if c.Rules[0].Last.IsZero() {
			t.Errorf("eth%d does not know when its rule last matched", i)
		}
	}

	// What one interface lets go of stays with the other.
	delete(interfaces, b.lab.Uplinks[0].NodeIndex)
	b.prune(interfaces)
	b.must(b.pins.VerifyGenerations(interfaces))
	b.target.Index = b.lab.Uplinks[1].NodeIndex
	_, err := lab.FloodUDP(b.lab.Client, lab.Load{Target: netip.AddrPortFrom(b.lab.Uplinks[1].Node4, 700), Count: 1})
	b.must(err)
	b.wantRule(0, 3)
}

// An install that fails leaves what was there, and nothing of its own.
func TestFailedInstall(t *testing.T) {
	b := newBench(t)
	b.install(1, Classifier, udpRule(policy.Allow, 700))
	before := b.pinned()
	target := b.target
	target.Layer3 = true
	if _, refused, err := b.tryInstall(2, target, []Mode{Native, Generic}, udpRule(policy.Allow, 701)); err == nil || len(refused) != 2 {
		t.Errorf("installed all the same: %v, %v", refused, err)
	}
	b.wantPinned("failed", before...)
	// Where a pin cannot be made: somebody put a directory in its place.
	blocked := b.pins.generation(b.target.Index, countersPin, 3)
	b.must(os.MkdirAll(filepath.Join(blocked, "inner"), 0o700))
	if _, _, err := b.tryInstall(3, b.target, []Mode{Classifier}); err == nil {
		t.Error("installed without a pin for its counters")
	}
	b.must(os.RemoveAll(blocked))
	b.wantPinned("failed to pin", before...)
	b.send(700, 3)
	b.wantRule(0, 3)
}
