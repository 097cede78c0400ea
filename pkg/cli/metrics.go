// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"time"

	"github.com/spf13/cobra"

	"github.com/untracked-cni/untracked/pkg/filelock"
	"github.com/untracked-cni/untracked/pkg/metrics"
	"github.com/untracked-cni/untracked/pkg/node"
)

func newMetrics(version string) *cobra.Command {
	var where places
	var listen, textfile string
	var maxRules int
	cmd := &cobra.Command{
		Use:   "metrics",
		Short: "Print or serve what there is to measure, for Prometheus",
		Long: `Prints metrics of this node as OpenMetrics text: packets and bytes of interfaces and rules, whether programs are attached
and the policy is in force, how applies went, conntrack entries and limit, problems. It only reads, and never waits for
an apply.

--listen serves them at /metrics in the format that the scraper asks for, and /healthz for probes, until it is
told to end. While the address is taken it waits.
--textfile replaces a file in one step, in the format that node_exporter's textfile collector reads; the name
must end in .prom for that. It is for a timer to repeat.

Where something cannot be read, the rest is printed; untracked_scrape_errors says what is missing.

Exit code 1 says that something could not be read.`,
		Example: `  untracked metrics
  untracked metrics --listen :10417
  untracked metrics --textfile /var/lib/prometheus/node-exporter/untracked.prom`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if maxRules < 0 {
				return usage(fmt.Errorf("--max-rules %d: want 0 for none, or a number of rules", maxRules))
			}
			var meter node.Meter
			read := func() ([]metrics.Family, error) {
				began := time.Now()
				// Another policy may have another BPF file system.
				m := meter.Measure(where.node(version, cmd.ErrOrStderr()))
				options := metrics.Options{Version: version, MaxRules: maxRules, Took: time.Since(began)}
				return metrics.Families(m, options), errorOf(m)
			}
			if listen != "" {
				return serveMetrics(cmd.Context(), listen, where.runDir, cmd.ErrOrStderr(), read)
			}
			families, unread := read()
			err := error(nil)
			if textfile != "" {
				err = metrics.WriteFile(textfile, families)
			} else {
				err = metrics.Write(cmd.OutOrStdout(), metrics.OpenMetrics, families)
			}
			if err := errors.Join(err, unread); err != nil {
				return failed(err)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&listen, "listen", "", "serve at this address, as in :10417 or 192.0.2.1:10417")
	cmd.Flags().StringVar(&textfile, "textfile", "", "write to this file")
	cmd.Flags().IntVar(&maxRules, "max-rules", 1000, "tell of so many rules one by one (0: of none)")
	cmd.MarkFlagsMutuallyExclusive("listen", "textfile")
	where.register(cmd)
	return cmd
}

// errorOf is everything that could not be read, in order.
func errorOf(m *node.Measurement) error {
	var errs []error
	for _, part := range node.MeasuredParts {
		for _, err := range m.Errors[part] {
			errs = append(errs, fmt.Errorf("read %s: %w", part, err))
		}
	}
	return errors.Join(errs...)
}

// serveMetrics logs what goes wrong when it begins to and when it is over, not at each scrape. In a container whose run
// directory is gone from the host it ends, as it would tell of no policy for ever.
func serveMetrics(ctx context.Context, address, runDir string, stderr io.Writer, read func() ([]metrics.Family, error)) error {
	if _, _, err := net.SplitHostPort(address); err != nil {
		return usage(fmt.Errorf("--listen %s: want ADDRESS:PORT or :PORT: %w", address, err))
	}
	log := slog.New(slog.NewTextHandler(stderr, nil))
	l, err := metrics.Listen(ctx, address, func(err error) { log.Warn("waiting for the address", "error", err) })
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return failed(err)
	}
	log.Info("serving metrics", "url", fmt.Sprintf("http://%s/metrics", l.Addr()))
	ctx, end := context.WithCancel(ctx)
	defer end()
	last := ""
	server := &metrics.Server{Metrics: func() []metrics.Family {
		if filelock.IsRemoved(runDir) {
			end()
		}
		families, err := read()
		switch {
		case err == nil && last != "":
			log.Info("everything can be read again")
			last = ""
		case err != nil && err.Error() != last:
			last = err.Error()
			log.Warn("not everything can be read", "error", err)
		}
		return families
	}}
	if err := server.Serve(ctx, l); err != nil {
		return failed(err)
	}
	if filelock.IsRemoved(runDir) {
		return failed(filelock.RemovedError(runDir))
	}
	log.Info("told to end")
	return nil
}
