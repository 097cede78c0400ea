// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/test/lab"
)

// Every value here is wrong. The error has code 7 and names the key and what is wrong in its value; want is
// that part where it is not the whole value. with are the annotations without which the key may not stand.
var cniBadValues = []struct {
	key, value, want string
	with             []string
	// late is for what only reading the files and resources shows, which CHECK and STATUS do not do.
	late bool
}{
	{key: "interfaces", value: ""},
	{key: "interfaces", value: "eth0,,eth1", want: "item 2"},
	{key: "interfaces", value: "eth0,10.0.0.0/99", want: "10.0.0.0/99"},
	{key: "interfaces", value: "a-name-that-is-too-long"},
	{key: "interfaces", value: "eth[", want: "eth["},
	{key: "node", value: ""},
	{key: "node", value: "two words"},
	{key: "labels", value: "role"},
	{key: "labels", value: "=db"},
	{key: "labels", value: "role=a,role=b", want: "role"},
	{key: "ports", value: ""},
	{key: "ports", value: "6379"},
	{key: "ports", value: "tcp"},
	{key: "ports", value: "tcp/"},
	{key: "ports", value: "tcp/6379,udp/70000", want: "udp/70000"},
	{key: "ports", value: "tcp/7100-7000"},
	{key: "ports", value: "gre/47"},
	{key: "ports", value: "tcp/6379,", want: "item 2"},
	{key: "sources", value: "", with: []string{"ports", "udp/53"}},
	{key: "sources", value: "10.0.0.0/8,10.0.0.0/33", want: "10.0.0.0/33", with: []string{"ports", "udp/53"}},
	{key: "sources", value: "example.org", with: []string{"ports", "udp/53"}},
	{key: "sources", value: "fe80::1%eth0", with: []string{"ports", "udp/53"}},
	{key: "remote-ports", value: ""},
	{key: "remote-ports", value: "udp/-1"},
	{key: "destinations", value: "10.0.0.0/8"}, // does nothing without remote-ports
	{key: "destinations", value: "10.0.0", with: []string{"remote-ports", "udp/53"}},
	{key: "deny", value: ""},
	{key: "deny", value: "10.0.0.1-10.0.0.9"},
	{key: "deny", value: "10.0.0.1 10.0.0.2"},
	{key: "deny-files", value: ""},
	{key: "deny-files", value: "relative/list"},
	{key: "deny-files", value: "/nonexistent/list", want: "/nonexistent/list", late: true},
	{key: "policy", value: "kind: GlobalNetworkPolicy", want: "apiVersion", late: true},
	{key: "policy", value: ""},
	{key: "policy-files", value: "relative/*.yaml"},
	{key: "policy-files", value: "/nonexistent/*.yaml", want: "/nonexistent/*.yaml", late: true},
	{key: "policy-files", value: "/nonexistent/policy.yaml", want: "/nonexistent/policy.yaml", late: true},
	{key: "auto-return", value: ""},
	{key: "auto-return", value: "yes"},
	{key: "auto-return", value: "True"},
	{key: "failsafe-inbound", value: ""},
	{key: "failsafe-inbound", value: "tcp/22"},
	{key: "failsafe-inbound", value: "tcp:22,udp:99999", want: "udp:99999"},
	{key: "failsafe-outbound", value: "icmp:1"},
	{key: "failsafe-outbound", value: "udp:10.0.0.0/40:53"},
	{key: "mode", value: ""},
	{key: "mode", value: "xdp"},
	{key: "mark", value: "0"},
	{key: "mark", value: "0x3000"},
	{key: "mark", value: "0x100000000"},
	{key: "mark", value: "bit 12"},
	{key: "pods", value: ""},
	{key: "pods", value: "yes"},
	{key: "required", value: "1"},
	{key: "log-file", value: "untracked.log"},
	{key: "log-level", value: "verbose"},
	{key: "bpffs", value: "sys/fs/bpf"},
	{key: "bpffs", value: ""},
	{key: "run-dir", value: "run"},
	{key: "run-dir", value: ""},
	{key: "port", value: "tcp/1", want: "did you mean untracked.cni/ports?"},
	{key: "nonsense", value: "tcp/1"},
}

