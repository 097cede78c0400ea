// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/untracked-cni/untracked/pkg/node"
)

func newRules(version string) *cobra.Command {
	var where places
	var output outputFlag
	var nonzero bool
	cmd := &cobra.Command{
		Use:   "rules",
		Short: "List every rule in force, in order, with its packets and bytes",
		Long: `Lists the rules of each interface in the order in which they are asked; the first that matches decides. Allow
means untracked, Deny dropped, Failsafe left alone. Arriving packets (ingress) are counted by the XDP or tc program,
leaving ones (egress) by table inet untracked. Counters go on counting when the policy changes, for rules that did not.

Exit code 1 says that no policy has been applied.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			asJSON, err := output.json()
			if err != nil {
				return err
			}
			rules, err := where.node(version, cmd.ErrOrStderr()).Rules()
			if err != nil {
				return failed(err)
			}
			none := rules == nil
			if nonzero {
				rules = matched(rules)
			}
			if asJSON {
				if err := printJSON(cmd.OutOrStdout(), append([]node.RuleStatus{}, rules...)); err != nil {
					return err
				}
			}
			if none {
				return failed(errors.New("no policy is in force on this node"))
			}
			if asJSON {
				return nil
			}
			t := newTable(cmd.OutOrStdout(), "INTERFACE", "DIRECTION", "RULE", "ACTION", "PACKETS", "BYTES", "MATCH")
			for _, r := range rules {
				t.row(r.Interface, string(r.Direction), r.Name(), r.Action, number(r.Packets), number(r.Bytes), r.Match)
			}
			return t.flush()
		},
	}
	cmd.Flags().BoolVar(&nonzero, "matched", false, "only rules that have matched a packet")
	where.register(cmd)
	output.register(cmd)
	return cmd
}

func matched(rules []node.RuleStatus) []node.RuleStatus {
	var out []node.RuleStatus
	for _, r := range rules {
		if r.Packets > 0 {
			out = append(out, r)
		}
	}
	return out
}
