// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/untracked-cni/untracked/test/lab"
)

const (
	tcpPort = 6379
	udpPort = 5353
)

// benchConnections runs real sockets in four labs that differ in nothing but netfilter.
func benchConnections(rounds int) ([]Row, error) {
	type setting struct {
		name     string
		stateful bool
		mode     string
	}
	settings := []setting{
		{"no netfilter", false, ""},
		{"tracked", true, ""},
		{"untracked, native XDP", true, "native"},
		{"untracked, tc", true, "tc"},
	}
	var tcp, udp []subject
	for _, s := range settings {
		l, err := lab.Open(lab.Config{})
		if err != nil {
			return nil, err
		}
		defer l.Close()
		for _, serve := range []func() error{
			func() error { _, err := lab.ServeTCP(l.Node, tcpPort); return err },
			func() error { _, err := lab.SinkUDP(l.Node, udpPort); return err },
		} {
			if err := serve(); err != nil {
				return nil, err
			}
		}
		if s.stateful {
			if _, err := lab.AddStateful(l.Node, true); err != nil {
				return nil, err
			}
		}
		if s.mode != "" {
			if err := applyMode(l, s.mode); err != nil {
				return nil, err
			}
		}
		load := lab.Load{Duration: time.Duration(min(rounds, 10)) * 100 * time.Millisecond, Sources: l.Uplinks[0].Client4}
		node := l.Uplinks[0].Node4
		tcp = append(tcp, subject{"TCP, " + s.name, func() (float64, error) {
			defer lab.FlushFlows(l.Node)
			load := load
			load.Target = netip.AddrPortFrom(node, tcpPort)
			r, err := lab.LoadTCP(l.Client, load)
			if err == nil && r.OK == 0 {
				err = fmt.Errorf("no connection succeeded: %v", r)
			}
			return r.PerSecond(), err
		}})
		udp = append(udp, subject{"new UDP flows, " + s.name, func() (float64, error) {
			defer lab.FlushFlows(l.Node)
			load := load
			load.Target = netip.AddrPortFrom(node, udpPort)
			r, err := lab.FloodUDP(l.Client, load)
			return r.PerSecond(), err
		}})
	}
	rows, err := interleave(tcp, rounds, "1/s", tcp[0].name)
	if err != nil {
		return nil, err
	}
	more, err := interleave(udp, rounds, "1/s", udp[0].name)
	return append(rows, more...), err
}

func applyMode(l *lab.Lab, mode string) error {
	chain, err := l.Chain(lab.ChainConfig{Annotations: map[string]string{
		"ports": fmt.Sprintf("tcp/%d,udp/%d", tcpPort, udpPort), "mode": mode,
	}})
	if err != nil {
		return err
	}
	cmd := lab.Command(l.Node, filepath.Join(chain.Bin, "untracked"), "apply", chain.File)
	cmd.Stderr = os.Stderr
	return cmd.Run()
}
