// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/untracked-cni/untracked/pkg/datapath"
	"github.com/untracked-cni/untracked/pkg/policy"
)

// putInForce writes a record and its rules; nothing is installed.
func putInForce(t *testing.T, dir string, generation uint64, lists []List, interfaces ...InterfaceRecord) {
	t.Helper()
	if err := writeFile(dir, rulesFile, newSnapshot(generation, lists)); err != nil {
		t.Fatal(err)
	}
	if err := writeFile(dir, recordFile, &Record{Generation: generation, Interfaces: interfaces}); err != nil {
		t.Fatal(err)
	}
}

func on(name string, index, list int, generation uint64) InterfaceRecord {
	return InterfaceRecord{Name: name, Index: index, List: list, Generation: generation, Attached: datapath.Attached{Mode: datapath.Native}}
}

// listOf has rules of one policy, each with one of the actions.
func listOf(name string, actions ...policy.Action) (rules []policy.Rule) {
	for i, a := range actions {
		rules = append(rules, policy.Rule{Tier: "default", Policy: name, Index: i, Action: a})
	}
	return rules
}

func TestRuleBookLogs(t *testing.T) {
	type answer struct {
		Rules           int
		Interfaces      []string
		Ingress, Egress bool
	}
	in := List{Rules: policy.Rules{Ingress: listOf("in", policy.Log, policy.Allow, policy.Log)}}
	both := List{Rules: policy.Rules{Ingress: listOf("in", policy.Log), Egress: listOf("in", policy.Log)}}
	out := List{Rules: policy.Rules{Egress: listOf("out", policy.Log)}}
	none := List{Rules: policy.Rules{Ingress: listOf("in", policy.Deny)}}
	bare := on("eth0", 2, 0, 1)
	bare.Attached = datapath.Attached{}
	for name, tt := range map[string]struct {
		lists      []List
		interfaces []InterfaceRecord
		want       answer
	}{
		"ingress":                   {[]List{in}, []InterfaceRecord{on("eth0", 2, 0, 1)}, answer{2, []string{"eth0"}, true, false}},
		"egress":                    {[]List{out}, []InterfaceRecord{on("eth0", 2, 0, 1)}, answer{1, []string{"eth0"}, false, true}},
		"one list, two interfaces":  {[]List{both}, []InterfaceRecord{on("eth0", 2, 0, 1), on("eth1", 3, 0, 1)}, answer{2, []string{"eth0", "eth1"}, true, true}},
		"one rule, two lists":       {[]List{in, both}, []InterfaceRecord{on("eth0", 2, 0, 1), on("eth1", 3, 1, 1)}, answer{3, []string{"eth0", "eth1"}, true, true}},
		"one of two":                {[]List{none, out}, []InterfaceRecord{on("eth0", 2, 0, 1), on("eth1", 3, 1, 1)}, answer{1, []string{"eth1"}, false, true}},
		"none":                      {[]List{none}, []InterfaceRecord{on("eth0", 2, 0, 1)}, answer{}},
		"not installed":             {[]List{in}, []InterfaceRecord{bare}, answer{}},
		"a list without interfaces": {[]List{none, in}, []InterfaceRecord{on("eth0", 2, 0, 1)}, answer{}},
	} {
		b := &ruleBook{runDir: t.TempDir()}
		putInForce(t, b.runDir, 1, tt.lists, tt.interfaces...)
		if err := b.refresh(); err != nil {
			t.Fatal(err)
		}
		var got answer
		got.Rules, got.Interfaces, got.Ingress, got.Egress = b.logs()
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s: -want +got\n%s", name, diff)
		}
	}
}

// TestRuleBookFollows: rules are those of the generation that is asked for, also while the next one is being written.
func TestRuleBookFollows(t *testing.T) {
	list := func(name string) []List {
		return []List{{Rules: policy.Rules{Ingress: listOf(name, policy.Log), Egress: listOf(name, policy.Log)}}}
	}
	b := &ruleBook{runDir: t.TempDir()}
	if err := b.refresh(); !errors.Is(err, ErrNotApplied) {
		t.Errorf("nothing applied: %v, want %v", err, ErrNotApplied)
	}
	want := func(when string, ifindex int, generation uint64, name, policyName string) {
		t.Helper()
		got, rules := b.rules(ifindex, policy.Ingress, generation)
		if got != name || len(rules) > 1 || (len(rules) == 0) != (policyName == "") || len(rules) == 1 && rules[0].Policy != policyName {
			t.Errorf("%s: interface %d in generation %d: %q, %v; want %q, rules of %q", when, ifindex, generation, got, rules, name, policyName)
		}
	}
	putInForce(t, b.runDir, 1, list("first"), on("eth0", 2, 0, 1), on("eth1", 3, 0, 1))
	want("first", 2, 1, "eth0", "first")
	want("first", 2, 0, "eth0", "first")
	want("of an unknown generation", 2, 9, "eth0", "")
	want("no such interface", 4, 1, "", "")

	if err := writeFile(b.runDir, rulesFile, newSnapshot(2, list("second"))); err != nil {
		t.Fatal(err)
	}
	want("rules without their record", 2, 1, "eth0", "first")
	if err := writeFile(b.runDir, recordFile, &Record{Generation: 1, Network: "changed", Interfaces: []InterfaceRecord{on("eth0", 2, 0, 1)}}); err != nil {
		t.Fatal(err)
	}
	want("rules that are not the record's", 2, 1, "eth0", "first")
	putInForce(t, b.runDir, 2, list("second"), on("eth0", 2, 0, 2))
	want("second", 2, 2, "eth0", "second")
	want("second", 2, 0, "eth0", "second")
	want("before the second", 2, 1, "eth0", "first")
	want("gone with the second", 3, 1, "eth1", "first")
}

func TestLockMonitor(t *testing.T) {
	dir := t.TempDir()
	first, err := lockMonitor(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lockMonitor(dir); !errors.Is(err, ErrBusy) {
		t.Errorf("second monitor: %v, want %v", err, ErrBusy)
	}
	unlock, err := lock(t.Context(), dir) // which apply takes
	if err != nil {
		t.Fatal(err)
	}
	unlock()
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	next, err := lockMonitor(dir)
	if err != nil {
		t.Fatalf("after the first has ended: %v", err)
	}
	next.Close()
}
