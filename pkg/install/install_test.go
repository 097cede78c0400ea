// SPDX-License-Identifier: Apache-2.0

package install

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/untracked-cni/untracked/pkg/config"
	"github.com/untracked-cni/untracked/pkg/node"
)

func TestParseAnnotations(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       map[string]string
		err        string
	}{
		{name: "empty"},
		{name: "comments", text: "# nothing\n"},
		{name: "an empty document", text: "---\n"},
		{
			name: "as it is written", text: "untracked.cni/ports: tcp/6379\nuntracked.cni/required: true\nuntracked.cni/mark: 0x1000\nother/key: '1.50'\n",
			want: map[string]string{"untracked.cni/ports": "tcp/6379", "untracked.cni/required": "true", "untracked.cni/mark": "0x1000", "other/key": "1.50"},
		},
		{name: "JSON", text: `{"untracked.cni/ports": "tcp/6379"}`, want: map[string]string{"untracked.cni/ports": "tcp/6379"}},
		{name: "lines", text: "untracked.cni/policy: |\n  a\n  b\n", want: map[string]string{"untracked.cni/policy": "a\nb\n"}},
		{name: "twice", text: "a: b\na: c\n", err: "f:2:1: a: the key is there twice"},
		{name: "list as a value", text: "a: b\nc:\n- d\n", err: "f:3:1: c: annotation values are strings"},
		{name: "nothing as a value", text: "a:\n", err: "a: annotation values are strings"},
		{name: "list", text: "- a\n", err: "f:1:1: not a map"},
		{name: "text", text: "tcp/6379\n", err: "f:1:1: not a map"},
		{name: "two documents", text: "a: b\n---\nc: d\n", err: "a second document"},
		{name: "no YAML", text: "a: [b\n", err: "not valid YAML"},
		{name: "no YAML behind", text: "a: b\n---\n}\n", err: "not valid YAML"},
	} {
		got, places, err := parseAnnotations([]byte(c.text), "f")
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) || !errors.As(err, new(*config.Error)) {
				t.Errorf("%s: %v, want %q", c.name, err, c.err)
			}
			continue
		}
		if diff := cmp.Diff(c.want, got); diff != "" || err != nil || len(places) != len(got) {
			t.Errorf("%s: %v, places %v (-want +got):\n%s", c.name, err, places, diff)
		}
	}
}

