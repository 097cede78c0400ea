// SPDX-License-Identifier: Apache-2.0

package monitor

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/untracked-cni/untracked/pkg/datapath"
	"github.com/untracked-cni/untracked/pkg/nflog"
	"github.com/untracked-cni/untracked/pkg/nft"
	"github.com/untracked-cni/untracked/pkg/policy"
)

// fake is a source that a test feeds.
type fake[T any] struct {
	next chan T
	fail chan error

	mu      sync.Mutex
	renewed []time.Time
	deny    error
}

func newFake[T any]() *fake[T] { return &fake[T]{next: make(chan T, 100), fail: make(chan error, 1)} }

func (f *fake[T]) Renew(d time.Duration) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.renewed = append(f.renewed, time.Now().Add(d))
	return f.deny
}

func (f *fake[T]) refuse(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.deny = err
}

func (f *fake[T]) Read(ctx context.Context) (v T, err error) {
	select {
	case v = <-f.next:
		return v, nil
	case err = <-f.fail:
		return v, err
	case <-ctx.Done():
		return v, ctx.Err()
	}
}

// stage is a monitor of two fakes, and what it has told. It runs in a bubble of synctest.
type stage struct {
	ingress *fake[datapath.Event]
	egress  *fake[*nflog.Message]
	begin   time.Time
	cancel  func()
	done    chan error

	mu     sync.Mutex
	events []*Event
	asked  []string
}

// egressRules has two Log rules, one behind the other for port 53.
var egressRules = []policy.Rule{
	{Policy: "e", Index: 0, Action: policy.Log, Destination: policy.Entity{Ports: []policy.PortRange{{First: 53, Last: 53}}}},
	{Policy: "e", Index: 1, Action: policy.Log},
	{Policy: "e", Index: 2, Action: policy.Allow, Destination: policy.Entity{Ports: []policy.PortRange{{First: 53, Last: 53}}}},
}

func start(t *testing.T, each func(*Event) error) *stage {
	ctx, cancel := context.WithCancel(t.Context())
	s := &stage{
		ingress: newFake[datapath.Event](), egress: newFake[*nflog.Message](),
		begin: time.Now(), cancel: cancel, done: make(chan error, 1),
	}
	m := &Monitor{Ingress: s.ingress, Egress: s.egress, Rules: func(index int, d policy.Direction, generation uint64) (string, []policy.Rule) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.asked = append(s.asked, fmt.Sprintf("%d %s %d", index, d, generation))
		switch {
		case index != 1:
			return "", nil
		case d == policy.Egress:
			return "lo", egressRules
		}
		return "lo", blocklist
	}}
	go func() {
		s.done <- m.Run(ctx, func(e *Event) error {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.events = append(s.events, e)
			if each != nil {
				return each(e)
			}
			return nil
		})
	}()
	t.Cleanup(cancel)
	return s
}

// arrive and leave are events of packets of some milliseconds from the beginning.
func (s *stage) arrive(ms int, suppressed uint64) {
	s.ingress.next <- datapath.Event{
		Time: s.at(ms), Ifindex: 1, Generation: 7, Log: 1, Bytes: ms, Suppressed: suppressed,
		Decision: policy.Decision{Verdict: policy.Denied, By: policy.ByRule, Rule: 2, Logged: true},
		Packet:   policy.Packet{Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr("10.0.0.2"), Protocol: 47},
	}
}

func (s *stage) leave(ms int, rule int, port uint16, lost uint32) {
	s.egress.next <- message(s.at(ms), nft.LogPrefix(policy.IDs(egressRules)[rule]), port, lost)
}

func message(at time.Time, prefix string, port uint16, lost uint32) *nflog.Message {
	packet := []byte{0x45, 0, 0, 40, 0, 0, 0, 0, 64, policy.UDP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2}
	packet = append(packet, 0x9c, 0x40, byte(port>>8), byte(port), 0, 20, 0, 0) // and 12 bytes that are cut off
	return &nflog.Message{Time: at, Prefix: prefix, Out: 1, EtherType: 0x800, Packet: packet, Lost: lost}
}

func (s *stage) at(ms int) time.Time { return s.begin.Add(time.Duration(ms) * time.Millisecond) }

// told is what has been told so far: time, direction, verdict, rule, port and what was missed.
func (s *stage) told() (out []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.events {
		port := uint16(0)
		if e.DestinationPort != nil {
			port = *e.DestinationPort
		}
		out = append(out, fmt.Sprintf("%d %s %s %s %v by %v port %d, %d bytes, missed %d", e.Time.Sub(s.begin).Milliseconds(),
			e.Interface, e.Direction, e.Verdict, e.Log, e.Rule, port, e.Bytes, e.Missed))
	}
	s.events = nil
	return out
}

