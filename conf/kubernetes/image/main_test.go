// SPDX-License-Identifier: Apache-2.0

package main

import (
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The Dockerfile and make image are two ways to one image. What is built in the first stage, Go knows to be the same.
func TestDockerfileGivesTheSameImage(t *testing.T) {
	t.Chdir("../../..")
	text, err := os.ReadFile("Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	_, stage, found := strings.Cut(strings.ReplaceAll(string(text), "\\\n", ""), "FROM scratch\n")
	if !found {
		t.Fatal("no stage of the Dockerfile begins from scratch")
	}
	binary := filepath.Join(t.TempDir(), "untracked")
	if err := os.WriteFile(binary, []byte("program"), 0o755); err != nil {
		t.Fatal(err)
	}
	image, err := build(options{version: "$VERSION", binaries: []string{"amd64=" + binary}})
	if err != nil {
		t.Fatal(err)
	}

	labels := map[string]string{"org.opencontainers.image.revision": ""} // which docker build knows by itself, or nobody does
	for _, m := range regexp.MustCompile(`(org\.opencontainers\S+)="([^"]*)"`).FindAllStringSubmatch(stage, -1) {
		labels[m[1]] = m[2]
	}
	if diff := cmp.Diff(image.Labels, labels); diff != "" {
		t.Errorf("labels (-make image +Dockerfile):\n%s", diff)
	}

	var copied []string
	var entrypoint string
	for line := range strings.Lines(stage) {
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		switch words[0] {
		case "COPY":
			sources, to := words[1:len(words)-1], words[len(words)-1]
			for _, source := range sources {
				switch {
				case strings.HasPrefix(source, "--"):
				case strings.HasSuffix(to, "/"):
					copied = append(copied, path.Join(to, path.Base(source)))
				default:
					copied = append(copied, to)
				}
			}
		case "ENTRYPOINT":
			entrypoint = words[1]
		}
	}
	paths := map[string]bool{}
	for _, f := range image.Variants[0].Files {
		paths[f.Path] = true
	}
	slices.Sort(copied)
	if diff := cmp.Diff(slices.Sorted(maps.Keys(paths)), copied); diff != "" {
		t.Errorf("files (-make image +Dockerfile):\n%s", diff)
	}
	if want := `["` + image.Variants[0].Entrypoint[0] + `"]`; entrypoint != want {
		t.Errorf("ENTRYPOINT %s, want %s", entrypoint, want)
	}
}

func TestBuildSaysWhatItLacks(t *testing.T) {
	t.Chdir("../../..")
	for binary, want := range map[string]string{
		"bin/untracked":      "want ARCHITECTURE=BINARY",
		"amd64=/nonexistent": "/nonexistent: no such file",
	} {
		if _, err := build(options{binaries: []string{binary}}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %q", binary, err, want)
		}
	}
}
