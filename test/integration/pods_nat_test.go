// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"strings"
	"testing"

	"github.com/untracked-cni/untracked/pkg/config"
	"github.com/untracked-cni/untracked/pkg/node"
)

// A port of a pod that others reach by translation is named: by ADD where it can be known then, and by status.
func TestPodsTranslated(t *testing.T) {
	n := newPods(t)
	ns := n.sandbox("pod")
	asks := map[string]string{"ports": "tcp/6379,udp/53"}
	const advice = "an untracked packet is never translated"
	quiet := func(what, text string) {
		t.Helper()
		if strings.Contains(text, advice) {
			t.Errorf("%s warns of a translation that there is not: %s", what, text)
		}
	}
	named := func(what, text string, want ...string) {
		t.Helper()
		for _, w := range append(want, advice) {
			if !strings.Contains(text, w) {
				t.Errorf("%s: %s\nwant %q", what, text, w)
			}
		}
	}
	translated := func() string {
		var all []string
		s, _ := n.status()
		for _, p := range s.Problems {
			if p.Code == node.ProblemTranslated {
				all = append(all, p.Message+" ("+p.Remedy+")")
			}
		}
		return strings.Join(all, "\n")
	}

	c := podsCall{Container: "aaa", Netns: ns.Path, Addresses: []string{"10.88.0.5/16"}, Asks: asks}
	quiet("ADD", string(n.wantCall("ADD", c).Stderr))
	quiet("status", translated())

	// A hostPort to the port, and one to another.
	runtime := map[string]any{config.PodCapability: map[string]string{config.Prefix + "ports": "tcp/6379"}}
	hostPorts := func(ports ...map[string]any) map[string]any {
		runtime["portMappings"] = ports
		return map[string]any{"runtimeConfig": runtime}
	}
	c.More = hostPorts(map[string]any{"hostPort": 8080, "containerPort": 6380, "protocol": "tcp"})
	quiet("ADD", string(n.wantCall("ADD", c).Stderr))
	c.More = hostPorts(map[string]any{"hostPort": 8080, "containerPort": 6379, "protocol": "tcp"})
	named("ADD with a hostPort", string(n.wantCall("ADD", c).Stderr), "pod ns/aaa", "tcp/6379", "hostPort 8080", "take the port out of")

	// A Service, as kube-proxy writes it in its nftables mode.
	nftCommand(t, n.lab.Node, "add table ip kube-proxy")
	nftCommand(t, n.lab.Node, "add chain ip kube-proxy nat { type nat hook prerouting priority dstnat ; }")
	const chain = "endpoint-5OJB2KTY-default/redis/tcp/p6379__10.88.0.5/6379"
	nftCommand(t, n.lab.Node, "add chain ip kube-proxy "+chain)
	nftCommand(t, n.lab.Node, "add rule ip kube-proxy "+chain+" meta l4proto tcp dnat to 10.88.0.5:6379")
	named("status with a Service", translated(), "pod ns/aaa", "tcp/6379 of 10.88.0.5", "Service default/redis:p6379", "table ip kube-proxy")
	c.More = nil
	named("ADD with a Service", string(n.wantCall("ADD", c).Stderr), "tcp/6379 of 10.88.0.5", "Service default/redis:p6379")
	if strings.Contains(translated(), "udp/53") {
		t.Errorf("status names a port that nothing leads to: %s", translated())
	}
}
