// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/untracked-cni/untracked/test/e2e/cluster"
)

// A hundred pods with ports of their own that come at once and go at once leave nothing.
func TestStorm(t *testing.T) {
	const pods = 100
	for _, r := range cluster.Runtimes {
		t.Run(r.Name, func(t *testing.T) {
			n := newNode(t, r, policy())
			n.allowPods("allow")
			n.run("first")
			before, program := n.remains(), n.program()

			var names []string
			for i := range pods {
				names = append(names, fmt.Sprintf("storm-%d", i))
			}
			begin := time.Now()
			for _, name := range names {
				n.kubelet.WritePod(annotated(name))
			}
			n.kubelet.AwaitRunning(names...)
			up, during := time.Since(begin), n.remains()
			n.wantInForce()
			begin = time.Now()
			n.remove(names...)
			down, after := time.Since(begin), n.remains()

			t.Logf("%d pods ran after %.1f s, were gone after %.1f s", pods, up.Seconds(), down.Seconds())
			t.Logf("before: %v", before)
			t.Logf("during: %v", during)
			t.Logf("after:  %v", after)
			n.wantRemains(before)
			if during.Veths != before.Veths+pods || during.Addresses != before.Addresses+2*pods {
				t.Errorf("with %d pods more: %v; before: %v", pods, during, before)
			}
			if during.Elements <= before.Elements || during.Records <= before.Records {
				t.Errorf("with %d pods more that have ports: %v; before: %v", pods, during, before)
			}
			if got := n.program(); got != program {
				t.Errorf("program %d is on eth0, was %d before the storm", got, program)
			}
			n.wantCalls("", pods+1)
			n.wantInForce()
		})
	}
}
