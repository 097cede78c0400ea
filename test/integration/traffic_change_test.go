// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/untracked-cni/untracked/pkg/node"
	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/test/lab"
)

// Rules that stay keep their counts through a policy change, whatever their place in the list becomes; what
// removed ones have counted stays in the interface's totals.
func TestTrafficCounters(t *testing.T) {
	for _, mode := range trafficModes {
		t.Run(mode, func(t *testing.T) {
			n := newTraffic(t, lab.Config{})
			for _, port := range []uint16{6379, 6380} {
				must(lab.ServeTCP(n.Node, port))(t)
			}
			must(lab.ServeUDP(n.Client, 5353))(t)
			denied := n.u.Client4[1]
			first := map[string]string{"mode": mode, "ports": "tcp/6379,tcp/6380", "remote-ports": "udp/5353", "deny": denied.String()}
			n.apply(first)
			for _, port := range []uint16{6379, 6380} {
				n.wantTCP(n.Client, lab.Load{Target: netip.AddrPortFrom(n.u.Node4, port), Sources: n.u.Client4[:1], Count: 20})
			}
			n.wantUDP(n.Node, lab.Load{Target: netip.AddrPortFrom(n.u.Client4[0], 5353), Count: 20})
			n.wantSilence(n.Client, lab.Load{Target: netip.AddrPortFrom(n.u.Node4, 6379), Sources: n.u.Client4[1:2], Count: 5})

			type key struct {
				direction policy.Direction
				match     string
			}
			counts := func() map[key]node.RuleStatus {
				out := map[key]node.RuleStatus{}
				for _, r := range n.rules() {
					if r.Packets > 0 {
						out[key{r.Direction, r.Match}] = r
					}
				}
				return out
			}
			before, total := counts(), n.packets("eth0")
			gone := map[policy.Direction]string{policy.Ingress: "tcp to port 6380", policy.Egress: "tcp from port 6380"}
			for d, match := range gone {
				if before[key{d, match}].Packets == 0 {
					t.Fatalf("no %s rule %q has counted: %+v", d, match, before)
				}
			}

			// tcp/6380 goes, udp/9999 stands in its place and before the port that stays.
			second := map[string]string{"mode": mode, "ports": "udp/9999,tcp/6379", "remote-ports": "udp/5353", "deny": denied.String()}
			generation := n.healthy().Policy.Generation
			n.apply(second)
			if got := n.healthy().Policy.Generation; got != generation+1 {
				t.Errorf("generation %d after %d", got, generation)
			}
			after := counts()
			for k, r := range before {
				now := after[k]
				switch {
				case k.match == gone[k.direction]:
					if now.Packets != 0 {
						t.Errorf("the removed rule %s %q is still there: %+v", k.direction, k.match, now)
					}
				case now.Packets != r.Packets || now.Bytes != r.Bytes:
					t.Errorf("%s %q had %d packets, %d bytes; now %d, %d", k.direction, k.match, r.Packets, r.Bytes, now.Packets, now.Bytes)
				}
			}
			if got := n.packets("eth0"); got.Untracked != total.Untracked || got.Denied != total.Denied || got.Failsafe < total.Failsafe || got.Tracked < total.Tracked {
				t.Errorf("totals were %+v, now %+v", total, got)
			}

			// The removed rule begins anew when it comes back; its past stays where it is.
			n.apply(first)
			if r := counts()[key{policy.Ingress, gone[policy.Ingress]}]; r.Packets != 0 {
				t.Errorf("a rule that was gone in between goes on with %d packets", r.Packets)
			}
			if got := n.packets("eth0"); got.Untracked != total.Untracked || got.Denied != total.Denied {
				t.Errorf("totals were %+v, after two changes %+v", total, got)
			}
			n.wantTCP(n.Client, lab.Load{Target: netip.AddrPortFrom(n.u.Node4, 6380), Sources: n.u.Client4[:1], Count: 1})
			if got := n.packets("eth0").Untracked - total.Untracked; got < 3 {
				t.Errorf("%d packets counted after two changes, want those of one connection", got)
			}
			n.healthy()
		})
	}
}

