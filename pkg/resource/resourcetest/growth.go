// SPDX-License-Identifier: Apache-2.0

// Package resourcetest measures how the cost of work on resources grows with their number.
package resourcetest

import (
	"math"
	"runtime"
	"runtime/debug"
	"testing"
	"time"
)

// Linear fails a test if work on four times as much costs more than eight times as much: linear work costs four times,
// quadratic work sixteen. prepare returns the work on n of something; n of it should take some milliseconds.
func Linear(t *testing.T, n int, prepare func(n int) (work func())) {
	t.Helper()
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	measure := func(work func()) time.Duration {
		runtime.GC()
		start := time.Now()
		work()
		return time.Since(start)
	}
	// Whatever else runs holds up some rounds: each of the two counts as the fastest that it ever was.
	few, many := time.Duration(math.MaxInt64), time.Duration(math.MaxInt64)
	workOnFew, workOnMany := prepare(n), prepare(4*n)
	for range 40 {
		few, many = min(few, measure(workOnFew)), min(many, measure(workOnMany))
		if many <= 8*few {
			return
		}
	}
	t.Errorf("%d take %v, %d take %v", n, few, 4*n, many)
}
