// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/untracked-cni/untracked/test/lab"
)

// A runtime drops the stderr of a call that fails, so the log file is where to look.
func TestCNILog(t *testing.T) {
	l := lab.New(t, lab.Config{})
	file := filepath.Join(l.Dir, "untracked.log")
	logged := func() []string {
		data, err := os.ReadFile(file)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		os.Remove(file)
		return strings.FieldsFunc(string(data), func(r rune) bool { return r == '\n' })
	}
	chain := must(l.Chain(lab.ChainConfig{Annotations: cniPolicy("log-file", file)}))(t)
	pod := must(l.AddNS("pod"))(t)
	call := func(verb string, more ...string) *lab.Outcome {
		annotations := cniAnnotations(l, cniPolicy(append([]string{"log-file", file}, more...)...))
		return cniRun(t, l, cniEnv(chain, verb, pod), cniStdin(chain.Network, "1.1.0", annotations, cniPrev("1.1.0")))
	}
	find := func(lines []string, parts ...string) {
		t.Helper()
		for _, line := range lines {
			all := true
			for _, p := range parts {
				all = all && strings.Contains(line, p)
			}
			if all {
				return
			}
		}
		t.Errorf("no line with %q in %q", parts, lines)
	}

	// At the default level: what changes the node, and what fails.
	if out := call("ADD"); out.ExitCode != 0 || len(out.Stderr) != 0 {
		t.Errorf("ADD with a log file: exit status %d, stderr %q", out.ExitCode, out.Stderr)
	}
	find(logged(), "level=INFO", "applying policy", chain.Network)
	call("ADD")
	call("DEL")
	if lines := logged(); len(lines) != 0 {
		t.Errorf("calls that do nothing logged %q", lines)
	}
	cniFailure(t, call("ADD", "ports", "tcp/0x10"), 7)
	lines := logged()
	find(lines, "level=ERROR", "msg=ADD", pod.Name, pod.Path, "untracked.cni/ports", "tcp/0x10")
	if len(lines) != 1 {
		t.Errorf("a failed ADD logged %q, want one line", lines)
	}
	cniFailure(t, call("CHECK", "mode", "tc"), 101)
	find(logged(), "level=ERROR", "msg=CHECK", "annotations changed")

	// At debug, a line a call.
	for _, verb := range []string{"ADD", "CHECK", "DEL", "GC"} {
		call(verb, "log-level", "debug")
		find(logged(), "level=DEBUG", "msg="+verb, "duration=")
	}
	call("ADD", "log-level", "debug", "deny", "192.0.2.1")
	find(logged(), "level=DEBUG", "step=")

	// At error, nothing of what goes well.
	call("ADD", "log-level", "error", "deny", "192.0.2.2")
	if lines := logged(); len(lines) != 0 {
		t.Errorf("at level error, a successful ADD logged %q", lines)
	}
	cniFailure(t, call("ADD", "log-level", "error", "deny", "me"), 7)
	find(logged(), "level=ERROR", "msg=ADD", "untracked.cni/deny")

	// A log that cannot be written fails no pod.
	for _, bad := range []string{"/nonexistent/dir/log", l.Dir} {
		out := call("ADD", "log-file", bad, "deny", "192.0.2.3")
		if out.ExitCode != 0 {
			t.Errorf("log file %s: exit status %d, %s", bad, out.ExitCode, out.Stdout)
		}
	}
	if out := call("ADD", "log-file", "/dev/full", "deny", "192.0.2.4"); out.ExitCode != 0 {
		t.Errorf("full disk: exit status %d, %s", out.ExitCode, out.Stdout)
	}

	// Parallel callers' lines do not mix.
	cniAtOnce(30, func(int) { call("CHECK", "log-level", "debug", "deny", "192.0.2.4") })
	lines = logged()
	for _, line := range lines {
		if !strings.HasPrefix(line, "time=") || strings.Count(line, "msg=CHECK") != 1 {
			t.Errorf("line %q", line)
		}
	}
	if len(lines) != 30 {
		t.Errorf("%d lines of 30 callers", len(lines))
	}
}
