// SPDX-License-Identifier: Apache-2.0

// Package cli is the operator's command: `untracked apply`, `status`, `rules` and so on, a file each.
//
// Exit codes: 0 as asked, 1 something is wrong and was said so, 2 the command line or a file given to it is
// wrong and nothing was changed.
package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/pkg/config"
	"github.com/untracked-cni/untracked/pkg/node"
)

// Exit codes.
const (
	exitOK = iota
	exitFailed
	exitUsage
)

// exitError carries an exit code through cobra; its message was printed already if it is empty.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

func usage(err error) error  { return &exitError{exitUsage, err} }
func failed(err error) error { return &exitError{exitFailed, err} }

// Run executes the command line and returns the exit code.
func Run(version string, args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // the second signal is for a command that does not heed the first
	root := newRoot(version)
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	code := exitUsage // what cobra itself refuses
	var exit *exitError
	if errors.As(err, &exit) {
		code = exit.code
	}
	if text := err.Error(); text != "" {
		if errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0 {
			text += " (run as root)"
		}
		fmt.Fprintf(stderr, "untracked: %s\n", text)
	}
	return code
}

const about = `Takes chosen traffic of this node out of connection tracking, and drops unwanted packets in the driver.

Called by a container runtime (with CNI_COMMAND set) this is a chained CNI plugin: what it does is written in
the annotations of its entry on the node's conf list. Called by hand it is the tool to look at what was done,
to do it without a pod, and to undo it.`

func newRoot(version string) *cobra.Command {
	root := &cobra.Command{
		Use:           "untracked",
		Short:         "Take chosen traffic out of connection tracking",
		Long:          about,
		Version:       version,
		SilenceErrors: true,
		SilenceUsage:  true,
		Example: `  untracked lint /etc/untracked/policies                       what is wrong with a policy, before it is used
  untracked apply /etc/cni/net.d/10-mynet.conflist --dry-run   what would be done, and why
  untracked apply /etc/cni/net.d/10-mynet.conflist             do it now, without waiting for a pod
  untracked status                                             is it in force, and is anything wrong
  untracked rules                                              every rule with its packets and bytes
  untracked pods                                               pods that have ports of their own untracked
  untracked explain tcp 192.0.2.7:40000 10.0.0.1:6379          what becomes of a packet, and why
  untracked monitor                                            packets that rules log, live
  untracked metrics --listen :10417                            what there is to count, for Prometheus
  untracked remove                                             off again, nothing left behind
  untracked install --watch                                    put binary, entry and policy there, and keep them there
  untracked uninstall                                          the way back from install`,
	}
	root.SetVersionTemplate("untracked {{.Version}}\n")
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(newApply(version), newStatus(version), newRules(version), newPods(version), newExplain(version), newMonitor(version), newRemove(version))
	root.AddCommand(newLint(), newMetrics(version), newInstall(version), newUninstall(version))
	return root
}

// places are the flags of the commands that are given no conf list.
type places struct{ bpffs, runDir string }

func (p *places) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&p.bpffs, "bpffs", "", "where the BPF file system is mounted (default as applied, or "+config.DefaultBPFFS+")")
	cmd.Flags().StringVar(&p.runDir, "run-dir", config.DefaultRunDir, "where lock and records are")
}

func (p *places) node(version string, stderr io.Writer) *node.Node {
	bpffs := cmp.Or(p.bpffs, node.BPFFSOf(p.runDir), config.DefaultBPFFS)
	return &node.Node{Version: version, BPFFS: bpffs, RunDir: p.runDir, Log: logger(stderr, slog.LevelInfo)}
}

// logger is silent unless the operator asked for debugging: what matters, the command prints by itself.
func logger(w io.Writer, level slog.Level) *slog.Logger {
	if level > slog.LevelDebug {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level}))
}

// outputFlag is -o: the readable form, or JSON.
type outputFlag string

func (o *outputFlag) register(cmd *cobra.Command) {
	cmd.Flags().StringVarP((*string)(o), "output", "o", "text", "output format, text or json")
}

func (o outputFlag) json() (bool, error) {
	switch o {
	case "text":
		return false, nil
	case "json":
		return true, nil
	}
	return false, usage(fmt.Errorf("--output %s: want text or json", string(o)))
}
