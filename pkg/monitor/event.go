// SPDX-License-Identifier: Apache-2.0

package monitor

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/untracked-cni/untracked/pkg/policy"
)

// Event is a packet that a Log rule matched. Its JSON form is the output of `untracked monitor -o json`.
type Event struct {
	Time      time.Time        `json:"time"`
	Interface string           `json:"interface"`
	Direction policy.Direction `json:"direction"`
	Verdict   policy.Verdict   `json:"verdict"`
	By        policy.Reason    `json:"by"`
	// Rule gave the verdict. It is nil where none did.
	Rule *Rule `json:"rule,omitempty"`
	// Log is the first rule that logged the packet, without its action. It is nil if its list is not known any more.
	Log *Rule `json:"log,omitempty"`

	// Protocol is a name, or a number where there is none.
	Protocol    string     `json:"protocol"`
	Source      netip.Addr `json:"source"`
	Destination netip.Addr `json:"destination"`
	// Ports or ICMP type and code, nil where the packet has or shows none.
	SourcePort      *uint16 `json:"sourcePort,omitempty"`
	DestinationPort *uint16 `json:"destinationPort,omitempty"`
	ICMPType        *uint8  `json:"icmpType,omitempty"`
	ICMPCode        *uint8  `json:"icmpCode,omitempty"`
	// Bytes is the packet's length, IP header included.
	Bytes int `json:"bytes"`
	// Missed is how many events of this direction are known to be left out before this one. Those that nftables' limit
	// holds back are not known.
	Missed uint64 `json:"missed"`
}

// Rule names a rule.
type Rule struct {
	Tier   string `json:"tier"`
	Policy string `json:"policy"`
	Index  int    `json:"index"`
	Action string `json:"action,omitempty"`
}

// newEvent describes a packet and its verdict. log is the index of the rule that logged it.
func newEvent(p *policy.Packet, d policy.Decision, rules []policy.Rule, log int) *Event {
	e := &Event{
		Verdict: d.Verdict, By: d.By, Rule: nameOf(rules, d.Rule), Log: nameOf(rules, log),
		Protocol: protocolName(p.Protocol), Source: p.Src, Destination: p.Dst,
	}
	if e.Log != nil {
		e.Log.Action = ""
	}
	switch {
	case !p.HasL4:
	case policy.HasPorts(p.Protocol):
		e.SourcePort, e.DestinationPort = &p.SrcPort, &p.DstPort
	default:
		e.ICMPType, e.ICMPCode = &p.ICMPType, &p.ICMPCode
	}
	return e
}

func nameOf(rules []policy.Rule, i int) *Rule {
	if i < 0 || i >= len(rules) {
		return nil
	}
	r := &rules[i]
	return &Rule{r.Tier, r.Policy, r.Index, r.Action.String()}
}

// String is how rules are called everywhere: tier/policy[index].
func (r *Rule) String() string {
	rule := policy.Rule{Tier: r.Tier, Policy: r.Policy, Index: r.Index}
	return rule.Name()
}

const unnamed = "protocol "

func protocolName(n uint8) string { return strings.TrimPrefix(policy.ProtocolName(n), unnamed) }

// String is the event in one line:
//
//	12:01:02.345 eth0 ingress denied default/blocklist[0] tcp 10.0.0.1:40000 > 192.0.2.1:6379 60 bytes
func (e *Event) String() string {
	var b strings.Builder
	why := string(e.By)
	if e.Rule != nil {
		why = e.Rule.String()
	}
	fmt.Fprintf(&b, "%s %s %s %s %s ", e.Time.Local().Format("15:04:05.000"), e.Interface, e.Direction, e.Verdict, why)
	if _, named := policy.ProtocolNumber(e.Protocol); !named {
		b.WriteString(unnamed)
	}
	fmt.Fprintf(&b, "%s %s > %s", e.Protocol, side(e.Source, e.SourcePort), side(e.Destination, e.DestinationPort))
	if e.ICMPType != nil && e.ICMPCode != nil {
		fmt.Fprintf(&b, " type %d code %d", *e.ICMPType, *e.ICMPCode)
	}
	fmt.Fprintf(&b, " %d bytes", e.Bytes)
	if e.Missed > 0 {
		fmt.Fprintf(&b, " (%d missed before)", e.Missed)
	}
	return b.String()
}

func side(a netip.Addr, port *uint16) string {
	if port == nil {
		return a.String()
	}
	return netip.AddrPortFrom(a, *port).String()
}