// A long-lived connection and a steady load live through many policy changes without a packet denied or invalid.
func TestTrafficPolicyChanges(t *testing.T) {
	const changes = 20
	for _, mode := range trafficModes {
		t.Run(mode, func(t *testing.T) {
			n := newTraffic(t, lab.Config{})
			must(lab.ServeTCP(n.Node, 6379))(t)
			must(lab.ServeUDP(n.Node, 5353))(t)
			annotations := func(i int) map[string]string {
				// Rules come and go before and behind those that stay.
				var extra []string
				for p := range i % 5 {
					extra = append(extra, fmt.Sprintf("tcp/%d", 20000+100*i+p))
				}
				return map[string]string{
					"mode": mode, "ports": strings.Join(append(extra, "tcp/6379", "udp/5353"), ","),
					"deny": fmt.Sprintf("203.0.113.%d,2001:db8:dead::%d", i, i),
				}
			}
			n.apply(annotations(0))

			// Both families, side by side with a load of new flows.
			var stop atomic.Bool
			results := make(chan error)
			asked := make([]atomic.Uint64, 2)
			for i, f := range n.families() {
				c := trafficDial(t, n.Client, f.clients[0], netip.AddrPortFrom(f.node, 6379))
				go func() {
					for !stop.Load() {
						if err := trafficAsk(c); err != nil {
							results <- fmt.Errorf("%s, the long-lived connection: %w", f.name, err)
							return
						}
						asked[i].Add(1)
					}
					results <- nil
				}()
			}
			go func() {
				var err error
				for !stop.Load() && err == nil {
					var r lab.Report
					r, err = lab.LoadUDP(n.Client, lab.Load{
						Target: netip.AddrPortFrom(n.u.Node4, 5353), Sources: n.u.Client4, Count: 200, InFlight: 4, Timeout: trafficPatience,
					})
					if err == nil && r.OK != 200 {
						err = fmt.Errorf("udp load: %v (%v), want 200 ok", r, r.FirstFailure)
					}
				}
				results <- err
			}()

			generation := n.healthy().Policy.Generation
			for i := range changes {
				seen := [2]uint64{asked[0].Load(), asked[1].Load()}
				n.apply(annotations(i + 1))
				trafficUntil(t, "traffic between two changes", func() bool {
					return asked[0].Load() > seen[0] && asked[1].Load() > seen[1] || stop.Load()
				})
			}
			stop.Store(true)
			var errs []error
			for range 3 {
				errs = append(errs, <-results)
			}
			if err := errors.Join(errs...); err != nil {
				t.Error(err)
			}
			s := n.healthy()
			if got := s.Policy.Generation - generation; got != changes {
				t.Errorf("%d generations, want %d", got, changes)
			}
			if p := s.Interfaces[0].Packets; p.Denied != 0 || p.Malformed != 0 || p.Untracked < asked[0].Load()+asked[1].Load() {
				t.Errorf("packets %+v, want none denied and at least %d untracked", p, asked[0].Load()+asked[1].Load())
			}
			n.wantFlows(0, lab.Port(6379))
			n.wantFlows(0, lab.Protocol(policy.UDP), lab.Port(5353))
			n.wantNoInvalid()
		})
	}
}

// A deny list in a file is read again when it changes, by the next apply, and by the next pod.
func TestTrafficDenyFile(t *testing.T) {
	n := newTraffic(t, lab.Config{})
	must(lab.ServeTCP(n.Node, 8080))(t)
	list := must(trafficTempFile(n.lab.Dir, "deny.txt", "# nobody\n192.0.2.1\n"))(t)
	annotations := map[string]string{"interfaces": "eth0", "deny-files": list}
	n.apply(annotations)
	target := netip.AddrPortFrom(n.u.Node4, 8080)
	n.wantTCP(n.Client, lab.Load{Target: target, Sources: n.u.Client4[1:2], Count: 5})

	must(trafficTempFile(n.lab.Dir, "deny.txt", n.u.Client4[1].String()+" spam\n"+n.u.Client6[1].String()+"/128\n"))(t)
	n.problem("drift", list)
	pod := must(n.lab.AddNS("pod"))(t)
	must(n.chain.Add(pod))(t)
	n.healthy()
	n.wantSilence(n.Client, lab.Load{Target: target, Sources: n.u.Client4[1:2], Count: 5})
	n.wantSilence(n.Client, lab.Load{Target: netip.AddrPortFrom(n.u.Node6, 8080), Sources: n.u.Client6[1:2], Count: 5})
	r := n.rule(policy.Ingress, policy.DenyFilesAnnotation, 0)
	if r.Packets < 20 {
		t.Errorf("rule %+v, want 20 packets", r)
	}

	// A refreshed list is the same rule.
	time.Sleep(10 * time.Millisecond) // another change time
	must(trafficTempFile(n.lab.Dir, "deny.txt", n.u.Client4[1].String()+"\n192.0.2.7\n"))(t)
	n.apply(annotations)
	if again := n.rule(policy.Ingress, policy.DenyFilesAnnotation, 0); again.Packets != r.Packets {
		t.Errorf("the refreshed list has %d packets, want the %d it had", again.Packets, r.Packets)
	}
	n.wantTCP(n.Client, lab.Load{Target: netip.AddrPortFrom(n.u.Node6, 8080), Sources: n.u.Client6[1:2], Count: 5})
	must(n.chain.Del(pod))(t)
}
