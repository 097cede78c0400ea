// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/untracked-cni/untracked/pkg/node"
	"github.com/untracked-cni/untracked/pkg/policy"
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

// ruleName is how listings call a rule: tier/policy[index].
func ruleName(tier, name string, index int) string {
	r := policy.Rule{Tier: tier, Policy: name, Index: index}
	return r.Name()
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
