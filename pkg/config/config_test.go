// SPDX-License-Identifier: Apache-2.0

package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/untracked-cni/untracked/pkg/hostif"
	"github.com/untracked-cni/untracked/pkg/netset"
	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/pkg/resource"
)

func TestMain(m *testing.M) {
	hostname = func() (string, error) { return "Node-1.Example", nil }
	os.Exit(m.Run())
}

// opts lets cmp.Diff look into prefixes and sets.
var opts = cmp.Options{
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmp.Comparer(func(a, b *netset.Set) bool { return reflect.DeepEqual(a, b) }),
}

func defaults() *Config {
	failsafe := func(protocol uint8, port uint16) policy.FailsafePort {
		return policy.FailsafePort{Protocol: protocol, Port: port}
	}
	shared := func(first ...policy.FailsafePort) []policy.FailsafePort {
		for _, port := range []uint16{179, 2379, 2380, 5473, 6443, 6666, 6667, 10250} {
			first = append(first, failsafe(policy.TCP, port))
		}
		return first
	}
	return &Config{
		Annotations:      map[string]string{},
		Interfaces:       []hostif.Selector{{Kind: hostif.ByDefaultRoute}},
		Node:             "node-1.example",
		AutoReturn:       true,
		Pods:             PodsIgnore,
		FailsafeInbound:  shared(failsafe(policy.TCP, 22), failsafe(policy.UDP, 68)),
		FailsafeOutbound: shared(failsafe(policy.UDP, 53), failsafe(policy.UDP, 67)),
		Mode:             "auto",
		Mark:             0x1000,
		LogLevel:         slog.LevelInfo,
		BPFFS:            "/sys/fs/bpf",
		RunDir:           "/run/untracked",
	}
}

func TestParseDefaults(t *testing.T) {
	for _, entry := range []string{
		`{}`, ` {"type":"untracked"} `, `{"annotations":{}}`,
		`{"annotations":{"example.com/ports":"x","untracked":"y","cni.example/untracked":"z","other":7}}`,
		`{"prevResult":null,"capabilities":{"io.kubernetes.cri.pod-annotations":false,"portMappings":true},"runtimeConfig":{}}`,
	} {
		got, err := Parse([]byte(entry))
		if diff := cmp.Diff(defaults(), got, opts); err != nil || diff != "" {
			t.Errorf("Parse(%s): %v (-want +got):\n%s", entry, err, diff)
		}
	}
}

