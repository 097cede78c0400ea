// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/pkg/node"
	"github.com/untracked-cni/untracked/test/lab"
)

// Without a BPF file system there is no datapath. Pods start all the same, unless the operator said required;
// and when it is mounted, the next pod puts everything right.
func TestCNIWithoutBPFFS(t *testing.T) {
	for _, required := range []string{"false", "true"} {
		t.Run("required "+required, func(t *testing.T) {
			l, chain, pod := cniChain(t, cniPolicy("required", required))
			check(t, unix.Unmount(l.BPFFS, unix.MNT_DETACH))
			stdin := chain.Stdin([]byte(cniPrev("1.1.0")))
			call := func(verb string) *lab.Outcome { return cniRun(t, l, cniEnv(chain, verb, pod), stdin) }

			cniQuiet(t, "STATUS of a node not looked at yet", call("STATUS"))
			for range 2 {
				out := call("ADD")
				if required == "true" {
					text := cniFailure(t, out, 100)
					if !strings.Contains(text, l.BPFFS) || !strings.Contains(text, "mount -t bpf bpf "+l.BPFFS) {
						t.Errorf("error %q names no remedy for %s", text, l.BPFFS)
					}
				} else if out.ExitCode != 0 || !strings.Contains(string(out.Stderr), node.ProblemBPFFS) {
					t.Errorf("ADD: exit status %d, stdout %s, stderr %s", out.ExitCode, out.Stdout, out.Stderr)
				}
			}
			s, exit := cniStatus(t, l)
			if p := cniProblem(s, node.ProblemBPFFS); exit != 1 || p == nil || p.Remedy == "" || !strings.Contains(p.Message, l.BPFFS) {
				t.Errorf("status: exit status %d, problems %+v", exit, s.Problems)
			}
			if table := cniTables(t, l); len(table) != 0 {
				t.Errorf("half a flow is untracked: %v", table)
			}
			before := cniRead(t, l)
			if required == "true" {
				if text := cniFailure(t, call("STATUS"), 50); !strings.Contains(text, l.BPFFS) {
					t.Errorf("STATUS: %s", text)
				}
				cniFailure(t, call("CHECK"), 101)
			} else {
				// An error would make the node NotReady, or fail a pod whose ADD succeeded.
				cniQuiet(t, "STATUS", call("STATUS"))
				cniQuiet(t, "CHECK", call("CHECK"))
			}
			cniSame(t, "STATUS and CHECK", before, cniRead(t, l))

			check(t, unix.Mount("bpf", l.BPFFS, "bpf", 0, "mode=0700"))
			cniQuiet(t, "STATUS after the mount", call("STATUS"))
			cniAdd(t, chain, pod)
			cniHealthy(t, l, chain, pod)
		})
	}
}

// STATUS gives the reason, not the first thing there is to say.
func TestCNIStatusNamesWhatIsBroken(t *testing.T) {
	l, chain, pod := cniChain(t, cniPolicy("required", "true", "ports", "tcp/22,udp/7001")) // tcp/22 is a failsafe port
	check(t, unix.Unmount(l.BPFFS, unix.MNT_DETACH))
	cniFailure(t, cniRun(t, l, cniEnv(chain, "ADD", pod), chain.Stdin([]byte(cniPrev("1.1.0")))), 100)
	if text := cniFailure(t, cniRun(t, l, cniEnv(chain, "STATUS", pod), chain.Stdin(nil)), 50); !strings.Contains(text, l.BPFFS) {
		t.Errorf("STATUS: %s", text)
	}
}

// cniTables lists our table if it is there with any rule that leaves packets untracked on their way out.
func cniTables(t *testing.T, l *lab.Lab) (out []string) {
	t.Helper()
	for _, name := range must(lab.Tables(l.Node))(t) {
		if name == "inet untracked" {
			out = append(out, name)
		}
	}
	return out
}

