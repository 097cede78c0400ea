// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// version is the list as its main plugin's installer writes it, in several versions that can be told apart.
func (n *installNode) version(v int) []byte {
	n.Helper()
	return []byte(fmt.Sprintf(`{
  "cniVersion": "1.0.0",
  "name": %q,
  "version": %d, "padding": %q,
  "plugins": [
    {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipam": {"type": "host-local", "dataDir": %q, "subnet": "10.88.0.0/16"}}
  ]
}
`, n.chain.Network, v, strings.Repeat("x", 20_000), filepath.Join(n.lab.Dir, "ipam")))
}

// versionNow is the version that is in the list, with our entry; 0 if it is not there or the list is not whole.
func (n *installNode) versionNow() int {
	var list struct {
		Version int
		Plugins []struct{ Type string }
	}
	data, err := os.ReadFile(n.chain.File)
	if err != nil || json.Unmarshal(data, &list) != nil || len(list.Plugins) != 2 || list.Plugins[1].Type != "untracked" {
		return 0
	}
	return list.Version
}

func (n *installNode) hasVersion(v int) {
	n.Helper()
	cniEventually(n, fmt.Sprintf("version %d has the entry", v), func() bool { return n.versionNow() == v })
}

// The main plugin's installer writes its list in every way that is known of them, while ours watches.
func TestInstallWatchRewrites(t *testing.T) {
	n := newInstallNode(t)
	check(t, os.Remove(n.chain.File))
	w := n.watch()
	w.says("waiting for the main CNI plugin")
	if _, err := os.Stat(filepath.Join(n.chain.Bin, "untracked")); err == nil {
		t.Error("the binary was installed before there is anything to chain to")
	}
	v := 1
	check(t, n.chain.WriteFile(n.version(v)))
	n.hasVersion(v)
	n.inPlace()
	must(n.chain.Add(n.pod))(t)

	for range 3 {
		w.end(unix.SIGTERM) // or so many changes would be taken for a quarrel
		w = n.watch()
		t.Log("by rename")
		v++
		n.write(n.chain.File, string(n.version(v)))
		n.hasVersion(v)

		t.Log("in place")
		v++
		check(t, n.chain.WriteFile(n.version(v)))
		n.hasVersion(v)

		t.Log("in place, in pieces, and slowly")
		v++
		n.inPieces(n.version(v), func() { time.Sleep(time.Duration(rand.IntN(60)) * time.Millisecond) })
		n.hasVersion(v)

		t.Log("removed and written")
		v++
		check(t, os.Remove(n.chain.File))
		n.write(n.chain.File, string(n.version(v)))
		n.hasVersion(v)
	}
	if text := w.log.String(); strings.Contains(text, "level=ERROR") {
		t.Error("errors were logged")
	}

	t.Log("another file comes first")
	v++
	later := n.chain.File
	n.chain.File = filepath.Join(n.chain.ConfDir, "05-first.conflist")
	n.write(n.chain.File, string(n.version(v)))
	n.hasVersion(v)
	check(t, os.Remove(n.chain.File))
	n.chain.File = later
	n.hasVersion(v - 1)

	t.Log("the binary is gone")
	binary := filepath.Join(n.chain.Bin, "untracked")
	check(t, os.Remove(binary))
	cniEventually(t, "the binary is back", func() bool { _, err := os.Stat(binary); return err == nil })
	must(n.chain.Del(n.pod))(t)

	w.end(unix.SIGTERM)
	if n.entry() == nil {
		t.Error("without --uninstall-on-exit the entry is gone")
	}
}

// inPieces writes the conf list in place as one who opens it, truncates it, and takes its time.
func (n *installNode) inPieces(text []byte, pause func()) {
	n.Helper()
	f := must(os.OpenFile(n.chain.File, os.O_WRONLY|os.O_TRUNC, 0))(n)
	for piece := range len(text)/4096 + 1 {
		pause()
		part := text[piece*4096 : min((piece+1)*4096, len(text))]
		must(f.Write(part))(n)
	}
	check(n, f.Close())
}

