// SPDX-License-Identifier: Apache-2.0

package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Applies counts what callers on this node have attempted since it booted, or since untracked was removed. Each caller is
// a process of its own, so the count is a file of the run directory, which only the holder of the lock writes. It
// is apart from the record because it outlives that: an attempt that fails is counted, too, whatever became of the record.
// A caller that found nothing to do, or was killed, is not.
type Applies struct {
	Total    uint64 `json:"total"`
	Failures uint64 `json:"failures"`
	// Seconds is how long all took, the wait for the lock excluded.
	Seconds float64 `json:"seconds"`
	// Last is when the last one ended, LastSeconds how long it took, and LastFailed whether it failed.
	Last        time.Time `json:"last,omitzero"`
	LastSeconds float64   `json:"lastSeconds"`
	LastFailed  bool      `json:"lastFailed"`
	// LastSuccess is when the last one ended that put all of the policy in force; zero if none did.
	LastSuccess time.Time `json:"lastSuccess,omitzero"`
}

const appliesFile = "applies.json"

// attempt is an apply that is to be counted.
type attempt struct {
	node   *Node
	before Applies
	began  time.Time
}

// begin begins an attempt, under the lock.
func (n *Node) begin() *attempt {
	before, err := readApplies(n.RunDir)
	if err != nil {
		n.Log.Warn("the count of applies starts anew", "error", err)
	}
	return &attempt{n, before, time.Now()}
}

// ended counts the attempt. To say so again, with another outcome, replaces what was said. Who has a record to write says
// so before: that is always the last, so that a killed caller leaves nothing half done behind it.
// That an attempt cannot be counted is no reason for it to fail.
func (t *attempt) ended(failed bool) {
	a := t.before
	a.Total++
	a.Last, a.LastSeconds, a.LastFailed = time.Now().UTC(), time.Since(t.began).Seconds(), failed
	a.Seconds += a.LastSeconds
	if failed {
		a.Failures++
	} else {
		a.LastSuccess = a.Last
	}
	if err := writeFile(t.node.RunDir, appliesFile, a); err != nil {
		t.node.Log.Warn("this apply is not counted", "error", err)
	}
}

// readApplies returns zeroes without an error where nothing was ever applied.
func readApplies(runDir string) (a Applies, err error) {
	data, err := os.ReadFile(filepath.Join(runDir, appliesFile))
	if errors.Is(err, fs.ErrNotExist) {
		return Applies{}, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &a)
	}
	if err != nil {
		return Applies{}, fmt.Errorf("read %s: %w", appliesFile, err)
	}
	return a, nil
}
