// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
)

// outcome is what there is to tell of one series.
type outcome struct {
	series, release string
	machineRun
	// unavailable says why the kernel could not be had, err what went wrong with it.
	unavailable, err error
	tests            testLog
}

// resultPrefix begins the line with which ./init ends.
const resultPrefix = "kernel test: "

// judge says what went wrong on a console, nil if nothing did. wanted are prefixes of the names of tests that must have run.
func judge(console []byte, tests *testLog, wanted []string) error {
	result := ""
	for line := range bytes.Lines(console) {
		if text, ok := strings.CutPrefix(strings.TrimSpace(string(line)), resultPrefix); ok {
			result = text
		}
	}
	switch {
	case tests.failed != nil:
		return fmt.Errorf("failed: %s", strings.Join(tests.failed, ", "))
	case result == "":
		return errors.New("the machine did not come to an end")
	case result != "pass":
		return errors.New(result)
	case tests.passed == nil:
		return errors.New("no test has run")
	}
	for _, prefix := range wanted {
		if !tests.ran(prefix) {
			return fmt.Errorf("no test is called %s…", prefix)
		}
	}
	return nil
}

// print writes a line, and below it what explains a failure. whole is for the console.
func (o *outcome) print(w io.Writer, whole bool) {
	if whole {
		fmt.Fprintf(w, "%s\n", o.console)
	}
	if o.unavailable != nil {
		fmt.Fprintf(w, "skip  %s: %s\n", o.series, oneLine(o.unavailable))
		return
	}
	took := fmt.Sprintf("%s, %.0f s (%.0f of the processor)", o.release, o.took.Seconds(), o.cpu.Seconds())
	if o.err != nil {
		fmt.Fprintf(w, "FAIL  %s: %s\n%s", took, oneLine(o.err), o.tests.failures)
		if o.tests.failures == "" && !whole {
			fmt.Fprint(w, lastLines(o.console, 40))
		}
		return
	}
	fmt.Fprintf(w, "pass  %s: %d tests, %d verdicts compared", took, len(o.tests.passed), o.tests.verdicts)
	if o.tests.skipped != nil {
		fmt.Fprintf(w, "; skipped %s", strings.Join(o.tests.skipped, ", "))
	}
	fmt.Fprintln(w)
	if o.tests.features != nil {
		fmt.Fprintf(w, "      %s\n", strings.Join(o.tests.features, ", "))
	}
}

func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

func lastLines(console []byte, n int) string {
	lines := strings.SplitAfter(string(console), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "")
}
