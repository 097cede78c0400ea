// SPDX-License-Identifier: Apache-2.0

package resource

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/untracked-cni/untracked/pkg/resource/resourcetest"
)

// tiny runs are shortened, too, in tests.
const tiny = 3

// differ compares what is read of a shortened text with what the library reads of the whole, places included. It
// reports whether there is a shortened text.
func differ(t *testing.T, data []byte, at Position) (shortened bool) {
	t.Helper()
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	var short, whole Reader
	if !short.addShortened(data, tiny, at) {
		return false
	}
	whole.addWhole(data, at)
	got, _ := short.Result()
	want, err := whole.Result()
	if err != nil {
		t.Fatalf("without runs there is nothing wrong with\n%s\n%v", data, err)
	}
	if diff := cmp.Diff(want, got, bySelectorText); diff != "" {
		t.Fatalf("%q: -whole +without runs\n%s", data, diff)
	}
	if got, want := entriesOf(got), entriesOf(want); got != want {
		t.Fatalf("%q: %s entries without runs, %s in the whole", data, got, want)
	}
	return true
}

// entriesOf is how many networks there are in each set, duplicates included.
func entriesOf(s *Set) string {
	var out []int
	for _, n := range s.NetworkSets {
		out = append(out, n.Nets.Entries())
	}
	return fmt.Sprint(out)
}

const setFrame = "apiVersion: projectcalico.org/v3\nkind: GlobalNetworkSet\nmetadata: {name: s}\nspec:\n"

