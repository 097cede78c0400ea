// SPDX-License-Identifier: Apache-2.0

package install

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// tempName is the name of whatever is about to take another's place. Only the holder of the lock writes, so it needs no
// randomness, and what a killed installer left is known by it. No runtime takes it for a conf list.
const tempName = ".untracked.tmp"

func removeTemp(dir string) {
	_ = os.RemoveAll(filepath.Join(dir, tempName))
	_ = os.RemoveAll(filepath.Join(dir, tempName+asideSuffix))
}

// replaceFile puts a file with this content at a path, in one step.
func replaceFile(path string, data []byte, mode fs.FileMode, like *syscall.Stat_t) error {
	dir := filepath.Dir(path)
	tmp := filepath.Join(dir, tempName)
	removeTemp(dir) // a killed installer's
	err := writeNew(tmp, data, mode, like)
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		removeTemp(dir)
		return err
	}
	return syncDir(dir)
}

// writeNew writes a file through to the disk. like has the owner, if it is not this process's. A file that could not be
// written whole is removed.
func writeNew(path string, data []byte, mode fs.FileMode, like *syscall.Stat_t) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if like != nil {
		err = errors.Join(err, chown(f, like))
	}
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err != nil {
		_ = os.Remove(path)
	}
	return err
}

// chown asks for nothing where the owner is right already: a container seldom has the capability.
func chown(f *os.File, like *syscall.Stat_t) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if is := info.Sys().(*syscall.Stat_t); is.Uid == like.Uid && is.Gid == like.Gid {
		return nil
	}
	if err := f.Chown(int(like.Uid), int(like.Gid)); err != nil {
		return fmt.Errorf("keep the owner %d:%d, which needs CAP_CHOWN: %w", like.Uid, like.Gid, err)
	}
	return nil
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil && !errors.Is(err, unix.EINVAL) { // some file systems have nothing to sync
		return err
	}
	return nil
}

// writeProblem says what an operator can do about a directory that cannot be written to, which a flag names.
func writeProblem(act, dir, flag string, err error) error {
	remedy := ""
	switch {
	case errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT):
		remedy = fmt.Sprintf("; make room there (`df %s`), nothing was changed by this step", dir)
	case errors.Is(err, unix.EROFS), errors.Is(err, fs.ErrPermission):
		remedy = fmt.Sprintf("; want a directory that can be written to: name it with %s, and mount it writable in a container", flag)
	}
	return fmt.Errorf("%s in %s: %w%s", act, dir, err, remedy)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
