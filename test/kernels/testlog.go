// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// testLog is what tests printed.
type testLog struct {
	passed, failed, skipped []string
	// verdicts is how many of the programs' were compared with the specification's.
	verdicts int
	// features are what the tests found the kernel to have or not, in the order they told.
	features []string
	// failures is the output of those that failed.
	failures string
}

// testEvent is one of those that `go doc test2json` describes.
type testEvent struct {
	Action, Test, Output, Key, Value string
}

// readTestLog finds the output of tests, run with -test.v=test2json, on a console.
func readTestLog(console []byte) (l testLog, err error) {
	cmd := exec.Command("go", "tool", "test2json")
	cmd.Stdin = bytes.NewReader(console)
	events, err := cmd.Output()
	said := map[string]string{}
	for d := json.NewDecoder(bytes.NewReader(events)); err == nil; {
		var e testEvent
		if err = d.Decode(&e); err == nil {
			said[e.Test] += e.Output
			l.add(e, said[e.Test])
		}
	}
	if !errors.Is(err, io.EOF) {
		return l, fmt.Errorf("read the output of tests: %w", err)
	}
	return l, nil
}

var comparedVerdicts = regexp.MustCompile(`\b([0-9]+) verdicts compared`)

// add takes an event in; said is all that its test has printed up to now.
func (l *testLog) add(e testEvent, said string) {
	if e.Test == "" { // about all of them together
		return
	}
	switch e.Action {
	case "attr":
		if feature := e.Key + " " + e.Value; !slices.Contains(l.features, feature) {
			l.features = append(l.features, feature)
		}
	case "output":
		if m := comparedVerdicts.FindStringSubmatch(e.Output); m != nil {
			n, _ := strconv.Atoi(m[1])
			l.verdicts += n
		}
	case "pass":
		l.passed = append(l.passed, e.Test)
	case "skip":
		l.skipped = append(l.skipped, e.Test)
	case "fail":
		l.failed = append(l.failed, e.Test)
		l.failures += said
	}
}

// ran reports whether there was a test whose name begins so.
func (l *testLog) ran(name string) bool {
	name = strings.TrimSuffix(name, "$")
	return slices.ContainsFunc(slices.Concat(l.passed, l.skipped, l.failed), func(test string) bool {
		return strings.HasPrefix(test, name)
	})
}
