// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"crypto/sha256"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/untracked-cni/untracked/test/lab"
)

// The versions that components are built from. Kubernetes' is the one of test/e2e/components/go.mod.
const ContainerdVersion = "v2.4.2"

// Component is a binary built from Go modules.
type Component struct {
	Name string
	// Package is its import path.
	Package string
	// Install is the version to install it at, from its own go.mod; empty: it is built in test/e2e/components.
	Install string
}

// Components are what takes long to build of all that a machine needs.
var Components = []Component{
	{"kubelet", "k8s.io/kubernetes/cmd/kubelet", ""},
	{"kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver", ""},
	{"kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager", ""},
	{"kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler", ""},
	{"kubectl", "k8s.io/kubernetes/cmd/kubectl", ""},
	{"containerd", "github.com/containerd/containerd/v2/cmd/containerd", ContainerdVersion},
	{"containerd-shim-runc-v2", "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2", ContainerdVersion},
	{"ctr", "github.com/containerd/containerd/v2/cmd/ctr", ContainerdVersion},
}

// SystemTool is a binary that comes from the distribution.
type SystemTool struct{ Path, Package string }

// SystemTools are Debian 12's.
var SystemTools = []SystemTool{
	{"/usr/bin/containerd", "containerd"},
	{"/usr/sbin/runc", "runc"},
	{"/usr/lib/cni/bridge", "containernetworking-plugins"},
	{"/usr/bin/etcd", "etcd-server"},
}

// ComponentsDir is where the components of these versions are kept, and the directory that they are built in.
func ComponentsDir() (dir, source string, err error) {
	root, err := lab.ModuleRoot()
	if err != nil {
		return "", "", err
	}
	source = filepath.Join(root, "test/e2e/components")
	sum := sha256.New()
	fmt.Fprintln(sum, runtime.GOARCH, Components)
	for _, file := range []string{"go.mod", "go.sum"} {
		text, err := os.ReadFile(filepath.Join(source, file))
		if err != nil {
			return "", "", err
		}
		fmt.Fprintf(sum, "%s %d\n%s", file, len(text), text)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", "", fmt.Errorf("%w: set HOME or XDG_CACHE_HOME", err)
	}
	return filepath.Join(cache, "untracked-e2e", hex.EncodeToString(sum.Sum(nil)[:6])), source, nil
}

// Missing names what a machine needs and this host lacks: components to build, packages to install.
func Missing(dir string) (build []Component, install []string) {
	for _, c := range Components {
		if _, err := os.Stat(filepath.Join(dir, c.Name)); err != nil {
			build = append(build, c)
		}
	}
	for _, tool := range SystemTools {
		if _, err := exec.LookPath(tool.Path); err != nil {
			install = append(install, tool.Package)
		}
	}
	return build, install
}

var asked = flag.Bool("e2e", false, "run the tests that need a machine with real components")

// components returns their directory. The test is skipped unless the flag -e2e asks for it.
func components(t TB) string {
	t.Helper()
	if !*asked {
		t.Skip("needs real components, and a few minutes: make e2e")
	}
	if os.Geteuid() != 0 {
		t.Fatal("needs root")
	}
	dir, _, err := ComponentsDir()
	if err != nil {
		t.Fatal(err)
	}
	build, missing := Missing(dir)
	for _, c := range build {
		missing = append(missing, c.Name)
	}
	if len(missing) > 0 {
		t.Fatalf("missing: %s; run `go run ./test/e2e/prepare`", strings.Join(missing, ", "))
	}
	return dir
}
