// SPDX-License-Identifier: Apache-2.0

package files

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestFind(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"d/b.yaml", "d/a.yml", "d/c.json", "d/.hidden.yaml", "d/README.md", "d/sub.yaml/x.yaml", "e/z.yaml", "[x].yaml", "empty/note.txt"} {
		write(t, filepath.Join(dir, name), "")
	}
	// As kubelet mounts a ConfigMap.
	write(t, filepath.Join(dir, "m/..2026/redis.yaml"), "")
	for link, to := range map[string]string{"m/..data": "..2026", "m/redis.yaml": "..data/redis.yaml"} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		paths, want []string
		problem     string
	}{
		{paths: []string{"d"}, want: []string{"d/a.yml", "d/b.yaml", "d/c.json"}},
		{paths: []string{"e/z.yaml", "d/b.yaml", "d"}, want: []string{"d/a.yml", "d/b.yaml", "d/c.json", "e/z.yaml"}},
		{paths: []string{"[de]/*.yaml"}, want: []string{"d/b.yaml", "e/z.yaml"}},
		{paths: []string{"[x].yaml"}, want: []string{"[x].yaml"}},
		{paths: []string{"m"}, want: []string{"m/redis.yaml"}},
		{paths: []string{"empty"}},
		{paths: []string{"gone.yaml"}, problem: "gone.yaml: no such file or directory; want"},
		{paths: []string{"d/*.txt", "gone"}, problem: "d/*.txt: matches no file"},
	} {
		var paths, got []string
		for _, p := range c.paths {
			paths = append(paths, filepath.Join(dir, p))
		}
		found, err := Find(paths)
		for _, f := range found {
			rel, _ := filepath.Rel(dir, f)
			got = append(got, rel)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%v: -want +got\n%s", c.paths, diff)
		}
		if (err == nil) != (c.problem == "") || err != nil && !strings.Contains(err.Error(), c.problem) {
			t.Errorf("%v: %v, want %q", c.paths, err, c.problem)
		}
	}
}

func TestStamp(t *testing.T) {
	path := filepath.Join(t.TempDir(), "list")
	write(t, path, "one")
	data, before, err := Read(path)
	if err != nil || string(data) != "one" {
		t.Fatalf("%q, %v", data, err)
	}
	if again, err := StampOf(path); err != nil || again != before {
		t.Errorf("%+v, %v, want %+v", again, err, before)
	}
	other := path + ".new"
	write(t, other, "two")
	if err := os.Rename(other, path); err != nil {
		t.Fatal(err)
	}
	if after, err := StampOf(path); err != nil || after == before {
		t.Errorf("a replaced file has the same stamp, %v", err)
	}

	pipe := path + ".pipe"
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Read(pipe); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a pipe: %v", err)
	}
}
