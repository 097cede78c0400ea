// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/untracked-cni/untracked/pkg/compiler"
	"github.com/untracked-cni/untracked/pkg/config"
	"github.com/untracked-cni/untracked/pkg/node"
)

func newStatus(version string) *cobra.Command {
	var where places
	var output outputFlag
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what is in force on this node, and what is wrong",
		Long: `Shows the policy in force, the interfaces with their mode and what became of the packets that arrived there, how
full the conntrack table is, and every problem with its remedy. It only reads.

Packets are counted once, where they arrive: untracked and denied by a rule, failsafe (a failsafe port or
IPv6 neighbour discovery), malformed (dropped), fragment (a later fragment, whose fate the first one decides), and
tracked (no rule matched). The way out is counted rule by rule: see untracked rules.

Exit code 0: the policy is in force. 1: it is not, somewhere; the problems say where and why.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			asJSON, err := output.json()
			if err != nil {
				return err
			}
			s, err := where.node(version, cmd.ErrOrStderr()).Status()
			if err != nil {
				return failed(err)
			}
			if asJSON {
				err = printJSON(cmd.OutOrStdout(), s)
			} else {
				err = printStatus(cmd.OutOrStdout(), s)
			}
			if err == nil && s.Broken {
				return failed(nil)
			}
			return err
		},
	}
	where.register(cmd)
	output.register(cmd)
	return cmd
}

func printStatus(w io.Writer, s *node.Status) error {
	if s.Policy.Generation > 0 {
		fmt.Fprintf(w, "policy     %s, generation %d, %d rules, of network %s\n", s.Policy.Hash, s.Policy.Generation, s.Policy.Rules, s.Policy.Network)
	}
	if p := s.Pods; p.Mode != config.PodsIgnore || p.Count > 0 {
		fmt.Fprintf(w, "pods       %s: %d with %d ports untracked\n", p.Mode, p.Count, p.Ports)
	}
	if c := s.Conntrack; c.Max > 0 {
		fmt.Fprintf(w, "conntrack  %d of %d entries (%.1f %%)\n", c.Entries, c.Max, 100*float64(c.Entries)/float64(c.Max))
	} else {
		fmt.Fprintln(w, "conntrack  not in the kernel")
	}
	if len(s.Interfaces) > 0 {
		fmt.Fprintln(w)
		t := newTable(w, "INTERFACE", "ENDPOINT", "MODE", "ATTACHED", "PROGRAM", "UNTRACKED", "DENIED", "TRACKED", "FAILSAFE", "MALFORMED", "FRAGMENT")
		for _, i := range s.Interfaces {
			attached, mode, program := "no", i.Mode, "-"
			if i.Attached {
				attached = "yes"
			}
			if mode == "" {
				mode = "-"
			}
			if i.ProgramID != 0 {
				program = strconv.FormatUint(uint64(i.ProgramID), 10)
			}
			p := i.Packets
			t.row(i.Name, i.HostEndpoint, mode, attached, program, number(p.Untracked), number(p.Denied), number(p.Tracked),
				number(p.Failsafe), number(p.Malformed), number(p.Fragment))
		}
		if err := t.flush(); err != nil {
			return err
		}
		printTables(w, s.Interfaces)
	}
	printProblems(w, s.Problems)
	return nil
}

// printTables says what a packet's look-up costs, once for interfaces that have the same tables.
func printTables(w io.Writer, interfaces []node.InterfaceStatus) {
	fmt.Fprintln(w)
	of := map[compiler.Method][]string{}
	for _, i := range interfaces {
		of[i.Tables] = append(of[i.Tables], i.Name)
	}
	for _, i := range interfaces {
		names := of[i.Tables]
		if names[0] != i.Name || i.Tables.Name == "" {
			continue
		}
		fmt.Fprintf(w, "tables     %s: %s, at most %d reads a packet, %s\n", strings.Join(names, ", "), i.Tables.Name, i.Tables.Loads, size(i.Tables.Bytes))
		if i.Tables.Reason != "" {
			fmt.Fprintf(w, "           more reads with each further rule, since %s\n", i.Tables.Reason)
		}
	}
}

func number(n uint64) string { return strconv.FormatUint(n, 10) }
