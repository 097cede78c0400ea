// SPDX-License-Identifier: Apache-2.0

// bench measures what untracked costs: `make bench`. It needs root, and Linux 5.17 for the peers it compares with.
//
// Machines are noisy, virtual ones more so. Every figure is therefore taken in rounds that are interleaved with
// those of what it is compared with, and shown as median, minimum and ratio of medians in the same run. All that is
// synthetic comes from a fixed seed.
//
// What it is not: a test. A goal that is missed is shown, and the exit status stays 0.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/untracked-cni/untracked/test/lab"
)

// effort is how long to measure.
type effort struct {
	quick  bool
	rounds int
	// repeat is how often a sample runs a program, unless that takes longer than sample.
	repeat int
	sample time.Duration
}

var (
	full  = effort{rounds: 11, repeat: 1_000_000, sample: 300 * time.Millisecond}
	quick = effort{quick: true, rounds: 2, repeat: 50_000, sample: 10 * time.Millisecond}
)

// section is a table of rows.
type section struct {
	name, title string
	// base is the case that ratios refer to, unless a table has several.
	base string
	run  func(effort) ([]Row, error)
}

var sections = []section{
	{"packets", "Cost of a packet, the full program by BPF_PROG_TEST_RUN; ratio to the empty program", emptyCase, benchPackets},
	{"control", "Changing the policy, a CNI call from fork to exit (ratio to portmap's ADD), memory, the kernel's work", portmapCase, benchControl},
	{"pods", "Pods with ports of their own: a CNI call from fork to exit (ratio to portmap's ADD), a datagram", "", benchPods},
	{"connections", "Short TCP connections and new UDP flows over veth, real sockets, per second; ratio to no netfilter", "", benchConnections},
}

func main() {
	out := flag.String("json", "", "write the rows to this file, too; with -plot: read them from it (bench.json)")
	hasty := flag.Bool("quick", false, "fewer rounds and no large sets: to see that it works, not to measure")
	only := flag.String("only", "", "one section: packets, control, pods or connections")
	plots := flag.String("plot", "", "measure nothing, draw the plots of an earlier run into this directory")
	flag.Parse()
	e := full
	if *hasty {
		e = quick
	}
	err := func() error {
		if *plots != "" {
			return replot(*out, *plots)
		}
		return run(*out, *only, e)
	}()
	if err != nil {
		progress("")
		fmt.Fprintln(os.Stderr, "bench:", err)
		lab.CloseAll()
		os.Exit(1)
	}
}

func run(out, only string, e effort) error {
	if os.Geteuid() != 0 {
		return lab.ErrNotRoot
	}
	lab.CloseOnSignal()
	report := newReport()
	fmt.Printf("%s\n%s, %s\n\n", report.Machine, report.Commit, report.Date.Format(time.DateOnly))
	for _, s := range sections {
		if only != "" && only != s.name {
			continue
		}
		rows, err := s.run(e)
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		for i := range rows {
			rows[i].Section = s.name
		}
		if err := printRows(os.Stdout, s.title, s.base, rows); err != nil {
			return err
		}
		report.Rows = append(report.Rows, rows...)
	}
	if len(report.Rows) == 0 {
		return fmt.Errorf("no section %q", only)
	}
	missed, all := missed(report.Rows)
	if all > 0 {
		fmt.Printf("%d of %d goals met\n", all-missed, all)
	}
	if out != "" {
		if err := report.write(out); err != nil {
			return err
		}
	}
	if e.quick || only != "" {
		return nil
	}
	root, err := lab.ModuleRoot()
	if err != nil {
		return err
	}
	return drawPlots(&report, filepath.Join(root, "test", "bench"))
}

func replot(in, dir string) error {
	if in == "" {
		in = "bench.json"
	}
	report, err := readReport(in)
	if err != nil {
		return err
	}
	return drawPlots(&report, dir)
}
