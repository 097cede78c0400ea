// SPDX-License-Identifier: Apache-2.0

package filelock

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// holder says which process has a file locked, and what an operator can do about it.
func holder(path string) string {
	const unknown = "a process that cannot be seen from here (another PID namespace's?) holds it: `fuser -v %s` on the host names it"
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return fmt.Sprintf(unknown, path)
	}
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		return fmt.Sprintf(unknown, path)
	}
	pid := flockOwner(string(locks), fmt.Sprintf("%02x:%02x:%d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino))
	if pid == 0 {
		return fmt.Sprintf(unknown, path)
	}
	name, state := process(pid)
	switch state {
	case "T", "t":
		return fmt.Sprintf("process %d (%s) holds it and is stopped: `kill -CONT %d` lets it go on, `kill -KILL %d` ends it, and the next call does what is left", pid, name, pid, pid)
	case "D":
		return fmt.Sprintf("process %d (%s) holds it and hangs in the kernel: `cat /proc/%d/stack` says where", pid, name, pid)
	}
	return fmt.Sprintf("process %d (%s) holds it: if it should be done by now, `kill %d` ends it, and the next call does what is left", pid, name, pid)
}

// flockOwner finds the process that has locked a file in the text of /proc/locks, where a line is, with "->" in
// front of FLOCK for those who wait:
//
//	1: FLOCK  ADVISORY  WRITE 1234 00:19:5678 0 EOF
//
// 0 is for none, or for one of another PID namespace.
func flockOwner(locks, file string) int {
	for line := range strings.Lines(locks) {
		f := strings.Fields(line)
		if len(f) < 6 || f[1] != "FLOCK" || f[5] != file {
			continue
		}
		if pid, err := strconv.Atoi(f[4]); err == nil && pid > 0 {
			return pid
		}
	}
	return 0
}

// process returns a process's name and the letter of its state, as in proc(5).
func process(pid int) (name, state string) {
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return "gone by now", ""
	}
	// pid (name) state …, and the name may hold anything.
	from, to := strings.IndexByte(string(data), '('), strings.LastIndexByte(string(data), ')')
	if from < 0 || to < from || to+2 >= len(data) {
		return "?", ""
	}
	return string(data[from+1 : to]), string(data[to+2])
}
