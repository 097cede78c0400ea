// SPDX-License-Identifier: Apache-2.0

package install

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/untracked-cni/untracked/pkg/files"
	"github.com/untracked-cni/untracked/pkg/resource"
)

// annotationsFile holds the entry's annotations; every other file is part of the policy, or a list that it names.
const annotationsFile = "annotations.yaml"

// resourceDirs are where resources are, below the config directory: in it, as a ConfigMap has them, and in a directory
// of their own.
var resourceDirs = []string{".", "policies"}

// maxDepth of directories below the config directory: a link may lead to where it is.
const maxDepth = 8

// source is a config directory as it was read.
type source struct {
	annotations map[string]string
	// places are those of the annotations' values.
	places map[string]resource.Position
	// files are the others, sorted by path.
	files []sourceFile
	found bool // annotationsFile is there
}

type sourceFile struct {
	path string // below the directory
	data []byte
}

// readSource reads a directory. A mounted ConfigMap is exchanged as a whole, by a link called ..data, which may happen
// while it is read.
func readSource(dir string) (*source, error) {
	const tries = 10
	for n := 1; ; n++ {
		before, _ := os.Readlink(filepath.Join(dir, "..data"))
		s, err := readDirectory(dir)
		if after, _ := os.Readlink(filepath.Join(dir, "..data")); after == before || n == tries {
			return s, err
		}
	}
}

func readDirectory(dir string) (*source, error) {
	s := &source{}
	if err := s.walk(dir, ".", 0); err != nil {
		return nil, err
	}
	sortFiles(s.files)
	var err error
	for n, f := range s.files {
		if f.path == annotationsFile {
			s.found = true
			s.annotations, s.places, err = parseAnnotations(f.data, filepath.Join(dir, f.path))
			s.files = slices.Delete(s.files, n, n+1)
			break
		}
	}
	if err == nil && !s.found && !s.hasResources() {
		err = fmt.Errorf("%s: no policy; want %s with untracked.cni/ annotations, or resources in .yaml files", dir, annotationsFile)
	}
	return s, err
}

func sortFiles(list []sourceFile) {
	slices.SortFunc(list, func(a, b sourceFile) int { return strings.Compare(a.path, b.path) })
}

func (s *source) walk(dir, below string, depth int) error {
	entries, err := os.ReadDir(filepath.Join(dir, below))
	if err != nil {
		return files.Problem(err, "want the directory with "+annotationsFile+" and resources; name it with --config")
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		path := filepath.Join(below, e.Name())
		info, err := os.Stat(filepath.Join(dir, path))
		if errors.Is(err, fs.ErrNotExist) && e.Type()&fs.ModeSymlink == 0 {
			continue // taken away meanwhile
		}
		if err != nil {
			return files.Problem(err, "want a file, or a link to one")
		}
		if info.IsDir() {
			if depth == maxDepth {
				return fmt.Errorf("%s: more than %d directories deep; want the files nearer to %s", filepath.Join(dir, path), maxDepth, dir)
			}
			if err := s.walk(dir, path, depth+1); err != nil {
				return err
			}
			continue
		}
		data, _, err := files.Read(filepath.Join(dir, path))
		if err != nil {
			return files.Problem(err, "want a file that can be read")
		}
		s.files = append(s.files, sourceFile{path, data})
	}
	return nil
}

// resourcesIn reports whether a directory below has files that count as resources.
func (s *source) resourcesIn(dir string) bool {
	return slices.ContainsFunc(s.files, func(f sourceFile) bool {
		return filepath.Dir(f.path) == dir && files.IsResource(f.path)
	})
}

func (s *source) hasResources() bool { return slices.ContainsFunc(resourceDirs, s.resourcesIn) }

// hash identifies the files.
func (s *source) hash() string {
	h := sha256.New()
	for _, f := range s.files {
		fmt.Fprintf(h, "%q %d\n", f.path, len(f.data))
		h.Write(f.data)
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}
