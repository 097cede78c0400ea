// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/untracked-cni/untracked/pkg/monitor"
	"github.com/untracked-cni/untracked/pkg/node"
)

func newMonitor(version string) *cobra.Command {
	var where places
	var output outputFlag
	var count int
	cmd := &cobra.Command{
		Use:   "monitor",
		Short: "Show packets that rules with action Log match, live",
		Long: `Prints a line for each packet that a Log rule matched, while it runs: time, interface, direction, verdict, the rule
that gave it, and the packet. A Log rule decides nothing; the rules behind it do.

What is shown is a sample: at most 100 packets a second from each interface and CPU (ingress) or rule (egress), and the
number that was left out is told. Nobody else may be watching. While nobody is, a packet that a Log rule matches costs a
branch more.`,
		Example: `  untracked monitor
  untracked monitor -o json --count 10`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			asJSON, err := output.json()
			if err != nil {
				return err
			}
			if count < 0 {
				return usage(fmt.Errorf("--count %d: want 0 for no end, or a number of packets", count))
			}
			out, seen := json.NewEncoder(cmd.OutOrStdout()), 0
			begin := func(w *node.Watch) { sayWatching(cmd.ErrOrStderr(), w) }
			err = where.node(version, cmd.ErrOrStderr()).Follow(cmd.Context(), begin, func(e *monitor.Event) (err error) {
				if asJSON {
					err = out.Encode(e)
				} else {
					_, err = fmt.Fprintln(cmd.OutOrStdout(), e)
				}
				if seen++; err == nil && seen == count {
					err = errEnough
				}
				return err
			})
			if err != nil && !errors.Is(err, errEnough) {
				return failed(err)
			}
			return nil
		},
	}
	cmd.Flags().IntVarP(&count, "count", "c", 0, "end after this many packets (0: go on)")
	where.register(cmd)
	output.register(cmd)
	return cmd
}

// sayWatching tells a person what is going on, or it would look as if nothing happened.
func sayWatching(w io.Writer, watch *node.Watch) {
	switch {
	case !isTerminal(w):
	case watch == nil:
		fmt.Fprintln(w, "the policy was changed, and there is no rule that logs now; waiting for one")
	default:
		fmt.Fprintf(w, "watching %s on %s; Ctrl-C ends it\n", logRules(watch.LogRules), strings.Join(watch.Interfaces, ", "))
	}
}

func logRules(n int) string {
	if n == 1 {
		return "1 rule that logs"
	}
	return fmt.Sprintf("%d rules that log", n)
}

var errEnough = errors.New("that was enough")
