// SPDX-License-Identifier: Apache-2.0

package filelock

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Holders are alone, also where some remove the file, and its directory, in the end.
func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "lock")
	var wg sync.WaitGroup
	var inside, passed atomic.Int32
	for n := range 8 {
		wg.Go(func() {
			for range 50 {
				unlock, err := Lock(t.Context(), path)
				if err != nil {
					t.Error(err)
					return
				}
				if others := inside.Add(1) - 1; others != 0 {
					t.Errorf("%d others hold the lock", others)
				}
				passed.Add(1)
				inside.Add(-1)
				if n%2 == 0 {
					_ = os.Remove(path)
					_ = os.Remove(filepath.Dir(path))
				}
				unlock()
			}
		})
	}
	wg.Wait()
	if passed.Load() != 400 {
		t.Errorf("%d of 400 had the lock", passed.Load())
	}
}

func TestLockGivesUp(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	unlock, err := Lock(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := Lock(ctx, path); !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), path) {
		t.Errorf("a second lock: %v", err)
	}
	unlock()
	// Who gave up is still in the queue for a moment; it lets go at once.
	again, err := Lock(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	again()
}

func TestTryLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	open := func() *os.File {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	first, second := open(), open()
	defer second.Close()
	if !TryLock(first) || TryLock(second) {
		t.Error("not exactly the first has it")
	}
	if !IsStillAt(first, path) {
		t.Error("the file is where it was")
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if !TryLock(second) {
		t.Error("a closed file keeps its lock")
	}
	if err := os.Remove(path); err != nil || IsStillAt(second, path) {
		t.Errorf("a removed file is still there (%v)", err)
	}
}

func TestLockWithoutDirectory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run")
	if err := os.Symlink("nothing", path); err != nil {
		t.Fatal(err)
	}
	if _, err := Lock(t.Context(), filepath.Join(path, "lock")); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("a link to nothing: %v", err)
	}
	if err := errors.Join(os.Remove(path), os.WriteFile(path, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := Lock(t.Context(), filepath.Join(path, "lock")); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("a file: %v", err)
	}
}

// A directory that was removed where it is mounted from cannot have a lock again, and waiting does not help.
func TestLockInRemovedDirectory(t *testing.T) {
	source, dir := filepath.Join(t.TempDir(), "source"), t.TempDir()
	if err := os.Mkdir(source, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(source, dir, "", unix.MS_BIND, ""); err != nil {
		t.Skipf("bind mount: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	unlock, err := Lock(t.Context(), filepath.Join(dir, "lock"))
	if err != nil || IsRemoved(dir) {
		t.Fatalf("before: %v", err)
	}
	unlock()
	if err := errors.Join(os.RemoveAll(source), os.Mkdir(source, 0o700)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := Lock(ctx, filepath.Join(dir, "lock")); err == nil || ctx.Err() != nil || !strings.Contains(err.Error(), "was removed on the host") {
		t.Errorf("%v", err)
	}
	if !IsRemoved(dir) {
		t.Error("it was removed")
	}
}
