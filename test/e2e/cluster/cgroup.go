// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const cgroupDir = "/sys/fs/cgroup"

// hierarchy is one mounted cgroup file system: version 1 has several, version 2 one, a hybrid both.
type hierarchy struct {
	// Path is where it is mounted.
	Path string
	// FSType is cgroup or cgroup2.
	FSType string
	// Options are those to mount it again: the controllers of version 1.
	Options string
}

// hierarchies are those mounted on this host.
func hierarchies() (all []hierarchy, err error) {
	f, err := os.Open("/proc/thread-self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		// 36 35 98:0 /root /mount/point options … - type source super-options, proc(5)
		mount, super, _ := strings.Cut(lines.Text(), " - ")
		before, after := strings.Fields(mount), strings.Fields(super)
		if len(before) < 5 || len(after) < 3 || before[4] != cgroupDir && !strings.HasPrefix(before[4], cgroupDir+"/") {
			continue
		}
		h := hierarchy{Path: before[4], FSType: after[0]}
		switch h.FSType {
		case "cgroup2":
		case "cgroup":
			// Of the options, the controllers and the name are the hierarchy's; a name alone wants "none".
			options := slices.DeleteFunc(strings.Split(after[2], ","), func(o string) bool {
				return o == "rw" || o == "ro" || o == "xattr" || strings.HasPrefix(o, "release_agent=") || strings.HasPrefix(o, "clone_children")
			})
			if len(options) == 1 && strings.HasPrefix(options[0], "name=") {
				options = append([]string{"none"}, options...)
			}
			h.Options = strings.Join(options, ",")
		default:
			continue
		}
		all = append(all, h)
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("no cgroup file system is mounted below %s", cgroupDir)
	}
	return all, nil
}

// makeCgroups makes a group of this name in every hierarchy.
func makeCgroups(name string, all []hierarchy) error {
	for _, h := range all {
		dir := filepath.Join(h.Path, name)
		if h.FSType == "cgroup2" {
			// What is not there cannot be passed on, nor be missed by what runs in the group.
			controllers, err := os.ReadFile(filepath.Join(h.Path, "cgroup.controllers"))
			if err != nil {
				return err
			}
			for controller := range strings.FieldsSeq(string(controllers)) {
				os.WriteFile(filepath.Join(h.Path, "cgroup.subtree_control"), []byte("+"+controller), 0)
			}
		}
		if err := os.Mkdir(dir, 0o755); err != nil {
			return fmt.Errorf("make cgroup: %w", err)
		}
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			// Version 1 admits no process before these are set.
			value, err := os.ReadFile(filepath.Join(h.Path, file))
			if h.FSType != "cgroup" || errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err == nil {
				err = os.WriteFile(filepath.Join(dir, file), value, 0)
			}
			if err != nil {
				return fmt.Errorf("make cgroup %s: %w", dir, err)
			}
		}
	}
	return nil
}

// joinCgroups moves this process into the groups.
func joinCgroups(name string, all []hierarchy) error {
	for _, h := range all {
		if err := os.WriteFile(filepath.Join(h.Path, name, "cgroup.procs"), []byte("0"), 0); err != nil {
			return fmt.Errorf("join cgroup: %w", err)
		}
	}
	return nil
}

// mountCgroups mounts the hierarchies below root as they are on the host, from this process's groups down.
func mountCgroups(root string, all []hierarchy, links map[string]string) error {
	if all[0].Path != cgroupDir {
		if err := unix.Mount("tmpfs", root+cgroupDir, "tmpfs", 0, "mode=0755"); err != nil {
			return fmt.Errorf("mount tmpfs on %s: %w", cgroupDir, err)
		}
	}
	for _, h := range all {
		if err := os.MkdirAll(root+h.Path, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(h.FSType, root+h.Path, h.FSType, 0, h.Options); err != nil {
			return fmt.Errorf("mount %s (%s %s): %w", h.Path, h.FSType, h.Options, err)
		}
		if h.FSType == "cgroup2" {
			// A group of version 2 that has processes can have no children with controllers.
			leaf := filepath.Join(root+h.Path, "init")
			if err := os.Mkdir(leaf, 0o755); err != nil {
				return fmt.Errorf("make cgroup: %w", err)
			}
			if err := os.WriteFile(filepath.Join(leaf, "cgroup.procs"), []byte("0"), 0); err != nil {
				return fmt.Errorf("join cgroup: %w", err)
			}
		}
	}
	for name, target := range links {
		if err := os.Symlink(target, filepath.Join(root+cgroupDir, name)); err != nil {
			return err
		}
	}
	return nil
}

// cgroupLinks are the host's short names of controllers that are mounted together.
func cgroupLinks() map[string]string {
	links := map[string]string{}
	entries, _ := os.ReadDir(cgroupDir)
	for _, e := range entries {
		if target, err := os.Readlink(filepath.Join(cgroupDir, e.Name())); err == nil {
			links[e.Name()] = target
		}
	}
	return links
}

// removeCgroups removes the groups with all below them. Their processes have been killed; the last of them may still
// be on their way out.
func removeCgroups(name string, all []hierarchy) error {
	var errs []error
	for _, h := range all {
		dir := filepath.Join(h.Path, name)
		var err error
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			if err = removeTree(dir); err == nil || time.Now().After(deadline) {
				break
			}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("remove cgroup: %w", err))
		}
	}
	return errors.Join(errs...)
}

// removeTree removes a directory of directories; the files in a cgroup go with it.
func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
		return &os.PathError{Op: "rmdir", Path: dir, Err: err}
	}
	return nil
}

// sweepCgroups removes what machines whose test process was killed have left.
func sweepCgroups(all []hierarchy) {
	for _, h := range all {
		dirs, _ := filepath.Glob(filepath.Join(h.Path, labPrefix+"*"))
		for _, dir := range dirs {
			// untracked-PID-RANDOM, see lab.Lab.
			pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), labPrefix), "-")
			n, err := strconv.Atoi(pid)
			if err == nil && errors.Is(unix.Kill(n, 0), unix.ESRCH) {
				removeTree(dir)
			}
		}
	}
}

const labPrefix = "untracked-"
