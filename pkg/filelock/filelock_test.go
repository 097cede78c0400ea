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
