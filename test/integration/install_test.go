// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/test/lab"
)

// From a node without untracked through a pod and traffic back to that node.
func TestInstall(t *testing.T) {
	for _, mode := range []string{"list", "drop-in"} {
		t.Run(mode, func(t *testing.T) {
			n := newInstallNode(t)
			before := n.listing()
			list := n.read(n.chain.File)
			var flags []string
			if mode == "drop-in" {
				flags = []string{"--drop-in"}
			}
			n.run(1, "install", append(flags, "--check")...)
			if diff := cmp.Diff(before, n.listing()); diff != "" {
				t.Errorf("--check changed the node:\n%s", diff)
			}
			n.run(0, "install", flags...)
			n.run(0, "install", append(flags, "--check")...)
			if mode == "drop-in" && n.read(n.chain.File) != list {
				t.Error("--drop-in changed the conf list")
			}
			must(n.chain.Add(n.pod))(t)
			n.untracked(6379)
			must(n.chain.Del(n.pod))(t)

			installed := cniRead(t, n.lab)
			out := n.run(0, "install", flags...)
			if text := string(out.Stderr); strings.Contains(text, "installed") || strings.Contains(text, "copied") || strings.Contains(text, "entry") {
				t.Errorf("installed again:\n%s", text)
			}
			installed.Files, installed.Transactions = nil, 0
			again := cniRead(t, n.lab)
			again.Files, again.Transactions = nil, 0
			cniSame(t, "a second install", installed, again)

			n.run(0, "uninstall")
			installCommand(t, n.lab.Node, "ip", "link", "delete", "cni0") // which the bridge plugin leaves
			if diff := cmp.Diff(before, n.listing()); diff != "" {
				t.Errorf("the node is not as it was (-before +after):\n%s", diff)
			}
			if out := n.run(0, "uninstall"); !strings.Contains(string(out.Stdout), "nothing to uninstall") {
				t.Errorf("a second uninstall: %s", out.Stdout)
			}
			if _, err := os.Stat(n.lab.RunDir); !os.IsNotExist(err) {
				t.Errorf("the run directory is still there: %v", cniFiles(t, n.lab, false))
			}
		})
	}
}

// untracked asserts that a service on a port is served, and leaves no conntrack entries.
func (n *installNode) untracked(port uint16) {
	n.Helper()
	must(lab.AddStateful(n.lab.Node, false))(n)
	server := must(lab.ServeTCP(n.lab.Node, port))(n)
	report := must(lab.LoadTCP(n.lab.Client, lab.Load{Target: netip.AddrPortFrom(n.lab.Uplinks[0].Node4, port), Count: 20}))(n)
	if report.OK != 20 {
		n.Errorf("load: %+v", report)
	}
	if flows := must(lab.Flows(n.lab.Node, lab.Port(port)))(n); len(flows) > 0 {
		n.Errorf("%d flows are tracked, %v", len(flows), &flows[0])
	}
	check(n, server.Close())
}

// Resources and lists are copied to where the plugin reads them, and annotations name the copy.
func TestInstallFiles(t *testing.T) {
	n := newInstallNode(t)
	check(t, os.MkdirAll(filepath.Join(n.etc, "policies"), 0o755))
	redis := n.read(filepath.Join(confDir, "policies", "redis.yaml"))
	n.write(filepath.Join(n.etc, "policies", "redis.yaml"), redis)
	n.write(filepath.Join(n.etc, "bad-hosts"), "192.0.2.7\n")
	n.annotate("deny-files: "+n.etc+"/bad-hosts", "labels: hep=redis-host", "required: true")
	n.run(0, "install", "--node", "another")
	want := map[string]string{
		"untracked.cni/deny-files": n.state + "/config/bad-hosts", "untracked.cni/labels": "hep=redis-host", "untracked.cni/required": "true",
		"untracked.cni/policy-files": n.state + "/config/policies", "untracked.cni/node": "another",
		"untracked.cni/bpffs": n.lab.BPFFS, "untracked.cni/run-dir": n.lab.RunDir,
	}
	if diff := cmp.Diff(want, n.entry()); diff != "" {
		t.Errorf("entry (-want +got):\n%s", diff)
	}
	rules := string(must(n.lab.Untracked("rules"))(t).Stdout)
	for _, w := range []string{"default/redis[0]", "deny-files"} {
		if !strings.Contains(rules, w) {
			t.Errorf("no rule of %s:\n%s", w, rules)
		}
	}
	must(n.chain.Add(n.pod))(t)
	must(n.chain.Del(n.pod))(t)
	n.run(0, "uninstall")
	if _, err := os.Stat(n.state); !os.IsNotExist(err) {
		t.Errorf("the copy is still there: %v", err)
	}
}

