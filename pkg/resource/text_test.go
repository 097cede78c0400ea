// SPDX-License-Identifier: Apache-2.0

package resource

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/untracked-cni/untracked/pkg/resource/resourcetest"
)

// Whatever was asked for before, a place has one offset.
func TestOffset(t *testing.T) {
	data := []byte("é: [ü, \u2028x]\r\n€uro: 1\n\n" + strings.Repeat("aé€", 50) + "\n")
	type place struct{ line, column int }
	want := map[place]int{}
	var places []place
	for line := range 8 {
		for column := range 160 {
			p := place{line, column}
			places = append(places, p)
			want[p] = newText(data, nil, Position{}).offset(line, column)
		}
	}
	for p, offset := range map[place]int{{0, 0}: 0, {1, 1}: 0, {1, 2}: 2, {2, 2}: 13, {5, 2}: 28, {5, 4}: 33, {9, 1}: len(data)} {
		if got := newText(data, nil, Position{}).offset(p.line, p.column); got != offset {
			t.Errorf("%d:%d is at %d, want %d", p.line, p.column, got, offset)
		}
	}
	text := newText(data, nil, Position{})
	r := rand.New(rand.NewPCG(1, 2))
	for range 20 {
		for _, i := range r.Perm(len(places)) {
			if p := places[i]; text.offset(p.line, p.column) != want[p] {
				t.Fatalf("%d:%d is at %d, alone at %d", p.line, p.column, text.offset(p.line, p.column), want[p])
			}
		}
	}
}

// A text without line breaks is read in a time that grows with its length, and so is one that is wrong from end to end.
func TestOneLine(t *testing.T) {
	list := func(n int, before, element, after string) string {
		return before + strings.Join(slices.Repeat([]string{element}, n), ",") + after
	}
	const (
		rule  = `{"action":"Allow","protocol":"TCP","source":{"namespaceSelector":"global()","ports":[80]},"destination":{"selector":"has(a)","ports":[443]}}`
		frame = `"apiVersion":"projectcalico.org/v3","metadata":{"name":"one"}`
	)
	for _, c := range []struct {
		name string
		n    int
		text func(n int) string
		ok   bool
	}{
		{"rules", 200, func(n int) string {
			return list(n, `{`+frame+`,"kind":"GlobalNetworkPolicy","spec":{"doNotTrack":true,"applyOnForward":true,"ingress":[`, rule, `]}}`)
		}, true},
		{"good addresses", 10_000, func(n int) string {
			return list(n, `{`+frame+`,"kind":"GlobalNetworkSet","spec":{"nets":[`, `"10.0.0.1"`, `]}}`)
		}, true},
		{"short sets", 500, func(n int) string {
			return list(n, `[`, `{`+frame+`,"kind":"GlobalNetworkSet","spec":{"nets":["10.0.0.1"]}}`, `]`) // all of one name
		}, false},
		{"interrupted", 50, func(n int) string {
			return list(n, `{`+frame+`,"kind":"GlobalNetworkSet","spec":{"nets":[`, strings.Repeat(`"10.0.0.1",`, 99)+`'10.0.0.1'`, `]}}`)
		}, true},
		{"bad addresses", 10_000, func(n int) string {
			return list(n, `{`+frame+`,"kind":"GlobalNetworkSet","spec":{"nets":[`, `"x"`, `]}}`)
		}, false},
		{"bad resources", 2000, func(n int) string { return list(n, `[`, `{"kind":"Tier","metadata":{"labels":[]}}`, `]`) }, false},
		{"bad labels", 5000, func(n int) string {
			var labels []string
			for i := range n {
				labels = append(labels, fmt.Sprintf(`"a%d":%d`, i, i))
			}
			return `{"apiVersion":"projectcalico.org/v3","kind":"Tier","metadata":{"name":"one","labels":{` + strings.Join(labels, ",") + `}}}`
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			resourcetest.Linear(t, c.n, func(n int) func() {
				text := c.text(n)
				return func() {
					if _, err := read(text); (err == nil) != c.ok {
						t.Fatal(err)
					}
				}
			})
		})
	}
}
