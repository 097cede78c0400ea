// SPDX-License-Identifier: Apache-2.0

package netset

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestBinary(t *testing.T) {
	for _, want := range []*Set{
		Of(),
		Of(netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")),
		Of(netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("2001:db8::/33")),
	} {
		data, err := want.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		got := &Set{}
		if err := got.UnmarshalBinary(data); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(Set{})); diff != "" {
			t.Errorf("-want +got\n%s", diff)
		}
		for n := range data {
			// A shorter text may be a smaller set, but never one that was not asked for.
			if err := got.UnmarshalBinary(data[:n]); err == nil && len(got.v4) != len(want.v4) {
				t.Errorf("%d of %d bytes were taken for a set", n, len(data))
			}
		}
	}
}
