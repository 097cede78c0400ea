// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/untracked-cni/untracked/pkg/datapath"
	"github.com/untracked-cni/untracked/pkg/files"
	"github.com/untracked-cni/untracked/pkg/nft"
	"github.com/untracked-cni/untracked/pkg/policy"
)

// Measurement is what the node's counters and gauges say at one moment. What could not be read is not in it: to say 0
// instead would look as if a counter had started anew.
type Measurement struct {
	// Status is nil where not even the record could be read.
	Status  *Status
	Applies *Applies
	// Traffic has the arriving packets of each interface that has the policy.
	Traffic []Traffic
	// Rules are those of all interfaces, in the order of [Node.Rules].
	Rules []RuleTraffic
	// Errors are what kept something from being read, by the part that is not complete for it.
	Errors map[MeasuredPart][]error
}

// MeasuredPart is a part of a measurement that can fail by itself.
type MeasuredPart string

// The parts of a measurement.
const (
	MeasuredStatus  MeasuredPart = "status"
	MeasuredApplies MeasuredPart = "applies"
	MeasuredIngress MeasuredPart = "ingress"
	MeasuredEgress  MeasuredPart = "egress"
	MeasuredRules   MeasuredPart = "rules"
)

// MeasuredParts are all of them.
var MeasuredParts = []MeasuredPart{MeasuredStatus, MeasuredApplies, MeasuredIngress, MeasuredEgress, MeasuredRules}

// Traffic is what arrived at an interface, by what became of it.
type Traffic struct {
	Interface string
	// Counts are of packets and bytes, retired rules included: they only grow.
	datapath.Counts
}

// RuleTraffic is a rule of one interface and direction, and what it has counted.
type RuleTraffic struct {
	Interface string
	Direction policy.Direction
	Tier      string
	Policy    string
	Index     int
	Action    policy.Action
	Packets   uint64
	Bytes     uint64
}

// Meter measures a node again and again. It keeps what rules are called for as long as they stay, because to read
// a policy of a million addresses takes longer than to read what it has counted. It is for one goroutine at a time.
type Meter struct {
	// lists are those of this generation, read from the file with this stamp.
	lists      []measuredList
	generation uint64
	stamp      files.Stamp
}

type measuredList struct{ ingress, egress []measuredRule }

// measuredRule is a rule without what it matches.
type measuredRule struct {
	id           uint64
	tier, policy string
	index        int
	action       policy.Action
}

// Measure reads the node. It changes nothing and takes no lock: beside an apply it gets the counts of those rules that are
// in force already and on record still.
func (m *Meter) Measure(n *Node) *Measurement {
	out := &Measurement{Errors: map[MeasuredPart][]error{}}
	failed := func(part MeasuredPart, err error) { out.Errors[part] = append(out.Errors[part], err) }

	if a, err := readApplies(n.RunDir); err != nil {
		failed(MeasuredApplies, err)
	} else {
		out.Applies = &a
	}
	var err error
	if out.Status, err = n.Status(); err != nil {
		failed(MeasuredStatus, err)
		return out
	}
	for _, i := range out.Status.Interfaces {
		switch {
		case i.Mode == "": // not installed
		case errors.Is(i.countsErr, fs.ErrNotExist):
			failed(MeasuredIngress, fmt.Errorf("%s: %w", i.Name, n.notPinned()))
		case i.countsErr != nil:
			failed(MeasuredIngress, fmt.Errorf("%s: %w", i.Name, i.countsErr))
		default:
			out.Traffic = append(out.Traffic, Traffic{i.Name, i.counts})
		}
	}
	record, err := m.refresh(n.RunDir)
	if err != nil {
		failed(MeasuredRules, err)
		return out
	}
	if record == nil {
		return out
	}
	leaving, err := nft.Counters()
	if err != nil {
		failed(MeasuredEgress, err)
	}
	out.Rules = m.rules(record, out.Traffic, leaving)
	return out
}

// refresh reads what rules are called, unless it is known, and returns the record that says whose they are; nil where nothing
// was ever applied.
func (m *Meter) refresh(runDir string) (*Record, error) {
	record, err := readRecord(runDir)
	if err != nil || record == nil {
		return nil, err
	}
	stamp, err := files.StampOf(snapshotPath(runDir))
	if err == nil && stamp == m.stamp && record.Generation == m.generation {
		return record, nil
	}
	record, s, err := readInForce(runDir)
	if err != nil || record == nil {
		return nil, err
	}
	m.stamp, m.generation, m.lists = stamp, s.Generation, nil
	for list := range s.Lists {
		rules := s.rules(list)
		m.lists = append(m.lists, measuredList{measured(rules.Ingress), measured(rules.Egress)})
	}
	return record, nil
}

func measured(rules []policy.Rule) []measuredRule {
	out := make([]measuredRule, len(rules))
	for i, id := range policy.IDs(rules) {
		r := &rules[i]
		out[i] = measuredRule{id, r.Tier, r.Policy, r.Index, r.Action}
	}
	return out
}

// rules finds what each rule has counted, by the rule's identity: its place may be another's already. leaving is nil where it
// could not be read.
func (m *Meter) rules(record *Record, arrived []Traffic, leaving map[nft.CounterKey]nft.Counter) []RuleTraffic {
	counts := map[string]*datapath.Counts{}
	for i := range arrived {
		counts[arrived[i].Interface] = &arrived[i].Counts
	}
	var out []RuleTraffic
	for _, i := range record.Interfaces {
		if !i.installed() || i.List >= len(m.lists) {
			continue
		}
		list := &m.lists[i.List]
		if c := counts[i.Name]; c != nil {
			place := c.Places()
			for _, r := range list.ingress {
				if at, ok := place[r.id]; ok {
					out = append(out, r.traffic(i.Name, policy.Ingress, c.Rules[at].Packets, c.Rules[at].Bytes))
				}
			}
		}
		for _, r := range list.egress {
			if c, ok := leaving[nft.CounterKey{Interface: i.Name, RuleID: r.id}]; ok {
				out = append(out, r.traffic(i.Name, policy.Egress, c.Packets, c.Bytes))
			}
		}
	}
	return out
}

func (r *measuredRule) traffic(ifname string, d policy.Direction, packets, bytes uint64) RuleTraffic {
	return RuleTraffic{ifname, d, r.tier, r.policy, r.index, r.action, packets, bytes}
}
