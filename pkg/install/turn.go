// SPDX-License-Identifier: Apache-2.0

package install

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/pkg/filelock"
)

// Installers that stay take turns by the order in which they came: the newest that lives acts, the others wait. So a new
// version takes over while the old one still runs, and the old one takes over again if the new one goes before it. Each
// has a numbered file in the run directory, and a lock on it that goes when it dies.
const (
	turnPrefix = "installer-"
	lockName   = "installer.lock"
)

// lockTimeout bounds how long an installer waits for another. A round with a large policy takes seconds.
const lockTimeout = time.Minute

// lock keeps all others from writing anything.
func (i *Installer) lock(ctx context.Context) (unlock func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	unlock, err = filelock.Lock(ctx, filepath.Join(i.RunDir, lockName))
	if err != nil {
		return nil, writeProblem("lock", i.RunDir, "--run-dir", err)
	}
	return unlock, nil
}

// turn is the place of an installer that stays.
type turn struct {
	path   string
	number int
	file   *os.File
}

// take comes after all others. The caller holds the lock.
func (i *Installer) take() (*turn, error) {
	number := 1
	for _, n := range i.turns() {
		number = max(number, n+1)
	}
	path := i.turnPath(number)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, writeProblem("register", i.RunDir, "--run-dir", err)
	}
	if !filelock.TryLock(f) {
		f.Close()
		return nil, fmt.Errorf("lock %s: taken at once by another process", path)
	}
	return &turn{path, number, f}, nil
}

func (i *Installer) turnPath(number int) string {
	return filepath.Join(i.RunDir, fmt.Sprintf("%s%d", turnPrefix, number))
}

// turns are the numbers of all files, also of those who died.
func (i *Installer) turns() (out []int) {
	entries, _ := os.ReadDir(i.RunDir)
	for _, e := range entries {
		if text, ok := strings.CutPrefix(e.Name(), turnPrefix); ok {
			if n, err := strconv.Atoi(text); err == nil {
				out = append(out, n)
			}
		}
	}
	return out
}

// others are the numbers of those that live, own left out; the files of the dead are removed. The caller holds the lock.
func (i *Installer) others(own *turn) (out []int) {
	for _, n := range i.turns() {
		if own != nil && n == own.number {
			continue
		}
		f, err := os.OpenFile(i.turnPath(n), os.O_RDWR|unix.O_NOFOLLOW, 0)
		if err != nil {
			continue
		}
		if filelock.TryLock(f) {
			_ = os.Remove(i.turnPath(n))
		} else {
			out = append(out, n)
		}
		f.Close()
	}
	return out
}

// newest reports whether it is this one's turn. One whose file was taken away comes anew.
func (i *Installer) newest(t *turn) (bool, error) {
	if !filelock.IsStillAt(t.file, t.path) {
		again, err := i.take()
		if err != nil {
			return false, err
		}
		t.file.Close()
		*t = *again
	}
	for _, n := range i.others(t) {
		if n > t.number {
			return false, nil
		}
	}
	return true, nil
}

// Watched returns ErrWatched if an installer stays on the node that has this run directory.
func Watched(ctx context.Context, runDir string) error {
	i := &Installer{RunDir: runDir}
	if len(i.turns()) == 0 {
		return nil
	}
	unlock, err := i.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if len(i.others(nil)) > 0 {
		return ErrWatched
	}
	return nil
}

// leave ends a turn. The caller holds the lock.
func (t *turn) leave() {
	_ = os.Remove(t.path)
	t.file.Close()
}

// removeTurns removes all files of installers, and the run directory if it is empty. The lock goes last.
func (i *Installer) removeTurns() error {
	i.others(nil)
	if err := os.Remove(filepath.Join(i.RunDir, lockName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	_ = os.Remove(i.RunDir)
	return nil
}
