// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/pkg/config"
	"github.com/untracked-cni/untracked/pkg/node"
	"github.com/untracked-cni/untracked/test/lab"
)

// Two helpers that die in the middle of their work. Each is this test binary once more, told by its
// environment what to be.
const (
	// cniKillAtStep is the number of the step of apply before which the process kills itself; it reads a config
	// from stdin, as the plugin does.
	cniKillAtStep = "UNTRACKED_TEST_KILL_AT_STEP"
	// cniKillAtCall is the number of the system call, of those that change something, before which the command
	// in the arguments is killed.
	cniKillAtCall = "UNTRACKED_TEST_KILL_AT_CALL"
)

// What the helpers exit with when they lived, and when the traced command was killed.
const (
	cniLived  = 0
	cniFailed = 99
	cniKilled = 77
)

func init() {
	if n, ok := os.LookupEnv(cniKillAtStep); ok {
		os.Exit(cniApplyUntil(n))
	}
	if n, ok := os.LookupEnv(cniKillAtCall); ok {
		os.Exit(cniTraceUntil(n, os.Args[1:]))
	}
}

func cniApplyUntil(text string) int {
	last, err := strconv.Atoi(text)
	if err != nil {
		return cniFailed
	}
	entry, err := io.ReadAll(os.Stdin)
	if err != nil {
		return cniFailed
	}
	c, err := config.Parse(entry)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return cniFailed
	}
	step := 0
	n := &node.Node{Version: "dev", BPFFS: c.BPFFS, RunDir: c.RunDir, Log: slog.New(slog.DiscardHandler), Progress: func(name string) {
		if step++; step == last {
			fmt.Println(name)
			unix.Kill(os.Getpid(), unix.SIGKILL)
			select {}
		}
	}}
	if _, err := n.Ensure(context.Background(), c); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return cniFailed
	}
	return cniLived
}

// cniAtStep applies a config and dies before a step, whose name it returns. It returns false when there is no
// such step.
func cniAtStep(t *testing.T, l *lab.Lab, entry []byte, step int) (name string, killed bool) {
	t.Helper()
	cmd := lab.Command(l.Node, "/proc/self/exe")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", cniKillAtStep, step))
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(entry), &stdout, &stderr
	err := cmd.Run()
	if err == nil {
		return "", false
	}
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !ws.Signaled() || ws.Signal() != unix.SIGKILL {
		t.Fatalf("helper: %v, %s", err, stderr.Bytes())
	}
	return strings.TrimSpace(stdout.String()), true
}

// cniAtCall runs the plugin's binary and has it killed before the n-th system call that changes something. It
// returns false when the command ended by itself before.
func cniAtCall(t *testing.T, l *lab.Lab, env map[string]string, stdin []byte, n int, args ...string) (call string, killed bool) {
	t.Helper()
	bin := must(lab.Build("untracked"))(t)
	cmd := lab.Command(l.Node, "/proc/self/exe", append([]string{filepath.Join(bin, "untracked")}, args...)...)
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", cniKillAtCall, n))
	for k, v := range env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &stdout, &stderr
	err := cmd.Run()
	switch code := cmd.ProcessState.ExitCode(); code {
	case cniLived:
		return "", false
	case cniKilled:
		_, call, _ = strings.Cut(strings.TrimSpace(stderr.String()), "killed before ")
		return call, true
	}
	t.Fatalf("traced %v: %v, %s%s", args, err, stdout.Bytes(), stderr.Bytes())
	return "", false
}

