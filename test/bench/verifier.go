// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/untracked-cni/untracked/bpf"
	"github.com/untracked-cni/untracked/pkg/compiler"
	"github.com/untracked-cni/untracked/pkg/datapath"
	"github.com/untracked-cni/untracked/pkg/netset"
	"github.com/untracked-cni/untracked/pkg/policy"
)

// benchVerifier loads the largest specialisations: all four dimensions in both families, with and without Log rules.
func benchVerifier(effort) ([]Row, error) {
	var subjects []subject
	for _, c := range []struct {
		name string
		n    int
		wide bool
		log  bool
	}{
		{"all dimensions, " + count(compiler.MaxRules, "rule"), compiler.MaxRules, false, false},
		{"all dimensions and Log, " + count(4096, "rule"), 4096, false, true},
		{"all dimensions, 500 rules that overlap", 500, true, false},
		{"all dimensions and Log, 500 rules that overlap", 500, true, true},
	} {
		progress("compiling %s", c.name)
		rules := manifold(c.n, c.wide, c.log)
		image, err := compiler.Compile(rules)
		if err != nil {
			subjects = append(subjects, refused(c.name, err))
			continue
		}
		for _, kind := range []datapath.Kind{datapath.XDP, datapath.XDPFrags, datapath.TC} {
			progress("verifying %s, %s", kind, c.name)
			n, err := verified(kind, rules, image, c.log)
			if err != nil {
				return nil, err
			}
			subjects = append(subjects, once(fmt.Sprintf("%s, %s", kind, c.name), float64(n), atMost(150_000)))
		}
	}
	return measureOnce("insns", subjects)
}

// manifold is n rules that use everything a rule can match. They have networks and ports of their own, or wide ones
// that overlap.
func manifold(n int, wide, log bool) []policy.Rule {
	rules := failsafes()
	r := seeded(5, n)
	protocols := []uint8{policy.TCP, policy.UDP}
	actions := []policy.Action{policy.Allow, policy.Deny}
	network := func(family int) *netset.Set {
		bits := map[int]int{4: 24, 6: 48}[family]
		if wide {
			bits = map[int]int{4: 2, 6: 5}[family] + r.IntN(12)
		}
		return netset.Of(randomPrefix(r, family, bits))
	}
	ports := func() []policy.PortRange {
		first := uint16(firstPort + r.IntN(30000))
		last := first
		if wide {
			last += uint16(r.IntN(20000))
		}
		return []policy.PortRange{{First: first, Last: last}}
	}
	servers := map[int][]*netset.Set{4: {}, 6: {}}
	for family := range servers {
		for range 4 {
			servers[family] = append(servers[family], network(family))
		}
	}
	sourcePorts := [][]policy.PortRange{ports(), ports(), {{First: 1024, Last: 65535}}}
	for i := 0; len(rules) < n; i++ {
		family := 4 + i%2*2
		rule := policy.Rule{
			Policy: "bench", Index: i, Action: actions[r.IntN(2)], Protocol: &protocols[r.IntN(2)],
			Source:      policy.Entity{Nets: network(family), Ports: sourcePorts[r.IntN(3)]},
			Destination: policy.Entity{Nets: servers[family][r.IntN(4)], Ports: ports()},
		}
		if wide {
			rule.Destination.Nets = network(family)
			rule.Source.Ports = ports()
		}
		if log && i%100 == 0 {
			rule.Action = policy.Log
		}
		rules = append(rules, rule)
	}
	return rules
}

// verified is how many instructions the kernel's verifier went through.
func verified(kind datapath.Kind, rules []policy.Rule, image *compiler.Image, log bool) (uint32, error) {
	tables, err := datapath.NewTables(image)
	if err != nil {
		return 0, err
	}
	defer tables.Close()
	counters, ledger, err := datapath.NewCounters(rules)
	if err != nil {
		return 0, err
	}
	defer counters.Close()
	defer ledger.Close()
	o := datapath.ProgramOptions{MarkBit: 0x1000, Layout: image.Layout, Tables: tables, Counters: counters}
	if log {
		spec, err := bpf.LoadUntracked()
		if err != nil {
			return 0, err
		}
		for name, m := range map[string]**ebpf.Map{"events": &o.Events, "monitor": &o.Monitor} {
			if *m, err = ebpf.NewMap(spec.Maps[name]); err != nil {
				return 0, fmt.Errorf("make map %s: %w", name, err)
			}
			defer (*m).Close()
		}
	}
	program, err := datapath.LoadProgram(kind, o)
	if err != nil {
		return 0, err
	}
	defer program.Close()
	info, err := program.Info()
	if err != nil {
		return 0, err
	}
	n, ok := info.VerifiedInstructions()
	if !ok {
		return 0, fmt.Errorf("verified instructions of %s: this kernel does not tell; Linux 5.16 does", kind)
	}
	return n, nil
}
