// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/untracked-cni/untracked/pkg/datapath"
	"github.com/untracked-cni/untracked/pkg/node"
	"github.com/untracked-cni/untracked/pkg/policy"
)

// measured has something of everything.
func measured() *node.Measurement {
	rule := func(d policy.Direction, name string, index int, a policy.Action, packets uint64) node.RuleTraffic {
		return node.RuleTraffic{Interface: "eth0", Direction: d, Tier: "t", Policy: name, Index: index, Action: a, Packets: packets, Bytes: 100 * packets}
	}
	at := time.Unix(1_700_000_000, 250e6)
	return &node.Measurement{
		Status: &node.Status{
			Policy:     node.PolicyStatus{Hash: "30bd", Generation: 7, Rules: 5, Network: "mynet"},
			Interfaces: []node.InterfaceStatus{{Name: "eth0", Mode: "native", Attached: true}, {Name: "eth1"}},
			Pods:       node.PodsStatus{Count: 50, Ports: 60},
			Conntrack:  node.Conntrack{Entries: 30, Max: 40},
			Problems:   []node.ProblemStatus{{Code: node.ProblemBridge}, {Code: "brand-new"}, {Code: "brand-new"}},
		},
		Applies: &node.Applies{Total: 3, Failures: 1, Seconds: 1.5, Last: at, LastSeconds: 0.5, LastFailed: true, LastSuccess: at.Add(-time.Minute)},
		Traffic: []node.Traffic{{Interface: "eth0", Counts: datapath.Counts{
			Untracked: datapath.Counter{Packets: 1, Bytes: 10}, Denied: datapath.Counter{Packets: 2, Bytes: 20}, Tracked: datapath.Counter{Packets: 3, Bytes: 30},
			Failsafe: datapath.Counter{Packets: 4, Bytes: 40}, Malformed: datapath.Counter{Packets: 5}, Fragment: datapath.Counter{Packets: 6, Bytes: 60}, NoMetadata: 7,
		}}},
		Rules: []node.RuleTraffic{
			rule(policy.Ingress, "a", 0, policy.Deny, 0), rule(policy.Ingress, "a", 1, policy.Allow, 2), rule(policy.Ingress, "a", 1, policy.Allow, 3),
			rule(policy.Egress, "a", 0, policy.Failsafe, 4), rule(policy.Egress, "a", 1, policy.Allow, 5),
		},
		Errors: map[node.MeasuredPart][]error{node.MeasuredIngress: {errors.New("a"), errors.New("b")}},
	}
}

const families = `untracked_build_info{goversion="go",version="v1"} 1
untracked_policy_in_force 1
untracked_policy_generation 7
untracked_policy_rules 5
untracked_policy_info{hash="30bd",network="mynet"} 1
untracked_apply_duration_seconds_sum 1.5
untracked_apply_duration_seconds_count 3
untracked_apply_failures_total 1
untracked_last_apply_duration_seconds 0.5
untracked_last_apply_success 0
untracked_last_apply_timestamp_seconds 1700000000.25
untracked_last_successful_apply_timestamp_seconds 1699999940.25
untracked_interface_attached{interface="eth0",mode="native"} 1
untracked_interface_attached{interface="eth1",mode="none"} 0
untracked_interface_packets_total{interface="eth0",direction="ingress",verdict="untracked"} 1
untracked_interface_packets_total{interface="eth0",direction="ingress",verdict="denied"} 2
untracked_interface_packets_total{interface="eth0",direction="ingress",verdict="tracked"} 3
untracked_interface_packets_total{interface="eth0",direction="ingress",verdict="failsafe"} 4
untracked_interface_packets_total{interface="eth0",direction="ingress",verdict="malformed"} 5
untracked_interface_packets_total{interface="eth0",direction="ingress",verdict="fragment"} 6
untracked_interface_bytes_total{interface="eth0",direction="ingress",verdict="untracked"} 10
untracked_interface_bytes_total{interface="eth0",direction="ingress",verdict="denied"} 20
untracked_interface_bytes_total{interface="eth0",direction="ingress",verdict="tracked"} 30
untracked_interface_bytes_total{interface="eth0",direction="ingress",verdict="failsafe"} 40
untracked_interface_bytes_total{interface="eth0",direction="ingress",verdict="malformed"} 0
untracked_interface_bytes_total{interface="eth0",direction="ingress",verdict="fragment"} 60
untracked_interface_handover_failures_total{interface="eth0"} 7
untracked_rule_packets_total{interface="eth0",direction="ingress",tier="t",policy="a",index="0",action="Deny"} 0
untracked_rule_packets_total{interface="eth0",direction="ingress",tier="t",policy="a",index="1",action="Allow"} 5
untracked_rule_packets_total{interface="eth0",direction="egress",tier="t",policy="a",index="0",action="Failsafe"} 4
untracked_rule_packets_total{interface="eth0",direction="egress",tier="t",policy="a",index="1",action="Allow"} 5
untracked_rule_bytes_total{interface="eth0",direction="ingress",tier="t",policy="a",index="0",action="Deny"} 0
untracked_rule_bytes_total{interface="eth0",direction="ingress",tier="t",policy="a",index="1",action="Allow"} 500
untracked_rule_bytes_total{interface="eth0",direction="egress",tier="t",policy="a",index="0",action="Failsafe"} 400
untracked_rule_bytes_total{interface="eth0",direction="egress",tier="t",policy="a",index="1",action="Allow"} 500
untracked_rules_omitted 0
untracked_pods 50
untracked_pod_ports 60
untracked_conntrack_entries 30
untracked_conntrack_limit 40
untracked_problem{code="bridge"} 1
untracked_problem{code="brand-new"} 1
untracked_scrape_errors{part="status"} 0
untracked_scrape_errors{part="applies"} 0
untracked_scrape_errors{part="ingress"} 2
untracked_scrape_errors{part="egress"} 0
untracked_scrape_errors{part="rules"} 0
untracked_scrape_duration_seconds 0.125
`

