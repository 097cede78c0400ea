// SPDX-License-Identifier: Apache-2.0

// init is the first program of a machine that test/kernels boots: it loads /modules.list, runs the tests in /tests.list
// (a line each, its words divided by tabs), says how it went in its last line, and switches the machine off.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

func main() {
	err := errors.Join(run(), unwarned())
	if err == nil {
		fmt.Println("\nkernel test: pass")
	} else {
		fmt.Println("\nkernel test: fail:", strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	unix.Sync()
	fmt.Println(unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF))
}

func run() error {
	for _, m := range []struct{ kind, at string }{
		{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"tmpfs", "/tmp"}, {"tmpfs", "/run"}, {"bpf", "/sys/fs/bpf"},
	} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.at, m.kind, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	modules, err := lines("/modules.list")
	if err != nil {
		return err
	}
	for _, m := range modules {
		if err := load(m); err != nil {
			return err
		}
	}
	tests, err := lines("/tests.list")
	if err != nil {
		return err
	}
	// RLIMIT_MEMLOCK stays as the kernel has set it: lifting it where that is necessary is up to what is tested.
	var errs []error
	for _, t := range tests {
		words := strings.Split(t, "\t")
		cmd := exec.Command(words[0], words[1:]...)
		cmd.Env = []string{"PATH=/", "HOME=/tmp", "TMPDIR=/tmp"}
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stdout
		if err := cmd.Run(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", filepath.Base(words[0]), err))
		}
	}
	return errors.Join(errs...)
}

func lines(name string) ([]string, error) {
	text, err := os.ReadFile(name)
	return strings.FieldsFunc(string(text), func(r rune) bool { return r == '\n' }), err
}

// load loads a module. Kernels that come with compressed ones uncompress them themselves.
func load(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	flags, parameters := 0, ""
	if !strings.HasSuffix(name, ".ko") {
		flags = unix.MODULE_INIT_COMPRESSED_FILE
	}
	if strings.HasPrefix(filepath.Base(name), "bonding.") {
		parameters = "max_bonds=0" // or it makes bond0
	}
	if err := unix.FinitModule(int(f.Fd()), parameters, flags); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("load %s: %w", name, err)
	}
	return nil
}

// unwarned returns an error if the kernel has complained (Documentation/admin-guide/tainted-kernels.rst).
func unwarned() error {
	const died, warned = 1 << 7, 1 << 9
	var taint int
	text, err := os.ReadFile("/proc/sys/kernel/tainted")
	if err == nil {
		_, err = fmt.Sscan(string(text), &taint)
	}
	if err != nil {
		return fmt.Errorf("ask whether the kernel warned: %w", err)
	}
	if taint&(died|warned) != 0 {
		return fmt.Errorf("the kernel warned of something, see the console (tainted %d)", taint)
	}
	return nil
}
