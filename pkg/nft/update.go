// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"cmp"

	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/pkg/netset"
)

// minUpdate is the least number of ranges of a set from a named list that is changed in place: smaller ones are as
// soon written as compared. Such a set cannot be constant.
const minUpdate = 4096

// change is what makes a set of another one, which it is to replace: ranges that go and ranges that come, nil if the
// two are equal.
type change struct {
	of         *set
	gone, come *set
}

// update writes the ruleset in the place of another one, which is in force, and leaves sets as they are, or changes
// them by what differs.
func (rs *ruleset) update(b *batch, before *found, over *ruleset) error {
	old := make(map[string]*set, len(over.sets))
	for _, s := range over.sets {
		old[s.name] = s
	}
	kept := make(map[string]change)
	for _, s := range rs.sets {
		if o := old[s.name]; o != nil {
			if c, ok := s.changeOf(o); ok {
				kept[s.name] = c
			}
		}
	}
	return rs.transformBut(b, before, kept)
}

// changeOf is how to make a set of another one of its name, and false if it is less work to write it anew.
func (s *set) changeOf(o *set) (change, bool) {
	if s.equal(o) {
		return change{}, true
	}
	if s.datatype != o.datatype || s.interval() != o.interval() || !s.updated() || !o.updated() {
		return change{}, false
	}
	c := change{of: o, gone: o.without(s), come: s.without(o)}
	return c, c.gone.count+c.come.count < s.count/4
}

// updated reports whether a set is of those that are changed in place.
func (s *set) updated() bool {
	return s.comment != "" && s.name != "" && s.count >= minUpdate
}

// without are the ranges of a set of addresses that another one does not have as they are.
func (s *set) without(o *set) *set {
	out := *s
	if s.v4 != nil {
		out.ofRanges4(subtract(s.v4, o.v4, func(a, b netset.Range4) int { return cmp.Compare(a.Lo, b.Lo) }))
	} else {
		out.ofRanges6(subtract(s.v6, o.v6, func(a, b netset.Range6) int { return a.Lo.Compare(b.Lo) }))
	}
	return &out
}

// subtract are the elements of a sorted list that are not in another one.
func subtract[E comparable](a, b []E, compare func(x, y E) int) []E {
	var out []E
	for _, e := range a {
		for len(b) > 0 && compare(b[0], e) < 0 {
			b = b[1:]
		}
		if len(b) == 0 || b[0] != e {
			out = append(out, e)
		}
	}
	return out
}

// change makes a set of what is there by its name: what goes makes room for what comes.
func (b *batch) change(s *set, c change) {
	if c.gone == nil {
		return
	}
	// The space before the first range is an interval, too.
	hadBlank, hasBlank := c.of.blank(), s.blank()
	b.elements(unix.NFT_MSG_DELSETELEM, c.gone, s.name, 0, s.interval(), hadBlank && !hasBlank)
	b.elements(unix.NFT_MSG_NEWSETELEM, c.come, s.name, 0, s.interval(), hasBlank && !hadBlank)
}