func TestParseEverything(t *testing.T) {
	got, err := Parse([]byte(`{
		"type": "untracked", "name": "net", "cniVersion": "1.1.0",
		"prevResult": {"cniVersion":"1.1.0", "ips":[ {"address":"10.0.0.2/24"}]},
		"annotations": {
			"untracked.cni/interfaces": "eth0, en*",
			"untracked.cni/node": "redis-7",
			"untracked.cni/labels": "hep=redis-host, example.com/role=db,empty=",
			"untracked.cni/ports": "tcp/6379, udp/53,tcp/7000-7100",
			"untracked.cni/sources": "10.0.0.0/8, 2001:db8::1",
			"untracked.cni/remote-ports": "sctp/9",
			"untracked.cni/destinations": "192.0.2.7/24",
			"untracked.cni/deny": "203.0.113.0/24",
			"untracked.cni/deny-files": "/etc/untracked//deny.txt, /etc/x/../more.txt",
			"untracked.cni/auto-return": "false",
			"untracked.cni/failsafe-inbound": "tcp:10.0.0.0/8:22",
			"untracked.cni/failsafe-outbound": "none",
			"untracked.cni/mode": "tc",
			"untracked.cni/mark": "0x80000000",
			"untracked.cni/pods": "allow-lenient",
			"untracked.cni/required": "true",
			"untracked.cni/log-file": "/var/log/untracked.log",
			"untracked.cni/log-level": "debug",
			"untracked.cni/bpffs": "/run/bpf/",
			"untracked.cni/run-dir": "/run/u"
		},
		"runtimeConfig": {"portMappings": [], "io.kubernetes.cri.pod-annotations": {"a/b": "c", "untracked.cni/ports": "tcp/1"}}
	}`))
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Annotations) != 20 || got.Annotations["untracked.cni/ports"] != "tcp/6379, udp/53,tcp/7000-7100" {
		t.Errorf("annotations are not as written: %v", got.Annotations)
	}
	got.Annotations = nil
	port := func(protocol uint8, first, last uint16) policy.Port {
		return policy.Port{Protocol: protocol, Range: policy.PortRange{First: first, Last: last}}
	}
	set := func(prefixes ...string) *netset.Set {
		var b netset.Builder
		for _, p := range prefixes {
			b.Add(netip.MustParsePrefix(p))
		}
		return b.Build()
	}
	want := &Config{
		Network: "net", CNIVersion: "1.1.0",
		PrevResult:   json.RawMessage(`{"cniVersion":"1.1.0", "ips":[ {"address":"10.0.0.2/24"}]}`),
		Interfaces:   []hostif.Selector{{Kind: hostif.ByName, Pattern: "eth0"}, {Kind: hostif.ByGlob, Pattern: "en*"}},
		Node:         "redis-7",
		Labels:       map[string]string{"hep": "redis-host", "example.com/role": "db", "empty": ""},
		Ports:        []policy.Port{port(policy.TCP, 6379, 6379), port(policy.UDP, 53, 53), port(policy.TCP, 7000, 7100)},
		Sources:      set("10.0.0.0/8", "2001:db8::1/128"),
		RemotePorts:  []policy.Port{port(policy.SCTP, 9, 9)},
		Destinations: set("192.0.2.0/24"),
		Deny:         set("203.0.113.0/24"),
		DenyFiles:    []string{"/etc/untracked/deny.txt", "/etc/more.txt"},
		FailsafeInbound: []policy.FailsafePort{
			{Protocol: policy.TCP, Port: 22, Net: netip.MustParsePrefix("10.0.0.0/8")},
		},
		Pods: PodsAllowLenient, HearsPods: true, PodAnnotations: map[string]string{"untracked.cni/ports": "tcp/1"},
		Mode: ModeTC, Mark: 1 << 31, Required: true,
		LogFile: "/var/log/untracked.log", LogLevel: slog.LevelDebug,
		BPFFS: "/run/bpf", RunDir: "/run/u",
	}
	if diff := cmp.Diff(want, got, opts); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// entry makes an entry with one annotation, whose value is given as JSON.
func entry(key, value string) []byte {
	return fmt.Appendf(nil, `{"annotations":{%q:%s}}`, key, value)
}

func quoted(s string) string {
	b, _ := json.Marshal(s)
	return string(b)
}

func TestParseGoodValues(t *testing.T) {
	for _, test := range []struct {
		key, value string
		get        func(*Config) any
		want       any
	}{
		{"labels", "", func(c *Config) any { return len(c.Labels) }, 0},
		{"labels", "a=b", func(c *Config) any { return c.Labels["a"] }, "b"},
		{"log-file", "", func(c *Config) any { return c.LogFile }, ""},
		{"log-file", "stderr", func(c *Config) any { return c.LogFile }, ""},
		{"log-level", "warn", func(c *Config) any { return c.LogLevel }, slog.LevelWarn},
		{"log-level", "error", func(c *Config) any { return c.LogLevel }, slog.LevelError},
		{"mark", "4096", func(c *Config) any { return c.Mark }, uint32(4096)},
		{"mark", "0X1", func(c *Config) any { return c.Mark }, uint32(1)},
		{"mark", "2147483648", func(c *Config) any { return c.Mark }, uint32(1 << 31)},
		{"mode", "native", func(c *Config) any { return c.Mode }, ModeNative},
		{"mode", "generic", func(c *Config) any { return c.Mode }, ModeGeneric},
		{"mode", "auto", func(c *Config) any { return c.Mode }, ModeAuto},
		{"node", " n1 ", func(c *Config) any { return c.Node }, "n1"},
		{"node", "N1", func(c *Config) any { return c.Node }, "N1"},
		{"required", "false", func(c *Config) any { return c.Required }, false},
		{"auto-return", "true", func(c *Config) any { return c.AutoReturn }, true},
		{"failsafe-inbound", "None", func(c *Config) any { return len(c.FailsafeInbound) }, 0},
		{"deny", "::/0", func(c *Config) any { return c.Deny.String() }, "::/0"},
		{"interfaces", "default-route", func(c *Config) any { return c.Interfaces[0].Kind }, hostif.ByDefaultRoute},
	} {
		c, err := Parse(entry(Prefix+test.key, quoted(test.value)))
		if err != nil {
			t.Errorf("%s=%q: %v", test.key, test.value, err)
			continue
		}
		if got := test.get(c); got != test.want {
			t.Errorf("%s=%q gave %v, want %v", test.key, test.value, got, test.want)
		}
	}
}

