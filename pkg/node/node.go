// SPDX-License-Identifier: Apache-2.0

// Package node makes a node match its policy: it resolves what the config asks for, plans, applies, records,
// and can tell, by reading only, whether anything has changed since.
//
//	config ── Expand ──► rules ─┐
//	hostif ── Resolve ─► interfaces ─┼─ MakePlan (pure) ──► Plan ── apply ──► programs, table, record
//	record, pins ── observe ─► what is there ─┘
//
// Apply is idempotent and its record comes last: a caller killed at any point leaves a record that does not fit,
// and the next call does it all again.
//
// Pods that ask for ports of their own come and go beside that, one by one: see [Node.AddPod].
package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/untracked-cni/untracked/pkg/config"
	"github.com/untracked-cni/untracked/pkg/datapath"
)

// Node is the node as one caller sees it: its network namespace, its BPF file system, its run directory.
type Node struct {
	// Version is the plugin's.
	Version string
	BPFFS   string
	RunDir  string
	Log     *slog.Logger
	// Progress is called before each step of plan and apply with its name. (optional)
	Progress func(step string)
}

// lockTimeout bounds how long a caller waits for others. Applying a policy takes well under a second; a runtime
// gives a plugin minutes.
const lockTimeout = 30 * time.Second

// lock serialises this caller with the others on the node.
func (n *Node) lock(ctx context.Context) (unlock func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	return lock(ctx, n.RunDir)
}

func (n *Node) pins() *datapath.Pins { return datapath.PinsAt(n.BPFFS) }

func (n *Node) progress(format string, args ...any) {
	step := fmt.Sprintf(format, args...)
	n.Log.Debug("apply", "step", step)
	if n.Progress != nil {
		n.Progress(step)
	}
}

// Result is what Ensure found or did.
type Result struct {
	// Changed is false where the node matched the policy already, and nothing was written.
	Changed bool
	// Reasons say what did not match.
	Reasons  []string
	Record   *Record
	Problems []Problem
}

// Broken reports whether some part of the policy is not in force.
func (r *Result) Broken() bool { return anyBroken(r.Problems) }

// Ensure makes the node match the config. On a node that does it only reads, without the lock.
//
// An error is about the config (a *config.Error), the lock (ErrLocked) or the run directory; what is wrong with
// the datapath is in the result's problems, and leaves in force whatever was.
func (n *Node) Ensure(ctx context.Context, c *config.Config) (*Result, error) {
	start := time.Now()
	record, err := readRecord(n.RunDir)
	if err != nil {
		return nil, err
	}
	if d := n.drift(c, record); d.settled(c, record, start) {
		return &Result{Record: record, Problems: record.problems()}, nil
	}
	return n.ensure(ctx, c, start, false)
}

// Apply is Ensure under the lock, even where nothing seems to have changed. It forgets networks and interfaces that
// the config does not name: an operator has spoken.
func (n *Node) Apply(ctx context.Context, c *config.Config) (*Result, error) {
	return n.ensure(ctx, c, time.Now(), true)
}

func (n *Node) ensure(ctx context.Context, c *config.Config, start time.Time, force bool) (*Result, error) {
	n.progress("waiting for the lock")
	unlock, err := n.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()

	record, err := readRecord(n.RunDir)
	if err != nil {
		return nil, err
	}
	d := n.drift(c, record)
	if !force && d.settled(c, record, start) {
		return &Result{Record: record, Problems: record.problems()}, nil
	}
	if !force && d.onlyNetwork() {
		// The same policy on one more network: there is nothing to do but to know it.
		record.Networks[c.Network], record.Network = record.Config, c.Network
		return &Result{Record: record, Problems: record.problems()}, writeFile(n.RunDir, recordFile, record)
	}
	reasons := d.words()
	if len(reasons) == 0 {
		reasons = []string{"asked for"}
	}
	if force && record != nil {
		record.Networks = nil
	}
	attempt := n.begin()
	plan, err := n.plan(c, record, force)
	if err != nil {
		attempt.ended(true)
		return nil, err
	}
	n.Log.Info("applying policy", "network", c.Network, "generation", plan.Generation, "reasons", reasons)
	record, err = n.apply(c, plan, record, force, attempt)
	if err != nil {
		attempt.ended(true)
		return nil, err
	}
	return &Result{Changed: true, Reasons: reasons, Record: record, Problems: record.problems()}, nil
}

// Check returns what is not as the policy wants it. A datapath that could not be set up is no drift unless the
// config says required; nor is another network's policy, applied after this one, or a file that was edited or an
// address that moved since, which the next ADD will see. It changes nothing, but where something is amiss it waits for the caller that
// may be about to put it right, and looks again: on some runtimes a failing CHECK fails the pod. For the same reason a node
// whose run directory is full or read-only passes, unless the config says required: its ADD did, too.
func (n *Node) Check(ctx context.Context, c *config.Config) ([]string, error) {
	drift, err := n.checkOnce(c)
	if err != nil || len(drift) == 0 {
		return drift, err
	}
	if why := cannotRecord(n.RunDir); why != nil && !c.Required {
		n.Log.Warn("what is in force is not on record, and not checked", "error", why)
		return nil, nil
	}
	if _, never := os.Stat(n.RunDir); never != nil {
		return drift, nil
	}
	unlock, err := n.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	return n.checkOnce(c)
}

func (n *Node) checkOnce(c *config.Config) ([]string, error) {
	record, err := readRecord(n.RunDir)
	if err != nil {
		return nil, err
	}
	if record == nil {
		return []string{"no policy has been applied"}, nil
	}
	if c.Required {
		return n.drift(c, record).words(), nil
	}
	hash := configHash(c)
	superseded := record.Config != hash && record.Networks[c.Network] == hash
	if superseded {
		n.Log.Warn("another network's policy is in force", "network", record.Network)
	}
	if superseded || record.Broken {
		// What was achieved is what there is to check.
		if c, err = record.config(); err != nil {
			return []string{err.Error()}, nil
		}
		drift, _ := n.datapathDrift(c, record)
		return drift, nil
	}
	d := n.drift(c, record)
	d.files, d.addresses = nil, nil
	return d.words(), nil
}

// brokenEvidence is how long a failed apply says anything about the next one.
const brokenEvidence = 10 * time.Second

// Ready returns an error if an ADD of this config failed a moment ago to put the policy in force. Older evidence says
// nothing: while a runtime holds pods back because of this very error, no ADD comes to renew it.
func (n *Node) Ready(c *config.Config) error {
	record, err := readRecord(n.RunDir)
	if err != nil {
		return err
	}
	if record == nil || !record.Broken || record.Tried != configHash(c) || time.Since(record.Applied) > brokenEvidence {
		return nil
	}
	var broken []string
	for _, p := range record.Problems {
		if p.Code == ProblemBPFFS && datapath.IsBPFFS(n.BPFFS) {
			return nil // mended since: the next ADD will tell
		}
		if p.Broken {
			broken = append(broken, p.String())
		}
	}
	return errors.New(strings.Join(broken, "; "))
}

// Remove takes everything off the node: programs, links, pins, table, records. It reports whether there was
// anything. Removing nothing is no error.
func (n *Node) Remove(ctx context.Context) (bool, error) {
	found := n.present()
	if _, err := os.Stat(filepath.Join(n.RunDir, lockFile)); errors.Is(err, fs.ErrNotExist) && !found {
		return false, nil
	}
	unlock, err := n.lock(ctx)
	if err != nil {
		return false, err
	}
	defer unlock()
	return found, n.remove()
}
