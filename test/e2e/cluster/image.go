// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"runtime"
	"sync"

	"github.com/untracked-cni/untracked/pkg/ociimage"
)

// The names of the one image on a machine: of test/e2e/pod, which does nothing where it is not told what to do.
const (
	PauseImage = "untracked.test/pause:1"
	PodImage   = "untracked.test/pod:1"
)

// podImage is the image's archive, written by hand: a layer with one static binary.
var podImage = sync.OnceValues(func() ([]byte, error) {
	binary, err := buildBinary("test/e2e", "./pod")
	if err != nil {
		return nil, err
	}
	var archive bytes.Buffer
	err = ociimage.Write(&archive, ociimage.Image{
		Names: []string{PauseImage, PodImage},
		Variants: []ociimage.Variant{{
			Architecture: runtime.GOARCH,
			Files:        []ociimage.File{{Path: "/pod", Mode: 0o755, Content: binary}},
			Entrypoint:   []string{"/pod"}, Cmd: []string{"pause"},
		}},
	})
	return archive.Bytes(), err
})
