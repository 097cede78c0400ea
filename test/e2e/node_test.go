// SPDX-License-Identifier: Apache-2.0

// Package e2e puts the plugin under real runtimes, and kubelet: `make e2e`.
package e2e

import (
	"encoding/json"
	"errors"
	"io/fs"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/untracked-cni/untracked/pkg/node"
	"github.com/untracked-cni/untracked/test/e2e/cluster"
	"github.com/untracked-cni/untracked/test/lab"
)

// The ports of the policies in these tests, and one that is in none.
const (
	port, otherPort = 6379, 6380
	policyPorts     = "tcp/6379"
)

// policy is a small policy, with more annotations by their keys and values.
func policy(more ...string) map[string]string {
	m := map[string]string{"ports": policyPorts}
	for i := 0; i < len(more); i += 2 {
		m[more[i]] = more[i+1]
	}
	return m
}

// e2eNode is a node that runs containerd and standalone kubelet, with a service, a stateful firewall and the chain.
type e2eNode struct {
	testing.TB
	*cluster.Machine
	runtime    cluster.Runtime
	containerd *cluster.Containerd
	kubelet    *cluster.Kubelet
}

// everyRuntime runs a test with each of them, side by side with other tests.
func everyRuntime(t *testing.T, annotations map[string]string, test func(n *e2eNode)) {
	t.Parallel()
	for _, r := range cluster.Runtimes {
		t.Run(r.Name, func(t *testing.T) {
			t.Parallel()
			test(newNode(t, r, annotations))
		})
	}
}

func newNode(t testing.TB, r cluster.Runtime, annotations map[string]string, kubelet ...map[string]any) *e2eNode {
	t.Helper()
	n := bareNode(t, r, annotations)
	n.containerd = n.StartContainerd(r)
	n.kubelet = n.StartKubelet(nil, kubelet...)
	return n
}

// bareNode is one on which no component runs yet.
func bareNode(t testing.TB, r cluster.Runtime, annotations map[string]string) *e2eNode {
	t.Helper()
	n := &e2eNode{TB: t, Machine: cluster.New(t), runtime: r}
	for _, port := range []uint16{port, otherPort} {
		must(lab.ServeTCP(n.Lab.Node, port))(t)
	}
	must(lab.AddStateful(n.Lab.Node, true))(t)
	n.InstallCNI(r)
	n.write(annotations)
	return n
}

// write writes the conflist; without annotations there is no entry of untracked.
func (n *e2eNode) write(annotations map[string]string) {
	n.Helper()
	n.WriteConflist(cluster.Conflist{CNIVersion: n.runtime.CNIVersion, Annotations: annotations})
}

// run has kubelet run a pod without particulars.
func (n *e2eNode) run(name string) cluster.PodStatus {
	n.Helper()
	n.kubelet.WritePod(cluster.Pod{Name: name})
	return n.kubelet.AwaitRunning(name)
}

// remove has kubelet take pods away.
func (n *e2eNode) remove(names ...string) {
	n.Helper()
	n.kubelet.RemovePods(names...)
	n.kubelet.AwaitGone(n.containerd, names...)
}

// call is one call of the plugin, by its own log.
type call struct {
	verb, container, netns string
	failed                 bool
}

var callLine = regexp.MustCompile(`level=(\w+) msg=(ADD|DEL|CHECK|GC) container=(\S+) netns=(\S+) `)

// calls are those for a sandbox, in their order; for any, if none is given.
func (n *e2eNode) calls(container string) (calls []call) {
	n.Helper()
	log, err := n.ReadFile(cluster.LogFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		n.Fatal(err)
	}
	for _, m := range callLine.FindAllStringSubmatch(string(log), -1) {
		if c := (call{verb: m[2], container: m[3], netns: strings.Trim(m[4], `"`), failed: m[1] != "DEBUG"}); container == "" || c.container == container {
			calls = append(calls, c)
		}
	}
	return calls
}

// count is the number of calls with a verb.
func count(calls []call, verb string) (sum int) {
	for _, c := range calls {
		if c.verb == verb {
			sum++
		}
	}
	return sum
}

