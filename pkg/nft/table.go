// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"fmt"
	"slices"
	"strings"

	"github.com/untracked-cni/untracked/pkg/policy"
)

// TableName is the name of the table, in family inet.
const TableName = "untracked"

// Endpoint is the way out of one interface.
type Endpoint struct {
	// Interface is the name of the interface that packets leave by.
	Interface string
	// Rules is the egress list, as policy.Evaluate asks it. Endpoints may have different ones.
	Rules []policy.Rule
	// Answers are the ingress rules for what may be answers to calls (see policy.Rule.AsksForAnswers). What they match
	// is untracked only if a local socket waits for it: where pods are masqueraded, an answer to this host's address
	// may be a pod's, and only connection tracking knows. (optional)
	Answers []policy.Rule
}

// Table is the desired state: pure data.
type Table struct {
	// Mark is the bit by which the tc program tells that an arriving packet is to be untracked.
	Mark uint32
	// Endpoints may be in any order and name each interface once.
	Endpoints []Endpoint
}

// validate refuses what the kernel would take and do something else with.
func (t *Table) validate() error {
	if t.Mark == 0 {
		return fmt.Errorf("the mark is 0, no packet could carry it")
	}
	seen := make(map[string]bool, len(t.Endpoints))
	for _, e := range t.Endpoints {
		if !validInterface(e.Interface) {
			return fmt.Errorf("%q is not an interface name", e.Interface)
		}
		if seen[e.Interface] {
			return fmt.Errorf("interface %s has two egress lists", e.Interface)
		}
		seen[e.Interface] = true
	}
	return nil
}

// sorted gives the endpoints in the order in which they are written.
func (t *Table) sorted() []Endpoint {
	return slices.SortedFunc(slices.Values(t.Endpoints), func(a, b Endpoint) int {
		return strings.Compare(a.Interface, b.Interface)
	})
}

// validInterface is the kernel's dev_valid_name.
func validInterface(name string) bool {
	const space = " \t\n\v\f\r\xa0" // isspace() of lib/ctype.c, which knows bytes only
	return name != "" && len(name) < ifNameSize && name != "." && name != ".." &&
		!slices.ContainsFunc([]byte(name), func(c byte) bool { return strings.IndexByte("/:\x00"+space, c) >= 0 })
}
