// SPDX-License-Identifier: Apache-2.0

package install

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/untracked-cni/untracked/pkg/config"
	"github.com/untracked-cni/untracked/pkg/node"
)

// ErrWatched says that an installer is at work that would put everything back.
var ErrWatched = errors.New("an installer stays on this node (install --watch) and would put everything back; end it first: delete its DaemonSet, or stop its service")

// Uninstall takes everything off the node, in an order that lets pods start and stop all the time: the entry, then, when
// the runtime has had some time to read its list again, programs, pins and table, the copy of the policy, and last the
// binary. It reports whether there was anything. Nothing there, or half of it, is no error.
func (i *Installer) Uninstall(ctx context.Context, wait time.Duration) (found bool, err error) {
	unlock, err := i.lock(ctx)
	if err != nil {
		return false, err
	}
	defer unlock()
	if len(i.others(nil)) > 0 {
		return false, ErrWatched
	}
	return i.uninstall(ctx, wait)
}

func (i *Installer) uninstall(ctx context.Context, wait time.Duration) (found bool, err error) {
	i.clean()
	places := []place{{i.BPFFS, i.RunDir}}
	entries, err := i.takeEntries()
	for _, e := range entries {
		c := config.Options(e)
		places = append(places, place{c.BPFFS, c.RunDir})
	}
	if err != nil {
		return false, err // the binary must stay while a list names it
	}
	if found = len(entries) > 0; found {
		i.Log.Info("waiting for the runtime to read its conf list again", "for", wait)
		select {
		case <-ctx.Done():
			return found, fmt.Errorf("the entry is gone, the rest is still there: %w; run `untracked uninstall` again", ctx.Err())
		case <-time.After(wait):
		}
	}
	for _, p := range slices.Compact(places) {
		n := &node.Node{Version: i.Version, BPFFS: cmp.Or(p.bpffs, node.BPFFSOf(p.runDir), config.DefaultBPFFS), RunDir: p.runDir, Log: i.Log}
		removed, err := n.Remove(ctx)
		if err != nil {
			return found, fmt.Errorf("remove programs, pins and table: %w", err)
		}
		if removed {
			found = true
			i.Log.Info("programs, pins and table removed", "bpffs", n.BPFFS, "run-dir", n.RunDir)
		}
	}
	copied, err := i.removeState()
	if err != nil {
		return found, writeProblem("remove the copy of the policy", i.StateDir, "--state-dir", err)
	}
	if copied {
		found = true
		i.Log.Info("copy of the policy removed", "directory", i.copyDir())
	}
	switch err := os.Remove(i.binary()); {
	case err == nil:
		found = true
		i.Log.Info("binary removed", "file", i.binary())
	case !errors.Is(err, fs.ErrNotExist):
		return found, writeProblem("remove the binary", i.BinDir, "--bin-dir", err)
	}
	i.applied, i.appliedKey, i.good = nil, "", nil
	return found, i.removeTurns()
}

// place is where an entry had its programs and records.
type place struct{ bpffs, runDir string }

// takeEntries takes our entries off every conf list of the directory, the drop-in files, and what was made of single
// entries, and returns them.
func (i *Installer) takeEntries() (entries [][]byte, err error) {
	dir := i.confDir()
	all, err := confFiles(dir)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, path := range all {
		if filepath.Ext(path) != listExtension {
			continue
		}
		taken, err := i.takeFrom(path)
		entries = append(entries, taken...)
		errs = append(errs, err)
	}
	errs = append(errs, i.restoreLost(dir))
	dropIns, _ := filepath.Glob(filepath.Join(dir, "*", dropInName)) // whose only error is a bad pattern
	for _, path := range dropIns {
		data, _ := os.ReadFile(path)
		found, err := i.removeDropIn(path)
		if found {
			entries = append(entries, data)
		}
		errs = append(errs, err)
	}
	i.lookForAside(dir)
	return entries, errors.Join(errs...)
}