// A file with one plugin becomes a list, and is what it was in the end.
func TestInstallSinglePlugin(t *testing.T) {
	for _, extension := range []string{".conf", ".json"} {
		n := newInstallNode(t)
		single := filepath.Join(n.chain.ConfDir, "10-net"+extension)
		check(t, os.Remove(n.chain.File))
		text := `{"cniVersion": "1.0.0", "name": "` + n.chain.Network + `", "type": "bridge", "bridge": "cni0", "isGateway": true,
  "ipam": {"type": "host-local", "dataDir": "` + n.lab.Dir + `/ipam", "subnet": "10.88.0.0/16"}}`
		n.write(single, text)
		check(t, os.Chmod(single, 0o640))
		check(t, os.Chown(single, 4711, 4712))
		before := n.listing()
		for range 2 {
			n.run(0, "install")
		}
		n.run(0, "install", "--check")
		// By its name, too, which it has no more.
		n.run(0, "install", filepath.Base(single))
		n.run(0, "install", "--check", single)
		if _, err := os.Stat(single); err == nil {
			t.Errorf("%s is still there, and a runtime takes it", single)
		}
		must(n.chain.Add(n.pod))(t)
		must(n.chain.Del(n.pod))(t)
		// The main plugin's installer writes its file anew.
		check(t, os.WriteFile(single, []byte(strings.ReplaceAll(text, "10.88.", "10.89.")), 0o640))
		check(t, os.Chown(single, 4711, 4712))
		n.run(1, "install", "--check")
		n.run(0, "install")
		if list := n.read(n.chain.File); !strings.Contains(list, "10.89.") {
			t.Errorf("the list is not of the new file:\n%s", list)
		}
		n.run(0, "uninstall")
		installCommand(t, n.lab.Node, "ip", "link", "delete", "cni0")
		for i := range before {
			before[i] = strings.ReplaceAll(before[i], "10.88.", "10.89.")
		}
		if diff := cmp.Diff(before, n.listing()); diff != "" {
			t.Errorf("%s: the node is not as it was (-before +after):\n%s", extension, diff)
		}
	}
}

// A conf list behind a link is changed where it is; mode and owner stay.
func TestInstallLink(t *testing.T) {
	n := newInstallNode(t)
	elsewhere := filepath.Join(n.lab.Dir, "elsewhere")
	check(t, os.Mkdir(elsewhere, 0o755))
	real := filepath.Join(elsewhere, "list")
	check(t, os.Rename(n.chain.File, real))
	check(t, os.Symlink(real, n.chain.File))
	check(t, os.Chmod(real, 0o644))
	check(t, os.Chown(real, 4711, 4712))
	before := n.read(real)
	n.run(0, "install")
	var st unix.Stat_t
	check(t, unix.Lstat(n.chain.File, &st))
	if st.Mode&unix.S_IFMT != unix.S_IFLNK || n.entry() == nil {
		t.Errorf("mode of the link %o, entry %v", st.Mode, n.entry())
	}
	check(t, unix.Lstat(real, &st))
	if st.Mode != unix.S_IFREG|0o644 || st.Uid != 4711 || st.Gid != 4712 {
		t.Errorf("mode %o, owner %d:%d", st.Mode, st.Uid, st.Gid)
	}
	n.run(0, "uninstall")
	if got := n.read(real); got != before {
		t.Errorf("list: %s", got)
	}
	check(t, os.Remove(real))
	if out := n.run(1, "install"); !strings.Contains(string(out.Stderr), "link") {
		t.Errorf("a link to nothing: %s", out.Stderr)
	}
}
