// SPDX-License-Identifier: Apache-2.0

// bench measures what untracked costs: `make bench`. It needs root.
//
// Machines are noisy, virtual ones more so. Every figure is therefore taken in rounds that are interleaved with
// those of what it is compared with, and shown as median, minimum and ratio of medians in the same run.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"slices"
	"text/tabwriter"

	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/test/lab"
)

// Row is one line of a table. Values are in Unit.
type Row struct {
	Section string  `json:"section"`
	Case    string  `json:"case"`
	Unit    string  `json:"unit"`
	Median  float64 `json:"median"`
	Min     float64 `json:"min"`
	Max     float64 `json:"max"`
	// Ratio is Median over the median of what the section compares with.
	Ratio float64 `json:"ratio"`
}

// Section is a group of rows that were measured in interleaved rounds.
type Section struct {
	Title string
	run   func(rounds int) ([]Row, error)
}

func main() {
	out := flag.String("json", "", "write the rows to this file, too")
	quick := flag.Bool("quick", false, "fewer rounds: to see that it works, not to measure")
	only := flag.String("only", "", "one section: packets, add or connections")
	flag.Parse()
	if err := run(*out, *only, *quick); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(out, only string, quick bool) error {
	if os.Geteuid() != 0 {
		return lab.ErrNotRoot
	}
	lab.CloseOnSignal()
	rounds := 11
	if quick {
		rounds = 2
	}
	sections := map[string]Section{
		"packets":     {"Cost of a packet (BPF_PROG_TEST_RUN, ns; ratio to the empty program)", benchPackets},
		"add":         {"A whole CNI call as a runtime sees it (fork to exit, ms; ratio to portmap's ADD)", benchAdd},
		"connections": {"Short TCP connections and new UDP flows over veth (per second; ratio to no netfilter)", benchConnections},
	}
	var all []Row
	for _, name := range []string{"packets", "add", "connections"} {
		if only != "" && only != name {
			continue
		}
		s := sections[name]
		rows, err := s.run(rounds)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		for i := range rows {
			rows[i].Section = name
		}
		printRows(s.Title, rows)
		all = append(all, rows...)
	}
	if len(all) == 0 {
		return fmt.Errorf("no section %q", only)
	}
	if out == "" {
		return nil
	}
	data, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(out, append(data, '\n'), 0o644)
}

func printRows(title string, rows []Row) {
	var uts unix.Utsname
	_ = unix.Uname(&uts)
	fmt.Printf("%s\nLinux %s\n", title, unix.ByteSliceToString(uts.Release[:]))
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "median\tmin\tmax\tratio\t  case")
	for _, r := range rows {
		fmt.Fprintf(w, "%.4g\t%.4g\t%.4g\t%.2f\t  %s\n", r.Median, r.Min, r.Max, r.Ratio, r.Case)
	}
	w.Flush()
	fmt.Println()
}

// subject is one thing to measure; sample gives one value a round.
type subject struct {
	name   string
	sample func() (float64, error)
}

// interleave measures all subjects in turn, round by round, and relates them to the one named base.
func interleave(subjects []subject, rounds int, unit, base string) ([]Row, error) {
	values := make([][]float64, len(subjects))
	for range rounds {
		for i, s := range subjects {
			v, err := s.sample()
			if err != nil {
				return nil, fmt.Errorf("%s: %w", s.name, err)
			}
			values[i] = append(values[i], v)
		}
	}
	rows := make([]Row, len(subjects))
	reference := 0.0
	for i, s := range subjects {
		slices.Sort(values[i])
		rows[i] = Row{Case: s.name, Unit: unit, Median: median(values[i]), Min: values[i][0], Max: values[i][len(values[i])-1]}
		if s.name == base {
			reference = rows[i].Median
		}
	}
	for i := range rows {
		rows[i].Ratio = rows[i].Median / reference
	}
	return rows, nil
}

func median(sorted []float64) float64 {
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}
