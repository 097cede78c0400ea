// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// Apply makes the kernel's table the desired one, in one atomic batch: no packet meets half a table or none.
// It may find no table, an older one, or one that others have changed in any way. The counters of rules that
// stay keep their values. When it fails, nothing has changed, but see ErrNoLog.
//
// Returns ErrNotSupported if the kernel has no nf_tables, and ErrNoLog if the table was written but Log rules can do
// no more than count. Needs CAP_NET_ADMIN and Linux 5.10 or later.
func (t *Table) Apply() error {
	c, err := t.Compile()
	if err != nil {
		return err
	}
	return c.Apply(nil)
}

// apply writes the ruleset. If what it lacks may be the reports, it tries without them.
func (s *socket) apply(rs *ruleset, over *Compiled) error {
	err := s.write(rs, over)
	if !errors.Is(err, unix.ENOENT) {
		return err
	}
	if rs.reports() {
		rs := *rs
		rs.silent = true
		if s.write(&rs, over) == nil {
			return ErrNoLog
		}
	}
	return fmt.Errorf("%w (does the kernel have nft_fib_inet, nft_ct and nft_objref?)", err)
}

func (s *socket) write(rs *ruleset, over *Compiled) error {
	// The second attempt is for a table that changed between reading and writing. The third is for one that
	// cannot be transformed step by step, such as one with objects of kinds that are not known here.
	attempts := []func(*batch, *found) error{rs.transform, rs.transform, rs.replace}
	if over != nil {
		if d, err := s.inForce(); err == nil && d == over.Digest() {
			attempts[0] = func(b *batch, before *found) error { return rs.update(b, before, over.rs) }
		}
	}
	var first error
	for _, write := range attempts {
		before, err := s.find()
		if err != nil {
			return err
		}
		var b batch
		if err := write(&b, before); err != nil {
			return err
		}
		err = s.commit(&b)
		if err == nil {
			return nil
		}
		if first == nil {
			first = err
		}
		if errors.Is(err, unix.EPERM) || errors.Is(err, ErrNotSupported) || errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
	}
	return first
}

// found is what there is before a change.
type found struct {
	exists  bool
	chains  []chain
	sets    []string
	objects []object
}

func (s *socket) find() (*found, error) {
	_, err := s.table()
	if errors.Is(err, ErrNoTable) {
		return &found{}, nil
	}
	if err != nil {
		return nil, err
	}
	f := &found{exists: true}
	if f.chains, err = s.chains(); err != nil {
		return nil, fmt.Errorf("read chains: %w", err)
	}
	if f.sets, err = s.sets(); err != nil {
		return nil, fmt.Errorf("read sets: %w", err)
	}
	if f.objects, err = s.objects(); err != nil {
		return nil, fmt.Errorf("read objects: %w", err)
	}
	return f, nil
}

// counters are the names of the counters.
func (f *found) counters() map[string]bool {
	out := make(map[string]bool, len(f.objects))
	for _, o := range f.objects {
		if o.typ == objCounter {
			out[o.name] = true
		}
	}
	return out
}

// transform keeps the table, its chains and its counters, and writes all rules and sets anew.
func (rs *ruleset) transform(b *batch, before *found) error {
	return rs.transformBut(b, before, nil)
}

// transformBut keeps some sets, too, by their names, and changes them.
func (rs *ruleset) transformBut(b *batch, before *found, sets map[string]change) error {
	b.addTable()
	if before.exists {
		// What refers to others goes first: rules to sets, objects and chains; maps to objects and chains.
		b.flushRules()
		for _, name := range before.sets {
			if _, ok := sets[name]; !ok {
				b.deleteSet(name)
			}
		}
		chains, counters := setOf(rs.chains), setOf(rs.counters)
		for _, c := range before.chains {
			if !keeps(c, chains) {
				b.deleteChain(c.name)
			}
		}
		for _, o := range before.objects {
			if o.typ != objCounter || !counters[o.name] {
				b.deleteObject(o.name, o.typ)
			}
		}
	}
	return rs.write(b, kept{before.counters(), sets}, nil)
}

// kept is what is there already and stays.
type kept struct {
	counters map[string]bool
	sets     map[string]change
}

func setOf(names []string) map[string]bool {
	out := make(map[string]bool, len(names))
	for _, name := range names {
		out[name] = true
	}
	return out
}

// keeps reports whether a chain can stay, be it one of the regular ones that are wanted or a base chain. A base
// chain's hook cannot be changed, its policy can.
func keeps(c chain, wanted map[string]bool) bool {
	if c.typ == "" {
		return wanted[c.name]
	}
	return c.typ == chainType && slices.ContainsFunc(baseChains, func(want baseChain) bool {
		want.policy = c.policy
		return c.baseChain == want
	})
}

// replace writes a new table in the place of the old one, and gives its counters the values that the old ones
// had when they were read.
func (rs *ruleset) replace(b *batch, before *found) error {
	if before.exists {
		b.deleteTable()
	}
	b.addTable()
	values := map[string]Counter{}
	for _, o := range before.objects {
		if o.typ == objCounter {
			values[o.name] = o.value
		}
	}
	return rs.write(b, kept{}, values)
}

// write adds what is not kept. Counters start at the given values.
func (rs *ruleset) write(b *batch, kept kept, values map[string]Counter) error {
	for _, c := range baseChains {
		b.addBaseChain(c)
	}
	for _, name := range rs.chains {
		b.addChain(name)
	}
	for _, name := range rs.counters {
		if !kept.counters[name] {
			b.addCounter(name, values[name])
		}
	}
	numbers := map[*set]uint32{}
	for _, s := range rs.sets {
		if c, ok := kept.sets[s.name]; ok {
			b.change(s, c)
			continue
		}
		numbers[s], _ = b.addSet(s)
	}
	for i := range rs.rules {
		r := &rs.rules[i]
		steps := r.steps
		if !rs.silent {
			steps = r.all()
		}
		if err := b.addRule(r, steps, numbers); err != nil {
			return fmt.Errorf("rule %q: %w", r.comment, err)
		}
	}
	return nil
}
