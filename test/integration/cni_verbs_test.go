// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/untracked-cni/untracked/test/lab"
)

// cniRandom is what differs between two runs of the bridge plugin.
var cniRandom = regexp.MustCompile(`"mac": "[0-9a-f:]+"|"veth[0-9a-f]+"|/run/netns/[^"]+|untracked-[0-9]+-[^"]+`)

func TestCNIVersionsByCnitool(t *testing.T) {
	for _, version := range cniVersions {
		t.Run(version, func(t *testing.T) {
			plain := lab.New(t, lab.Config{})
			without := must(plain.Chain(lab.ChainConfig{CNIVersion: version}))(t)
			want := must(without.Add(must(plain.AddNS("pod"))(t)))(t)

			l := lab.New(t, lab.Config{})
			chain := must(l.Chain(lab.ChainConfig{CNIVersion: version, Annotations: cniPolicy()}))(t)
			pod := must(l.AddNS("pod"))(t)
			got := must(chain.Add(pod))(t)
			normal := func(b []byte) string { return cniRandom.ReplaceAllString(string(b), "…") }
			if diff := cmp.Diff(normal(want.Stdout), normal(got.Stdout)); diff != "" {
				t.Errorf("the result is not the main plugin's (-without +with):\n%s", diff)
			}
			if !strings.Contains(string(got.Stdout), `"cniVersion": "`+version+`"`) {
				t.Errorf("result is not of version %s: %s", version, got.Stdout)
			}
			in := cniRead(t, l)
			if in.Hooks["eth0"].XDP == 0 || in.Table == "" {
				t.Fatalf("nothing in force after ADD: %+v", in)
			}

			// Where libcni does not run a verb in that version, a runtime that does gets a clean answer.
			prev := chain.Stdin([]byte(cniPrev(version)))
			direct := func(verb string) {
				t.Helper()
				text := cniFailure(t, cniRun(t, l, cniEnv(chain, verb, pod), prev), 1)
				if !strings.Contains(text, verb) {
					t.Errorf("%s: %s", verb, text)
				}
			}
			if strings.HasPrefix(version, "0.3.") {
				direct("CHECK")
			} else {
				must(chain.Check(pod))(t)
			}
			if version == "1.1.0" {
				must(chain.Status())(t)
			} else {
				direct("STATUS")
				direct("GC")
			}
			cniSame(t, "CHECK or STATUS", in, cniRead(t, l))

			must(chain.Del(pod))(t)
			must(chain.Del(pod))(t)
			if version == "1.1.0" {
				must(chain.Add(pod))(t)
				must(chain.GC())(t) // deletes the attachment, too
			}
			after := cniRead(t, l)
			delete(after.Hooks, "cni0")
			delete(in.Hooks, "cni0")
			after.Transactions = in.Transactions // bridge's own
			cniSame(t, "DEL or GC", in, after)
			if links := must(lab.Links(pod))(t); !slices.Equal(links, []string{"lo"}) {
				t.Errorf("the pod has %v after DEL", links)
			}
		})
	}
}

func TestCNIGCSucceeds(t *testing.T) {
	l, chain, pod := cniChain(t, cniPolicy())
	cniAdd(t, chain, pod)
	before := cniRead(t, l)
	for name, key := range map[string]string{
		"absent": "", "null": `"cni.dev/valid-attachments": null,`, "none": `"cni.dev/valid-attachments": [],`,
		"one": `"cni.dev/valid-attachments": [{"containerID": "x", "ifname": "eth0"}],`,
	} {
		stdin := strings.Replace(string(chain.Stdin(nil)), "{", "{"+key, 1)
		out := cniRun(t, l, map[string]string{"CNI_COMMAND": "GC", "CNI_PATH": chain.Bin}, []byte(stdin))
		if out.ExitCode != 0 || len(out.Stdout) != 0 {
			t.Errorf("%s: exit status %d, stdout %q, stderr %q", name, out.ExitCode, out.Stdout, out.Stderr)
		}
	}
	cniSame(t, "GC", before, cniRead(t, l))
}

