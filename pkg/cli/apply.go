// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/pkg/config"
	"github.com/untracked-cni/untracked/pkg/node"
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
list changes nothing. Exit code 1 says that some interface is without the policy; the message says why.`,
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
			n := &node.Node{Version: version, BPFFS: c.BPFFS, RunDir: c.RunDir, Log: logger(cmd.ErrOrStderr(), c.LogLevel+4)}
			if dryRun {
				return printPlan(cmd.OutOrStdout(), n, c, asJSON)
			}
			done := showProgress(n, cmd.ErrOrStderr())
			result, err := n.Apply(cmd.Context(), c, true)
			done()
			if err != nil {
				return applyError(err)
			}
			return printApplied(cmd.OutOrStdout(), result, asJSON)
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
	Generation uint64       `json:"generation"`
	Policy     string       `json:"policy"`
	Reasons    []string     `json:"reasons"`
	Steps      []string     `json:"steps"`
	Ingress    []ruleOutput `json:"ingress"`
	Egress     []ruleOutput `json:"egress"`
	Problems   []string     `json:"problems"`
}

type ruleOutput struct {
	Rule   string `json:"rule"`
	Action string `json:"action"`
	Match  string `json:"match"`
}

func printPlan(w io.Writer, n *node.Node, c *config.Config, asJSON bool) error {
	reasons, plan, err := n.PlanFor(c)
	if err != nil {
		return applyError(err)
	}
	out := planOutput{
		Generation: plan.Generation, Policy: plan.Policy, Reasons: reasons, Steps: plan.Steps(),
		Problems: []string{},
	}
	for i := range plan.Rules.Ingress {
		r := &plan.Rules.Ingress[i]
		out.Ingress = append(out.Ingress, ruleOutput{r.Name(), r.Action.String(), r.Match()})
	}
	for i := range plan.Rules.Egress {
		r := &plan.Rules.Egress[i]
		out.Egress = append(out.Egress, ruleOutput{r.Name(), r.Action.String(), r.Match()})
	}
	for _, p := range plan.Problems {
		out.Problems = append(out.Problems, p.String())
	}
	if asJSON {
		return printJSON(w, out)
	}
	fmt.Fprintln(w, "Nothing was changed. The next apply would:")
	for _, s := range out.Steps {
		fmt.Fprintf(w, "  %s\n", s)
	}
	if len(reasons) == 0 {
		fmt.Fprintln(w, "\nThe node matches this policy already: a pod that starts changes nothing.")
	} else {
		fmt.Fprintln(w, "\nWhy:")
		for _, r := range reasons {
			fmt.Fprintf(w, "  %s\n", r)
		}
	}
	for _, p := range out.Problems {
		fmt.Fprintf(w, "\nNote: %s\n", p)
	}
	fmt.Fprintln(w)
	t := newTable(w, "DIRECTION", "RULE", "ACTION", "MATCH")
	for _, r := range out.Ingress {
		t.row("ingress", r.Rule, r.Action, r.Match)
	}
	for _, r := range out.Egress {
		t.row("egress", r.Rule, r.Action, r.Match)
	}
	return t.flush()
}

func printApplied(w io.Writer, result *node.Result, asJSON bool) error {
	r := result.Record
	if asJSON {
		if err := printJSON(w, r); err != nil {
			return err
		}
	} else {
		installed := 0
		for _, i := range r.Interfaces {
			if i.Attached.Mode != "" {
				installed++
				fmt.Fprintf(w, "%s: in force, %s\n", i.Name, modeWords(string(i.Attached.Mode)))
			}
		}
		fmt.Fprintf(w, "policy %s, generation %d, %d rules, on %d of %d interfaces\n", r.Policy, r.Generation, r.Rules, installed, len(r.Interfaces))
		for _, p := range result.Problems {
			fmt.Fprintf(w, "\n%s: %s\n  remedy: %s\n", p.Code, p.Message, p.Remedy)
		}
	}
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

// progressDelay is how long work may take in silence.
const progressDelay = time.Second

// showProgress prints the steps of work that takes longer than a moment, on a terminal only.
func showProgress(n *node.Node, w io.Writer) (done func()) {
	f, ok := w.(*os.File)
	if !ok {
		return func() {}
	}
	if _, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err != nil {
		return func() {}
	}
	start, shown := time.Now(), false
	n.Progress = func(step string) {
		if time.Since(start) > progressDelay {
			fmt.Fprintf(w, "\r\033[K%s …", step)
			shown = true
		}
	}
	return func() {
		if shown {
			fmt.Fprint(w, "\r\033[K")
		}
	}
}
