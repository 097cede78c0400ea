// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/test/lab"
)

// A DEL may come late, up to four times, with nothing but the container's ID, and after another pod has got the address.
func TestPodsAddressReused(t *testing.T) {
	n := newPods(t)
	ns := n.sandbox("shared") // which stands for both pods': neither vanishes
	a := podsCall{Container: "aaa", Netns: ns.Path, Addresses: []string{"10.88.0.5/16", "fd00:88::5/64"}, Asks: map[string]string{"ports": "tcp/6379,udp/53"}}
	b := podsCall{Container: "bbb", Netns: ns.Path, Addresses: []string{"10.88.0.5/16"}, Asks: map[string]string{"ports": "tcp/6379", "sources": "192.0.2.0/24"}}
	late := podsCall{Container: "aaa", Bare: true}
	n.wantCall("ADD", a)
	n.wantElements(8)
	n.wantCall("ADD", b)
	n.wantPods("aaa [fd00:88::5]", "bbb [10.88.0.5]")
	n.wantOwner("10.88.0.5 tcp/6379", "bbb/eth0")
	n.wantOwner("10.88.0.5 from 192.0.2.0", "bbb/eth0")
	n.wantOwner("10.88.0.5 udp/53", "") // b did not ask for it
	n.wantOwner("fd00:88::5 udp/53", "aaa/eth0")
	n.wantCall("CHECK", b)
	for range 4 {
		n.wantCall("DEL", late)
		n.wantPods("bbb [10.88.0.5]")
		n.wantElements(4)
	}
	n.wantOwner("10.88.0.5 tcp/6379", "bbb/eth0")

	// A pod that asks for nothing, at that address again.
	n.wantCall("ADD", podsCall{Container: "ccc", Netns: ns.Path, Addresses: []string{"10.88.0.5/16"}})
	n.wantElements(0)
	n.wantCall("DEL", podsCall{Container: "bbb", Bare: true})
	n.wantPods()

	// What is as good as a DEL without any config.
	n.wantCall("ADD", a)
	for _, stdin := range []string{"", "{", `{"cniVersion":"1.0.0","name":"x","type":"untracked"}`} {
		if out := cniRun(t, n.lab, n.env("DEL", late), []byte(stdin)); out.ExitCode != 0 {
			t.Errorf("DEL with config %q: exit status %d", stdin, out.ExitCode)
		}
	}
	broken := podsCall{Container: "aaa", Bare: true, More: map[string]any{"annotations": map[string]string{
		"untracked.cni/run-dir": n.lab.RunDir, "untracked.cni/nonsense": "x", "untracked.cni/ports": "tcp/0",
	}}}
	n.wantCall("DEL", broken)
	n.wantPods()
	n.wantElements(0)
}

// ADD for the same container again gives the same, or what it asks for now.
func TestPodsAddedAgain(t *testing.T) {
	n := newPods(t)
	ns := n.sandbox("pod")
	c := podsCall{Container: "aaa", Netns: ns.Path, Addresses: []string{"10.88.0.5/16"}, Asks: map[string]string{"ports": "tcp/7000-7009"}}
	n.wantCall("ADD", c)
	n.wantElements(20)
	since := n.list()[0].Since
	n.wantCall("ADD", c)
	n.wantElements(20)
	if again := n.list()[0].Since; again != since {
		t.Errorf("since %v, and after the same again %v", since, again)
	}
	c.Asks = map[string]string{"ports": "tcp/7009-7010", "sources": "192.0.2.0/24,198.51.100.0/24"}
	n.wantCall("ADD", c)
	n.wantElements(8)
	c.Addresses = []string{"10.88.0.6/16", "10.88.0.6/16"}
	n.wantCall("ADD", c)
	n.wantElements(8)
	n.wantOwner("10.88.0.6 tcp/7010", "aaa/eth0")
	n.wantCall("CHECK", c)
	c.Asks = nil
	n.wantCall("ADD", c)
	n.wantPods()
	n.wantElements(0)
}