// lookForAside warns of lists with our entry that somebody put aside, as Cilium does with those of others. They are not
// ours to change, and must not come back as they are: without the binary, no pod starts.
func (i *Installer) lookForAside(dir string) {
	all, _ := os.ReadDir(dir)
	for _, e := range all {
		path := filepath.Join(dir, e.Name())
		if !e.Type().IsRegular() || slices.Contains(confExtensions, filepath.Ext(path)) {
			continue
		}
		data, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		if list, err := config.ReadList(data, path); err == nil && len(list.Entries()) > 0 {
			i.Log.Warn("a conf list that was put aside has the entry; should it come back, no pod starts without the binary",
				"file", path, "remedy", "take the entry of type untracked out of it, or remove the file")
		}
	}
}

// takeFrom takes our entries off one list, which it reads again for a while if somebody is writing it.
func (i *Installer) takeFrom(path string) (entries [][]byte, err error) {
	deadline := time.Now().Add(patience)
	for wait := retryFirst; ; wait *= 2 {
		entries, err = i.takeOnce(path)
		if !isUnready(err) || time.Now().Add(wait).After(deadline) {
			return entries, err
		}
		time.Sleep(wait)
	}
}

func (i *Installer) takeOnce(path string) ([][]byte, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	list, err := config.ReadList(data, path)
	if err != nil {
		if !bytes.Contains(data, []byte(config.PluginType)) {
			return nil, nil // somebody else's, whatever is wrong with it
		}
		return nil, unready{fmt.Errorf("%w; it names %s, so nothing was removed", err, config.PluginType)}
	}
	if len(list.Entries()) == 0 {
		return nil, nil
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, err
	}
	t := &target{path: path, real: real, data: data, list: list}
	if t.file, err = os.Open(real); err != nil {
		return nil, err
	}
	defer t.close()
	var entries [][]byte
	for _, e := range list.Entries() {
		entries = append(entries, e)
	}
	restored, err := i.restore(t)
	if err != nil || restored {
		return entries, err
	}
	if err := i.replaceList(t, list.Without()); err != nil {
		return nil, err
	}
	i.forgetReplaced()
	i.Log.Info("entry taken off the conf list", "file", path, "network", list.Network)
	i.poke(path, real)
	return entries, nil
}

// restore puts a single plugin's file back in the place of the list that was made of it, unless there is a new one. Where
// the list became another since, it stays, without our entry, and the file that was kept is of no use any more.
func (i *Installer) restore(t *target) (bool, error) {
	for _, original := range originals(t.path) {
		kept := original + keptSuffix
		data, err := os.ReadFile(kept)
		if err != nil {
			continue
		}
		list, err := config.ToList(data, kept)
		made := err == nil && bytes.Equal(list, t.list.Without())
		if made && !exists(original) {
			// The original first, so that there is a configuration at every moment.
			err = os.Rename(kept, original)
		} else {
			err = os.Remove(kept)
		}
		if err == nil && made {
			err = os.Remove(t.path)
		}
		if err = errors.Join(err, syncDir(i.confDir())); err != nil {
			return false, writeProblem("put back "+original, i.confDir(), "--conf-dir", err)
		}
		if made {
			i.Log.Info("single plugin's file put back", "file", original, "network", t.list.Network)
			return true, nil
		}
	}
	return false, nil
}

// restoreLost deals with single plugins' files whose list somebody took away: one that nothing has taken the place of is
// put back.
func (i *Installer) restoreLost(dir string) error {
	all, _ := filepath.Glob(filepath.Join(dir, "*"+keptSuffix)) // whose only error is a bad pattern
	var errs []error
	for _, kept := range all {
		original := strings.TrimSuffix(kept, keptSuffix)
		if exists(original) || exists(asList(original)) {
			errs = append(errs, os.Remove(kept))
			continue
		}
		errs = append(errs, os.Rename(kept, original))
		i.Log.Info("single plugin's file put back", "file", original)
	}
	return errors.Join(errs...)
}
