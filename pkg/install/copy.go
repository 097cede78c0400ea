// SPDX-License-Identifier: Apache-2.0

package install

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// The copy of the config directory is StateDir/config, a link to a directory that is named by its content. So all of it
// is exchanged at once, and a runtime that reads one path sees either.
const (
	copyLink   = "config"
	copyPrefix = copyLink + "."
)

func (i *Installer) copyDir() string { return filepath.Join(i.StateDir, copyLink) }

// stage writes the copy beside the one in force, unless it is there.
func (i *Installer) stage(w *wanted) (dir string, err error) {
	name := copyPrefix + w.hash
	dir = filepath.Join(i.StateDir, name)
	if isCopy(dir, w) {
		return dir, nil
	}
	tmp := filepath.Join(i.StateDir, tempName)
	defer os.RemoveAll(tmp)
	for _, d := range resourceDirs { // also without resources: an entry on a list may still name it
		if err := os.MkdirAll(filepath.Join(tmp, d), 0o755); err != nil {
			return "", writeProblem("copy the policy", i.StateDir, "--state-dir", err)
		}
	}
	for _, f := range w.source.files {
		path := filepath.Join(tmp, f.path)
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		if err == nil {
			err = writeNew(path, f.data, 0o644, nil)
		}
		if err != nil {
			return "", writeProblem("copy the policy", i.StateDir, "--state-dir", err)
		}
	}
	// What has this name and is no copy was tampered with.
	if err := errors.Join(os.RemoveAll(dir), os.Rename(tmp, dir), syncDir(i.StateDir)); err != nil {
		return "", writeProblem("copy the policy", i.StateDir, "--state-dir", err)
	}
	return dir, nil
}

// isCopy reports whether a directory has all the files, and no others.
func isCopy(dir string, w *wanted) bool {
	for _, d := range resourceDirs {
		if !exists(filepath.Join(dir, d)) {
			return false
		}
	}
	s := &source{}
	if s.walk(dir, ".", 0) != nil {
		return false
	}
	sortFiles(s.files)
	return s.hash() == w.hash
}

// unstage removes a copy that is not in force.
func (i *Installer) unstage(dir string) {
	if i.copyInForce() != filepath.Base(dir) {
		_ = os.RemoveAll(dir)
	}
}

// copyInForce is the name of the copy that the plugin reads, empty if there is none.
func (i *Installer) copyInForce() string {
	name, _ := os.Readlink(i.copyDir())
	return name
}

// putCopy puts the staged copy in the place of the one in force.
func (i *Installer) putCopy(w *wanted) error {
	name := copyPrefix + w.hash
	if was := i.copyInForce(); was != name {
		tmp := filepath.Join(i.StateDir, tempName)
		err := os.Symlink(name, tmp)
		if err == nil {
			err = os.Rename(tmp, i.copyDir())
		}
		if err = errors.Join(err, syncDir(i.StateDir)); err != nil {
			removeTemp(i.StateDir)
			return writeProblem("copy the policy", i.StateDir, "--state-dir", err)
		}
		reason := "the files changed"
		if was == "" {
			reason = "there was none"
		}
		i.Log.Info("policy copied", "directory", i.copyDir(), "files", len(w.source.files), "reason", reason)
	}
	return errors.Join(i.remember(w), i.removeCopies(name))
}

// removeCopies removes all copies but one.
func (i *Installer) removeCopies(keep string) error {
	entries, err := os.ReadDir(i.StateDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the copies of the policy: %w", err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), copyPrefix) && e.Name() != keep {
			if err := os.RemoveAll(filepath.Join(i.StateDir, e.Name())); err != nil {
				return fmt.Errorf("remove the copies of the policy: %w", err)
			}
		}
	}
	return nil
}

// removeState removes all copies, and the state directory if there is nothing of others in it.
func (i *Installer) removeState() (found bool, err error) {
	err = os.Remove(i.copyDir())
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	} else {
		found = true
	}
	err = errors.Join(err, i.forgetEntry(), i.removeCopies(""))
	_ = os.Remove(i.StateDir)
	return found, err
}