// Runtimes below CNI 1.1 never say that a pod is gone for good. The next ADD sees it.
func TestPodsVanished(t *testing.T) {
	n := newPods(t)
	stays, goes, changes := n.sandbox("stays"), n.sandbox("goes"), n.sandbox("changes")
	for i, ns := range []*lab.NS{stays, goes, changes} {
		n.wantCall("ADD", podsCall{Container: fmt.Sprintf("c%d", i), Netns: ns.Path, Addresses: []string{fmt.Sprintf("10.88.0.%d/16", 10+i)}, Asks: map[string]string{"ports": "tcp/1"}})
	}
	// Of a caller that saw no network namespace, nothing can be said.
	n.wantCall("ADD", podsCall{Container: "c3", Netns: "/nowhere/x", Addresses: []string{"10.88.0.13/16"}, Asks: map[string]string{"ports": "tcp/1"}})
	n.wantElements(8)
	for _, ns := range []*lab.NS{goes, changes} {
		check(t, unix.Unmount(ns.Path, unix.MNT_DETACH))
	}
	check(t, os.Remove(goes.Path))
	check(t, unix.Mount(stays.Path, changes.Path, "", unix.MS_BIND, "")) // the same path, and another namespace
	n.wantElements(8)
	n.wantCall("ADD", podsCall{Container: "new", Netns: stays.Path, Addresses: []string{"10.88.0.99/16"}})
	n.wantPods("c0 [10.88.0.10]", "c3 [10.88.0.13]")
	n.wantElements(4)
}

func TestPodsGC(t *testing.T) {
	n := newPods(t)
	ns := n.sandbox("pod")
	add := func() {
		for i := range 4 {
			n.wantCall("ADD", podsCall{Container: fmt.Sprintf("c%d", i), Netns: ns.Path, Addresses: []string{fmt.Sprintf("10.88.0.%d/16", 10+i)}, Asks: map[string]string{"ports": "tcp/1"}})
		}
	}
	add()
	other := podsCall{Container: "other", Netns: ns.Path, Addresses: []string{"10.88.0.20/16"}, Asks: map[string]string{"ports": "tcp/1"}, More: map[string]any{"name": "another-net"}}
	n.wantCall("ADD", other)
	gc := func(more map[string]any) {
		n.Helper()
		n.wantCall("GC", podsCall{Bare: true, More: more})
	}
	const key = "cni.dev/valid-attachments"
	gc(nil) // nothing is known
	n.wantElements(10)
	gc(map[string]any{key: []map[string]string{
		{"containerID": "c0", "ifname": "eth0"}, {"containerID": "c1", "ifname": "net1"}, {"containerID": "c3", "ifname": "eth0"},
	}})
	n.wantPods("c0 [10.88.0.10]", "c3 [10.88.0.13]", "other [10.88.0.20]")
	for _, none := range []any{nil, []int{}} {
		add()
		gc(map[string]any{key: none})
		n.wantPods("other [10.88.0.20]")
		n.wantElements(2)
	}
	add()
	out := n.call("GC", podsCall{Bare: true, More: map[string]any{key: "x"}})
	cniFailure(t, out, 6)
	n.wantElements(10)
}

