// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/test/lab"
)

// A full disk, wherever it is: the message says which, what was there is whole, and nothing is left of the attempt.
func TestInstallDiskFull(t *testing.T) {
	for _, c := range []struct {
		name, flag string
		dir        func(n *installNode) string
	}{
		{"binary", "--bin-dir", func(n *installNode) string { return n.chain.Bin }},
		{"conf list", "--conf-dir", func(n *installNode) string { return n.chain.ConfDir }},
		{"copy", "--state-dir", func(n *installNode) string { return n.state }},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newInstallNode(t)
			n.write(filepath.Join(n.etc, "list"), strings.Repeat("# nothing\n", 1000))
			dir := c.dir(n)
			n.mount(dir, "size=16k")
			check(t, os.WriteFile(filepath.Join(dir, "ballast"), make([]byte, 8<<10), 0o600))
			_ = os.WriteFile(filepath.Join(dir, "ballast2"), make([]byte, 16<<10), 0o600) // whatever fits
			before := n.listing()
			text := string(n.run(1, "install").Stderr)
			for _, want := range []string{dir, "no space left", "df "} {
				if !strings.Contains(text, want) {
					t.Errorf("the message lacks %q: %s", want, text)
				}
			}
			isOurs := func(line string) bool { return strings.HasPrefix(line, dir) }
			ours := func(listing []string) []string {
				return slices.DeleteFunc(slices.Clone(listing), func(line string) bool { return !isOurs(line) })
			}
			if diff := cmp.Diff(ours(before), ours(n.listing())); diff != "" {
				t.Errorf("the full directory changed (-before +after):\n%s", diff)
			}
			check(t, os.Remove(filepath.Join(dir, "ballast")))
			check(t, os.Remove(filepath.Join(dir, "ballast2")))
			check(t, unix.Mount("", dir, "", unix.MS_REMOUNT, "size=64m"))
			n.run(0, "install")
			n.run(0, "uninstall")
		})
	}
}

// mount puts a small file system over a directory, which keeps its content.
func (n *installNode) mount(dir, options string) {
	n.Helper()
	content := map[string]string{}
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if link, err := os.Readlink(path); err == nil {
			content[path] = "link " + link
		} else {
			content[path] = "file " + n.read(path)
		}
	}
	check(n, os.MkdirAll(dir, 0o755))
	check(n, unix.Mount("tmpfs", dir, "tmpfs", 0, options+",mode=0755"))
	n.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	for path, text := range content {
		if link, ok := strings.CutPrefix(text, "link "); ok {
			check(n, os.Symlink(link, path))
		} else {
			check(n, os.WriteFile(path, []byte(strings.TrimPrefix(text, "file ")), 0o600))
		}
	}
}

