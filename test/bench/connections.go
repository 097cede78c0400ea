// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/untracked-cni/untracked/test/lab"
)

const (
	tcpPort = 6379
	udpPort = 5353

	// settingSources is how many networks may use the ports untracked, with every way to say so.
	settingSources = 1000
)

// setting is a way to have connections tracked, or not.
type setting struct {
	name string
	// set puts it in force on the node.
	set func(l *lab.Lab, sources []netip.Prefix) error
}

var settings = []setting{
	{"no netfilter", func(*lab.Lab, []netip.Prefix) error { return nil }},
	{"tracked", tracked},
	{"untracked, native XDP", untrackedIn("native")},
	{"untracked, tc", untrackedIn("tc")},
	{"nft raw sets by hand", rawSets},
}

// benchConnections runs real sockets in labs that differ in nothing but netfilter. All work is the receiver's as far as
// possible, but sender and receiver share the machine: the rates are of both together.
func benchConnections(e effort) ([]Row, error) {
	var tcp, udp []subject
	for _, s := range settings {
		if s.name == "nft raw sets by hand" {
			if _, err := exec.LookPath("nft"); err != nil {
				tcp = append(tcp, subject{name: "TCP, " + s.name, note: "skipped: needs nft (package nftables)"})
				udp = append(udp, subject{name: "new UDP flows, " + s.name, note: "skipped: needs nft (package nftables)"})
				continue
			}
		}
		progress("preparing %s", s.name)
		l, err := lab.Open(lab.Config{})
		if err != nil {
			return nil, err
		}
		defer l.Close()
		if _, err := lab.ServeTCP(l.Node, tcpPort); err != nil {
			return nil, err
		}
		if _, err := lab.SinkUDP(l.Node, udpPort); err != nil {
			return nil, err
		}
		sources := append(distinctNets(seeded(6, settingSources), settingSources-1, 4), l.Uplinks[0].Prefix4)
		if err := s.set(l, sources); err != nil {
			return nil, fmt.Errorf("%s: %w", s.name, err)
		}
		load := lab.Load{Duration: time.Duration(min(e.rounds, 10)) * 100 * time.Millisecond, Sources: l.Uplinks[0].Client4}
		node := l.Uplinks[0].Node4
		tcp = append(tcp, subject{name: "TCP, " + s.name, sample: func() (float64, error) {
			load := load
			load.Target = netip.AddrPortFrom(node, tcpPort)
			r, err := lab.LoadTCP(l.Client, load)
			if err == nil && r.OK == 0 {
				err = fmt.Errorf("no connection succeeded: %v", r)
			}
			return checked(l, s, r, err)
		}})
		udp = append(udp, subject{name: "new UDP flows, " + s.name, sample: func() (float64, error) {
			load := load
			load.Target = netip.AddrPortFrom(node, udpPort)
			r, err := lab.FloodUDP(l.Client, load)
			return checked(l, s, r, err)
		}})
	}
	rows, err := interleave(tcp, e.rounds, "1/s", tcp[0].name)
	if err != nil {
		return nil, err
	}
	more, err := interleave(udp, e.rounds, "1/s", udp[0].name)
	return append(rows, more...), err
}

// checked returns the rate of a load, unless the node tracked what it should not have, or the other way round.
func checked(l *lab.Lab, s setting, r lab.Report, err error) (float64, error) {
	if err != nil {
		return 0, err
	}
	n, err := lab.CountFlows(l.Node)
	if err != nil {
		return 0, err
	}
	if wants := s.name == "tracked"; wants != (n > 0) {
		return 0, fmt.Errorf("%d connection tracking entries after %v", n, r)
	}
	return r.PerSecond(), lab.FlushFlows(l.Node)
}

// tracked is a stateful firewall, as nodes have it; the other settings have it, too.
func tracked(l *lab.Lab, _ []netip.Prefix) error {
	_, err := lab.AddStateful(l.Node, true)
	return err
}

func untrackedIn(mode string) func(*lab.Lab, []netip.Prefix) error {
	return func(l *lab.Lab, sources []netip.Prefix) error {
		if err := tracked(l, sources); err != nil {
			return err
		}
		chain, err := l.Chain(lab.ChainConfig{Annotations: map[string]string{
			"ports": fmt.Sprintf("tcp/%d,udp/%d", tcpPort, udpPort), "sources": commas(sources), "mode": mode,
		}})
		if err != nil {
			return err
		}
		cmd := lab.Command(l.Node, filepath.Join(chain.Bin, "untracked"), "apply", chain.File)
		cmd.Stderr = os.Stderr
		return cmd.Run()
	}
}

// rawSets is the honest rival: what somebody who knows nftables writes for the same end.
func rawSets(l *lab.Lab, sources []netip.Prefix) error {
	if err := tracked(l, sources); err != nil {
		return err
	}
	cmd := lab.Command(l.Node, "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(fmt.Sprintf(`
table ip by_hand {
	set sources {
		type ipv4_addr; flags interval; elements = { %s }
	}
	set services {
		type inet_proto . inet_service; elements = { tcp . %d, udp . %d }
	}
	chain prerouting {
		type filter hook prerouting priority raw; policy accept;
		ip saddr @sources meta l4proto . th dport @services notrack
	}
	chain output {
		type filter hook output priority raw; policy accept;
		ip daddr @sources meta l4proto . th sport @services notrack
	}
}`, commas(sources), tcpPort, udpPort))
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("nft: %w: %s", err, out)
	}
	return nil
}

func commas(prefixes []netip.Prefix) string {
	text := make([]string, len(prefixes))
	for i, p := range prefixes {
		text[i] = p.String()
	}
	return strings.Join(text, ",")
}
