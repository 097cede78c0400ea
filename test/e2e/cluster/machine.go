// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/test/lab"
)

// Machine is a host of its own, as far as a process on it can see. See the package comment.
type Machine struct {
	// Lab is its network: the machine is Lab.Node, its wire eth0 leads to Lab.Client.
	Lab *lab.Lab

	t         TB
	init      *exec.Cmd
	stdin     io.Closer
	pidfd     int
	groups    []hierarchy
	processes []*Process
}

// TB is the part of testing.TB that this package needs.
type TB interface {
	lab.TB
	Fatalf(format string, args ...any)
	Logf(format string, args ...any)
	Failed() bool
}

// New makes a machine for a test, and takes it away with the test. The test is skipped unless the flag -e2e asks for it.
func New(t TB) *Machine {
	t.Helper()
	bin := components(t)
	m := &Machine{Lab: lab.New(t, lab.Config{}), t: t, pidfd: -1}
	// Before the lab, which would find its files in use.
	m.Lab.Defer(m.close)
	if err := m.start(bin); err != nil {
		t.Fatalf("make machine: %v", err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			m.printLogs()
		}
	})
	return m
}

func (m *Machine) start(bin string) (err error) {
	if m.groups, err = hierarchies(); err != nil {
		return err
	}
	sweepCgroups(m.groups)
	if err := makeCgroups(m.Lab.Name, m.groups); err != nil {
		return err
	}
	job, err := json.Marshal(initJob{Name: m.Lab.Name, Dir: m.Lab.Dir, Bin: bin, Hierarchies: m.groups, CgroupLinks: cgroupLinks()})
	if err != nil {
		return err
	}
	m.init = exec.Command("/proc/self/exe")
	m.init.Env = []string{initEnv + "=" + string(job)}
	m.init.Dir = "/"
	m.init.SysProcAttr = &unix.SysProcAttr{Setsid: true, Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS}
	if m.stdin, err = m.init.StdinPipe(); err != nil {
		return err
	}
	out, err := m.init.StdoutPipe()
	if err != nil {
		return err
	}
	if err := lab.In(m.Lab.Node, m.init.Start); err != nil {
		return err
	}
	said, err := bufio.NewReader(out).ReadString('\n')
	if said = strings.TrimSpace(said); said != initReady {
		return fmt.Errorf("process 1 says %q (%w)", said, err)
	}
	m.pidfd, err = unix.PidfdOpen(m.init.Process.Pid, 0)
	return err
}

// close ends everything in the machine.
func (m *Machine) close() error {
	if m.init != nil && m.init.Process != nil {
		m.init.Process.Kill()
		m.init.Wait() // returns when the kernel has ended all others
		m.stdin.Close()
	}
	for _, p := range m.processes {
		<-p.done
	}
	if m.pidfd >= 0 {
		unix.Close(m.pidfd)
	}
	return removeCgroups(m.Lab.Name, m.groups)
}

// In calls fn on a thread that is on the machine: files, mounts, network and host name are the machine's, and so are
// those of processes that fn starts. But it has no number there, so /proc/self is of no use; see Path. It must not end its
// goroutine, as t.Fatal does.
func (m *Machine) In(fn func() error) error {
	result := make(chan error, 1)
	go func() {
		// Never unlocked: the thread, which cannot leave the machine, ends with this goroutine.
		runtime.LockOSThread()
		result <- m.enter(fn)
	}()
	return <-result
}

func (m *Machine) enter(fn func() error) error {
	// Threads share root and working directory, and must not while one changes its mounts.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare root directory: %w", err)
	}
	const all = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP
	if err := unix.Setns(m.pidfd, all); err != nil {
		return fmt.Errorf("enter machine: %w", err)
	}
	return fn()
}

// Cmd is an exec.Cmd whose process starts on the machine.
type Cmd struct {
	*exec.Cmd
	m *Machine
}

// Command is exec.Command on the machine. The name is an absolute path there, or the name of a component. PATH has the
// system's directories only.
func (m *Machine) Command(name string, args ...string) *Cmd {
	if !filepath.IsAbs(name) {
		name = filepath.Join(binDir, name)
	}
	c := &Cmd{Cmd: exec.Command(name, args...), m: m}
	c.Env = []string{"PATH=" + systemPath, "HOME=/root"}
	c.Dir = "/"
	return c
}

const systemPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Start starts the process.
func (c *Cmd) Start() error { return c.m.In(c.Cmd.Start) }

// Output runs the process and returns its standard output; the error has what it wrote to standard error.
func (c *Cmd) Output() ([]byte, error) {
	var stdout, stderr strings.Builder
	c.Stdout, c.Stderr = &stdout, &stderr
	err := c.Start()
	if err == nil {
		err = c.Wait()
	}
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", strings.Join(c.Args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return []byte(stdout.String()), err
}

// Run is Output of a process that must succeed.
func (m *Machine) Run(name string, args ...string) string {
	m.t.Helper()
	out, err := m.Command(name, args...).Output()
	if err != nil {
		m.t.Fatal(err)
	}
	return string(out)
}

// Path is a path of the machine as this process can reach it; but an absolute symbolic link on its way is followed on the
// host.
func (m *Machine) Path(path string) string {
	return filepath.Join("/proc", strconv.Itoa(m.init.Process.Pid), "root", path)
}

// ReadFile reads a file of the machine.
func (m *Machine) ReadFile(path string) ([]byte, error) { return os.ReadFile(m.Path(path)) }

// WriteFile writes a file of the machine in one step, by a rename in its directory, which it makes if need be.
func (m *Machine) WriteFile(path string, data []byte, mode os.FileMode) {
	m.t.Helper()
	dir := m.Path(filepath.Dir(path))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		m.t.Fatal(err)
	}
	tmp := filepath.Join(dir, "."+filepath.Base(path)+".tmp")
	if err := errors.Join(os.WriteFile(tmp, data, mode), os.Chmod(tmp, mode), os.Rename(tmp, m.Path(path))); err != nil {
		m.t.Fatal(err)
	}
}

// Remove removes files and directories of the machine with all below them.
func (m *Machine) Remove(paths ...string) {
	m.t.Helper()
	for _, path := range paths {
		if err := os.RemoveAll(m.Path(path)); err != nil {
			m.t.Fatal(err)
		}
	}
}

// Processes are the host's numbers of the machine's processes that run a binary by this path.
func (m *Machine) Processes(binary string) (pids []int) {
	home, err := os.Readlink(filepath.Join("/proc", strconv.Itoa(m.init.Process.Pid), "ns/pid"))
	if err != nil {
		m.t.Fatal(err)
	}
	commands, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range commands {
		command, err := os.ReadFile(file) // fails for a process that has ended
		if name, _, _ := bytes.Cut(command, []byte{0}); err != nil || string(name) != binary {
			continue
		}
		dir := filepath.Dir(file)
		if ns, err := os.Readlink(filepath.Join(dir, "ns/pid")); err == nil && ns == home {
			pid, _ := strconv.Atoi(filepath.Base(dir))
			pids = append(pids, pid)
		}
	}
	return pids
}
