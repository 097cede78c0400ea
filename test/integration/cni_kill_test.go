// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/pkg/node"
	"github.com/untracked-cni/untracked/test/lab"
)

// cniVictim is a node under traffic, whose callers get killed.
type cniVictim struct {
	*lab.Lab
	pod    *lab.NS
	chains map[string]*lab.Chain
	echo   *lab.Server
	// counted is how many packets each of the rules that all policies share must have counted, in each direction.
	counted uint64
	denied  uint64
}

// All policies share udp/7001 and the denied source; each has a TCP port besides, and a mode.
var cniPolicies = map[string]struct {
	port uint16
	mode string
}{"old": {7002, "auto"}, "new": {7003, "auto"}, "tc": {7004, "tc"}}

func cniNewVictim(t *testing.T) *cniVictim {
	t.Helper()
	l := lab.New(t, lab.Config{})
	v := &cniVictim{Lab: l, pod: must(l.AddNS("pod"))(t), chains: map[string]*lab.Chain{}}
	for name, p := range cniPolicies {
		v.chains[name] = must(l.Chain(lab.ChainConfig{Annotations: map[string]string{
			"ports": fmt.Sprintf("udp/7001,tcp/%d", p.port), "deny": l.Uplinks[0].Client4[7].String(), "mode": p.mode,
		}}))(t)
		v.chains[name].Network = l.Name + "-net" // one conf list, edited
		must(lab.ServeTCP(l.Node, p.port))(t)
	}
	v.echo = must(lab.ServeUDP(l.Node, 7001))(t)
	must(lab.AddStateful(l.Node, true))(t)
	return v
}

func (v *cniVictim) stdin(policy string) []byte {
	return v.chains[policy].Stdin([]byte(cniPrev("1.1.0")))
}

func (v *cniVictim) env(verb string) map[string]string { return cniEnv(v.chains["old"], verb, v.pod) }

// load sends datagrams to the port that all policies leave untracked, and some from the denied source.
func (v *cniVictim) load(t *testing.T) {
	t.Helper()
	u := v.Uplinks[0]
	const n = 3
	target := netip.AddrPortFrom(u.Node4, 7001)
	r := must(lab.LoadUDP(v.Client, lab.Load{Target: target, Sources: u.Client4[:1], Count: n, Timeout: cniPatience}))(t)
	if r.OK != n {
		t.Errorf("udp/7001: %v (%v)", r, r.FirstFailure)
	}
	served := v.echo.Served()
	must(lab.FloodUDP(v.Client, lab.Load{Target: target, Sources: u.Client4[7:8], Count: n}))(t)
	v.counted, v.denied = v.counted+n, v.denied+n
	if v.echo.Served() != served {
		t.Error("a denied datagram arrived")
	}
	if flows := must(lab.Flows(v.Node, lab.Port(7001)))(t); len(flows) != 0 {
		t.Errorf("udp/7001 is tracked: %v", &flows[0])
	}
}

// repair runs one plain ADD and asserts that all is as the policy wants it.
func (v *cniVictim) repair(t *testing.T, policy string) {
	t.Helper()
	chain := v.chains[policy]
	cniAdd(t, chain, v.pod)
	cniHealthy(t, v.Lab, chain, v.pod)
	v.load(t)
	v.counts(t)
	u := v.Uplinks[0]
	for name, p := range cniPolicies {
		port := p.port
		r := must(lab.LoadTCP(v.Client, lab.Load{Target: netip.AddrPortFrom(u.Node4, port), Sources: u.Client4[:1], Count: 2, Timeout: cniPatience}))(t)
		if r.OK != 2 {
			t.Errorf("tcp/%d: %v (%v)", port, r, r.FirstFailure)
		}
		flows := must(lab.CountFlows(v.Node, lab.Port(port)))(t)
		if (flows == 0) != (name == policy) {
			t.Errorf("tcp/%d has %d tracked flows under the %s policy", port, flows, policy)
		}
	}
	check(t, lab.FlushFlows(v.Node))
}

