// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Remove deletes the table with all that is in it. It is no error if there is none.
func Remove() error {
	s, err := dial()
	if errors.Is(err, ErrNotSupported) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("delete table inet %s: %w", TableName, err)
	}
	defer s.Close()
	var b batch
	b.deleteTable()
	err = s.commit(&b)
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, ErrNotSupported) {
		return fmt.Errorf("delete table inet %s: %w", TableName, err)
	}
	return nil
}
