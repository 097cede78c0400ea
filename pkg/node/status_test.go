// SPDX-License-Identifier: Apache-2.0

package node

import (
	"strings"
	"testing"
)

func TestConntrackNearlyFull(t *testing.T) {
	for _, test := range []struct {
		conntrack Conntrack
		want      bool
	}{
		{Conntrack{}, false},
		{Conntrack{Entries: 5}, false}, // no limit is known
		{Conntrack{Entries: 900, Max: 1000}, false},
		{Conntrack{Entries: 901, Max: 1000}, true},
		{Conntrack{Entries: 1000, Max: 1000}, true},
	} {
		s := &Status{Conntrack: test.conntrack}
		s.addFill()
		if got := len(s.Problems) == 1; got != test.want || s.Broken {
			t.Errorf("%+v: problems %+v, broken %v", test.conntrack, s.Problems, s.Broken)
			continue
		}
		if !test.want {
			continue
		}
		p := s.Problems[0]
		if p.Code != ProblemConntrackFull || !strings.Contains(p.Message, "of 1000 entries") || !strings.Contains(p.Remedy, "untracked.cni/ports") {
			t.Errorf("%+v: %+v", test.conntrack, p)
		}
	}
}
