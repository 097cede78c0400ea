// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"time"

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
		Long: `Lists the rules of each interface in the order in which they are asked. The first that matches with Allow (untracked),
Deny (dropped) or Failsafe (left alone) decides; Log reports and goes on, Pass goes on with the next tier.

Arriving packets (ingress) are counted by the XDP or tc program, leaving ones (egress) by table inet untracked. LAST is
how long ago a packet matched, which the way out does not tell. ORIGIN is where the rule is written, or what made it.
Counters go on counting when the policy changes, for rules that did not.

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
				return failed(node.ErrNotApplied)
			}
			if asJSON {
				return nil
			}
			t := newTable(cmd.OutOrStdout(), "INTERFACE", "DIRECTION", "RULE", "ACTION", "PACKETS", "BYTES", "LAST", "MATCH", "ORIGIN")
			for _, r := range rules {
				t.row(r.Interface, string(r.Direction), r.Name(), r.Action, number(r.Packets), number(r.Bytes), ago(r.LastMatched), r.Match, r.Origin)
			}
			return t.flush()
		},
	}
	cmd.Flags().BoolVar(&nonzero, "matched", false, "only rules that have matched a packet")
	where.register(cmd)
	output.register(cmd)
	return cmd
}

// ago is how long ago something was, in one unit.
func ago(t *time.Time) string {
	if t == nil {
		return "-"
	}
	d := max(time.Since(*t), 0)
	for _, unit := range []struct {
		length time.Duration
		name   string
	}{{24 * time.Hour, "d"}, {time.Hour, "h"}, {time.Minute, "m"}} {
		if d >= 2*unit.length {
			return fmt.Sprintf("%d%s", d/unit.length, unit.name)
		}
	}
	return fmt.Sprintf("%ds", d/time.Second)
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