// cniTraceUntil runs a command under ptrace and kills it. Its threads stop at each of their system calls, so
// that the process dies exactly there, and that call is not carried out.
func cniTraceUntil(text string, argv []string) int {
	left, err := strconv.Atoi(text)
	if err != nil {
		return cniFailed
	}
	runtime.LockOSThread() // the tracer is a thread
	var env []string
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, cniKillAtCall+"=") {
			env = append(env, e)
		}
	}
	pid, err := syscall.ForkExec(argv[0], argv, &syscall.ProcAttr{
		Env: env, Files: []uintptr{0, 1, 2}, Sys: &syscall.SysProcAttr{Ptrace: true},
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return cniFailed
	}
	var ws syscall.WaitStatus
	if _, err := syscall.Wait4(pid, &ws, 0, nil); err != nil || !ws.Stopped() {
		fmt.Fprintln(os.Stderr, "the command did not stop at its start:", err)
		return cniFailed
	}
	const options = unix.PTRACE_O_TRACESYSGOOD | unix.PTRACE_O_TRACECLONE | unix.PTRACE_O_EXITKILL
	if err := syscall.PtraceSetOptions(pid, options); err != nil {
		fmt.Fprintln(os.Stderr, "set ptrace options:", err)
		return cniFailed
	}
	thread, signal := pid, 0
	for {
		if err := syscall.PtraceSyscall(thread, signal); err != nil && err != unix.ESRCH {
			fmt.Fprintln(os.Stderr, "go on:", err)
			return cniFailed
		}
		if thread, err = syscall.Wait4(-1, &ws, unix.WALL, nil); err == unix.EINTR {
			thread = pid
			continue
		} else if err != nil {
			fmt.Fprintln(os.Stderr, "wait:", err)
			return cniFailed
		}
		for ws.Exited() || ws.Signaled() { // of a thread, or of all
			if thread == pid {
				return ws.ExitStatus()
			}
			if thread, err = syscall.Wait4(-1, &ws, unix.WALL, nil); err != nil {
				fmt.Fprintln(os.Stderr, "wait:", err)
				return cniFailed
			}
		}
		signal = 0
		switch stop := ws.StopSignal(); stop {
		case unix.SIGTRAP | 0x80:
			if name := cniChange(thread); name != "" {
				if left--; left == 0 {
					unix.Kill(pid, unix.SIGKILL)
					for {
						if p, err := syscall.Wait4(-1, &ws, unix.WALL, nil); err != nil || p == pid && ws.Signaled() {
							fmt.Fprintln(os.Stderr, "killed before", name)
							return cniKilled
						}
					}
				}
			}
		case unix.SIGTRAP, unix.SIGSTOP: // a new thread, here and there
		default:
			signal = int(stop)
		}
	}
}

// cniChange names the system call that a thread is about to make, if it is one that may change the state of
// the node: pins, links, maps, tables, files. Sending to rtnetlink and conntrack is left out, as nothing depends
// on it; so is making programs and maps that nobody can see yet.
func cniChange(thread int) string {
	const getSyscallInfo, entry = 0x420e, 1 // PTRACE_GET_SYSCALL_INFO, Linux 5.3
	var info [88]byte
	n, _, errno := unix.Syscall6(unix.SYS_PTRACE, getSyscallInfo, uintptr(thread), uintptr(len(info)), uintptr(unsafe.Pointer(&info)), 0, 0)
	if errno != 0 || n < 56 || info[0] != entry {
		return ""
	}
	word := func(i int) uint64 { return binary.NativeEndian.Uint64(info[24+8*i:]) } // the number, then arguments
	switch word(0) {
	case unix.SYS_BPF:
		return map[uint64]string{
			unix.BPF_MAP_UPDATE_ELEM: "bpf(MAP_UPDATE_ELEM)", unix.BPF_MAP_DELETE_ELEM: "bpf(MAP_DELETE_ELEM)",
			unix.BPF_OBJ_PIN: "bpf(OBJ_PIN)", unix.BPF_LINK_CREATE: "bpf(LINK_CREATE)",
			unix.BPF_LINK_UPDATE: "bpf(LINK_UPDATE)", unix.BPF_LINK_DETACH: "bpf(LINK_DETACH)",
		}[word(1)]
	case unix.SYS_SENDMSG:
		return "sendmsg"
	case unix.SYS_MKDIRAT:
		return "mkdirat"
	case unix.SYS_UNLINKAT:
		return "unlinkat"
	case unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2:
		return "renameat"
	case unix.SYS_OPENAT:
		if word(3)&unix.O_CREAT != 0 {
			return "openat(O_CREAT)"
		}
	}
	return ""
}
