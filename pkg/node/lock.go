// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// ErrLocked says that another caller held the node's lock for too long.
var ErrLocked = errors.New("the node is locked by another caller")

const (
	lockFile = "lock"
	lockPoll = 5 * time.Millisecond
)

// lock serialises callers on a run directory, which it creates. It waits no longer than ctx allows. The kernel
// drops the lock of a caller that dies.
func lock(ctx context.Context, runDir string) (unlock func(), err error) {
	path := filepath.Join(runDir, lockFile)
	for {
		if err := os.MkdirAll(runDir, 0o700); err != nil {
			return nil, fmt.Errorf("create run directory: %w", err)
		}
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
		if err != nil {
			if errors.Is(err, os.ErrNotExist) && ctx.Err() == nil {
				continue // remove took the directory away in between
			}
			return nil, fmt.Errorf("open lock: %w", err)
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil && isStillAt(f, path) {
			return func() { f.Close() }, nil
		}
		f.Close()
		if err != nil && !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: gave up waiting for %s", ErrLocked, path)
		case <-time.After(lockPoll):
		}
	}
}

// isStillAt tells a lock that can be seen by others from one whose file remove has deleted.
func isStillAt(f *os.File, path string) bool {
	held, err := f.Stat()
	if err != nil {
		return false
	}
	there, err := os.Stat(path)
	return err == nil && os.SameFile(held, there)
}