func TestCNIBadAnnotationsAreErrorSeven(t *testing.T) {
	l, chain, pod := cniChain(t, cniPolicy())
	cniAdd(t, chain, pod)
	before := cniRead(t, l)
	refusedBy := func(verbs []string, name, annotations, more string, want ...string) {
		t.Helper()
		stdin := cniStdin(chain.Network, "1.1.0", annotations+more, cniPrev("1.1.0"))
		for _, verb := range verbs {
			text := cniFailure(t, cniRun(t, l, cniEnv(chain, verb, pod), stdin), 7)
			for _, part := range want {
				if !strings.Contains(text, part) {
					t.Errorf("%s %s: error %q does not say %q", verb, name, text, part)
				}
			}
		}
		cniQuiet(t, "STATUS "+name, cniRun(t, l, cniEnv(chain, "STATUS", pod), stdin))
	}
	early, late := []string{"ADD", "CHECK"}, []string{"ADD"}
	refused := func(name, annotations, more string, want ...string) {
		t.Helper()
		refusedBy(early, name, annotations, more, want...)
	}
	keys := map[string]bool{}
	for _, bad := range cniBadValues {
		keys[bad.key] = true
		policy := cniPolicy(append(bad.with, bad.key, bad.value)...)
		want := bad.want
		if want == "" {
			want = fmt.Sprintf("%q", bad.value)
		}
		verbs := early
		if bad.late {
			verbs = late
		}
		refusedBy(verbs, bad.key+"="+bad.value, cniAnnotations(l, policy), "", lab.AnnotationPrefix+bad.key+":", want)
	}
	for _, key := range []string{
		"interfaces", "node", "labels", "ports", "sources", "remote-ports", "destinations", "deny", "deny-files", "policy", "policy-files",
		"auto-return", "failsafe-inbound", "failsafe-outbound", "mode", "mark", "pods", "required", "log-file", "log-level", "bpffs", "run-dir",
	} {
		if !keys[key] {
			t.Errorf("no bad value of %s was tried", key)
		}
	}

	// What is wrong with the entry rather than with a value.
	good := cniAnnotations(l, cniPolicy())
	refused("resources", good, `, "resources": {"kind": "GlobalNetworkPolicy"}`, "resources")
	refusedBy(late, "resources without a version", good, `, "resources": [{"kind": "GlobalNetworkPolicy"}]`, "resources[0]", "apiVersion")
	refused("key of the entry", good, `, "untracked.cni/ports": "tcp/1"`, "untracked.cni/ports", "tcp/1")
	refused("two annotations", good, `, "annotations": {}`, "annotations")
	refused("number", strings.Replace(good, `"tcp/6379,udp/7001"`, "6379", 1), "", "untracked.cni/ports", "6379")
	refused("null", strings.Replace(good, `"tcp/6379,udp/7001"`, "null", 1), "", "untracked.cni/ports", "null")
	refused("twice", strings.Replace(good, "{", `{"untracked.cni/ports": "tcp/1",`, 1), "", "untracked.cni/ports", "twice")
	refused("capitals", strings.Replace(good, "untracked.cni/ports", "Untracked.cni/ports", 1), "", "Untracked.cni/ports")
	// Several at once are all named.
	refused("several", cniAnnotations(l, cniPolicy("mode", "fast", "mark", "3", "deny", "me")), "",
		"untracked.cni/mode", "fast", "untracked.cni/mark", "3", "untracked.cni/deny", "me")

	cniSameButCount(t, "a bad config", before, cniRead(t, l))
	cniHealthy(t, l, chain, pod)

	// Through a runtime the message arrives as well.
	check(t, chain.Rewrite(lab.ChainConfig{Annotations: cniPolicy("mode", "fast")}))
	if _, err := chain.Add(pod); err == nil || !strings.Contains(err.Error(), "untracked.cni/mode") {
		t.Errorf("cnitool add: %v", err)
	}
}

// With required, STATUS tells of a bad config: no pod could start.
func TestCNIStatusOfBadConfig(t *testing.T) {
	l, chain, pod := cniChain(t, cniPolicy("required", "true"))
	cniAdd(t, chain, pod)
	for _, bad := range cniBadValues {
		if bad.key == "required" || bad.late {
			continue
		}
		policy := cniPolicy(append(bad.with, "required", "true", bad.key, bad.value)...)
		stdin := cniStdin(chain.Network, "1.1.0", cniAnnotations(l, policy), "")
		text := cniFailure(t, cniRun(t, l, cniEnv(chain, "STATUS", pod), stdin), 50)
		if !strings.Contains(text, lab.AnnotationPrefix+bad.key) {
			t.Errorf("%s=%s: %s", bad.key, bad.value, text)
		}
	}
}

