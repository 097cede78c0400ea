// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/untracked-cni/untracked/pkg/datapath"
)

const emptyCase = "empty program"

// addEmpty adds what the others are compared with, and what the prologues cost by themselves.
func (b *packetBench) addEmpty() error {
	v4 := rulesShape(1, 4, true, false)
	v6 := rulesShape(1, 6, true, false)
	large := &shape{keys: slices.Repeat(v4.keys, manyKeys/usualKeys), last: v4.last}
	for _, c := range []struct {
		name string
		xdp  bool
		bare bool
		pace pace
		s    *shape
	}{
		{emptyCase, true, true, fixed, v4},
		{"prologue and empty program, fixed", true, false, fixed, v4},
		{"prologue and empty program, rot, IPv4", true, false, rotating, v4},
		{"prologue and empty program, rot, IPv4, 1M keys", true, false, rotating, large},
		{"prologue and empty program, rot, IPv6", true, false, rotating, v6},
		{"prologue and empty program, dependent", true, false, dependent, v4},
		{"tc, empty program", false, true, fixed, v4},
		{"tc, prologue and empty program, rot", false, false, rotating, v4},
	} {
		spec := &ebpf.ProgramSpec{
			Name: "empty", Type: ebpf.XDP, AttachType: ebpf.AttachXDP, License: "Dual BSD/GPL",
			Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2).WithSymbol("empty"), asm.Return()},
		}
		if !c.xdp {
			spec.Type, spec.AttachType = ebpf.SchedCLS, ebpf.AttachNone
		}
		counters, ledger, err := datapath.NewCounters(v4.rules)
		if err != nil {
			return err
		}
		b.closers = append(b.closers, counters, ledger)
		t := target{xdp: c.xdp, counters: counters}
		if !c.bare {
			if err := b.prepend(spec, t, c.s, c.pace); err != nil {
				return err
			}
		}
		program, err := ebpf.NewProgram(spec)
		if err != nil {
			return fmt.Errorf("load %s: %w", c.name, err)
		}
		b.closers = append(b.closers, program)
		if err := b.add(subject{name: c.name}, program, c.s); err != nil {
			return err
		}
	}
	return nil
}

// addRules adds lists of rules by their length.
func (b *packetBench) addRules() error {
	lengths := []int{1, 10, 100, 1000, 4096, 16384}
	for _, family := range []int{4, 6} {
		fixedLimit, rotLimit := 4.0, 5.0
		if family == 6 {
			fixedLimit, rotLimit = 5, 8
		}
		one := rulesShape(1, family, true, false).name
		for _, n := range lengths {
			s := rulesShape(n, family, true, false)
			last := subject{name: s.name + ", the last matches", goals: []Goal{timesAtMost(fixedLimit, emptyCase)}}
			rot := subject{name: s.name + ", rot", goals: []Goal{timesAtMost(rotLimit, emptyCase)}}
			if family == 4 && n == 16384 {
				last.goals = append(last.goals, timesAtMost(1.5, one+", the last matches"))
			}
			if family == 4 {
				last.series, rot.series, last.x, rot.x = seriesFixed, seriesRot, float64(n), float64(n)
			}
			vs := []variant{{last, datapath.XDP, fixed}, {rot, datapath.XDP, rotating}}
			if family == 4 && (n == 1 || n == 1000) {
				vs = append(vs,
					variant{subject{name: "tc, " + last.name, goals: []Goal{timesAtMost(1.5, last.name)}}, datapath.TC, fixed},
					variant{subject{name: "tc, " + rot.name, goals: []Goal{timesAtMost(1.5, rot.name)}}, datapath.TC, rotating})
			}
			if err := b.addOurs(s, vs...); err != nil {
				return err
			}
			lpm := subject{name: "LPM trie, " + s.name + ", rot"}
			if family == 4 {
				lpm.series, lpm.x = seriesLPM, float64(n)
			}
			if err := b.addPeer(lpmPeer, s, lpm, rotating); err != nil {
				return err
			}
			if family == 4 {
				linear := subject{name: "linear scan, " + s.name + ", the last matches", series: seriesLinear, x: float64(n)}
				if err := b.addPeer(linearPeer, s, linear, fixed); err != nil {
					return err
				}
			}
		}
	}
	ports := rulesShape(1000, 4, true, true)
	if err := b.addOurs(ports,
		variant{subject{name: ports.name, goals: []Goal{timesAtMost(4.5, emptyCase)}}, datapath.XDP, fixed},
		variant{subject{name: ports.name + ", rot"}, datapath.XDP, rotating}); err != nil {
		return err
	}
	bare := rulesShape(1000, 4, false, false)
	return b.addOurs(bare,
		variant{subject{name: bare.name + ", the last matches"}, datapath.XDP, fixed},
		variant{subject{name: bare.name + ", rot"}, datapath.XDP, rotating})
}