func TestRuns(t *testing.T) {
	four := func(indent string) string {
		return indent + "- 10.0.0.1\n" + indent + "- 10.0.0.2\n" + indent + "- 10.0.0.3\n" + indent + "- 10.0.0.4\n"
	}
	json := func(nets string) string {
		return `{"apiVersion":"projectcalico.org/v3","kind":"GlobalNetworkSet","metadata":{"name":"s"},"spec":{"nets":` + nets + `}}`
	}
	// What stands behind a set must keep its place.
	const behind = "---\napiVersion: projectcalico.org/v3\nkind: Tier\nmetadata: {name: é, labels: {a: b}}\n"
	for _, c := range []struct {
		name      string
		text      string
		shortened bool
	}{
		{"indented", setFrame + "  nets:\n" + four("  "), true},
		{"indented more", setFrame + "  nets:\n" + four("     "), true},
		{"not indented", "spec:\n  nets:\n" + four("  ") + strings.TrimSuffix(setFrame, "spec:\n"), true},
		{"in a list", "- " + strings.ReplaceAll(setFrame, "\n", "\n  ") + "  nets:\n" + four("    ") + "- apiVersion: projectcalico.org/v3\n  kind: Tier\n  metadata: {name: t}\n", true},
		{"a tier behind", setFrame + "  nets:\n" + four("  ") + strings.ReplaceAll(behind, "é", "e"), true},
		{"a comment in each place", "# a\n" + setFrame + "  nets: # b\n # c\n  - 10.0.0.1 # d\n# e\n\n  - 10.0.0.2 #f\n    # g\n\n  - 10.0.0.3\t# h\n  - 10.0.0.4\n  - 10.0.0.5\n  - 10.0.0.6\n # i", true},
		{"quotes", setFrame + "  nets:\n  - '10.0.0.1'\n  - \"::1\"\n  - \"2001:db8::\"\n  - 10.0.0.0/8\n", true},
		{"spaces behind the dash", setFrame + "  nets:\n  -   10.0.0.1\n  -  '::1'  \n  - \"2001:db8::\"\n  - 10.0.0.0/8\n", true},
		{"both families, host bits, duplicates", setFrame + "  nets:\n  - 10.0.0.1/8\n  - 10.0.0.1/8\n  - 2001:db8::1/32\n  - 10.0.0.1\n", true},
		{"carriage returns", strings.ReplaceAll(setFrame+"  nets:\n"+four("  ")+"# x\n"+four("  "), "\n", "\r\n"), true},
		{"a byte order mark", "\ufeff" + setFrame + "  nets:\n" + four("  "), true},
		{"no newline at the end", strings.TrimSuffix(setFrame+"  nets:\n"+four("  "), "\n"), true},
		{"the last goes on", setFrame + "  nets:\n" + four("  ") + "    5\n", false},
		{"the last is a key", setFrame + "  nets:\n" + four("  ") + "  - 10.0.0.5: x\n", false},
		{"a bad address inside", setFrame + "  nets:\n" + four("  ") + "  - 10.0.0.256\n" + four("  "), false},
		{"no address but of its letters", setFrame + "  nets:\n" + four("  ") + "  - 12\n" + four("  "), false},
		{"an address that ends in a colon", setFrame + "  nets:\n" + four("  ") + "  - 2001:db8::\n" + four("  "), false},
		{"an IPv4 address in IPv6 form", setFrame + "  nets:\n" + four("  ") + "  - ::ffff:10.0.0.1\n" + four("  "), false},
		{"an unknown field behind", setFrame + "  nets:\n" + four("  ") + "  mets: x\n", false},
		{"bad YAML behind", setFrame + "  nets:\n" + four("  ") + "  }\n", false},
		{"two sets of one name", setFrame + "  nets:\n" + four("  ") + "---\n" + setFrame + "  nets:\n" + four("  "), false},
		{"inside a text", setFrame + "  nets:\n  - |\n    x\n" + four("    "), false},
		{"inside a folded text", "apiVersion: projectcalico.org/v3\nkind: Tier\nmetadata:\n  name: s\n  annotations:\n    a: >\n" + four("      "), false},
		{"inside a plain text", "apiVersion: projectcalico.org/v3\nkind: Tier\nmetadata:\n  name: s\n  annotations:\n    a: x\n" + four("      "), false},
		{"inside quotes", "apiVersion: projectcalico.org/v3\nkind: Tier\nmetadata:\n  name: s\n  annotations:\n    a: \"x\n" + four("      ") + "   \"\n", false},
		{"ignored", "apiVersion: projectcalico.org/v3\nkind: Tier\nmetadata:\n  name: s\n  finalizers:\n" + four("  "), false},
		{"another list", "apiVersion: projectcalico.org/v3\nkind: HostEndpoint\nmetadata: {name: s}\nspec:\n  node: n\n  expectedIPs:\n" + four("  "), false},
		{"an alias", "apiVersion: projectcalico.org/v3\nkind: List\nmetadata: {a: &m {name: s}}\nitems: []\n---\n" + strings.Replace(setFrame, "metadata: {name: s}", "metadata: &m {name: s, labels: &l {}, annotations: *l}", 1) + "  nets:\n" + four("  "), false},
		{"anchors and tags", setFrame + "  nets: !!seq &a\n" + four("  ") + "  - &b 10.0.0.1\n  - !!str 10.0.0.1\n" + four("  "), true},
		{"a tag for the first", setFrame + "  nets:\n  - !!str\n    10.0.0.1\n" + four("  "), true},

		{"JSON on one line", json(`["10.0.0.1","10.0.0.2","::1","10.0.0.4/30"]`), true},
		{"JSON on many lines", json("[\r\n\t\"10.0.0.1\" ,\r\n\t\"10.0.0.2\",\n\n\"::1\",\r\"10.0.0.4/30\"\n]"), true},
		{"JSON behind", `[` + json(`["10.0.0.1","10.0.0.2","::1","10.0.0.4/30"]`) + `,{"apiVersion":"projectcalico.org/v3","kind":"Tier","metadata":{"name":"t"}}]`, true},
		{"JSON behind on lines", "[" + json("[\n\"10.0.0.1\",\n\"10.0.0.2\",\n\"::1\",\n\"10.0.0.4/30\"]") + `,{"apiVersion":"projectcalico.org/v3","kind":"Tier","metadata":{"name":"t"}}]`, true},
		{"a comma at the end", json(`["10.0.0.1","10.0.0.2","::1","10.0.0.4/30",]`), true},
		{"two commas", json(`["10.0.0.1","10.0.0.2","::1",,"10.0.0.4/30","10.0.0.4/30"]`), false},
		{"an escape", json(`["10.0.0.1","10.0.0.2","::1","10.0.0.\u0034/30"]`), true},
		{"a key in a list", json(`["10.0.0.1","10.0.0.2","::1","10.0.0.4/30":"x"]`), false},
		{"a mapping", json(`{"10.0.0.1","10.0.0.2","::1","10.0.0.4/30"}`), false},
		{"lists in a list", json(`[["10.0.0.1","10.0.0.2","::1","10.0.0.4/30"]]`), false},
		{"JSON inside a text", "apiVersion: projectcalico.org/v3\nkind: Tier\nmetadata:\n  name: s\n  annotations:\n    a: |\n      " + json(`["10.0.0.1","10.0.0.2","::1","10.0.0.4/30"]`), false},
		{"a bad address in JSON", json(`["10.0.0.1","10.0.0.2","::g","10.0.0.4/33","10.0.0.4/30"]`), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, at := range []Position{{File: "f"}, {File: "f", Line: 7, Column: 9}} {
				if differ(t, []byte(c.text), at) != c.shortened {
					t.Errorf("shortened: %v, want %v", !c.shortened, c.shortened)
				}
			}
		})
	}
}

// Documents of all that there is around a run, put together at random, most of them wrong in one way or another.
func TestRunsAtRandom(t *testing.T) {
	const texts = 4000
	shortened := 0
	for seed := range uint64(texts) {
		if differ(t, []byte(randomSet(rand.New(rand.NewPCG(seed, 3)))), Position{File: "f"}) {
			shortened++
		}
	}
	if shortened < texts/5 {
		t.Errorf("%d of %d texts were shortened, want more", shortened, texts)
	}
}

