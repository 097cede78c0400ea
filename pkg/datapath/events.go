// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/bpf"
	"github.com/untracked-cni/untracked/pkg/netset"
	"github.com/untracked-cni/untracked/pkg/policy"
)

const (
	eventsPin  = "events"
	monitorPin = "monitor"
)

// The maps of events, as bpf/event.h declares them.
var (
	eventsSpec  = ebpf.MapSpec{Name: eventsName, Type: ebpf.RingBuf, MaxEntries: 256 << 10}
	monitorSpec = ebpf.MapSpec{Name: monitorName, Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1}
)

// Event is a packet that a Log rule matched, and what became of it.
type Event struct {
	Time time.Time
	// Ifindex and Generation say where it arrived, and whose rules the indexes below are of.
	Ifindex    int
	Generation uint64
	Decision   policy.Decision
	// Log is the index of the first Log rule that matched.
	Log int
	// Packet is what rules could see of it. The packet that an ICMP error quotes is not told.
	Packet policy.Packet
	// Bytes is its length, IP header included.
	Bytes int
	// Suppressed is how many packets its interface and CPU have left out since their last event for this listener.
	Suppressed uint64
}

// Events is a listener to packets that Log rules match. Programs send events while it renews its lease, at most a
// burst of 100 and then 100 a second from each interface and CPU.
//
// There may be one listener at a time, and callers have to see to that: the ring buffer has one reading position, and
// all programs one lease. Two would read some events twice and others never, and the first to close would end both.
type Events struct {
	events, monitor *ebpf.Map
	reader          *ringbuf.Reader
}

// Events listens to all interfaces; what an earlier listener that was killed has left unread or uncounted is forgotten.
// The error wraps fs.ErrNotExist where no rule logs. The caller is in the network namespace of the interfaces, and
// closes it.
func (p *Pins) Events() (_ *Events, err error) {
	e := &Events{}
	defer func() {
		if err != nil {
			e.close()
		}
	}()
	if e.events, err = ebpf.LoadPinnedMap(p.events(), nil); err != nil {
		return nil, fmt.Errorf("open pinned %s: %w", eventsPin, err)
	}
	if e.monitor, err = ebpf.LoadPinnedMap(p.monitor(), nil); err != nil {
		return nil, fmt.Errorf("open pinned %s: %w", monitorPin, err)
	}
	if e.reader, err = ringbuf.NewReader(e.events); err != nil {
		return nil, fmt.Errorf("read pinned %s: %w", eventsPin, err)
	}
	if err = e.listen(0); err != nil {
		return nil, err
	}
	e.reader.SetDeadline(time.Unix(1, 0)) // long ago: read what is there
	for err == nil {
		_, err = e.reader.Read()
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, fmt.Errorf("read pinned %s: %w", eventsPin, err)
	}
	e.reader.SetDeadline(time.Time{})
	if err = p.forgetSuppressed(); err != nil {
		return nil, err
	}
	return e, nil
}

// Renew has the programs send events until d from now. A listener repeats it, well before d is over.
func (e *Events) Renew(d time.Duration) error {
	c, err := readClock()
	if err != nil {
		return err
	}
	return e.listen(c.after(d))
}

// listen has the programs send events until the jiffies are as given.
func (e *Events) listen(until uint64) error {
	if err := e.monitor.Put(uint32(0), until); err != nil {
		return fmt.Errorf("ask for events: %w", err)
	}
	return nil
}

// Read waits for the next event. It returns ctx's error when that is done first.
func (e *Events) Read(ctx context.Context) (Event, error) {
	stop := context.AfterFunc(ctx, func() { _ = e.reader.Flush() })
	defer stop()
	for {
		record, err := e.reader.Read()
		switch {
		case errors.Is(err, ringbuf.ErrFlushed):
			if ctx.Err() != nil {
				return Event{}, ctx.Err()
			}
			continue // the end of an earlier Read
		case err != nil:
			return Event{}, fmt.Errorf("read events: %w", err)
		}
		return decodeEvent(record.RawSample)
	}
}

// Close ends the lease.
func (e *Events) Close() error { return errors.Join(e.listen(0), e.close()) }