// addSets adds deny lists by their length.
func (b *packetBench) addSets() error {
	limits := map[int]float64{1000: 4, 100_000: 8, 1_000_000: 16} // IPv4, times the empty program
	sizes := b.sizes(10, 100, 1000, 10_000, 100_000, 1_000_000)
	for _, n := range sizes {
		for _, family := range []int{4, 6} {
			s := denyShape(fmt.Sprintf("deny set of %s, IPv%d", count(n, "CIDR"), family), randomNets(n, family))
			rot := subject{name: s.name + ", rot", series: seriesSet4, x: float64(n)}
			lpm := subject{name: "LPM trie, " + s.name + ", rot", series: seriesSetLPM4, x: float64(n)}
			if family == 6 {
				rot.series, lpm.series = seriesSet6, seriesSetLPM6
			} else if limit := limits[n]; limit > 0 {
				rot.goals = []Goal{timesAtMost(limit, emptyCase)}
			}
			if err := b.addOurs(s, variant{rot, datapath.XDP, rotating}); err != nil {
				return err
			}
			if err := b.addPeer(lpmPeer, s, lpm, rotating); err != nil {
				return err
			}
			if family == 4 && n == sizes[len(sizes)-1] {
				if err := b.addLargest(s, rot.name); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// addLargest adds what is measured of one list only.
func (b *packetBench) addLargest(s *shape, rot string) error {
	err := b.addOurs(s,
		variant{subject{name: s.name + ", dependent", goals: []Goal{timesAtMost(20, emptyCase)}}, datapath.XDP, dependent},
		variant{subject{name: "tc, " + rot, goals: []Goal{timesAtMost(1.5, rot)}}, datapath.TC, rotating})
	if err != nil {
		return err
	}
	if err := b.addPeer(lpmPeer, s, subject{name: "LPM trie, " + s.name + ", dependent"}, dependent); err != nil {
		return err
	}
	many := s.withManyKeys()
	if err := b.addOurs(many, variant{subject{name: s.name + ", rot, each CIDR hit"}, datapath.XDP, rotating}); err != nil {
		return err
	}
	return b.addPeer(lpmPeer, many, subject{name: "LPM trie, " + s.name + ", rot, each CIDR hit"}, rotating)
}

// addLists adds the real lists.
func (b *packetBench) addLists() error {
	add := func(name string, limit float64, lists [][]netip.Prefix) error {
		s := deniesShape(name, lists)
		rot := subject{name: s.name + ", rot"}
		if limit > 0 {
			rot.goals = []Goal{timesAtMost(limit, emptyCase)}
		}
		if err := b.addOurs(s, variant{rot, datapath.XDP, rotating}); err != nil {
			return err
		}
		return b.addPeer(lpmPeer, s, subject{name: "LPM trie, " + s.name + ", rot"}, rotating)
	}
	ipsum, err := readIPsum()
	if errors.Is(err, os.ErrNotExist) {
		b.subjects = append(b.subjects, subject{name: "the real lists", note: "skipped, " + err.Error()})
		return nil
	}
	if err != nil {
		return err
	}
	if err := add("IPsum, "+count(len(ipsum), "CIDR"), 9, [][]netip.Prefix{ipsum}); err != nil {
		return err
	}
	for _, family := range []int{4, 6} {
		limit := map[int]float64{4: 7}[family]
		countries, err := readCountries(family)
		if err != nil {
			return err
		}
		n := 0
		for _, c := range countries {
			n += len(c)
		}
		name := fmt.Sprintf("%d countries as %d rules, %s, IPv%d", len(countries), len(countries), count(n, "CIDR"), family)
		if err := add(name, limit, countries); err != nil {
			return err
		}
	}
	return nil
}
