// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"github.com/untracked-cni/untracked/pkg/config"
	"github.com/untracked-cni/untracked/pkg/pods"
)

func newPods(version string) *cobra.Command {
	var where places
	var output outputFlag
	cmd := &cobra.Command{
		Use:   "pods",
		Short: "List the pods that have ports of their own untracked",
		Long: `Lists the pods whose annotations untracked.cni/ports and untracked.cni/sources are in force: where the conf list's entry
says untracked.cni/pods: allow. An address that has become another pod's is left out. SINCE is how long ago the pod
asked.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			asJSON, err := output.json()
			if err != nil {
				return err
			}
			all, err := where.node(version, cmd.ErrOrStderr()).Pods()
			if err != nil {
				return failed(err)
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), append([]pods.Record{}, all...))
			}
			if len(all) == 0 {
				fmt.Fprintf(cmd.ErrOrStderr(), "untracked: no pod has ports untracked; those that start are asked where the conf list's entry has %spods and the capability %s\n",
					config.Prefix, config.PodCapability)
				return nil
			}
			t := newTable(cmd.OutOrStdout(), "POD", "CONTAINER", "ADDRESSES", "PORTS", "SOURCES", "SINCE")
			for _, r := range all {
				sources := "any"
				if r.Sources != nil {
					sources = strings.Join(r.Sources, ",")
				}
				t.row(r.Name(), shortID(r.Container), addresses(r.Addresses), strings.Join(r.Ports, ","), sources, ago(&r.Since))
			}
			return t.flush()
		},
	}
	where.register(cmd)
	output.register(cmd)
	return cmd
}

// shortID is a container's ID as other tools show it.
func shortID(id string) string { return id[:min(len(id), 13)] }

func addresses(list []netip.Addr) string {
	if len(list) == 0 {
		return "-"
	}
	var out []string
	for _, a := range list {
		out = append(out, a.String())
	}
	return strings.Join(out, ",")
}
