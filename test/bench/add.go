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

// benchAdd times whole processes: ours on a healthy node with an unchanged policy, and upstream portmap with no
// port mappings, which is what a node's conf list has anyway.
func benchAdd(rounds int) ([]Row, error) {
	l, err := lab.Open(lab.Config{})
	if err != nil {
		return nil, err
	}
	defer l.Close()
	bin, err := lab.Build("untracked", "portmap")
	if err != nil {
		return nil, err
	}
	chain, err := l.Chain(lab.ChainConfig{Annotations: map[string]string{"ports": "tcp/6379"}})
	if err != nil {
		return nil, err
	}
	pod, err := l.AddNS("pod")
	if err != nil {
		return nil, err
	}
	prev := []byte(`{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","sandbox":"` + pod.Path + `"}],"ips":[{"interface":0,"address":"10.1.0.5/24"}]}`)
	ours := chain.Stdin(prev)
	portmap := []byte(`{"cniVersion":"1.1.0","name":"bench","type":"portmap","capabilities":{"portMappings":true},"prevResult":` + string(prev) + `}`)

	call := func(binary, verb string, stdin []byte) func() (float64, error) {
		return func() (float64, error) {
			cmd := lab.Command(l.Node, filepath.Join(bin, binary))
			cmd.Env = append(os.Environ(), "CNI_COMMAND="+verb, "CNI_PATH="+bin, "CNI_IFNAME=eth0",
				"CNI_CONTAINERID=bench", "CNI_NETNS="+pod.Path)
			cmd.Stdin = bytes.NewReader(stdin)
			var stdout, stderr bytes.Buffer
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			begin := time.Now()
			if err := cmd.Run(); err != nil {
				return 0, fmt.Errorf("%w: %s %s", err, stdout.Bytes(), stderr.Bytes())
			}
			return float64(time.Since(begin).Microseconds()) / 1000, nil
		}
	}
	if _, err := call("untracked", "ADD", ours)(); err != nil { // the one that applies
		return nil, err
	}
	return interleave([]subject{
		{"portmap VERSION", call("portmap", "VERSION", nil)},
		{"portmap ADD, no port mappings", call("portmap", "ADD", portmap)},
		{"untracked VERSION", call("untracked", "VERSION", nil)},
		{"untracked ADD, healthy node, unchanged policy", call("untracked", "ADD", ours)},
		{"untracked STATUS", call("untracked", "STATUS", ours)},
	}, rounds*20, "ms", "portmap ADD, no port mappings")
}