func (e *Events) close() error {
	var err error
	if e.reader != nil {
		err = e.reader.Close()
	}
	return errors.Join(err, e.events.Close(), e.monitor.Close())
}

// The protocols of the slots of bpf/parse.h that have one.
var slotProtocols = []uint8{policy.TCP, policy.UDP, policy.UDPLite, policy.SCTP, policy.ICMP, policy.ICMPv6}

func decodeEvent(data []byte) (Event, error) {
	var raw bpf.UntrackedEvent
	if _, err := binary.Decode(data, binary.NativeEndian, &raw); err != nil {
		return Event{}, fmt.Errorf("an event of %d bytes: %w", len(data), err)
	}
	decision, err := decodeDecision(uint32(raw.Verdict), uint32(raw.By), int(int32(raw.Rule)))
	if err != nil {
		return Event{}, err
	}
	decision.Logged = true
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return Event{}, fmt.Errorf("read the clock: %w", err)
	}
	return Event{
		Time:    time.Now().Add(time.Duration(int64(raw.Time) - now.Nano())),
		Ifindex: int(raw.Ifindex), Generation: raw.Generation, Decision: decision, Log: int(raw.Log) - 1,
		Packet: decodePacket(&raw), Bytes: int(raw.Bytes), Suppressed: raw.Suppressed,
	}, nil
}

func decodePacket(raw *bpf.UntrackedEvent) policy.Packet {
	p := policy.Packet{
		Src: netset.Addr6{Hi: raw.SrcHi, Lo: raw.SrcLo}.Netip(), Dst: netset.Addr6{Hi: raw.DstHi, Lo: raw.DstLo}.Netip(),
		HopLimit: raw.HopLimit, LaterFragment: raw.LaterFragment != 0, Protocol: uint8(raw.Value),
	}
	if raw.Ipv4 != 0 {
		p.Src, p.Dst = netset.To4(uint32(raw.SrcLo)), netset.To4(uint32(raw.DstLo))
	}
	if int(raw.Slot) >= len(slotProtocols) {
		return p
	}
	p.HasL4, p.Protocol = true, slotProtocols[raw.Slot]
	if policy.HasPorts(p.Protocol) {
		p.SrcPort, p.DstPort = raw.Sport, raw.Value
	} else {
		p.ICMPType, p.ICMPCode = uint8(raw.Value>>8), uint8(raw.Value)
	}
	return p
}

func (p *Pins) events() string  { return filepath.Join(p.dir, eventsPin) }
func (p *Pins) monitor() string { return filepath.Join(p.dir, monitorPin) }

// EventsInode tells the maps of events from those that took their place, 0 where there are none.
func (p *Pins) EventsInode() uint64 {
	info, err := os.Stat(p.events())
	if err != nil {
		return 0
	}
	return info.Sys().(*syscall.Stat_t).Ino
}

// createEvents opens the pinned maps of events, or makes and pins them. The error wraps ErrNotPinned.
func (p *Pins) createEvents() (events, monitor *ebpf.Map, err error) {
	if events, err = createPinned(&eventsSpec, p.events()); err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrNotPinned, err)
	}
	if monitor, err = createPinned(&monitorSpec, p.monitor()); err != nil {
		events.Close()
		return nil, nil, fmt.Errorf("%w: %w", ErrNotPinned, err)
	}
	return events, monitor, nil
}

// createPinned replaces a map only if another version has left it in another shape: the programs that still have that
// one send their events unheard, until their interface's next generation.
func createPinned(spec *ebpf.MapSpec, path string) (*ebpf.Map, error) {
	m, err := ebpf.LoadPinnedMap(path, nil)
	switch {
	case err == nil && spec.Compatible(m) == nil:
		return m, nil
	case err == nil:
		m.Close()
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("open pinned %s: %w", filepath.Base(path), err)
	}
	m, err = newMap(spec)
	if err != nil {
		return nil, err
	}
	if err := pinMap(m, path); err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

func (p *Pins) removeEvents() error {
	var errs []error
	for _, path := range []string{p.events(), p.monitor()} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
