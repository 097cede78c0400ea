// SPDX-License-Identifier: Apache-2.0

package config

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/google/go-cmp/cmp"
)

func TestParseConflist(t *testing.T) {
	const ours = `{"type":"untracked","annotations":{"untracked.cni/mode":"tc"}}`
	for _, test := range []struct{ file, name, version string }{
		{`{"name":"n","cniVersion":"1.0.0","plugins":[{"type":"bridge"},` + ours + `]}`, "n", "1.0.0"},
		{`{"name":"n","plugins":[{"type":"bridge"},` + ours + `]}`, "n", ""},
		{`{"cniVersions":["0.4.0","1.1.0","1.0.0"],"name":"n","cniVersion":"1.0.0","plugins":[{"type":"bridge"},` + ours + `]}`, "n", "1.1.0"},
		{`{"cniVersions":["0.4.0","9.0.0"],"name":"n","cniVersion":"1.0.0","plugins":[{"type":"bridge"},` + ours + `]}`, "n", "1.0.0"},
		{`{"cniVersions":["9.0.0"],"name":"n","cniVersion":"8.0.0","plugins":[{"type":"bridge"},` + ours + `]}`, "n", "8.0.0"},
		{`{"cniVersions":["0.10.0","0.9.0"],"name":"n","plugins":[{"type":"bridge"},` + ours + `]}`, "n", "0.10.0"},
		{`{"cniVersions":[],"name":"n","cniVersion":"1.0.0","plugins":[{"type":"bridge"},` + ours + `]}`, "n", "1.0.0"},
		{`{"name":"n","cniVersion":"1.0.0","annotations":{"other/ports":"x"},"plugins":[{"type":"bridge"},
			{"type":"untracked","name":7,"cniVersion":"0.1.0","annotations":{"untracked.cni/mode":"tc"}}]}`, "n", "1.0.0"},
		{`{"type":"untracked","name":"single","cniVersion":"0.4.0","annotations":{"untracked.cni/mode":"tc"}}`, "single", "0.4.0"},
		{ours, "", ""},
	} {
		c, err := ParseConflist([]byte(test.file), "f")
		if err != nil {
			t.Errorf("%s: %v", test.file, err)
			continue
		}
		if c.Network != test.name || c.CNIVersion != test.version || c.Mode != ModeTC {
			t.Errorf("%s: network %q, version %q, mode %s, want %q, %q, tc", test.file, c.Network, c.CNIVersion, c.Mode, test.name, test.version)
		}
		checkAgainstLibcni(t, test.file, c)
	}
}

// checkAgainstLibcni holds the answer to that of Parse on what a runtime would send.
func checkAgainstLibcni(t *testing.T, file string, got *Config) {
	t.Helper()
	list, err := libcni.NetworkConfFromBytes([]byte(file))
	if err != nil || len(list.Plugins) == 0 {
		return // an entry on its own
	}
	for _, plugin := range list.Plugins {
		if plugin.Network.Type != PluginType {
			continue
		}
		var fields map[string]any
		if err := json.Unmarshal(plugin.Bytes, &fields); err != nil {
			t.Fatal(err)
		}
		fields["name"], fields["cniVersion"] = list.Name, list.CNIVersion // libcni/api.go buildOneConfig
		stdin, err := json.Marshal(fields)
		if err != nil {
			t.Fatal(err)
		}
		want, err := Parse(stdin)
		if diff := cmp.Diff(want, got, opts); err != nil || diff != "" {
			t.Errorf("%s: %v (-from stdin +from file):\n%s", file, err, diff)
		}
	}
}