// Whatever others do to the table, the next ADD puts it right, be it of a pod that asks for nothing.
func TestPodsTableHealed(t *testing.T) {
	n := newPods(t)
	ns := n.sandbox("pod")
	c := podsCall{Container: "aaa", Netns: ns.Path, Addresses: []string{"10.88.0.5/16"}, Asks: map[string]string{"ports": "tcp/6379", "sources": "192.0.2.0/24"}}
	other := podsCall{Container: "bbb", Netns: ns.Path, Addresses: []string{"10.88.0.6/16"}}
	n.wantCall("ADD", c)
	for _, harm := range []string{"flush ruleset", "delete table inet untracked-pods", "flush table inet untracked-pods", "flush chain inet untracked-pods errors4"} {
		nftCommand(t, n.Node, harm)
		out := n.call("CHECK", c)
		cniFailure(t, out, 101)
		n.wantCall("ADD", other)
		n.wantElements(4)
		n.wantCall("CHECK", c)
		n.healthy()
	}
	// What only concerns elements is noticed where they are asked for.
	nftCommand(t, n.Node, "flush set inet untracked-pods sourced4")
	cniFailure(t, n.call("CHECK", c), 101)
	n.problem("drift", "10.88.0.5 tcp/6379 of a pod is not in table inet untracked-pods")
	explained := func() bool {
		out := must(n.lab.Untracked("explain", "--interface", n.u.Name, "tcp", "192.0.2.1:40000", "10.88.0.5:6379"))(t)
		return strings.Contains(string(out.Stdout), "ns/aaa")
	}
	if explained() {
		t.Error("explain says that a port is a pod's, and the kernel does not know")
	}
	n.wantCall("ADD", c)
	n.wantElements(4)
	if !explained() {
		t.Error("explain does not know the port of a pod")
	}
	nftCommand(t, n.Node, "flush set inet untracked-pods quoted-sourced4")
	n.wantCall("DEL", podsCall{Container: "aaa", Bare: true})
	n.wantElements(0)

	n.wantCall("ADD", c)
	nftCommand(t, n.Node, "flush ruleset")
	n.wantCall("DEL", podsCall{Container: "aaa", Bare: true})
	n.wantPods()
}

// Off again: by the entry, and by remove.
func TestPodsOffAgain(t *testing.T) {
	n := newPods(t)
	ns := n.sandbox("pod")
	c := podsCall{Container: "aaa", Netns: ns.Path, Addresses: []string{"10.88.0.5/16"}, Asks: map[string]string{"ports": "tcp/6379"}}
	n.wantCall("ADD", c)
	n.annotations["pods"] = "ignore"
	n.ask(nil)
	out := n.wantCall("ADD", c)
	if want := "set untracked.cni/pods to allow"; !strings.Contains(string(out.Stderr), want) {
		t.Errorf("log: %s: want %q", out.Stderr, want)
	}
	n.wantNoTable()
	if s := n.healthy(); s.Pods.Mode != "ignore" || s.Pods.Count != 0 {
		t.Errorf("status: %+v", s.Pods)
	}
	n.annotations["pods"] = "allow"
	n.ask(nil)
	n.wantCall("ADD", c)
	n.wantElements(2)
	if out := must(n.lab.Untracked("remove"))(t); out.ExitCode != 0 {
		t.Errorf("remove: %s", out.Stderr)
	}
	n.wantNoTable()
	cniNothing(t, n.lab)
	n.wantCall("DEL", c)
	cniNothing(t, n.lab)
}

// A failsafe port that is taken away from a pod by the node's operator, and given back.
func TestPodsFailsafe(t *testing.T) {
	n := newPods(t)
	ns := n.sandbox("pod")
	c := podsCall{Container: "aaa", Netns: ns.Path, Addresses: []string{"10.88.0.5/16"}, Asks: map[string]string{"ports": "tcp/7000-7002"}}
	n.wantCall("ADD", c)
	n.wantElements(6)
	n.annotations["failsafe-inbound"] = "tcp:10.0.0.0/8:7001"
	n.ask(nil)
	n.wantCall("ADD", podsCall{Container: "bbb", Netns: ns.Path, Addresses: []string{"10.88.0.6/16"}})
	n.wantElements(4)
	n.wantOwner("10.88.0.5 tcp/7001", "")
	n.wantOwner("10.88.0.5 tcp/7002", "aaa/eth0")
	text := cniFailure(t, n.call("ADD", c), 7)
	if want := "annotation untracked.cni/ports of pod ns/aaa: "; !strings.Contains(text, want) || !strings.Contains(text, "tcp/7001 is a failsafe port") {
		t.Errorf("%s: want %q", text, want)
	}
	delete(n.annotations, "failsafe-inbound")
	n.ask(nil)
	n.wantCall("ADD", podsCall{Container: "bbb", Netns: ns.Path, Addresses: []string{"10.88.0.6/16"}})
	n.wantElements(6)
}

