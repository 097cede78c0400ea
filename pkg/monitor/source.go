// SPDX-License-Identifier: Apache-2.0

package monitor

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/untracked-cni/untracked/pkg/datapath"
	"github.com/untracked-cni/untracked/pkg/nflog"
	"github.com/untracked-cni/untracked/pkg/nft"
	"github.com/untracked-cni/untracked/pkg/packet"
	"github.com/untracked-cni/untracked/pkg/policy"
)

// ingressEvent is the event of a packet that arrived.
func (m *Monitor) ingressEvent(from *datapath.Event) *Event {
	name, rules := m.Rules(from.Ifindex, policy.Ingress, from.Generation)
	if name == "" { // the policy does not cover it any more
		name = fmt.Sprintf("ifindex-%d", from.Ifindex)
	}
	e := newEvent(&from.Packet, from.Decision, rules, from.Log)
	e.Time, e.Interface, e.Direction = from.Time, name, policy.Ingress
	e.Bytes, e.Missed = from.Bytes, from.Suppressed
	return e
}

// egressEvent is the event of a packet that a local socket sent: nil if it is told by another message already, since each
// Log rule sends one and the first speaks for all. A message that is not about the list in force now is counted as
// missed: the list has just changed.
func (m *Monitor) egressEvent(message *nflog.Message) *Event {
	m.missed += uint64(message.Lost)
	id, ok := nft.ParseLogPrefix(message.Prefix)
	if !ok {
		return nil
	}
	name, rules := m.Rules(message.Out, policy.Egress, 0)
	log := slices.Index(m.identities(message.Out, rules), id)
	p, length := parse(message)
	if p == nil || log < 0 {
		m.missed++
		return nil
	}
	_, via := policy.Walk(rules, p)
	first := slices.IndexFunc(via, func(i int) bool { return rules[i].Action == policy.Log })
	if first < 0 {
		m.missed++
		return nil
	}
	if via[first] != log {
		return nil
	}
	e := newEvent(p, policy.Evaluate(rules, p), rules, log)
	e.Time, e.Interface, e.Direction = message.Time, name, policy.Egress
	e.Bytes, e.Missed = length, m.missed
	m.missed = 0
	return e
}

// identified is a list with the identities of its rules.
type identified struct {
	rules []policy.Rule
	ids   []uint64
}

// identities keeps what policy.IDs says, which takes longer than everything else about an event, for as long as the
// list is the same.
func (m *Monitor) identities(ifindex int, rules []policy.Rule) []uint64 {
	if len(rules) == 0 {
		return nil
	}
	have := m.ids[ifindex]
	if len(have.rules) != len(rules) || &have.rules[0] != &rules[0] {
		have = identified{rules, policy.IDs(rules)}
		if m.ids == nil {
			m.ids = map[int]identified{}
		}
		m.ids[ifindex] = have
	}
	return have.ids
}

// parse reads what nftables logged, the packet's first bytes. It returns nil for what is no IP packet, as a raw
// socket may send it, else the packet and its length.
func parse(message *nflog.Message) (p *policy.Packet, length int) {
	p, _ = packet.ParseIP(message.EtherType, message.Packet)
	switch {
	case p == nil:
		return nil, 0
	case p.Src.Is4():
		return p, int(binary.BigEndian.Uint16(message.Packet[2:]))
	}
	return p, 40 + int(binary.BigEndian.Uint16(message.Packet[4:]))
}