// The BPF file system goes away under a policy in force, and the programs with it. Then the way out must not
// stay untracked: conntrack would see only half of every flow.
func TestCNIBPFFSGoesAway(t *testing.T) {
	l, chain, pod := cniChain(t, cniPolicy("failsafe-inbound", "none", "failsafe-outbound", "none"))
	u := l.Uplinks[0]
	must(lab.AddStateful(l.Node, true))(t)
	must(lab.ServeUDP(l.Node, 7001))(t)
	load := lab.Load{Target: netip.AddrPortFrom(u.Node4, 7001), Sources: u.Client4[:1], Count: 20, Timeout: 5 * time.Second}
	cniAdd(t, chain, pod)
	if r := must(lab.LoadUDP(l.Client, load))(t); r.OK != 20 {
		t.Fatalf("%v (%v)", r, r.FirstFailure)
	}
	if n := must(lab.CountFlows(l.Node, lab.Port(7001)))(t); n != 0 {
		t.Fatalf("%d flows tracked", n)
	}
	check(t, unix.Unmount(l.BPFFS, unix.MNT_DETACH))
	cniEventually(t, "the programs go with their pins", func() bool { return must(lab.ReadHooks(l.Node, "eth0"))(t).None() })
	cniAdd(t, chain, pod)
	if s, exit := cniStatus(t, l); exit != 1 || cniProblem(s, node.ProblemBPFFS) == nil {
		t.Errorf("status: exit status %d, %+v", exit, s.Problems)
	}
	if r := must(lab.LoadUDP(l.Client, load))(t); r.OK != 20 {
		t.Errorf("%v (%v)", r, r.FirstFailure)
	}
	flows := must(lab.Flows(l.Node, lab.Port(7001)))(t)
	if len(flows) != 20 {
		t.Errorf("%d flows tracked, want all 20: nothing is in force", len(flows))
	}
	for _, f := range flows {
		if !f.Replied() {
			t.Errorf("conntrack saw half of it: %s", &f)
		}
	}
	check(t, unix.Mount("bpf", l.BPFFS, "bpf", 0, "mode=0700"))
	cniAdd(t, chain, pod)
	cniHealthy(t, l, chain, pod)
}

// A BPF file system that takes no pins: what is in force stays in force, and is what the commands tell of.
func TestCNIReadOnlyBPFFS(t *testing.T) {
	l, chain, pod := cniChain(t, cniPolicy())
	cniAdd(t, chain, pod)
	rules := string(must(l.Untracked("rules", "-o", "json"))(t).Stdout)
	before := cniRead(t, l)
	cniReadOnly(t, l.BPFFS)
	for _, required := range []string{"false", "true"} {
		check(t, chain.Rewrite(lab.ChainConfig{Annotations: cniPolicy("deny", "192.0.2.0/24", "required", required)}))
		out := cniRun(t, l, cniEnv(chain, "ADD", pod), chain.Stdin([]byte(cniPrev("1.1.0"))))
		if required == "true" {
			cniFailure(t, out, 100)
			cniFailure(t, cniRun(t, l, cniEnv(chain, "STATUS", pod), chain.Stdin(nil)), 50)
		} else if out.ExitCode != 0 {
			t.Errorf("ADD: exit status %d, %s", out.ExitCode, out.Stdout)
		}
		if s, exit := cniStatus(t, l); exit != 1 || cniProblem(s, node.ProblemNotAttached) == nil || s.Policy.Generation != 1 || !s.Interfaces[0].Attached {
			t.Errorf("status: exit status %d, %+v", exit, s)
		}
		if diff := cmp.Diff(rules, string(must(l.Untracked("rules", "-o", "json"))(t).Stdout)); diff != "" {
			t.Errorf("rules tells of rules that are not in force (-in force +told):\n%s", diff)
		}
	}
	after := cniRead(t, l)
	after.Files, after.Transactions = before.Files, before.Transactions
	cniSame(t, "a policy that could not be pinned", before, after)
	check(t, unix.Unmount(l.BPFFS, unix.MNT_DETACH))
	cniAdd(t, chain, pod)
	cniHealthy(t, l, chain, pod)
}

// STATUS is asked all the time, and says nothing wrong about a node that only lacks a policy.
func TestCNIStatusIsQuickAndReadsOnly(t *testing.T) {
	l, chain, pod := cniChain(t, cniPolicy())
	for _, more := range [][]string{nil, {"required", "true"}} {
		check(t, chain.Rewrite(lab.ChainConfig{Annotations: cniPolicy(more...)}))
		cniQuiet(t, "STATUS before any ADD", cniRun(t, l, cniEnv(chain, "STATUS", pod), chain.Stdin(nil)))
	}
	cniNothing(t, l)
	cniAdd(t, chain, pod)
	before := cniRead(t, l)
	least := time.Hour
	for range 20 {
		out := cniRun(t, l, map[string]string{"CNI_COMMAND": "STATUS", "CNI_PATH": chain.Bin}, chain.Stdin(nil))
		cniQuiet(t, "STATUS", out)
		least = min(least, out.Elapsed)
	}
	t.Logf("least of 20: %v", least)
	if least > time.Second {
		t.Errorf("STATUS takes %v", least)
	}
	// The node drifts: that is for CHECK and the next ADD, which can put it right, not for STATUS.
	check(t, lab.DeleteLink(l.Node, "eth0"))
	cniQuiet(t, "STATUS on a drifted node", cniRun(t, l, cniEnv(chain, "STATUS", pod), chain.Stdin(nil)))
	after := cniRead(t, l)
	delete(before.Hooks, "eth0")
	before.Pins, after.Pins = nil, nil // a link without its interface shows that
	cniSame(t, "STATUS", before, after)
}
