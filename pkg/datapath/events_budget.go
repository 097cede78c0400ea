// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/cilium/ebpf"

	"github.com/untracked-cni/untracked/bpf"
)

// forgetSuppressed zeroes the counts of packets that were left out for an earlier listener. Nobody is listening.
func (p *Pins) forgetSuppressed() error {
	indexes, err := p.Interfaces()
	if err != nil {
		return err
	}
	for _, i := range indexes {
		ids, err := p.programs(i)
		if err != nil {
			return err
		}
		for _, id := range ids {
			// A program that is not there any more has nothing to tell.
			if err := forgetSuppressed(id); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("reset what program %d of interface %d has left out: %w", id, i, err)
			}
		}
	}
	return nil
}

// programs are those that are attached to an interface.
func (p *Pins) programs(ifindex int) (ids []ebpf.ProgramID, err error) {
	for _, name := range []string{xdpPin, tcPin} {
		l, id, err := p.link(ifindex, name)
		switch {
		case err == nil:
			l.Close()
			ids = append(ids, id)
		case !errors.Is(err, fs.ErrNotExist):
			return nil, err
		}
	}
	filter, _, err := ownFilter(ifindex)
	if err == nil && filter != nil {
		ids = append(ids, ebpf.ProgramID(filter.Id))
	}
	return ids, err
}

func forgetSuppressed(id ebpf.ProgramID) error {
	m, err := openBudget(id)
	if err != nil || m == nil {
		return err
	}
	defer m.Close()
	var budgets []bpf.UntrackedBudget
	if err := m.Lookup(uint32(0), &budgets); err != nil {
		return err
	}
	for cpu := range budgets {
		budgets[cpu].Suppressed = 0
	}
	return m.Put(uint32(0), budgets)
}

// openBudget opens the map in which a program counts its events. It returns nil for a program that sends none.
func openBudget(id ebpf.ProgramID) (*ebpf.Map, error) {
	program, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return nil, err
	}
	defer program.Close()
	info, err := program.Info()
	if err != nil {
		return nil, err
	}
	maps, _ := info.MapIDs() // which every kernel knows that has ring buffers
	for _, id := range maps {
		m, err := ebpf.NewMapFromID(id)
		if err != nil {
			return nil, err
		}
		info, err := m.Info()
		if err != nil {
			m.Close()
			return nil, err
		}
		if info.Name == budgetMap {
			return m, nil
		}
		m.Close()
	}
	return nil, nil
}
