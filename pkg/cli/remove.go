// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/untracked-cni/untracked/pkg/install"
)

func newRemove(version string) *cobra.Command {
	var where places
	cmd := &cobra.Command{
		Use:   "remove",
		Short: "Take everything off this node again",
		Long: `Detaches all programs, removes all pins, deletes the tables inet untracked and inet untracked-pods, and the records. Traffic is tracked from
then on as if untracked had never been there. Take the entry out of the conf list first: the next pod that starts
would put everything back, and so would an installer that stays (install --watch), which a warning names.

Pods that run lose the ports that they had untracked, until they start anew.

Removing where there is nothing is no error.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			found, err := where.node(version, cmd.ErrOrStderr()).Remove(cmd.Context())
			if err != nil {
				return failed(err)
			}
			if found {
				fmt.Fprintln(cmd.OutOrStdout(), "removed: no program, link, pin, table or record of untracked is left")
			} else {
				fmt.Fprintln(cmd.OutOrStdout(), "nothing to remove")
			}
			if err := install.Watched(cmd.Context(), where.runDir); err != nil {
				fmt.Fprintln(cmd.ErrOrStderr(), "warning:", err)
			}
			return nil
		},
	}
	where.register(cmd)
	return cmd
}
