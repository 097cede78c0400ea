// SPDX-License-Identifier: Apache-2.0

// image writes the container image of untracked without a container engine: `make image`. The Dockerfile beside the
// Makefile gives an image of the same content.
//
//	image -version v1 -o bin/untracked-image.tar amd64=bin/untracked-linux-amd64 arm64=bin/untracked-linux-arm64
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/untracked-cni/untracked/pkg/ociimage"
)

// repository is what the image is called where no registry has it: without a host, container runtimes would take it for
// one of Docker's hub.
const repository = "localhost/untracked"

// licences go into the image as they are in the repository.
var licences = []string{"LICENSE", "bpf/LICENSE.GPL-2.0", "bpf/LICENSE.BSD-2-Clause"}

type options struct {
	version, revision, output string
	created                   int64
	binaries                  []string
}

func main() {
	var o options
	flag.StringVar(&o.version, "version", "unknown", "version of the binaries, the image's tag beside latest")
	flag.StringVar(&o.revision, "revision", "", "commit that the binaries were built from")
	flag.Int64Var(&o.created, "created", 0, "time of the commit, in seconds since 1970")
	flag.StringVar(&o.output, "o", "bin/untracked-image.tar", "file to write")
	flag.Parse()
	o.binaries = flag.Args()
	if err := run(o); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func run(o options) error {
	image, err := build(o)
	if err != nil {
		return err
	}
	f, err := os.Create(o.output)
	if err != nil {
		return err
	}
	if err := errors.Join(ociimage.Write(f, image), f.Close()); err != nil {
		_ = os.Remove(o.output)
		return fmt.Errorf("write %s: %w", o.output, err)
	}
	info, err := os.Stat(o.output)
	if err != nil {
		return err
	}
	fmt.Printf("%s: %s, %d architectures, %.1f MB\n", o.output, strings.Join(image.Names, ", "), len(image.Variants), float64(info.Size())/1e6)
	return nil
}

func build(o options) (ociimage.Image, error) {
	image := ociimage.Image{
		Names:   []string{repository + ":" + o.version, repository + ":latest"},
		Created: time.Unix(o.created, 0),
		Labels: map[string]string{
			"org.opencontainers.image.title":       "untracked",
			"org.opencontainers.image.description": "Takes chosen traffic of a node out of connection tracking",
			"org.opencontainers.image.licenses":    "Apache-2.0 AND (GPL-2.0-only OR BSD-2-Clause)",
			"org.opencontainers.image.source":      "https://github.com/untracked-cni/untracked",
			"org.opencontainers.image.version":     o.version,
			"org.opencontainers.image.revision":    o.revision,
		},
	}
	var common []ociimage.File
	for _, name := range licences {
		content, err := os.ReadFile(name)
		if err != nil {
			return image, err
		}
		common = append(common, ociimage.File{Path: path.Join("/licenses", filepath.Base(name)), Mode: 0o644, Content: content})
	}
	for _, b := range o.binaries {
		architecture, file, found := strings.Cut(b, "=")
		if !found {
			return image, fmt.Errorf("%q: want ARCHITECTURE=BINARY, such as amd64=bin/untracked-linux-amd64", b)
		}
		content, err := os.ReadFile(file)
		if err != nil {
			return image, err
		}
		image.Variants = append(image.Variants, ociimage.Variant{
			Architecture: architecture,
			Files:        append([]ociimage.File{{Path: "/untracked", Mode: 0o755, Content: content}}, common...),
			Entrypoint:   []string{"/untracked"},
		})
	}
	return image, nil
}