func TestEntry(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	entry := func(i Installer) string {
		t.Helper()
		i.ConfigDir, i.StateDir = dir, "/state"
		w, err := i.wanted()
		if err != nil {
			t.Fatal(err)
		}
		return string(w.entry)
	}
	write("annotations.yaml", "untracked.cni/ports: udp/53\nuntracked.cni/deny-files: /srv/list, "+dir+"/lists/a,"+dir+"x/b\n")
	write("lists/a", "192.0.2.1\n")
	write(".hidden.yaml", "{")
	const lists = `"untracked.cni/deny-files":"/srv/list,/state/config/lists/a,`
	if got, want := entry(Installer{RunDir: config.DefaultRunDir}),
		`{"type":"untracked","annotations":{`+lists+dir+`x/b","untracked.cni/ports":"udp/53"}}`; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	write("a.yaml", "")
	write("policies/b.json", "")
	if got, want := entry(Installer{RunDir: "/r", BPFFS: "/b", NodeName: "<n>"}),
		`{"type":"untracked","annotations":{"untracked.cni/bpffs":"/b",`+lists+dir+`x/b","untracked.cni/node":"<n>",`+
			`"untracked.cni/policy-files":"/state/config,/state/config/policies","untracked.cni/ports":"udp/53","untracked.cni/run-dir":"/r"}}`; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	write("annotations.yaml", "untracked.cni/pods: allow-lenient\nuntracked.cni/node: mine\nuntracked.cni/policy-files: "+dir+"/*.yaml\nuntracked.cni/run-dir: /own\n")
	if got, want := entry(Installer{RunDir: "/r", NodeName: "n"}),
		`{"type":"untracked","capabilities":{"io.kubernetes.cri.pod-annotations":true,"portMappings":true},"annotations":{`+
			`"untracked.cni/node":"mine","untracked.cni/pods":"allow-lenient","untracked.cni/policy-files":"/state/config/*.yaml","untracked.cni/run-dir":"/own"}}`; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// A ConfigMap may be exchanged while it is read: what is read is one version, never half of each.
func TestReadSourceWhileExchanged(t *testing.T) {
	dir := t.TempDir()
	exchange := func(version string) error {
		err := errors.Join(
			os.Mkdir(filepath.Join(dir, ".."+version), 0o755),
			os.WriteFile(filepath.Join(dir, ".."+version, "a.yaml"), []byte(version), 0o600),
			os.WriteFile(filepath.Join(dir, ".."+version, "b.yaml"), []byte(version), 0o600),
			os.Symlink(".."+version, filepath.Join(dir, "..data_tmp")),
		)
		return errors.Join(err, os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")))
	}
	if err := exchange("0"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a.yaml", "b.yaml"} {
		if err := os.Symlink("..data/"+name, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	stop, done := make(chan struct{}), make(chan error)
	go func() {
		for n := 1; ; n++ {
			select {
			case <-stop:
				done <- nil
				return
			case <-time.After(100 * time.Microsecond):
			}
			if err := exchange(strconv.Itoa(n)); err != nil {
				done <- err
				return
			}
		}
	}()
	for range 500 {
		s, err := readSource(dir)
		if err != nil {
			t.Error(err)
			break
		}
		if len(s.files) != 2 || string(s.files[0].data) != string(s.files[1].data) {
			t.Errorf("%q", s.files)
			break
		}
	}
	close(stop)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestContest(t *testing.T) {
	var c contest
	now := time.Unix(0, 0)
	at := func(after time.Duration, path, entry string) (wait time.Duration) {
		t.Helper()
		now = now.Add(after)
		if err, ok := errors.AsType[*contested](c.permit(path, entry, now)); ok {
			return err.wait
		}
		return 0
	}
	for n := range contestTimes {
		if wait := at(time.Second, "a", "e"); wait != 0 {
			t.Fatalf("write %d waits for %v", n, wait)
		}
	}
	if wait := at(time.Second, "a", "e"); wait != 59*time.Second {
		t.Errorf("the sixth waits for %v", wait)
	}
	// As soon as each is permitted, it is undone: the wait doubles up to its limit.
	now = now.Add(-time.Second)
	for _, want := range []time.Duration{time.Minute, 2 * time.Minute, 4 * time.Minute, 8 * time.Minute, longest, longest, longest} {
		if wait := at(want-1, "a", "e"); wait != 1 {
			t.Errorf("just before %v: %v", want, wait)
		}
		if wait := at(1, "a", "e"); wait != 0 {
			t.Errorf("not permitted after %v: %v", want, wait)
		}
	}
	if wait := at(time.Second, "a", "other"); wait != 0 {
		t.Errorf("another entry waits for %v", wait)
	}
	for range contestTimes {
		at(time.Second, "b", "e")
	}
	if wait := at(3*time.Minute, "b", "e"); wait != 0 || at(time.Second, "b", "e") != 0 {
		t.Error("a quarrel that is over is not forgotten")
	}
	if wait := at(time.Hour, "b", "e"); wait != 0 {
		t.Error("an hour later it waits")
	}
}

func TestExchange(t *testing.T) {
	for name, exchange := range map[string]func(a, b string) error{"rename": exchange, "link": exchangeByLink} {
		dir := t.TempDir()
		a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
		if err := exchange(a, b); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: nothing there: %v", name, err)
		}
		if err := errors.Join(os.WriteFile(a, []byte("a"), 0o600), os.WriteFile(b, []byte("b"), 0o600)); err != nil {
			t.Fatal(err)
		}
		was, err := os.Stat(b)
		if err != nil {
			t.Fatal(err)
		}
		if err := exchange(a, b); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		is, err := os.Stat(a)
		if err != nil || !os.SameFile(was, is) {
			t.Errorf("%s: the file is another: %v", name, err)
		}
		if data, err := os.ReadFile(b); err != nil || string(data) != "a" {
			t.Errorf("%s: %q, %v", name, data, err)
		}
		if all, err := os.ReadDir(dir); err != nil || len(all) != 2 {
			t.Errorf("%s: %v, %v", name, all, err)
		}
	}
}

// A policy that is not in force is not said to be, and the same failure is said once.
func TestReport(t *testing.T) {
	var out bytes.Buffer
	i := Installer{Log: slog.New(slog.NewTextHandler(&out, nil))}
	said := func(broken bool, generation uint64) string {
		out.Reset()
		result := &node.Result{Changed: true, Record: &node.Record{Policy: "p", Generation: generation}}
		if broken {
			result.Problems = []node.Problem{{Code: node.ProblemBPFFS, Message: "no bpffs", Remedy: "mount it", Broken: true}}
		}
		i.report(result)
		return out.String()
	}
	if text := said(true, 1); !strings.Contains(text, `level=ERROR msg="policy could not be put in force`) ||
		!strings.Contains(text, `level=ERROR msg="no bpffs"`) || strings.Contains(text, "INFO") {
		t.Errorf("broken: %s", text)
	}
	if text := said(true, 2); text != "" {
		t.Errorf("broken as before: %s", text)
	}
	for generation := range uint64(2) {
		if text := said(false, 3+generation); !strings.Contains(text, `level=INFO msg="policy put in force"`) {
			t.Errorf("in force: %s", text)
		}
	}
	if text := said(true, 5); text == "" {
		t.Error("broken again, and nothing is said")
	}
}

// A list that somebody put aside keeps our entry, and is named.
func TestTakeEntriesAside(t *testing.T) {
	dir := t.TempDir()
	list := `{"name": "n", "plugins": [{"type": "bridge"}, {"type": "untracked"}]}`
	aside := filepath.Join(dir, "10-net.conflist.cilium_bak")
	for path, text := range map[string]string{
		filepath.Join(dir, "05-net.conflist"): list, aside: list,
		filepath.Join(dir, "10-net.conflist.half"): list[:20], filepath.Join(dir, "README"): "untracked",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var out bytes.Buffer
	i := Installer{ConfDir: dir, Log: slog.New(slog.NewTextHandler(&out, nil))}
	if entries, err := i.takeEntries(); err != nil || len(entries) != 1 {
		t.Fatalf("%d entries, %v", len(entries), err)
	}
	if text := out.String(); strings.Count(text, "level=WARN") != 1 || !strings.Contains(text, "file="+aside) {
		t.Errorf("log:\n%s", text)
	}
	if data, err := os.ReadFile(aside); err != nil || string(data) != list {
		t.Errorf("%q, %v", data, err)
	}
}

// Who wrote another list since ours was read keeps it.
func TestReplaceListOfAnother(t *testing.T) {
	for name, write := range map[string]func(path string) error{
		"in place": func(path string) error { return os.WriteFile(path, []byte("theirs"), 0o600) },
		"by rename": func(path string) error {
			return errors.Join(os.WriteFile(path+".new", []byte("theirs"), 0o600), os.Rename(path+".new", path))
		},
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, "10-net.conflist")
		if err := os.WriteFile(path, []byte(`{"name": "n", "plugins": [{"type": "bridge"}]}`), 0o600); err != nil {
			t.Fatal(err)
		}
		i := Installer{ConfDir: dir}
		read, err := i.choose()
		if err != nil {
			t.Fatal(err)
		}
		defer read.close()
		if err := write(path); err != nil {
			t.Fatal(err)
		}
		if err := i.replaceList(read, []byte("ours")); !isUnready(err) {
			t.Errorf("%s: %v", name, err)
		}
		if data, err := os.ReadFile(path); err != nil || string(data) != "theirs" {
			t.Errorf("%s: %q, %v", name, data, err)
		}
		if all, err := os.ReadDir(dir); err != nil || len(all) != 1 {
			t.Errorf("%s: %v, %v", name, all, err)
		}
	}
}
