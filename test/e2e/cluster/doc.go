// SPDX-License-Identifier: Apache-2.0

// Package cluster is a Kubernetes node for tests: real containerd, kubelet and control plane in a machine that is
// made for one test and gone with it.
//
//	m := cluster.New(t)                          // a machine; skips the test unless it runs with -e2e
//	m.InstallCNI(cluster.Containerd24)           // bridge, host-local, untracked in /opt/cni/bin
//	m.WriteConflist(cluster.Conflist{…})         // /etc/cni/net.d, by rename
//	c := m.StartContainerd(cluster.Containerd24) // with PauseImage and PodImage
//	p := m.StartControlPlane()                   // (optional) etcd, apiserver, controller-manager, scheduler
//	k := m.StartKubelet(p)                       // nil: standalone, static pods only
//	k.WritePod(cluster.Pod{Name: "a"})           // a static pod
//	k.AwaitRunning("a")
//
// A [Machine] has a file system, processes, mounts, cgroups, a host name and a network of its own. So everything is where
// it is on a real node (/etc/cni/net.d, /opt/cni/bin, /run/untracked, /sys/fs/bpf), and what kubelet writes to sysctls
// and directories of the host does not reach it. When the machine's process 1 ends, the kernel removes all of it but some
// empty cgroups; those of a killed test the next machine sweeps up. Its network is the node of a [lab.Lab], whose client
// is outside, and all of package lab's instruments work on it.
//
// Methods without an error to return end the test where they fail, and the end of each component's log is printed.
//
// Out of scope: more than one node, Services and kube-proxy, service accounts, anything that leaves this machine.
package cluster
