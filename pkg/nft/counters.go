// SPDX-License-Identifier: Apache-2.0

package nft

import "fmt"

// CounterKey says what a counter counts for.
type CounterKey struct {
	// Interface is the endpoint's.
	Interface string
	// RuleID is the rule's identity in the endpoint's list, see policy.IDs.
	RuleID uint64
}

// Counter is what a rule has seen.
type Counter struct{ Packets, Bytes uint64 }

// Counters returns the counters of all rules, those that can match no packet included. A counter goes on
// counting for as long as each Apply has a rule of its identity on its interface. There are none if there is
// no table.
func Counters() (map[CounterKey]Counter, error) {
	out := map[CounterKey]Counter{}
	s, err := dial()
	if err != nil {
		return nil, fmt.Errorf("read counters of table inet %s: %w", TableName, err)
	}
	defer s.Close()
	objects, err := s.objects()
	if err != nil {
		return nil, fmt.Errorf("read counters of table inet %s: %w", TableName, err)
	}
	for _, o := range objects {
		if k, ok := parseCounterName(o.name); ok && o.typ == objCounter {
			out[k] = o.value
		}
	}
	return out, nil
}