// A result comes out as it went in, whatever a later version or another plugin put there.
func TestCNIPrevResultPassesUnchanged(t *testing.T) {
	l, chain, pod := cniChain(t, cniPolicy())
	annotations := cniAnnotations(l, cniPolicy())
	for _, version := range cniVersions {
		family := ""
		if strings.HasPrefix(version, "0.") {
			family = `"version" : "4",`
		}
		prev := "{ \t\"dns\":{ }  ,\n\r\n \"x/unknown\" : {\"big\":9007199254740993, \"e\": 1.50E+3,\"a\":[ ] , \"u\":\"\\u003c<&>\\/ é \\ud83d\\ude00\"},\n" +
			`  "ips":[{` + family + `"address":"10.88.0.5/16" ,"interface":1 ,"future":[null,true]} ],` +
			"\"interfaces\":[{\"name\":\"veth1\"},{\"sandbox\":\"/run/netns/x\",\"name\":\"eth0\", \"mac\":\"0a:00:00:00:00:01\"}], \"routes\":[],\n" +
			`"cniVersion":"` + version + "\"   }"
		out := cniRun(t, l, cniEnv(chain, "ADD", pod), cniStdin(chain.Network, version, annotations, prev))
		if out.ExitCode != 0 || string(out.Stdout) != prev+"\n" {
			t.Errorf("%s: exit status %d, stdout\n%s\nwant\n%s", version, out.ExitCode, out.Stdout, prev)
		}
	}

	// A result of another version is printed in the config's.
	out := cniRun(t, l, cniEnv(chain, "ADD", pod), cniStdin(chain.Network, "1.1.0", annotations, cniPrev("0.4.0")))
	var result struct {
		CNIVersion string
		IPs        []struct{ Address, Version string }
	}
	if err := json.Unmarshal(out.Stdout, &result); err != nil || result.CNIVersion != "1.1.0" || len(result.IPs) != 1 ||
		result.IPs[0].Address != "10.88.0.5/16" || result.IPs[0].Version != "" {
		t.Errorf("result of 0.4.0 in a config of 1.1.0: exit status %d, stdout %s, %v", out.ExitCode, out.Stdout, err)
	}

	before := cniRead(t, l)
	for _, prev := range []string{
		"", "null", "5", `"x"`, "[]", "true", "{}", `{"ips": []}`, `{"cniVersion": "1.1.0", "ips": 5}`, `{"cniVersion": "9.9.9"}`, `{"cniVersion": 1}`,
	} {
		stdin := cniStdin(chain.Network, "1.1.0", annotations, prev)
		text := cniFailure(t, cniRun(t, l, cniEnv(chain, "ADD", pod), stdin), 7)
		if !strings.Contains(text, "prevResult") {
			t.Errorf("prevResult %s: error %q does not name prevResult", prev, text)
		}
		if prev == "" || prev == "null" {
			if text := cniFailure(t, cniRun(t, l, cniEnv(chain, "CHECK", pod), stdin), 7); !strings.Contains(text, "prevResult") {
				t.Errorf("CHECK without prevResult: error %q", text)
			}
		}
	}
	cniSame(t, "a bad prevResult", before, cniRead(t, l))
}

func TestCNIVersionVerb(t *testing.T) {
	l, _, _ := cniChain(t, cniPolicy())
	for _, stdin := range []string{"", `{"cniVersion":"1.1.0"}`, "garbage"} {
		out := cniRun(t, l, map[string]string{"CNI_COMMAND": "VERSION"}, []byte(stdin))
		var v struct {
			CNIVersion        string
			SupportedVersions []string
		}
		if err := json.Unmarshal(out.Stdout, &v); err != nil || out.ExitCode != 0 {
			t.Fatalf("exit status %d, stdout %q, %v", out.ExitCode, out.Stdout, err)
		}
		if !slices.Equal(v.SupportedVersions, cniVersions) || v.CNIVersion != "1.1.0" {
			t.Errorf("%+v, want %v", v, cniVersions)
		}
	}
	cniNothing(t, l)
}

func TestCNIBrokenCalls(t *testing.T) {
	l, chain, pod := cniChain(t, cniPolicy())
	good := string(chain.Stdin([]byte(cniPrev("1.1.0"))))
	stdins := map[string]string{
		"empty": "", "space": "  \n", "brace": "{", "words": "not json at all", "null": "null", "array": "[]", "number": "17",
		"string": `"x"`, "binary": "\x00\xff\xfe\x01", "truncated": good[:len(good)-20], "two": good + good, "empty object": "{}",
		"deep": strings.Repeat("[", 200000), "deep object": strings.Repeat(`{"a":`, 200000), "long": `{"name":"` + strings.Repeat("x", 1<<20),
		"no version":         strings.Replace(good, `"cniVersion":"1.1.0"`, `"cniVersion":"7.0.0"`, 1),
		"old version":        strings.Replace(good, `"cniVersion":"1.1.0"`, `"cniVersion":"0.2.0"`, 1),
		"nonsense version":   strings.Replace(good, `"cniVersion":"1.1.0"`, `"cniVersion":"one"`, 1),
		"number version":     strings.Replace(good, `"cniVersion":"1.1.0"`, `"cniVersion":1`, 1),
		"no name":            strings.Replace(good, `"name":`, `"nom":`, 1),
		"annotations number": strings.Replace(good, `"annotations":`, `"annotations":5,"others":`, 1),
	}
	phase := func(t *testing.T) {
		before := cniRead(t, l)
		for name, stdin := range stdins {
			for _, verb := range []string{"ADD", "CHECK", "GC", "STATUS", "DEL"} {
				out := cniRun(t, l, cniEnv(chain, verb, pod), []byte(stdin))
				switch {
				case verb == "DEL":
					cniQuiet(t, name, out)
				case name == "annotations number" && (verb == "GC" || verb == "STATUS"):
					cniQuiet(t, verb+" "+name, out) // neither looks at the policy
				default:
					cniFailure(t, out, 1, 6, 7)
				}
				if t.Failed() {
					t.Fatalf("%s with %s", verb, name)
				}
			}
		}
		for _, verb := range []string{"ADD", "CHECK", "GC", "STATUS", "DEL"} {
			needed := []string{"CNI_PATH"}
			if verb != "GC" && verb != "STATUS" {
				needed = append(needed, "CNI_CONTAINERID", "CNI_IFNAME")
			}
			if verb == "ADD" || verb == "CHECK" {
				needed = append(needed, "CNI_NETNS")
			}
			for _, missing := range needed {
				env := cniEnv(chain, verb, pod)
				delete(env, missing)
				out := cniRun(t, l, env, []byte(good))
				if verb == "DEL" {
					cniQuiet(t, "without "+missing, out)
				} else if text := cniFailure(t, out, 4); !strings.Contains(text, missing) {
					t.Errorf("%s without %s: %s", verb, missing, text)
				}
			}
		}
		cniFailure(t, cniRun(t, l, cniEnv(chain, "NONSENSE", pod), []byte(good)), 4)
		bad := cniEnv(chain, "ADD", pod)
		bad["CNI_CONTAINERID"] = "../etc"
		cniFailure(t, cniRun(t, l, bad, []byte(good)), 4)
		cniSame(t, "a broken call", before, cniRead(t, l))
	}
	t.Run("fresh node", phase)
	if t.Failed() {
		return
	}
	cniNothing(t, l)
	cniAdd(t, chain, pod)
	t.Run("policy in force", phase)
	cniHealthy(t, l, chain, pod)
}

