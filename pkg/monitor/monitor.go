// SPDX-License-Identifier: Apache-2.0

// Package monitor tells, live and in order of time, which packets Log rules matched and what became of them.
//
// Of packets that arrive, the programs tell the verdict. Of those that local sockets send, nftables tells only that a
// rule matched: their verdict is what [policy.Evaluate] says of the packet. Both are sampled where they come from. The
// package opens nothing itself: sources and rules are handed to it.
package monitor

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/untracked-cni/untracked/pkg/datapath"
	"github.com/untracked-cni/untracked/pkg/nflog"
	"github.com/untracked-cni/untracked/pkg/policy"
)

// Ingress is a source of packets that arrive, such as *datapath.Events. It sends while Renew asks it to. Its times have
// a monotonic reading.
type Ingress interface {
	Renew(d time.Duration) error
	Read(ctx context.Context) (datapath.Event, error)
}

// Egress is a source of packets that local sockets send, such as a *nflog.Reader of nft.LogGroup. Its times have a
// monotonic reading.
type Egress interface {
	Read(ctx context.Context) (*nflog.Message, error)
}

// Rules returns the name of an interface, empty if it is not known, and the list of one direction that was in force
// there at a generation, 0 being the one that is now, or nil. To return the same slice for the same list saves work.
type Rules func(ifindex int, direction policy.Direction, generation uint64) (name string, rules []policy.Rule)

// Monitor merges two sources. One that is nil is left out.
type Monitor struct {
	Ingress Ingress
	Egress  Egress
	Rules   Rules

	// ids are those of the egress lists, by interface.
	ids map[int]identified
	// missed counts what of them was lost since the last one that was shown.
	missed uint64
}

const (
	// lease is for how long the programs go on sending when a monitor is killed. It is renewed more often.
	lease   = 5 * time.Second
	renewal = lease / 5
	// hold is for how long an event waits for earlier ones of the other source.
	hold = 50 * time.Millisecond
)

// Run calls each for every event, in the goroutine of its caller, until the context ends, a source fails or each
// returns an error. It returns nil in the first case, else the error. The caller closes the sources.
func (m *Monitor) Run(ctx context.Context, each func(*Event) error) error {
	var readers sync.WaitGroup
	defer readers.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	failed := make(chan error, 3)
	start := func(run func(context.Context) error) {
		readers.Go(func() { failed <- run(ctx) })
	}
	ingress, egress := make(chan datapath.Event), make(chan *nflog.Message)
	if m.Ingress != nil {
		if err := m.Ingress.Renew(lease); err != nil {
			return err
		}
		start(m.renew)
		start(func(ctx context.Context) error { return pump(ctx, m.Ingress.Read, ingress) })
	}
	if m.Egress != nil {
		start(func(ctx context.Context) error { return pump(ctx, m.Egress.Read, egress) })
	}

	var waiting queue
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		var end error
		ended := false
		select {
		case e := <-ingress:
			waiting.add(m.ingressEvent(&e))
		case message := <-egress:
			if e := m.egressEvent(message); e != nil {
				waiting.add(e)
			}
		case <-timer.C:
		case end = <-failed:
			ended = true
		case <-ctx.Done():
			ended = true
		}
		for len(waiting) > 0 && (ended || time.Since(waiting[0].Time) >= hold) {
			if err := each(waiting[0]); err != nil {
				return err
			}
			waiting = waiting[1:]
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case ended:
			return end
		case len(waiting) > 0:
			timer.Reset(time.Until(waiting[0].Time) + hold)
		}
	}
}

// renew keeps the lease of the programs.
func (m *Monitor) renew(ctx context.Context) error {
	for {
		select {
		case <-time.After(renewal):
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := m.Ingress.Renew(lease); err != nil {
			return err
		}
	}
}

func pump[T any](ctx context.Context, read func(context.Context) (T, error), to chan<- T) error {
	for {
		v, err := read(ctx)
		if err != nil {
			return err
		}
		select {
		case to <- v:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// queue is in order of time.
type queue []*Event

func (q *queue) add(e *Event) {
	at, _ := slices.BinarySearchFunc(*q, e, func(before, e *Event) int {
		if before.Time.After(e.Time) {
			return 1
		}
		return -1 // also at the same time: first come, first shown
	})
	*q = slices.Insert(*q, at, e)
}
