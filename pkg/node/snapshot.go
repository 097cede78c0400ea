// SPDX-License-Identifier: Apache-2.0

package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/untracked-cni/untracked/pkg/netset"
	"github.com/untracked-cni/untracked/pkg/policy"
)

// snapshot has the rules in force, complete, for whoever lists or explains them. It is a file of its own, because
// the record is read at every pod start.
type snapshot struct {
	Format     int            `json:"format"`
	Generation uint64         `json:"generation"`
	Lists      []snapshotList `json:"lists"`
	// Sets are the address sets of all lists, each once and packed, however many rules and lists name it: there may be a
	// million addresses.
	Sets [][]byte `json:"sets,omitempty"`

	sets []*netset.Set
}

type snapshotList struct {
	Ingress []snapshotRule `json:"ingress"`
	Egress  []snapshotRule `json:"egress"`
}

// snapshotRule is a rule whose sets are elsewhere: these fields stand before those of the same names in policy.Rule.
type snapshotRule struct {
	policy.Rule
	Source, Destination snapshotEntity
}

type snapshotEntity struct {
	policy.Entity
	Nets, NotNets *int `json:",omitempty"`
}

func newSnapshot(generation uint64, lists []List) *snapshot {
	s := &snapshot{Format: snapshotFormat, Generation: generation, Lists: make([]snapshotList, len(lists))}
	places := map[uint64][]int{} // by the set's hash
	place := func(set *netset.Set) *int {
		if set == nil {
			return nil
		}
		hash := set.Hash()
		for _, at := range places[hash] {
			if other := s.sets[at]; other == set || other.Entries() == set.Entries() && other.Equal(set) {
				return &at
			}
		}
		at := len(s.sets)
		places[hash] = append(places[hash], at)
		packed, _ := set.MarshalBinary() // which never fails
		s.Sets, s.sets = append(s.Sets, packed), append(s.sets, set)
		return &at
	}
	entity := func(e policy.Entity) snapshotEntity {
		out := snapshotEntity{Entity: e, Nets: place(e.Nets), NotNets: place(e.NotNets)}
		out.Entity.Nets, out.Entity.NotNets = nil, nil
		return out
	}
	half := func(rules []policy.Rule) []snapshotRule {
		out := make([]snapshotRule, len(rules))
		for i, r := range rules {
			out[i] = snapshotRule{r, entity(r.Source), entity(r.Destination)}
		}
		return out
	}
	for i, l := range lists {
		s.Lists[i] = snapshotList{half(l.Ingress), half(l.Egress)}
	}
	return s
}

// snapshotFormat changes with the meaning of what is recorded.
const snapshotFormat = 1

// ErrChanging is returned when the policy was being exchanged while it was read.
var ErrChanging = errors.New("the policy is being changed at this moment; try again")

// readInForce returns the record with the rules that it is about, both nil where nothing was ever applied. It takes no
// lock, and the two files are written one after the other: where they do not fit, it looks again.
func readInForce(runDir string) (*Record, *snapshot, error) {
	for range 10 {
		record, err := readRecord(runDir)
		if err != nil || record == nil {
			return nil, nil, err
		}
		s, err := readSnapshot(runDir)
		if err != nil {
			return nil, nil, err
		}
		if s.Generation == record.Generation {
			return record, s, nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return nil, nil, ErrChanging
}

func snapshotPath(runDir string) string { return filepath.Join(runDir, rulesFile) }

func readSnapshot(runDir string) (*snapshot, error) {
	data, err := os.ReadFile(snapshotPath(runDir))
	if err != nil {
		return nil, fmt.Errorf("read rules: %w", err)
	}
	s := &snapshot{}
	if err := json.Unmarshal(data, s); s.Format != snapshotFormat {
		return nil, errors.New("the rules on record are another version's; run `untracked apply CONFLIST`")
	} else if err != nil {
		return nil, fmt.Errorf("read rules: %w", err)
	}
	for _, packed := range s.Sets {
		set := &netset.Set{}
		if err := set.UnmarshalBinary(packed); err != nil {
			return nil, fmt.Errorf("read rules: %w", err)
		}
		s.sets = append(s.sets, set)
	}
	return s, nil
}

// rules are those of one list, none if there is no such list.
func (s *snapshot) rules(list int) policy.Rules {
	if list >= len(s.Lists) {
		return policy.Rules{}
	}
	set := func(place *int) *netset.Set {
		if place == nil || *place >= len(s.sets) {
			return nil
		}
		return s.sets[*place]
	}
	half := func(rules []snapshotRule) []policy.Rule {
		out := make([]policy.Rule, len(rules))
		for i, r := range rules {
			out[i] = r.Rule
			out[i].Source, out[i].Destination = r.Source.Entity, r.Destination.Entity
			out[i].Source.Nets, out[i].Source.NotNets = set(r.Source.Nets), set(r.Source.NotNets)
			out[i].Destination.Nets, out[i].Destination.NotNets = set(r.Destination.Nets), set(r.Destination.NotNets)
		}
		return out
	}
	return policy.Rules{Ingress: half(s.Lists[list].Ingress), Egress: half(s.Lists[list].Egress)}
}
