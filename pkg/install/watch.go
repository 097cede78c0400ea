// SPDX-License-Identifier: Apache-2.0

package install

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/untracked-cni/untracked/pkg/filelock"
)

const (
	// settle is how long it must be quiet after a change before it is looked at, settleMost how long that may take.
	settle     = 50 * time.Millisecond
	settleMost = 300 * time.Millisecond
	// pollEvery is how often all is looked at without a reason: for lost events, and for programs and tables, which
	// tell nobody that they are gone.
	pollEvery = 30 * time.Second
)

// Watch installs, and does so again whenever something changes, until the context ends. With uninstall, it then takes
// everything off the node, unless another installer stays. It returns early only where it cannot even begin, or not go on: in
// a container whose directory is gone from the host.
func (i *Installer) Watch(ctx context.Context, uninstall bool, wait time.Duration) error {
	events, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch directories: %w; sysctl fs.inotify.max_user_instances may be too low", err)
	}
	defer events.Close()
	own, err := i.arrive(ctx)
	if err != nil {
		return err
	}
	i.stays = true
	w := &watcher{Installer: i, events: events, own: own, unwatched: map[string]bool{}}
	for ctx.Err() == nil {
		if err := i.removed(); err != nil {
			return err
		}
		again := w.look(ctx)
		w.await(ctx, again)
	}
	i.forgetReplaced()
	// What follows has to be done in any case, and must end before a service manager or kubelet kills us.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lockTimeout)
	defer cancel()
	return i.depart(ctx, own, uninstall, wait)
}

// removed says which directory was removed on the host while it is mounted here. What is written there, or comes there, is
// seen by one side only from then on.
func (i *Installer) removed() error {
	for _, dir := range []string{i.BinDir, i.confDir(), i.ConfigDir, i.StateDir, i.RunDir} {
		if filelock.IsRemoved(dir) {
			return filelock.RemovedError(dir)
		}
	}
	return nil
}

func (i *Installer) arrive(ctx context.Context) (*turn, error) {
	unlock, err := i.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	return i.take()
}

// depart decides under the lock who is the last: of several that end at once, one is.
func (i *Installer) depart(ctx context.Context, own *turn, uninstall bool, wait time.Duration) error {
	unlock, err := i.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	others := i.others(own)
	own.leave()
	switch {
	case !uninstall:
		i.Log.Info("ending; all stays in place")
		return nil
	case len(others) > 0:
		i.Log.Info("ending; all stays in place, as another installer looks after it")
		return nil
	}
	i.Log.Info("ending; all is taken away")
	_, err = i.uninstall(ctx, wait)
	return err
}

// watcher is an installer that stays.
type watcher struct {
	*Installer
	events *fsnotify.Watcher
	own    *turn
	// waiting is true while it is another installer's turn.
	waiting bool
	// said is what was wrong last; it is said once.
	said string
	// retry is how long the next wait for something unready is.
	retry time.Duration
	// unwatched are the directories that could not be watched.
	unwatched map[string]bool
}

// look does a round, and returns when the next one is due if nothing happens before.
func (w *watcher) look(ctx context.Context) time.Duration {
	w.watch()
	unlock, err := w.lock(ctx)
	if ctx.Err() != nil && err != nil { // which is why there is no lock
		return 0
	}
	if err != nil {
		w.say(err)
		return pollEvery
	}
	defer unlock()
	acts, err := w.newest(w.own)
	if err != nil {
		w.say(err)
		return pollEvery
	}
	if w.waiting == acts {
		w.waiting = !acts
		if acts {
			w.Log.Info("taking over: the other installer is gone")
		} else {
			w.Log.Info("waiting: a newer installer has taken over")
		}
	}
	if !acts {
		return pollEvery
	}
	_, err = w.round(ctx)
	if ctx.Err() != nil {
		return 0
	}
	w.say(err)
	if err != nil {
		w.heal(ctx)
	}
	return w.next(err)
}

// next is when to look again, after what went wrong.
func (w *watcher) next(err error) time.Duration {
	if !isUnready(err) {
		w.retry = 0
		return pollEvery
	}
	if c, ok := errors.AsType[*contested](err); ok {
		w.retry = 0
		return min(c.wait, pollEvery)
	}
	w.retry = min(max(2*w.retry, retryFirst), pollEvery)
	return w.retry
}

// say logs what is wrong, and that it no longer is.
func (w *watcher) say(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if c, ok := errors.AsType[*contested](err); ok {
		text = fmt.Sprintf("%s %d", c.path, c.times) // the time left is another each time
	}
	if text == w.said {
		return
	}
	w.said = text
	switch {
	case err == nil:
		w.Log.Info("all is in place")
	case errors.Is(err, errNoConf):
		w.Log.Info("waiting for the main CNI plugin", "reason", err)
	case errors.Is(err, ErrInvalid):
		w.Log.Error("bad policy: nothing was changed, and what is in force stays in force", "error", err, "remedy", "correct what is named; it is taken over as soon as it is right")
	case isUnready(err):
		w.Log.Warn("waiting", "reason", err)
	default:
		w.Log.Error("not all could be put in its place; it is tried again", "error", err)
	}
}

// watch has the directories watched that are there. It is repeated, as a directory may be replaced.
func (w *watcher) watch() {
	for _, dir := range w.directories() {
		err := w.events.Add(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !w.unwatched[dir] {
			w.unwatched[dir] = true
			w.Log.Warn("a directory cannot be watched; changes there are seen late", "directory", dir, "within", pollEvery, "error", err,
				"remedy", "sysctl fs.inotify.max_user_watches may be too low")
		}
	}
}

func (w *watcher) directories() []string {
	dirs := []string{w.BinDir, w.confDir(), w.ConfigDir, filepath.Join(w.ConfigDir, resourceDirs[1]), w.StateDir, w.RunDir}
	if w.good != nil {
		for _, f := range w.good.source.files {
			dirs = append(dirs, filepath.Join(w.ConfigDir, filepath.Dir(f.path)))
		}
	}
	if w.DropIn { // which are in directories below
		below, _ := filepath.Glob(filepath.Join(w.confDir(), "*", dropInName))
		for _, path := range below {
			dirs = append(dirs, filepath.Dir(path))
		}
	}
	if all, err := confFiles(w.confDir()); err == nil && len(all) > 0 {
		if real, err := filepath.EvalSymlinks(all[0]); err == nil {
			dirs = append(dirs, filepath.Dir(real))
		}
	}
	slices.Sort(dirs)
	return slices.Compact(dirs)
}

// await returns after a time, or when something happened and it is quiet again.
func (w *watcher) await(ctx context.Context, most time.Duration) {
	due := time.NewTimer(most)
	defer due.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-due.C:
			return
		case err := <-w.events.Errors: // events were lost
			w.Log.Debug("watch", "error", err)
			return
		case e := <-w.events.Events:
			if w.matters(e) {
				w.retry = 0
				w.quiet(ctx)
				return
			}
		}
	}
}

// quiet waits until the events end, or have lasted long enough.
func (w *watcher) quiet(ctx context.Context) {
	end := time.NewTimer(settleMost)
	defer end.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-end.C:
			return
		case <-w.events.Events:
		case <-time.After(settle):
			return
		}
	}
}

// matters leaves out what this project writes all the time.
func (w *watcher) matters(e fsnotify.Event) bool {
	name := filepath.Base(e.Name)
	switch filepath.Dir(e.Name) {
	case w.RunDir:
		return strings.HasPrefix(name, turnPrefix)
	case w.StateDir:
		return name == copyLink // a bad policy's copy comes and goes
	}
	return name != tempName && name != tempName+asideSuffix
}
