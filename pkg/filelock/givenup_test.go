// SPDX-License-Identifier: Apache-2.0

package filelock

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Callers that give up one after the other, as those of a long process do beside a holder that hangs, leave one file open
// and one thread waiting, and the lock can be had as soon as it is free.
func TestLockGivenUp(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dir", "lock")
	unlock, err := Lock(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	giveUp := func() {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, err := Lock(ctx, path); !errors.Is(err, ErrLocked) {
			t.Fatalf("locked by another: %v, want ErrLocked", err)
		}
	}
	count := func(dir string) int {
		t.Helper()
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	giveUp()
	files, threads := count("/proc/self/fd"), count("/proc/self/task")
	for range 50 {
		giveUp()
	}
	if now := count("/proc/self/fd"); now >= files+25 {
		t.Errorf("%d files are open, %d were", now, files)
	}
	if now := count("/proc/self/task"); now >= threads+25 {
		t.Errorf("%d threads, %d were", now, threads)
	}

	unlock()
	// Whether the wait that was left ends or is taken over: the lock can be had, again and again, by one at a time.
	for range 3 {
		if unlock, err = Lock(t.Context(), path); err != nil {
			t.Fatal(err)
		}
		giveUp()
		// The file of the wait that was left is another's now: a new one is waited for.
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		other, err := Lock(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		giveUp()
		other()
		unlock()
	}
}
