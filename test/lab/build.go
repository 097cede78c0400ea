// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// What Build can build: everything at the version that go.mod pins.
var buildable = map[string]string{
	"untracked":  "github.com/untracked-cni/untracked/plugins/meta/untracked",
	"cnitool":    "github.com/containernetworking/cni/cnitool",
	"bridge":     "github.com/containernetworking/plugins/plugins/main/bridge",
	"host-local": "github.com/containernetworking/plugins/plugins/ipam/host-local",
	"portmap":    "github.com/containernetworking/plugins/plugins/meta/portmap",
}

var builds struct {
	sync.Mutex
	dir  string
	done map[string]bool
}

// Build builds the named binaries, static, and returns the directory that holds them, for CNI_PATH. A binary
// is built once in a process; across processes the go command's cache makes it cheap.
func Build(names ...string) (dir string, err error) {
	builds.Lock()
	defer builds.Unlock()
	var packages []string
	for _, name := range names {
		pkg, ok := buildable[name]
		if !ok {
			return "", fmt.Errorf("build %s: unknown binary", name)
		}
		if !builds.done[name] {
			packages = append(packages, pkg)
		}
	}
	if len(packages) == 0 && builds.dir != "" {
		return builds.dir, nil
	}
	root, err := ModuleRoot()
	if err != nil {
		return "", err
	}
	if dir, err = binDir(root); err != nil {
		return "", fmt.Errorf("build %s: %w", strings.Join(names, ", "), err)
	}
	// go build replaces a changed binary by another file, so a running one is not disturbed; two go builds
	// at once are kept apart.
	lock, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	cmd := exec.Command("go", append([]string{"build", "-buildvcs=false", "-o", dir + "/"}, packages...)...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", strings.Join(names, ", "), err, out)
	}
	if builds.done == nil {
		builds.done = map[string]bool{}
	}
	for _, name := range names {
		builds.done[name] = true
	}
	builds.dir = dir
	return dir, nil
}

// ModuleRoot is the directory of this module's go.mod, found from the working directory.
func ModuleRoot() (string, error) {
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("find the module: %w", err)
	}
	mod := strings.TrimSpace(string(out))
	if mod == "" || mod == os.DevNull {
		return "", errors.New("find the module: run from inside its source tree")
	}
	return filepath.Dir(mod), nil
}

// binDir is one directory for each source tree, private to its user: root runs what is in it.
func binDir(root string) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		// No home directory, as under some service managers: the go command was given a cache of its own.
		out, err := exec.Command("go", "env", "GOCACHE").Output()
		if err != nil {
			return "", fmt.Errorf("find a cache directory: %w", err)
		}
		cache = strings.TrimSpace(string(out))
	}
	sum := sha256.Sum256([]byte(root))
	dir := filepath.Join(cache, "untracked-lab", hex.EncodeToString(sum[:6]))
	return dir, os.MkdirAll(dir, 0o700)
}