// counts asserts that the rules all policies share have lost no packet.
func (v *cniVictim) counts(t *testing.T) {
	t.Helper()
	var rules []node.RuleStatus
	read := func() (in, out, denied uint64) {
		check(t, lab.In(v.Node, func() (err error) {
			rules, err = cniNodeOf(v.Lab).Rules()
			return err
		}))
		for _, r := range rules {
			switch {
			case r.Policy == "deny":
				denied += r.Packets
			case r.Match == "udp to port 7001":
				in += r.Packets
			case r.Match == "udp from port 7001":
				out += r.Packets
			}
		}
		return in, out, denied
	}
	// The flood ends when it is sent, which on this wire is when it has arrived; read once more all the same.
	cniEventually(t, "the denied datagrams are counted", func() bool { _, _, denied := read(); return denied >= v.denied })
	if in, out, denied := read(); in != v.counted || out != v.counted || denied != v.denied {
		t.Errorf("counted %d in, %d out, %d denied; want %d, %d, %d", in, out, denied, v.counted, v.counted, v.denied)
	}
}

// remove takes everything off the node.
func (v *cniVictim) remove(t *testing.T) {
	t.Helper()
	check(t, lab.In(v.Node, func() error {
		_, err := cniNodeOf(v.Lab).Remove(context.Background())
		return err
	}))
	v.counted, v.denied = 0, 0
}

// cniMurders are the situations in which a caller is killed, and what comes after it.
var cniMurders = []struct {
	name string
	// had is the policy in force before, or none; victim the one that the killed caller brings.
	had, victim string
	// heirs are the policies that the next caller may bring: the same, or the one before as another pod's has it.
	heirs []string
}{
	{"fresh node", "", "new", []string{"new"}},
	{"new policy", "old", "new", []string{"new", "old"}},
	{"from XDP to tc", "old", "tc", []string{"tc", "old"}},
	{"from tc to XDP", "tc", "new", []string{"new", "tc"}},
}

// run kills a caller at one place after the other, until one lives, and returns where they died. The heirs take
// turns.
func (v *cniVictim) run(t *testing.T, had, victim string, heirs []string, kill func(n int) (string, bool)) (deaths []string) {
	t.Helper()
	for n := 1; n < 1000; n++ {
		heir := heirs[n%len(heirs)]
		if had == "" {
			v.remove(t)
		} else {
			cniAdd(t, v.chains[had], v.pod)
			v.load(t)
		}
		before, killed := kill(n)
		if !killed {
			v.repair(t, heir)
			return deaths
		}
		deaths = append(deaths, before)
		// What both policies leave untracked is never tracked, not even by half. Between two modes a packet may
		// be counted by both, so there is none.
		if had != "" && cniPolicies[had].mode == cniPolicies[victim].mode {
			v.load(t)
		}
		v.repair(t, heir)
		if t.Failed() {
			t.Fatalf("after a kill at %d, before %s", n, before)
		}
	}
	t.Fatal("the caller does not come to an end")
	return nil
}

func TestCNIKilledAtEachStep(t *testing.T) {
	for _, c := range cniMurders {
		for _, heir := range c.heirs {
			t.Run(c.name+", then "+heir, func(t *testing.T) {
				t.Parallel()
				v := cniNewVictim(t)
				deaths := v.run(t, c.had, c.victim, []string{heir}, func(n int) (string, bool) {
					return cniAtStep(t, v.Lab, v.stdin(c.victim), n)
				})
				t.Logf("killed before %q", deaths)
				for _, step := range []string{"file system", "programs of eth0", "table inet untracked", "counters", "conntrack", "clean", "record"} {
					if !slices.Contains(deaths, step) {
						t.Errorf("nobody was killed before step %q", step)
					}
				}
			})
		}
	}
}

func TestCNIKilledAtEachSystemCall(t *testing.T) {
	for _, c := range cniMurders {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			v := cniNewVictim(t)
			deaths := v.run(t, c.had, c.victim, c.heirs, func(n int) (string, bool) {
				return cniAtCall(t, v.Lab, v.env("ADD"), v.stdin(c.victim), n)
			})
			t.Logf("killed before %d calls: %q", len(deaths), deaths)
			for _, call := range []string{"bpf(OBJ_PIN)", "sendmsg", "renameat"} {
				if !slices.Contains(deaths, call) {
					t.Errorf("nobody was killed before %s", call)
				}
			}
		})
	}
}

