// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func run(args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = Run("1.2.3", args, &out, &errs)
	return code, out.String(), errs.String()
}

func TestUsage(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.conflist")
	if err := os.WriteFile(bad, []byte(`{
  "cniVersion": "1.0.0", "name": "net",
  "plugins": [
    {"type": "bridge"},
    {"type": "untracked", "annotations": {
      "untracked.cni/ports": "tcp/99999"}}
  ]
}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		code int
		want string // on either stream
	}{
		{nil, exitOK, "Usage:"},
		{[]string{"--help"}, exitOK, "untracked apply"},
		{[]string{"--version"}, exitOK, "untracked 1.2.3"},
		{[]string{"frobnicate"}, exitUsage, "frobnicate"},
		{[]string{"statu"}, exitUsage, "Did you mean"},
		{[]string{"status", "--frobnicate"}, exitUsage, "--frobnicate"},
		{[]string{"status", "extra"}, exitUsage, "extra"},
		{[]string{"status", "-o", "yaml"}, exitUsage, "want text or json"},
		{[]string{"apply"}, exitUsage, "conf list"},
		{[]string{"apply", filepath.Join(dir, "none.conflist")}, exitUsage, "none.conflist"},
		{[]string{"apply", bad}, exitUsage, bad + ":6:"},
		{[]string{"apply", bad}, exitUsage, "untracked.cni/ports"},
	} {
		code, stdout, stderr := run(c.args...)
		if code != c.code || !strings.Contains(stdout+stderr, c.want) {
			t.Errorf("untracked %q: exit code %d, want %d with %q\nstdout: %s\nstderr: %s", c.args, code, c.code, c.want, stdout, stderr)
		}
		if code != exitOK && stdout != "" {
			t.Errorf("untracked %q: an error went to stdout: %s", c.args, stdout)
		}
	}
}

func TestNothingApplied(t *testing.T) {
	where := []string{"--run-dir", filepath.Join(t.TempDir(), "run"), "--bpffs", t.TempDir()}
	code, stdout, _ := run(append([]string{"status", "-o", "json"}, where...)...)
	var status map[string]any
	if err := json.Unmarshal([]byte(stdout), &status); err != nil {
		t.Fatalf("%v: %s", err, stdout)
	}
	if code != exitFailed || !strings.Contains(stdout, `"not-applied"`) {
		t.Errorf("status: exit code %d, %s", code, stdout)
	}
	for _, key := range []string{"policy", "interfaces", "conntrack", "problems"} {
		if _, ok := status[key]; !ok {
			t.Errorf("status has no %q", key)
		}
	}
	if code, _, stderr := run(append([]string{"rules"}, where...)...); code != exitFailed || !strings.Contains(stderr, "no policy") {
		t.Errorf("rules: exit code %d, %s", code, stderr)
	}
	if code, stdout, _ := run(append([]string{"rules", "-o", "json"}, where...)...); code != exitFailed || strings.TrimSpace(stdout) != "[]" {
		t.Errorf("rules -o json: exit code %d, %s", code, stdout)
	}
}