// What an operator is told where something is not as it has to be. Nothing is changed then.
func TestInstallMessages(t *testing.T) {
	for _, c := range []struct {
		name string
		exit int
		make func(n *installNode) (flags []string)
		want []string
	}{
		{"no policy", 2, func(n *installNode) []string {
			check(n, os.Remove(filepath.Join(n.etc, "annotations.yaml")))
			return nil
		}, []string{"annotations.yaml", "no policy"}},
		{"no directory", 2, func(n *installNode) []string {
			check(n, os.RemoveAll(n.etc))
			return nil
		}, []string{"/etc: no such file or directory", "--config"}},
		{"no conf list", 1, func(n *installNode) []string {
			check(n, os.Remove(n.chain.File))
			return nil
		}, []string{"no conf list", "--watch", "--conf-dir"}},
		{"half a conf list", 1, func(n *installNode) []string {
			check(n, n.chain.WriteFile(n.version(1)[:300]))
			return nil
		}, []string{"10-net.conflist:4:", "not valid JSON", "never written"}},
		{"a list that is no list", 1, func(n *installNode) []string {
			check(n, os.Rename(n.chain.File, strings.TrimSuffix(n.chain.File, "list")))
			return nil
		}, []string{"10-net.conf", "rename"}},
		{"no drop-in files", 1, func(n *installNode) []string {
			text := strings.Replace(n.read(n.chain.File), `"cniVersion"`, `"loadOnlyInlinedPlugins": true, "cniVersion"`, 1)
			check(n, n.chain.WriteFile([]byte(text)))
			return []string{"--drop-in"}
		}, []string{"loadOnlyInlinedPlugins", "leave --drop-in out"}},
		{"a list by the name of what would be made", 1, func(n *installNode) []string {
			n.write(filepath.Join(n.chain.ConfDir, "10-net.conf"), `{"cniVersion": "1.0.0", "name": "other", "type": "bridge"}`)
			return nil
		}, []string{"10-net.conf", "10-net.conflist is there, too"}},
		{"read-only", 1, func(n *installNode) []string {
			n.mount(n.chain.Bin, "size=64m")
			check(n, unix.Mount("", n.chain.Bin, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
			return nil
		}, []string{"read-only file system", "--bin-dir"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			n := newInstallNode(t)
			flags := c.make(n)
			before := n.confFiles()
			out := n.run(c.exit, "install", flags...)
			for _, want := range c.want {
				if !strings.Contains(string(out.Stderr), want) {
					t.Errorf("the message lacks %q: %s", want, out.Stderr)
				}
			}
			if said := strings.Count(string(out.Stderr), "waiting for the conf list"); said > 1 {
				t.Errorf("%d times: %s", said, out.Stderr)
			}
			if diff := cmp.Diff(before, n.confFiles()); diff != "" {
				t.Errorf("conf lists changed:\n%s", diff)
			}
			if c.exit == 2 && len(cniPins(t, n.lab, false)) > 0 {
				t.Error("something was put in force")
			}
			n.run(1, "install", append(flags, "--check")...)
		})
	}
}

func (n *installNode) confFiles() map[string]string {
	n.Helper()
	out := map[string]string{}
	for _, e := range must(os.ReadDir(n.chain.ConfDir))(n) {
		if !e.IsDir() {
			out[e.Name()] = n.read(filepath.Join(n.chain.ConfDir, e.Name()))
		}
	}
	return out
}

// Installers are killed at any time. The conf list is whole at every moment, and the next one leaves all as it should be.
func TestInstallKilled(t *testing.T) {
	n := newInstallNode(t)
	before := n.listing()
	cleanUp := func(name string) bool {
		return strings.Contains(name, ".tmp") || strings.Contains(name, "installer-")
	}
	for round := range 30 {
		verb := "install"
		if round%3 == 2 {
			verb = "uninstall"
		}
		n.annotate(fmt.Sprintf("ports: tcp/6379,udp/%d", 1024+round))
		cmd := lab.Command(n.lab.Node, installBinary(t), n.args(verb)...)
		check(t, cmd.Start())
		time.Sleep(time.Duration(rand.Int64N(int64(150 * time.Millisecond))))
		check(t, cmd.Process.Kill())
		_ = cmd.Wait()
		entry := n.entry() // fails if the list is not whole
		if _, err := os.Stat(filepath.Join(n.chain.Bin, "untracked")); entry != nil && err != nil {
			t.Fatalf("round %d: the list names a binary that is not there", round)
		}
	}
	n.run(0, "install")
	n.run(0, "install", "--check")
	for _, line := range append(n.listing(), cniFiles(t, n.lab, false)...) {
		if name, _, _ := strings.Cut(line, " "); cleanUp(filepath.Base(name)) {
			t.Errorf("left behind: %s", name)
		}
	}
	n.untracked(6379)
	n.run(0, "uninstall")
	if diff := cmp.Diff(before, n.listing()); diff != "" {
		t.Errorf("the node is not as it was (-before +after):\n%s", diff)
	}
}

// Uninstall works where only some of it is there, and takes away nothing else.
func TestUninstallHalf(t *testing.T) {
	for _, c := range []struct {
		name string
		undo func(n *installNode)
	}{
		{"no list", func(n *installNode) { check(n, os.Remove(n.chain.File)) }},
		{"no entry", func(n *installNode) { check(n, n.chain.WriteFile(n.version(1))) }},
		{"no binary", func(n *installNode) { check(n, os.Remove(filepath.Join(n.chain.Bin, "untracked"))) }},
		{"no run directory", func(n *installNode) { check(n, os.RemoveAll(n.lab.RunDir)) }},
		{"no copy", func(n *installNode) { check(n, os.RemoveAll(n.state)) }},
		{"a link to no copy", func(n *installNode) {
			target := must(os.Readlink(filepath.Join(n.state, "config")))(n)
			check(n, os.RemoveAll(filepath.Join(n.state, target)))
		}},
		{"an entry on each of several lists", func(n *installNode) {
			n.write(filepath.Join(n.chain.ConfDir, "20-other.conflist"), n.read(n.chain.File))
		}},
		{"a broken list of somebody else", func(n *installNode) {
			n.write(filepath.Join(n.chain.ConfDir, "99-broken.conflist"), "{")
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newInstallNode(t)
			n.run(0, "install")
			check(t, os.WriteFile(filepath.Join(n.state+".other"), nil, 0o600))
			c.undo(n)
			n.run(0, "uninstall")
			for name, text := range n.confFiles() {
				if strings.Contains(text, `"type": "untracked"`) {
					t.Errorf("%s still has the entry", name)
				}
			}
			if pins := cniPins(t, n.lab, false); len(pins) > 0 || cniTable(t, n.lab) != "" {
				t.Errorf("left behind: %v", pins)
			}
			for _, path := range []string{n.state, n.lab.RunDir, filepath.Join(n.chain.Bin, "untracked")} {
				if _, err := os.Lstat(path); !os.IsNotExist(err) {
					t.Errorf("%s is still there", path)
				}
			}
		})
	}
}

// A list that cannot be read and may name the binary keeps it where it is.
func TestUninstallBrokenList(t *testing.T) {
	n := newInstallNode(t)
	n.run(0, "install")
	text := n.read(n.chain.File)
	check(t, n.chain.WriteFile([]byte(text[:len(text)-5])))
	if out := n.run(1, "uninstall"); !strings.Contains(string(out.Stderr), n.chain.File) {
		t.Errorf("the message does not name the list: %s", out.Stderr)
	}
	if _, err := os.Stat(filepath.Join(n.chain.Bin, "untracked")); err != nil {
		t.Error(err)
	}
	check(t, n.chain.WriteFile([]byte(text)))
	n.run(0, "uninstall")
}

// In a container, a directory of the host stays mounted when the host removes it, and what is in its place since is not
// seen. The installer ends, and has it mounted anew when it is started again.
func TestInstallRemovedDirectory(t *testing.T) {
	for name, dir := range map[string]func(n *installNode) string{
		"run":   func(n *installNode) string { return n.lab.RunDir },
		"state": func(n *installNode) string { return n.state },
	} {
		t.Run(name, func(t *testing.T) {
			n := newInstallNode(t)
			host, dir := filepath.Join(n.lab.Dir, "host"), dir(n)
			mount := func() {
				check(t, os.MkdirAll(host, 0o755))
				check(t, os.MkdirAll(dir, 0o755))
				check(t, unix.Mount(host, dir, "", unix.MS_BIND, ""))
			}
			mount()
			t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
			w := n.watch("--uninstall-on-exit")
			n.inPlace()
			check(t, os.RemoveAll(host))
			select {
			case err := <-w.done:
				if err == nil || !strings.Contains(w.log.String(), dir+" was removed on the host") {
					t.Errorf("%v\n%s", err, w.log)
				}
			case <-time.After(time.Minute):
				t.Fatal("it goes on")
			}
			if n.entry() == nil {
				t.Error("the entry was taken away")
			}
			check(t, unix.Unmount(dir, unix.MNT_DETACH))
			mount()
			n.watch()
			n.inPlace()
			n.run(0, "install", "--check")
		})
	}
}
