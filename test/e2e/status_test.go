// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"github.com/untracked-cni/untracked/pkg/node"
	"github.com/untracked-cni/untracked/test/e2e/cluster"
	"github.com/untracked-cni/untracked/test/lab"
)

// STATUS never makes the node NotReady, however broken the datapath, unless the config says that it is required: then with
// a message that says what is wrong, until it is mended.
func TestStatus(t *testing.T) {
	t.Parallel()
	n := bareNode(t, cluster.Containerd24, policy("mode", "native"))
	n.containerd = n.StartContainerd(n.runtime)
	plane := n.StartControlPlane()
	n.kubelet = n.StartKubelet(plane)
	plane.AwaitNodeReady()

	detach := n.foreignXDP()
	n.run("a")
	if p := n.problem(node.ProblemForeignXDP); p == nil {
		t.Fatalf("status %+v does not name the foreign program", n.status())
	}
	// The runtime asks STATUS whenever it is asked itself.
	if s := n.containerd.Status(); !s.NetworkReady {
		t.Errorf("without the policy in force, the runtime's network is not ready: %s", s.NetworkMessage)
	}
	if ready, message := plane.NodeReady(); !ready {
		t.Errorf("without the policy in force, the node is not ready: %s", message)
	}

	// The next pod is refused, and so the node.
	n.write(policy("mode", "native", "required", "true"))
	n.kubelet.WritePod(cluster.Pod{Name: "b"})
	n.Await("the runtime says why its network is not ready", func() error {
		s := n.containerd.Status()
		if s.NetworkReady || !strings.Contains(s.NetworkMessage, foreignProgram) || !strings.Contains(s.NetworkMessage, "untracked apply") {
			return fmt.Errorf("ready: %v, message %q", s.NetworkReady, s.NetworkMessage)
		}
		t.Logf("the runtime says: %s", s.NetworkMessage)
		return nil
	})
	n.Await("the node is not ready, and says why", func() error {
		ready, message := plane.NodeReady()
		if ready || !strings.Contains(message, foreignProgram) {
			return fmt.Errorf("ready: %v, message %q", ready, message)
		}
		return nil
	})
	if pods := must(n.kubelet.Pods())(t); pods["b"].Running {
		t.Error("a pod has started although the config requires a datapath that cannot be had")
	}

	detach()
	n.kubelet.AwaitRunning("b")
	plane.AwaitNodeReady()
	n.wantInForce()
}

const foreignProgram = "somebody_elses"

// foreignXDP puts a program of somebody else on eth0, and returns a function that takes it off.
func (n *e2eNode) foreignXDP() (detach func()) {
	n.Helper()
	p := must(ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: foreignProgram, Type: ebpf.XDP, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()}, // XDP_PASS
	}))(n)
	var l link.Link
	check(n, lab.In(n.Lab.Node, func() (err error) {
		l, err = link.AttachXDP(link.XDPOptions{Program: p, Interface: n.Lab.Uplinks[0].NodeIndex})
		return err
	}))
	n.Cleanup(func() {
		l.Close()
		p.Close()
	})
	return func() { check(n, l.Close()) }
}
