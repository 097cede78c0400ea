// SPDX-License-Identifier: Apache-2.0

package hostif

import (
	"errors"
	"testing"

	"github.com/vishvananda/netlink"
)

// TestInterruptedAddresses: a list that was not read to its end is read again, and never taken for the whole.
func TestInterruptedAddresses(t *testing.T) {
	dump := dumpAddrs
	t.Cleanup(func() { dumpAddrs = dump })
	for _, c := range []struct {
		name    string
		fail    int
		with    error
		reads   int
		refused bool
	}{
		{"undisturbed", 0, nil, 1, false},
		{"now and then", 3, netlink.ErrDumpInterrupted, 4, false},
		{"always", maxAddrDumps, netlink.ErrDumpInterrupted, maxAddrDumps, true},
		{"another error", 1, errors.New("no buffer space"), 1, true},
	} {
		reads := 0
		dumpAddrs = func() ([]netlink.Addr, error) {
			if reads++; reads <= c.fail {
				return make([]netlink.Addr, 1), c.with
			}
			return make([]netlink.Addr, 2), nil
		}
		got, err := listAddrs()
		if (err != nil) != c.refused || !errors.Is(err, c.with) && c.refused || reads != c.reads || !c.refused && len(got) != 2 || c.refused && got != nil {
			t.Errorf("%s: %d addresses, %v, after %d readings; want %d readings, refused %v", c.name, len(got), err, reads, c.reads, c.refused)
		}
	}
}