// A pod has nothing but its own addresses.
func TestPodsOwnAddresses(t *testing.T) {
	n := newPods(t)
	ns := n.sandbox("pod")
	ask := map[string]string{"ports": "tcp/6379"}
	for _, a := range []string{n.u.Node4.String() + "/32", n.u.Node6.String() + "/128", "127.0.0.1/8", "::1/128", "224.0.0.1/32", "ff02::1/128", "fe80::1/64", "0.0.0.0/32"} {
		out := n.wantCall("ADD", podsCall{Container: "aaa", Netns: ns.Path, Addresses: []string{a}, Asks: ask})
		if !strings.Contains(string(out.Stderr), "stays tracked") {
			t.Errorf("%s: the log does not say that it is not taken: %s", a, out.Stderr)
		}
		n.wantPods()
	}
	// Addresses of the host's side and of another pod's sandbox, in the same result.
	n.wantCall("ADD", podsCall{Container: "aaa", Netns: ns.Path, Asks: ask, Addresses: []string{"10.88.0.5/16"}, More: map[string]any{"prevResult": map[string]any{
		"cniVersion": "1.1.0",
		"interfaces": []map[string]any{{"name": "cni0"}, {"name": "eth0", "sandbox": ns.Path}, {"name": "eth0", "sandbox": n.sandbox("other").Path}},
		"ips": []map[string]any{
			{"interface": 0, "address": "10.88.0.7/16"}, {"interface": 1, "address": "10.88.0.8/16"},
			{"interface": 2, "address": "10.88.0.9/16"}, {"address": "10.88.0.10/16"},
		},
	}}})
	n.wantPods("aaa [10.88.0.8 10.88.0.10]")
}

// What is wrong with a pod's annotations fails that pod, with a message that names it, or is logged.
func TestPodsBadAnnotations(t *testing.T) {
	n := newPods(t)
	ns := n.sandbox("pod")
	for _, bad := range []map[string]string{
		{"ports": "tcp/99999"}, {"ports": "tcp/22"}, {"sources": "10.0.0.0/8"}, {"ports": "tcp/1", "sources": "x"}, {"port": "tcp/1"}, {"deny": "0.0.0.0/0"},
	} {
		n.annotations["pods"] = "allow"
		n.ask(nil)
		c := podsCall{Container: "aaa", Netns: ns.Path, Addresses: []string{"10.88.0.5/16"}, Asks: bad}
		text := cniFailure(t, n.call("ADD", c), 7)
		if !strings.Contains(text, "annotation untracked.cni/") || !strings.Contains(text, " of pod ns/aaa: ") {
			t.Errorf("%v: %s", bad, text)
		}
		n.wantPods()
		n.annotations["pods"] = "allow-lenient"
		n.ask(nil)
		out := n.wantCall("ADD", c)
		if !strings.Contains(string(out.Stderr), " of pod ns/aaa: ") {
			t.Errorf("%v: the log does not say what is wrong: %s", bad, out.Stderr)
		}
		n.wantPods()
	}
	// The entry has to ask the runtime for annotations.
	n.annotations["pods"] = "allow"
	check(t, n.chain.Rewrite(lab.ChainConfig{Annotations: n.annotations}))
	if code, out := n.applyFile(); code != 0 || !strings.Contains(out, `add "capabilities": {"io.kubernetes.cri.pod-annotations": true}`) {
		t.Errorf("apply: exit code %d\n%s", code, out)
	}
	n.problem("pods-unheard", "annotations of pods")
	if out := must(n.lab.Untracked("lint", n.chain.File))(t); !strings.Contains(string(out.Stdout), "[pods-unheard]") {
		t.Errorf("lint: %s", out.Stdout)
	}
	n.ask(nil)
	n.wantCall("ADD", podsCall{Container: "aaa", Netns: ns.Path})
	n.healthy()
}

// A node whose policy cannot be put in force has pods' ports untracked all the same.
func TestPodsOnBrokenNode(t *testing.T) {
	n := newPods(t)
	n.annotations["interfaces"] = "nothing0"
	n.ask(nil)
	ns := n.sandbox("pod")
	n.wantCall("ADD", podsCall{Container: "aaa", Netns: ns.Path, Addresses: []string{"10.88.0.5/16"}, Asks: map[string]string{"ports": "tcp/6379"}})
	n.wantElements(2)
}