func TestParseBadValues(t *testing.T) {
	for _, test := range []struct {
		key, value string
		item       string // what Error.Value should be; "=" for the whole value
		right      string // what the message must say would be right
	}{
		{"interfaces", "", "=", "want interface names"},
		{"interfaces", "eth0,,eth1", "=", "item 2 is empty"},
		{"interfaces", "eth0, eth 1", "eth 1", "want an interface name"},
		{"interfaces", "sixteen-letters-", "=", "at most 15 bytes"},
		{"interfaces", "10.0.0.0/40", "=", "want an interface name, a glob such as eth*, a CIDR"},
		{"interfaces", "eth[", "=", "not a complete glob"},
		{"node", " ", "=", "want this node's name"},
		{"node", "two words", "=", "want this node's name"},
		{"labels", "a", "=", "want key=value"},
		{"labels", "a=b,", "=", "item 2 is empty"},
		{"labels", "=b", "=", "want letters, digits"},
		{"labels", "a=b, -c=d", "-c=d", "want letters, digits"},
		{"labels", "a=b c", "=", "label value \"b c\""},
		{"labels", "UP/a=b", "=", "label key"},
		{"labels", "a/b/c=d", "=", "label key"},
		{"labels", "a_b.c/d=e", "=", "label key"},
		{"labels", "a=b=c", "=", "label value \"b=c\""},
		{"labels", "a=b,a=c", "a=c", "twice"},
		{"labels", "a=" + strings.Repeat("x", 64), "=", "at most 63"},
		{"ports", "", "=", "want ports such as tcp/6379"},
		{"ports", "tcp/99999", "=", `port "99999" is not a number from 1 to 65535; want protocol/port`},
		{"ports", "tcp/80,tcp/0", "tcp/0", "a number from 1 to 65535"},
		{"ports", "tcp/90-80", "=", "the range runs backwards; want"},
		{"ports", "80", "=", "no protocol; want"},
		{"ports", "icmp/8", "=", "is not tcp, udp, udplite or sctp; want"},
		{"ports", "tcp/80,", "=", "item 2 is empty, a comma too many; want"},
		{"remote-ports", "dns/53", "=", "want protocol/port"},
		{"remote-ports", " ", "=", "want ports"},
		{"deny", "", "=", "want addresses or CIDRs"},
		{"deny", "10.0.0.0/8,10.0.0.256", "10.0.0.256", "not an address or CIDR such as"},
		{"deny", "10.0.0.0/33", "=", "not a CIDR such as"},
		{"deny", "example.com", "=", "not an address or CIDR such as"},
		{"deny", "fe80::1%eth0", "=", "not an address"},
		{"deny-files", "", "=", "want absolute paths"},
		{"deny-files", "/a,b", "b", "want one such as"},
		{"deny-files", "/a,,/b", "=", "item 2 is empty"},
		{"policy", "", "=", "want resources in YAML or JSON"},
		{"policy", " \n", "=", "want resources in YAML or JSON"},
		{"policy-files", "", "=", "want absolute paths of files, directories or globs"},
		{"policy-files", "/a,,/b", "=", "item 2 is empty"},
		{"policy-files", "/etc/x.yaml,policies", "policies", "not an absolute path"},
		{"policy-files", "/etc/[a", "=", "not a complete glob pattern"},
		{"auto-return", "yes", "=", "want true or false"},
		{"auto-return", "", "=", "want true or false"},
		{"failsafe-inbound", "", "=", "or none"},
		{"failsafe-inbound", "tcp:22,tcp:ssh", "tcp:ssh", "want port, protocol:port"},
		{"failsafe-outbound", "icmp:8", "=", "is not tcp, udp or sctp; want"},
		{"failsafe-outbound", "tcp:10.0.0.0/99:1", "=", "is not a CIDR"},
		{"mode", "xdp", "=", "want auto, native, generic or tc"},
		{"mode", "", "=", "want auto, native, generic or tc"},
		{"mode", "Auto", "=", "want auto, native, generic or tc"},
		{"mark", "0x1100", "=", "has 2 bits set; want one bit of 32"},
		{"mark", "0", "=", "has 0 bits set; want one bit"},
		{"mark", "0x100000000", "=", "not a number of 32 bits; want one bit"},
		{"mark", "1_0", "=", "want one bit"},
		{"mark", "0x", "=", "want one bit"},
		{"mark", "", "=", "want one bit"},
		{"mark", "-1", "=", "want one bit"},
		{"pods", "deny", "=", "want ignore, allow or allow-lenient"},
		{"pods", "", "=", "want ignore, allow or allow-lenient"},
		{"required", "1", "=", "want true or false"},
		{"log-file", "x.log", "=", "want one such as"},
		{"log-level", "verbose", "=", "want debug, info, warn or error"},
		{"log-level", "", "=", "want debug, info, warn or error"},
		{"bpffs", "sys/fs/bpf", "=", "want one such as"},
		{"bpffs", "", "=", "not an absolute path"},
		{"run-dir", "./run", "=", "not an absolute path"},
		{"run-dir", "/run/a\nb", "=", "control characters"},
	} {
		t.Run(test.key+"="+test.value, func(t *testing.T) {
			key := Prefix + test.key
			c, err := Parse(entry(key, quoted(test.value)))
			if err == nil {
				t.Fatalf("accepted: %+v", c)
			}
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("%v is a %T", err, err)
			}
			item := test.item
			if item == "=" {
				item = test.value
			}
			if e.Key != key || e.Value != item {
				t.Errorf("key %q, value %q, want %q, %q", e.Key, e.Value, key, item)
			}
			text := err.Error()
			shown := fmt.Sprintf("%q", item)
			if len(shown) > maxShown {
				shown = shown[:maxShown]
			}
			if !strings.HasPrefix(text, key+": "+shown) || !strings.Contains(text, test.right) || strings.Contains(text, "\n") {
				t.Errorf("message %q\nwant it to begin %q and to contain %q", text, key+": "+shown, test.right)
			}
		})
	}
}

