// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// DefaultBPFFS is where systemd, container images and everybody else mount the BPF file system.
const DefaultBPFFS = "/sys/fs/bpf"

// ErrNoBPFFS says that pins cannot be made because there is no BPF file system.
var ErrNoBPFFS = errors.New("no bpf file system")

// IsBPFFS reports whether a BPF file system is mounted at path, in this mount namespace.
func IsBPFFS(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && uint32(st.Type) == unix.BPF_FS_MAGIC
}

// EnsureBPFFS makes sure that a BPF file system is mounted at path. It mounts one only at the default path and
// only where nothing is in the way; any other path was the operator's choice, and so is its mount. The error
// wraps ErrNoBPFFS and says what to do.
func EnsureBPFFS(path string) error {
	if IsBPFFS(path) {
		return nil
	}
	if err := CanMountBPFFS(path); err != nil {
		return err
	}
	if err := unix.Mount("bpf", path, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_RELATIME, "mode=0700"); err != nil {
		return fmt.Errorf("%w at %s: mount it: %w", ErrNoBPFFS, path, err)
	}
	return nil
}

// CanMountBPFFS says why EnsureBPFFS would not mount a BPF file system at path.
func CanMountBPFFS(path string) error {
	if path != DefaultBPFFS {
		return fmt.Errorf("%w at %s: mount one with `mount -t bpf bpf %s`", ErrNoBPFFS, path, path)
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w at %s: the directory is missing, so the kernel has no BPF file system or sysfs is not mounted", ErrNoBPFFS, path)
		}
		return fmt.Errorf("%w at %s: %w", ErrNoBPFFS, path, err)
	}
	if len(entries) > 0 {
		return fmt.Errorf("%w at %s, and the directory is not empty: see what is mounted there (`findmnt %s`)", ErrNoBPFFS, path, path)
	}
	return nil
}