// Who has opened the list for writing when it is replaced means what he writes after that.
func TestInstallLateWriter(t *testing.T) {
	n := newInstallNode(t)
	check(t, n.chain.WriteFile(n.version(1)))
	f := must(os.OpenFile(n.chain.File, os.O_WRONLY, 0))(t)
	defer f.Close()
	n.watch()
	n.hasVersion(1)
	text := n.version(2)
	must(f.Write(text[:len(text)/2]))(t)
	time.Sleep(200 * time.Millisecond)
	must(f.Write(text[len(text)/2:]))(t)
	n.hasVersion(2)
}

// Another program takes the entry away for ever: no loop.
func TestInstallHostileWriter(t *testing.T) {
	n := newInstallNode(t)
	check(t, n.chain.WriteFile(n.version(1)))
	w := n.watch()
	n.hasVersion(1)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	undone := make(chan int)
	go func() {
		times := 0
		for ctx.Err() == nil {
			if data, err := os.ReadFile(n.chain.File); err == nil && bytes.Contains(data, []byte(`"untracked"`)) {
				tmp := n.chain.File + ".hostile"
				if os.WriteFile(tmp, n.version(2), 0o600) == nil && os.Rename(tmp, n.chain.File) == nil {
					times++
				}
			}
			time.Sleep(5 * time.Millisecond)
		}
		undone <- times
	}()
	w.says("another program took the entry away")
	time.Sleep(3 * time.Second)
	// The datapath is looked after all the same, and a change of policy is taken over.
	n.annotate("ports: udp/7001")
	cniEventually(t, "the new policy is in force", func() bool {
		return strings.Contains(string(must(n.lab.Untracked("rules"))(t).Stdout), "7001")
	})
	cancel()
	if times := <-undone; times > 10 { // five, and five of the entry that changed
		t.Errorf("the entry was put back %d times", times)
	}
	if said := w.log.count("another program took the entry away"); said > 3 {
		t.Errorf("said %d times", said)
	}
}

// configMap writes a directory as kubelet does: files are links through ..data, which is exchanged in one step.
func (n *installNode) configMap(files map[string]string) {
	n.Helper()
	version := fmt.Sprintf("..%d", time.Now().UnixNano())
	check(n, os.Mkdir(filepath.Join(n.etc, version), 0o755))
	for name, text := range files {
		check(n, os.WriteFile(filepath.Join(n.etc, version, name), []byte(text), 0o600))
	}
	old, _ := os.Readlink(filepath.Join(n.etc, "..data"))
	tmp := filepath.Join(n.etc, "..data_tmp")
	check(n, os.Symlink(version, tmp))
	check(n, os.Rename(tmp, filepath.Join(n.etc, "..data")))
	entries := must(os.ReadDir(n.etc))(n)
	for _, e := range entries {
		if _, stays := files[e.Name()]; !stays && !strings.HasPrefix(e.Name(), "..") {
			check(n, os.Remove(filepath.Join(n.etc, e.Name())))
		}
	}
	for name := range files {
		if err := os.Symlink("..data/"+name, filepath.Join(n.etc, name)); err != nil && !errors.Is(err, os.ErrExist) {
			n.Fatal(err)
		}
	}
	if old != "" {
		check(n, os.RemoveAll(filepath.Join(n.etc, old)))
	}
}

