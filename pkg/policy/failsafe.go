// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/untracked-cni/untracked/pkg/netset"
)

// FailsafePort is a port that untracked never touches, as Calico's FailsafeInboundHostPorts and
// FailsafeOutboundHostPorts give it.
type FailsafePort struct {
	Protocol uint8 // TCP, UDP or SCTP
	Port     uint16
	// Net is the peer's network; the zero Prefix stands for any.
	Net netip.Prefix
}

// Failsafe policy names, one for each list.
const (
	FailsafeInbound  = "failsafe-inbound"
	FailsafeOutbound = "failsafe-outbound"
)

// The defaults are Calico's (felix/config/config_params.go) plus kubelet's 10250, whose loss makes a node
// unmanageable.
const (
	DefaultFailsafeInbound  = "tcp:22,udp:68,tcp:179,tcp:2379,tcp:2380,tcp:5473,tcp:6443,tcp:6666,tcp:6667,tcp:10250"
	DefaultFailsafeOutbound = "udp:53,udp:67,tcp:179,tcp:2379,tcp:2380,tcp:5473,tcp:6443,tcp:6666,tcp:6667,tcp:10250"
)

// ParseFailsafes reads Calico's format: a comma list of `port`, `protocol:port`, `protocol:cidr:port` or
// `protocol:[ipv6-cidr]:port`, the protocol being tcp by default; or `none`.
func ParseFailsafes(s string) ([]FailsafePort, error) {
	if strings.EqualFold(strings.TrimSpace(s), "none") {
		return nil, nil
	}
	var out []FailsafePort
	for _, item := range strings.Split(s, ",") {
		item = strings.TrimSpace(item)
		f, err := parseFailsafe(item)
		if err != nil {
			return nil, err
		}
		out = append(out, f)
	}
	return out, nil
}

func parseFailsafe(item string) (FailsafePort, error) {
	bad := func(what string) (FailsafePort, error) {
		return FailsafePort{}, fmt.Errorf("%q: %s; want port, protocol:port, protocol:cidr:port or protocol:[ipv6-cidr]:port, or none for the whole list", item, what)
	}
	f := FailsafePort{Protocol: TCP}
	rest := item
	if proto, after, found := strings.Cut(item, ":"); found {
		n, ok := ProtocolNumber(strings.ToLower(proto))
		if !ok || (n != TCP && n != UDP && n != SCTP) {
			return bad(fmt.Sprintf("protocol %q is not tcp, udp or sctp", proto))
		}
		f.Protocol, rest = n, after
	}
	if i := strings.LastIndex(rest, ":"); i >= 0 {
		cidr := rest[:i]
		rest = rest[i+1:]
		if strings.HasPrefix(cidr, "[") && strings.HasSuffix(cidr, "]") {
			cidr = cidr[1 : len(cidr)-1]
		} else if strings.Contains(cidr, ":") {
			return bad("an IPv6 network needs [brackets]")
		}
		p, err := netset.ParsePrefix(cidr)
		if err != nil {
			return bad(err.Error())
		}
		f.Net = p
	}
	port, err := strconv.ParseUint(rest, 10, 16)
	if err != nil {
		return bad(fmt.Sprintf("port %q is not a number from 0 to 65535", rest))
	}
	f.Port = uint16(port)
	return f, nil
}

// FailsafeRules expands the two lists into the rules that stand first in each direction. Arriving: to an
// inbound port, or from an outbound one (the reply to a connection of ours); leaving: the other way round.
// Without the second half, one leg of a failsafe flow could be tracked and the other not.
//
// Ports of one list with the same protocol and network share a rule, in the order of the first: every packet
// that leaves the host is asked them one by one.
func FailsafeRules(inbound, outbound []FailsafePort) Rules {
	var r Rules
	for i, f := range groupFailsafes(inbound) {
		arriving := f.rule(FailsafeInbound, i)
		arriving.Source.Nets = f.peer()
		arriving.Destination.Ports = f.ports
		r.Ingress = append(r.Ingress, arriving)
		r.Egress = append(r.Egress, arriving.mirror())
	}
	for i, f := range groupFailsafes(outbound) {
		leaving := f.rule(FailsafeOutbound, i)
		leaving.Destination.Nets = f.peer()
		leaving.Destination.Ports = f.ports
		r.Egress = append(r.Egress, leaving)
		r.Ingress = append(r.Ingress, leaving.mirror())
	}
	return r
}

type failsafeGroup struct {
	protocol uint8
	net      netip.Prefix
	ports    []PortRange
}

func groupFailsafes(list []FailsafePort) []failsafeGroup {
	var groups []failsafeGroup
	for _, f := range list {
		i := slices.IndexFunc(groups, func(g failsafeGroup) bool { return g.protocol == f.Protocol && g.net == f.Net })
		if i < 0 {
			i = len(groups)
			groups = append(groups, failsafeGroup{protocol: f.Protocol, net: f.Net})
		}
		groups[i].ports = append(groups[i].ports, PortRange{f.Port, f.Port})
	}
	for i := range groups {
		groups[i].ports = NormalizePorts(groups[i].ports)
	}
	return groups
}

func (g *failsafeGroup) rule(policy string, index int) Rule {
	return Rule{Policy: policy, Index: index, Action: Failsafe, Protocol: &g.protocol}
}

func (g *failsafeGroup) peer() *netset.Set {
	if !g.net.IsValid() {
		return nil
	}
	return netset.Of(g.net)
}