func TestCNIBadDenyFiles(t *testing.T) {
	l := lab.New(t, lab.Config{})
	list := filepath.Join(l.Dir, "list")
	check(t, os.WriteFile(list, []byte("192.0.2.1\n"), 0o600))
	chain := must(l.Chain(lab.ChainConfig{Annotations: cniPolicy("deny-files", list)}))(t)
	pod := must(l.AddNS("pod"))(t)
	cniAdd(t, chain, pod)
	before := cniRead(t, l)

	write := func(text string) func(*testing.T, string) {
		return func(t *testing.T, path string) { check(t, os.WriteFile(path, []byte(text), 0o600)) }
	}
	for name, c := range map[string]struct {
		make func(*testing.T, string)
		want string // behind the path
	}{
		"missing":       {func(*testing.T, string) {}, ": no such file"},
		"dangling link": {func(t *testing.T, path string) { check(t, os.Symlink("/nonexistent", path)) }, ": no such file"},
		"loop":          {func(t *testing.T, path string) { check(t, os.Symlink(path, path)) }, ": too many levels"},
		"directory":     {func(t *testing.T, path string) { check(t, os.Mkdir(path, 0o700)) }, " is not a regular file"},
		// Opening one would block until there is a writer, and with it the pod and all that wait for the lock.
		"pipe":        {func(t *testing.T, path string) { check(t, unix.Mkfifo(path, 0o600)) }, " is not a regular file"},
		"device":      {func(t *testing.T, path string) { check(t, os.Symlink("/dev/zero", path)) }, " is not a regular file"},
		"word":        {write("# comment\n192.0.2.7\n\n  example.org # x\n"), ":4:3:"},
		"bad length":  {write("10.0.0.0/8\n10.0.0.0/99\n"), ":2:1:"},
		"zone":        {write("fe80::1%eth0\n"), ":1:1:"},
		"range":       {write("\t10.0.0.1-10.0.0.9\n"), ":1:2:"},
		"comma first": {write("10.0.0.1\n,10.0.0.2\n"), ":2:1:"},
		"no newline":  {write("10.0.0.1\n10.0.0"), ":2:1:"},
		"long line":   {write("10.0.0.1\n" + strings.Repeat("1", 2<<20)), ":2"},
		"binary":      {write("\x7fELF\x00\x01"), ":1:1:"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(l.Dir, strings.ReplaceAll(name, " ", "-"))
			c.make(t, path)
			stdin := cniStdin(chain.Network, "1.1.0", cniAnnotations(l, cniPolicy("deny-files", list+","+path)), cniPrev("1.1.0"))
			text := cniFailure(t, cniRun(t, l, cniEnv(chain, "ADD", pod), stdin), 7)
			for _, want := range []string{lab.AnnotationPrefix + "deny-files", path + c.want} {
				if !strings.Contains(text, want) {
					t.Errorf("error %q does not say %q", text, want)
				}
			}
			cniSameButCount(t, "a bad list", before, cniRead(t, l))
		})
	}

	// The list in force itself goes bad, or goes away: pods fail with the reason, the policy stays.
	check(t, os.WriteFile(list, []byte("192.0.2.1\nbad\n"), 0o600))
	if _, err := chain.Plugin("ADD", pod, chain.Stdin([]byte(cniPrev("1.1.0")))); cniCode(err) != 7 || !strings.Contains(err.Error(), list+":2:1:") {
		t.Errorf("list went bad: %v", err)
	}
	check(t, os.Remove(list))
	if _, err := chain.Plugin("ADD", pod, chain.Stdin([]byte(cniPrev("1.1.0")))); cniCode(err) != 7 || !strings.Contains(err.Error(), list) {
		t.Errorf("list went away: %v", err)
	}
	cniSameButCount(t, "a list gone bad", before, cniRead(t, l))
	check(t, os.WriteFile(list, []byte("192.0.2.2\n"), 0o600))
	cniAdd(t, chain, pod)
	cniHealthy(t, l, chain, pod)
}

