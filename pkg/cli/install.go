// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/untracked-cni/untracked/pkg/config"
	"github.com/untracked-cni/untracked/pkg/install"
)

// Where a node has things unless a flag says otherwise.
const (
	defaultBinDir    = "/opt/cni/bin"
	defaultConfDir   = "/etc/cni/net.d"
	defaultConfigDir = "/etc/untracked"
	defaultStateDir  = "/var/lib/untracked"
	// defaultWait is how long a runtime may take to read a changed conf list. They watch it; this is ample.
	defaultWait = 5 * time.Second
)

// installed are the flags of install and uninstall.
type installed struct {
	install.Installer
	wait time.Duration
}

func (f *installed) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.BinDir, "bin-dir", defaultBinDir, "where the runtime finds plugins")
	flags.StringVar(&f.ConfDir, "conf-dir", defaultConfDir, "where the runtime finds conf lists")
	flags.StringVar(&f.StateDir, "state-dir", defaultStateDir, "where the copy of the policy is that the plugin reads")
	flags.StringVar(&f.BPFFS, "bpffs", "", "where the BPF file system is mounted (default as applied, or "+config.DefaultBPFFS+")")
	flags.StringVar(&f.RunDir, "run-dir", config.DefaultRunDir, "where locks and records are")
	flags.DurationVar(&f.wait, "wait", defaultWait, "how long the runtime gets to read its conf list again before the rest is taken away")
}

// installer is complete for a command line.
func (f *installed) installer(version string, cmd *cobra.Command, args []string) (*install.Installer, error) {
	i := &f.Installer
	i.Version = version
	i.Log = stepLogger(cmd.ErrOrStderr())
	if len(args) > 0 {
		i.Conflist = args[0]
		if filepath.Base(args[0]) == args[0] {
			i.Conflist = filepath.Join(i.ConfDir, args[0])
		}
	}
	for _, path := range []*string{&i.Conflist, &i.BinDir, &i.ConfDir, &i.ConfigDir, &i.StateDir, &i.BPFFS, &i.RunDir} {
		if *path == "" {
			continue
		}
		full, err := filepath.Abs(*path)
		if err != nil {
			return nil, usage(err)
		}
		*path = full
	}
	return i, nil
}

// stepLogger logs each step as a line, for a terminal without the time.
func stepLogger(w io.Writer) *slog.Logger {
	options := &slog.HandlerOptions{}
	if isTerminal(w) {
		options.ReplaceAttr = func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) == 0 && a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		}
	}
	return slog.New(slog.NewTextHandler(w, options))
}

func newInstall(version string) *cobra.Command {
	var f installed
	var watch, uninstall, check bool
	cmd := &cobra.Command{
		Use:   "install [CONFLIST]",
		Short: "Put the plugin, its entry and the policy on this node",
		Long: `Copies this binary to where the runtime finds plugins, puts an entry of type untracked behind all others on the conf
list, which is the first in its directory if none is named, and does what apply does. What the entry says is taken from
the directory --config: annotations.yaml has annotations as in an entry, a key and a value a line; every other .yaml,
.yml and .json file there or in its directory policies has resources. Lists that an annotation names may be there, too.

A bad policy changes nothing. Of the conf list every byte outside of the entry stays. It may be repeated at any time.

With --watch it stays: it puts the entry back when the main CNI plugin rewrites its list, the binary when it is gone,
and a changed policy in force; without any, it waits for the main CNI plugin. Of several at once the newest acts.

Exit code 1 says that something could not be put in its place, or with --check that something is not, 2 that the policy
is bad and nothing was changed; the message says why.`,
		Example: `  untracked install
  untracked install --check && echo all is in place
  untracked install --watch --bin-dir /usr/libexec/cni`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if uninstall && !watch {
				return usage(errors.New("--uninstall-on-exit is for --watch; want both or neither"))
			}
			i, err := f.installer(version, cmd, args)
			if err != nil {
				return err
			}
			switch {
			case check:
				differs := i.Check(cmd.Context())
				for _, d := range differs {
					fmt.Fprintln(cmd.ErrOrStderr(), d)
				}
				if len(differs) > 0 {
					return failed(nil)
				}
				return nil
			case watch:
				return installError(i.Watch(cmd.Context(), uninstall, f.wait))
			}
			result, err := i.Install(cmd.Context())
			if err != nil {
				return installError(err)
			}
			return printApplied(cmd.OutOrStdout(), result)
		},
	}
	f.register(cmd)
	flags := cmd.Flags()
	flags.StringVar(&f.ConfigDir, "config", defaultConfigDir, "directory of annotations.yaml and resources")
	flags.StringVar(&f.NodeName, "node", os.Getenv("NODE_NAME"), "this node's name, where the annotations do not say it")
	flags.BoolVar(&f.DropIn, "drop-in", false, "put the entry into a file of its own (containerd 2.1, CRI-O 1.33 and later)")
	flags.BoolVar(&watch, "watch", false, "stay, and keep all in its place")
	flags.BoolVar(&uninstall, "uninstall-on-exit", false, "with --watch: take everything away at the end, as uninstall does")
	flags.BoolVar(&check, "check", false, "change nothing; say what is not in its place")
	cmd.MarkFlagsMutuallyExclusive("check", "watch")
	return cmd
}

func installError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, install.ErrInvalid):
		return usage(err)
	}
	return failed(err)
}