func TestFamilies(t *testing.T) {
	got := Families(measured(), Options{Version: "v1", MaxRules: 4, Took: 125 * time.Millisecond})
	lint(t, got)
	var lines []string
	for _, format := range []Format{OpenMetrics, Text} {
		var out strings.Builder
		if err := Write(&out, format, got); err != nil {
			t.Fatal(err)
		}
		if series := parse(t, format, out.String()); series["untracked_policy_generation"] != 7 {
			t.Errorf("%s: Prometheus reads %v", format, series)
		}
		lines = strings.Split(out.String(), "\n")
	}
	var kept strings.Builder
	for _, line := range lines {
		switch {
		case strings.HasPrefix(line, "untracked_build_info{"):
			kept.WriteString("untracked_build_info{goversion=\"go\",version=\"v1\"} 1\n")
		case strings.HasPrefix(line, "#"), line == "", strings.HasPrefix(line, "untracked_problem{") && strings.HasSuffix(line, " 0"):
		default:
			kept.WriteString(line + "\n")
		}
	}
	if diff := cmp.Diff(families, kept.String()); diff != "" {
		t.Errorf("series (-want +got):\n%s", diff)
	}
}

// What could not be read has no samples, and no value that would be taken for a new beginning; but every family is there.
func TestFamiliesOfNothing(t *testing.T) {
	m := &node.Measurement{Errors: map[node.MeasuredPart][]error{node.MeasuredStatus: {errors.New("x")}, node.MeasuredApplies: {errors.New("x")}}}
	got := Families(m, Options{Version: "v1", MaxRules: 4})
	lint(t, got)
	all := Families(measured(), Options{})
	var with []string
	for i, f := range got {
		if f.Name != all[i].Name {
			t.Errorf("family %s, want %s", f.Name, all[i].Name)
		}
		if len(f.Samples) > 0 {
			with = append(with, strings.TrimPrefix(f.Name, prefix))
		}
	}
	if want := []string{"build_info", "rules_omitted", "scrape_errors", "scrape_duration_seconds"}; !cmp.Equal(with, want) {
		t.Errorf("families with samples %q, want %q", with, want)
	}
	// No conntrack in the kernel, and nothing applied.
	got = Families(&node.Measurement{Status: &node.Status{}, Applies: &node.Applies{}}, Options{})
	for _, f := range got {
		switch f.Name {
		case prefix + "conntrack_entries", prefix + "conntrack_limit", prefix + "policy_info", prefix + "last_apply_success", prefix + "last_successful_apply_timestamp_seconds":
			if len(f.Samples) > 0 {
				t.Errorf("%s has samples %v", f.Name, f.Samples)
			}
		case prefix + "policy_generation", prefix + "apply_failures":
			if len(f.Samples) != 1 || f.Samples[0].Value != 0 {
				t.Errorf("%s has samples %v, want one zero", f.Name, f.Samples)
			}
		}
	}
}

func TestMaxRules(t *testing.T) {
	for _, c := range []struct {
		most    int
		omitted float64
		first   string
		rules   int
	}{
		{5, 0, "0", 4}, {4, 0, "0", 4},
		{3, 1, "1", 3}, // the one that never matched
		{1, 3, "1", 1}, {0, 4, "", 0},
	} {
		for _, f := range Families(measured(), Options{MaxRules: c.most}) {
			switch f.Name {
			case prefix + "rules_omitted":
				if f.Samples[0].Value != c.omitted {
					t.Errorf("at most %d: %v omitted, want %v", c.most, f.Samples[0].Value, c.omitted)
				}
			case prefix + "rule_packets", prefix + "rule_bytes":
				if len(f.Samples) != c.rules {
					t.Errorf("at most %d: %d samples of %s, want %d", c.most, len(f.Samples), f.Name, c.rules)
				} else if c.rules > 0 && f.Samples[0].Labels[4] != (Label{"index", c.first}) {
					t.Errorf("at most %d: the first is %v, want index %s", c.most, f.Samples[0].Labels, c.first)
				}
			}
		}
	}
}