func TestParseWrongTypes(t *testing.T) {
	for value, want := range map[string]string{
		`true`:       `untracked.cni/required: true: a boolean, but annotation values are strings; want "true", in quotes`,
		`7`:          `untracked.cni/required: 7: a number, but annotation values are strings; want "7", in quotes`,
		`null`:       `untracked.cni/required: null: null, but annotation values are strings; want a string, or the key left out`,
		`{"a" : 1}`:  `untracked.cni/required: {"a" : 1}: an object, but annotation values are strings; want a string`,
		`["tcp/80"]`: `untracked.cni/required: ["tcp/80"]: an array, but annotation values are strings; want a string`,
	} {
		if _, err := Parse(entry("untracked.cni/required", value)); err == nil || err.Error() != want {
			t.Errorf("%s: %v, want %s", value, err, want)
		}
	}
}

func TestParseUnknownKeys(t *testing.T) {
	for key, want := range map[string]string{
		"untracked.cni/port":         "did you mean untracked.cni/ports?",
		"untracked.cni/prots":        "did you mean untracked.cni/ports?",
		"untracked.cni/Ports":        "did you mean untracked.cni/ports?",
		"untracked.cni/remote_ports": "did you mean untracked.cni/remote-ports?",
		"untracked.cni/interface":    "did you mean untracked.cni/interfaces?",
		"untracked.cni/loglevel":     "did you mean untracked.cni/log-level?",
		"untracked.cni/source":       "did you mean untracked.cni/sources?",
		"untracked.cni/policies":     "did you mean untracked.cni/policy?",
		"untracked.cni/":             "want untracked.cni/ and one of auto-return, bpffs,",
		"untracked.cni/anything":     "want untracked.cni/ and one of auto-return, bpffs,",
		"Untracked.cni/ports":        "our keys begin with untracked.cni/ in lower case",
		" untracked.cni/ports":       "our keys begin with untracked.cni/",
	} {
		_, err := Parse(entry(key, `"tcp/80"`))
		if err == nil || !strings.HasPrefix(err.Error(), key+`: "tcp/80": unknown key; `) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", key, err, want)
		}
	}
}