func (s *stage) expect(t *testing.T, what string, want ...string) {
	t.Helper()
	synctest.Wait()
	if diff := cmp.Diff(want, s.told()); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

const (
	denied    = "lo ingress denied default/blocklist[0] by default/blocklist[1] port 0"
	untracked = "lo egress untracked e[0] by e[2] port 53, 40 bytes"
	tracked   = "lo egress tracked e[1] by <nil> port 99, 40 bytes"
)

func TestOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, nil)
		time.Sleep(10 * time.Millisecond)
		s.leave(9, 0, 53, 0)
		s.leave(10, 1, 99, 0)
		s.arrive(2, 0)
		s.arrive(11, 0)
		s.arrive(11, 9) // at the same time: in the order in which they came
		synctest.Wait()
		time.Sleep(hold - 10*time.Millisecond) // 50 ms from the beginning
		s.expect(t, "before the first one is due")
		s.arrive(1, 0) // late, but it will be the first
		time.Sleep(5 * time.Millisecond)
		s.expect(t, "two are due", "1 "+denied+", 1 bytes, missed 0", "2 "+denied+", 2 bytes, missed 0")
		time.Sleep(time.Hour)
		s.expect(t, "the others", "9 "+untracked+", missed 0", "10 "+tracked+", missed 0", "11 "+denied+", 11 bytes, missed 0", "11 "+denied+", 11 bytes, missed 9")
		s.arrive(3, 0) // later than can be waited for
		s.expect(t, "an hour late", "3 "+denied+", 3 bytes, missed 0")
		slices.Sort(s.asked)
		if diff := cmp.Diff([]string{"1 egress 0", "1 ingress 7"}, slices.Compact(s.asked)); diff != "" {
			t.Errorf("rules that were asked for (-want +got):\n%s", diff)
		}

		s.arrive(3600_000, 0)
		synctest.Wait()
		s.cancel()
		s.expect(t, "when the context ends", "3600000 "+denied+", 3600000 bytes, missed 0")
		if err := <-s.done; err != nil {
			t.Errorf("ended by its context: %v", err)
		}
	})
}

// TestFirstLog: each Log rule sends a message of its own. One event comes of them, and what it missed.
func TestFirstLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, nil)
		s.leave(0, 0, 53, 0)
		s.leave(0, 1, 53, 3)
		s.leave(1, 1, 99, 2)
		s.leave(2, 0, 99, 0) // no rule of this list would have sent it
		s.egress.next <- message(s.at(3), "of somebody else", 53, 0)
		s.egress.next <- message(s.at(3), nft.LogPrefix(42), 53, 0) // a rule of an earlier list
		garbage := message(s.at(3), nft.LogPrefix(policy.IDs(egressRules)[1]), 99, 0)
		garbage.Packet = garbage.Packet[:19]
		s.egress.next <- garbage
		s.leave(4, 1, 99, 1)
		s.leave(5, 1, 99, 0)
		s.arrive(6, 5)
		time.Sleep(time.Second)
		s.expect(t, "events",
			"0 "+untracked+", missed 0", "1 "+tracked+", missed 5", "4 "+tracked+", missed 3", "5 "+tracked+", missed 0",
			"6 "+denied+", 6 bytes, missed 5")
		s.cancel()
		<-s.done
	})
}

// TestUnknownInterface: a packet that arrived where there is no policy any more is told; what became of one that left
// nobody can tell.
func TestUnknownInterface(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, nil)
		left := message(s.at(0), nft.LogPrefix(policy.IDs(egressRules)[0]), 53, 0)
		left.Out = 2
		s.egress.next <- left
		s.ingress.next <- datapath.Event{Time: s.at(1), Ifindex: 2, Decision: policy.Decision{Verdict: policy.Untracked, By: policy.ByRule, Rule: 2}}
		s.leave(2, 0, 53, 0)
		time.Sleep(time.Second)
		s.expect(t, "events", "1 ifindex-2 ingress untracked <nil> by <nil> port 0, 0 bytes, missed 0", "2 "+untracked+", missed 1")
		s.cancel()
		<-s.done
	})
}

// TestRenew: the programs are asked again before they would stop.
func TestRenew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, nil)
		time.Sleep(10 * lease)
		s.cancel()
		<-s.done
		until := s.begin
		for i, k := range s.ingress.renewed {
			asked := k.Add(-lease)
			if asked.After(until) {
				t.Errorf("request %d came %v too late", i, asked.Sub(until))
			}
			until = k
		}
		if until.Before(time.Now()) {
			t.Errorf("renewed until %v, now it is %v", until, time.Now())
		}
	})
}

func TestFailures(t *testing.T) {
	broken := errors.New("broken")
	for _, tt := range []struct {
		name  string
		fails func(*stage)
		each  func(*Event) error
	}{
		{"ingress", func(s *stage) { s.ingress.fail <- broken }, nil},
		{"egress", func(s *stage) { s.egress.fail <- broken }, nil},
		{"renew", func(s *stage) { s.ingress.refuse(broken) }, nil},
		{"each", func(s *stage) { s.arrive(0, 0) }, func(*Event) error { return broken }},
	} {
		synctest.Test(t, func(t *testing.T) {
			s := start(t, tt.each)
			s.arrive(0, 0)
			synctest.Wait()
			tt.fails(s)
			if err := <-s.done; !errors.Is(err, broken) {
				t.Errorf("%s: %v, want %v", tt.name, err, broken)
			}
			s.expect(t, tt.name+": what came before", "0 "+denied+", 0 bytes, missed 0")
		})
	}
	first := newFake[datapath.Event]()
	first.refuse(broken)
	if err := (&Monitor{Ingress: first}).Run(t.Context(), nil); !errors.Is(err, broken) {
		t.Errorf("the first request: %v, want %v", err, broken)
	}
}
