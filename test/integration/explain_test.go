// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/untracked-cni/untracked/pkg/node"
	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/test/lab"
)

const explainPolicy = `
apiVersion: projectcalico.org/v3
kind: HostEndpoint
metadata: {name: uplink, labels: {role: web}}
spec: {node: n1, interfaceName: eth0}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: web}
spec:
  selector: role == "web"
  doNotTrack: true
  applyOnForward: true
  types: [Ingress, Egress]
  ingress:
  - {action: Deny, source: {nets: [198.18.0.66/32]}}
  - {action: Log, protocol: TCP, destination: {ports: [8080]}}
  - {action: Allow, protocol: TCP, source: {nets: [198.18.0.0/24]}, destination: {ports: [80, 8080]}}
  - {action: Allow, protocol: UDP, source: {ports: [123]}}
  egress:
  - {action: Allow, protocol: TCP, source: {ports: [80, 8080]}, destination: {nets: [198.18.0.0/24]}}
`

// explain runs the command for JSON.
func (n *trafficNode) explain(args ...string) node.Explanation {
	n.Helper()
	out := must(n.lab.Untracked(append([]string{"explain", "-o", "json"}, args...)...))(n)
	var x node.Explanation
	if err := json.Unmarshal(out.Stdout, &x); err != nil || out.ExitCode != 0 {
		n.Fatalf("explain %q: exit code %d, %v\n%s%s", args, out.ExitCode, err, out.Stdout, out.Stderr)
	}
	return x
}

func explainName(x *node.Explanation) string {
	name := fmt.Sprintf("%s by %s", x.Verdict, x.By)
	if x.Rule != nil {
		name += " " + x.Rule.Name()
	}
	return name
}

// Every reason can be had, in every mode, on either way, and asking moves no counter.
func TestExplain(t *testing.T) {
	for _, mode := range trafficModes {
		t.Run(mode, func(t *testing.T) {
			n := newTraffic(t, lab.Config{Uplinks: 2})
			n.applyPolicy(explainPolicy, map[string]string{"node": "n1", "mode": mode, "interfaces": "eth0"})
			me := n.u.Node4.String()
			ethernet := strings.ReplaceAll(n.u.NodeMAC.String()+n.u.ClientMAC.String(), ":", "")
			fragment := trafficUDPPacket(netip.AddrPortFrom(n.u.Client4[0], 123), netip.AddrPortFrom(n.u.Node4, 9999), "x")
			fragment[6], fragment[7] = 0x00, 0x10
			for _, c := range []struct {
				args []string
				want string
			}{
				{[]string{"tcp", "198.18.0.9:4000", me + ":80"}, "untracked by rule default/web[2]"},
				{[]string{"tcp", "198.18.0.66:4000", me + ":80"}, "denied by rule default/web[0]"},
				{[]string{"udp", "198.18.0.9:123", me + ":4000"}, "untracked by rule default/web[3]"},
				{[]string{"tcp", "198.18.0.66:4000", me + ":22"}, "tracked by failsafe failsafe-inbound[0]"},
				{[]string{"tcp", "192.0.2.1:4000", me + ":80"}, "tracked by no-match"},
				{[]string{"icmp", "198.18.0.9", me, "8"}, "tracked by no-match"},
				{[]string{"proto", "47", "198.18.0.66", me}, "denied by rule default/web[0]"},
				{[]string{"--hex", ethernet + "0800" + "4400" + strings.Repeat("00", 30)}, "denied by malformed"},
				{[]string{"--hex", ethernet + "0800" + hex.EncodeToString(fragment)}, "tracked by fragment"},
				{[]string{"--hex", ethernet + "0806" + strings.Repeat("00", 28)}, "tracked by not-ip"},
				{[]string{"--interface", "eth1", "tcp", "198.18.0.9:4000", me + ":80"}, "tracked by no-policy"},
				{[]string{"--egress", "tcp", me + ":80", "198.18.0.9:4000"}, "untracked by rule default/web[0]"},
				{[]string{"--egress", "udp", me + ":4000", "198.18.0.9:123"}, "untracked by rule auto-return[0]"},
				{[]string{"--egress", "udp", me + ":4000", "198.18.0.9:53"}, "tracked by failsafe failsafe-outbound[0]"},
				{[]string{"--egress", "udp", me + ":4000", "198.18.0.9:54"}, "tracked by no-match"},
			} {
				x := n.explain(c.args...)
				if got := explainName(&x); got != c.want {
					t.Errorf("%q: %s, want %s", c.args, got, c.want)
				}
			}
			for _, r := range n.rules() {
				if r.Packets != 0 && r.Direction == policy.Ingress {
					t.Errorf("a counter moved: %+v", r)
				}
			}
			if p := n.packets("eth0"); p.Untracked+p.Denied+p.Malformed+p.Fragment != 0 {
				t.Errorf("counters moved: %+v", p)
			}
		})
	}
}

