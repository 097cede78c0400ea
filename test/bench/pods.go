// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/untracked-cni/untracked/pkg/config"
	"github.com/untracked-cni/untracked/pkg/netset"
	"github.com/untracked-cni/untracked/pkg/nft"
	"github.com/untracked-cni/untracked/pkg/pods"
	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/test/lab"
)

// manyPods is how many pods are there already, with podPorts ports each.
const (
	manyPods = 5000
	podPorts = 8
)

// benchPods measures what pods with ports of their own cost: the start of a pod, and a packet.
func benchPods(e effort) ([]Row, error) {
	rows, err := benchPodADD(e)
	if err != nil {
		return nil, err
	}
	more, err := benchPodPackets(e)
	return append(rows, more...), err
}

const noAnnotationsCase = "untracked ADD, pods allowed, a pod without annotations"

// benchPodADD times whole processes. Each ADD is of a pod that is not there, as it was deleted in between.
func benchPodADD(e effort) ([]Row, error) {
	bin, err := lab.Build("untracked", "portmap")
	if err != nil {
		return nil, err
	}
	ask := map[string]string{config.Prefix + "ports": "tcp/7000-7007"}
	sourced := map[string]string{config.Prefix + "ports": "tcp/7000-7007", config.Prefix + "sources": "192.0.2.0/24"}
	var subjects []subject
	for _, there := range []int{0, manyPods} {
		progress("preparing ADD with %s", count(there, "pod"))
		c, err := newCaller(bin, map[string]string{"ports": "tcp/6379", "pods": "allow"}, nil)
		if err != nil {
			return nil, err
		}
		defer c.lab.Close()
		if err := c.fill(there); err != nil {
			return nil, err
		}
		name := func(what string) string { return fmt.Sprintf("%s, %s there", what, count(there, "pod")) }
		if there == 0 {
			subjects = append(subjects, subject{name: portmapCase, sample: c.call("portmap", "ADD")})
			subjects = append(subjects, subject{name: noAnnotationsCase, sample: c.call("untracked", "ADD")})
		} else {
			subjects = append(subjects, subject{name: name(noAnnotationsCase), sample: c.call("untracked", "ADD")})
		}
		subjects = append(subjects,
			subject{name: name("untracked ADD, 8 ports"), sample: c.cycle("ADD", ask)},
			subject{name: name("untracked ADD, 8 ports and sources"), sample: c.cycle("ADD", sourced)},
			subject{name: name("untracked DEL, 8 ports"), sample: c.cycle("DEL", ask)},
		)
	}
	return interleave(subjects, e.rounds*3, "ms", portmapCase)
}

// fill has so many pods there, half of them with sources, as if they had come one by one.
func (c *caller) fill(n int) error {
	store := pods.At(c.lab.RunDir)
	ports := []policy.Port{{Protocol: policy.TCP, Range: policy.PortRange{First: 7000, Last: 7000 + podPorts - 1}}}
	for i := range n {
		r := pods.Record{
			ID: pods.ID{Container: fmt.Sprintf("%064x", i), Interface: "eth0"}, Network: "bench", Namespace: "ns", Pod: fmt.Sprintf("pod-%d", i),
			Netns: c.pod.Path, Sandbox: pods.Sandbox(c.pod.Path), Addresses: []netip.Addr{podAddress(i)}, Since: time.Now(),
		}
		r.SetPorts(ports, podSources(i))
		if err := store.Write(&r); err != nil {
			return err
		}
	}
	return lab.In(c.lab.Node, func() error { return nft.WritePods(somePods(n)) })
}

func podAddress(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 2, byte(i >> 8), byte(i)}) }

func podSources(i int) *netset.Set {
	if i%2 == 0 {
		return nil
	}
	return netset.Of(netip.MustParsePrefix("192.0.2.0/24"))
}

func somePods(n int) []nft.Pod {
	out := make([]nft.Pod, n)
	for i := range out {
		out[i] = nft.Pod{
			Owner: fmt.Sprintf("%064x/eth0", i), Name: fmt.Sprintf("ns/pod-%d", i), Addresses: []netip.Addr{podAddress(i)}, Sources: podSources(i),
			Ports: []policy.Port{{Protocol: policy.TCP, Range: policy.PortRange{First: 7000, Last: 7000 + podPorts - 1}}},
		}
	}
	return out
}

// cycle returns a sample of one half of a pod's life, which is lived as a whole.
func (c *caller) cycle(verb string, asks map[string]string) func() (float64, error) {
	var conf map[string]json.RawMessage
	if err := json.Unmarshal(c.stdin["untracked"], &conf); err != nil {
		return func() (float64, error) { return 0, err }
	}
	var err error
	conf["runtimeConfig"], err = json.Marshal(map[string]any{config.PodCapability: asks})
	of := *c
	of.stdin = map[string][]byte{}
	if err == nil {
		of.stdin["untracked"], err = json.Marshal(conf)
	}
	return func() (float64, error) {
		if err != nil {
			return 0, err
		}
		add, err := of.call("untracked", "ADD")()
		if err != nil {
			return 0, err
		}
		del, err := of.call("untracked", "DEL")()
		if verb == "DEL" {
			return del, err
		}
		return add, err
	}
}

const noTableCase = "a datagram, without the table of pods"

// benchPodPackets times datagrams over veth, sent and received: a table costs what it makes more of that. Nothing is
// tracked, so that what is exempted saves nothing here.
func benchPodPackets(e effort) ([]Row, error) {
	var subjects []subject
	for _, setting := range []struct {
		name  string
		table bool
		pods  int
		own   *nft.Pod // has the address that is sent to
	}{
		{name: noTableCase},
		{name: "the table of no pods", table: true},
		{name: "that of 5,000, the datagram is nobody's", table: true, pods: manyPods},
		{name: "that of 5,000, the datagram is a pod's", table: true, pods: manyPods, own: &nft.Pod{}},
		{name: "that of 5,000, it is a pod's with sources", table: true, pods: manyPods, own: &nft.Pod{Sources: netset.Of(netip.MustParsePrefix("198.18.0.0/15"))}},
	} {
		progress("preparing %s", setting.name)
		l, err := lab.Open(lab.Config{})
		if err != nil {
			return nil, err
		}
		defer l.Close()
		if _, err := lab.SinkUDP(l.Node, udpPort); err != nil {
			return nil, err
		}
		node := l.Uplinks[0].Node4
		all := somePods(setting.pods)
		if setting.own != nil {
			setting.own.Owner, setting.own.Addresses = "own/eth0", []netip.Addr{node}
			setting.own.Ports = []policy.Port{{Protocol: policy.UDP, Range: policy.PortRange{First: udpPort, Last: udpPort}}}
			all = slices.Concat(all, []nft.Pod{*setting.own})
		}
		if setting.table {
			if err := lab.In(l.Node, func() error { return nft.WritePods(all) }); err != nil {
				return nil, err
			}
		}
		load := lab.Load{Target: netip.AddrPortFrom(node, udpPort), Duration: time.Duration(min(e.rounds, 10)) * 50 * time.Millisecond, Sources: l.Uplinks[0].Client4}
		subjects = append(subjects, subject{name: setting.name, sample: func() (float64, error) {
			r, err := lab.FloodUDP(l.Client, load)
			if err != nil || r.OK == 0 {
				return 0, fmt.Errorf("%v: %w", r, err)
			}
			return float64(r.Elapsed.Nanoseconds()) / float64(r.OK), nil
		}})
	}
	return interleave(subjects, e.rounds, "ns", noTableCase)
}
