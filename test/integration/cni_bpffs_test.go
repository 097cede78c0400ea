// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/test/lab"
)

// Another BPF file system in the annotations: the policy moves there, as the programs pinned in the old one are
// ours. The operator's commands find it by themselves.
func TestCNIAnotherBPFFS(t *testing.T) {
	l, chain, pod := cniChain(t, cniPolicy())
	must(chain.Add(pod))(t)

	other := filepath.Join(l.Dir, "bpf2")
	check(t, os.Mkdir(other, 0o700))
	check(t, unix.Mount("bpf", other, "bpf", 0, "mode=0700"))
	annotations := cniPolicy()
	annotations["bpffs"] = other
	check(t, chain.Rewrite(lab.ChainConfig{Annotations: annotations}))
	cniAdd(t, chain, pod)

	if entries, err := os.ReadDir(filepath.Join(l.BPFFS, "untracked")); !os.IsNotExist(err) {
		t.Errorf("pins are left in the old file system: %v, %v", entries, err)
	}
	untracked := filepath.Join(chain.Bin, "untracked")
	out, err := lab.Command(l.Node, untracked, "status", "--run-dir", l.RunDir).CombinedOutput()
	if err != nil {
		t.Fatalf("status: %v\n%s", err, out)
	}
	hooks, err := lab.ReadHooks(l.Node, "eth0")
	check(t, err)
	if hooks.XDP == 0 {
		t.Errorf("no XDP program is attached any more: %+v", hooks)
	}
	// The flag names the wrong one on purpose: the record knows better.
	if out, err := lab.Command(l.Node, untracked, "remove", "--run-dir", l.RunDir, "--bpffs", l.BPFFS).CombinedOutput(); err != nil {
		t.Fatalf("remove: %v\n%s", err, out)
	}
	hooks, err = lab.ReadHooks(l.Node, "eth0")
	check(t, err)
	if !hooks.None() {
		t.Errorf("remove left %+v", hooks)
	}
}
