// SPDX-License-Identifier: Apache-2.0

// Package ociimage writes container images as one tar file, from files alone and without a container engine: an OCI image
// layout, with the manifest.json that `docker load` looks for beside it. containerd, docker and skopeo take it as it is.
//
// The same input gives the same bytes, with one version of Go: nothing of the machine, its clock or its users gets in. What
// it does not do: read images, layers upon layers, whatever belongs to a registry.
//
// The formats are those of github.com/opencontainers/image-spec v1.1: image-layout.md, image-index.md, manifest.md,
// config.md and layer.md.
package ociimage

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"time"
)

// Image is one image for one or more architectures of Linux.
type Image struct {
	// Names are the full names to import it by, such as localhost/untracked:v1. At least one.
	Names []string
	// Variants are its content, one for each architecture. At least one.
	Variants []Variant
	// Labels go into the configuration of each variant, and as annotations into each manifest and the index: by
	// convention the keys of annotations.md. (optional)
	Labels map[string]string
	// Created is the time of the image and of all files in it, to the second. (optional: 1970)
	Created time.Time
}

// Variant is an image's content for one architecture.
type Variant struct {
	// Architecture is Go's GOARCH.
	Architecture string
	// Files are what is in the image; the directories above them are made. At least one.
	Files []File
	// Entrypoint is the command that a container runs, and Cmd the arguments it has if none are given. (optional)
	Entrypoint, Cmd []string
}

// File is a regular file in an image.
type File struct {
	// Path is absolute in the image.
	Path string
	// Mode is its permission bits; it belongs to root.
	Mode    fs.FileMode
	Content []byte
}

// Media types, and the keys of annotations that importers name an image by.
const (
	typeIndex    = "application/vnd.oci.image.index.v1+json"
	typeManifest = "application/vnd.oci.image.manifest.v1+json"
	typeConfig   = "application/vnd.oci.image.config.v1+json"
	typeLayer    = "application/vnd.oci.image.layer.v1.tar+gzip"

	// nameContainerd is the full name, for containerd; nameRef the part after the colon, for skopeo and its kin.
	nameContainerd = "io.containerd.image.name"
	nameRef        = "org.opencontainers.image.ref.name"
)

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Platform    *platform         `json:"platform,omitempty"`
}

type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
}

type index struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType"`
	Manifests     []descriptor      `json:"manifests"`
	Annotations   map[string]string `json:"annotations,omitempty"`
}

type manifest struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType"`
	Config        descriptor        `json:"config"`
	Layers        []descriptor      `json:"layers"`
	Annotations   map[string]string `json:"annotations,omitempty"`
}

type imageConfig struct {
	platform
	Created string          `json:"created"`
	Config  containerConfig `json:"config"`
	RootFS  rootFS          `json:"rootfs"`
	History []history       `json:"history"`
}

type containerConfig struct {
	Entrypoint []string          `json:"Entrypoint,omitempty"`
	Cmd        []string          `json:"Cmd,omitempty"`
	WorkingDir string            `json:"WorkingDir"`
	Labels     map[string]string `json:"Labels,omitempty"`
}

type rootFS struct {
	Type    string   `json:"type"`
	DiffIDs []string `json:"diff_ids"`
}

type history struct {
	Created   string `json:"created"`
	CreatedBy string `json:"created_by"`
}

// dockerManifest is an item of manifest.json, which docker before 25 reads in place of the index. It knows one
// architecture only.
type dockerManifest struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// Write writes the image's tar file.
func Write(w io.Writer, image Image) error {
	if err := image.check(); err != nil {
		return err
	}
	layout := files{}
	variants := index{SchemaVersion: 2, MediaType: typeIndex, Annotations: image.Labels}
	var docker []dockerManifest
	for i, v := range image.Variants {
		d, entry, err := layout.addVariant(&image, &v)
		if err != nil {
			return fmt.Errorf("image for %s: %w", v.Architecture, err)
		}
		variants.Manifests = append(variants.Manifests, d)
		if i == 0 {
			docker = append(docker, entry)
		}
	}
	all, err := layout.addJSON(typeIndex, variants)
	if err != nil {
		return err
	}
	names := index{SchemaVersion: 2, MediaType: typeIndex}
	for _, name := range image.Names {
		named := all
		named.Annotations = map[string]string{nameContainerd: name, nameRef: tagOf(name)}
		names.Manifests = append(names.Manifests, named)
	}
	for name, content := range map[string]any{
		"index.json": names, "manifest.json": docker, "oci-layout": map[string]string{"imageLayoutVersion": "1.0.0"},
	} {
		if layout[name], err = json.Marshal(content); err != nil {
			return err
		}
	}
	return writeTar(w, layout.list(), image.Created)
}

