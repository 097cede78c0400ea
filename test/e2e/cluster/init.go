// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// A machine's process 1 is this very program, started once more in namespaces of its own. It builds the file system, says
// on stdout that it is ready, or what is wrong, and then takes in orphans until its stdin ends: with its parent, however
// that went. The kernel kills everything in the machine with it.
type initJob struct {
	// Name is the machine's; its cgroups have it.
	Name string
	// Dir is a directory of the host for the mount points.
	Dir string
	// Bin is the host's directory of components, to be seen at binDir.
	Bin         string
	Hierarchies []hierarchy
	CgroupLinks map[string]string
}

const (
	initEnv   = "UNTRACKED_E2E_INIT"
	initReady = "ready"
)

// binDir is where the machine has the components.
const binDir = "/opt/untracked-e2e/bin"

// nodeName is the machine's host name.
const nodeName = "node1"

// empty are the directories whose content on the host is none of the machine's business. They are file systems in memory;
// an overlay, which the rest is, could not hold containerd's own overlays.
var empty = []string{
	"/run", "/tmp", "/etc/cni", "/etc/containerd", "/etc/kubernetes", "/etc/untracked", "/opt/cni", "/opt/containerd",
	"/var/lib/cni", "/var/lib/containerd", "/var/lib/kubelet", "/var/lib/etcd", "/var/log",
}

// maskedSysctls are those that kubelet sets for the whole host. It meets files with their values instead.
var maskedSysctls = []string{
	"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops",
	"kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes",
}

func init() {
	if encoded, ok := os.LookupEnv(initEnv); ok {
		// A cgroup namespace is a thread's: of this one, the process's first.
		runtime.LockOSThread()
		runInit(encoded)
	}
}

func runInit(encoded string) {
	signal.Ignore(unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT)
	var job initJob
	err := json.Unmarshal([]byte(encoded), &job)
	if err == nil {
		err = job.build()
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println(initReady)
	orphans := make(chan os.Signal, 1)
	signal.Notify(orphans, unix.SIGCHLD)
	go func() {
		for range orphans {
			for {
				pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
				if pid <= 0 && !errors.Is(err, unix.EINTR) {
					break
				}
			}
		}
	}()
	io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}

// build makes the machine's file system and moves into it.
func (j *initJob) build() error {
	if err := joinCgroups(j.Name, j.Hierarchies); err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("unshare cgroups: %w", err)
	}
	if err := unix.Sethostname([]byte(nodeName)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	// The host's file system, and in memory what is written to it.
	memory, root := filepath.Join(j.Dir, "memory"), filepath.Join(j.Dir, "root")
	for _, dir := range []string{memory, root} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount("tmpfs", memory, "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("mount tmpfs: %w", err)
	}
	upper, work := filepath.Join(memory, "upper"), filepath.Join(memory, "work")
	for _, dir := range []string{upper, work} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount("overlay", root, "overlay", 0, "lowerdir=/,upperdir="+upper+",workdir="+work); err != nil {
		return fmt.Errorf("mount overlay of /: %w", err)
	}
	if err := j.mounts(root); err != nil {
		return err
	}
	// The old root is put over the new one, and taken away from there; see pivot_root(2).
	if err := unix.Chdir(root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount the host's root: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	// As systemd has it, and as kubelet wants it.
	return unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, "")
}

func (j *initJob) mounts(root string) error {
	for _, m := range []struct {
		source, target, fstype string
		flags                  uintptr
		data                   string
	}{
		{"proc", "/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"sysfs", "/sys", "sysfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"bpf", "/sys/fs/bpf", "bpf", 0, "mode=0700"},
		{"/dev", "/dev", "", unix.MS_BIND | unix.MS_REC, ""},
		{j.Bin, binDir, "", unix.MS_BIND, ""},
	} {
		if err := mount(m.source, root+m.target, m.fstype, m.flags, m.data); err != nil {
			return err
		}
	}
	for _, dir := range empty {
		if err := mount("tmpfs", root+dir, "tmpfs", 0, "mode=0755"); err != nil {
			return err
		}
	}
	for _, key := range maskedSysctls {
		value, err := os.ReadFile(filepath.Join("/proc/sys", key))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		file := filepath.Join(root, "run/sysctl", key)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, value, 0o644); err != nil {
			return err
		}
		if err := unix.Mount(file, filepath.Join(root, "proc/sys", key), "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mask sysctl %s: %w", key, err)
		}
	}
	return mountCgroups(root, j.Hierarchies, j.CgroupLinks)
}

// mount makes the mount point if need be: in an overlay, that is the machine's only.
func mount(source, target, fstype string, flags uintptr, data string) error {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(source, target, fstype, flags, data); err != nil {
		return fmt.Errorf("mount %s on %s: %w", source, target, err)
	}
	return nil
}
