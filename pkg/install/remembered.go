// SPDX-License-Identifier: Apache-2.0

package install

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// entryFile in StateDir is the entry that goes with the copy. Together they are the last good policy, for an installer
// that starts when somebody has just spoilt it, as one does after a boot: the main CNI plugin writes its list anew then.
const entryFile = "entry.json"

// remember notes the entry that goes with the copy in force.
func (i *Installer) remember(w *wanted) error {
	path := filepath.Join(i.StateDir, entryFile)
	if was, err := os.ReadFile(path); err == nil && bytes.Equal(was, w.entry) {
		return nil
	}
	if err := replaceFile(path, w.entry, 0o644, nil); err != nil {
		return writeProblem("note the entry", i.StateDir, "--state-dir", err)
	}
	return nil
}

// remembered is the last good policy, as its copy has it; nil if there is none, or it was tampered with.
func (i *Installer) remembered() *wanted {
	entry, err := os.ReadFile(filepath.Join(i.StateDir, entryFile))
	if err != nil {
		return nil
	}
	s := &source{}
	if err := s.walk(i.copyDir(), ".", 0); err != nil {
		return nil
	}
	sortFiles(s.files)
	w := &wanted{source: s, hash: s.hash(), entry: entry}
	if _, err := w.config(); err != nil || i.copyInForce() != copyPrefix+w.hash {
		return nil
	}
	return w
}

func (i *Installer) forgetEntry() error {
	err := os.Remove(filepath.Join(i.StateDir, entryFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
