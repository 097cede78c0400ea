// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/pkg/config"
)

// ErrNotRecorded says that apply did what it could, and nobody will know of it.
var ErrNotRecorded = errors.New("what apply did could not be recorded, so that each pod that starts applies the policy again")

// runDirError is what went wrong with the run directory, with what there is to do about it.
func runDirError(runDir, act string, err error) error {
	switch {
	case errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT):
		return fmt.Errorf("%s: %w (%s)", act, err, makeRoom(runDir))
	case errors.Is(err, unix.EROFS):
		return fmt.Errorf("%s: %w (mount it writable, or name another directory in %srun-dir)", act, err, config.Prefix)
	}
	return fmt.Errorf("%s: %w", act, err)
}

func makeRoom(runDir string) string {
	return fmt.Sprintf("make room there: `df -h %s`, `df -i %s`", runDir, runDir)
}

// runDirProblem says that there is no room for another record, so that the one that is there may tell of the past. nil
// where there is room, or no such directory yet.
func runDirProblem(runDir string) *Problem {
	var fs unix.Statfs_t
	if unix.Statfs(runDir, &fs) != nil {
		return nil
	}
	// A file system without a limit has none of either.
	full := fs.Blocks > 0 && fs.Bavail*uint64(fs.Bsize) < recordSize(runDir) || fs.Files > 0 && fs.Ffree == 0
	if !full {
		return nil
	}
	return &Problem{
		Code: ProblemRunDir,
		Message: fmt.Sprintf("the file system of %s is full: what is applied cannot be recorded, so that each pod that starts "+
			"applies it again, and status may tell of the past", runDir),
		Remedy: makeRoom(runDir),
	}
}

// cannotRecord says why nothing can be recorded, nil if something can.
func cannotRecord(runDir string) error {
	for runDir != "/" && unix.Access(runDir, unix.F_OK) == unix.ENOENT {
		runDir = filepath.Dir(runDir) // where it would be made
	}
	if err := unix.Access(runDir, unix.W_OK); err != nil {
		return runDirError(runDir, "write to "+runDir, err)
	}
	if p := runDirProblem(runDir); p != nil {
		return errors.New(p.String())
	}
	return nil
}

// recordSize is about how much room the next record takes, which is written beside the last.
func recordSize(runDir string) uint64 {
	const least = 16 << 10
	size := uint64(0)
	for _, name := range []string{recordFile, rulesFile} {
		if info, err := os.Stat(filepath.Join(runDir, name)); err == nil {
			size += uint64(info.Size())
		}
	}
	return max(size, least)
}
