// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestWriteFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "untracked.prom")
	// node_exporter may have the old file open, so it must not change.
	if err := os.WriteFile(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	old, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	if err := WriteFile(path, sample); err != nil {
		t.Fatal(err)
	}
	was := make([]byte, 10)
	if n, _ := old.Read(was); string(was[:n]) != "old" {
		t.Errorf("whoever read the old file now reads %q", was[:n])
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := parse(t, Text, string(text))[`x_packets_total{i="eth1"}`]; got != 1<<52 {
		t.Errorf("node_exporter reads %v", got)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o644 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	onlyFile(t, dir)

	if err := WriteFile(filepath.Join(dir, "none", "x.prom"), sample); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("into no directory: error %v", err)
	}
	if err := os.Mkdir(filepath.Join(dir, "none"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(filepath.Join(dir, "none"), sample); err == nil {
		t.Error("a directory was replaced")
	}
	if err := os.Remove(filepath.Join(dir, "none")); err != nil {
		t.Fatal(err)
	}
	onlyFile(t, dir)
}

func onlyFile(t *testing.T, dir string) {
	t.Helper()
	if files, err := os.ReadDir(dir); err != nil || len(files) != 1 {
		t.Errorf("left behind: %v, %v", files, err)
	}
}
