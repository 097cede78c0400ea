// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// ErrLocked says that another caller held the node's lock for too long.
var ErrLocked = errors.New("the node is locked by another caller")

const lockFile = "lock"

// lock serialises callers on a run directory, which it creates. It waits no longer than ctx allows. The kernel
// drops the lock of a caller that dies.
func lock(ctx context.Context, runDir string) (unlock func(), err error) {
	path := filepath.Join(runDir, lockFile)
	for {
		if err := os.MkdirAll(runDir, 0o700); err != nil {
			return nil, fmt.Errorf("create run directory: %w", err)
		}
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			if errors.Is(err, os.ErrNotExist) && ctx.Err() == nil {
				continue // remove took the directory away in between
			}
			return nil, fmt.Errorf("open lock: %w", err)
		}
		err = flock(ctx, f)
		if errors.Is(err, ErrLocked) {
			return nil, fmt.Errorf("%w: gave up waiting for %s", err, path)
		}
		if err == nil && isStillAt(f, path) {
			return func() { f.Close() }, nil
		}
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
	}
}

// flock waits in the kernel, and in a goroutine of its own because there is no deadline there: a hundred callers
// that asked again and again would leave the one that works no processor. After ErrLocked it closes f when it can.
func flock(ctx context.Context, f *os.File) error {
	got := make(chan error, 1)
	go func() {
		for {
			if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
				got <- err
				return
			}
		}
	}()
	select {
	case err := <-got:
		return err
	case <-ctx.Done():
		go func() {
			<-got
			f.Close()
		}()
		return ErrLocked
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
