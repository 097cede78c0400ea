// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/pkg/config"
	"github.com/untracked-cni/untracked/pkg/node"
	"github.com/untracked-cni/untracked/test/lab"
)

// An ADD on a healthy node works where nothing can be written, and leaves every inode, time and ID as it was.
func TestCNISteadyAddOnlyReads(t *testing.T) {
	l, chain, pod := cniChain(t, cniPolicy("deny", "192.0.2.0/24", "remote-ports", "udp/5353"))
	cniAdd(t, chain, pod)
	before := cniRead(t, l)
	for _, dir := range []string{l.RunDir, l.BPFFS} {
		cniReadOnly(t, dir)
	}
	for range 3 {
		if out := cniAdd(t, chain, pod); len(out.Stderr) != 0 {
			t.Errorf("ADD says %q", out.Stderr)
		}
	}
	for _, verb := range []string{"CHECK", "STATUS", "GC", "DEL"} {
		if _, err := chain.Plugin(verb, pod, chain.Stdin([]byte(cniPrev("1.1.0")))); err != nil {
			t.Error(err)
		}
	}
	for _, command := range []string{"status", "rules", "metrics"} {
		if out := must(l.Untracked(command))(t); out.ExitCode != 0 {
			t.Errorf("%s: exit status %d, %s", command, out.ExitCode, out.Stderr)
		}
	}
	cniSame(t, "looking at a healthy node", before, cniRead(t, l))
}

// An ADD on a healthy node opens the record and neither the lists, however long, nor the rules that hold their addresses.
func TestCNISteadyAddReadsNoList(t *testing.T) {
	var list, set strings.Builder
	set.WriteString("apiVersion: projectcalico.org/v3\nkind: GlobalNetworkSet\nmetadata: {name: big, labels: {list: big}}\nspec:\n  nets:\n")
	const entries = 100_000
	for i := range entries {
		fmt.Fprintf(&list, "10.%d.%d.%d\n", i>>15, i>>7&0xff, i<<1&0xff)
		fmt.Fprintf(&set, "  - 172.%d.%d.%d/32\n", 16+i>>15, i>>7&0xff, i<<1&0xff)
	}
	set.WriteString(`---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: big}
spec:
  selector: all()
  doNotTrack: true
  applyOnForward: true
  ingress:
  - {action: Deny, source: {selector: has(list)}}
`)
	dir := t.TempDir()
	listFile, setFile := filepath.Join(dir, "list"), filepath.Join(dir, "set.yaml")
	check(t, os.WriteFile(listFile, []byte(list.String()), 0o600))
	check(t, os.WriteFile(setFile, []byte(set.String()), 0o600))

	l, chain, pod := cniChain(t, cniPolicy("deny-files", listFile, "policy-files", setFile))
	cniAdd(t, chain, pod)
	opened := cniWatchOpens(t, dir, l.RunDir)
	for range 3 {
		cniAdd(t, chain, pod)
	}
	if got := opened(); !slices.Equal(got, []string{"record.json"}) {
		t.Errorf("an ADD on a healthy node opened %v, want the record alone", got)
	}
	if info := must(os.Stat(filepath.Join(l.RunDir, "record.json")))(t); info.Size() > 16<<10 {
		t.Errorf("the record of %d addresses has %d bytes", 2*entries, info.Size())
	}
	// The addresses are there all the same, for who asks.
	if out := must(l.Untracked("rules"))(t); out.ExitCode != 0 || bytes.Count(out.Stdout, []byte(fmt.Sprintf("%d CIDRs", entries))) == 0 {
		t.Errorf("rules: exit status %d, %s%s", out.ExitCode, out.Stdout, out.Stderr)
	}
	if got := opened(); !slices.Contains(got, "rules.json") {
		t.Errorf("to list the rules, %v were opened", got)
	}
	cniTidy(t, l)
}

