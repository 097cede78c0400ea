// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/untracked-cni/untracked/test/lab"
)

// benchADD times whole processes as a runtime starts them: ours on a healthy node with an unchanged policy, and
// upstream portmap with no port mappings, which is what a node's conf list has anyway.
func benchADD(e effort) ([]Row, error) {
	bin, err := lab.Build("untracked", "portmap")
	if err != nil {
		return nil, err
	}
	one, err := newCaller(bin, map[string]string{"ports": "tcp/6379"}, nil)
	if err != nil {
		return nil, err
	}
	defer one.lab.Close()
	sizes := e.sizes(100_000, 1_000_000)
	n := sizes[len(sizes)-1]
	progress("preparing ADD with %s", count(n, "CIDR"))
	large, err := newCaller(bin, map[string]string{"ports": "tcp/6379"}, plainList(n, 0))
	if err != nil {
		return nil, err
	}
	defer large.lab.Close()
	return interleave([]subject{
		{name: "portmap VERSION", sample: one.call("portmap", "VERSION")},
		{name: portmapCase, sample: one.call("portmap", "ADD")},
		{name: "untracked VERSION", sample: one.call("untracked", "VERSION")},
		{name: oneRuleCase, sample: one.call("untracked", "ADD")},
		{
			name: "untracked ADD, " + count(n, "CIDR") + " in force", sample: large.call("untracked", "ADD"),
			// No slower, but for noise.
			goals: []Goal{timesAtMost(1.1, oneRuleCase)},
		},
		{name: "untracked STATUS", sample: one.call("untracked", "STATUS")},
	}, e.rounds*10, "ms", portmapCase)
}

// caller calls plugins on a node of its own.
type caller struct {
	lab   *lab.Lab
	pod   *lab.NS
	bin   string
	stdin map[string][]byte // by plugin
}

// newCaller makes a node whose policy is in force: what the annotations say, and a deny-file unless list is nil.
func newCaller(bin string, annotations map[string]string, list []byte) (*caller, error) {
	l, err := lab.Open(lab.Config{})
	if err != nil {
		return nil, err
	}
	c := &caller{lab: l, bin: bin}
	if list != nil {
		annotations["deny-files"] = filepath.Join(l.Dir, "deny.txt")
		if err := os.WriteFile(annotations["deny-files"], list, 0o600); err != nil {
			return nil, err
		}
	}
	chain, err := l.Chain(lab.ChainConfig{Annotations: annotations})
	if err != nil {
		return nil, err
	}
	if c.pod, err = l.AddNS("pod"); err != nil {
		return nil, err
	}
	prev := []byte(`{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","sandbox":"` + c.pod.Path + `"}],"ips":[{"interface":0,"address":"10.1.0.5/24"}]}`)
	c.stdin = map[string][]byte{
		"untracked": chain.Stdin(prev),
		"portmap":   []byte(`{"cniVersion":"1.1.0","name":"bench","type":"portmap","capabilities":{"portMappings":true},"prevResult":` + string(prev) + `}`),
	}
	// The first ADD applies; what a file's timestamp cannot tell apart yet is read again for a moment.
	if _, err := c.call("untracked", "ADD")(); err != nil {
		return nil, err
	}
	time.Sleep(time.Second)
	_, err = c.call("untracked", "ADD")()
	return c, err
}

// call returns a sample: milliseconds from fork to exit.
func (c *caller) call(plugin, verb string) func() (float64, error) {
	return func() (float64, error) {
		cmd := lab.Command(c.lab.Node, filepath.Join(c.bin, plugin))
		cmd.Env = append(os.Environ(), "CNI_COMMAND="+verb, "CNI_PATH="+c.bin, "CNI_IFNAME=eth0",
			"CNI_CONTAINERID=bench", "CNI_NETNS="+c.pod.Path)
		cmd.Stdin = bytes.NewReader(c.stdin[plugin])
		var stdout, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		begin := time.Now()
		if err := cmd.Run(); err != nil {
			return 0, fmt.Errorf("%s %s: %w: %s %s", plugin, verb, err, stdout.Bytes(), stderr.Bytes())
		}
		return milliseconds(time.Since(begin)), nil
	}
}
