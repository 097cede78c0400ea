// SPDX-License-Identifier: Apache-2.0

package monitor

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/untracked-cni/untracked/pkg/compiler"
	"github.com/untracked-cni/untracked/pkg/datapath"
	"github.com/untracked-cni/untracked/pkg/nflog"
	"github.com/untracked-cni/untracked/pkg/nft"
	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/test/lab"
)

// patience is for what has to happen: only a test that fails takes that long.
const patience = 20 * time.Second

// The ports of the test: one is served, untracked, one is denied, and to one the client knocks until it is told of.
const served, refused, knocked = 5000, 5001, 7

const generation = 3

// rules log all UDP, which on the way out two rules do.
func rules() policy.Rules {
	udp := uint8(policy.UDP)
	serves := policy.Shorthand{Ports: []policy.Port{{Protocol: udp, Range: policy.PortRange{First: served, Last: served}}}}
	watch := policy.Rule{Tier: "default", Policy: "watch", Action: policy.Log, Protocol: &udp}
	again := watch
	again.Index, again.Protocol = 1, nil
	lists := policy.Join(policy.Rules{Ingress: []policy.Rule{watch}, Egress: []policy.Rule{watch, again}}, serves.Allows())
	lists.Ingress = append(lists.Ingress, policy.Rule{
		Tier: "default", Policy: "no", Action: policy.Deny, Protocol: &udp,
		Destination: policy.Entity{Ports: []policy.PortRange{{First: refused, Last: refused}}},
	})
	return lists
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// install puts the rules in force on an interface, inside its namespace.
func install(pins *datapath.Pins, target datapath.Target, lists policy.Rules) error {
	const mark = 0x1000
	image, err := compiler.Compile(lists.Ingress)
	if err != nil {
		return err
	}
	if err := pins.Create(); err != nil {
		return err
	}
	g := pins.NewGeneration(generation, mark)
	defer g.Close()
	tables, err := g.Tables(lists.Ingress, image)
	if err != nil {
		return err
	}
	if _, _, err := g.Install(target, []datapath.Mode{datapath.Classifier}, tables); err != nil {
		return err
	}
	return (&nft.Table{Mark: mark, Endpoints: []nft.Endpoint{{Interface: target.Name, Rules: lists.Egress}}}).Apply()
}

// TestTraffic: what the programs and nftables say of real packets.
func TestTraffic(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root for a network namespace of its own")
	}
	l := lab.New(t, lab.Config{})
	target, pins, lists := datapath.Target{Name: "eth0", Index: l.Uplinks[0].NodeIndex}, datapath.PinsAt(l.BPFFS), rules()
	var ingress *datapath.Events
	var egress *nflog.Reader
	must(t, lab.In(l.Node, func() (err error) {
		if err = install(pins, target, lists); err != nil {
			return err
		}
		if ingress, err = pins.Events(); err != nil {
			return err
		}
		egress, err = nflog.Open(nft.LogGroup, nft.LogBytes)
		return err
	}))
	defer ingress.Close()
	defer egress.Close()
	m := &Monitor{Ingress: ingress, Egress: egress, Rules: func(ifindex int, d policy.Direction, g uint64) (string, []policy.Rule) {
		if ifindex != target.Index || d == policy.Ingress && g != generation || d == policy.Egress && g != 0 {
			t.Errorf("asked for the %s rules of interface %d in generation %d", d, ifindex, g)
		}
		return target.Name, lists.Of(d)
	}}
	_, err := lab.ServeUDP(l.Node, served)
	must(t, err)

	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	told, done := make(chan *Event, 1000), make(chan error, 1)
	go func() {
		done <- m.Run(ctx, func(e *Event) error {
			told <- e
			return nil
		})
	}()
	for len(told) == 0 && ctx.Err() == nil { // until the monitor listens
		call(t, l, netip.AddrPortFrom(l.Uplinks[0].Node4, knocked))
		time.Sleep(20 * time.Millisecond)
	}
	var want []string
	for _, node := range []netip.Addr{l.Uplinks[0].Node4, l.Uplinks[0].Node6} {
		bytes := 8 + len(question) + 20
		if node.Is6() {
			bytes += 20
		}
		to := netip.AddrPortFrom(node, served)
		from := call(t, l, to)
		want = append(want, fmt.Sprintf("eth0 ingress untracked ports[0] udp %s > %s %d bytes", from, to, bytes))
		want = append(want, fmt.Sprintf("eth0 egress untracked ports[0] udp %s > %s %d bytes", to, from, bytes))
		to = netip.AddrPortFrom(node, refused)
		from = call(t, l, to)
		want = append(want, fmt.Sprintf("eth0 ingress denied default/no[0] udp %s > %s %d bytes", from, to, bytes))
	}

	var got []string
	for len(got) < len(want) && ctx.Err() == nil {
		select {
		case e := <-told:
			if e.Protocol != "udp" || *e.DestinationPort == knocked {
				continue
			}
			clock, rest, _ := strings.Cut(e.String(), " ")
			if _, err := time.Parse("15:04:05.000", clock); err != nil {
				t.Error(err)
			}
			got = append(got, rest)
			if e.Time == e.Time.Round(0) {
				t.Errorf("%s: a time without a monotonic reading: a clock that is set back would hold it up", rest)
			}
			if diff := cmp.Diff(&Rule{Tier: "default", Policy: "watch"}, e.Log); diff != "" {
				t.Errorf("%s: logged by (-want +got):\n%s", rest, diff)
			}
		case <-ctx.Done():
		}
	}
	// On a busy machine, an event may come later than others wait for it.
	slices.Sort(want)
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	cancel()
	must(t, <-done)
}

const question = "anybody there?"

// call sends a datagram from the client, and where one is served waits for the answer. It returns the client's side.
func call(t *testing.T, l *lab.Lab, to netip.AddrPort) (from string) {
	t.Helper()
	c, err := lab.Dial(l.Client, "udp", netip.Addr{}, to, patience)
	must(t, err)
	defer c.Close()
	_, err = c.Write([]byte(question))
	must(t, err)
	if to.Port() == served {
		must(t, c.SetReadDeadline(time.Now().Add(patience)))
		_, err = c.Read(make([]byte, 100))
		must(t, err)
	}
	return c.LocalAddr().String()
}
