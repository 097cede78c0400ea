// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"github.com/spf13/cobra"

	"github.com/untracked-cni/untracked/pkg/lint"
)

func newLint() *cobra.Command {
	var output outputFlag
	cmd := &cobra.Command{
		Use:   "lint FILE...",
		Short: "Check resources or conf lists without a node",
		Long: `Finds what is wrong with a policy before any node sees it. A FILE has resources (YAML or JSON), or is a conf list, or
a directory of either; - is standard input. Files with resources are taken together, as one policy. A conf list is
read with the files that it names, its labels and its shorthand.

Errors are what apply refuses. Warnings are what it takes without a word and hardly does what is meant, such as a rule
that can never match. Each is a line, file:line:column first and its code last.

Exit code 1 says that there is an error; with warnings alone it is 0.`,
		Example: `  untracked lint /etc/untracked/*.yaml
  untracked lint /etc/cni/net.d/10-mynet.conflist
  calicoctl get globalnetworkpolicies -o yaml | untracked lint -`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usage(errors.New("lint takes files of resources or conf lists, as in `untracked lint /etc/untracked/*.yaml`, or - for standard input"))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			asJSON, err := output.json()
			if err != nil {
				return err
			}
			shown := newProgress(cmd.ErrOrStderr(), slog.LevelInfo)
			linter := lint.Linter{Progress: shown.show}
			findings := linter.Files(args, cmd.InOrStdin())
			shown.end()
			if asJSON {
				err = printJSON(cmd.OutOrStdout(), append([]lint.Finding{}, findings...))
			} else {
				for _, f := range findings {
					fmt.Fprintln(cmd.OutOrStdout(), f)
				}
				if len(linter.Tables) > 0 {
					t := slices.MaxFunc(linter.Tables, func(a, b lint.Tables) int { return cmp.Compare(a.Loads, b.Loads) })
					fmt.Fprintf(cmd.ErrOrStderr(), "lookup tables of %s, %d rules for arriving packets: %s, at most %d reads a packet, %s\n", t.Of, t.Rules, t.Name, t.Loads, size(t.Bytes))
				}
			}
			if err == nil && slices.ContainsFunc(findings, func(f lint.Finding) bool { return f.Severity == lint.Error }) {
				return failed(nil)
			}
			return err
		},
	}
	output.register(cmd)
	return cmd
}
