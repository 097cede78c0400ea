// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/untracked-cni/untracked/pkg/config"
	"github.com/untracked-cni/untracked/pkg/node"
	"github.com/untracked-cni/untracked/pkg/policy"
)

func newApply(version string) *cobra.Command {
	var dryRun bool
	var output outputFlag
	cmd := &cobra.Command{
		Use:   "apply CONFLIST",
		Short: "Make this node match the policy in a conf list, without a pod",
		Long: `Reads the untracked entry of a CNI conf list and does what the next pod's ADD would do: attaches the programs,
fills their tables, writes table inet untracked, and evicts the conntrack entries of flows that become untracked.

It may be repeated at any time: what is in force stays in force until the new policy is complete, and a bad conf
list changes nothing. Exit code 1 says that some interface is without the policy, 2 that the conf list or a file it names
is wrong and nothing was changed; the message says why.`,
		Example: `  untracked apply /etc/cni/net.d/10-mynet.conflist --dry-run
  untracked apply /etc/cni/net.d/10-mynet.conflist`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usage(fmt.Errorf("apply takes one conf list, as in `untracked apply /etc/cni/net.d/10-mynet.conflist`; got %d arguments", len(args)))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			asJSON, err := output.json()
			if err != nil {
				return err
			}
			c, err := readConflist(args[0])
			if err != nil {
				return usage(err)
			}
			n := &node.Node{Version: version, BPFFS: c.BPFFS, RunDir: c.RunDir, Log: logger(cmd.ErrOrStderr(), c.LogLevel)}
			shown := newProgress(cmd.ErrOrStderr(), c.LogLevel)
			defer shown.end()
			n.Progress = shown.show
			if dryRun {
				return printPlan(cmd.OutOrStdout(), n, c, asJSON, shown.end)
			}
			result, err := n.Apply(cmd.Context(), c)
			shown.end()
			if err != nil {
				return applyError(err)
			}
			if !asJSON {
				return printApplied(cmd.OutOrStdout(), result)
			}
			status, err := n.Status()
			if err != nil {
				return failed(err)
			}
			if err := printJSON(cmd.OutOrStdout(), status); err != nil {
				return err
			}
			return inForce(result)
		},
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "print what would be done, and why; change nothing")
	output.register(cmd)
	return cmd
}

func readConflist(path string) (*config.Config, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return config.ParseConflist(data, path)
}

func applyError(err error) error {
	if node.IsConfigError(err) {
		return usage(err)
	}
	return failed(err)
}

type planOutput struct {
	Generation uint64               `json:"generation"`
	Policy     string               `json:"policyHash"`
	Reasons    []string             `json:"reasons"`
	Steps      []string             `json:"steps"`
	Rules      []ruleOutput         `json:"rules"`
	Problems   []node.ProblemStatus `json:"problems"`
}

type ruleOutput struct {
	Interface string           `json:"interface"`
	Direction policy.Direction `json:"direction"`
	node.RuleText
}

// printPlan calls the function when the plan is made.
func printPlan(w io.Writer, n *node.Node, c *config.Config, asJSON bool, made func()) error {
	reasons, plan, err := n.PlanFor(c)
	made()
	if err != nil {
		return applyError(err)
	}
	out := planOutput{
		Generation: plan.Generation, Policy: plan.Policy, Reasons: append([]string{}, reasons...), Steps: plan.Steps(),
		Problems: listed(plan.Problems),
	}
	for _, i := range plan.Interfaces {
		for _, d := range []policy.Direction{policy.Ingress, policy.Egress} {
			list := plan.Lists[i.List].Of(d)
			for n := range list {
				out.Rules = append(out.Rules, ruleOutput{i.Name, d, node.TextOf(&list[n])})
			}
		}
	}
	if asJSON {
		return printJSON(w, out)
	}
	if len(reasons) == 0 {
		fmt.Fprintln(w, "The node matches this policy already, so a pod that starts changes nothing. Applied by hand, it would be done again:")
	} else {
		fmt.Fprintln(w, "Nothing was changed. The next apply, or pod that starts, would:")
	}
	for _, s := range out.Steps {
		fmt.Fprintf(w, "  %s\n", s)
	}
	if len(reasons) > 0 {
		fmt.Fprintln(w, "\nWhy:")
		for _, r := range reasons {
			fmt.Fprintf(w, "  %s\n", r)
		}
	}
	printProblems(w, out.Problems)
	return printLists(w, plan)
}

// printLists prints each list of rules once, whatever number of interfaces has it.
func printLists(w io.Writer, plan *node.Plan) error {
	for n := range plan.Lists {
		var names []string
		for _, i := range plan.Interfaces {
			if i.List == n {
				names = append(names, i.Name)
			}
		}
		fmt.Fprintf(w, "\nRules of %s:\n", cmp.Or(strings.Join(names, ", "), "no interface"))
		t := newTable(w, "DIRECTION", "RULE", "ACTION", "MATCH", "ORIGIN")
		for _, d := range []policy.Direction{policy.Ingress, policy.Egress} {
			list := plan.Lists[n].Of(d)
			for i := range list {
				r := node.TextOf(&list[i])
				t.row(string(d), r.Name(), r.Action, r.Match, r.Origin)
			}
		}
		if err := t.flush(); err != nil {
			return err
		}
	}
	return nil
}

func printApplied(w io.Writer, result *node.Result) error {
	r := result.Record
	var attached []string
	for _, i := range r.Interfaces {
		if i.Attached.Mode != "" {
			attached = append(attached, i.Name)
			fmt.Fprintf(w, "%s: in force, %s\n", i.Name, modeWords(string(i.Attached.Mode)))
		}
	}
	where := "no interface"
	if len(attached) > 0 {
		where = strings.Join(attached, ", ")
	}
	fmt.Fprintf(w, "policy %s, generation %d, %d rules, on %s\n", r.Policy, r.Generation, r.Rules, where)
	printProblems(w, listed(result.Problems))
	return inForce(result)
}

func inForce(result *node.Result) error {
	if result.Broken() {
		return failed(errors.New("the policy is not in force everywhere"))
	}
	return nil
}

func modeWords(mode string) string {
	switch mode {
	case "native":
		return "native XDP"
	case "generic":
		return "generic XDP"
	case "tc":
		return "tc program"
	}
	return mode
}
