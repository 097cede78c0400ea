// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// subject is one thing to measure; sample gives one value a round.
type subject struct {
	name   string
	sample func() (float64, error)
	goals  []Goal
	// series and x place the subject in a plot. (optional)
	series string
	x      float64
	// note says why there is nothing to measure; sample is then nil.
	note string
}

// interleave measures all subjects in turn, round by round, and relates them to the one named base ("" for none).
func interleave(subjects []subject, rounds int, unit, base string) ([]Row, error) {
	values := make([][]float64, len(subjects))
	for round := range rounds {
		for i, s := range subjects {
			if s.sample == nil {
				continue
			}
			progress("round %d of %d, %d of %d: %s", round+1, rounds, i+1, len(subjects), s.name)
			v, err := s.sample()
			if err != nil {
				return nil, fmt.Errorf("%s: %w", s.name, err)
			}
			values[i] = append(values[i], v)
		}
	}
	progress("")
	rows := make([]Row, len(subjects))
	for i, s := range subjects {
		rows[i] = newRow(s, unit, values[i])
	}
	for i := range rows {
		rows[i].relate(rows, base)
	}
	return rows, nil
}

func newRow(s subject, unit string, values []float64) Row {
	r := Row{Case: s.name, Unit: unit, Goals: slices.Clone(s.goals), Series: s.series, X: s.x, Note: s.note}
	if len(values) > 0 {
		slices.Sort(values)
		r.Median, r.Min, r.Max = median(values), values[0], values[len(values)-1]
	}
	return r
}

// once is a subject that has one value, measured already.
func once(name string, value float64, goals ...Goal) subject {
	return subject{name: name, sample: func() (float64, error) { return value, nil }, goals: goals}
}

func median(sorted []float64) float64 {
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// progress shows on a terminal what is being done; "" clears the line.
func progress(format string, args ...any) {
	if !onTerminal {
		return
	}
	fmt.Fprint(os.Stderr, "\r\033[K")
	fmt.Fprintf(os.Stderr, format, args...)
}

var onTerminal = func() bool {
	_, err := unix.IoctlGetTermios(int(os.Stderr.Fd()), unix.TCGETS)
	return err == nil
}()
