// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"maps"
	"slices"
)

// witnessMismatch is a packet that two hosts treat differently, with the policy that both enforce.
type witnessMismatch struct {
	*witnessCase
	packet    witnessPacket
	host      *witnessHost
	want, got witnessSeen
}

func (m *witnessMismatch) String() string {
	return fmt.Sprintf("%s, %s: %s; want %s, as on the witness\n%s", m.host.name, &m.packet, m.got, m.want, m.witnessResources)
}

// shrink returns the smallest policy it finds for which the same packet still shows the same difference. It cuts one
// branch after the other, the thick ones first, and asks the two hosts each time. What one of them refuses shows
// nothing.
func (m *witnessMismatch) shrink(witness *witnessHost) *witnessMismatch {
	smaller := func(r *witnessResources) *witnessMismatch {
		c, packets := m.with(r), []witnessPacket{m.packet}
		seen, err := witnessTry([]*witnessHost{witness, m.host}, c, packets)
		if err != nil || seen[0][0] != m.want || seen[1][0] != m.got {
			return nil
		}
		return &witnessMismatch{c, m.packet, m.host, m.want, m.got}
	}
	for cut := true; cut; {
		cut = false
		tree := m.tree()
		for i := 0; i < len(witnessBranches(tree)); {
			undo := witnessBranches(tree)[i].cut()
			if s := smaller(witnessFromTree(tree)); s != nil {
				m, cut = s, true
				continue // another branch is at i now
			}
			undo()
			i++
		}
	}
	return m
}

// witnessBranch is a part of a tree that may be cut. The function returned puts it back.
type witnessBranch struct {
	depth int
	cut   func() (undo func())
}

// witnessTrunk are fields without which nothing is a resource or a rule: to cut them is to be refused.
var witnessTrunk = []string{"apiVersion", "kind", "metadata", "name", "spec", "action", "node", "doNotTrack", "applyOnForward", "type"}

func witnessBranches(tree map[string]any) (branches []witnessBranch) {
	var walk func(v any, depth int, put func(any))
	walk = func(v any, depth int, put func(any)) {
		switch v := v.(type) {
		case map[string]any:
			for _, key := range slices.Sorted(maps.Keys(v)) {
				if child := v[key]; !slices.Contains(witnessTrunk, key) {
					branches = append(branches, witnessBranch{depth, func() func() {
						delete(v, key)
						return func() { v[key] = child }
					}})
				}
				walk(v[key], depth+1, func(child any) { v[key] = child })
			}
		case []any:
			for i := range v {
				branches = append(branches, witnessBranch{depth, func() func() {
					put(slices.Delete(slices.Clone(v), i, i+1))
					return func() { put(v) }
				}})
				walk(v[i], depth+1, func(child any) { v[i] = child })
			}
		}
	}
	walk(tree, 0, nil)
	slices.SortStableFunc(branches, func(a, b witnessBranch) int { return a.depth - b.depth })
	return branches
}
