// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"

	"github.com/untracked-cni/untracked/test/lab"
)

// criClient is the binary of test/e2e/components/cri: of the components' module, but quickly built.
var criClient = sync.OnceValues(func() ([]byte, error) { return buildBinary("test/e2e/components", "./cri") })

// buildBinary builds a static binary in a directory of this source tree, and returns it.
func buildBinary(dir, pkg string) ([]byte, error) {
	root, err := lab.ModuleRoot()
	if err != nil {
		return nil, err
	}
	tmp, err := os.MkdirTemp("", "untracked-e2e-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	file := filepath.Join(tmp, "binary")
	cmd := exec.Command("go", "build", "-buildvcs=false", "-trimpath", "-ldflags=-s -w", "-o", file, pkg)
	cmd.Dir = filepath.Join(root, dir)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build %s/%s: %w\n%s", dir, pkg, err, out)
	}
	return os.ReadFile(file)
}
