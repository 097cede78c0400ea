// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"flag"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/pkg/compiler"
)

var percentFlag = flag.Int("datapath.percent", 100, "how much of their work the differential tests do: less on emulated machines, as those of test/kernels")

// scaled is how many of n policies, or whatever else a test goes through, it has to take; at least 1.
func scaled(n int) int { return max(1, n**percentFlag/100) }

// tellFeature has test/kernels print what the kernel was found to have.
func tellFeature(t testing.TB, feature string, err error) {
	t.Helper()
	value := "yes"
	if err != nil {
		value = "no"
		t.Logf("no %s: %v", feature, err)
	}
	t.Attr(feature, value)
}

// What a kernel lacks is found by asking for it, and the refusal is the one that the code waits for.
func TestFeatures(t *testing.T) {
	b := newBench(t)
	tellFeature(t, "xdp.frags", noFrags())

	program := passProgram(t, ebpf.SchedCLS, -1)
	b.in(func() error {
		l, err := attachTCX(b.target, program)
		if err == nil {
			b.must(l.Close())
		} else if !errors.Is(err, ebpf.ErrNotSupported) {
			t.Errorf("tcx: %v, want it attached or ebpf.ErrNotSupported", err)
		}
		tellFeature(t, "tcx", err)
		return nil
	})

	tables, err := NewTables(&compiler.Image{Bytes: make([]byte, 8<<20)})
	if err == nil {
		b.must(tables.Close())
	} else if !errors.Is(err, unix.E2BIG) || !strings.Contains(err.Error(), "use a newer kernel or a smaller policy") {
		t.Errorf("tables of 8 MiB: %v, want them created or a remedy", err)
	}
	tellFeature(t, "tables-over-4-MiB", err)
}
