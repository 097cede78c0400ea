// SPDX-License-Identifier: Apache-2.0

// Package files finds the files that a policy is written in, and tells by stat alone whether one has changed.
package files

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// Stamp tells by stat alone whether a file is still the one that was read.
type Stamp struct {
	Path     string `json:"path"`
	Size     int64  `json:"size"`
	Modified int64  `json:"modified"` // nanoseconds
	Changed  int64  `json:"changed"`  // nanoseconds; moves also when a file is replaced by an older one
	Inode    uint64 `json:"inode"`
}

// StampOf returns the stamp of a regular file, following links.
func StampOf(path string) (Stamp, error) {
	info, err := os.Stat(path)
	if err != nil {
		return Stamp{}, err
	}
	if !info.Mode().IsRegular() {
		// A pipe would block its reader, and with it all that wait for the lock; a device may never end.
		return Stamp{}, fmt.Errorf("%s is not a regular file", path)
	}
	st := info.Sys().(*syscall.Stat_t)
	return Stamp{path, st.Size, st.Mtim.Nano(), st.Ctim.Nano(), st.Ino}, nil
}

// Read returns a regular file's content with its stamp. The stamp is taken first: a file that changes while it is
// read will be seen to have changed.
func Read(path string) ([]byte, Stamp, error) {
	stamp, err := StampOf(path)
	if err != nil {
		return nil, Stamp{}, err
	}
	data, err := os.ReadFile(path)
	return data, stamp, err
}

// resourceFiles are the extensions of the files that count in a directory.
var resourceFiles = []string{".yaml", ".yml", ".json"}

// IsResource reports whether a file counts in a directory, by its name.
func IsResource(path string) bool {
	return !strings.HasPrefix(filepath.Base(path), ".") && slices.Contains(resourceFiles, filepath.Ext(path))
}

// Find returns the files that a list of paths stands for, sorted, each once: a file itself; the files of a directory
// with an extension of YAML or JSON, hidden ones and subdirectories left out; the files that a glob matches. A path
// that does not exist and a glob that matches nothing are errors, a directory without such files is not.
func Find(paths []string) ([]string, error) {
	var out []string
	var errs []error
	for _, path := range paths {
		found, err := find(path)
		if err != nil {
			errs = append(errs, err)
		}
		out = append(out, found...)
	}
	slices.Sort(out)
	return slices.Compact(out), errors.Join(errs...)
}

func find(path string) ([]string, error) {
	info, err := os.Stat(path)
	switch {
	case err == nil && info.IsDir():
		return inDirectory(path)
	case err == nil:
		return []string{path}, nil
	case errors.Is(err, fs.ErrNotExist) && strings.ContainsAny(path, `*?[\`):
		return matching(path)
	}
	return nil, Problem(err, "want a file, a directory or a glob")
}

// matching leaves hidden files out, as a shell does, and directories.
func matching(glob string) ([]string, error) {
	matches, err := filepath.Glob(glob)
	if err != nil {
		return nil, fmt.Errorf("%s: %w; want a complete glob", glob, err)
	}
	hidden := strings.HasPrefix(filepath.Base(glob), ".")
	matches = slices.DeleteFunc(matches, func(path string) bool {
		return !hidden && strings.HasPrefix(filepath.Base(path), ".") || isDirectory(path)
	})
	if len(matches) == 0 {
		return nil, fmt.Errorf("%s: matches no file; want a glob of files that are there", glob)
	}
	return matches, nil
}

// isDirectory follows links: a ConfigMap's files are links, so a directory's entry does not say what it is.
func isDirectory(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

func inDirectory(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, Problem(err, "want a directory that can be read")
	}
	var out []string
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if IsResource(path) && !isDirectory(path) {
			out = append(out, path)
		}
	}
	return out, nil
}

// Problem says what is wrong with a path, once and in front, and what would be right.
func Problem(err error, want string) error {
	var pathError *fs.PathError
	if errors.As(err, &pathError) {
		return fmt.Errorf("%s: %w; %s", pathError.Path, pathError.Err, want)
	}
	return err
}
