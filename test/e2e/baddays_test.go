// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/pkg/config"
	"github.com/untracked-cni/untracked/pkg/node"
	"github.com/untracked-cni/untracked/test/e2e/cluster"
)

// Somebody else's XDP program is on the interface: pods start, the policy is in force by tc, status says why. In a mode that allows
// no other hook, pods start all the same, without the policy.
func TestForeignXDP(t *testing.T) {
	everyRuntime(t, policy(), func(n *e2eNode) {
		detach := n.foreignXDP()
		foreign := n.program()
		n.run("a")
		if n.program() != foreign {
			n.Error("the foreign program was replaced")
		}
		if p := n.problem(node.ProblemForeignXDP); p == nil || !strings.Contains(p.Message, foreignProgram) {
			n.Errorf("status: %+v, want it to name the foreign program", n.status())
		}
		if n.connections(port) != 0 {
			n.Error("the policy is not in force beside a foreign XDP program")
		}

		n.write(policy("mode", "native"))
		n.run("b")
		detach()
		n.run("c")
		n.wantInForce()
		n.wantCalls("", 3)
	})
}

// The main chain's own faults stop pods whatever we do. They start as soon as it is mended, and the policy in force is so
// all the while.
func TestBrokenChain(t *testing.T) {
	everyRuntime(t, policy(), func(n *e2eNode) {
		n.run("a")
		binary := filepath.Join(cluster.CNIBin, "untracked")
		conflist := cluster.Conflist{CNIVersion: n.runtime.CNIVersion, Annotations: policy()}.JSON()
		for _, fault := range []struct {
			pod, message string // kubelet's log has the message
			make, mend   func()
		}{
			{
				"binary-missing", `failed to find plugin "untracked" in path [` + cluster.CNIBin + `]`,
				func() { check(n, os.Rename(n.Path(binary), n.Path(binary+".away"))) },
				func() { check(n, os.Rename(n.Path(binary+".away"), n.Path(binary))) },
			},
			{
				"conflist-truncated", "cni plugin not initialized",
				func() { n.WriteFile(cluster.ConflistFile, conflist[:len(conflist)/2], 0o644) },
				func() { n.WriteFile(cluster.ConflistFile, conflist, 0o644) },
			},
			{
				"annotation-mistyped", `untracked.cni/port: "tcp/1": unknown key; did you mean untracked.cni/ports?`,
				func() { n.write(policy("port", "tcp/1")) },
				func() { n.write(policy()) },
			},
		} {
			program := n.program()
			fault.make()
			n.kubelet.WritePod(cluster.Pod{Name: fault.pod})
			n.Await(fault.pod+": kubelet says "+fault.message, func() error {
				if !strings.Contains(strings.ReplaceAll(n.kubelet.Log(), `\`, ""), fault.message) {
					return errNotYet
				}
				return nil
			})
			if pods := must(n.kubelet.Pods())(n); pods[fault.pod].Running || !pods["a"].Running {
				n.Errorf("%s: %+v, want the running pod to run and the new one to wait", fault.pod, pods)
			}
			if n.connections(port) != 0 {
				n.Errorf("%s: the policy is in force no more", fault.pod)
			}
			fault.mend()
			n.kubelet.AwaitRunning(fault.pod)
			n.wantInForce()
			if n.program() != program {
				n.Errorf("%s: program %d has become %d", fault.pod, program, n.program())
			}
		}
	})
}

// A plugin that is killed in the middle of a call, by anybody or by the runtime because kubelet's time is up, is called again.
func TestKilledPlugin(t *testing.T) {
	t.Parallel()
	for _, r := range cluster.Runtimes {
		t.Run(r.Name, func(t *testing.T) {
			t.Parallel()
			// Kubelet gives a sandbox twice this time.
			n := newNode(t, r, policy(), map[string]any{"runtimeRequestTimeout": "2s"})
			n.run("first")
			before := n.remains()
			for i, name := range []string{"killed", "timed-out"} {
				// Another policy, so that ADD has work to do; and the lock held, so that it is in the middle of it.
				release := n.lock()
				n.write(policy("remote-ports", "udp/"+strconv.Itoa(5000+i)))
				n.kubelet.WritePod(cluster.Pod{Name: name})
				pid := n.awaitPlugin()
				if name == "killed" {
					check(n, unix.Kill(pid, unix.SIGKILL))
				}
				n.Await("the plugin is gone", func() error {
					if unix.Kill(pid, 0) == nil {
						return errNotYet
					}
					return nil
				})
				release()
				n.kubelet.AwaitRunning(name)
				n.wantInForce()
			}
			n.remove("killed", "timed-out")
			n.write(policy())
			n.run("last")
			n.remove("last")
			n.wantRemains(before)
		})
	}
}

// lock takes the node's lock, as another caller would.
func (n *e2eNode) lock() (release func()) {
	n.Helper()
	f := must(os.OpenFile(n.Path(config.DefaultRunDir+"/lock"), os.O_RDWR, 0))(n)
	check(n, unix.Flock(int(f.Fd()), unix.LOCK_EX))
	return func() { f.Close() }
}

// awaitPlugin returns the host's number of a running plugin.
func (n *e2eNode) awaitPlugin() (pid int) {
	n.Helper()
	n.Await("the plugin is called", func() error {
		if pids := n.Processes(cluster.CNIBin + "/untracked"); len(pids) > 0 {
			pid = pids[0]
			return nil
		}
		return errNotYet
	})
	return pid
}