// A remove that was killed is finished by the next, or undone by the next ADD.
func TestCNIRemoveKilledAtEachSystemCall(t *testing.T) {
	v := cniNewVictim(t)
	var deaths []string
	for n := 1; n < 1000; n++ {
		cniAdd(t, v.chains["old"], v.pod)
		before, killed := cniAtCall(t, v.Lab, nil, nil, n, "remove", "--bpffs", v.BPFFS, "--run-dir", v.RunDir)
		if !killed {
			break
		}
		deaths = append(deaths, before)
		if n%2 == 0 {
			cniAdd(t, v.chains["old"], v.pod)
			cniHealthy(t, v.Lab, v.chains["old"], v.pod)
		}
		if out := must(v.Untracked("remove"))(t); out.ExitCode != 0 {
			t.Errorf("remove: exit status %d, %s", out.ExitCode, out.Stderr)
		}
		cniNothing(t, v.Lab)
		if t.Failed() {
			t.Fatalf("after a kill at %d, before %s", n, before)
		}
	}
	cniNothing(t, v.Lab)
	t.Logf("killed before %d calls: %q", len(deaths), deaths)
	if !slices.Contains(deaths, "unlinkat") || !slices.Contains(deaths, "sendmsg") {
		t.Error("nobody was killed in the middle")
	}
}

// Runtimes kill at any time, and several callers in a row.
func TestCNIKilledAtRandomTimes(t *testing.T) {
	v := cniNewVictim(t)
	cniAdd(t, v.chains["old"], v.pod)
	v.load(t)
	killed, heir := 0, ""
	for i := range 60 {
		heir = []string{"old", "new"}[i%2]
		ctx, cancel := context.WithTimeout(context.Background(), time.Duration(rand.Int64N(int64(120*time.Millisecond))))
		cmd := lab.CommandContext(ctx, v.Node, filepath.Join(v.chains[heir].Bin, "untracked"))
		cmd.Env = os.Environ()
		for k, value := range v.env("ADD") {
			cmd.Env = append(cmd.Env, k+"="+value)
		}
		cmd.Stdin = bytes.NewReader(v.stdin(heir))
		if err := cmd.Run(); err != nil {
			killed++
			if exit, ok := err.(*exec.ExitError); ok && exit.Exited() {
				t.Errorf("ADD after %d kills: %v", killed, err)
			}
		}
		cancel()
		v.load(t)
		if i%10 == 9 {
			v.repair(t, []string{"old", "new"}[rand.IntN(2)])
		}
		if t.Failed() {
			t.FailNow()
		}
	}
	t.Logf("%d of 60 killed", killed)
	v.repair(t, heir)
}

// The programs of the new policy cannot be put in force while those of the old one are. Whatever is in force
// then, conntrack must see both halves of a flow or none.
func TestCNIInstallFailsOverAnOlderPolicy(t *testing.T) {
	v := cniNewVictim(t)
	u := v.Uplinks[0]
	cniAdd(t, v.chains["old"], v.pod)
	v.load(t)
	// The interface's pins cannot be changed, all else can.
	pins := filepath.Join(v.BPFFS, fmt.Sprintf("untracked/interfaces/%d", u.NodeIndex))
	check(t, unix.Mount(pins, pins, "", unix.MS_BIND, ""))
	t.Cleanup(func() { unix.Unmount(pins, unix.MNT_DETACH) })
	check(t, unix.Mount("", pins, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	cniAdd(t, v.chains["new"], v.pod)
	if s, exit := cniStatus(t, v.Lab); exit != 1 || cniProblem(s, node.ProblemNotAttached) == nil {
		t.Errorf("status: exit status %d, %+v", exit, s)
	}
	for _, port := range []uint16{7001, 7002} {
		load, run := lab.Load{Target: netip.AddrPortFrom(u.Node4, port), Sources: u.Client4[:1], Count: 5, Timeout: cniPatience}, lab.LoadUDP
		if port == 7002 {
			run = lab.LoadTCP
		}
		if r := must(run(v.Client, load))(t); r.OK != 5 {
			t.Errorf("port %d: %v (%v)", port, r, r.FirstFailure)
		}
		for _, f := range must(lab.Flows(v.Node, lab.Port(port)))(t) {
			if !f.Replied() || f.Source.Port() == port {
				t.Errorf("conntrack saw half of it: %s", &f)
			}
		}
	}
	check(t, unix.Unmount(pins, unix.MNT_DETACH))
	// Pods that start leave a node alone where an attempt failed a moment ago; an operator does not.
	bin := filepath.Join(v.chains["new"].Bin, "untracked")
	if out, err := lab.Command(v.Node, bin, "apply", v.chains["new"].File).CombinedOutput(); err != nil {
		t.Fatalf("apply: %v\n%s", err, out)
	}
	cniAdd(t, v.chains["new"], v.pod)
	cniHealthy(t, v.Lab, v.chains["new"], v.pod)
}
