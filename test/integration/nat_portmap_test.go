// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"

	"github.com/untracked-cni/untracked/pkg/nat"
	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/test/lab"
)

// TestNATPortmap has the real portmap plugin give a pod host ports, by each of its backends, and expects to read them in
// its rules, for both families and until the pod is gone. What the runtime says in portMappings is the same.
func TestNATPortmap(t *testing.T) {
	for backend, tools := range map[string][]string{"iptables": {"iptables", "ip6tables"}, "nftables": {"nft"}} {
		t.Run(backend, func(t *testing.T) {
			for _, tool := range tools {
				if _, err := exec.LookPath(tool); err != nil {
					t.Skipf("needs the %s command", tool)
				}
			}
			l := lab.New(t, lab.Config{})
			must(lab.Build("portmap"))(t)
			runtimeConfig := map[string]any{"portMappings": []map[string]any{
				{"hostPort": 8080, "containerPort": 6379, "protocol": "tcp"},
				{"hostPort": 53, "containerPort": 5353, "protocol": "udp"},
				{"hostPort": 8081, "containerPort": 6380, "protocol": "tcp", "hostIP": "192.0.2.1"},
			}}
			chain := must(l.Chain(lab.ChainConfig{CapArgs: runtimeConfig}))(t)
			if err := chain.WriteFile(natConflist(l, chain.Network, backend)); err != nil {
				t.Fatal(err)
			}
			pod := must(l.AddNS("pod"))(t)
			var result struct {
				IPs []struct{ Address types.IPNet }
			}
			if err := json.Unmarshal(must(chain.Add(pod))(t).Stdout, &result); err != nil || len(result.IPs) != 2 {
				t.Fatalf("ADD gave %+v (%v), want two addresses", result, err)
			}
			var addresses []netip.Addr
			for _, ip := range result.IPs {
				a, _ := netip.AddrFromSlice(ip.Address.IP)
				addresses = append(addresses, a.Unmap())
			}
			want := map[string][]string{
				"4 tcp/6379": {"hostPort 8080"}, "4 udp/5353": {"hostPort 53"}, "4 tcp/6380": {"hostPort 8081"},
				"6 tcp/6379": {"hostPort 8080"}, "6 udp/5353": {"hostPort 53"},
			}
			if diff := cmp.Diff(want, natPurposes(t, l, addresses)); diff != "" {
				t.Errorf("host ports by %s (-want +got):\n%s", backend, diff)
			}
			if _, err := chain.Del(pod); err != nil {
				t.Fatal(err)
			}
			if got := natPurposes(t, l, addresses); len(got) > 0 {
				t.Errorf("host ports after DEL: %v", got)
			}
		})
	}
}

// natPurposes is what each of some ports of the pod is reached by, without the place of the rule.
func natPurposes(t *testing.T, l *lab.Lab, addresses []netip.Addr) map[string][]string {
	t.Helper()
	var found map[netip.Addr][]nat.Translation
	if err := lab.In(l.Node, func() (err error) {
		found, err = nat.Read(context.Background(), addresses)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	ports := must(policy.ParsePorts("tcp/6379,udp/6379,tcp/5353,udp/5353,tcp/6380,udp/53,tcp/8080"))(t)
	out := map[string][]string{}
	for a, translations := range found {
		family := map[bool]string{true: "4", false: "6"}[a.Is4()]
		for _, p := range ports {
			key := fmt.Sprintf("%s %s/%s", family, policy.ProtocolName(p.Protocol), p.Range)
			for _, translation := range nat.To(p, translations) {
				purpose, _, _ := strings.Cut(translation.String(), " (")
				out[key] = append(out[key], purpose)
			}
		}
	}
	return out
}

func natConflist(l *lab.Lab, network, backend string) []byte {
	return fmt.Appendf(nil, `{
  "cniVersion": "1.0.0",
  "name": %q,
  "plugins": [
    {
      "type": "bridge", "bridge": "cni0", "isGateway": true,
      "ipam": { "type": "host-local", "dataDir": %q, "ranges": [[{"subnet": "10.88.0.0/16"}], [{"subnet": "fd00:88::/64"}]] }
    },
    { "type": "portmap", "backend": %q, "capabilities": { "portMappings": true } }
  ]
}`, network, filepath.Join(l.Dir, "ipam"), backend)
}
