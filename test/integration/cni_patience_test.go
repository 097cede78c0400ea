// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/pkg/node"
	"github.com/untracked-cni/untracked/test/lab"
)

// CHECK waits for a change that is under way instead of failing a pod for it.
func TestCNICheckDuringChanges(t *testing.T) {
	l, chain, pod := cniChain(t, cniPolicy())
	other := must(l.Chain(lab.ChainConfig{Annotations: cniPolicy("deny", "192.0.2.0/24")}))(t)
	cniAdd(t, chain, pod)
	cniAdd(t, other, pod)
	ctx, stop := context.WithCancel(t.Context())
	var changing sync.WaitGroup
	changing.Go(func() {
		for n := 0; ctx.Err() == nil; n++ {
			cniAdd(t, []*lab.Chain{chain, other}[n%2], pod)
		}
	})
	for range 60 {
		for _, c := range []*lab.Chain{chain, other} {
			if _, err := c.Plugin("CHECK", pod, c.Stdin([]byte(cniPrev("1.1.0")))); err != nil {
				t.Errorf("CHECK: %v", err)
			}
		}
	}
	stop()
	changing.Wait()
}

// A node that cannot have its policy makes one attempt for all pods that start, not one for each.
func TestCNIBrokenNodeIsNotTriedByEachPod(t *testing.T) {
	l, chain, pod := cniChain(t, cniPolicy("interfaces", "lo", "mode", "native"))
	for range 10 {
		cniAdd(t, chain, pod)
	}
	s, exit := cniStatus(t, l)
	if exit != 1 || cniProblem(s, node.ProblemNotAttached) == nil || s.Policy.Generation != 1 {
		t.Errorf("status: exit status %d, %+v, want one attempt and its problem", exit, s)
	}
	// What can be mended is, at once.
	check(t, chain.Rewrite(lab.ChainConfig{Annotations: cniPolicy()}))
	cniAdd(t, chain, pod)
	cniHealthy(t, l, chain, pod)
}

// Where not even a record can be written, pods start without the policy, unless it is required.
func TestCNIUnusableRunDir(t *testing.T) {
	_, chain, pod := cniChain(t, cniPolicy("run-dir", "/proc/no/such/place"))
	cniAdd(t, chain, pod)
	check(t, chain.Rewrite(lab.ChainConfig{Annotations: cniPolicy("run-dir", "/proc/no/such/place", "required", "true")}))
	if _, err := chain.Plugin("ADD", pod, chain.Stdin([]byte(cniPrev("1.1.0")))); cniCode(err) < 100 {
		t.Errorf("ADD with required: %v, want a code of 100 or more", err)
	}
}

// Neither a link in the run directory nor a pipe for a log leads a privileged process astray.
func TestCNIPlantedFiles(t *testing.T) {
	l, chain, pod := cniChain(t, nil)
	victim := filepath.Join(l.Dir, "victim")
	check(t, os.WriteFile(victim, []byte("precious"), 0o600))
	check(t, os.MkdirAll(l.RunDir, 0o700))
	check(t, os.Symlink(victim, filepath.Join(l.RunDir, "record.json.tmp")))
	pipe := filepath.Join(l.Dir, "pipe")
	check(t, unix.Mkfifo(pipe, 0o600))
	check(t, chain.Rewrite(lab.ChainConfig{Annotations: cniPolicy("log-file", pipe)}))

	begin := time.Now()
	for _, verb := range []string{"ADD", "STATUS", "DEL"} {
		cniRun(t, l, cniEnv(chain, verb, pod), chain.Stdin([]byte(cniPrev("1.1.0"))))
	}
	if time.Since(begin) > cniPatience {
		t.Errorf("a pipe without a reader held the calls up for %v", time.Since(begin))
	}
	if text := must(os.ReadFile(victim))(t); string(text) != "precious" {
		t.Errorf("the record was written through a link: %s", text)
	}
}

// A change to a mode that the interface does not have leaves what is in force as it was.
func TestCNIRefusedModeChange(t *testing.T) {
	l, chain, pod := cniChain(t, cniPolicy("interfaces", "lo", "mode", "generic"))
	cniAdd(t, chain, pod)
	before := must(lab.ReadHooks(l.Node, "lo"))(t)
	if before.XDP == 0 || !before.Generic {
		t.Fatalf("generic XDP on lo: %+v", before)
	}
	check(t, chain.Rewrite(lab.ChainConfig{Annotations: cniPolicy("interfaces", "lo", "mode", "native")}))
	cniAdd(t, chain, pod)
	after := must(lab.ReadHooks(l.Node, "lo"))(t)
	if after.XDP != before.XDP || !after.Generic {
		t.Errorf("hooks were %+v, are %+v", before, after)
	}
	s, exit := cniStatus(t, l)
	if exit != 1 || cniProblem(s, node.ProblemNotAttached) == nil || !s.Interfaces[0].Attached || s.Interfaces[0].Mode != "generic" {
		t.Errorf("status: exit status %d, %+v", exit, s)
	}
}

// The same holds where a file was changed, and what it says now cannot be put in force.
func TestCNIBrokenFileIsNotTriedByEachPod(t *testing.T) {
	list := filepath.Join(t.TempDir(), "deny.txt")
	check(t, os.WriteFile(list, []byte("192.0.2.0/24\n"), 0o600))
	l, chain, pod := cniChain(t, cniPolicy("deny-files", list))
	cniAdd(t, chain, pod)
	pins := filepath.Join(l.BPFFS, "untracked/interfaces", strconv.Itoa(l.Uplinks[0].NodeIndex))
	check(t, unix.Mount(pins, pins, "", unix.MS_BIND, ""))
	t.Cleanup(func() { unix.Unmount(pins, unix.MNT_DETACH) })
	check(t, unix.Mount("", pins, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))

	check(t, os.WriteFile(list, []byte("198.51.100.0/24\n192.0.2.0/24\n"), 0o600))
	cniAdd(t, chain, pod)
	tried := cniRecord(t, l).Applied
	for range 5 {
		cniAdd(t, chain, pod)
	}
	if r := cniRecord(t, l); !r.Broken || !r.Applied.Equal(tried) || r.Generation != 1 {
		t.Errorf("broken %v, generation %d, tried at %v and again at %v", r.Broken, r.Generation, tried, r.Applied)
	}
	// Another change is another attempt.
	check(t, unix.Unmount(pins, unix.MNT_DETACH))
	check(t, os.WriteFile(list, []byte("198.51.100.0/24\n"), 0o600))
	cniAdd(t, chain, pod)
	cniHealthy(t, l, chain, pod)
}
