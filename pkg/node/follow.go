// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"github.com/untracked-cni/untracked/pkg/monitor"
)

// followEvery is how often a monitor looks whether the policy is still the one that it watches.
const followEvery = time.Second

// errElsewhere ends a watch whose events come from somewhere else now.
var errElsewhere = errors.New("the policy in force logs elsewhere")

// Follow watches until the context ends or each returns an error, also while policies come and go. begin is called at
// the beginning and whenever it has to begin anew, with nil when it has nothing to watch for now. The first time, that
// is an error: see Monitor.
func (n *Node) Follow(ctx context.Context, begin func(*Watch), each func(*monitor.Event) error) error {
	for first := true; ; first = false {
		w, err := n.Monitor()
		if !first && isNothingToWatch(err) {
			begin(nil)
			if w, err = n.await(ctx); ctx.Err() != nil {
				return nil
			}
		}
		if err != nil {
			return err
		}
		begin(w)
		err = n.runUntilElsewhere(ctx, w, each)
		w.Close()
		if !errors.Is(err, errElsewhere) {
			return err
		}
	}
}

// isNothingToWatch holds for what may be over in a moment, when the next policy is complete.
func isNothingToWatch(err error) bool {
	return errors.Is(err, ErrNotApplied) || errors.Is(err, ErrNothingLogs) || errors.Is(err, ErrChanging) || errors.Is(err, fs.ErrNotExist)
}

// await waits until there is something to watch.
func (n *Node) await(ctx context.Context) (*Watch, error) {
	for {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(followEvery):
		}
		if w, err := n.Monitor(); !isNothingToWatch(err) {
			return w, err
		}
	}
}

// runUntilElsewhere runs a watch, and ends it with errElsewhere when its sources are no longer all there are.
func (n *Node) runUntilElsewhere(ctx context.Context, w *Watch, each func(*monitor.Event) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	book := &ruleBook{runDir: n.RunDir} // of its own: the watch's is another goroutine's
	began := n.eventSources(book)
	go func() {
		for ctx.Err() == nil {
			select {
			case <-ctx.Done():
			case <-time.After(followEvery):
				if n.eventSources(book) != began {
					cancel(errElsewhere)
				}
			}
		}
	}()
	if err := w.Run(ctx, each); err != nil {
		return err
	}
	if errors.Is(context.Cause(ctx), errElsewhere) {
		return errElsewhere
	}
	return nil
}

// eventSources tells where events come from: which ways log, and by which map.
type eventSources struct {
	ingress, egress bool
	events          uint64
}

func (n *Node) eventSources(book *ruleBook) eventSources {
	if book.refresh() != nil {
		return eventSources{}
	}
	s := eventSources{events: n.pins().EventsInode()}
	_, _, s.ingress, s.egress = book.logs()
	return s
}
