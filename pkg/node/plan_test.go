// SPDX-License-Identifier: Apache-2.0

package node

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/untracked-cni/untracked/pkg/config"
	"github.com/untracked-cni/untracked/pkg/datapath"
	"github.com/untracked-cni/untracked/pkg/hostif"
	"github.com/untracked-cni/untracked/pkg/policy"
)

func parse(t *testing.T, annotations map[string]string) *config.Config {
	t.Helper()
	full := map[string]string{}
	for k, v := range annotations {
		full[config.Prefix+k] = v
	}
	entry, err := json.Marshal(map[string]any{"name": "net", "type": "untracked", "annotations": full})
	if err != nil {
		t.Fatal(err)
	}
	c, err := config.Parse(entry)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func desired(t *testing.T, c *config.Config) *Desired {
	t.Helper()
	d, err := Read(c)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// advice is what the plan of a node with eth0 has to say.
func advice(t *testing.T, c *config.Config) []Problem {
	t.Helper()
	p, err := MakePlan(desired(t, c), []Observed{observed("eth0", 2, func(o *Observed) {
		o.SelectedBy = append(o.SelectedBy, hostif.Selector{Kind: hostif.ByName, Pattern: "eth0"})
	})}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return p.Problems
}

func observed(name string, index int, change func(*Observed)) Observed {
	o := Observed{Interface: hostif.Interface{Name: name, Index: index, MTU: 1500, Driver: "virtio_net", LinkType: "ether"}}
	o.SelectedBy = []hostif.Selector{{Kind: hostif.ByDefaultRoute}}
	if change != nil {
		change(&o)
	}
	return o
}

func TestPlanModes(t *testing.T) {
	native, generic, tc := datapath.Native, datapath.Generic, datapath.Classifier
	foreign := func(o *Observed) {
		o.XDP = hostif.XDPState{Attached: true, ProgID: 77, Mode: hostif.XDPNative}
		o.XDPName = "77 (cil_xdp_entry)"
	}
	for _, c := range []struct {
		name, mode string
		change     func(*Observed)
		want       []datapath.Mode
		problem    string
		broken     bool
	}{
		{"auto", "auto", nil, []datapath.Mode{native, tc}, "", false},
		{"native", "native", nil, []datapath.Mode{native}, "", false},
		{"generic", "generic", nil, []datapath.Mode{generic}, "", false},
		{"tc", "tc", nil, []datapath.Mode{tc}, "", false},
		{"our own program", "auto", func(o *Observed) { foreign(o); o.OwnXDP = 77 }, []datapath.Mode{native, tc}, "", false},
		{"a foreign program", "auto", foreign, []datapath.Mode{tc}, ProblemForeignXDP, false},
		{"a foreign program, native wanted", "native", foreign, []datapath.Mode{native}, "", false},
		{"a foreign program does not matter in tc", "tc", foreign, []datapath.Mode{tc}, "", false},
		{"a tunnel", "auto", func(o *Observed) { o.Layer3, o.LinkType = true, "none" }, []datapath.Mode{tc}, "", false},
		{"a driver known for no metadata", "auto", func(o *Observed) { o.Driver = "ena" }, []datapath.Mode{tc}, ProblemNoMetadata, false},
		{"a driver seen to refuse metadata", "auto", func(o *Observed) { o.LacksMetadata = true }, []datapath.Mode{tc}, ProblemNoMetadata, false},
		{"the same, native wanted", "native", func(o *Observed) { o.LacksMetadata = true }, []datapath.Mode{native}, ProblemNoMetadata, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			conf := parse(t, map[string]string{"ports": "tcp/6379", "mode": c.mode})
			p, err := MakePlan(desired(t, conf), []Observed{observed("eth0", 2, c.change)}, []int{2, 9})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, p.Interfaces[0].Modes); diff != "" {
				t.Errorf("modes: -want +got\n%s", diff)
			}
			if diff := cmp.Diff([]int{9}, p.Leave); diff != "" {
				t.Errorf("leave: -want +got\n%s", diff)
			}
			switch {
			case c.problem == "" && len(p.Problems) > 0:
				t.Errorf("unexpected problems: %v", p.Problems)
			case c.problem != "" && (len(p.Problems) != 1 || p.Problems[0].Code != c.problem || p.Problems[0].Broken != c.broken):
				t.Errorf("problems %+v, want one %s, broken %v", p.Problems, c.problem, c.broken)
			}
		})
	}
}

func TestPlanNoInterface(t *testing.T) {
	conf := parse(t, map[string]string{"ports": "tcp/6379"})
	p, err := MakePlan(desired(t, conf), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Problems) != 1 || p.Problems[0].Code != ProblemNoInterface || !p.Problems[0].Broken {
		t.Errorf("problems %+v", p.Problems)
	}
}

func TestFailsafeProblem(t *testing.T) {
	conf := parse(t, map[string]string{"ports": "tcp/20-30", "remote-ports": "udp/53"})
	var got []string
	for _, p := range advice(t, conf) {
		got = append(got, p.Message)
	}
	if len(got) != 2 || !strings.Contains(got[0], "tcp/20-30 stays tracked at 22") || !strings.Contains(got[1], "udp/53 stays tracked at 53") {
		t.Errorf("got %q", got)
	}
	conf = parse(t, map[string]string{"remote-ports": "udp/53", "failsafe-outbound": "none"})
	if p := advice(t, conf); len(p) > 0 {
		t.Errorf("got %v", p)
	}
}

func TestAdvice(t *testing.T) {
	codes := func(problems []Problem) (out []string) {
		for _, p := range problems {
			if p.Broken {
				t.Errorf("%s is more than advice", p.Code)
			}
			out = append(out, p.Code)
		}
		return out
	}
	if diff := cmp.Diff([]string{ProblemEmptyPolicy}, codes(advice(t, parse(t, nil)))); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

func TestPlanBridge(t *testing.T) {
	conf := parse(t, map[string]string{"ports": "tcp/6379"})
	bridge := func(nf bool) Observed {
		return observed("br0", 3, func(o *Observed) { o.Kind, o.BridgeNetfilter = "bridge", nf })
	}
	port := observed("eth0", 2, func(o *Observed) { o.Master = hostif.Master{Name: "br0", Index: 3} })
	for _, c := range []struct {
		name     string
		observed []Observed
		alone    bool
	}{
		{"with br_netfilter, alone", []Observed{bridge(true)}, true},
		{"with its port", []Observed{bridge(true), port}, false},
		{"without br_netfilter", []Observed{bridge(false)}, false},
	} {
		p, err := MakePlan(desired(t, conf), c.observed, []int{3})
		if err != nil {
			t.Fatal(err)
		}
		skipped := len(p.Interfaces[0].Modes) == 0
		reported := len(p.Problems) == 1 && p.Problems[0].Code == ProblemBridge && p.Problems[0].Broken
		if skipped != c.alone || reported != c.alone || (len(p.Leave) == 1) != c.alone {
			t.Errorf("%s: skipped %v, leave %v, problems %v", c.name, skipped, p.Leave, p.Problems)
		}
	}
}

func TestConfigHash(t *testing.T) {
	base := configHash(parse(t, map[string]string{"ports": "tcp/6379"}))
	for key, value := range map[string]string{"log-level": "debug", "required": "true", "bpffs": "/x", "run-dir": "/y", "log-file": "/z"} {
		if configHash(parse(t, map[string]string{"ports": "tcp/6379", key: value})) != base {
			t.Errorf("%s makes another policy", key)
		}
	}
	for key, value := range map[string]string{"mark": "0x2000", "mode": "tc", "deny": "10.0.0.1", "interfaces": "eth0"} {
		if configHash(parse(t, map[string]string{"ports": "tcp/6379", key: value})) == base {
			t.Errorf("%s makes no other policy", key)
		}
	}
}

func TestOrderAndFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "deny.txt")
	if err := os.WriteFile(path, []byte("203.0.113.0/24\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	conf := parse(t, map[string]string{
		"deny": "192.0.2.66", "deny-files": path, "ports": "tcp/6379", "remote-ports": "udp/123", "failsafe-inbound": "tcp:22", "failsafe-outbound": "none",
	})
	d := desired(t, conf)
	_, lists, err := d.Assign(nil)
	if err != nil || len(lists) != 1 {
		t.Fatalf("%d lists, %v", len(lists), err)
	}
	if diff := cmp.Diff([]string{"failsafe-inbound[0]", "deny[0]", "deny-files[0]", "ports[0]", "remote-ports[0]"}, names(lists[0].Ingress)); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	before := lists[0].Hash
	if len(d.files) != 1 || d.files[0].Path != path {
		t.Errorf("stamps %v", d.files)
	}
	if err := os.WriteFile(path, []byte("203.0.113.0/24\n10.0.0.0/33\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = Read(conf)
	if err == nil || !strings.Contains(err.Error(), "untracked.cni/deny-files") || !strings.Contains(err.Error(), path+":2:1") || !IsConfigError(err) {
		t.Errorf("a bad line: %v", err)
	}
	if err := os.WriteFile(path, []byte("203.0.113.0/25\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, lists, err = desired(t, conf).Assign(nil)
	if err != nil || lists[0].Hash == before {
		t.Errorf("another list has the same policy hash (%v)", err)
	}
}

func names(rules []policy.Rule) []string {
	var out []string
	for i := range rules {
		out = append(out, rules[i].Name())
	}
	return out
}

func TestConflict(t *testing.T) {
	r := &Record{Network: "b", Config: "2", Networks: map[string]string{"a": "1", "b": "2"}}
	p := r.problems()
	if len(p) != 1 || p[0].Code != ProblemConflict || !strings.Contains(p[0].Message, "networks b and a") {
		t.Errorf("problems %v", p)
	}
}
