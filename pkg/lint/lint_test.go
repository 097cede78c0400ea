// SPDX-License-Identifier: Apache-2.0

package lint

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// A line of an example says what is found on it: "# want COLUMN CODE: PART OF THE MESSAGE".
var want = regexp.MustCompile(`# want (\d+) ([a-z-]+)(?:: (.*))?$`)

// Examples that end in "-good" have nothing to be found, those that end in "-bad" what they say, all of it about what
// they are named after. What is in JSON, which has no comments, has its wants in a file beside it.
func TestExamples(t *testing.T) {
	t.Chdir("testdata")
	paths, err := filepath.Glob("*-*.*")
	if err != nil {
		t.Fatal(err)
	}
	tried := map[Code][2]bool{}
	for _, path := range paths {
		if filepath.Ext(path) == ".want" {
			continue
		}
		t.Run(path, func(t *testing.T) {
			wanted := wantsOf(t, path)
			name, bad := strings.CutSuffix(strings.TrimSuffix(path, filepath.Ext(path)), "-bad")
			if bad != (len(wanted) > 0) {
				t.Errorf("%d findings are wanted", len(wanted))
			}
			for _, f := range Files([]string{path}, nil) {
				at := slices.IndexFunc(wanted, func(w Finding) bool {
					return w.Line == f.Line && w.Column == f.Column && w.Code == f.Code && strings.Contains(f.Message, w.Message)
				})
				if at < 0 {
					t.Errorf("not wanted: %s", f)
					continue
				}
				wanted = slices.Delete(wanted, at, at+1)
				if f.File != path || isError(f.Code) != (f.Severity == Error) {
					t.Errorf("file or severity: %+v", f)
				}
			}
			for _, w := range wanted {
				t.Errorf("not found: %d:%d %s: %s", w.Line, w.Column, w.Code, w.Message)
			}
			for _, code := range codes {
				if strings.HasPrefix(name, string(code)) {
					was := tried[code]
					tried[code] = [2]bool{was[0] || bad, was[1] || !bad}
				}
			}
		})
	}
	for _, code := range codes {
		if tried[code] != [2]bool{true, true} {
			t.Errorf("%s has no good or no bad example", code)
		}
	}
}

var codes = []Code{
	InvalidConfig, InvalidResource,
	MissingReturn, ShadowedRule, ImpossibleRule, EmptySelector, SelectsNothing, NoAddress, FailsafeDenied, HEPShadowed,
	OverlappingTierOrder, CatchAllUntracked, UnknownTier, UnknownPortName, UnusedRules,
}

func isError(c Code) bool {
	return slices.Contains([]Code{Unreadable, InvalidConfig, InvalidResource, InvalidList, TooLarge}, c)
}

func wantsOf(t *testing.T, path string) []Finding {
	t.Helper()
	if beside, err := os.ReadFile(path + ".want"); err == nil {
		var out []Finding
		for line := range strings.Lines(string(beside)) {
			var f Finding
			place, message, _ := strings.Cut(strings.TrimSpace(line), ": ")
			if _, err := fmt.Sscanf(place, "%d:%d %s", &f.Line, &f.Column, &f.Code); err != nil {
				t.Fatalf("%s.want: %q: %v", path, line, err)
			}
			f.Message = message
			out = append(out, f)
		}
		return out
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var out []Finding
	for n, line := range bytes.Split(data, []byte("\n")) {
		if m := want.FindSubmatch(line); m != nil {
			f := Finding{Line: n + 1, Code: Code(m[2]), Message: string(m[3])}
			fmt.Sscan(string(m[1]), &f.Column)
			out = append(out, f)
		}
	}
	return out
}
