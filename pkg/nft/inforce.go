// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"errors"
	"fmt"
)

// InForce returns the digest of the table in the kernel: that of the Table that was applied, unless somebody
// changed it since. What a rule does is not read again, but that it stands where it was written: the kernel
// changes a rule only as a whole, and the sets that ours use not at all. Large lists are an exception: they are not
// constant, so that [Compiled.Apply] can change them in place, and what somebody else adds to one or takes from it
// is not seen.
//
// It reads the rules of this one table, and nothing of others. Returns ErrNoTable if there is no table.
func InForce() (string, error) {
	s, err := dial()
	if err != nil {
		return "", fmt.Errorf("read table inet %s: %w", TableName, err)
	}
	defer s.Close()
	d, err := s.inForce()
	if err != nil && !errors.Is(err, ErrNoTable) {
		err = fmt.Errorf("read table inet %s: %w", TableName, err)
	}
	return d, err
}

// inForce is the digest of the socket's table.
func (s *socket) inForce() (string, error) {
	flags, err := s.table()
	if err != nil {
		return "", err
	}
	var base []baseChain
	for _, want := range baseChains {
		c, err := s.chain(want.name)
		if err != nil {
			return "", fmt.Errorf("chain %s: %w", want.name, err)
		}
		if c.typ == chainType {
			base = append(base, c.baseChain)
		}
	}
	rules, err := s.rules()
	if err != nil {
		return "", fmt.Errorf("rules: %w", err)
	}
	return digest(flags, base, rules), nil
}
