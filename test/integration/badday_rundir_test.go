// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/pkg/node"
	"github.com/untracked-cni/untracked/test/lab"
)

// badDayRunDir mounts a small file system at the lab's run directory.
func badDayRunDir(t *testing.T, l *lab.Lab) {
	t.Helper()
	check(t, os.MkdirAll(l.RunDir, 0o700))
	check(t, unix.Mount("tmpfs", l.RunDir, "tmpfs", 0, "nr_blocks=64"))
	t.Cleanup(func() { unix.Unmount(l.RunDir, unix.MNT_DETACH) })
}

// badDayFill takes all room that is left there, and returns what gives it back.
func badDayFill(t *testing.T, l *lab.Lab) (free func()) {
	t.Helper()
	ballast := filepath.Join(l.RunDir, "ballast")
	f := must(os.Create(ballast))(t)
	defer f.Close()
	var err error
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	return func() { check(t, os.Remove(ballast)) }
}

// badDayADD runs ADD on a bad day: the pod starts and the log has the words, unless the policy is required; then the error
// has them. CHECK, which some runtimes run then, goes the same way, and DEL works in either case.
func badDayADD(t *testing.T, l *lab.Lab, chain *lab.Chain, pod *lab.NS, annotations map[string]string, words ...string) {
	t.Helper()
	for _, required := range []string{"false", "true"} {
		annotations["required"] = required
		check(t, chain.Rewrite(lab.ChainConfig{Annotations: annotations}))
		out := cniRun(t, l, cniEnv(chain, "ADD", pod), chain.Stdin([]byte(cniPrev("1.1.0"))))
		text := string(out.Stderr)
		if required == "true" {
			text = cniFailure(t, out, 102)
		} else if out.ExitCode != 0 {
			t.Errorf("ADD: exit status %d, %s", out.ExitCode, out.Stdout)
		}
		checked := cniRun(t, l, cniEnv(chain, "CHECK", pod), chain.Stdin([]byte(cniPrev("1.1.0"))))
		if required == "true" {
			cniFailure(t, checked, 101, 102)
		} else if checked.ExitCode != 0 || !strings.Contains(string(checked.Stderr), "not on record") {
			t.Errorf("CHECK: exit status %d, %s%s", checked.ExitCode, checked.Stdout, checked.Stderr)
		}
		if out := cniRun(t, l, cniEnv(chain, "DEL", pod), chain.Stdin(nil)); out.ExitCode != 0 {
			t.Errorf("DEL: exit status %d, %s", out.ExitCode, out.Stdout)
		}
		for _, w := range words {
			if !strings.Contains(text, w) {
				t.Errorf("required %s: ADD does not say %q: %s", required, w, text)
			}
		}
	}
	delete(annotations, "required")
	check(t, chain.Rewrite(lab.ChainConfig{Annotations: annotations}))
}

// With no room for a record the policy is applied all the same, by each pod anew, and both log and status say where to make
// room. As soon as there is some, the next pod leaves a node that is as it should be.
func TestBadDayRunDirFull(t *testing.T) {
	annotations := cniPolicy()
	l, chain, pod := cniChain(t, annotations)
	badDayRunDir(t, l)
	must(lab.AddStateful(l.Node, true))(t)
	for _, port := range []uint16{6379, 6380} {
		must(lab.ServeTCP(l.Node, port))(t)
	}
	room := "make room there: `df -h " + l.RunDir
	expect := func(port uint16) {
		t.Helper()
		badDayUntracked(t, l, port)
		s, exit := cniStatus(t, l)
		if p := cniProblem(s, node.ProblemRunDir); exit != 1 || p == nil || !strings.Contains(p.Remedy, room) {
			t.Errorf("status: exit status %d, %+v", exit, s.Problems)
		}
		if out := must(l.Untracked("apply", chain.File))(t); out.ExitCode != 1 || !strings.Contains(string(out.Stderr), room) {
			t.Errorf("apply: exit status %d, %s", out.ExitCode, out.Stderr)
		}
	}

	// Before the first record. The lock is an empty file: it fits.
	free := badDayFill(t, l)
	badDayADD(t, l, chain, pod, annotations, "could not be recorded", "no space left on device", room)
	expect(6379)
	free()
	cniAdd(t, chain, pod)
	cniHealthy(t, l, chain, pod)

	// In place of another.
	annotations["ports"] = "tcp/6380"
	free = badDayFill(t, l)
	badDayADD(t, l, chain, pod, annotations, "could not be recorded", "no space left on device", room)
	expect(6380)
	free()
	cniAdd(t, chain, pod)
	cniHealthy(t, l, chain, pod)
}

// badDayUntracked asserts that the node serves a port, and does not track who calls.
func badDayUntracked(t *testing.T, l *lab.Lab, port uint16) {
	t.Helper()
	check(t, lab.FlushFlows(l.Node))
	u := l.Uplinks[0]
	const n = 5
	r := must(lab.LoadTCP(l.Client, lab.Load{Target: netip.AddrPortFrom(u.Node4, port), Sources: u.Client4[:1], Count: n, Timeout: cniPatience}))(t)
	if flows := must(lab.CountFlows(l.Node, lab.Port(port)))(t); r.OK != n || flows != 0 {
		t.Errorf("tcp/%d: %v (%v), %d flows tracked", port, r, r.FirstFailure, flows)
	}
}

// A run directory that cannot be written leaves in force what is, and holds no pod up that changes nothing.
func TestBadDayRunDirReadOnly(t *testing.T) {
	annotations := cniPolicy("ports", "tcp/6379")
	l, chain, pod := cniChain(t, annotations)
	badDayRunDir(t, l)
	must(lab.AddStateful(l.Node, true))(t)
	must(lab.ServeTCP(l.Node, 6379))(t)
	cniAdd(t, chain, pod)
	check(t, unix.Mount("", l.RunDir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))

	if out := cniAdd(t, chain, pod); len(out.Stderr) > 0 {
		t.Errorf("ADD that changes nothing: %s", out.Stderr)
	}
	if _, exit := cniStatus(t, l); exit != 0 {
		t.Errorf("status: exit status %d", exit)
	}
	annotations["ports"] = "tcp/6380"
	badDayADD(t, l, chain, pod, annotations, l.RunDir, "read-only file system", "mount it writable", "untracked.cni/run-dir")
	badDayUntracked(t, l, 6379)
	if out := must(l.Untracked("apply", chain.File))(t); out.ExitCode != 1 || !strings.Contains(string(out.Stderr), "mount it writable") {
		t.Errorf("apply: exit status %d, %s", out.ExitCode, out.Stderr)
	}

	check(t, unix.Mount("", l.RunDir, "", unix.MS_REMOUNT, ""))
	cniAdd(t, chain, pod)
	cniHealthy(t, l, chain, pod)
}
