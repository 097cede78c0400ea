// SPDX-License-Identifier: Apache-2.0

// prepare gets what the end-to-end tests run: Kubernetes' commands and containerd, built from their modules at the versions
// that test/e2e pins and kept in the user's cache directory, and Debian's packages. The first time takes 10 to 20 minutes
// and 9 GB of Go's caches, later ones no time.
package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/test/e2e/cluster"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "prepare:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	dir, source, err := cluster.ComponentsDir()
	if err != nil {
		return err
	}
	build, install := cluster.Missing(dir)
	if err := installPackages(ctx, install); err != nil {
		return err
	}
	if len(build) == 0 {
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	// Two at once would build everything twice.
	lock, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	build, _ = cluster.Missing(dir)
	for _, c := range build {
		if err := buildComponent(ctx, c, dir, source); err != nil {
			return err
		}
	}
	return nil
}

func installPackages(ctx context.Context, packages []string) error {
	if len(packages) == 0 {
		return nil
	}
	if _, err := exec.LookPath("apt-get"); err != nil || os.Geteuid() != 0 {
		return fmt.Errorf("not installed: %s; install these packages, or run as root where there is apt-get", strings.Join(packages, ", "))
	}
	done := progress("installing "+strings.Join(packages, ", "), nil)
	defer done()
	slices.Sort(packages)
	for _, args := range [][]string{{"update", "-qq"}, append([]string{"install", "-y", "-qq", "--no-install-recommends"}, slices.Compact(packages)...)} {
		cmd := exec.CommandContext(ctx, "apt-get", args...)
		// RUNLEVEL=1: packages that bring a server do not start it.
		cmd.Env = append(os.Environ(), "RUNLEVEL=1", "DEBIAN_FRONTEND=noninteractive")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("apt-get %s: %w\n%s", args[0], err, out)
		}
	}
	return nil
}

// buildComponent builds into a directory beside the binary's place, for what is in its place is complete.
func buildComponent(ctx context.Context, c cluster.Component, dir, source string) error {
	tmp := filepath.Join(dir, ".building")
	if err := os.MkdirAll(tmp, 0o700); err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	args, version := []string{"build", "-o", filepath.Join(tmp, c.Name)}, ""
	cmd := exec.CommandContext(ctx, "go")
	if c.Install != "" {
		args, version = []string{"install"}, "@"+c.Install
		cmd.Env = append(os.Environ(), "GOBIN="+tmp)
	} else {
		cmd.Env, cmd.Dir = os.Environ(), source
	}
	ldflags := "-s -w"
	if strings.HasPrefix(c.Package, "k8s.io/") {
		// kubelet and API server compare theirs.
		version, err := kubernetesVersion(ctx, source)
		if err != nil {
			return err
		}
		ldflags += " -X k8s.io/component-base/version.gitVersion=" + version
	}
	cmd.Args = slices.Concat([]string{"go"}, args, []string{"-v", "-buildvcs=false", "-trimpath", "-ldflags=" + ldflags, c.Package + version})
	cmd.Env = append(cmd.Env, "CGO_ENABLED=0", "GOFLAGS=")
	// -v names each package as it is compiled.
	said, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	steps := make(chan string, 1)
	done := progress("building "+c.Name+version, steps)
	tail := follow(said, steps)
	err = cmd.Wait()
	done()
	if err != nil {
		return fmt.Errorf("build %s: %w\n%s", c.Name, err, strings.Join(tail, "\n"))
	}
	return os.Rename(filepath.Join(tmp, c.Name), filepath.Join(dir, c.Name))
}

// follow passes lines on as long as somebody takes them, and returns the last of them.
func follow(from io.Reader, to chan<- string) (tail []string) {
	lines := bufio.NewScanner(from)
	for lines.Scan() {
		if tail = append(tail, lines.Text()); len(tail) > 20 {
			tail = tail[1:]
		}
		select {
		case to <- lines.Text():
		default:
		}
	}
	return tail
}

func kubernetesVersion(ctx context.Context, source string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Version}}", "k8s.io/kubernetes")
	cmd.Dir = source
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("find the version of Kubernetes: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}

// progress prints a line for a step; on a terminal, with how far it is, over and over. The returned function ends it.
func progress(step string, details <-chan string) (done func()) {
	_, err := unix.IoctlGetTermios(int(os.Stdout.Fd()), unix.TCGETS)
	begin := time.Now()
	if err != nil {
		fmt.Println(step)
		return func() {}
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		detail := ""
		for tick := time.NewTicker(200 * time.Millisecond); ; {
			fmt.Printf("\r\033[K%s  %.0f s  %.60s", step, time.Since(begin).Seconds(), detail)
			select {
			case detail = <-details:
			case <-tick.C:
			case <-stop:
				tick.Stop()
				fmt.Printf("\r\033[K%s  %.0f s\n", step, time.Since(begin).Seconds())
				return
			}
		}
	}()
	return func() {
		close(stop)
		<-stopped
	}
}
