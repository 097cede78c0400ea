// SPDX-License-Identifier: Apache-2.0

// Package filelock serialises processes by a lock on a file. The kernel drops the lock of a process that dies.
package filelock

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// ErrLocked says that another process held the lock for too long.
var ErrLocked = errors.New("locked by another process")

// Lock takes the lock on a file, which it creates with its directory. It waits no longer than ctx allows. The holder may
// remove the file, as its last act: who waits for it finds that out and starts over.
func Lock(ctx context.Context, path string) (unlock func(), err error) {
	for {
		dir := filepath.Dir(path)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			if errors.Is(err, os.ErrExist) && !isOther(dir) && ctx.Err() == nil {
				continue // the directory came and went
			}
			return nil, fmt.Errorf("create run directory: %w", err)
		}
		w, err := begin(path)
		if err != nil {
			if errors.Is(err, os.ErrNotExist) && IsRemoved(dir) {
				return nil, fmt.Errorf("open lock: %w", RemovedError(dir))
			}
			if errors.Is(err, os.ErrNotExist) && ctx.Err() == nil {
				continue // the directory was taken away in between
			}
			return nil, fmt.Errorf("open lock: %w", err)
		}
		err = w.end(ctx)
		if errors.Is(err, ErrLocked) {
			return nil, fmt.Errorf("%w: gave up waiting for %s; %s", err, path, holder(path))
		}
		if err == nil && IsStillAt(w.file, path) {
			return func() { w.file.Close() }, nil
		}
		w.file.Close()
		if err != nil {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
	}
}

// IsRemoved reports whether a directory is a mount of one that was removed where it is from: it is there, and nothing can
// be created in it any more, whatever is in its old place now. Requires at least Linux 5.8, and is false before.
func IsRemoved(dir string) bool {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, dir, 0, unix.STATX_NLINK, &st)
	return err == nil && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0 && st.Nlink == 0
}

// RemovedError says what to do about a directory that IsRemoved.
func RemovedError(dir string) error {
	return fmt.Errorf("%s was removed on the host while it is mounted here; a container has to be restarted to have it mounted again", dir)
}

// isOther reports whether something that is no directory is at a path.
func isOther(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && !info.IsDir()
}

// TryLock takes the lock on an open file if nobody has it, and keeps it until the file is closed.
func TryLock(f *os.File) bool {
	return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil
}

// IsStillAt tells a lock that can be seen by others from one whose file was removed.
func IsStillAt(f *os.File, path string) bool {
	held, err := f.Stat()
	if err != nil {
		return false
	}
	there, err := os.Stat(path)
	return err == nil && os.SameFile(held, there)
}
