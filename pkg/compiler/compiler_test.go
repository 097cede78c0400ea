// SPDX-License-Identifier: Apache-2.0

package compiler

import (
	"bytes"
	"net/netip"
	"reflect"
	"testing"

	"github.com/untracked-cni/untracked/pkg/netset"
	"github.com/untracked-cni/untracked/pkg/packet"
	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/pkg/policy/policytest"
)

// The tables must give the evaluator's first match on every packet.
func TestClassifyAgreesWithEvaluator(t *testing.T) {
	compared := 0
	for seed := range uint64(150) {
		g := policytest.New(seed)
		rules := g.Rules(1 + g.IntN(150))
		image, err := Compile(rules)
		if err != nil {
			t.Fatal(err)
		}
		for range 400 {
			frame := g.Frame()
			p, _ := packet.Parse(frame)
			if p == nil {
				continue
			}
			p.Quoted = nil // Classify is about one header
			p.HopLimit = 1 // and about rules alone
			want := policy.Evaluate(rules, p).Rule
			if got := image.Classify(p); got != want {
				t.Fatalf("seed %d: packet %+v: tables say rule %d, evaluator %d", seed, p, got, want)
			}
			compared++
		}
	}
	t.Logf("%d packets compared", compared)
}

func TestDeterministic(t *testing.T) {
	rules := policytest.New(7).Rules(100)
	a, err := Compile(rules)
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		b, err := Compile(rules)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(a.Bytes, b.Bytes) || !reflect.DeepEqual(a.Layout, b.Layout) {
			t.Fatal("the same rules gave different images")
		}
	}
}

func TestUnusedDimensionsHaveNoTables(t *testing.T) {
	set := netset.Of(netip.MustParsePrefix("10.0.0.0/8"))
	image, err := Compile([]policy.Rule{{Action: policy.Deny, Source: policy.Entity{Nets: set}}})
	if err != nil {
		t.Fatal(err)
	}
	l := image.Layout
	if l.Src4.Count != 3 || l.Dst4.Count != 0 || l.Dst6.Count != 0 || l.L4.NPages != 0 || l.Sport.NPages != 0 {
		t.Errorf("unexpected tables: %+v", l)
	}
	// One class that does not accept the rule is not the same as no table: IPv6 never matches here.
	if l.Src6.Count != 1 {
		t.Errorf("IPv6 sources have %d intervals, want 1", l.Src6.Count)
	}
}

func TestBounds(t *testing.T) {
	if _, err := Compile(make([]policy.Rule, MaxRules+1)); err == nil {
		t.Error("too many rules were accepted")
	}
	image, err := Compile(nil)
	if err != nil || len(image.Bytes) == 0 {
		t.Errorf("no rules: %v, %d bytes", err, len(image.Bytes))
	}
	if got := image.Classify(&policy.Packet{Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr("10.0.0.2")}); got != policy.NoRule {
		t.Errorf("no rules: rule %d matched", got)
	}
}

// Large lists stay small and quick: each CIDR that stands alone costs two intervals of 8 bytes.
func TestMemoryPerCIDR(t *testing.T) {
	g := policytest.New(1)
	var b netset.Builder
	const n = 100_000
	for range n {
		b.Add(netip.PrefixFrom(netset.To4(g.Uint32()), 32))
	}
	image, err := Compile([]policy.Rule{{Action: policy.Deny, Source: policy.Entity{Nets: b.Build()}}})
	if err != nil {
		t.Fatal(err)
	}
	if per := len(image.Bytes) / n; per > 24 {
		t.Errorf("%d bytes a CIDR", per)
	}
}