// Whoever is killed at any step of an ADD leaves nothing that the DEL, which always comes, does not take away, and nothing
// that keeps the next ADD from working.
func TestPodsKilled(t *testing.T) {
	n := newPods(t)
	ns := n.sandbox("pod")
	c := podsCall{Container: "aaa", Netns: ns.Path, Addresses: []string{"10.88.0.5/16", "fd00:88::5/64"}, Asks: map[string]string{"ports": "tcp/6379", "sources": "192.0.2.0/24,2001:db8::/32"}}
	was := c
	was.Container = "was" // whose addresses they were
	n.wantCall("ADD", podsCall{Container: "first", Netns: ns.Path})
	steps := 0
	for step := 1; ; step++ {
		n.wantCall("ADD", was)
		call, killed := cniAtCall(t, n.lab, n.env("ADD", c), n.stdin(c), step)
		if !killed {
			break
		}
		steps++
		if step%2 == 0 {
			n.wantCall("ADD", c)
			n.wantPods("aaa [10.88.0.5 fd00:88::5]", "was []")
			n.wantElements(8)
		}
		n.wantCall("DEL", podsCall{Container: "aaa", Bare: true})
		n.wantCall("DEL", podsCall{Container: "was", Bare: true})
		n.wantPods()
		n.wantElements(0)
		if t.Failed() {
			t.Fatalf("killed before call %d, %s", step, call)
		}
	}
	n.wantCall("DEL", podsCall{Container: "was", Bare: true})
	for step := 1; ; step++ {
		n.wantCall("ADD", c)
		if _, killed := cniAtCall(t, n.lab, n.env("DEL", c), n.stdin(c), step); !killed {
			break
		}
		steps++
		n.wantCall("DEL", podsCall{Container: "aaa", Bare: true})
		n.wantPods()
		n.wantElements(0)
	}
	if steps < 12 {
		t.Errorf("only %d steps were found to be killed at", steps)
	}
	for _, dir := range []string{"records", "sandboxes", "addresses"} {
		if left, _ := os.ReadDir(filepath.Join(n.lab.RunDir, "pods", dir)); len(left) > 0 {
			t.Errorf("left in %s: %v", dir, left)
		}
	}
}

func TestPodsAtOnce(t *testing.T) {
	n := newPods(t)
	ns := n.sandbox("pod")
	const many = 40
	call := func(i int) podsCall {
		return podsCall{Container: fmt.Sprintf("c%02d", i), Netns: ns.Path, Addresses: []string{fmt.Sprintf("10.88.1.%d/16", i+1)}, Asks: map[string]string{"ports": "tcp/6379,udp/53"}}
	}
	cniAtOnce(many, func(i int) {
		if out := n.call("ADD", call(i)); out.ExitCode != 0 {
			t.Errorf("ADD: %s", out.Stdout)
		}
	})
	n.wantElements(4 * many)
	cniAtOnce(many, func(i int) { // half go while others come
		verb, c := "DEL", call(i/2)
		if i%2 == 1 {
			verb, c = "ADD", call(many+i/2)
		}
		if out := n.call(verb, c); out.ExitCode != 0 {
			t.Errorf("%s: %s", verb, out.Stdout)
		}
	})
	n.wantElements(4 * many)
	cniAtOnce(2*many, func(i int) {
		if out := n.call("DEL", call(i)); out.ExitCode != 0 {
			t.Errorf("DEL: %s", out.Stdout)
		}
	})
	n.wantElements(0)
	n.wantPods()
	n.healthy()
}

// nftCommand runs nft on the node.
func nftCommand(t testing.TB, ns *lab.NS, command string) {
	t.Helper()
	out, err := lab.Command(ns, "nft", strings.Fields(command)...).CombinedOutput()
	if err != nil && strings.Contains(err.Error(), "not found") {
		t.Skip("needs the nft command")
	}
	if err != nil {
		t.Fatalf("nft %s: %v, %s", command, err, out)
	}
}
