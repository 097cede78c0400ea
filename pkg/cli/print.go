// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/untracked-cni/untracked/pkg/node"
)

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func printProblems(w io.Writer, problems []node.ProblemStatus) {
	for _, p := range problems {
		fmt.Fprintf(w, "\n%s: %s\n  remedy: %s\n", p.Code, p.Message, p.Remedy)
	}
}

// listed is never nil, so that JSON has a list.
func listed(problems []node.Problem) []node.ProblemStatus {
	out := make([]node.ProblemStatus, len(problems))
	for i, p := range problems {
		out[i] = p.Status()
	}
	return out
}

// table prints aligned columns.
type table struct{ *tabwriter.Writer }

func newTable(w io.Writer, header ...string) table {
	t := table{tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)}
	t.row(header...)
	return t
}

func (t table) row(cells ...string) { fmt.Fprintln(t, strings.Join(cells, "\t")) }
func (t table) flush() error        { return t.Flush() }

// page prints aligned lines of a name and a value.
type page struct{ *tabwriter.Writer }

func newPage(w io.Writer) page { return page{tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)} }

func (p page) line(name, value string) { fmt.Fprintf(p, "%s\t%s\n", name, value) }
func (p page) flush() error            { return p.Flush() }

// size is a number of bytes in words.
func size(bytes int) string {
	if bytes < 1<<20 {
		return fmt.Sprintf("%d KiB", (bytes+1<<10-1)>>10)
	}
	return fmt.Sprintf("%.1f MiB", float64(bytes)/(1<<20))
}
