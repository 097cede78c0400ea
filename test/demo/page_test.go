// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestTable(t *testing.T) {
	var out bytes.Buffer
	p := &page{out: &out}
	p.table([]string{"", "before", "after"}, []string{"entries …", "1,000", "0"}, []string{"x", "7", ""})
	want := `
               before   after
   --------------------------
   entries …    1,000       0
   x                7

`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestThousands(t *testing.T) {
	for v, want := range map[int]string{0: "0", 999: "999", 1000: "1,000", 12345678: "12,345,678"} {
		if got := thousands(v); got != want {
			t.Errorf("%d: %q, want %q", v, got, want)
		}
	}
}

func TestProgressIsSilentInAPipe(t *testing.T) {
	var out bytes.Buffer
	(&page{out: &out}).progress("working", nil)()
	if out.Len() != 0 {
		t.Errorf("wrote %q", out.String())
	}
}
