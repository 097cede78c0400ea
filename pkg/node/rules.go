// SPDX-License-Identifier: Apache-2.0

package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"github.com/untracked-cni/untracked/pkg/nft"
	"github.com/untracked-cni/untracked/pkg/policy"
)

// RuleText is a rule in words, as every listing has it.
type RuleText struct {
	Tier   string `json:"tier"`
	Policy string `json:"policy"`
	Index  int    `json:"index"`
	Action string `json:"action"`
	Match  string `json:"match"`
}

// TextOf puts a rule in words.
func TextOf(r *policy.Rule) RuleText {
	return RuleText{r.Tier, r.Policy, r.Index, r.Action.String(), r.Match()}
}

// Name is how listings call the rule: tier/policy[index].
func (t RuleText) Name() string {
	r := policy.Rule{Tier: t.Tier, Policy: t.Policy, Index: t.Index}
	return r.Name()
}

// RuleStatus is a rule of one interface and direction with what it has counted.
type RuleStatus struct {
	Interface string           `json:"interface"`
	Direction policy.Direction `json:"direction"`
	RuleText
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// ruleRecords are the rules of the policy in force, in words, for listings. They are a file of their own,
// because the record is read at every pod start.
type ruleRecords struct {
	Generation uint64       `json:"generation"`
	Ingress    []ruleRecord `json:"ingress"`
	Egress     []ruleRecord `json:"egress"`
}

type ruleRecord struct {
	RuleText
	ID string `json:"id"` // hexadecimal: JSON's numbers lose bits of it
}

func newRuleRecords(r *Record, rules policy.Rules) ruleRecords {
	list := func(rules []policy.Rule) []ruleRecord {
		out := make([]ruleRecord, len(rules))
		for i, id := range policy.IDs(rules) {
			out[i] = ruleRecord{TextOf(&rules[i]), strconv.FormatUint(id, 16)}
		}
		return out
	}
	return ruleRecords{r.Generation, list(rules.Ingress), list(rules.Egress)}
}

// Rules lists the rules in force on every interface, in the order in which they are asked, arriving packets
// first. It returns nothing where no policy has been applied.
func (n *Node) Rules() ([]RuleStatus, error) {
	record, err := readRecord(n.RunDir)
	if err != nil || record == nil {
		return nil, err
	}
	data, err := os.ReadFile(filepath.Join(n.RunDir, rulesFile))
	if err != nil {
		return nil, fmt.Errorf("read rules: %w", err)
	}
	var rules ruleRecords
	if err := json.Unmarshal(data, &rules); err != nil {
		return nil, fmt.Errorf("read rules: %w", err)
	}
	leaving, err := nft.Counters()
	if err != nil {
		return nil, err
	}
	var out []RuleStatus
	for _, i := range record.Interfaces {
		if !i.installed() {
			continue
		}
		counts, err := n.pins().Counts(i.Index)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for place, rule := range rules.Ingress {
			s := RuleStatus{Interface: i.Name, Direction: policy.Ingress, RuleText: rule.RuleText}
			if place < len(counts.Rules) {
				s.Packets, s.Bytes = counts.Rules[place].Packets, counts.Rules[place].Bytes
			}
			out = append(out, s)
		}
		for _, rule := range rules.Egress {
			s := RuleStatus{Interface: i.Name, Direction: policy.Egress, RuleText: rule.RuleText}
			if id, err := strconv.ParseUint(rule.ID, 16, 64); err == nil {
				c := leaving[nft.CounterKey{Interface: i.Name, RuleID: id}]
				s.Packets, s.Bytes = c.Packets, c.Bytes
			}
			out = append(out, s)
		}
	}
	return out, nil
}
