// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"fmt"
	"slices"
)

// Compiled is a Table as it is written. It is immutable.
type Compiled struct{ rs *ruleset }

// Compile is pure. It refuses what the kernel would take and do something else with.
func (t *Table) Compile() (*Compiled, error) {
	if err := t.validate(); err != nil {
		return nil, fmt.Errorf("table inet %s: %w", TableName, err)
	}
	return &Compiled{t.ruleset()}, nil
}

// Digest is that of the table, see [Table.Digest].
func (c *Compiled) Digest() string { return c.rs.digest() }

// Updatable reports whether it has a set that Apply would change in place, were it told what is in force.
func (c *Compiled) Updatable() bool { return slices.ContainsFunc(c.rs.sets, (*set).updated) }

// Apply is [Table.Apply] with a short cut: over is what is thought to be in force, nil if nothing is known. If
// it is, sets of addresses that stay the same are not written again, and of a large one that has a name only what
// changes is. If it is not, all is written.
func (c *Compiled) Apply(over *Compiled) error {
	s, err := dial()
	if err == nil {
		defer s.Close()
		err = s.apply(c.rs, over)
	}
	if err != nil {
		return fmt.Errorf("write table inet %s: %w", TableName, err)
	}
	return nil
}