// A change of a list is seen by stat, however it came about.
func TestCNIDenyFileChanges(t *testing.T) {
	l := lab.New(t, lab.Config{})
	list := filepath.Join(l.Dir, "list")
	other := filepath.Join(l.Dir, "other")
	check(t, os.WriteFile(list, []byte("192.0.2.1\n"), 0o600))
	chain := must(l.Chain(lab.ChainConfig{Annotations: cniPolicy("deny-files", list)}))(t)
	pod := must(l.AddNS("pod"))(t)
	cniAdd(t, chain, pod)
	stamp := func(path string) time.Time { return must(os.Stat(path))(t).ModTime() }

	for _, change := range []struct {
		name string
		do   func(t *testing.T, text string)
	}{
		{"in place, longer", func(t *testing.T, text string) { check(t, os.WriteFile(list, []byte(text+"# longer\n"), 0o600)) }},
		{"in place, same size", func(t *testing.T, text string) { check(t, os.WriteFile(list, []byte(text), 0o600)) }},
		{"in place, same size and time", func(t *testing.T, text string) {
			was := stamp(list)
			check(t, os.WriteFile(list, []byte(text), 0o600))
			check(t, os.Chtimes(list, was, was))
		}},
		{"replaced, same size and time", func(t *testing.T, text string) {
			was := stamp(list)
			check(t, os.WriteFile(other, []byte(text), 0o600))
			check(t, os.Chtimes(other, was, was))
			check(t, os.Rename(other, list))
		}},
		{"replaced by an older one", func(t *testing.T, text string) {
			check(t, os.WriteFile(other, []byte(text), 0o600))
			check(t, os.Chtimes(other, time.Unix(1e9, 0), time.Unix(1e9, 0)))
			check(t, os.Rename(other, list))
		}},
		{"a link to another", func(t *testing.T, text string) {
			check(t, os.WriteFile(other, []byte(text), 0o600))
			check(t, os.Remove(list))
			check(t, os.Symlink(other, list))
		}},
		{"behind the link", func(t *testing.T, text string) { check(t, os.WriteFile(other, []byte(text), 0o600)) }},
	} {
		t.Run(change.name, func(t *testing.T) {
			was := cniRecord(t, l)
			// Of the same length, so that only what the change is about tells.
			change.do(t, fmt.Sprintf("192.0.2.%d\n", 2+was.Generation%8))
			stdin := chain.Stdin([]byte(cniPrev("1.1.0")))
			if _, err := chain.Plugin("CHECK", pod, stdin); err != nil {
				t.Errorf("CHECK: %v, but an edited list is for the next ADD, and no fault of this pod", err)
			}
			required := strings.Replace(string(stdin), `"annotations":{`, `"annotations":{"untracked.cni/required":"true",`, 1)
			if _, err := chain.Plugin("CHECK", pod, []byte(required)); cniCode(err) < 100 || !strings.Contains(err.Error(), list) {
				t.Errorf("CHECK with required: %v, want it to name %s", err, list)
			}
			cniAdd(t, chain, pod)
			if is := cniRecord(t, l); is.Generation != was.Generation+1 || is.Policy == was.Policy {
				t.Errorf("generation %d, policy %s after %d, %s: the change was not seen", is.Generation, is.Policy, was.Generation, was.Policy)
			}
			cniHealthy(t, l, chain, pod)
			after := cniRead(t, l)
			cniAdd(t, chain, pod)
			cniSame(t, "a second ADD", after, cniRead(t, l))
		})
	}
}

// A list that did not change is not even opened, and so its length costs a pod nothing.
func TestCNIUnchangedDenyFileIsNotRead(t *testing.T) {
	l := lab.New(t, lab.Config{})
	list := filepath.Join(l.Dir, "list")
	var text strings.Builder
	for i := range 1_000_000 {
		fmt.Fprintf(&text, "%d.%d.%d.%d/31\n", 1+i>>16&0x3f, i>>8&0xff, i&0xff, i*2&0xff)
	}
	check(t, os.WriteFile(list, []byte(text.String()), 0o600))
	chain := must(l.Chain(lab.ChainConfig{Annotations: cniPolicy("deny-files", list)}))(t)
	pod := must(l.AddNS("pod"))(t)

	watch := must(unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC))(t)
	defer unix.Close(watch)
	must(unix.InotifyAddWatch(watch, list, unix.IN_OPEN|unix.IN_ACCESS))(t)
	opened := func() bool {
		n, err := unix.Read(watch, make([]byte, 4096))
		return err == nil && n > 0
	}
	first := cniAdd(t, chain, pod)
	if !opened() {
		t.Fatal("the first ADD did not open the list")
	}
	for opened() {
	}
	least := time.Hour
	for range 10 {
		least = min(least, cniAdd(t, chain, pod).Elapsed)
	}
	if opened() {
		t.Error("an ADD with nothing to do opened the list")
	}
	t.Logf("first ADD %v, least of the others %v", first.Elapsed, least)
	if least > first.Elapsed/2 {
		t.Errorf("an ADD with nothing to do took %v, the first %v", least, first.Elapsed)
	}
}
