// SPDX-License-Identifier: Apache-2.0

package hostif

import (
	"errors"
	"net/netip"
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

func TestIsLocal(t *testing.T) {
	inNewNetns(t)
	link := addVeth(t, "v")
	addAddr(t, link, "192.0.2.1/24")
	addAddr(t, link, "2001:db8::1/64")
	for text, want := range map[string]bool{
		"192.0.2.1": true, "192.0.2.2": false, "127.0.0.9": true, "198.51.100.1": false, // no route leads there
		"2001:db8::1": true, "2001:db8::2": false, "::1": true, "2001:db8:1::1": false,
	} {
		if got, err := IsLocal(netip.MustParseAddr(text)); err != nil || got != want {
			t.Errorf("%s: %t, %v, want %t", text, got, err, want)
		}
	}
}
