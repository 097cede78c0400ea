// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/untracked-cni/untracked/test/e2e/cluster"
	"github.com/untracked-cni/untracked/test/lab"
)

// The port that a pod's annotation names, and one of the same pod that it does not.
const (
	podPort, otherPodPort = 7001, 7002
	podPorts              = "tcp/7001,udp/7001"
)

// annotated is a pod that serves both ports and asks for one of them to be untracked.
func annotated(name string) cluster.Pod {
	return cluster.Pod{
		Name: name, Args: []string{"serve", "7001", "7002"},
		Annotations: map[string]string{lab.AnnotationPrefix + "ports": podPorts},
	}
}

// allowPods lets pods ask, as the annotation `pods` has it: allow or allow-lenient.
func (n *e2eNode) allowPods(how string) {
	n.Helper()
	n.WriteConflist(cluster.Conflist{
		CNIVersion: n.runtime.CNIVersion, Annotations: policy("pods", how),
		Entry: map[string]any{"capabilities": map[string]bool{"io.kubernetes.cri.pod-annotations": true}},
	})
}

// A pod's own port is untracked for clients outside and on the node, by TCP and UDP, v4 and v6; its other ports are not, and nor is
// any once the pod has gone.
func TestPodAnnotation(t *testing.T) {
	everyRuntime(t, policy(), func(n *e2eNode) {
		n.allowPods("allow")
		n.run("first")
		before := n.remains()
		n.kubelet.WritePod(annotated("a"))
		ips := n.kubelet.AwaitRunning("a").IPs
		for _, from := range []*lab.NS{n.Lab.Client, n.Lab.Node} {
			for what, load := range map[string]func(*lab.NS, lab.Load) (lab.Report, error){"tcp": lab.LoadTCP, "udp": lab.LoadUDP} {
				if got := n.connect(from, load, podPort, ips...); got != 0 {
					n.Errorf("%s flows from %s to the pod's port have left %d entries in the connection tracking table, want none", what, from.Name, got)
				}
				if n.connect(from, load, otherPodPort, ips...) == 0 {
					n.Errorf("%s flows from %s to the pod's other port are not tracked", what, from.Name)
				}
			}
		}
		// Kubelet and containerd may come and go.
		n.kubelet.Restart()
		n.containerd.Restart()
		if n.connect(n.Lab.Client, lab.LoadTCP, podPort, ips...) != 0 {
			n.Error("after restarts, connections to the pod's port are tracked")
		}
		n.remove("a")
		n.wantRemains(before)
	})
}

// A pod whose annotation cannot be honoured does not start, and its message names the annotation; with allow-lenient it
// starts, and the log has the message.
func TestBadPodAnnotation(t *testing.T) {
	everyRuntime(t, policy(), func(n *e2eNode) {
		n.allowPods("allow")
		n.run("first")
		before := n.remains()
		bad := annotated("bad")
		bad.Annotations[lab.AnnotationPrefix+"ports"] = "tcp/70000"
		n.kubelet.WritePod(bad)
		n.Await("kubelet names the annotation", func() error {
			if log := n.kubelet.Log(); !strings.Contains(log, lab.AnnotationPrefix+"ports") || !strings.Contains(log, "tcp/70000") {
				return errNotYet
			}
			return nil
		})
		if pods := must(n.kubelet.Pods())(n); pods["bad"].Running {
			n.Error("a pod has started with a bad annotation")
		}
		n.allowPods("allow-lenient")
		n.kubelet.AwaitRunning("bad")
		if log := string(must(n.ReadFile(cluster.LogFile))(n)); strings.Count(log, "tcp/70000") < 2 {
			n.Errorf("the log does not say what was ignored:\n%s", log)
		}
		n.remove("bad")
		n.allowPods("allow")
		n.run("last")
		n.remove("last")
		n.wantRemains(before)
	})
}

// A reboot takes the pods' ports with all else; pods that start anew have theirs again.
func TestPodAnnotationReboot(t *testing.T) {
	everyRuntime(t, policy(), func(n *e2eNode) {
		n.allowPods("allow")
		n.kubelet.WritePod(annotated("a"))
		n.kubelet.AwaitRunning("a")
		old := n.containerd.Sandbox("a").ID
		n.reboot()
		n.containerd.KillPause("a")
		n.awaitAnew("a", old)
		var ips []netip.Addr
		n.Await("the pod made anew has its addresses", func() error {
			pods, err := n.kubelet.Pods()
			if ips = pods["a"].IPs; err == nil && (len(ips) != 2 || ips[0].String() != n.containerd.Sandbox("a").IP) {
				err = errNotYet
			}
			return err
		})
		if n.connect(n.Lab.Client, lab.LoadTCP, podPort, ips...) != 0 {
			n.Error("connections to the pod's port are tracked")
		}
		n.wantInForce()
	})
}
