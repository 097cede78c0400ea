// SPDX-License-Identifier: Apache-2.0

// Package install puts the plugin on a node, keeps it there and takes it away again: the binary, a copy of the policy's
// files, the entry on the conf list, the policy in force.
//
//	config directory ─ read ─► annotations, files ─ validate ─┬─► copy in the state directory
//	this binary ──────────────────────────────────────────────┼─► CNI binary directory
//	conf directory ─ choose ─► conf list ─────────────────────┼─► conf list with our entry
//	                                                          └─► package node: the policy in force
//
// Every round does all of it, in this order, and writes nothing where all is as it should be. A bad policy changes
// nothing. Each file is replaced in one step, so that a runtime never reads half of one and a killed installer leaves
// nothing that the next does not repair. A conf list that cannot be parsed is somebody's who is about to write it: it is
// read again, and never written.
//
// All directories have the same paths for the installer and for the runtime, in a container, too. It is no part of any
// packet's way: without it all stays as it is, until the main CNI plugin rewrites its list.
package install

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/untracked-cni/untracked/pkg/config"
	"github.com/untracked-cni/untracked/pkg/files"
	"github.com/untracked-cni/untracked/pkg/node"
)

// Installer says what to install where.
type Installer struct {
	// Version is the plugin's.
	Version string
	// Conflist is the file that gets the entry. Empty: the first of ConfDir, which is the one that runtimes take.
	Conflist string
	// BinDir is where the runtime finds plugins, ConfDir where it finds conf lists.
	BinDir, ConfDir string
	// ConfigDir has annotations.yaml and resources, StateDir the copy of both that the plugin reads.
	ConfigDir, StateDir string
	// BPFFS and RunDir are the places that package node is given, where the annotations do not say others. The installers'
	// own lock is in RunDir, too. BPFFS may be empty.
	BPFFS, RunDir string
	// NodeName is this node's name where the annotations do not say it. (optional)
	NodeName string
	// DropIn puts the entry into a file of its own, which libcni reads from 1.3 on.
	DropIn bool
	Log    *slog.Logger

	// self is the running binary; another one in tests.
	self string
	// stays says that it is to keep what is there, whatever becomes of the policy.
	stays bool
	// good is the last policy that was found valid, installed the binary that was compared last.
	good      *wanted
	installed files.Stamp
	// replaced is the file that our last conf list took the place of, for a while.
	replaced *replaced
	contest  contest
	// applied is the config that this process put in force last, under the key of its entry.
	applied    *config.Config
	appliedKey string
	// reported and missed are what was logged last.
	reported, missed string
}

// unready says that something is not there or not complete yet, which time or another program will change.
type unready struct{ error }

func (u unready) Unwrap() error { return u.error }

func isUnready(err error) bool { return errors.As(err, new(unready)) }

// patience is how long an installer that does not stay waits for a conf list to be complete, retryFirst how long before
// it looks again.
const (
	patience   = 5 * time.Second
	retryFirst = 100 * time.Millisecond
)

// Install does one round, and another one if somebody wrote the conf list meanwhile. It returns what it found to be in
// force.
func (i *Installer) Install(ctx context.Context) (*node.Result, error) {
	deadline := time.Now().Add(patience)
	said := ""
	for wait := retryFirst; ; wait *= 2 {
		result, err := i.lockedRound(ctx)
		if !isUnready(err) && i.replaced != nil {
			// Who had the old file open for writing when it was replaced may have written to it since.
			var again *node.Result
			if again, err = i.lockedRound(ctx); again != nil && again.Changed {
				result = again
			}
		}
		if !isUnready(err) || time.Now().Add(wait).After(deadline) {
			i.forgetReplaced()
			return result, err
		}
		if text := err.Error(); text != said {
			said = text
			i.Log.Info("waiting for the conf list", "reason", text)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(wait):
		}
	}
}

func (i *Installer) lockedRound(ctx context.Context) (*node.Result, error) {
	unlock, err := i.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	return i.round(ctx)
}

// round puts everything in its place, under the installers' lock.
func (i *Installer) round(ctx context.Context) (*node.Result, error) {
	i.clean()
	w, bad := i.policy()
	if w == nil {
		return nil, bad
	}
	t, err := i.choose()
	if err != nil {
		return nil, errors.Join(bad, err)
	}
	defer t.close()
	if err := i.fits(t); err != nil {
		return nil, errors.Join(bad, err)
	}
	result, err := i.put(ctx, t, w)
	return result, errors.Join(bad, err)
}

