// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// inMountNamespace runs f on a thread with a mount namespace of its own, where nothing is mounted at the
// default path.
func inMountNamespace(t *testing.T, f func()) {
	t.Helper()
	requireRoot(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlock: the thread ends with the goroutine
		for _, step := range []func() error{
			func() error { return unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS) },
			func() error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") },
		} {
			if err := step(); err != nil {
				t.Errorf("set up the mount namespace: %v", err)
				return
			}
		}
		for unix.Unmount(DefaultBPFFS, unix.MNT_DETACH) == nil {
		}
		f()
	}()
	<-done
}

func TestEnsureBPFFSMountsTheDefault(t *testing.T) {
	inMountNamespace(t, func() {
		if IsBPFFS(DefaultBPFFS) {
			t.Error("a bpf file system is left")
			return
		}
		for range 2 { // the second call finds it there
			if err := EnsureBPFFS(DefaultBPFFS); err != nil {
				t.Error(err)
				return
			}
		}
		if !IsBPFFS(DefaultBPFFS) {
			t.Error("not mounted")
		}
		if err := PinsAt(DefaultBPFFS).Create(); err != nil {
			t.Error(err)
		}
		var mounts int
		data, err := os.ReadFile("/proc/thread-self/mounts")
		if err != nil {
			t.Error(err)
		}
		for _, line := range strings.Split(string(data), "\n") {
			if strings.Contains(line, " "+DefaultBPFFS+" bpf ") { // Linux 5.10 forgets the source before it
				mounts++
			}
		}
		if mounts != 1 {
			t.Errorf("%d mounts at the default path, want 1", mounts)
		}
	})
}

func TestEnsureBPFFSLeavesOthersAlone(t *testing.T) {
	other := t.TempDir()
	err := EnsureBPFFS(other)
	if !errors.Is(err, ErrNoBPFFS) || !strings.Contains(err.Error(), "mount -t bpf bpf "+other) {
		t.Errorf("a path that is not the default: %v", err)
	}
	inMountNamespace(t, func() {
		if err := unix.Mount("tmpfs", DefaultBPFFS, "tmpfs", 0, ""); err != nil {
			t.Error(err)
			return
		}
		if err := os.WriteFile(filepath.Join(DefaultBPFFS, "something"), nil, 0o600); err != nil {
			t.Error(err)
			return
		}
		if err := EnsureBPFFS(DefaultBPFFS); !errors.Is(err, ErrNoBPFFS) || !strings.Contains(err.Error(), "not empty") {
			t.Errorf("a directory in use: %v", err)
		}
	})
}