// A mounted ConfigMap is edited, badly, and mended. Pods start all the time.
func TestInstallConfigMap(t *testing.T) {
	n := newInstallNode(t)
	check(t, os.Remove(filepath.Join(n.etc, "annotations.yaml")))
	redis := n.read(filepath.Join(confDir, "policies", "redis.yaml"))
	annotations := "untracked.cni/node: node-1\n"
	n.configMap(map[string]string{"annotations.yaml": annotations, "redis.yaml": redis})
	w := n.watch()
	n.inPlace()
	must(n.chain.Add(n.pod))(t)
	must(n.chain.Del(n.pod))(t)
	inForce := func() string { return string(must(n.lab.Untracked("rules"))(t).Stdout) }
	if rules := inForce(); !strings.Contains(rules, "tcp to port 6379") {
		t.Fatalf("rules:\n%s", rules)
	}

	begin := time.Now()
	n.configMap(map[string]string{"annotations.yaml": annotations, "redis.yaml": strings.ReplaceAll(redis, "6379", "6380")})
	cniEventually(t, "the edit is in force", func() bool { return strings.Contains(inForce(), "tcp to port 6380") })
	t.Logf("in force after %v", time.Since(begin))
	n.inPlace()

	list := n.read(n.chain.File)
	for i, bad := range []struct{ file, text, say string }{
		{"redis.yaml", strings.ReplaceAll(redis, "ports:", "prots:"), n.etc + "/redis.yaml:"},
		{"annotations.yaml", annotations + "untracked.cni/ports: tcp/99999\n", n.etc + "/annotations.yaml:2:22: untracked.cni/ports"},
		{"annotations.yaml", annotations + "untracked.cni/prots: tcp/1\n", "did you mean untracked.cni/ports?"},
		{"annotations.yaml", "- a\n", n.etc + "/annotations.yaml:1:1: not a map"},
		{"annotations.yaml", "a: {\n", n.etc + "/annotations.yaml:2:1: not valid YAML"},
	} {
		edit := map[string]string{"annotations.yaml": annotations, "redis.yaml": strings.ReplaceAll(redis, "6379", "6380")}
		edit[bad.file] = bad.text
		n.configMap(edit)
		w.says(bad.say)
		// What is in force stays, whoever rewrites the list and whatever else goes away.
		if i < 2 { // more would be taken for a quarrel
			check(t, n.chain.WriteFile(n.version(7+i)))
			n.hasVersion(7 + i)
		}
		check(t, os.Remove(filepath.Join(n.chain.Bin, "untracked")))
		cniEventually(t, "the binary is back", func() bool { _, err := os.Stat(filepath.Join(n.chain.Bin, "untracked")); return err == nil })
		must(n.chain.Add(n.pod))(t)
		must(n.chain.Del(n.pod))(t)
		if rules := inForce(); !strings.Contains(rules, "tcp to port 6380") {
			t.Errorf("%s: rules:\n%s", bad.text, rules)
		}
		n.run(1, "install", "--check")
		before := n.listing()
		if out := n.run(2, "install"); !strings.Contains(string(out.Stderr), bad.say) {
			t.Errorf("install does not say %q:\n%s", bad.say, out.Stderr)
		}
		if diff := cmp.Diff(before, n.listing()); diff != "" {
			t.Errorf("a bad policy changed the node:\n%s", diff)
		}
	}
	check(t, n.chain.WriteFile([]byte(list)))
	n.configMap(map[string]string{"annotations.yaml": annotations, "redis.yaml": strings.ReplaceAll(redis, "6379", "6381")})
	cniEventually(t, "the mended policy is in force", func() bool { return strings.Contains(inForce(), "tcp to port 6381") })
	n.inPlace()
}

// An installer that starts beside a policy that somebody has just spoilt keeps the last good one on the node: after a
// boot, say, when programs and records are gone and the main plugin has written its list anew.
func TestInstallRemembers(t *testing.T) {
	n := newInstallNode(t)
	check(t, os.Remove(filepath.Join(n.etc, "annotations.yaml")))
	redis := n.read(filepath.Join(confDir, "policies", "redis.yaml"))
	const annotations = "untracked.cni/node: node-1\nuntracked.cni/deny: 192.0.2.0/24\n"
	n.configMap(map[string]string{"annotations.yaml": annotations, "redis.yaml": redis})
	before := n.listing()
	w := n.watch()
	n.inPlace()
	w.end(os.Kill)

	n.configMap(map[string]string{"annotations.yaml": annotations, "redis.yaml": strings.ReplaceAll(redis, "ports:", "prots:")})
	must(n.lab.Untracked("remove"))(t)
	check(t, os.Remove(filepath.Join(n.chain.Bin, "untracked")))
	check(t, n.chain.WriteFile(n.version(1)))
	if out := n.run(2, "install"); n.versionNow() != 0 {
		t.Errorf("an installer that does not stay has changed the list by a bad policy: %s", out.Stderr)
	}
	w = n.watch("--uninstall-on-exit")
	w.says("the last good one on this node is kept")
	w.says(n.etc + "/redis.yaml:")
	n.hasVersion(1)
	inForce := func(text string) {
		t.Helper()
		cniEventually(t, text+" is in force", func() bool {
			return strings.Contains(string(must(n.lab.Untracked("rules"))(t).Stdout), text)
		})
	}
	inForce("tcp to port 6379")
	inForce("from 192.0.2.0/24")
	must(n.chain.Add(n.pod))(t)
	must(n.chain.Del(n.pod))(t)

	n.configMap(map[string]string{"annotations.yaml": annotations, "redis.yaml": strings.ReplaceAll(redis, "6379", "6380")})
	inForce("tcp to port 6380")
	n.inPlace()
	w.end(unix.SIGTERM)
	if diff := cmp.Diff(listOf(before, n.state), listOf(n.listing(), n.state)); diff != "" {
		t.Errorf("the state directory is not as it was (-before +after):\n%s", diff)
	}
}