func TestParseBadEntries(t *testing.T) {
	for entry, want := range map[string]string{
		``:                             `line 1, column 1: not valid JSON`,
		`{"annotations":{},}`:          `line 1, column 19: not valid JSON: invalid character '}'`,
		"{\n\t\"a\": 1\n\t\"b\": 2\n}": `line 3, column 2: not valid JSON`,
		`{"a":1`:                       `line 1, column 6: not valid JSON: unexpected end`,
		`{} {}`:                        `line 1, column 4: not valid JSON`,
		`[]`:                           `the plugin's entry is an array; want an object`,
		`null`:                         `the plugin's entry is null; want an object`,
		`"x"`:                          `the plugin's entry is a string`,
		`12`:                           `the plugin's entry is a number`,
		`{"annotations":[]}`:           `annotations: []: an array; want an object of strings`,
		`{"annotations":null}`:         `annotations: null: null; want an object of strings`,
		`{"annotations":"a=b"}`:        `annotations: "a=b": a string; want an object of strings`,
		`{"annotations":{"untracked.io/ports":"tcp/1"}}`: `untracked.io/ports: "tcp/1": unknown key; did you mean untracked.cni/ports?`,
		`{"annotations":{"deny":"10.0.0.1"}}`:            `deny: "10.0.0.1": unknown key; did you mean untracked.cni/deny?`,
		`{"Annotations":{}}`:                             `Annotations: unknown key; did you mean "annotations"?`,
		`{"name":7}`:                                     `name: 7: a number; want a string`,
		`{"cniVersion":1.1}`:                             `cniVersion: 1.1: a number; want a string`,
		`{"resources":{"kind":"Tier"}}`:                  `resources: {"kind":"Tier"}: an object; want an array of resources`,
		`{"resources":[{},"x"]}`:                         `resources[1]: "x": a string; want a resource, an object`,
		`{"untracked.cni/ports":"tcp/80"}`:               `untracked.cni/ports: "tcp/80": not a key of the entry itself; want it inside "annotations"`,
		`{"annotations":{},"annotations":1}`:             `annotations: 1: the key is there twice; want it once`,
		`{"annotations":{"untracked.cni/ports":"tcp/1","untracked.cni/ports":"tcp/2"}}`:      `untracked.cni/ports: "tcp/2": the key is there twice`,
		`{"annotations":{"untracked.cni/ports":"tcp/1","untracked.cni/p\u006frts":"tcp/2"}}`: `untracked.cni/ports: "tcp/2": the key is there twice`,
		`{"annotations":{"other":"1","other":"2"}}`:                                          `other: "2": the key is there twice`,
		`{"annotations":{"untracked.cni/sources":"10.0.0.0/8"}}`:                             `untracked.cni/sources: "10.0.0.0/8": does nothing without untracked.cni/ports; want both or neither`,
		`{"annotations":{"untracked.cni/destinations":"10.0.0.0/8"}}`:                        `untracked.cni/destinations: "10.0.0.0/8": does nothing without untracked.cni/remote-ports`,
	} {
		c, err := Parse([]byte(entry))
		if err == nil || c != nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("Parse(%s) = %v, %v, want %s", entry, c, err, want)
		}
	}
}

