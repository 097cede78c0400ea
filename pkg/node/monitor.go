// SPDX-License-Identifier: Apache-2.0

package node

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

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
	// ErrBusy says that there is a monitor already.
	ErrBusy = errors.New("another monitor is reading")
)

// Watch is a monitor of all rules in force that log. Close it.
type Watch struct {
	*monitor.Monitor
	// LogRules is how many rules log, Interfaces where.
	LogRules   int
	Interfaces []string

	open []io.Closer
}

// Monitor begins to watch what is in force. The caller runs the monitor. Returns ErrNotApplied or ErrNothingLogs where
// there is nothing to watch, and ErrBusy where somebody else does.
func (n *Node) Monitor() (_ *Watch, err error) {
	book := &ruleBook{runDir: n.RunDir}
	if err := book.refresh(); err != nil {
		return nil, err
	}
	w := &Watch{Monitor: &monitor.Monitor{Rules: book.rules}}
	var ingress, egress bool
	w.LogRules, w.Interfaces, ingress, egress = book.logs()
	if !ingress && !egress {
		return nil, ErrNothingLogs
	}
	defer func() {
		if err != nil {
			w.Close()
		}
	}()
	lock, err := lockMonitor(n.RunDir)
	if err != nil {
		return nil, err
	}
	w.open = append(w.open, lock)
	if ingress {
		events, err := n.pins().Events()
		if err != nil {
			return nil, err
		}
		w.open, w.Ingress = append(w.open, events), events
	}
	if egress {
		reader, err := nflog.Open(nft.LogGroup, nft.LogBytes)
		if err != nil {
			return nil, err
		}
		w.open, w.Egress = append(w.open, reader), reader
	}
	return w, nil
}

// Close ends the watch, and lets others watch when all else is closed.
func (w *Watch) Close() {
	for _, c := range slices.Backward(w.open) {
		c.Close()
	}
}

// lockMonitor lets one monitor read at a time, as two would take each other's events. What is locked is the run
// directory itself, so that no file is left behind. The kernel drops the lock of a monitor that dies.
func lockMonitor(runDir string) (io.Closer, error) {
	dir, err := os.Open(runDir)
	if err != nil {
		return nil, fmt.Errorf("lock run directory: %w", err)
	}
	err = unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return dir, nil
	}
	dir.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, ErrBusy
	}
	return nil, fmt.Errorf("lock run directory %s: %w", runDir, err)
}

// ruleBook looks rules up by interface, and follows the policy while it changes.
type ruleBook struct {
	runDir string
	stamp  files.Stamp
	// pages are the newest one first, and the one before it: an event may be of a packet that met the old rules.
	pages []rulePage
}

type rulePage struct {
	interfaces []InterfaceRecord
	lists      []policy.Rules
}

// refresh reads the record and the rules if they are others than before. What fails is tried again the next time.
func (b *ruleBook) refresh() error {
	stamp, err := files.StampOf(filepath.Join(b.runDir, recordFile))
	if err == nil && stamp == b.stamp {
		return nil
	}
	record, snapshot, err := readInForce(b.runDir)
	if err != nil {
		return err
	}
	if record == nil {
		return ErrNotApplied
	}
	page := rulePage{interfaces: record.Interfaces}
	for i := range snapshot.Lists {
		page.lists = append(page.lists, snapshot.rules(i))
	}
	b.stamp = stamp
	b.pages = append([]rulePage{page}, b.pages[:min(len(b.pages), 1)]...)
	return nil
}

// logs tells how many rules log, on which interfaces, and which way.
func (b *ruleBook) logs() (rules int, interfaces []string, ingress, egress bool) {
	names := map[policy.Direction]map[string]bool{policy.Ingress: {}, policy.Egress: {}}
	for _, i := range b.pages[0].interfaces {
		if !i.installed() || i.List >= len(b.pages[0].lists) {
			continue
		}
		logs := false
		for d, names := range names {
			for _, r := range b.pages[0].lists[i.List].Of(d) {
				if r.Action == policy.Log {
					logs, names[r.Name()] = true, true
				}
			}
		}
		if logs {
			interfaces = append(interfaces, i.Name)
		}
	}
	in, out := len(names[policy.Ingress]), len(names[policy.Egress])
	return in + out, interfaces, in > 0, out > 0
}

// rules is a monitor.Rules.
func (b *ruleBook) rules(ifindex int, d policy.Direction, generation uint64) (name string, rules []policy.Rule) {
	_ = b.refresh() // what was known before may still serve
	for _, page := range b.pages {
		for _, i := range page.interfaces {
			if i.Index != ifindex {
				continue
			}
			if i.List < len(page.lists) && (generation == 0 || i.Generation == generation) {
				return i.Name, page.lists[i.List].Of(d)
			}
			name = cmp.Or(name, i.Name)
		}
	}
	return name, nil
}
