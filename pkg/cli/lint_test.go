// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/untracked-cni/untracked/pkg/lint"
)

func TestLint(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const tier = "apiVersion: projectcalico.org/v3\nkind: Tier\nmetadata: {name: net}\n"
	good := write("good.yaml", tier)
	bad := write("bad.yaml", tier+"specs: {}\n")
	warns := write("warns.yaml", `apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: all}
spec: {doNotTrack: true, applyOnForward: true}
`)
	for _, c := range []struct {
		args []string
		code int
		want string // on stdout
	}{
		{[]string{good}, exitOK, ""},
		{[]string{warns}, exitOK, warns + ":3:18: warning: policy all has no selector, so it applies to every host endpoint; write all() if that is meant [empty-selector]\n"},
		{[]string{bad, warns}, exitFailed, bad + ":4:1: error: "},
		{[]string{filepath.Join(dir, "none.yaml")}, exitFailed, "none.yaml: error: no such file or directory [unreadable]\n"},
	} {
		code, stdout, stderr := run(append([]string{"lint"}, c.args...)...)
		if code != c.code || !strings.Contains(stdout, c.want) || c.want == "" && stdout != "" || stderr != "" {
			t.Errorf("lint %q: exit code %d, want %d with %q\nstdout: %s\nstderr: %s", c.args, code, c.code, c.want, stdout, stderr)
		}
		code, stdout, _ = run(append([]string{"lint", "-o", "json"}, c.args...)...)
		findings := []lint.Finding(nil)
		if err := json.Unmarshal([]byte(stdout), &findings); err != nil || findings == nil {
			t.Errorf("lint -o json %q: %v: %s", c.args, err, stdout)
		}
		if code != c.code || len(findings) == 0 != (c.want == "") {
			t.Errorf("lint -o json %q: exit code %d, want %d: %s", c.args, code, c.code, stdout)
		}
	}
	if code, _, stderr := run("lint"); code != exitUsage || !strings.Contains(stderr, "standard input") {
		t.Errorf("lint without files: exit code %d, %s", code, stderr)
	}
}