func randomSet(r *rand.Rand) string {
	pick := func(words ...string) string { return words[r.IntN(len(words))] }
	rarely := func(words ...string) string {
		if r.IntN(40) > 0 {
			return ""
		}
		return pick(words...)
	}
	address := func() string {
		return pick("10.0.0.1", "10.0.0.0/8", "10.9.8.7/13", "192.0.2.255/32", "2001:db8::1", "fe80::/10", "0.0.0.0/0", "1:2:3:4:5:6:7:8", "a::b/64") +
			rarely("0", ":", "/", "x", ".", "é", " ", "'")
	}
	var b strings.Builder
	for n := 1 + r.IntN(2); n > 0; n-- {
		name := fmt.Sprint("s", n)
		behind := rarely("\nx: 1", "# x", "\n...\n", "]", "}", "\u2028", "\t", "\r", "\u0085")
		if r.IntN(3) == 0 {
			space := func() string { return pick("", "", " ", "\n", "\n  ", "\r\n", "\t") + rarely("# x\n", "\f", "\u2029") }
			fmt.Fprintf(&b, `{"apiVersion":"projectcalico.org/v3","kind":"GlobalNetworkSet","metadata":{"name":%q},"spec":{"nets":%s[`, name, rarely("!!seq ", "&a ", "*a ", "[", "|"))
			for i := range r.IntN(12) {
				if i > 0 {
					b.WriteString("," + rarely(",", "-", "["))
				}
				quote := `"`
				if r.IntN(30) == 0 {
					quote = pick("'", "", `"\`)
				}
				b.WriteString(space() + quote + address() + quote + space())
			}
			fmt.Fprintf(&b, `]%s}%s}%s`+"\n---\n", space(), space(), behind)
			continue
		}
		end := pick("\n", "\n", "\r\n")
		indent := pick("", " ", "  ", "    ")
		lines := []string{"apiVersion: projectcalico.org/v3", "kind: GlobalNetworkSet", "metadata: {name: " + name + "}", "spec:", "  nets:" + rarely(" # x", " |", " >-", " x", " &a", " !!seq", " !x", " \"", " [", " *a")}
		for range r.IntN(14) {
			switch r.IntN(8) {
			case 0:
				lines = append(lines, pick("", " ", "   ")+pick("", "# a comment", "#"+rarely("é", "\u2028", "\u0085", "\v", "\r", "\x7f")))
			default:
				quote := pick("", "", "", `"`, "'")
				lines = append(lines, "  "+indent+rarely(" ", "\t", "x", "-", "- ", "? ")+"-"+pick(" ", " ", " ", "  ")+rarely("\t", "&a ", "!!str ", "*a ", "- ", "? ", "|", "\n")+
					quote+address()+quote+pick("", "", "", " ", "  # é", " # x", "  #")+rarely("#", "\t", ":", ": ", " x", "\t#x", "\r", "\u0085"))
			}
		}
		if s := rarely("  foo: x", "foo: x", "    x", "  - x", "- 10.0.0.1", "...", "---", "status: {}", "  \"", "  ]", "%YAML 1.2"); s != "" {
			lines = append(lines, s)
		}
		b.WriteString(strings.Join(lines, end) + behind + pick(end, "") + pick("---"+end, end+"---"+end))
	}
	return b.String()
}

// FuzzRuns: whatever the text, nothing is read otherwise without its runs.
func FuzzRuns(f *testing.F) {
	f.Add([]byte(setFrame + "  nets:\n  - 10.0.0.1\n  # x\n  - '10.0.0.2'\n  - \"::1\"\n  - 10.0.0.3\n  labels: {}\n"))
	f.Add([]byte(`[{"apiVersion":"projectcalico.org/v3","kind":"GlobalNetworkSet","metadata":{"name":"s"},"spec":{"nets":["10.0.0.1","10.0.0.2", "::1","10.0.0.4/30"]}}]`))
	for seed := range uint64(50) {
		f.Add([]byte(randomSet(rand.New(rand.NewPCG(seed, 4)))))
	}
	f.Fuzz(func(t *testing.T, data []byte) { differ(t, data, Position{File: "f"}) })
}

// What is cut out at many places is found in a time that grows with the text.
func TestManyRuns(t *testing.T) {
	resourcetest.Linear(t, 100, func(n int) func() {
		var b strings.Builder
		b.WriteString(setFrame + "  nets:\n")
		for range n {
			b.WriteString(strings.Repeat("  - 10.0.0.1\n", shortest) + "  - &a 10.0.0.1\n")
		}
		text := b.String()
		if _, runs := withoutRuns([]byte(text), shortest); len(runs) != n {
			t.Fatalf("%d runs, want %d", len(runs), n)
		}
		return func() {
			if s, err := read(text); err != nil || s.NetworkSets[0].Nets.Entries() != n*(shortest+1) {
				t.Fatal(s, err)
			}
		}
	})
}
