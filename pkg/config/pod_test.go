// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/untracked-cni/untracked/pkg/netset"
	"github.com/untracked-cni/untracked/pkg/policy"
)

func podConfig(annotations map[string]string) *Config {
	return &Config{PodAnnotations: annotations, FailsafeInbound: mustFailsafes("tcp:22,udp:10.0.0.0/8:68")}
}

// manySources are n addresses of which no two make a larger network.
func manySources(n int) string {
	var out []string
	for i := range n {
		out = append(out, fmt.Sprintf("10.0.0.%d", 2*i))
	}
	return strings.Join(out, ",")
}

func TestPodRequest(t *testing.T) {
	for _, test := range []struct {
		annotations map[string]string
		want        PodRequest
	}{
		{nil, PodRequest{}},
		{map[string]string{podPortsKey: " udp/53, tcp/6379,tcp/6379 ,tcp/6378"}, PodRequest{Ports: []policy.Port{
			{Protocol: policy.TCP, Range: policy.PortRange{First: 6378, Last: 6379}},
			{Protocol: policy.UDP, Range: policy.PortRange{First: 53, Last: 53}},
		}}},
		{map[string]string{podPortsKey: "sctp/1-1000", podSourcesKey: "10.0.0.0/8"}, PodRequest{
			Ports:   []policy.Port{{Protocol: policy.SCTP, Range: policy.PortRange{First: 1, Last: 1000}}},
			Sources: netset.Of(netip.MustParsePrefix("10.0.0.0/8")),
		}},
		// A failsafe port of another protocol is none.
		{map[string]string{podPortsKey: "udp/22"}, PodRequest{Ports: []policy.Port{
			{Protocol: policy.UDP, Range: policy.PortRange{First: 22, Last: 22}},
		}}},
	} {
		got, err := podConfig(test.annotations).PodRequest("ns/pod")
		if diff := cmp.Diff(test.want, got, opts); err != nil || diff != "" {
			t.Errorf("%v: %v (-want +got):\n%s", test.annotations, err, diff)
		}
	}
}

func TestPodRequestErrors(t *testing.T) {
	for _, test := range []struct {
		key, value, more string
		want             string
	}{
		{podPortsKey, "", "", `"": empty; want ports`},
		{podPortsKey, "tcp/1,,udp/2", "", "item 2 is empty"},
		{podPortsKey, "tcp/99999", "", `"tcp/99999": port "99999" is not a number from 1 to 65535`},
		{podPortsKey, "tcp/1000-1999,udp/1", "", "1001 port numbers; want at most 1000"},
		{podPortsKey, "tcp/1-65535,udp/1-65535,sctp/1-65535,udplite/1-65535", "", "262140 port numbers"},
		{podPortsKey, "tcp/20-30", "", "tcp/22 is a failsafe port of this node"},
		{podPortsKey, "udp/68", "", "udp/68 is a failsafe port of this node"}, // for whatever network
		{podSourcesKey, "10.0.0.0/8", "", "does nothing without untracked.cni/ports"},
		{podSourcesKey, "10.0.0.0/40", "tcp/1", `"10.0.0.0/40"`},
		{podSourcesKey, "", "tcp/1", "empty"},
		{podSourcesKey, manySources(101), "tcp/1", "101 networks; want at most 100"},
		{Prefix + "port", "tcp/1", "tcp/1", "unknown key; want untracked.cni/ports or untracked.cni/sources"},
		{Prefix + "deny", "0.0.0.0/0", "", "unknown key"},
	} {
		annotations := map[string]string{test.key: test.value}
		if test.more != "" {
			annotations[podPortsKey] = test.more
		}
		got, err := podConfig(annotations).PodRequest("ns/pod")
		if err == nil || !errors.As(err, new(*Error)) {
			t.Errorf("%v: %v, accepted: %+v", annotations, err, got)
			continue
		}
		if text := err.Error(); !strings.HasPrefix(text, "annotation "+test.key+" of pod ns/pod: ") || !strings.Contains(text, test.want) {
			t.Errorf("%v: %s: want %q", annotations, text, test.want)
		}
	}
	_, err := podConfig(map[string]string{podPortsKey: "x", Prefix + "y": "z"}).PodRequest("ns/pod")
	if lines := strings.Split(err.Error(), "\n"); len(lines) != 2 {
		t.Errorf("want all that is wrong: %v", err)
	}
}

func TestWithoutFailsafes(t *testing.T) {
	port := func(protocol uint8, first, last uint16) policy.Port {
		return policy.Port{Protocol: protocol, Range: policy.PortRange{First: first, Last: last}}
	}
	ports := []policy.Port{port(policy.TCP, 20, 24), port(policy.TCP, 68, 68), port(policy.UDP, 66, 68), port(policy.UDP, 70, 70)}
	want := []policy.Port{port(policy.TCP, 20, 21), port(policy.TCP, 23, 24), port(policy.TCP, 68, 68), port(policy.UDP, 66, 67), port(policy.UDP, 70, 70)}
	if diff := cmp.Diff(want, WithoutFailsafes(ports, mustFailsafes("tcp:22,udp:10.0.0.0/8:68,udp:69"))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	all := []policy.Port{port(policy.TCP, 65534, 65535)}
	if got := WithoutFailsafes(all, mustFailsafes("tcp:65534,tcp:65535")); len(got) != 0 {
		t.Errorf("%v is left", got)
	}
}
