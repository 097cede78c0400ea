// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"
)

const (
	portmapCase = "portmap ADD, no port mappings"
	oneRuleCase = "untracked ADD, one rule in force"
)

// benchControl measures what is not packets: changing the policy, calling the plugin, memory, and what the kernel has
// to do for it.
func benchControl(e effort) ([]Row, error) {
	var rows []Row
	for _, part := range []func(effort) ([]Row, error){benchApply, benchADD, benchMemory, benchFreeing, benchVerifier} {
		more, err := part(e)
		if err != nil {
			return nil, err
		}
		rows = append(rows, more...)
	}
	return rows, nil
}

// measureOnce makes rows of values that do not vary.
func measureOnce(unit string, subjects []subject) ([]Row, error) {
	return interleave(subjects, 1, unit, "")
}

// sizes leaves out the large ones where there is no time for them.
func (e effort) sizes(all ...int) []int {
	if !e.quick {
		return all
	}
	return slices.DeleteFunc(all, func(n int) bool { return n > 100_000 })
}

func refused(name string, err error) subject {
	return subject{name: name, note: fmt.Sprintf("refused: %v", err)}
}
