// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"maps"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/pkg/node"
)

// A network that ignores pods keeps the table that those of another one need.
func TestPodsOfAnotherNetwork(t *testing.T) {
	n := newPods(t)
	ns := n.sandbox("pod")
	asks := map[string]string{"ports": "tcp/6379"}
	n.wantCall("ADD", podsCall{Container: "own", Netns: ns.Path, Addresses: []string{"10.88.0.4/16"}, Asks: asks})
	c := podsCall{Container: "aaa", Netns: ns.Path, Addresses: []string{"10.99.0.5/16"}, Asks: asks, More: map[string]any{"name": "another-net"}}
	n.wantCall("ADD", c)
	n.annotations["pods"] = "ignore"
	n.ask(nil)
	ignored := podsCall{Container: "bbb", Netns: ns.Path, Addresses: []string{"10.88.0.6/16"}}
	n.wantCall("ADD", ignored)
	n.wantPods("aaa [10.99.0.5]")
	n.wantElements(2)
	for _, harm := range []string{"flush ruleset", "flush chain inet untracked-pods pods4"} {
		nftCommand(t, n.Node, harm)
		n.wantCall("ADD", ignored)
		n.wantElements(2)
		s, _ := n.status()
		for _, p := range s.Problems {
			if p.Code == node.ProblemDrift {
				t.Errorf("after %s: %s", harm, p.Message)
			}
		}
	}

	// Whoever has the address next is not untracked for what another asked for.
	ignored.Addresses = c.Addresses
	n.wantCall("ADD", ignored)
	n.wantPods("aaa []")
	n.wantElements(0)
}

// What an apply that failed did to the table of pods is undone by the next.
func TestPodsFailsafeAfterFailure(t *testing.T) {
	n := newPods(t, "failsafe-inbound", "tcp:7001", "required", "true")
	ns := n.sandbox("pod")
	other := podsCall{Container: "bbb", Netns: ns.Path, Addresses: []string{"10.88.0.6/16"}}
	n.wantCall("ADD", other)
	was := n.annotations
	n.annotations = maps.Clone(was)
	n.annotations["required"], n.annotations["failsafe-inbound"], n.annotations["bpffs"] = "false", "tcp:7005", "/proc/nothing"
	n.ask(nil)
	n.wantCall("ADD", podsCall{Container: "aaa", Netns: ns.Path, Addresses: []string{"10.88.0.5/16"}, Asks: map[string]string{"ports": "tcp/7000-7002"}})
	n.wantOwner("10.88.0.5 tcp/7001", "aaa/eth0")
	n.annotations = was
	n.ask(nil)
	n.wantCall("ADD", other)
	n.wantOwner("10.88.0.5 tcp/7001", "")
	n.wantElements(4)
}

// A run directory that is full, or read-only, keeps pods from having ports untracked, and not from starting, from passing
// CHECK, or from going away with what they have.
func TestPodsRunDir(t *testing.T) {
	n := newPods(t)
	badDayRunDir(t, n.lab)
	ns := n.sandbox("pod")
	asks := map[string]string{"ports": "tcp/6379"}
	has := podsCall{Container: "aaa", Netns: ns.Path, Addresses: []string{"10.88.0.5/16"}, Asks: asks}
	late := podsCall{Container: "bbb", Netns: ns.Path, Addresses: []string{"10.88.0.6/16"}, Asks: asks}
	tracked := func(room string) {
		t.Helper()
		out := n.wantCall("ADD", late)
		if text := string(out.Stderr); !strings.Contains(text, "the ports of a pod stay tracked") || !strings.Contains(text, room) {
			t.Errorf("ADD does not say %q: %s", room, text)
		}
		if out := n.wantCall("CHECK", late); !strings.Contains(string(out.Stderr), "the ports of a pod are not checked") {
			t.Errorf("CHECK says nothing: %s", out.Stderr)
		}
	}
	n.wantCall("ADD", has)
	free := badDayFill(t, n.lab)
	tracked("no space left on device")
	n.wantElements(2)
	n.wantCall("DEL", has)
	n.wantElements(0)
	free()
	n.wantCall("ADD", has)
	check(t, unix.Mount("", n.lab.RunDir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	tracked("read-only file system")
	n.wantCall("DEL", has) // in vain, and the next ADD sees to it
	check(t, unix.Mount("", n.lab.RunDir, "", unix.MS_REMOUNT, ""))
	check(t, unix.Unmount(ns.Path, unix.MNT_DETACH))
	n.wantCall("ADD", podsCall{Container: "ccc", Netns: n.sandbox("other").Path, Addresses: []string{"10.88.0.7/16"}})
	n.wantElements(0)
	n.wantPods()
	n.healthy()
}
