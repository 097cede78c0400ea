// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/pkg/config"
	"github.com/untracked-cni/untracked/test/lab"
)

// installNode is a node whose main CNI plugin is there and untracked is not.
type installNode struct {
	testing.TB
	lab   *lab.Lab
	chain *lab.Chain
	pod   *lab.NS
	// etc and state are the config directory and that of its copy; chain has the others.
	etc, state string
}

// installBinary is the binary that a user has: not the one that the runtime finds.
func installBinary(t testing.TB) string {
	t.Helper()
	return filepath.Join(must(lab.Build("untracked"))(t), "untracked")
}

func newInstallNode(t testing.TB) *installNode {
	t.Helper()
	l, chain, pod := cniChain(t, nil)
	n := &installNode{TB: t, lab: l, chain: chain, pod: pod, etc: filepath.Join(l.Dir, "etc"), state: filepath.Join(l.Dir, "state")}
	bin := filepath.Join(l.Dir, "bin")
	check(t, os.Mkdir(bin, 0o755))
	for _, plugin := range []string{"bridge", "host-local", "cnitool"} {
		check(t, os.Symlink(filepath.Join(chain.Bin, plugin), filepath.Join(bin, plugin)))
	}
	chain.Bin = bin
	check(t, os.Mkdir(n.etc, 0o755))
	n.annotate("ports: tcp/6379")
	return n
}

// annotate writes annotations.yaml; keys are given without the prefix.
func (n *installNode) annotate(lines ...string) {
	n.Helper()
	var text string
	for _, line := range lines {
		text += config.Prefix + line + "\n"
	}
	n.write(filepath.Join(n.etc, "annotations.yaml"), text)
}

// write replaces a file in one step.
func (n *installNode) write(path, text string) {
	n.Helper()
	check(n, os.WriteFile(path+".new", []byte(text), 0o600))
	check(n, os.Rename(path+".new", path))
}

func (n *installNode) read(path string) string {
	n.Helper()
	return string(must(os.ReadFile(path))(n))
}

// args are a command line with the places of this node.
func (n *installNode) args(verb string, more ...string) []string {
	args := append([]string{verb}, more...)
	args = append(args, "--bin-dir", n.chain.Bin, "--conf-dir", n.chain.ConfDir, "--state-dir", n.state, "--bpffs", n.lab.BPFFS, "--run-dir", n.lab.RunDir, "--wait", "100ms")
	if verb == "install" {
		args = append(args, "--config", n.etc)
	}
	return args
}

// run runs a command to its end and checks the exit code.
func (n *installNode) run(exit int, verb string, more ...string) *lab.Outcome {
	n.Helper()
	out := cniRun(n, n.lab, nil, nil, n.args(verb, more...)...)
	if out.ExitCode != exit {
		n.Fatalf("untracked %s %v: exit code %d, want %d\n%s%s", verb, more, out.ExitCode, exit, out.Stdout, out.Stderr)
	}
	return out
}

// entry is ours on the conf list, nil if there is none. It fails on a list that cannot be read.
func (n *installNode) entry() map[string]string {
	n.Helper()
	list := must(config.ReadList([]byte(n.read(n.chain.File)), n.chain.File))(n)
	entries := list.Entries()
	if len(entries) == 0 {
		return nil
	}
	var e struct{ Annotations map[string]string }
	check(n, json.Unmarshal(entries[0], &e))
	return e.Annotations
}

// listing is all that there is in the directories that an installer writes to, content included, and what is on the
// node's interfaces, in its BPF file system and its nftables.
func (n *installNode) listing() []string {
	n.Helper()
	var out []string
	for _, dir := range []string{n.chain.Bin, n.chain.ConfDir, n.state} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if os.IsNotExist(err) {
				return nil
			}
			if err != nil {
				return err
			}
			var st unix.Stat_t
			if err := unix.Lstat(path, &st); err != nil {
				return err
			}
			line := fmt.Sprintf("%s %o %d:%d", path, st.Mode, st.Uid, st.Gid)
			if d.Type().IsRegular() {
				line += " " + n.read(path)
			}
			out = append(out, line)
			return nil
		})
		check(n, err)
	}
	out = append(out, cniPins(n, n.lab, false)...)
	out = append(out, "table "+cniTable(n, n.lab))
	for _, name := range must(lab.Links(n.lab.Node))(n) {
		if !strings.HasPrefix(name, "veth") {
			out = append(out, fmt.Sprintf("%s %+v", name, must(lab.ReadHooks(n.lab.Node, name))(n)))
		}
	}
	slices.Sort(out)
	return out
}

// installWatcher is an `install --watch` that runs.
type installWatcher struct {
	*installNode
	cmd  *lab.Cmd
	log  *installLog
	done chan error
}

// installLog collects what a process logs.
type installLog struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *installLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *installLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *installLog) count(text string) int { return strings.Count(l.String(), text) }

func (n *installNode) watch(more ...string) *installWatcher {
	n.Helper()
	w := &installWatcher{installNode: n, log: &installLog{}, done: make(chan error, 1)}
	w.cmd = lab.Command(n.lab.Node, installBinary(n), n.args("install", append([]string{"--watch"}, more...)...)...)
	w.cmd.Stderr, w.cmd.Stdout = w.log, w.log
	check(n, w.cmd.Start())
	go func() { w.done <- w.cmd.Wait() }()
	n.Cleanup(func() {
		_ = w.cmd.Process.Kill()
		if n.Failed() {
			n.Logf("log of install %v:\n%s", more, w.log)
		}
	})
	return w
}

// end sends a signal and waits for the end, which must be a success.
func (w *installWatcher) end(s os.Signal) {
	w.Helper()
	check(w, w.cmd.Process.Signal(s))
	if err := <-w.done; err != nil && s != os.Kill {
		w.Fatalf("install --watch: %v\n%s", err, w.log)
	}
}

// says waits for a line of the log.
func (w *installWatcher) says(text string) {
	w.Helper()
	cniEventually(w, "the installer says "+text, func() bool { return w.log.count(text) > 0 })
}

// inPlace waits until --check finds nothing.
func (n *installNode) inPlace() {
	n.Helper()
	var last string
	cniEventually(n, "all is in its place", func() bool {
		out := cniRun(n, n.lab, nil, nil, n.args("install", "--check")...)
		last = string(out.Stderr)
		return out.ExitCode == 0
	})
	if n.Failed() {
		n.Fatalf("--check: %s", last)
	}
}

// installCommand runs somebody else's program as a step that must succeed.
func installCommand(t testing.TB, ns *lab.NS, name string, args ...string) {
	t.Helper()
	if out, err := lab.Command(ns, name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(append([]string{name}, args...), " "), err, out)
	}
}