// wantCalls wants none of them to have failed, and so many ADDs for a sandbox.
func (n *e2eNode) wantCalls(container string, adds int) {
	n.Helper()
	calls := n.calls(container)
	if got := count(calls, "ADD"); got != adds {
		n.Errorf("%d ADDs for sandbox %q, want %d: %+v", got, container, adds, calls)
	}
	if i := slices.IndexFunc(calls, func(c call) bool { return c.failed }); i >= 0 {
		n.Errorf("a call has failed: %+v", calls[i])
	}
}

// untracked runs the operator's command on the machine.
func (n *e2eNode) untracked(args ...string) (out []byte, err error) {
	return n.Command(cluster.CNIBin+"/untracked", args...).Output()
}

// status is `untracked status -o json`, whatever its exit code.
func (n *e2eNode) status() (s node.Status) {
	n.Helper()
	out, err := n.untracked("status", "-o", "json")
	if jsonErr := json.Unmarshal(out, &s); jsonErr != nil {
		n.Fatalf("status: %v, %v\n%s", err, jsonErr, out)
	}
	return s
}

// problem is the problem of this code that status has, nil if there is none.
func (n *e2eNode) problem(code string) *node.ProblemStatus {
	n.Helper()
	s := n.status()
	for _, p := range s.Problems {
		if p.Code == code {
			return &p
		}
	}
	return nil
}

// program is the ID of the program on eth0's XDP hook.
func (n *e2eNode) program() uint32 {
	n.Helper()
	return must(lab.ReadHooks(n.Lab.Node, "eth0"))(n).XDP
}

// connections is how many of the node's tracked flows connections from outside have made to a port of its addresses.
func (n *e2eNode) connections(port uint16) int {
	n.Helper()
	u := n.Lab.Uplinks[0]
	return n.connect(n.Lab.Client, lab.LoadTCP, port, u.Node4, u.Node6)
}

// connect makes 10 flows to a port of each address, which must all succeed, and returns how many of them are tracked.
func (n *e2eNode) connect(from *lab.NS, load func(*lab.NS, lab.Load) (lab.Report, error), port uint16, addresses ...netip.Addr) int {
	n.Helper()
	for _, address := range addresses {
		n.awaitServing(from, netip.AddrPortFrom(address, port))
	}
	check(n, lab.FlushFlows(n.Lab.Node))
	for _, address := range addresses {
		l := lab.Load{Target: netip.AddrPortFrom(address, port), Count: 10, Timeout: 20 * time.Second}
		if r := must(load(from, l))(n); r.OK != l.Count {
			n.Errorf("flows from %s to %s: %v (%v)", from.Name, l.Target, r, r.FirstFailure)
		}
	}
	return must(lab.CountFlows(n.Lab.Node, lab.Port(port)))(n)
}

// awaitServing waits until a server answers: a pod that runs may not have come to listen yet.
func (n *e2eNode) awaitServing(from *lab.NS, server netip.AddrPort) {
	n.Helper()
	n.Await(server.String()+" is served", func() error {
		conn, err := lab.Dial(from, "tcp", netip.Addr{}, server, time.Second)
		if err == nil {
			err = conn.Close()
		}
		return err
	})
}

// wantInForce wants the policy to be so: by status, and by what connections leave behind.
func (n *e2eNode) wantInForce() {
	n.Helper()
	if s := n.status(); len(s.Problems) > 0 || len(s.Interfaces) != 1 || !s.Interfaces[0].Attached {
		n.Errorf("status: %+v, want no problems and the policy on eth0", s)
	}
	if got := n.connections(port); got != 0 {
		n.Errorf("connections to port %d have left %d entries in the connection tracking table, want none", port, got)
	}
	if n.connections(otherPort) == 0 {
		n.Errorf("connections to port %d, which the policy does not name, are not tracked", otherPort)
	}
}

// wantTracked wants no policy to be in force.
func (n *e2eNode) wantTracked() {
	n.Helper()
	if n.connections(port) == 0 {
		n.Errorf("connections to port %d are not tracked, want them to be", port)
	}
}

// wantRemains waits until as much is on the node as before. The runtime may still be clearing away.
func (n *e2eNode) wantRemains(before remains) {
	n.Helper()
	var after remains
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if after = n.remains(); after == before {
			return
		}
	}
	n.Errorf("pods have left something (-before +after):\n%s", cmp.Diff(before, after))
}

var errNotYet = errors.New("not yet")

// must ends the test on an error, and check does for a function that returns nothing else.
func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
