// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/pkg/config"
	"github.com/untracked-cni/untracked/pkg/node"
	"github.com/untracked-cni/untracked/test/lab"
)

// A caller that hangs or was stopped holds the lock for ever. Who waits in vain names it, and what to type; then all
// goes on.
func TestBadDayLockHeldForEver(t *testing.T) {
	if _, err := exec.LookPath("flock"); err != nil {
		t.Skip("needs the flock command")
	}
	l, chain, pod := cniChain(t, cniPolicy())
	cniAdd(t, chain, pod)
	holder := lab.Command(l.Node, "flock", "--no-fork", filepath.Join(l.RunDir, "lock"), "sh", "-c", "echo locked; exec sleep 1000")
	progress := must(holder.StdoutPipe())(t)
	check(t, holder.Start())
	t.Cleanup(func() {
		holder.Process.Kill()
		holder.Wait()
	})
	must(progress.Read(make([]byte, 1)))(t) // it says so when it has the lock
	pid := holder.Process.Pid

	changed := cniPolicy("deny", "192.0.2.0/24")
	check(t, chain.Rewrite(lab.ChainConfig{Annotations: changed}))
	wait := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		c, err := config.Parse(chain.Stdin([]byte(cniPrev("1.1.0"))))
		check(t, err)
		check(t, lab.In(l.Node, func() error {
			_, err = cniNodeOf(l).Ensure(ctx, c)
			return nil
		}))
		return err
	}
	says := func(words ...string) {
		t.Helper()
		err := wait()
		if !errors.Is(err, node.ErrLocked) {
			t.Fatalf("with the lock held: %v, want %v", err, node.ErrLocked)
		}
		for _, w := range words {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%v\ndoes not say %q", err, w)
			}
		}
	}
	says(filepath.Join(l.RunDir, "lock"), fmt.Sprintf("process %d (", pid), "holds it", fmt.Sprintf("`kill %d`", pid))
	check(t, holder.Process.Signal(unix.SIGSTOP))
	cniEventually(t, "the holder stops", func() bool {
		return strings.Contains(wait().Error(), "is stopped")
	})
	says(fmt.Sprintf("process %d (sleep) holds it and is stopped", pid), fmt.Sprintf("`kill -CONT %d`", pid), fmt.Sprintf("`kill -KILL %d`", pid))

	check(t, holder.Process.Kill())
	holder.Wait()
	cniAdd(t, chain, pod)
	cniHealthy(t, l, chain, pod)
}