func TestParseConflistErrors(t *testing.T) {
	for file, want := range map[string]string{
		"{\n  \"name\": \"n\"\n  \"plugins\": []\n}": `f.conflist:3:3: not valid JSON: invalid character '"'`,
		`[]`:                            `f.conflist:1:1: the file holds an array; want a conf list or a plugin's entry`,
		`{"name":"n"}`:                  `f.conflist:1:1: type: neither a conf list nor an entry of this plugin; want "plugins", or "type": "untracked"`,
		`{"type":"bridge"}`:             `f.conflist:1:1: type: neither a conf list`,
		`{"name":"n","plugins":[]}`:     `f.conflist:1:23: plugins: no entry of type "untracked"; want one, after the main plugin's`,
		`{"name":"n","plugins":[1,{}]}`: `f.conflist:1:23: plugins: no entry of type "untracked"`,
		`{"name":"n","plugins":{}}`:     `f.conflist:1:23: plugins: an object; want an array`,
		"{\"name\":\"n\",\"plugins\":[\n{\"type\":\"untracked\"},\n{\"type\":\"bridge\"},\n {\"type\":\"untracked\"}]}":  `f.conflist:4:2: plugins: several entries of type "untracked": 1 (line 2), 3 (line 4); want one`,
		`{"plugins":[{"type":"bridge"},{"type":"untracked"}]}`:                                                           `f.conflist:1:1: name: not there; want the network's name`,
		`{"name":"","plugins":[{"type":"bridge"},{"type":"untracked"}]}`:                                                 `f.conflist:1:9: name: "": empty; want the network's name`,
		`{"name":3,"plugins":[{"type":"bridge"},{"type":"untracked"}]}`:                                                  `f.conflist:1:9: name: 3: a number; want a string`,
		`{"name":"n","cniVersion":1,"plugins":[{"type":"bridge"},{"type":"untracked"}]}`:                                 `f.conflist:1:26: cniVersion: 1: a number; want a string such as "1.0.0"`,
		`{"name":"n","cniVersion":"one","plugins":[{"type":"bridge"},{"type":"untracked"}]}`:                             `f.conflist:1:26: cniVersion: "one": not a version; want one such as 1.0.0`,
		`{"name":"n","cniVersions":"1.0.0","plugins":[{"type":"bridge"},{"type":"untracked"}]}`:                          `f.conflist:1:27: cniVersions: "1.0.0": a string; want an array of strings`,
		`{"name":"n","cniVersions":["1.0.0",7],"plugins":[{"type":"bridge"},{"type":"untracked"}]}`:                      `f.conflist:1:36: cniVersions: 7: a number; want`,
		`{"name":"n","plugins":[],"plugins":[{"type":"bridge"},{"type":"untracked"}]}`:                                   `f.conflist:1:26: plugins: [{"type":"bridge"},{"type":"untracked"}]: the key is there twice; want it once`,
		`{"name":"n","plugins":[{"type":"untracked"}]}`:                                                                  `f.conflist:1:24: plugins: the entry of type "untracked" is the first; want it after the main plugin's`,
		`{"name":"n","annotations":{"untracked.cni/ports":"tcp/80"},"plugins":[{"type":"bridge"},{"type":"untracked"}]}`: `f.conflist:1:28: untracked.cni/ports: "tcp/80": in the list's annotations, which a runtime drops; want it in`,
		"{\"name\":\"n\",\"plugins\":[{\"type\":\"bridge\"},{\"type\":\"untracked\",\n\"annotations\":{\n\t\"untracked.cni/ports\":\t\"tcp/99999\",\n\t\"untracked.cni/prots\":\"\"}}]}": "f.conflist:3:25: untracked.cni/ports: \"tcp/99999\": port \"99999\" is not a number from 1 to 65535; want protocol/port or protocol/first-last, as in tcp/6379 or udp/7000-7100\n" +
			`f.conflist:4:2: untracked.cni/prots: "": unknown key; did you mean untracked.cni/ports?`,
	} {
		c, err := ParseConflist([]byte(file), "f.conflist")
		if err == nil || c != nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s:\n%v, want\n%s", file, err, want)
		}
	}
}

func TestParseConflistReportsListAndEntry(t *testing.T) {
	_, err := ParseConflist([]byte(`{"plugins":[{"type":"bridge"},{"type":"untracked","annotations":{"untracked.cni/mode":"x"}}]}`), "f")
	if err == nil || strings.Count(err.Error(), "\n") != 1 || !strings.HasPrefix(err.Error(), "f:1:1: name: ") || !strings.Contains(err.Error(), "untracked.cni/mode") {
		t.Errorf("%v, want the list's problem and then the entry's", err)
	}
}