// Of two installers the newer acts. The last to go takes all away.
func TestInstallTwo(t *testing.T) {
	n := newInstallNode(t)
	before := n.listing()
	old := n.watch("--uninstall-on-exit")
	n.inPlace()
	if out := n.run(1, "uninstall"); !strings.Contains(string(out.Stderr), "DaemonSet") {
		t.Errorf("uninstall under an installer that stays: %s", out.Stderr)
	}
	new := n.watch("--uninstall-on-exit")
	old.says("a newer installer has taken over")

	t.Log("the older goes")
	old.end(unix.SIGTERM)
	n.run(0, "install", "--check")

	t.Log("a newer comes and goes before the older")
	newer := n.watch("--uninstall-on-exit")
	new.says("a newer installer has taken over")
	newer.end(unix.SIGTERM)
	new.says("the other installer is gone")
	check(t, n.chain.WriteFile(n.version(3)))
	n.hasVersion(3)

	t.Log("a newer is killed")
	newer = n.watch("--uninstall-on-exit")
	cniEventually(t, "it waits again", func() bool { return new.log.count("a newer installer has taken over") == 2 })
	newer.end(os.Kill)
	third := n.watch("--uninstall-on-exit") // which the older hears of, as it need not of the death
	n.inPlace()

	t.Log("both go at once")
	check(t, n.chain.WriteFile([]byte(strings.Join(listOf(before, n.chain.File), ""))))
	n.inPlace()
	check(t, new.cmd.Process.Signal(unix.SIGTERM))
	third.end(unix.SIGTERM)
	check(t, <-new.done)
	if diff := cmp.Diff(before, n.listing()); diff != "" {
		t.Errorf("the node is not as it was (-before +after):\n%s", diff)
	}
}

// listOf is the content of a file in a listing.
func listOf(listing []string, path string) []string {
	for _, line := range listing {
		if strings.HasPrefix(line, path+" ") {
			return strings.SplitAfterN(line, " ", 4)[3:]
		}
	}
	return nil
}

// The datapath is mended without a pod.
func TestInstallWatchHeals(t *testing.T) {
	n := newInstallNode(t)
	w := n.watch()
	n.inPlace()
	check(t, w.cmd.Process.Signal(unix.SIGSTOP)) // or it may be quicker than we are
	installCommand(t, n.lab.Node, "nft", "delete", "table", "inet", "untracked")
	n.run(1, "install", "--check")
	check(t, w.cmd.Process.Signal(unix.SIGCONT))
	// A look is due every half minute, or when anything happens.
	check(t, os.WriteFile(filepath.Join(n.etc, "touched"), nil, 0o600))
	w.says("table inet untracked is missing")
	n.inPlace()

	// Who removes everything meanwhile is told that it comes back.
	out := must(n.lab.Untracked("remove"))(t)
	if out.ExitCode != 0 || !strings.Contains(string(out.Stderr), "warning: an installer stays") {
		t.Errorf("remove: exit code %d: %s", out.ExitCode, out.Stderr)
	}
	check(t, os.WriteFile(filepath.Join(n.etc, "touched"), []byte("again"), 0o600))
	n.inPlace()
	w.end(unix.SIGTERM)
	if out := must(n.lab.Untracked("remove"))(t); out.ExitCode != 0 || len(out.Stderr) > 0 {
		t.Errorf("remove, and nobody stays: exit code %d: %s", out.ExitCode, out.Stderr)
	}
}