// cniQuiet asserts success without a word on stdout.
func cniQuiet(t *testing.T, what string, out *lab.Outcome) {
	t.Helper()
	if out.ExitCode != 0 || len(out.Stdout) != 0 {
		t.Errorf("%s: exit status %d, stdout %q, stderr %q: want 0 and silence", what, out.ExitCode, out.Stdout, out.Stderr)
	}
}

// Whatever happened to the config since ADD, a pod can go, and host interfaces keep their programs.
func TestCNIDelAlwaysSucceeds(t *testing.T) {
	l, chain, pod := cniChain(t, cniPolicy())
	prev := []byte(cniPrev("1.1.0"))
	gone := &lab.NS{Name: "gone", Path: "/run/netns/" + l.Name + "-gone"}
	calls := func() map[string]*lab.Outcome {
		noNetns := cniEnv(chain, "DEL", pod)
		noNetns["CNI_NETNS"] = ""
		ownNetns := cniEnv(chain, "DEL", pod)
		ownNetns["CNI_NETNS"] = l.Node.Path
		annotations := func(more ...string) []byte {
			return cniStdin(chain.Network, "1.1.0", cniAnnotations(l, cniPolicy(more...)), string(prev))
		}
		out := map[string]*lab.Outcome{}
		for name, call := range map[string]struct {
			env   map[string]string
			stdin []byte
		}{
			"plain":              {cniEnv(chain, "DEL", pod), chain.Stdin(prev)},
			"again":              {cniEnv(chain, "DEL", pod), chain.Stdin(prev)},
			"without prevResult": {cniEnv(chain, "DEL", pod), chain.Stdin(nil)},
			"empty netns":        {noNetns, chain.Stdin(prev)},
			"netns gone":         {cniEnv(chain, "DEL", gone), chain.Stdin(nil)},
			"the node's netns":   {ownNetns, chain.Stdin(nil)},
			"other policy":       {cniEnv(chain, "DEL", pod), annotations("ports", "udp/9", "interfaces", "eth7")},
			"bad ports":          {cniEnv(chain, "DEL", pod), annotations("ports", "nonsense")},
			"unknown key":        {cniEnv(chain, "DEL", pod), annotations("nonsense", "x")},
			"bad run-dir":        {cniEnv(chain, "DEL", pod), annotations("run-dir", "relative")},
			"run-dir is a file":  {cniEnv(chain, "DEL", pod), annotations("run-dir", chain.File)},
			"no log-file":        {cniEnv(chain, "DEL", pod), annotations("log-file", "/nonexistent/x", "log-level", "debug")},
			"required, no bpffs": {cniEnv(chain, "DEL", pod), annotations("required", "true", "bpffs", "/nonexistent")},
			"policy refused":     {cniEnv(chain, "DEL", pod), annotations("policy", "x")},
			"no annotations":     {cniEnv(chain, "DEL", pod), []byte(`{"cniVersion":"0.3.1","name":"x","type":"untracked"}`)},
			"version 9":          {cniEnv(chain, "DEL", pod), cniStdin(chain.Network, "9.0.0", "{}", "")},
			"garbage prevResult": {cniEnv(chain, "DEL", pod), cniStdin(chain.Network, "1.1.0", "{}", "17")},
		} {
			out[name] = cniRun(t, l, call.env, call.stdin)
		}
		return out
	}
	for name, out := range calls() {
		cniQuiet(t, "before any ADD: "+name, out)
	}
	cniNothing(t, l)
	cniAdd(t, chain, pod)
	before := cniRead(t, l)
	for name, out := range calls() {
		cniQuiet(t, name, out)
	}
	cniSame(t, "DEL", before, cniRead(t, l))
	if before.Hooks["eth0"].None() {
		t.Error("nothing was attached")
	}
}