// policy is what the node shall have, valid and staged. Where that cannot be had, it is what was good before, if there was
// any, with what is wrong.
func (i *Installer) policy() (*wanted, error) {
	w, err := i.wanted()
	if err == nil {
		err = i.validate(w)
	}
	if err == nil {
		i.good = w
		return w, nil
	}
	if i.good == nil && i.stays {
		if i.good = i.remembered(); i.good != nil {
			i.Log.Warn("the policy is bad: the last good one on this node is kept in its place", "directory", i.copyDir())
		}
	}
	if i.good == nil {
		return nil, err
	}
	if _, lost := i.stage(i.good); lost != nil {
		return nil, errors.Join(err, lost)
	}
	return i.good, err
}

func (i *Installer) put(ctx context.Context, t *target, w *wanted) (*node.Result, error) {
	if err := i.putBinary(); err != nil {
		return nil, err
	}
	i.lookForMainPlugin(t)
	if err := i.putCopy(w); err != nil {
		return nil, err
	}
	// The policy is put in force whoever quarrels about the list.
	wrote := i.putEntry(t, w)
	result, err := i.apply(ctx, w, t.list)
	return result, errors.Join(wrote, err)
}

// apply puts the policy in force: by all means if it is new to this process, else where the node has drifted from it.
func (i *Installer) apply(ctx context.Context, w *wanted, list *config.List) (*node.Result, error) {
	c, err := w.config()
	if err != nil {
		return nil, err
	}
	c.Network, c.CNIVersion = list.Network, list.CNIVersion
	key := c.Network + "\n" + w.key()
	put := i.nodeOf(c).Ensure
	if key != i.appliedKey {
		put = i.nodeOf(c).Apply
	}
	result, err := put(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("put the policy in force: %w", err)
	}
	i.applied, i.appliedKey = c, key
	i.report(result)
	return result, nil
}

// heal looks after the policy that was put in force last, while there is something else to wait for.
func (i *Installer) heal(ctx context.Context) {
	if i.applied == nil {
		return
	}
	result, err := i.nodeOf(i.applied).Ensure(ctx, i.applied)
	if err != nil {
		i.Log.Error("the policy in force could not be looked after", "error", err)
		return
	}
	i.report(result)
}

func (i *Installer) nodeOf(c *config.Config) *node.Node {
	return &node.Node{Version: i.Version, BPFFS: c.BPFFS, RunDir: c.RunDir, Log: slog.New(slog.DiscardHandler)}
}

// report logs what was put in force, and what stands in its way; an attempt that ended like the last one is not worth a
// line.
func (i *Installer) report(result *node.Result) {
	r := result.Record
	level, text, state := slog.LevelInfo, "policy put in force", ""
	if result.Broken() {
		level, text, state = slog.LevelError, "policy could not be put in force everywhere", fmt.Sprint(r.Policy, result.Problems)
	}
	if !result.Changed || state != "" && state == i.reported {
		return
	}
	i.reported = state
	var names []string
	for _, f := range r.Interfaces {
		if f.Attached.Mode != "" {
			names = append(names, f.Name)
		}
	}
	i.Log.Log(context.Background(), level, text, "policy", r.Policy, "generation", r.Generation, "rules", r.Rules,
		"interfaces", strings.Join(names, ","), "reason", strings.Join(result.Reasons, "; "))
	for _, p := range result.Problems {
		level := slog.LevelWarn
		if p.Broken {
			level = slog.LevelError
		}
		i.Log.Log(context.Background(), level, p.Message, "problem", p.Code, "remedy", p.Remedy)
	}
}

// lookForMainPlugin warns, once, where the runtime seems to take its plugins from elsewhere, and so would not find ours.
func (i *Installer) lookForMainPlugin(t *target) {
	main := filepath.Join(i.BinDir, t.list.Plugins[0])
	if exists(main) || i.missed == main {
		return
	}
	i.missed = main
	i.Log.Warn("the main plugin of the list is not where untracked is put; if the runtime does not look here, pods cannot start",
		"missing", main, "remedy", "name the runtime's directory of plugins with --bin-dir")
}

// clean removes what a killed installer left behind.
func (i *Installer) clean() {
	for _, dir := range slices.Compact([]string{i.BinDir, i.ConfDir, i.StateDir}) {
		removeTemp(dir)
	}
}
