// SPDX-License-Identifier: Apache-2.0

package resource

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"
	"unicode"

	"github.com/google/go-cmp/cmp"
)

// FuzzReader: never a panic, the same answer twice, a place for every error, and names where they are said to be.
func FuzzReader(f *testing.F) {
	kubectl, err := os.ReadFile("testdata/kubectl.yaml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(kubectl)
	f.Add([]byte(everything))
	f.Add([]byte(strings.ReplaceAll(everything, "\n", "\r\n")))
	f.Add([]byte(`[{"apiVersion":"projectcalico.org/v3","kind":"Tier","metadata":{"name":"a"},"spec":{"order":1}}]`))
	f.Add([]byte("apiVersion: &a v1\nkind: List\nitems: &i [*i, *a, {kind: Tier, apiVersion: projectcalico.org/v3, metadata: {name: \"x\\u0061\"}}]"))
	f.Add([]byte("\ufeff# \u2028\n{é: !foo &x |\n  a\u0085\r\n, ? b : *x}\n--- >-\n x\n"))
	f.Add([]byte("!0%00 x"))
	f.Add([]byte("{? \"a\\nb\" : x, \"a\\nb\": *y}"))
	f.Add([]byte("kind: " + strings.Repeat("L", 3000)))
	f.Add([]byte("? - - - -\n: {<<: [[[["))
	f.Fuzz(func(t *testing.T, data []byte) {
		set, err := read(string(data))
		again, errAgain := read(string(data))
		if fmt.Sprint(err) != fmt.Sprint(errAgain) || err == nil && !cmp.Equal(set, again, bySelectorText) {
			t.Fatalf("two answers: %v and %v", err, errAgain)
		}
		if (set == nil) == (err == nil) {
			t.Fatalf("%v with %v", set, err)
		}
		lines := bytes.Split(bytes.TrimPrefix(data, []byte("\ufeff")), []byte("\n"))
		inside := func(p Position) []byte {
			if p.File != "f" || p.Line < 1 || p.Line > len(lines) || p.Column < 1 || p.Column > len(lines[p.Line-1])+1 {
				t.Fatalf("no such place: %s", p)
			}
			return lines[p.Line-1][p.Column-1:]
		}
		for _, e := range Errors(err) {
			inside(e.Position)
			if e.Problem == "" || strings.ContainsFunc(e.Error(), unicode.IsControl) || len(e.Error()) > 2000 {
				t.Fatalf("an error that says nothing, or on several lines, or a long one: %#v", e)
			}
		}
		if len(Errors(err)) > maxErrors+1 {
			t.Fatalf("%d errors", len(Errors(err)))
		}
		if err == nil {
			for _, p := range set.Policies {
				// As it is, or in quotes, a block, with an anchor or a tag.
				if text := inside(p.At); !bytes.HasPrefix(text, []byte(p.Name)) && !bytes.ContainsAny(text[:1], "\"'|>&!") {
					t.Fatalf("%s is not at %s", p.Name, p.At)
				}
			}
		}
	})
}
