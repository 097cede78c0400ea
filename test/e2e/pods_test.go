// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"net/netip"
	"path/filepath"
	"slices"
	"testing"

	"github.com/untracked-cni/untracked/test/e2e/cluster"
)

// A pod starts with its address of the main plugin, whose result passes through us, and the policy is in force from then on.
// When it goes, DEL is called up to four times, the later times without a namespace, and never fails.
func TestPod(t *testing.T) {
	everyRuntime(t, policy(), func(n *e2eNode) {
		n.run("first")
		before := n.remains()
		pod := n.run("a")
		sandbox := n.containerd.Sandbox("a").ID
		n.wantCalls(sandbox, 1)
		n.wantInForce()
		n.wantResult(sandbox, pod.IPs)

		n.kubelet.RemovePods("a")
		n.kubelet.AwaitRemoved(n.containerd, "a")
		n.wantCalls(sandbox, 1)
		calls := n.calls(sandbox)
		dels := count(calls, "DEL")
		n.Logf("%d DELs for one sandbox: %+v", dels, calls)
		if dels < 1 || dels > 4 {
			n.Errorf("%d DELs for one sandbox, want 1 to 4", dels)
		}
		if calls[1].netns == "" {
			n.Errorf("the first DEL has no network namespace: %+v", calls)
		}
		n.wantRemains(before)
		n.wantInForce()
	})
}

// wantResult wants what the runtime keeps as the chain's result to be the main plugin's.
func (n *e2eNode) wantResult(sandbox string, ips []netip.Addr) {
	n.Helper()
	file := filepath.Join("/var/lib/cni/results", cluster.Network+"-"+sandbox+"-eth0")
	var cached struct {
		Result struct {
			CNIVersion string
			Interfaces []struct{ Name string }
			IPs        []struct{ Address netip.Prefix }
			Routes     []struct{ Dst netip.Prefix }
		}
	}
	check(n, json.Unmarshal(must(n.ReadFile(file))(n), &cached))
	r := cached.Result
	var names []string
	for _, i := range r.Interfaces {
		names = append(names, i.Name)
	}
	// Bridge, the host's end of a veth, the pod's.
	if r.CNIVersion != n.runtime.CNIVersion || len(names) != 3 || names[0] != "cni0" || names[2] != "eth0" || len(r.Routes) != 2 {
		n.Errorf("the chain's result is %+v, want the main plugin's", r)
	}
	var got []netip.Addr
	for _, ip := range r.IPs {
		got = append(got, ip.Address.Addr())
	}
	if !slices.Equal(got, ips) || len(ips) != 2 {
		n.Errorf("the chain's result has addresses %v, kubelet says %v; want the same two", got, ips)
	}
}

// When a pod's pause process dies, kubelet makes the pod anew; the old sandbox leaves nothing.
func TestKilledPause(t *testing.T) {
	everyRuntime(t, policy(), func(n *e2eNode) {
		n.run("a")
		before, old := n.remains(), n.containerd.Sandbox("a").ID
		n.containerd.KillPause("a")
		n.awaitAnew("a", old)
		n.wantCalls("", 2)
		if count(n.calls(old), "DEL") == 0 {
			n.Errorf("no DEL for the sandbox that died: %+v", n.calls(old))
		}
		n.wantRemains(before)
		n.wantInForce()
	})
}

// An edited annotation of a static pod is a DEL and an ADD.
func TestEditedPod(t *testing.T) {
	everyRuntime(t, policy(), func(n *e2eNode) {
		n.run("a")
		before, old := n.remains(), n.containerd.Sandbox("a").ID
		n.kubelet.WritePod(cluster.Pod{Name: "a", Annotations: map[string]string{"example.org/note": "new"}})
		n.awaitAnew("a", old)
		n.wantCalls("", 2)
		if calls := n.calls(""); calls[1].verb != "DEL" || calls[1].container != old {
			n.Errorf("calls: %+v, want the old pod's DEL before the new one's ADD", calls)
		}
		n.wantRemains(before)
	})
}

// awaitAnew waits until a pod runs in another sandbox than the old one.
func (n *e2eNode) awaitAnew(pod, old string) {
	n.Helper()
	n.Await("pod "+pod+" is made anew", func() error {
		for _, s := range n.containerd.Sandboxes() {
			if s.Name == pod && s.Ready && s.ID != old {
				return nil
			}
		}
		return errNotYet
	})
	n.kubelet.AwaitRunning(pod)
}

// What is edited in the conflist's entry is in force from the next pod on.
func TestEditedConflist(t *testing.T) {
	everyRuntime(t, policy(), func(n *e2eNode) {
		n.run("a")
		before := n.status().Policy
		n.write(map[string]string{"ports": "tcp/6380"})
		if after := n.status().Policy; after != before {
			t.Errorf("an edit alone has made policy %+v of %+v", after, before)
		}
		n.run("b")
		if after := n.status().Policy; after.Generation <= before.Generation || after.Hash == before.Hash {
			t.Errorf("policy %+v after a pod has started with the edited conflist, was %+v", after, before)
		}
		if n.connections(otherPort) != 0 || n.connections(port) == 0 {
			t.Error("the ports of the former policy are those untracked")
		}
		n.wantCalls("", 2)
	})
}
