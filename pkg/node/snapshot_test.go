// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/untracked-cni/untracked/pkg/netset"
	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/pkg/policy/policytest"
)

var sameSet = cmp.Comparer(func(a, b *netset.Set) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Equal(b) && a.Entries() == b.Entries()
})

func TestSnapshot(t *testing.T) {
	g := policytest.New(3)
	lists := []List{{Rules: policy.Rules{Ingress: g.Rules(200), Egress: g.Rules(50)}}, {Rules: policy.Rules{Ingress: g.Rules(1)}}, {}}
	lists[1].Ingress[0].Source = lists[0].Ingress[0].Source // a set that two rules share
	dir := t.TempDir()
	if err := writeFile(dir, rulesFile, newSnapshot(7, lists)); err != nil {
		t.Fatal(err)
	}
	s, err := readSnapshot(dir)
	if err != nil {
		t.Fatal(err)
	}
	if s.Generation != 7 {
		t.Errorf("generation %d", s.Generation)
	}
	for i, l := range lists {
		got := s.rules(i)
		if diff := cmp.Diff(l.Rules, got, sameSet, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("list %d: -want +got\n%s", i, diff)
		}
		for _, way := range []policy.Direction{policy.Ingress, policy.Egress} {
			if diff := cmp.Diff(policy.IDs(l.Of(way)), policy.IDs(got.Of(way))); diff != "" {
				t.Errorf("list %d, %s: identities -want +got\n%s", i, way, diff)
			}
			// No ports at all and any port are different.
			for n, r := range l.Of(way) {
				if (r.Source.Ports == nil) != (got.Of(way)[n].Source.Ports == nil) {
					t.Errorf("list %d, rule %d: ports %v became %v", i, n, r.Source.Ports, got.Of(way)[n].Source.Ports)
				}
			}
		}
	}
	if r := s.rules(9); r.Ingress != nil || r.Egress != nil {
		t.Errorf("a list that is not there has %d rules", len(r.Ingress))
	}
}

// A set that rules of several lists name is there once, also where each made its own of the same addresses.
func TestSnapshotHasSetsOnce(t *testing.T) {
	big := func(more ...string) policy.Entity {
		prefixes := []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
		for _, p := range more {
			prefixes = append(prefixes, netip.MustParsePrefix(p))
		}
		return policy.Entity{Nets: netset.Of(prefixes...), NetsName: "selector has(bad)"}
	}
	shared := big()
	lists := []List{
		{Rules: policy.Rules{Ingress: []policy.Rule{{Source: shared}, {Source: big(), Destination: shared}, {Source: big("198.51.100.1/32")}}}},
		{Rules: policy.Rules{Ingress: []policy.Rule{{Source: shared}}, Egress: []policy.Rule{{Destination: big()}}}},
		{Rules: policy.Rules{Ingress: []policy.Rule{{Source: big("192.0.2.7/32")}}}}, // the same addresses of two entries
	}
	s := newSnapshot(1, lists)
	if len(s.Sets) != 3 {
		t.Errorf("%d sets, want 3", len(s.Sets))
	}
	for i, l := range lists {
		if diff := cmp.Diff(l.Rules, s.rules(i), sameSet, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("list %d: -want +got\n%s", i, diff)
		}
	}
}

// TestReadInForce: rules that are not those of the record are never taken for them.
func TestReadInForce(t *testing.T) {
	dir := t.TempDir()
	if record, s, err := readInForce(dir); record != nil || s != nil || err != nil {
		t.Errorf("nothing applied: %v, %v, %v", record, s, err)
	}
	write := func(name string, content any) {
		if err := writeFile(dir, name, content); err != nil {
			t.Error(err)
		}
	}
	write(rulesFile, newSnapshot(2, nil))
	write(recordFile, &Record{Generation: 1})
	if _, _, err := readInForce(dir); !errors.Is(err, ErrChanging) {
		t.Errorf("an apply that was cut off between the two: %v", err)
	}
	time.AfterFunc(20*time.Millisecond, func() { write(recordFile, &Record{Generation: 2}) })
	for {
		record, s, err := readInForce(dir)
		if errors.Is(err, ErrChanging) {
			continue // on a slow machine
		}
		if err != nil || record.Generation != 2 || s.Generation != 2 {
			t.Errorf("record %v, rules %v, %v", record, s, err)
		}
		break
	}
}

// An apply that gets nowhere leaves the record of what is in force, and what is known to be wrong with that.
func TestRecordKept(t *testing.T) {
	n := &Node{RunDir: t.TempDir()}
	old := &Record{Policy: "in force", Problems: []Problem{{Code: ProblemConntrack, Broken: true}, {Code: ProblemNoLog}, {Code: ProblemUpper}}}
	failed := &Record{Policy: "tried", Problems: []Problem{{Code: ProblemNotAttached, Broken: true}, {Code: ProblemNoLog}}}
	kept, err := n.recordKept(failed, old, nil, n.begin())
	if err != nil {
		t.Fatal(err)
	}
	var codes []string
	for _, p := range kept.Problems {
		codes = append(codes, p.Code)
	}
	if want := []string{ProblemNotAttached, ProblemNoLog, ProblemConntrack}; kept.Policy != "in force" || !slices.Equal(codes, want) || !kept.Broken {
		t.Errorf("kept %q with the problems %v, want %v", kept.Policy, codes, want)
	}
	if len(failed.Problems) != 2 {
		t.Error("the failed record was changed")
	}
}
