// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"testing"

	"github.com/untracked-cni/untracked/pkg/packet"
	"github.com/untracked-cni/untracked/pkg/packet/packettest"
	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/pkg/policy/policytest"
)

// FuzzPacket runs frames through the loaded programs, specialised for several policies, and compares them with
// the Go parser and evaluator. As a plain test it runs the named frames and random ones, and all of them cut short.
func FuzzPacket(f *testing.F) {
	requireRoot(f)
	type subject struct {
		rules    []policy.Rule
		programs []*loaded // one for each of kinds
	}
	kinds := kinds(f)
	policies := [][]policy.Rule{packettest.Rules(), nil}
	for seed := range uint64(3) {
		policies = append(policies, policytest.New(seed).Rules(40))
	}
	var subjects []subject
	for _, rules := range policies {
		s := subject{rules: rules}
		for _, kind := range kinds {
			s.programs = append(s.programs, load(f, kind, rules, ProgramOptions{MarkBit: 0x1000, Trace: true}))
		}
		subjects = append(subjects, s)
	}

	for _, fixture := range packettest.Fixtures() {
		f.Add(fixture.Frame)
		// At every boundary that a parser may trip over; the fuzzer finds those between.
		for _, n := range []int{14, 17, 18, 22, 33, 34, 38, 41, 42, 53, 54, 61, 62, 69, 70, 73, 81, 82} {
			if n < len(fixture.Frame) {
				f.Add(fixture.Frame[:n])
			}
		}
	}
	for seed := range uint64(3) {
		g := policytest.New(seed)
		for range 50 {
			f.Add(g.Frame())
		}
	}

	f.Fuzz(func(t *testing.T, frame []byte) {
		if len(frame) > 3000 {
			t.Skip("a test run takes a page of linear data at most")
		}
		for _, s := range subjects {
			want := packet.Decide(s.rules, frame)
			for i, program := range s.programs {
				kind := kinds[i]
				if !runnable(kind, frame) {
					continue
				}
				got, err := Decide(program.Program, frame)
				if err != nil {
					t.Fatalf("%s: %v", kind, err)
				}
				if got != want {
					p, reason := packet.Parse(frame)
					t.Fatalf("%s: got %+v, want %+v\nframe %x\npacket %+v %s", kind, got, want, frame, p, reason)
				}
			}
		}
	})
}
