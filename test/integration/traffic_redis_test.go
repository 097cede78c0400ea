// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/test/lab"
)

// The case in the README: a real Redis under clients that connect anew for every request.
func TestTrafficRedis(t *testing.T) {
	server, err := exec.LookPath("redis-server")
	if err != nil {
		t.Skip("redis-server is not installed")
	}
	benchmark, err := exec.LookPath("redis-benchmark")
	if err != nil {
		t.Skip("redis-benchmark is not installed (package redis-tools)")
	}
	const requests = 3000
	for _, mode := range []string{"native", "tc"} {
		t.Run(mode, func(t *testing.T) {
			n := newTraffic(t, lab.Config{})
			for _, port := range []string{"6379", "6380"} {
				cmd := lab.Command(n.Node, server, "--port", port, "--bind", "*", "-::*", "--protected-mode", "no",
					"--save", "", "--appendonly", "no", "--dir", n.lab.Dir, "--tcp-backlog", "4096",
					"--logfile", filepath.Join(n.lab.Dir, "redis-"+port+".log"))
				check(t, cmd.Start())
				t.Cleanup(func() {
					cmd.Process.Kill()
					cmd.Wait()
				})
				n.waitForTCP(port)
			}
			n.apply(map[string]string{"mode": mode, "interfaces": "eth0", "ports": "tcp/6379"})
			for _, f := range n.families() {
				before := n.packets("eth0")
				run := func(port string) {
					t.Helper()
					out, err := lab.Command(n.Client, benchmark, "-h", f.node.String(), "-p", port, "-k", "0",
						"-n", fmt.Sprint(requests), "-c", "16", "-t", "set,get", "--csv").CombinedOutput()
					if err != nil || !strings.Contains(string(out), `"GET"`) || strings.Contains(string(out), "rror") {
						t.Fatalf("redis-benchmark on port %s: %v\n%s", port, err, out)
					}
				}
				run("6379")
				n.wantFlows(0, lab.Port(6379), lab.Host(f.node))
				// SYN, ACK, request, ACK, FIN: some may share a packet.
				if got := n.packets("eth0").Untracked - before.Untracked; got < 2*requests*3 {
					t.Errorf("%s: %d packets arrived untracked, want at least %d", f.name, got, 2*requests*3)
				}
				// The same to another port, as a control: tracked, though each entry soon ends.
				run("6380")
				if got := must(lab.CountFlows(n.Node, lab.Protocol(policy.TCP), lab.Port(6380), lab.Host(f.node)))(t); got < requests {
					t.Errorf("%s: %d conntrack entries for port 6380, want thousands", f.name, got)
				}
				n.wantFlows(0, lab.Port(6379), lab.Host(f.node))
			}
			n.wantNoInvalid()
			n.healthy()
		})
	}
}

// waitForTCP waits until a port of the node accepts connections, from the node itself.
func (n *trafficNode) waitForTCP(port string) {
	n.Helper()
	at := netip.MustParseAddrPort("127.0.0.1:" + port)
	trafficUntil(n, "a server on port "+port, func() bool {
		c, err := lab.Dial(n.Node, "tcp", netip.Addr{}, at, trafficPatience)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}