func TestParseResources(t *testing.T) {
	c, err := Parse([]byte(`{"resources": [ {"kind":"Tier"}, {"a":1} ], "annotations": {
		"untracked.cni/policy": "kind: Tier\n", "untracked.cni/policy-files": "/etc/x.yaml, /etc/policies/,/etc/y*/*.yaml"}}`))
	if err != nil {
		t.Fatal(err)
	}
	want := []Inline{
		{[]byte(`{"kind":"Tier"}`), resource.Position{File: "resources[0]"}},
		{[]byte(`{"a":1}`), resource.Position{File: "resources[1]"}},
		{[]byte("kind: Tier\n"), resource.Position{File: "untracked.cni/policy"}},
	}
	if diff := cmp.Diff(want, c.Inline); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	if diff := cmp.Diff([]string{"/etc/x.yaml", "/etc/policies", "/etc/y*/*.yaml"}, c.PolicyFiles); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	if want := `[ {"kind":"Tier"}, {"a":1} ]`; string(c.Resources) != want {
		t.Errorf("resources %s, want %s", c.Resources, want)
	}

	c, err = ParseConflist([]byte("{\"type\": \"untracked\",\n \"resources\": [\n  {\"kind\": \"Tier\"}]}"), "net.conf")
	if err != nil {
		t.Fatal(err)
	}
	if want := (resource.Position{File: "net.conf", Line: 3, Column: 3}); c.Inline[0].At != want {
		t.Errorf("at %v, want %v", c.Inline[0].At, want)
	}
}

func TestParseReportsAll(t *testing.T) {
	_, err := Parse([]byte(`{"resources":{},"annotations":{
		"untracked.cni/sources":"10.0.0.0/8", "untracked.cni/ports":"80", "untracked.cni/mark":"3",
		"untracked.cni/typo-of-nothing":"", "untracked.cni/deny":7}}`))
	want := []string{"resources: ", "untracked.cni/deny: 7: ", `untracked.cni/mark: "3": `, `untracked.cni/ports: "80": `, `untracked.cni/typo-of-nothing: "": `}
	lines := strings.Split(err.Error(), "\n")
	if len(lines) != len(want) {
		t.Fatalf("%d problems, want %d:\n%v", len(lines), len(want), err)
	}
	for i := range want {
		if !strings.HasPrefix(lines[i], want[i]) {
			t.Errorf("line %d is %q, want it to begin %q", i, lines[i], want[i])
		}
	}
}

func TestParseShowsLittleOfALongValue(t *testing.T) {
	_, err := Parse(entry("untracked.cni/mode", quoted(strings.Repeat("ä", 5000))))
	if err == nil || len(err.Error()) > 300 || !strings.Contains(err.Error(), `ä"…: not a value of this key`) {
		t.Errorf("%v", err)
	}
	var e *Error
	if !errors.As(err, &e) || len(e.Value) != 10000 {
		t.Error("the error does not carry the whole value")
	}
}

func TestParseKeepsNothingOfItsInput(t *testing.T) {
	in := []byte(`{"prevResult":{"a":1}}`)
	c, err := Parse(in)
	if err != nil {
		t.Fatal(err)
	}
	clear(in)
	if string(c.PrevResult) != `{"a":1}` {
		t.Errorf("prevResult became %q", c.PrevResult)
	}
}

