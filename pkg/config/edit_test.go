// SPDX-License-Identifier: Apache-2.0

package config

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const ourEntry = `{"type":"untracked","annotations":{"untracked.cni/ports":"tcp/6379"}}`

func TestEdit(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{
			"two spaces", `{
  "name": "n",
  "plugins": [
    {"type": "bridge", "mtu": 9007199254740993, "x": 1.50e+2}
  ],
  "unknown": {"b": 1, "a": 2}
}
`, `{
  "name": "n",
  "plugins": [
    {"type": "bridge", "mtu": 9007199254740993, "x": 1.50e+2},
    {
      "type": "untracked",
      "annotations": {
        "untracked.cni/ports": "tcp/6379"
      }
    }
  ],
  "unknown": {"b": 1, "a": 2}
}
`,
		},
		{
			"tabs", "{\n\t\"name\": \"n\",\n\t\"plugins\": [\n\t\t{\n\t\t\t\"type\": \"bridge\"\n\t\t}\n\t]\n}",
			"{\n\t\"name\": \"n\",\n\t\"plugins\": [\n\t\t{\n\t\t\t\"type\": \"bridge\"\n\t\t},\n\t\t{\n\t\t\t\"type\": \"untracked\",\n" +
				"\t\t\t\"annotations\": {\n\t\t\t\t\"untracked.cni/ports\": \"tcp/6379\"\n\t\t\t}\n\t\t}\n\t]\n}",
		},
		{
			"lines end in CRLF", "{\r\n \"name\": \"n\",\r\n \"plugins\": [\r\n  {\"type\": \"bridge\"}\r\n ]\r\n}\r\n",
			"{\r\n \"name\": \"n\",\r\n \"plugins\": [\r\n  {\"type\": \"bridge\"},\r\n  {\r\n   \"type\": \"untracked\",\r\n" +
				"   \"annotations\": {\r\n    \"untracked.cni/ports\": \"tcp/6379\"\r\n   }\r\n  }\r\n ]\r\n}\r\n",
		},
		{
			"one line", `{"name":"n","plugins":[{"type":"bridge"} ]}`,
			`{"name":"n","plugins":[{"type":"bridge"}, ` + ourEntry + ` ]}`,
		},
		{
			"brackets that hug", `{
    "name": "n",
    "plugins": [{
        "type": "bridge"
    }, {
        "type": "portmap"
    }]
}`, `{
    "name": "n",
    "plugins": [{
        "type": "bridge"
    }, {
        "type": "portmap"
    }, {
        "type": "untracked",
        "annotations": {
            "untracked.cni/ports": "tcp/6379"
        }
    }]
}`,
		},
		{
			"replaced where it stands", `{"name": "n", "plugins": [
  {"type": "bridge"},
  {"annotations": {}, "type": "untracked"},
  {"type": "portmap"}]}`, `{"name": "n", "plugins": [
  {"type": "bridge"},
  {
    "type": "untracked",
    "annotations": {
      "untracked.cni/ports": "tcp/6379"
    }
  },
  {"type": "portmap"}]}`,
		},
		{
			"in force, written otherwise", `{"name":"n","plugins":[{"type":"bridge"},{"annotations": {"untracked.cni\/ports": "tcp\u002f6379"}, "type": "untracked"}]}`,
			`{"name":"n","plugins":[{"type":"bridge"},{"annotations": {"untracked.cni\/ports": "tcp\u002f6379"}, "type": "untracked"}]}`,
		},
		{
			"first, where it cannot be", `{"name":"n","plugins":[` + ourEntry + `, {"type":"bridge"}]}`,
			`{"name":"n","plugins":[{"type":"bridge"}, ` + ourEntry + `]}`,
		},
		{
			"several", `{"name":"n","plugins":[{"type":"bridge"},{"type":"untracked"},{"type":"portmap"},{"type":"untracked"}]}`,
			`{"name":"n","plugins":[{"type":"bridge"},{"type":"portmap"}, ` + ourEntry + `]}`,
		},
		{
			"several in front", "{\"name\":\"n\",\"plugins\":[{\"type\":\"untracked\"},\n  {\"type\":\"untracked\"}, {\"type\":\"bridge\"}]}",
			`{"name":"n","plugins":[{"type":"bridge"}, ` + ourEntry + `]}`,
		},
		{
			"keys that need decoding", `{"name":"n","pl\u0075gins":[{"typ\u0065":"bridge","s":"]},\"{["}]}`,
			`{"name":"n","pl\u0075gins":[{"typ\u0065":"bridge","s":"]},\"{["}, ` + ourEntry + `]}`,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			l, err := ReadList([]byte(c.in), "x")
			if err != nil {
				t.Fatal(err)
			}
			got, err := l.With(json.RawMessage(ourEntry))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, string(got)); diff != "" {
				t.Errorf("With (-want +got):\n%s", diff)
			}
			with, err := ReadList(got, "x")
			if err != nil {
				t.Fatal(err)
			}
			if again, err := with.With(json.RawMessage(ourEntry)); err != nil || !bytes.Equal(again, got) {
				t.Errorf("With again: %v, %s", err, again)
			}
			if l.ours() == 0 && string(with.Without()) != c.in {
				t.Errorf("Without: %s", with.Without())
			}
		})
	}
}

