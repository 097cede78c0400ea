// SPDX-License-Identifier: Apache-2.0

// Package nat finds out which traffic to an address reaches it by destination NAT only. A packet that conntrack does
// not see is never translated: what a Service, a hostPort or a rule of the operator sends to an address and port has to
// stay tracked there, or it stops.
//
// The rules are read over netlink, as nf_tables has them, whoever wrote them: kube-proxy in either of its nftables and
// iptables modes, the portmap plugin with either backend, docker, nft by hand. Nothing is changed, and nobody's
// command is run.
//
// Not seen is what is not in nf_tables: rules of iptables-legacy, whose tables another interface of the kernel has, and
// translations by IPVS. Those by BPF programs (Cilium's) need no conntrack. Whether a packet can reach a rule is not
// asked either: each that stands in a table counts.
//
// All functions act in the network namespace of the calling OS thread.
package nat

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/untracked-cni/untracked/pkg/policy"
)

// Translation is a rule's change of packets' destination.
type Translation struct {
	// First and Last are the addresses it leads to, in most rules one.
	First, Last netip.Addr
	// Protocol is that of the packets, 0 where the rule is for any, or does not say it in a way that is understood.
	Protocol uint8
	// Ports are those it leads to. Where the rule leaves the port as it is, that is From, or any if that is not known.
	Ports policy.PortRange
	// From is the port that packets have before, 0 where the rule does not say.
	From uint16

	// Table is the family and the name, as in "ip nat".
	Table, Chain string
	// Comment is the rule's.
	Comment string
}

// everyPort is what a rule leads to that leaves the port as it is, whichever it is.
var everyPort = policy.PortRange{First: 0, Last: 65535}

// LeadsTo reports whether translated packets may arrive at one of the ports.
func (t *Translation) LeadsTo(p policy.Port) bool {
	return (t.Protocol == 0 || t.Protocol == p.Protocol) && overlap(t.Ports, p.Range)
}

func overlap(a, b policy.PortRange) bool { return a.First <= b.Last && b.First <= a.Last }

// String says what the rule is for, and where it stands.
func (t *Translation) String() string {
	return t.purpose() + " (table " + t.Table + ", chain " + t.Chain + ")"
}

// purpose is what users know the rule by.
func (t *Translation) purpose() string {
	if service, ok := t.service(); ok {
		return "Service " + service
	}
	port := ""
	if t.From != 0 {
		port = strconv.Itoa(int(t.From))
	}
	switch {
	case t.isHostPort() && port != "":
		return "hostPort " + port
	case t.isHostPort():
		return "a hostPort"
	case port != "":
		return "a nat rule for port " + port
	}
	return "a nat rule"
}

// service is the namespace, name and port of the Service that kube-proxy wrote the rule for. In its iptables mode the
// comment has it; in its nftables mode a chain's name, which begins with its kind and a hash of eight characters:
// "service-ULMVA6XW-ns1/svc1/tcp/p80", "endpoint-GTK6MW7G-ns5/svc5/tcp/p80__10.180.0.3/80".
func (t *Translation) service() (name string, ok bool) {
	if strings.HasPrefix(t.Chain, "KUBE-SEP-") || strings.HasPrefix(t.Chain, "KUBE-SVC-") {
		return t.Comment, t.Comment != ""
	}
	if _, table, _ := strings.Cut(t.Table, " "); table != "kube-proxy" {
		return "", false
	}
	parts := strings.SplitN(t.Chain, "-", 3)
	if len(parts) < 3 {
		return "", false
	}
	service, _, _ := strings.Cut(parts[2], "__")
	// A long name was cut short by kube-proxy, and ends with "...".
	words := strings.Split(service, "/")
	if len(words) != 4 {
		return service, true
	}
	name = words[0] + "/" + words[1]
	if words[3] != "" {
		name += ":" + words[3]
	}
	return name, true
}

// isHostPort knows the rules of the portmap plugin, and those of kubelet and CRI-O.
func (t *Translation) isHostPort() bool {
	_, table, _ := strings.Cut(t.Table, " ")
	return table == "cni_hostport" || strings.HasPrefix(t.Chain, "CNI-DN-") || strings.HasPrefix(t.Chain, "KUBE-HP-")
}

// To are those that lead to one of the ports, each purpose once and in order.
func To(p policy.Port, translations []Translation) []Translation {
	var out []Translation
	for i := range translations {
		if translations[i].LeadsTo(p) {
			out = append(out, translations[i])
		}
	}
	slices.SortStableFunc(out, func(a, b Translation) int { return cmp.Compare(a.purpose(), b.purpose()) })
	return slices.CompactFunc(out, func(a, b Translation) bool { return a.purpose() == b.purpose() })
}
