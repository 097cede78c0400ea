// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestRunDirErrors(t *testing.T) {
	for err, remedy := range map[error]string{
		unix.ENOSPC: "make room there: `df -h /run/x`, `df -i /run/x`",
		unix.EDQUOT: "make room there",
		unix.EROFS:  "mount it writable, or name another directory in untracked.cni/run-dir",
		unix.EIO:    "",
	} {
		got := runDirError("/run/x", "write record.json", err)
		if !errors.Is(got, err) || !strings.HasPrefix(got.Error(), "write record.json: ") || !strings.Contains(got.Error(), remedy) {
			t.Errorf("%v became %v", err, got)
		}
	}
}

func TestCannotRecord(t *testing.T) {
	dir := t.TempDir()
	if p := runDirProblem(dir); p != nil {
		t.Skip(p)
	}
	for _, path := range []string{dir, filepath.Join(dir, "not/there/yet")} {
		if err := cannotRecord(path); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	if p := runDirProblem(filepath.Join(dir, "not/there/yet")); p != nil {
		t.Errorf("a directory that is not there is full: %v", p)
	}
}