func (image *Image) check() error {
	if len(image.Names) == 0 || len(image.Variants) == 0 {
		return errors.New("an image needs a name and an architecture")
	}
	for _, name := range image.Names {
		if tagOf(name) == "" || strings.ContainsAny(name, " \t\n@") {
			return fmt.Errorf("image name %q: want one with a tag, such as localhost/untracked:v1", name)
		}
	}
	for _, v := range image.Variants {
		if v.Architecture == "" || len(v.Files) == 0 {
			return errors.New("an image needs a file for each architecture")
		}
		seen := map[string]bool{}
		for _, f := range v.Files {
			if !path.IsAbs(f.Path) || path.Clean(f.Path) != f.Path || f.Path == "/" || seen[f.Path] {
				return fmt.Errorf("file %q of an image: want an absolute, clean path that no other file has", f.Path)
			}
			seen[f.Path] = true
		}
	}
	return nil
}

// tagOf is what follows the colon, which is not that of a port.
func tagOf(name string) string {
	_, tag, _ := strings.Cut(name[strings.LastIndex(name, "/")+1:], ":")
	return tag
}

// files is the layout: contents by path.
type files map[string][]byte

func (l files) list() []File {
	var list []File
	for _, name := range slices.Sorted(maps.Keys(l)) {
		list = append(list, File{Path: "/" + name, Mode: 0o644, Content: l[name]})
	}
	return list
}

func (l files) add(mediaType string, content []byte) descriptor {
	digest := digestOf(content)
	l[blobPath(digest)] = content
	return descriptor{MediaType: mediaType, Digest: digest, Size: int64(len(content))}
}

func (l files) addJSON(mediaType string, content any) (descriptor, error) {
	data, err := json.Marshal(content)
	if err != nil {
		return descriptor{}, err
	}
	return l.add(mediaType, data), nil
}

func (l files) addVariant(image *Image, v *Variant) (descriptor, dockerManifest, error) {
	var layer, packed bytes.Buffer
	if err := writeTar(&layer, v.Files, image.Created); err != nil {
		return descriptor{}, dockerManifest{}, err
	}
	z, err := gzip.NewWriterLevel(&packed, gzip.BestCompression)
	if err != nil {
		return descriptor{}, dockerManifest{}, err
	}
	if _, err := z.Write(layer.Bytes()); err != nil {
		return descriptor{}, dockerManifest{}, err
	}
	if err := z.Close(); err != nil {
		return descriptor{}, dockerManifest{}, err
	}
	content := l.add(typeLayer, packed.Bytes())
	created := moment(image.Created).Format(time.RFC3339)
	here := platform{Architecture: v.Architecture, OS: "linux"}
	config, err := l.addJSON(typeConfig, imageConfig{
		platform: here, Created: created,
		Config:  containerConfig{Entrypoint: v.Entrypoint, Cmd: v.Cmd, WorkingDir: "/", Labels: image.Labels},
		RootFS:  rootFS{Type: "layers", DiffIDs: []string{digestOf(layer.Bytes())}},
		History: []history{{Created: created, CreatedBy: "files"}},
	})
	if err != nil {
		return descriptor{}, dockerManifest{}, err
	}
	d, err := l.addJSON(typeManifest, manifest{
		SchemaVersion: 2, MediaType: typeManifest, Config: config, Layers: []descriptor{content}, Annotations: image.Labels,
	})
	d.Platform = &here
	return d, dockerManifest{blobPath(config.Digest), image.Names, []string{blobPath(content.Digest)}}, err
}

func digestOf(content []byte) string {
	sum := sha256.Sum256(content)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func blobPath(digest string) string {
	return "blobs/sha256/" + strings.TrimPrefix(digest, "sha256:")
}

// moment is the time in the form that all headers and configurations can have.
func moment(created time.Time) time.Time {
	if created.IsZero() {
		return time.Unix(0, 0).UTC()
	}
	return created.UTC().Truncate(time.Second)
}

// writeTar writes the files in the order of their paths, each after the directories above it.
func writeTar(w io.Writer, list []File, created time.Time) error {
	t := tar.NewWriter(w)
	made := map[string]bool{"/": true}
	header := func(name string, kind byte, mode fs.FileMode, size int) error {
		return t.WriteHeader(&tar.Header{
			Typeflag: kind, Name: strings.TrimPrefix(name, "/"), Mode: int64(mode.Perm()), Size: int64(size),
			ModTime: moment(created), Format: tar.FormatPAX,
		})
	}
	var above func(dir string) error
	above = func(dir string) error {
		if made[dir] {
			return nil
		}
		made[dir] = true
		if err := above(path.Dir(dir)); err != nil {
			return err
		}
		return header(dir+"/", tar.TypeDir, 0o755, 0)
	}
	for _, f := range slices.SortedFunc(slices.Values(list), func(a, b File) int { return cmp.Compare(a.Path, b.Path) }) {
		if err := above(path.Dir(f.Path)); err != nil {
			return err
		}
		if err := header(f.Path, tar.TypeReg, f.Mode, len(f.Content)); err != nil {
			return err
		}
		if _, err := t.Write(f.Content); err != nil {
			return err
		}
	}
	return t.Close()
}
