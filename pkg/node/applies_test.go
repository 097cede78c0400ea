// SPDX-License-Identifier: Apache-2.0

package node

import (
	"go/ast"
	"go/parser"
	"go/token"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Each caller counts on from what the others counted, and one that corrects itself counts once.
func TestAppliesCountOn(t *testing.T) {
	n := &Node{RunDir: t.TempDir(), Log: slog.New(slog.DiscardHandler)}
	if a, err := readApplies(n.RunDir); a != (Applies{}) || err != nil {
		t.Fatalf("before any: %+v, %v", a, err)
	}
	n.begin().ended(false)
	first, err := readApplies(n.RunDir)
	if err != nil || first.Total != 1 || first.Failures != 0 || first.LastFailed || first.LastSuccess != first.Last || time.Since(first.Last) > time.Minute {
		t.Fatalf("after a success: %+v, %v", first, err)
	}
	failing := n.begin()
	failing.ended(false)
	failing.ended(true)
	second, err := readApplies(n.RunDir)
	if err != nil || second.Total != 2 || second.Failures != 1 || !second.LastFailed || second.LastSuccess != first.LastSuccess || !second.Last.After(first.Last) {
		t.Fatalf("after a failure behind it: %+v, %v", second, err)
	}
	if got, want := second.Seconds, first.LastSeconds+second.LastSeconds; got != want || second.LastSeconds <= 0 {
		t.Errorf("%v s in all, want %v", got, want)
	}
	if err := os.WriteFile(filepath.Join(n.RunDir, appliesFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readApplies(n.RunDir); err == nil || !strings.Contains(err.Error(), appliesFile) {
		t.Errorf("a broken file: error %v", err)
	}
	n.begin().ended(false)
	if a, err := readApplies(n.RunDir); err != nil || a.Total != 1 {
		t.Errorf("after a broken file: %+v, %v; want a new beginning", a, err)
	}
}

// ProblemCodes has every constant that begins with Problem.
func TestProblemCodes(t *testing.T) {
	paths, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	var declared []string
	for _, path := range paths {
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(at ast.Node) bool {
			spec, ok := at.(*ast.ValueSpec)
			if !ok || !strings.HasPrefix(spec.Names[0].Name, "Problem") || len(spec.Values) != 1 {
				return true
			}
			if text, ok := spec.Values[0].(*ast.BasicLit); ok {
				code, _ := strconv.Unquote(text.Value)
				declared = append(declared, code)
			}
			return true
		})
	}
	listed := slices.Sorted(slices.Values(ProblemCodes))
	if slices.Sort(declared); len(declared) < 10 || !slices.Equal(declared, listed) {
		t.Errorf("constants %q, ProblemCodes %q", declared, listed)
	}
}
