// SPDX-License-Identifier: Apache-2.0

package compiler

import (
	"bytes"
	"net/netip"
	"reflect"
	"slices"
	"strings"
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
			want, wantVia := policy.Walk(rules, p)
			got, via := image.Classify(p)
			if got != want || !slices.Equal(via, wantVia) {
				t.Fatalf("seed %d: packet %+v: tables say rule %d via %v, evaluator %d via %v", seed, p, got, via, want, wantVia)
			}
			if len(via) > int(image.Layout.Hops) {
				t.Fatalf("seed %d: packet %+v matched %v, more than %d", seed, p, via, image.Layout.Hops)
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
	if got, _ := image.Classify(&policy.Packet{Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr("10.0.0.2")}); got != policy.NoRule {
		t.Errorf("no rules: rule %d matched", got)
	}
}

// How many rules a packet may match without a decision: a Pass skips the rest of its tier.
func TestHops(t *testing.T) {
	rules := func(tiers ...string) (out []policy.Rule) {
		actions := map[rune]policy.Action{'a': policy.Allow, 'l': policy.Log, 'p': policy.Pass}
		for i, tier := range tiers {
			for _, a := range tier {
				out = append(out, policy.Rule{Tier: string(rune('A' + i)), Action: actions[a]})
			}
		}
		return out
	}
	for _, c := range []struct {
		rules []policy.Rule
		want  uint32
	}{
		{nil, 0},
		{rules("aaa", "a"), 0},
		{rules("lal"), 2},
		{rules("ppp"), 1},
		{rules("pppl"), 1},
		{rules("plll", "p"), 4},
		{rules("lp", "pa", "al"), 4},
		{rules(strings.Repeat("p", MaxRules)), 1},
		{rules(strings.Repeat("a", MaxRules-MaxHops) + strings.Repeat("l", MaxHops)), MaxHops},
	} {
		image, err := Compile(c.rules)
		if err != nil {
			t.Fatal(err)
		}
		if image.Layout.Hops != c.want {
			t.Errorf("%v: %d hops, want %d", c.rules, image.Layout.Hops, c.want)
		}
	}
	_, err := Compile(rules(strings.Repeat("l", MaxHops+1)))
	if err == nil || !strings.Contains(err.Error(), "Log") {
		t.Errorf("too many Log rules: %v", err)
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
