// SPDX-License-Identifier: Apache-2.0

package node

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"time"

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
	// Origin is where the rule is written, as in redis.yaml:12, or what made it.
	Origin string `json:"origin"`
}

// TextOf puts a rule in words.
func TextOf(r *policy.Rule) RuleText {
	return RuleText{r.Tier, r.Policy, r.Index, r.Action.String(), r.Match(), cmp.Or(r.Origin, "annotation "+r.Policy)}
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
	// LastMatched is nil if no packet ever did, and on the way out, where it is not known.
	LastMatched *time.Time `json:"lastMatched,omitempty"`
}

// notPinned says why what was applied cannot be seen.
func (n *Node) notPinned() error {
	return fmt.Errorf("nothing is pinned at %s in this mount namespace (what `ip netns exec` or a container pins dies with it: use `nsenter --net=`)", n.pins().Dir())
}

// Rules lists the rules in force on every interface, in the order in which they are asked, arriving packets
// first. It returns nothing where no policy has been applied. Beside an apply, a rule that is on record and no longer in
// force on an interface has nothing counted there.
func (n *Node) Rules() ([]RuleStatus, error) {
	record, snapshot, err := readInForce(n.RunDir)
	if err != nil || record == nil {
		return nil, err
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
		if errors.Is(err, fs.ErrNotExist) {
			return nil, n.notPinned()
		}
		if err != nil {
			return nil, err
		}
		rules := snapshot.rules(i.List)
		place := counts.Places()
		for n, id := range policy.IDs(rules.Ingress) {
			s := RuleStatus{Interface: i.Name, Direction: policy.Ingress, RuleText: TextOf(&rules.Ingress[n])}
			if at, ok := place[id]; ok {
				c := counts.Rules[at]
				s.Packets, s.Bytes = c.Packets, c.Bytes
				if !c.Last.IsZero() {
					s.LastMatched = &c.Last
				}
			}
			out = append(out, s)
		}
		for n, id := range policy.IDs(rules.Egress) {
			s := RuleStatus{Interface: i.Name, Direction: policy.Egress, RuleText: TextOf(&rules.Egress[n])}
			c := leaving[nft.CounterKey{Interface: i.Name, RuleID: id}]
			s.Packets, s.Bytes = c.Packets, c.Bytes
			out = append(out, s)
		}
	}
	return out, nil
}
