// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"runtime"
	"sync"
)

// The images on a machine, both of test/e2e/pod.
const (
	PauseImage = "untracked.test/pause:1"
	PodImage   = "untracked.test/pod:1"
)

// podImage is an OCI archive of both images, written by hand: a layer with one static binary.
var podImage = sync.OnceValues(func() ([]byte, error) {
	binary, err := buildBinary("test/e2e", "./pod")
	if err != nil {
		return nil, err
	}
	return ociArchive(binary, map[string][]string{PauseImage: {"/pod", "pause"}, PodImage: {"/pod"}})
})

// ociArchive makes an OCI image layout, in a tar, of images that have this binary at /pod and differ in their entrypoint.
// See github.com/opencontainers/image-spec, image-layout.md.
func ociArchive(binary []byte, entrypoints map[string][]string) ([]byte, error) {
	type descriptor struct {
		MediaType   string            `json:"mediaType"`
		Digest      string            `json:"digest"`
		Size        int               `json:"size"`
		Annotations map[string]string `json:"annotations,omitempty"`
	}
	type object = map[string]any
	var archive bytes.Buffer
	out := tar.NewWriter(&archive)
	written := map[string]bool{}
	blob := func(mediaType string, data []byte) descriptor {
		sum := sha256.Sum256(data)
		digest := hex.EncodeToString(sum[:])
		if !written[digest] {
			written[digest] = true
			tarFile(out, "blobs/sha256/"+digest, 0o644, data)
		}
		return descriptor{MediaType: mediaType, Digest: "sha256:" + digest, Size: len(data)}
	}
	blobJSON := func(mediaType string, v any) (descriptor, error) {
		data, err := json.Marshal(v)
		return blob(mediaType, data), err
	}

	var layerTar bytes.Buffer
	layerOut := tar.NewWriter(&layerTar)
	tarFile(layerOut, "pod", 0o755, binary)
	if err := layerOut.Close(); err != nil {
		return nil, err
	}
	layer := blob("application/vnd.oci.image.layer.v1.tar", layerTar.Bytes())
	var manifests []descriptor
	for name, entrypoint := range entrypoints {
		config, err := blobJSON("application/vnd.oci.image.config.v1+json", object{
			"architecture": runtime.GOARCH, "os": "linux", "config": object{"Entrypoint": entrypoint},
			"rootfs": object{"type": "layers", "diff_ids": []string{layer.Digest}},
		})
		if err != nil {
			return nil, err
		}
		manifest, err := blobJSON("application/vnd.oci.image.manifest.v1+json", object{
			"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": []descriptor{layer},
		})
		if err != nil {
			return nil, err
		}
		// The full name: containerd's own annotation, the other holds but the tag.
		manifest.Annotations = map[string]string{"io.containerd.image.name": name}
		manifests = append(manifests, manifest)
	}
	index, err := json.Marshal(object{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests})
	if err != nil {
		return nil, err
	}
	tarFile(out, "index.json", 0o644, index)
	tarFile(out, "oci-layout", 0o644, []byte(`{"imageLayoutVersion":"1.0.0"}`))
	return archive.Bytes(), out.Close()
}

// tarFile adds a file. What fails in memory is seen by Close.
func tarFile(out *tar.Writer, name string, mode int64, data []byte) {
	out.WriteHeader(&tar.Header{Name: name, Mode: mode, Size: int64(len(data)), Typeflag: tar.TypeReg, Format: tar.FormatPAX})
	out.Write(data)
}