// cniWatchOpens returns a function that returns the names of the files of some directories that anybody has opened
// since it was last asked, sorted, each once.
func cniWatchOpens(t *testing.T, dirs ...string) func() []string {
	t.Helper()
	fd := must(unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK))(t)
	t.Cleanup(func() { unix.Close(fd) })
	for _, dir := range dirs {
		must(unix.InotifyAddWatch(fd, dir, unix.IN_OPEN))(t)
	}
	return func() []string {
		var names []string
		buffer := make([]byte, 64<<10)
		for {
			n, err := unix.Read(fd, buffer)
			if errors.Is(err, unix.EAGAIN) {
				slices.Sort(names)
				return slices.Compact(names)
			}
			check(t, err)
			for event := buffer[:n]; len(event) > 0; {
				// struct inotify_event: wd, mask, cookie and len of 4 bytes each, then the name and zeros.
				length := binary.NativeEndian.Uint32(event[12:])
				if name := string(bytes.TrimRight(event[16:16+length], "\x00")); name != "" { // not the directory itself
					names = append(names, name)
				}
				event = event[16+length:]
			}
		}
	}
}

// cniReadOnly makes a directory read-only for everybody. Closing the lab unmounts it.
func cniReadOnly(t *testing.T, dir string) {
	t.Helper()
	check(t, unix.Mount(dir, dir, "", unix.MS_BIND, ""))
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	check(t, unix.Mount("", dir, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	if err := os.Mkdir(filepath.Join(dir, "x"), 0o700); !errors.Is(err, unix.EROFS) {
		t.Fatalf("%s can be written to: %v", dir, err)
	}
}

// cniHoldLock takes the node's lock as another process would.
func cniHoldLock(t *testing.T, l *lab.Lab) (release func()) {
	t.Helper()
	f := must(os.OpenFile(filepath.Join(l.RunDir, "lock"), os.O_RDWR|os.O_CREATE, 0o600))(t)
	check(t, unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB))
	return func() { f.Close() }
}

// Only who has something to change waits for others, and not for ever.
func TestCNILockHeldByAnother(t *testing.T) {
	l, chain, pod := cniChain(t, cniPolicy())
	cniAdd(t, chain, pod)
	release := cniHoldLock(t, l)
	defer release()
	const quick = 10 * time.Second // far below the time a caller waits for the lock
	for _, verb := range []string{"ADD", "CHECK", "STATUS", "GC", "DEL"} {
		out, err := chain.Plugin(verb, pod, chain.Stdin([]byte(cniPrev("1.1.0"))))
		if err != nil || out.Elapsed > quick {
			t.Errorf("%s with the lock held: %v after %v", verb, err, out.Elapsed)
		}
	}
	if _, exit := cniStatus(t, l); exit != 0 {
		t.Errorf("status with the lock held: exit status %d", exit)
	}

	before := cniRead(t, l)
	changed := cniStdin(chain.Network, "1.1.0", cniAnnotations(l, cniPolicy("deny", "192.0.2.1")), cniPrev("1.1.0"))
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	var err error
	check(t, lab.In(l.Node, func() error {
		c, bad := config.Parse(changed)
		if bad != nil {
			return bad
		}
		_, err = cniNodeOf(l).Ensure(ctx, c)
		return nil
	}))
	if !errors.Is(err, node.ErrLocked) {
		t.Errorf("apply with the lock held: %v, want %v", err, node.ErrLocked)
	}
	ctx, cancel = context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	if _, err := cniNodeOf(l).Remove(ctx); !errors.Is(err, node.ErrLocked) {
		t.Errorf("remove with the lock held: %v, want %v", err, node.ErrLocked)
	}
	cniSame(t, "waiting for the lock", before, cniRead(t, l))

	// Who waits goes on when the lock is free.
	done := make(chan *lab.Outcome, 1)
	go func() { done <- cniRun(t, l, cniEnv(chain, "ADD", pod), changed) }()
	select {
	case out := <-done:
		t.Errorf("ADD with a new policy did not wait: exit status %d, %s", out.ExitCode, out.Stdout)
	case <-time.After(300 * time.Millisecond):
		release()
		if out := <-done; out.ExitCode != 0 {
			t.Errorf("ADD after the lock was free: exit status %d, %s", out.ExitCode, out.Stdout)
		}
	}
	if r := cniRecord(t, l); r.Generation != 2 {
		t.Errorf("generation %d, want 2", r.Generation)
	}
	cniTidy(t, l)
}
