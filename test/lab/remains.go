// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// labRemains is all one must know to remove a lab, whoever does it: its own process, or the watchdog after
// that was killed.
type labRemains struct {
	Name string // what the names of its namespaces and networks begin with
	Dir  string
}

// remove ends the processes inside the lab's namespaces and takes away namespaces, mounts and files. It goes
// on after errors, and removing what is not there is none.
func (r *labRemains) remove() error {
	pins, err := filepath.Glob(filepath.Join(netnsDir, r.Name+"-*"))
	if err != nil {
		return err
	}
	var errs []error
	errs = append(errs, killInside(pins))
	for _, pin := range pins {
		if err := unix.Unmount(pin, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("unpin netns %s: %w", pin, err))
		}
		if err := os.Remove(pin); err != nil {
			errs = append(errs, fmt.Errorf("remove netns: %w", err))
		}
	}

	// cnitool knows no other cache directory.
	cached, _ := filepath.Glob(filepath.Join("/var/lib/cni/results", r.Name+"-*"))
	for _, file := range cached {
		errs = append(errs, os.Remove(file))
	}

	// A file system mounted in Dir that will not go must not have its files removed.
	if err := unmountBelow(r.Dir); err != nil {
		return errors.Join(append(errs, err)...)
	}
	errs = append(errs, os.RemoveAll(r.Dir))
	return errors.Join(errs...)
}

// killInside ends every process, but this one, whose network namespace is one of those pinned.
func killInside(pins []string) error {
	deadline := time.Now().Add(5 * time.Second)
	for {
		pids, err := inside(pins)
		if err != nil || len(pids) == 0 {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("processes %v in the lab do not end", pids)
		}
		for _, pid := range pids {
			unix.Kill(pid, unix.SIGKILL)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func inside(pins []string) (pids []int, err error) {
	var inodes []uint64
	for _, pin := range pins {
		var st unix.Stat_t
		// Anything but nsfs is a pin that was never mounted.
		var fs unix.Statfs_t
		if unix.Statfs(pin, &fs) == nil && fs.Type == unix.NSFS_MAGIC && unix.Stat(pin, &st) == nil {
			inodes = append(inodes, st.Ino)
		}
	}
	if len(inodes) == 0 {
		return nil, nil
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		// Fails for kernel threads, and for zombies, which need no killing.
		var st unix.Stat_t
		if unix.Stat(filepath.Join("/proc", e.Name(), "ns/net"), &st) == nil && slices.Contains(inodes, st.Ino) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// unmountBelow unmounts whatever is mounted in dir, the latest first.
func unmountBelow(dir string) error {
	mounts, err := mountsBelow(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, m := range slices.Backward(mounts) {
		if err := unix.Unmount(m, unix.UMOUNT_NOFOLLOW); err == nil {
			continue
		}
		if err := unix.Unmount(m, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", m, err))
		}
	}
	return errors.Join(errs...)
}

func mountsBelow(dir string) (mounts []string, err error) {
	f, err := os.Open("/proc/thread-self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		// 36 35 98:0 /root /mount/point options …, proc(5)
		if fields := strings.Fields(lines.Text()); len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") {
			mounts = append(mounts, fields[4])
		}
	}
	return mounts, lines.Err()
}