func TestReadListErrors(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"empty", "", "not valid JSON"},
		{"cut off", `{"name": "n", "plugins": [{"type": "brid`, "x:1:"},
		{"comment", "{\n// ours\n\"name\": \"n\"}", "x:2:1: not valid JSON"},
		{"comma too many", `{"name": "n", "plugins": [{"type": "a"},]}`, "not valid JSON"},
		{"byte order mark", "\ufeff" + `{"name": "n", "plugins": [{"type": "a"}]}`, "not valid JSON"},
		{"two texts", `{"name": "n", "plugins": [{"type": "a"}]}{}`, "not valid JSON"},
		{"no list", `{"name": "n", "type": "bridge"}`, "want a conf list"},
		{"no name", `{"plugins": [{"type": "a"}]}`, "want the network's name"},
		{"no plugin", `{"name": "n", "plugins": []}`, "no main plugin"},
		{"only ours", `{"name": "n", "plugins": [{"type": "untracked"}]}`, "no main plugin"},
		{"no type", `{"name": "n", "plugins": [{"type": "a"}, {}]}`, "entry 2 has no type"},
		{"no object", `{"name": "n", "plugins": [7]}`, "entry 1 has no type"},
		{"no array", `{"name": "n", "plugins": {}}`, "want an array"},
		{"plugins twice", `{"name": "n", "plugins": [{"type": "a"}], "plugins": [{"type": "b"}]}`, "there twice"},
	} {
		_, err := ReadList([]byte(c.in), "x")
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

func TestToList(t *testing.T) {
	list, err := ToList([]byte("{\n \"cniVersion\": \"0.3.1\", \"name\": \"n\",\n \"type\": \"bridge\", \"mtu\": 9007199254740993\n}\n"), "x")
	if err != nil {
		t.Fatal(err)
	}
	const want = `{
  "cniVersion": "0.3.1",
  "name": "n",
  "plugins": [
    {
      "cniVersion": "0.3.1",
      "name": "n",
      "type": "bridge",
      "mtu": 9007199254740993
    }
  ]
}
`
	if diff := cmp.Diff(want, string(list)); diff != "" {
		t.Errorf("ToList (-want +got):\n%s", diff)
	}
	if l, err := ReadList(list, "x"); err != nil || l.Network != "n" || l.CNIVersion != "0.3.1" || !cmp.Equal(l.Plugins, []string{"bridge"}) {
		t.Errorf("ReadList: %+v, %v", l, err)
	}
	for _, bad := range []string{`[]`, `{"plugins": []}`, `{"name": "n"}`, `{`} {
		if list, err := ToList([]byte(bad), "x"); err == nil {
			t.Errorf("ToList(%s): %s", bad, list)
		}
	}
}

// Whatever the text is: what With adds, Without takes away, and nothing else changes.
func FuzzEdit(f *testing.F) {
	for _, in := range []string{
		`{"name":"n","plugins":[{"type":"bridge","a":[1,{"b":"]"}]}],"z":1e400}`,
		"{\r\n\t\"name\":\"n\",\r\n\t\"plugins\":\r\n\t[\r\n\t\t{\"type\":\"a\"}\r\n,\t\t{\"type\":\"untracked\"}]}",
		`{"plugins":[{"type":"untracked"},{"type":"a"},{"type":"untracked"},{"type":"b"}],"name":"\ud800"}`,
		`{"name":"n","plugins":[{"type":"untracked"},  {"type":"untracked"},{"type":"untracked"}, {"type":"a"}]}`,
	} {
		f.Add([]byte(in))
	}
	entry := json.RawMessage(ourEntry)
	f.Fuzz(func(t *testing.T, in []byte) {
		l, err := ReadList(in, "x")
		if err != nil {
			return
		}
		out, err := l.With(entry)
		if err != nil {
			t.Fatal(err)
		}
		with, err := ReadList(out, "x")
		if err != nil {
			t.Fatalf("%v: %q", err, out)
		}
		if !with.Has(entry) {
			t.Fatalf("the entry is not there: %q", out)
		}
		without, err := ReadList(l.Without(), "x")
		if err != nil {
			t.Fatalf("%v: %q", err, l.Without())
		}
		if without.ours() != 0 {
			t.Fatalf("an entry is left: %q", l.Without())
		}
		if l.ours() == 0 {
			at := len(in) - len(bytes.TrimPrefix(in, commonPrefix(in, out)))
			if !bytes.HasSuffix(out, in[at:]) {
				t.Fatalf("more was changed than added: %q", out)
			}
			if !bytes.Equal(with.Without(), in) {
				t.Fatalf("Without left %q", with.Without())
			}
		}
		if before, after := others(t, in), others(t, out); !reflect.DeepEqual(before, after) {
			t.Fatalf("the rest of the list changed: %v\n%v", before, after)
		}
	})
}

func commonPrefix(a, b []byte) []byte {
	n := 0
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return a[:n]
}

// others is a list without our entries, as a runtime would decode it but for numbers, which stay as they are written.
func others(t *testing.T, data []byte) map[string]any {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	var list map[string]any
	if err := d.Decode(&list); err != nil {
		t.Fatal(err)
	}
	var plugins []any
	for _, p := range list["plugins"].([]any) {
		if p.(map[string]any)["type"] != PluginType {
			plugins = append(plugins, p)
		}
	}
	list["plugins"] = plugins
	return list
}
