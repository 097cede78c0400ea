// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bufio"
	"bytes"
	"encoding/json"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/untracked-cni/untracked/pkg/monitor"
	"github.com/untracked-cni/untracked/pkg/nft"
	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/test/lab"
)

const monitorPolicy = `
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: watched}
spec:
  doNotTrack: true
  applyOnForward: true
  types: [Ingress, Egress]
  ingress:
  - {action: Log, protocol: TCP, destination: {ports: [8000]}}
  - {action: Allow, protocol: TCP, destination: {ports: [8000, 8001]}}
  - {action: Log, protocol: UDP}
  - {action: Deny, protocol: UDP, destination: {ports: [9000]}}
  egress:
  - {action: Log, protocol: TCP, source: {ports: [8000]}}
  - {action: Allow, protocol: TCP, source: {ports: [8000, 8001]}}
`

// watch runs `untracked monitor -o json` and returns what it prints, once it is listening.
func (n *trafficNode) watch(args ...string) (next func() *monitor.Event) {
	n.Helper()
	cmd := lab.Command(n.Node, n.chain.Bin+"/untracked", append([]string{"monitor", "-o", "json", "--bpffs", n.lab.BPFFS, "--run-dir", n.lab.RunDir}, args...)...)
	out := must(cmd.StdoutPipe())(n)
	check(n, cmd.Start())
	n.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	lines := bufio.NewScanner(out)
	events := make(chan *monitor.Event)
	go func() {
		defer close(events)
		for lines.Scan() {
			e := &monitor.Event{}
			if err := json.Unmarshal(lines.Bytes(), e); err != nil {
				n.Errorf("monitor printed %q: %v", lines.Text(), err)
				return
			}
			events <- e
		}
	}()
	return func() *monitor.Event { return <-events }
}

// What rules log is shown live, either way, with its verdict; nothing else is.
func TestMonitor(t *testing.T) {
	for _, mode := range []string{"native", "tc"} {
		t.Run(mode, func(t *testing.T) {
			n := newTraffic(t, lab.Config{})
			for port := uint16(8000); port < 8002; port++ {
				must(lab.ServeTCP(n.Node, port))(t)
			}
			n.applyPolicy(monitorPolicy, map[string]string{"mode": mode})
			next := n.watch("--count", "9")
			// It says nothing when it begins to listen, so one packet is sent until it has been seen.
			stop, stopped := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(stopped)
				for {
					select {
					case <-stop:
						return
					default:
						_, _ = lab.LoadUDP(n.Client, lab.Load{Target: netip.AddrPortFrom(n.u.Node4, 9000), Sources: n.u.Client4[:1], Count: 1, Timeout: trafficShort / 10})
					}
				}
			}()
			e := next()
			close(stop)
			<-stopped
			if e == nil || e.Verdict != policy.Denied || e.Direction != policy.Ingress || e.Interface != "eth0" || e.Protocol != "udp" ||
				e.Source != n.u.Client4[0] || *e.DestinationPort != 9000 || e.Rule.String() != "default/watched[3]" || e.Log.Index != 2 {
				t.Fatalf("event %+v", e)
			}
			n.wantTCP(n.Client, lab.Load{Target: netip.AddrPortFrom(n.u.Node6, 8001), Sources: n.u.Client6[:1], Count: 1})
			n.wantTCP(n.Client, lab.Load{Target: netip.AddrPortFrom(n.u.Node6, 8000), Sources: n.u.Client6[:1], Count: 1})
			seen := map[policy.Direction]int{}
			for e := next(); e != nil; e = next() {
				if e.Protocol == "udp" {
					continue // the last of the beginning
				}
				seen[e.Direction]++
				local := e.DestinationPort
				if e.Direction == policy.Egress {
					local = e.SourcePort
				}
				if e.Verdict != policy.Untracked || *local != 8000 || e.Rule.String() != "default/watched[1]" || e.Log.Index != 0 {
					t.Errorf("event %s, log %v", e, e.Log)
				}
				if seen[policy.Ingress] >= 3 && seen[policy.Egress] >= 2 {
					break
				}
			}
			if seen[policy.Ingress] < 3 || seen[policy.Egress] < 2 {
				t.Errorf("events %v", seen)
			}
		})
	}
}

func TestMonitorRefuses(t *testing.T) {
	n := newTraffic(t, lab.Config{})
	refused := func(want string) {
		t.Helper()
		out := must(n.lab.Untracked("monitor"))(t)
		if out.ExitCode != 1 || !strings.Contains(string(out.Stderr), want) {
			t.Errorf("exit code %d, %s; want 1, %q", out.ExitCode, out.Stderr, want)
		}
	}
	refused("no policy is in force")
	n.apply(map[string]string{"ports": "tcp/80"})
	refused("no rule of the policy in force logs")
	n.applyPolicy(monitorPolicy, nil)
	n.watch()
	trafficUntil(t, "the first monitor is reading", func() bool {
		readers := must(lab.Command(n.Node, "cat", "/proc/net/netfilter/nfnetlink_log").Output())(t)
		return bytes.Contains(readers, []byte(strconv.Itoa(int(nft.LogGroup))))
	})
	refused("another monitor is reading")
}
