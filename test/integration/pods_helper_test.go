// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/untracked-cni/untracked/pkg/config"
	"github.com/untracked-cni/untracked/pkg/nft"
	"github.com/untracked-cni/untracked/pkg/pods"
	"github.com/untracked-cni/untracked/test/lab"
)

// podsNode is a node that hears its pods, with a firewall that drops INVALID.
type podsNode struct {
	*trafficNode
	annotations map[string]string
}

// podsCapability has the runtime send the annotations of pods.
var podsCapability = map[string]any{"capabilities": map[string]bool{config.PodCapability: true}}

func newPods(t testing.TB, more ...string) *podsNode {
	t.Helper()
	n := &podsNode{newTraffic(t, lab.Config{}), cniPolicy(append([]string{"pods", "allow"}, more...)...)}
	n.ask(nil)
	return n
}

// ask sets what the next pods' annotations are, by their names without the prefix.
func (n *podsNode) ask(annotations map[string]string) {
	n.Helper()
	full := map[string]string{"example.com/other": "x"}
	for k, v := range annotations {
		full[lab.AnnotationPrefix+k] = v
	}
	check(n, n.chain.Rewrite(lab.ChainConfig{
		Annotations: n.annotations, Entry: podsCapability, CapArgs: map[string]any{config.PodCapability: full},
		Args: "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=pod;K8S_POD_UID=1",
	}))
}

// pod is a pod that went through the whole chain, with the addresses it got.
type pod struct {
	*lab.NS
	v4, v6 netip.Addr
}

func (n *podsNode) start(role string, annotations map[string]string) pod {
	n.Helper()
	n.ask(annotations)
	p := pod{NS: must(n.lab.AddNS(role))(n)}
	out := must(n.chain.Add(p.NS))(n)
	var result types100.Result
	check(n, json.Unmarshal(out.Stdout, &result))
	for _, ip := range result.IPs {
		if a, _ := netip.AddrFromSlice(ip.Address.IP); a.Unmap().Is4() {
			p.v4 = a.Unmap()
		} else {
			p.v6 = a
		}
	}
	if !p.v4.IsValid() || !p.v6.IsValid() {
		n.Fatalf("the chain gave %s", out.Stdout)
	}
	return p
}

// call is a runtime's call of the plugin alone, for a pod with made-up addresses.
type podsCall struct {
	Container, Netns string
	Addresses        []string
	Asks             map[string]string
	// Bare leaves out what is about the pod, as of a late DEL.
	Bare bool
	// More goes into the config.
	More map[string]any
}

func (n *podsNode) stdin(c podsCall) []byte {
	conf := map[string]any{}
	prev := map[string]any{"cniVersion": "1.1.0", "dns": map[string]any{}}
	if c.Netns != "" {
		prev["interfaces"] = []map[string]any{{"name": "cni0"}, {"name": "eth0", "sandbox": c.Netns}}
		var ips []map[string]any
		for _, a := range c.Addresses {
			ips = append(ips, map[string]any{"interface": 1, "address": a})
		}
		prev["ips"] = ips
	}
	text, err := json.Marshal(prev)
	check(n, err)
	if c.Bare {
		text = nil
	}
	check(n, json.Unmarshal(n.chain.Stdin(text), &conf))
	if !c.Bare {
		asks := map[string]string{}
		for k, v := range c.Asks {
			asks[lab.AnnotationPrefix+k] = v
		}
		conf["runtimeConfig"] = map[string]any{config.PodCapability: asks}
	}
	for k, v := range c.More {
		conf[k] = v
	}
	text, err = json.Marshal(conf)
	check(n, err)
	return text
}

func (n *podsNode) env(verb string, c podsCall) map[string]string {
	env := map[string]string{
		"CNI_COMMAND": verb, "CNI_CONTAINERID": c.Container, "CNI_NETNS": c.Netns, "CNI_IFNAME": "eth0", "CNI_PATH": n.chain.Bin,
		"CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=" + c.Container,
	}
	if c.Netns == "" {
		delete(env, "CNI_NETNS")
	}
	return env
}

func (n *podsNode) call(verb string, c podsCall) *lab.Outcome {
	n.Helper()
	return cniRun(n, n.lab, n.env(verb, c), n.stdin(c))
}

func (n *podsNode) wantCall(verb string, c podsCall) *lab.Outcome {
	n.Helper()
	out := n.call(verb, c)
	if out.ExitCode != 0 {
		n.Fatalf("%s of %s: exit status %d\n%s%s", verb, c.Container, out.ExitCode, out.Stdout, out.Stderr)
	}
	return out
}

// sandbox is a network namespace for a made-up pod.
func (n *podsNode) sandbox(role string) *lab.NS {
	n.Helper()
	return must(n.lab.AddNS(role))(n)
}

// list is `untracked pods -o json`.
func (n *podsNode) list() (all []pods.Record) {
	n.Helper()
	out := must(n.lab.Untracked("pods", "-o", "json"))(n)
	if err := json.Unmarshal(out.Stdout, &all); err != nil || out.ExitCode != 0 {
		n.Fatalf("pods: exit status %d, %v\n%s%s", out.ExitCode, err, out.Stdout, out.Stderr)
	}
	return all
}

// wantPods compares the containers that have ports, with the addresses that are theirs.
func (n *podsNode) wantPods(want ...string) {
	n.Helper()
	var got []string
	for _, r := range n.list() {
		got = append(got, fmt.Sprintf("%s %v", r.Container, r.Addresses))
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		n.Errorf("pods: %q, want %q", got, want)
	}
}

// wantElements compares how many elements all sets of the table of pods have. Each port or source has two: another one for
// errors that quote it.
func (n *podsNode) wantElements(want int) {
	n.Helper()
	got := 0
	check(n, lab.In(n.Node, func() error {
		elements, err := nft.PodElements()
		got = len(elements)
		return err
	}))
	if got != want {
		n.Errorf("the table of pods has %d elements, want %d", got, want)
	}
}

// wantOwner says whose a port is, as nftables has it.
func (n *podsNode) wantOwner(element, want string) {
	n.Helper()
	check(n, lab.In(n.Node, func() error {
		elements, err := nft.PodElements()
		if got := elements[element]; got != want {
			n.Errorf("%s is of %q, want %q; there is %v", element, got, want, elements)
		}
		return err
	}))
}

// wantNoTable asserts that there is no table and no record.
func (n *podsNode) wantNoTable() {
	n.Helper()
	for _, table := range must(lab.Tables(n.Node))(n) {
		if table == "inet "+nft.PodsTable {
			n.Errorf("table %s is there", table)
		}
	}
	if _, err := os.Stat(n.lab.RunDir + "/pods"); err == nil {
		n.Error("records of pods are there")
	}
}