// A host without a name is no mistake in the entry: its pods start.
func TestParseHostname(t *testing.T) {
	defer func(was func() (string, error)) { hostname = was }(hostname)
	for _, test := range []struct {
		name string
		err  error
		want string
	}{
		{"", nil, ""},
		{"(none)", nil, ""},
		{"", errors.New("no such thing"), ""},
		{" Node-1.Example\n", nil, "node-1.example"},
	} {
		hostname = func() (string, error) { return test.name, test.err }
		if c, err := Parse([]byte(`{}`)); err != nil || c.Node != test.want {
			t.Errorf("host name %q (%v): node %q (%v), want %q", test.name, test.err, c.Node, err, test.want)
		}
		if c, err := Parse(entry("untracked.cni/node", `"n1"`)); err != nil || c.Node != "n1" {
			t.Errorf("host name %q is not needed: node %q (%v)", test.name, c.Node, err)
		}
	}
}

func TestOptions(t *testing.T) {
	fallback := Locations{BPFFS: "/sys/fs/bpf", RunDir: "/run/untracked", LogLevel: slog.LevelInfo}
	for entry, want := range map[string]Locations{
		``:                                fallback,
		`{`:                               fallback,
		`[]`:                              fallback,
		`{}`:                              fallback,
		`{"annotations":7}`:               fallback,
		`{"annotations":{"a":{"b":[1]}}}`: fallback,
		`{"annotations":{"untracked.cni/required":true,"untracked.cni/bpffs":"rel","untracked.cni/log-level":"loud","untracked.cni/run-dir":7}}`: fallback,
		`{"annotations":{"untracked.cni/nonsense":"","untracked.cni/ports":"x","untracked.cni/required":"true","untracked.cni/bpffs":"/b/",
			"untracked.cni/run-dir":"/r","untracked.cni/log-file":"/l","untracked.cni/log-level":"error"}}`: {
			Required: true, BPFFS: "/b", RunDir: "/r", LogFile: "/l", LogLevel: slog.LevelError,
		},
	} {
		if got := Options([]byte(entry)); got != want {
			t.Errorf("Options(%s) = %+v, want %+v", entry, got, want)
		}
	}
}

// FuzzParse: never a panic, the same answer twice, and errors that are made of *Error alone.
func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"name":"n","cniVersion":"1.0.0","prevResult":{},"annotations":{"untracked.cni/ports":"tcp/80","untracked.cni/sources":"::/0"}}`))
	f.Add([]byte(`{"annotations":{"untracked.cni/mark":1e3, "untracked.cni/labels":"a=b", "x":[{"\"}":"]"}], "untracked.cni/x":""}}`))
	f.Add([]byte(`{"cniVersions":["1.0.0"],"name":"n","plugins":[{"type":"bridge"},{"type":"untracked","annotations":{}}]}`))
	f.Add([]byte(` { "a" : -1.5e-3 , "b":"\\\"" ,"c":[ ] , "resources":null}`))
	for key := range setters {
		f.Add(entry(Prefix+key, `"x, 10.0.0.0/8,tcp/1-2"`))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		Options(data)
		for _, parse := range []func() (*Config, error){
			func() (*Config, error) { return Parse(data) },
			func() (*Config, error) { return ParseConflist(data, "file") },
		} {
			c, err := parse()
			again, errAgain := parse()
			if !reflect.DeepEqual(c, again) || fmt.Sprint(err) != fmt.Sprint(errAgain) {
				t.Fatalf("two answers: %+v, %v and %+v, %v", c, err, again, errAgain)
			}
			if (c == nil) == (err == nil) {
				t.Fatalf("%+v with %v", c, err)
			}
			if err != nil {
				checkTree(t, err)
			}
		}
		var fields map[string]any
		if _, err := Parse(data); err == nil && json.Unmarshal(data, &fields) != nil {
			t.Fatal("accepted what is no JSON object")
		}
	})
}

func checkTree(t *testing.T, err error) {
	if e, ok := err.(*Error); ok {
		if e == nil || e.Problem == "" {
			t.Fatalf("an error that says nothing: %#v", e)
		}
		return
	}
	many, ok := err.(interface{ Unwrap() []error })
	if !ok {
		t.Fatalf("%v is a %T", err, err)
	}
	for _, e := range many.Unwrap() {
		checkTree(t, e)
	}
}
