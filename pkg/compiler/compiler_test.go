// SPDX-License-Identifier: Apache-2.0

package compiler

import (
	"bytes"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/untracked-cni/untracked/pkg/netset"
	"github.com/untracked-cni/untracked/pkg/packet"
	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/pkg/policy/policytest"
)

// agree compares what the tables say about frames with the evaluator.
func agree(t *testing.T, rules []policy.Rule, image *Image, frame func() []byte, frames int) (compared, matched int) {
	t.Helper()
	for range frames {
		p, _ := packet.Parse(frame())
		if p == nil {
			continue
		}
		want, wantVia := policy.Walk(rules, p)
		got, via := image.Classify(p)
		if got != want || !slices.Equal(via, wantVia) {
			t.Fatalf("%s: packet %+v: tables say rule %d via %v, evaluator %d via %v", image.Method.Name, p, got, via, want, wantVia)
		}
		if len(via) > int(image.Layout.Hops) {
			t.Fatalf("packet %+v matched %v, more than %d", p, via, image.Layout.Hops)
		}
		compared++
		if got != policy.NoRule {
			matched++
		}
	}
	return compared, matched
}

// The tables must give the evaluator's first match on every packet.
func TestClassifyAgreesWithEvaluator(t *testing.T) {
	compared := 0
	for seed := range uint64(150) {
		g := policytest.New(seed)
		rules := g.Rules(1 + g.IntN(150))
		if seed%2 == 1 {
			rules = g.Shaped(policytest.Any, 1+g.IntN(150))
		}
		image, err := Compile(rules)
		if err != nil {
			t.Fatal(err)
		}
		if want := [...]string{BitVectors, Combined}[seed%2]; image.Method.Name != want && len(rules) > 20 {
			t.Fatalf("seed %d: method %+v, want %s", seed, image.Method, want)
		}
		n, _ := agree(t, rules, image, g.Frame, 400)
		compared += n
	}
	t.Logf("%d packets compared", compared)
}

// Whatever large lists look like, they are compiled by one method or the other, and say the same as the evaluator.
func TestShapes(t *testing.T) {
	for _, shape := range policytest.Shapes {
		for _, n := range []int{1, 64, 1000, MaxRules} {
			if testing.Short() && n > 1000 {
				continue
			}
			g := policytest.New(uint64(n))
			rules := g.Shaped(shape, n)
			image, err := Compile(rules)
			if err != nil {
				if n > MaxVectorRules && strings.Contains(err.Error(), "overlap") {
					t.Logf("%s, %d rules: %v", shape, n, err)
					continue
				}
				t.Fatalf("%s, %d rules: %v", shape, n, err)
			}
			again, err := Compile(rules)
			if err != nil || !bytes.Equal(image.Bytes, again.Bytes) || image.Layout != again.Layout {
				t.Fatalf("%s, %d rules: the second image differs from the first; %v", shape, n, err)
			}
			g.Aim(rules)
			_, ofAny := agree(t, rules, image, g.Frame, 300)
			compared, matched := agree(t, rules, image, func() []byte { return g.FrameFor(&rules[g.IntN(n)]) }, 700)
			if matched*20 < compared && n > 1 { // one of any kind may match nothing at all
				t.Errorf("%s, %d rules: of %d packets made for a rule only %d match one", shape, n, compared, matched)
			}
			t.Logf("%s, %d rules: %+v, %d KiB; %d of %d and %d of 300 packets match", shape, n, image.Method, len(image.Bytes)>>10, matched, compared, ofAny)
		}
	}
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
		if !bytes.Equal(a.Bytes, b.Bytes) || a.Layout != b.Layout {
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
	if l.Uses != 1<<dimSrc || l.Src4.Root == 0 || l.Dst4 != (Tree{}) || l.L4.Index != 0 || l.Sport.Index != 0 {
		t.Errorf("unexpected tables: %+v", l)
	}
	// One class that does not accept the rule needs no tree: IPv6 never matches here.
	if l.Src6.Root != 0 {
		t.Errorf("IPv6 sources have a tree: %+v", l.Src6)
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
		{rules(strings.Repeat("p", MaxVectorRules)), 1},
		{rules(strings.Repeat("a", MaxVectorRules-MaxHops) + strings.Repeat("l", MaxHops)), MaxHops},
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
