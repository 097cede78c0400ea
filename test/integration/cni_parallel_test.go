// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/untracked-cni/untracked/pkg/node"
	"github.com/untracked-cni/untracked/test/lab"
)

// A node that has just booted starts all its pods at once.
func TestCNIHundredAddsAtOnce(t *testing.T) {
	l, chain, pod := cniChain(t, cniPolicy())
	stdin := chain.Stdin([]byte(cniPrev("1.1.0")))
	want := cniPrev("1.1.0") + "\n"
	const callers = 100
	outcomes := make([]*lab.Outcome, callers)
	errs := make([]error, callers)
	cniAtOnce(callers, func(i int) {
		// Distinct containers; the namespace is only looked at by the runtime's library.
		outcomes[i], errs[i] = chain.Plugin("ADD", &lab.NS{Name: fmt.Sprintf("%s-%d", pod.Name, i), Path: pod.Path}, stdin)
	})
	applied := 0
	for i := range callers {
		if errs[i] != nil {
			t.Errorf("caller %d: %v", i, errs[i])
			continue
		}
		if got := string(outcomes[i].Stdout); strings.Join(strings.Fields(got), "") != strings.Join(strings.Fields(want), "") {
			t.Errorf("caller %d printed %q", i, got)
		}
		applied += strings.Count(string(outcomes[i].Stderr), "applying policy")
	}
	if r := cniRecord(t, l); r.Generation != 1 || applied != 1 {
		t.Errorf("generation %d after %d applies: want one", r.Generation, applied)
	}
	cniHealthy(t, l, chain, pod)

	// The same while the policy changes under them: half the callers have the old conf list still. Each
	// change is an apply; whoever was last, the node is whole.
	other := must(l.Chain(lab.ChainConfig{Annotations: cniPolicy("deny", "192.0.2.0/24")}))(t)
	other.Network = chain.Network
	stdins := [][]byte{stdin, other.Stdin([]byte(cniPrev("1.1.0")))}
	cniAtOnce(20, func(i int) { cniAddPatiently(t, chain, pod, stdins[i%2]) })
	cniTidy(t, l)
	cniAdd(t, chain, pod)
	cniHealthy(t, l, chain, pod)
}

func TestCNIPodsByCnitoolAtOnce(t *testing.T) {
	l, chain, _ := cniChain(t, cniPolicy())
	const pods = 12
	cniAtOnce(pods, func(i int) {
		pod, err := l.AddNS(fmt.Sprintf("pod%d", i))
		if err != nil {
			t.Error(err)
			return
		}
		out, err := chain.Add(pod)
		if err != nil {
			t.Error(err)
			return
		}
		// Ours alone: the bridge's MAC address still changes while pods come, and its own CHECK minds.
		if _, err := chain.Plugin("CHECK", pod, chain.Stdin(out.Stdout)); err != nil {
			t.Errorf("check of pod %d: %v", i, err)
		}
		if i%2 == 0 {
			if _, err := chain.Del(pod); err != nil {
				t.Errorf("del of pod %d: %v", i, err)
			}
		}
	})
	if r := cniRecord(t, l); r.Generation != 1 {
		t.Errorf("generation %d, want 1", r.Generation)
	}
	cniTidy(t, l)
	if s, exit := cniStatus(t, l); exit != 0 || len(s.Interfaces) != 1 || !s.Interfaces[0].Attached {
		t.Errorf("status: exit status %d, %+v", exit, s)
	}
}

// Two callers on a node where one removes what the other sets up: each does its whole job.
func TestCNIRemoveAmongAdds(t *testing.T) {
	l, chain, pod := cniChain(t, cniPolicy())
	cniAtOnce(15, func(i int) {
		if i%3 > 0 {
			cniAddPatiently(t, chain, pod, chain.Stdin([]byte(cniPrev("1.1.0"))))
			return
		}
		out, err := l.Untracked("remove")
		for err == nil && out.ExitCode == 1 && strings.Contains(string(out.Stderr), node.ErrLocked.Error()) {
			out, err = l.Untracked("remove")
		}
		if err != nil || out.ExitCode != 0 {
			t.Errorf("remove: %v, %+v", err, out)
		}
	})
	cniAdd(t, chain, pod)
	cniHealthy(t, l, chain, pod)
	if out := must(l.Untracked("remove"))(t); out.ExitCode != 0 {
		t.Errorf("remove: %s", out.Stderr)
	}
	cniNothing(t, l)
}

// cniAddPatiently runs ADD as a runtime does: code 11 says try again later. On a machine that has other things to
// do, each of many changes takes the kernel long, and the last of the queue may have to.
func cniAddPatiently(t *testing.T, chain *lab.Chain, pod *lab.NS, stdin []byte) {
	t.Helper()
	_, err := chain.Plugin("ADD", pod, stdin)
	for cniCode(err) == 11 {
		_, err = chain.Plugin("ADD", pod, stdin)
	}
	if err != nil {
		t.Errorf("ADD: %v", err)
	}
}

func cniAtOnce(n int, fn func(i int)) {
	var wg sync.WaitGroup
	start := make(chan struct{})
	for i := range n {
		wg.Go(func() {
			<-start
			fn(i)
		})
	}
	close(start)
	wg.Wait()
}