// The rest of an explanation: the way to the rule, the closest rule, what netfilter has a say in.
func TestExplainMore(t *testing.T) {
	n := newTraffic(t, lab.Config{})
	n.applyPolicy(explainPolicy, map[string]string{"node": "n1"})
	me := n.u.Node4.String()

	x := n.explain("tcp", "198.18.0.9:4000", me+":8080")
	if len(x.Via) != 1 || x.Via[0].Action != "Log" || x.Rule == nil || x.Rule.Origin != n.policyFile()+":18" {
		t.Errorf("by way of %+v to %+v", x.Via, x.Rule)
	}
	x = n.explain("tcp", "192.0.2.1:4000", me+":80")
	if x.Closest == nil || x.Closest.Name() != "default/web[2]" || fmt.Sprint(x.Closest.Misses) != "[source address 192.0.2.1 is not in 198.18.0.0/24]" {
		t.Errorf("closest %+v", x.Closest)
	}
	x = n.explain("tcp", "198.18.0.9:4000", "203.0.113.5:80")
	if len(x.Notes) != 1 || !strings.Contains(x.Notes[0], "203.0.113.5 is no address of this host") {
		t.Errorf("a forwarded packet: %+v", x)
	}
	x = n.explain("udp", "198.18.0.9:123", me+":4000")
	if len(x.Notes) != 1 || !strings.Contains(x.Notes[0], "only if a local socket waits") {
		t.Errorf("an answer: %+v", x)
	}

	out := must(n.lab.Untracked("explain", "tcp", "192.0.2.1:4000", me+":80"))(t)
	for _, want := range []string{"verdict", "tracked", "no rule matched", "closest", "default/web[2]: Allow tcp from 198.18.0.0/24 to ports 80,8080", "but source address 192.0.2.1 is not in 198.18.0.0/24"} {
		if !strings.Contains(string(out.Stdout), want) {
			t.Errorf("want %q in\n%s", want, out.Stdout)
		}
	}
}

// A capture is explained packet by packet.
func TestExplainCapture(t *testing.T) {
	if !confInstalled("tcpdump") {
		t.Skip("no tcpdump")
	}
	n := newTraffic(t, lab.Config{})
	must(lab.ServeTCP(n.Node, 80))(t)
	n.applyPolicy(explainPolicy, map[string]string{"node": "n1"})
	path := filepath.Join(n.lab.Dir, "capture.pcap")
	// On the client, before anything is denied; only what arrives at the node.
	dump := lab.Command(n.Client, "tcpdump", "-i", "eth0", "-U", "-w", path, "-Q", "out", "tcp port 80 or tcp port 81")
	var said bytes.Buffer
	dump.Stderr = &said
	check(t, dump.Start())
	defer dump.Wait()
	defer dump.Process.Kill()
	trafficUntil(t, "tcpdump listens", func() bool { _, err := os.Stat(path); return err == nil })
	n.wantTCP(n.Client, lab.Load{Target: netip.AddrPortFrom(n.u.Node4, 80), Sources: n.u.Client4[:1], Count: 3})
	must(lab.LoadTCP(n.Client, lab.Load{Target: netip.AddrPortFrom(n.u.Node4, 81), Sources: n.u.Client4[:1], Count: 1, Timeout: trafficShort}))(t)
	trafficUntil(t, "the capture has the last packet", func() bool {
		out := must(n.lab.Untracked("explain", "--pcap", path))(t)
		return strings.Contains(string(out.Stdout), ":81")
	})
	out := must(n.lab.Untracked("explain", "-o", "json", "--pcap", path))(t)
	verdicts := map[string]int{}
	for i, line := range bytes.Split(bytes.TrimSpace(out.Stdout), []byte("\n")) {
		var x struct {
			Packet int
			node.Explanation
		}
		if err := json.Unmarshal(line, &x); err != nil || x.Packet != i+1 {
			t.Fatalf("line %d: packet %d, %v\n%s", i+1, x.Packet, err, line)
		}
		verdicts[explainName(&x.Explanation)]++
	}
	if verdicts["untracked by rule default/web[2]"] < 9 || verdicts["tracked by no-match"] < 1 || len(verdicts) != 2 {
		t.Errorf("verdicts %v\n%s", verdicts, said.String())
	}
}

// What cannot be explained says so.
func TestExplainRefuses(t *testing.T) {
	n := newTraffic(t, lab.Config{Uplinks: 2})
	refused := func(code int, want string, args ...string) {
		t.Helper()
		out := must(n.lab.Untracked(append([]string{"explain"}, args...)...))(t)
		if out.ExitCode != code || !strings.Contains(string(out.Stderr), want) || len(out.Stdout) > 0 {
			t.Errorf("%q: exit code %d, want %d and %q:\n%s%s", args, out.ExitCode, code, want, out.Stdout, out.Stderr)
		}
	}
	packet := []string{"tcp", "192.0.2.1:1", "192.0.2.2:2"}
	refused(1, "no policy has been applied", packet...)
	n.apply(map[string]string{"ports": "tcp/80", "interfaces": "eth*"})
	refused(2, "the policy covers eth0, eth1: want one of them with --interface", packet...)
	refused(1, "interface eth7: ", append(packet, "-i", "eth7")...)
	refused(2, "want one packet", "-i", "eth0")
	refused(2, "want one packet", append(packet, "-i", "eth0", "--hex", "00")...)
	refused(2, "no such file", "-i", "eth0", "--pcap", "/nonexistent")
	refused(2, "70000", "-i", "eth0", "tcp", "192.0.2.1:1", "192.0.2.2:70000")

	check(t, lab.Command(n.Node, "nft", "insert", "rule", "inet", "untracked", "output", "drop").Run())
	refused(1, "was changed", append(packet, "-i", "eth0", "--egress")...)
	check(t, lab.Command(n.Node, "nft", "delete", "table", "inet", "untracked").Run())
	refused(1, "is missing", append(packet, "-i", "eth0", "--egress")...)
}
