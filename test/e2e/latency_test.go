// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/untracked-cni/untracked/test/e2e/cluster"
)

// How much longer a pod start takes with the plugin than without it, as kubelet measures RunPodSandbox. The two take turns, for
// the machine's moods to hit both.
func TestLatency(t *testing.T) {
	const turns = 20
	for _, r := range cluster.Runtimes {
		t.Run(r.Name, func(t *testing.T) {
			n := newNode(t, r, policy())
			n.run("first")
			seconds := map[bool][]float64{}
			for turn := range 2 * turns {
				with := (turn+turn/2)%2 == 0 // each goes first as often as the other
				if with {
					n.write(policy())
				} else {
					n.write(nil)
				}
				n.awaitChain(with)
				sum, count := n.sandboxSeconds()
				name := fmt.Sprintf("pod-%d", turn)
				n.kubelet.WritePod(cluster.Pod{Name: name})
				n.Await("kubelet has measured RunPodSandbox", func() error {
					now, runs := n.sandboxSeconds()
					if runs == count {
						return errNotYet
					}
					seconds[with] = append(seconds[with], (now-sum)/(runs-count))
					return nil
				})
				n.remove(name)
			}
			n.wantCalls("", turns+1)
			// Of two neighbours, the machine was in the same mood.
			var more []float64
			for i, with := range seconds[true] {
				more = append(more, with-seconds[false][i])
			}
			with, without := median(seconds[true]), median(seconds[false])
			t.Logf("RunPodSandbox, median of %d: %.0f ms with untracked, %.0f ms without, ratio %.3f; of neighbours, %+.1f ms; minimum: %.0f ms, %.0f ms; ADD by its own account %v",
				turns, 1000*with, 1000*without, with/without, 1000*median(more), 1000*seconds[true][0], 1000*seconds[false][0], n.medianADD())
			// What kubelet can see is a few milliseconds; twice the time would be another plugin.
			if with > 2*without {
				t.Errorf("RunPodSandbox takes %.3f s with untracked, %.3f s without", with, without)
			}
		})
	}
}

// sandboxSeconds is how long kubelet has waited for RunPodSandbox in all, and how often.
func (n *e2eNode) sandboxSeconds() (sum, count float64) {
	n.Helper()
	values := map[string]*float64{"sum": &sum, "count": &count}
	for _, m := range sandboxMetric.FindAllStringSubmatch(n.kubelet.Metrics(), -1) {
		*values[m[1]] = must(strconv.ParseFloat(m[2], 64))(n)
	}
	if count == 0 {
		n.Fatal("kubelet has no metric of RunPodSandbox")
	}
	return sum, count
}

var sandboxMetric = regexp.MustCompile(`kubelet_runtime_operations_duration_seconds_(sum|count){operation_type="run_podsandbox"} (\S+)`)

// awaitChain waits until the runtime has read the conflist, with our entry or without.
func (n *e2eNode) awaitChain(with bool) {
	n.Helper()
	n.Await("the runtime has read the conflist", func() error {
		if got := strings.Contains(n.containerd.Status().Chain, `"untracked"`); got != with {
			return fmt.Errorf("it has untracked in its chain: %v, want %v", got, with)
		}
		return nil
	})
}

var addLine = regexp.MustCompile(`msg=ADD .* duration=(\S+)`)

// medianADD is how long ADD took by the plugin's log, from the second pod on.
func (n *e2eNode) medianADD() time.Duration {
	n.Helper()
	var seconds []float64
	for _, m := range addLine.FindAllStringSubmatch(string(must(n.ReadFile(cluster.LogFile))(n)), -1)[1:] {
		seconds = append(seconds, must(time.ParseDuration(m[1]))(n).Seconds())
	}
	return time.Duration(median(seconds) * float64(time.Second))
}

// median sorts, and returns the middle.
func median(v []float64) float64 {
	slices.Sort(v)
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}
