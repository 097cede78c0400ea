// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"io"
	"path/filepath"
	"slices"

	"github.com/untracked-cni/untracked/pkg/files"
	"github.com/untracked-cni/untracked/pkg/monitor"
	"github.com/untracked-cni/untracked/pkg/nflog"
	"github.com/untracked-cni/untracked/pkg/nft"
	"github.com/untracked-cni/untracked/pkg/policy"
)

var (
	// ErrNotApplied says that there is no policy on this node.
	ErrNotApplied = errors.New("no policy is in force on this node")
	// ErrNothingLogs says that no rule of the policy in force logs.
	ErrNothingLogs = errors.New("no rule of the policy in force logs: put a rule with action Log before the one to be watched")
)

// Monitor opens the reports of all rules in force that log. The caller runs it, and closes it by the function. Returns
// ErrNotApplied or ErrNothingLogs where there is nothing to report.
func (n *Node) Monitor() (m *monitor.Monitor, closeAll func(), err error) {
	book := &ruleBook{runDir: n.RunDir}
	if err := book.refresh(); err != nil {
		return nil, nil, err
	}
	arriving, leaving := book.logs()
	if !arriving && !leaving {
		return nil, nil, ErrNothingLogs
	}
	var open []io.Closer
	closeAll = func() {
		for _, c := range open {
			c.Close()
		}
	}
	m = &monitor.Monitor{Rules: book.rules}
	if arriving {
		events, err := n.pins().Events()
		if err != nil {
			return nil, nil, err
		}
		open = append(open, events)
		m.Arriving = events
	}
	if leaving {
		reader, err := nflog.Open(nft.LogGroup, nft.LogBytes)
		if err != nil {
			closeAll()
			return nil, nil, err
		}
		open = append(open, reader)
		m.Leaving = reader
	}
	return m, closeAll, nil
}

// ruleBook looks rules up by interface, and follows the policy while it changes.
type ruleBook struct {
	runDir string
	stamp  files.Stamp
	// pages are the newest one first, and the one before it: a report may be of a packet that met the old rules.
	pages []rulePage
}

type rulePage struct {
	interfaces []InterfaceRecord
	lists      []policy.Rules
}

// refresh reads the record and the rules if they are others than before.
func (b *ruleBook) refresh() error {
	stamp, err := files.StampOf(filepath.Join(b.runDir, recordFile))
	if err == nil && stamp == b.stamp {
		return nil
	}
	record, err := readRecord(b.runDir)
	if err != nil {
		return err
	}
	if record == nil {
		return ErrNotApplied
	}
	snapshot, err := readSnapshot(b.runDir)
	if err != nil {
		return err
	}
	page := rulePage{interfaces: record.Interfaces}
	for i := range snapshot.Lists {
		page.lists = append(page.lists, snapshot.rules(i))
	}
	b.stamp = stamp
	b.pages = append([]rulePage{page}, b.pages[:min(len(b.pages), 1)]...)
	return nil
}

// logs reports whether some rule does, either way.
func (b *ruleBook) logs() (arriving, leaving bool) {
	logs := func(rules []policy.Rule) bool {
		return slices.ContainsFunc(rules, func(r policy.Rule) bool { return r.Action == policy.Log })
	}
	for _, i := range b.pages[0].interfaces {
		if i.installed() && i.List < len(b.pages[0].lists) {
			list := b.pages[0].lists[i.List]
			arriving, leaving = arriving || logs(list.Ingress), leaving || logs(list.Egress)
		}
	}
	return arriving, leaving
}

// rules is a monitor.Rules.
func (b *ruleBook) rules(ifindex int, _ string, d policy.Direction, generation uint64) []policy.Rule {
	_ = b.refresh() // what was known before may still serve
	for _, page := range b.pages {
		for _, i := range page.interfaces {
			if i.Index == ifindex && i.List < len(page.lists) && (generation == 0 || i.Generation == generation) {
				return page.lists[i.List].Of(d)
			}
		}
	}
	return nil
}
