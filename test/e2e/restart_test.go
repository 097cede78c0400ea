// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/nftables"

	"github.com/untracked-cni/untracked/pkg/config"
	"github.com/untracked-cni/untracked/test/e2e/cluster"
	"github.com/untracked-cni/untracked/test/lab"
)

// Kubelet and containerd may come and go: pods run on, and so does the policy, untouched.
func TestRestarts(t *testing.T) {
	everyRuntime(t, policy(), func(n *e2eNode) {
		pod, program := n.run("a"), n.program()
		policy, sandbox := n.status().Policy, n.containerd.Sandbox("a")
		if program == 0 {
			n.Fatal("there is no XDP program on eth0")
		}
		for _, restart := range []struct {
			what string
			do   func()
		}{
			{"kubelet restarts", n.kubelet.Restart},
			{"containerd restarts", n.containerd.Restart},
			{"containerd is killed", func() {
				n.containerd.Kill()
				n.containerd.Start()
				n.containerd.AwaitReady()
			}},
		} {
			restart.do()
			after := n.kubelet.AwaitRunning("a")
			if after.ContainerID != pod.ContainerID || n.containerd.Sandbox("a") != sandbox {
				n.Errorf("%s: pod %+v in sandbox %+v has become %+v in %+v", restart.what, pod, sandbox, after, n.containerd.Sandbox("a"))
			}
			if got := n.program(); got != program {
				n.Errorf("%s: program %d is attached, was %d", restart.what, got, program)
			}
			n.wantCalls("", 1)
			n.wantInForce()
		}
		// The next pod finds nothing to do.
		n.run("b")
		if after := n.status().Policy; after != policy || n.program() != program {
			n.Errorf("after the restarts, the next pod has made policy %+v with program %d of %+v with %d", after, n.program(), policy, program)
		}
		n.wantCalls("", 2)
	})
}

// A reboot takes programs, table and records. The next ADD puts the policy in force again, and so does the boot unit,
// before there is any pod.
func TestReboot(t *testing.T) {
	everyRuntime(t, policy(), func(n *e2eNode) {
		n.run("a")
		n.wantInForce()
		n.reboot()
		n.wantTracked()
		n.run("b")
		n.wantInForce()

		n.reboot()
		n.wantTracked()
		adds := count(n.calls(""), "ADD")
		condition, start := bootUnit(n)
		n.Run(condition[0], condition[1:]...)
		n.Run(start[0], start[1:]...)
		n.wantInForce()
		n.wantCalls("", adds)
	})
}

// reboot takes away what does not outlive one.
func (n *e2eNode) reboot() {
	n.Helper()
	for _, dir := range []string{config.DefaultBPFFS, config.DefaultRunDir} {
		entries := must(os.ReadDir(n.Path(dir)))(n)
		for _, e := range entries {
			if !strings.HasSuffix(e.Name(), ".debug") {
				n.Remove(filepath.Join(dir, e.Name()))
			}
		}
	}
	check(n, lab.In(n.Lab.Node, func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		ours, err := tables(c)
		if err != nil {
			return err
		}
		for _, table := range ours {
			c.DelTable(table)
		}
		return c.Flush()
	}))
	// The kernel takes a link without a pin apart in its own time.
	n.Await("eth0 is without a program", func() error {
		if id := n.program(); id != 0 {
			return fmt.Errorf("it has %d", id)
		}
		return nil
	})
}

// bootUnit reads what conf/untracked.service runs, its variables replaced.
func bootUnit(n *e2eNode) (condition, start []string) {
	n.Helper()
	root := must(lab.ModuleRoot())(n)
	f := must(os.Open(filepath.Join(root, "conf/untracked.service")))(n)
	defer f.Close()
	variables := map[string]string{}
	expand := func(line string) (args []string) {
		for _, word := range strings.Fields(line) {
			args = append(args, os.Expand(word, func(name string) string { return variables[name] }))
		}
		return args
	}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		key, value, _ := strings.Cut(lines.Text(), "=")
		switch key {
		case "Environment":
			name, value, _ := strings.Cut(value, "=")
			variables[name] = value
		case "ExecCondition":
			condition = expand(value)
		case "ExecStart":
			start = expand(value)
		}
	}
	if want := fmt.Sprint([]string{cluster.CNIBin + "/untracked", "apply", cluster.ConflistFile}); fmt.Sprint(start) != want || len(condition) == 0 {
		n.Fatalf("conf/untracked.service runs %q if %q, want %s", start, condition, want)
	}
	return condition, start
}
