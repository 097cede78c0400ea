// SPDX-License-Identifier: Apache-2.0

package ociimage

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// sample is an image for two architectures, its files not in order.
func sample() Image {
	variant := func(architecture string) Variant {
		return Variant{
			Architecture: architecture,
			Entrypoint:   []string{"/opt/server"},
			Cmd:          []string{"--help"},
			Files: []File{
				{Path: "/opt/server", Mode: 0o755, Content: []byte("program for " + architecture)},
				{Path: "/etc/server/config", Mode: 0o640, Content: []byte("a=b\n")},
			},
		}
	}
	return Image{
		Names:    []string{"localhost/server:v1", "localhost:5000/server:latest"},
		Labels:   map[string]string{"org.opencontainers.image.title": "server"},
		Created:  time.Unix(1_700_000_000, 999),
		Variants: []Variant{variant("amd64"), variant("arm64")},
	}
}

func written(t *testing.T, image Image) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := Write(&b, image); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

type entry struct {
	Name string
	Mode int64
	Time int64
	Body string
}

func untar(t *testing.T, r io.Reader) (entries []entry) {
	t.Helper()
	for archive := tar.NewReader(r); ; {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return entries
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Gid != 0 || h.Uname != "" || h.Gname != "" || len(h.PAXRecords) > 0 {
			t.Errorf("%s carries more than it should: %+v", h.Name, h)
		}
		body, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		entries = append(entries, entry{h.Name, h.Mode, h.ModTime.Unix(), string(body)})
	}
}

// layoutOf follows an image as an importer does, and checks what it passes: digests, sizes, media types.
type layoutOf struct {
	t     *testing.T
	blobs map[string]string
}

func open(t *testing.T, data []byte) *layoutOf {
	t.Helper()
	l := &layoutOf{t, map[string]string{}}
	for _, e := range untar(t, bytes.NewReader(data)) {
		l.blobs[e.Name] = e.Body
	}
	return l
}

func (l *layoutOf) json(name string, into any) {
	l.t.Helper()
	body, found := l.blobs[name]
	if !found {
		l.t.Fatalf("the layout lacks %s", name)
	}
	d := json.NewDecoder(strings.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		l.t.Fatalf("%s: %v", name, err)
	}
}

func (l *layoutOf) blob(d descriptor, mediaType string) string {
	l.t.Helper()
	body, found := l.blobs[blobPath(d.Digest)]
	if !found || digestOf([]byte(body)) != d.Digest || int64(len(body)) != d.Size || d.MediaType != mediaType {
		l.t.Fatalf("%+v: want a %s of that digest and size; have %d bytes", d, mediaType, len(body))
	}
	return blobPath(d.Digest)
}

func TestLayout(t *testing.T) {
	l := open(t, written(t, sample()))
	if got := l.blobs["oci-layout"]; got != `{"imageLayoutVersion":"1.0.0"}` {
		t.Errorf("oci-layout is %s", got)
	}
	var names, variants index
	l.json("index.json", &names)
	for i, want := range []map[string]string{
		{nameContainerd: "localhost/server:v1", nameRef: "v1"},
		{nameContainerd: "localhost:5000/server:latest", nameRef: "latest"},
	} {
		if diff := cmp.Diff(want, names.Manifests[i].Annotations); diff != "" {
			t.Errorf("name %d (-want +got):\n%s", i, diff)
		}
		l.json(l.blob(names.Manifests[i], typeIndex), &variants)
	}
	used := map[string]bool{"oci-layout": true, "index.json": true, "manifest.json": true, blobPath(names.Manifests[0].Digest): true}
	var docker []dockerManifest
	l.json("manifest.json", &docker)
	for i, architecture := range []string{"amd64", "arm64"} {
		var m manifest
		var c imageConfig
		l.json(l.blob(variants.Manifests[i], typeManifest), &m)
		l.json(l.blob(m.Config, typeConfig), &c)
		packed := l.blob(m.Layers[0], typeLayer)
		for _, name := range []string{blobPath(variants.Manifests[i].Digest), blobPath(m.Config.Digest), packed} {
			used[name] = true
		}
		if p := *variants.Manifests[i].Platform; p != c.platform || p != (platform{architecture, "linux"}) {
			t.Errorf("platform %+v and %+v, want linux/%s", p, c.platform, architecture)
		}
		if !slices.Equal(c.Config.Entrypoint, []string{"/opt/server"}) || !slices.Equal(c.Config.Cmd, []string{"--help"}) || c.Created != "2023-11-14T22:13:20Z" {
			t.Errorf("configuration %+v", c)
		}
		z, err := gzip.NewReader(strings.NewReader(l.blobs[packed]))
		if err != nil {
			t.Fatal(err)
		}
		layer, err := io.ReadAll(z)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(c.RootFS.DiffIDs, []string{digestOf(layer)}) {
			t.Errorf("diff_ids %v, the layer is %s", c.RootFS.DiffIDs, digestOf(layer))
		}
		const at = 1_700_000_000
		want := []entry{
			{"etc/", 0o755, at, ""}, {"etc/server/", 0o755, at, ""}, {"etc/server/config", 0o640, at, "a=b\n"},
			{"opt/", 0o755, at, ""}, {"opt/server", 0o755, at, "program for " + architecture},
		}
		if diff := cmp.Diff(want, untar(t, bytes.NewReader(layer))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", architecture, diff)
		}
		if i == 0 {
			want := []dockerManifest{{blobPath(m.Config.Digest), sample().Names, []string{packed}}}
			if diff := cmp.Diff(want, docker); diff != "" {
				t.Errorf("manifest.json (-want +got):\n%s", diff)
			}
		}
	}
	for name := range l.blobs {
		if !used[name] && !strings.HasSuffix(name, "/") {
			t.Errorf("nothing leads to %s", name)
		}
	}
}

func TestSameBytes(t *testing.T) {
	one, other := sample(), sample()
	slices.Reverse(other.Variants[0].Files)
	other.Created = other.Created.In(time.FixedZone("elsewhere", 3600))
	if !bytes.Equal(written(t, one), written(t, other)) {
		t.Error("the same image gave other bytes")
	}
	other.Variants[1].Files[0].Content = []byte("another program")
	if bytes.Equal(written(t, one), written(t, other)) {
		t.Error("another image gave the same bytes")
	}
}

func TestRefused(t *testing.T) {
	for name, spoil := range map[string]func(*Image){
		"no name":         func(i *Image) { i.Names = nil },
		"no tag":          func(i *Image) { i.Names = []string{"localhost:5000/server"} },
		"digest":          func(i *Image) { i.Names = []string{"server:v1@sha256:00"} },
		"no architecture": func(i *Image) { i.Variants = nil },
		"no file":         func(i *Image) { i.Variants[1].Files = nil },
		"relative path":   func(i *Image) { i.Variants[0].Files[0].Path = "server" },
		"path upwards":    func(i *Image) { i.Variants[0].Files[0].Path = "/opt/../server" },
		"same path twice": func(i *Image) { i.Variants[0].Files[0].Path = "/etc/server/config" },
		"root":            func(i *Image) { i.Variants[0].Files[0].Path = "/" },
	} {
		t.Run(name, func(t *testing.T) {
			image := sample()
			spoil(&image)
			var b bytes.Buffer
			if err := Write(&b, image); err == nil || b.Len() > 0 {
				t.Errorf("error %v after %d bytes, want one before the first", err, b.Len())
			}
		})
	}
}
