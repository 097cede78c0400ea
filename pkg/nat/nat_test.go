// SPDX-License-Identifier: Apache-2.0

package nat

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/untracked-cni/untracked/pkg/policy"
)

func port(protocol uint8, first, last uint16) policy.Port {
	return policy.Port{Protocol: protocol, Range: policy.PortRange{First: first, Last: last}}
}

func TestWords(t *testing.T) {
	for _, test := range []struct {
		translation Translation
		want        string
	}{
		{
			Translation{Table: "ip nat", Chain: "KUBE-SEP-SXIVWICOYRO3J4NJ", Comment: "default/redis:6379"},
			"Service default/redis:6379 (table ip nat, chain KUBE-SEP-SXIVWICOYRO3J4NJ)",
		},
		{
			Translation{Table: "ip kube-proxy", Chain: "service-ULMVA6XW-ns1/svc1/tcp/p80"},
			"Service ns1/svc1:p80 (table ip kube-proxy, chain service-ULMVA6XW-ns1/svc1/tcp/p80)",
		},
		{
			Translation{Table: "ip kube-proxy", Chain: "endpoint-GTK6MW7G-ns5/svc5/tcp/__10.180.0.3/80"},
			"Service ns5/svc5 (table ip kube-proxy, chain endpoint-GTK6MW7G-ns5/svc5/tcp/__10.180.0.3/80)",
		},
		{
			Translation{Table: "ip6 kube-proxy", Chain: "service-ULMVA6XW-a-long-namespace/a-long-na..."},
			"Service a-long-namespace/a-long-na... (table ip6 kube-proxy, chain service-ULMVA6XW-a-long-namespace/a-long-na...)",
		},
		{
			Translation{Table: "ip kube-proxy", Chain: "services", From: 80},
			"a nat rule for port 80 (table ip kube-proxy, chain services)",
		},
		{Translation{Table: "ip nat", Chain: "CNI-DN-0123", From: 8080}, "hostPort 8080 (table ip nat, chain CNI-DN-0123)"},
		{Translation{Table: "ip cni_hostport", Chain: "hostports", From: 8080}, "hostPort 8080 (table ip cni_hostport, chain hostports)"},
		{Translation{Table: "ip nat", Chain: "KUBE-HP-X"}, "a hostPort (table ip nat, chain KUBE-HP-X)"},
		{Translation{Table: "ip nat", Chain: "DOCKER", From: 80}, "a nat rule for port 80 (table ip nat, chain DOCKER)"},
		{Translation{Table: "inet mine", Chain: "pre"}, "a nat rule (table inet mine, chain pre)"},
	} {
		if got := test.translation.String(); got != test.want {
			t.Errorf("%+v is %q, want %q", test.translation, got, test.want)
		}
	}
}

func TestTo(t *testing.T) {
	rules := []Translation{
		{Chain: "udp", Protocol: policy.UDP, Ports: policy.PortRange{First: 53, Last: 53}, From: 3},
		{Chain: "some", Protocol: policy.TCP, Ports: policy.PortRange{First: 6379, Last: 6380}, From: 2},
		{Chain: "some", Protocol: policy.TCP, Ports: policy.PortRange{First: 6379, Last: 6379}, From: 2},
		{Chain: "all", Ports: everyPort, From: 1},
	}
	for _, test := range []struct {
		port policy.Port
		want []string
	}{
		{port(policy.TCP, 6379, 6379), []string{"all", "some"}},
		{port(policy.TCP, 6380, 7000), []string{"all", "some"}},
		{port(policy.TCP, 1, 6378), []string{"all"}},
		{port(policy.TCP, 6381, 65535), []string{"all"}},
		{port(policy.UDP, 53, 53), []string{"all", "udp"}},
	} {
		var got []string
		for _, r := range To(test.port, rules) {
			got = append(got, r.Chain)
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("to %v (-want +got):\n%s", test.port, diff)
		}
	}
}

func TestWanted(t *testing.T) {
	addr := netip.MustParseAddr
	w := newWanted([]netip.Addr{addr("10.0.0.9"), addr("fd00::1"), addr("10.0.0.1"), addr("::ffff:10.0.0.5"), addr("10.0.0.1")})
	for _, test := range []struct {
		first, last string
		want        int
	}{
		{"10.0.0.1", "10.0.0.1", 1},
		{"10.0.0.2", "10.0.0.2", 0},
		{"10.0.0.2", "10.0.0.9", 2},
		{"10.0.0.1", "10.0.0.8", 2},
		{"0.0.0.0", "255.255.255.255", 3},
		{"::", "fd00::2", 1},
		{"fd00::2", "fd00::1", 0},
	} {
		if got := w.within(addr(test.first), addr(test.last)); len(got) != test.want {
			t.Errorf("%s to %s has %v, want %d", test.first, test.last, got, test.want)
		}
	}
}

func TestPortMappings(t *testing.T) {
	for name, test := range map[string]struct {
		runtimeConfig string
		want          []string
	}{
		"none":      {``, nil},
		"null":      {`null`, nil},
		"others'":   {`{"io.kubernetes.cri.pod-annotations": {"a": "b"}}`, nil},
		"two":       {`{"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}, {"hostPort": 53, "containerPort": 80, "protocol": "UDP"}]}`, []string{"hostPort 8080"}},
		"address":   {`{"portMappings": [{"hostPort": 8080, "containerPort": 80, "hostIP": "192.0.2.1"}]}`, []string{"hostPort 8080 of 192.0.2.1"}},
		"no port":   {`{"portMappings": [{"containerPort": 80, "protocol": "tcp"}]}`, nil},
		"icmp":      {`{"portMappings": [{"hostPort": 1, "containerPort": 80, "protocol": "icmp"}]}`, nil},
		"elsewhere": {`{"portMappings": [{"hostPort": 80, "containerPort": 8080, "protocol": "tcp"}]}`, nil},
	} {
		t.Run(name, func(t *testing.T) {
			mappings, err := PortMappings([]byte(test.runtimeConfig))
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, m := range mappings {
				if m.LeadsTo(port(policy.TCP, 79, 80)) {
					got = append(got, m.String())
				}
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("to tcp/79-80 (-want +got):\n%s", diff)
			}
		})
	}
	if m, err := PortMappings([]byte(`{"portMappings": [{"hostPort": 70000}]}`)); err == nil {
		t.Errorf("port 70000 gave %v, want an error", m)
	}
}
