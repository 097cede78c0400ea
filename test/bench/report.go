// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// Report is what bench.json holds.
type Report struct {
	Machine Machine   `json:"machine"`
	Date    time.Time `json:"date"`
	// Commit is `git describe` of the source tree.
	Commit string `json:"commit"`
	Rows   []Row  `json:"rows"`
}

// Machine is where the figures come from.
type Machine struct {
	Kernel   string `json:"kernel"`
	CPU      string `json:"cpu"`
	CPUs     int    `json:"cpus"`
	Governor string `json:"governor,omitempty"`
}

func (m Machine) String() string {
	text := fmt.Sprintf("Linux %s, %d x %s", m.Kernel, m.CPUs, m.CPU)
	if m.Governor != "" {
		text += ", governor " + m.Governor
	}
	return text
}

// Row is one line of a table. Values are in Unit.
type Row struct {
	Section string  `json:"section"`
	Case    string  `json:"case"`
	Unit    string  `json:"unit"`
	Median  float64 `json:"median"`
	Min     float64 `json:"min"`
	Max     float64 `json:"max"`
	// Ratio is Median over the median of what the section compares with, 0 where it compares with nothing.
	Ratio float64 `json:"ratio,omitempty"`
	Goals []Goal  `json:"goals,omitempty"`
	// Series and X place the row in a plot.
	Series string  `json:"series,omitempty"`
	X      float64 `json:"x,omitempty"`
	// Note says why the row has no values.
	Note string `json:"note,omitempty"`
}

// Goal is a bound that a row's median should keep, as it is or in relation to another row's.
type Goal struct {
	Limit float64 `json:"limit"`
	// Of is the case whose median is 1. "" where Limit has the row's unit.
	Of string `json:"of,omitempty"`
	// Value is what Limit is compared with.
	Value float64 `json:"value"`
	Met   bool    `json:"met"`
}

func atMost(limit float64) Goal                 { return Goal{Limit: limit} }
func timesAtMost(limit float64, of string) Goal { return Goal{Limit: limit, Of: of} }

// relate computes the ratio to base and whether the goals are met.
func (r *Row) relate(rows []Row, base string) {
	if r.Note != "" {
		return
	}
	of := func(name string) float64 {
		for i := range rows {
			if rows[i].Case == name && rows[i].Median > 0 {
				return r.Median / rows[i].Median
			}
		}
		return 0
	}
	if base != "" {
		r.Ratio = of(base)
	}
	for i := range r.Goals {
		g := &r.Goals[i]
		if g.Value = r.Median; g.Of != "" {
			g.Value = of(g.Of)
		}
		g.Met = g.Value > 0 && g.Value <= g.Limit
	}
}

func (g Goal) words(unit, base string) string {
	switch g.Of {
	case "":
		return fmt.Sprintf("≤ %s %s", number(g.Limit), unit)
	case base:
		return fmt.Sprintf("≤ %gx", g.Limit)
	}
	return fmt.Sprintf("≤ %gx of %s: %.2f", g.Limit, g.Of, g.Value)
}

// number is v with as many digits as mean something.
func number(v float64) string {
	switch {
	case v >= 1000:
		return fmt.Sprintf("%.0f", v)
	case v >= 100:
		return fmt.Sprintf("%.4g", v)
	}
	return fmt.Sprintf("%.3g", v)
}

// print writes a section's table.
func printRows(w io.Writer, title, base string, rows []Row) error {
	fmt.Fprintf(w, "%s\n", title)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "median\tmin\tunit\tratio\tgoal\tmet\tcase")
	for _, r := range rows {
		if r.Note != "" {
			fmt.Fprintf(t, "-\t-\t\t\t\t\t%s: %s\n", r.Case, r.Note)
			continue
		}
		ratio := ""
		if r.Ratio > 0 {
			ratio = fmt.Sprintf("%.2f", r.Ratio)
		}
		var goals, met []string
		for _, g := range r.Goals {
			goals = append(goals, g.words(r.Unit, base))
			met = append(met, map[bool]string{true: "yes", false: "NO"}[g.Met])
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", number(r.Median), number(r.Min), r.Unit, ratio,
			strings.Join(goals, ", "), strings.Join(met, ", "), r.Case)
	}
	fmt.Fprintln(t)
	return t.Flush()
}

// missed counts the goals that are not met.
func missed(rows []Row) (missed, all int) {
	for _, r := range rows {
		for _, g := range r.Goals {
			if r.Note == "" {
				all++
				if !g.Met {
					missed++
				}
			}
		}
	}
	return missed, all
}

func newReport() Report {
	return Report{Machine: thisMachine(), Date: time.Now().UTC().Truncate(time.Second), Commit: describe()}
}

func thisMachine() Machine {
	var uts unix.Utsname
	_ = unix.Uname(&uts)
	m := Machine{Kernel: unix.ByteSliceToString(uts.Release[:]), CPUs: runtime.NumCPU(), CPU: "unknown CPU"}
	info, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(info)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			m.CPU = strings.TrimSpace(value)
			break
		}
	}
	governor, _ := os.ReadFile("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
	m.Governor = strings.TrimSpace(string(governor))
	return m
}

// describe names the commit; "unknown" outside of a git tree.
func describe() string {
	out, err := exec.Command("git", "describe", "--tags", "--always", "--dirty").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}

func (r *Report) write(path string) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(data, '\n'), 0o644)
}

func readReport(path string) (r Report, err error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(data, &r); err != nil {
		return r, fmt.Errorf("read %s: %w", path, err)
	}
	return r, nil
}
