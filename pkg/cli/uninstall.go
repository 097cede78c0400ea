// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"

	"github.com/spf13/cobra"
)

func newUninstall(version string) *cobra.Command {
	var f installed
	cmd := &cobra.Command{
		Use:   "uninstall [CONFLIST]",
		Short: "Take off this node what install put there",
		Long: `Takes the entry off all conf lists of the directory, or of the directory of the one that is named, waits until the
runtime has read them again, does what remove does, and removes the copy of the policy and, last, the binary: as long as
a conf list names it, no pod can start or stop without it.

Uninstalling where there is nothing, or half of it, is no error.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			i, err := f.installer(version, cmd, args)
			if err != nil {
				return err
			}
			found, err := i.Uninstall(cmd.Context(), f.wait)
			if err != nil {
				return failed(err)
			}
			if found {
				fmt.Fprintln(cmd.OutOrStdout(), "uninstalled: no entry, program, link, pin, table, record or binary of untracked is left")
			} else {
				fmt.Fprintln(cmd.OutOrStdout(), "nothing to uninstall")
			}
			return nil
		},
	}
	f.register(cmd)
	return cmd
}
