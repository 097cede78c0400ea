// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Load says what traffic to make. It ends after Duration or Count, whichever comes first.
type Load struct {
	Target netip.AddrPort
	// Sources are used in turn, so that flows do not run out of source ports. None: the kernel's choice.
	Sources []netip.Addr
	// Workers is the number of threads, InFlight that of flows each has open at once. 0 means 1 and 32.
	Workers, InFlight int
	// Duration and Count bound the load. If both are 0, Duration is a second.
	Duration time.Duration
	Count    uint64
	// Timeout is how long a flow may take. 0 means a second.
	Timeout time.Duration
	// Payload is the number of bytes in a datagram. 0 means 18, which fills the smallest Ethernet frame.
	Payload int
	// Tally, if given, counts while the load runs.
	Tally *Tally
}

// Tally counts flows as they end.
type Tally struct {
	OK, Timeouts, Failed atomic.Uint64
}

// Report is what became of a load.
type Report struct {
	OK       uint64 // flows that got their answer; for FloodUDP, datagrams sent
	Timeouts uint64
	Failed   uint64 // refused, reset, or no socket to be had
	// Elapsed is how long flows were started; waiting for the last time-outs is not part of it.
	Elapsed time.Duration
	// LastOK is when the last flow succeeded, counted from the start.
	LastOK time.Duration
	// FirstFailure is an example of why flows failed.
	FirstFailure error
}

// PerSecond is the rate of success.
func (r Report) PerSecond() float64 {
	if r.Elapsed <= 0 {
		return 0
	}
	return float64(r.OK) / r.Elapsed.Seconds()
}

func (r Report) String() string {
	return fmt.Sprintf("%d ok (%.0f/s), %d timed out, %d failed in %v", r.OK, r.PerSecond(), r.Timeouts, r.Failed, r.Elapsed.Round(time.Millisecond))
}

// LoadTCP makes short-lived connections as the worst clients do: connect, a line of 4 bytes there and back,
// close by reset, so that no TIME_WAIT holds the port.
func LoadTCP(ns *NS, l Load) (Report, error) { return l.run(ns, unix.SOCK_STREAM) }

// LoadUDP sends datagrams, each from a socket and so a flow of its own, and waits for its echo.
func LoadUDP(ns *NS, l Load) (Report, error) { return l.run(ns, unix.SOCK_DGRAM) }

func (l *Load) defaults() {
	if l.Workers == 0 {
		l.Workers = 1
	}
	if l.InFlight == 0 {
		l.InFlight = 32
	}
	if l.Duration == 0 && l.Count == 0 {
		l.Duration = time.Second
	}
	if l.Timeout == 0 {
		l.Timeout = time.Second
	}
	if l.Payload == 0 {
		l.Payload = 18
	}
	if l.Tally == nil {
		l.Tally = &Tally{}
	}
}

func (l Load) run(ns *NS, kind int) (Report, error) {
	l.defaults()
	var (
		wg      sync.WaitGroup
		tickets atomic.Uint64
		mu      sync.Mutex
		report  Report
		errs    []error
	)
	before := [3]uint64{l.Tally.OK.Load(), l.Tally.Timeouts.Load(), l.Tally.Failed.Load()}
	begin := time.Now()
	for n := range l.Workers {
		wg.Go(func() {
			w := &loadWorker{Load: &l, kind: kind, tickets: &tickets, begin: begin, turn: n}
			err := In(ns, w.run)
			mu.Lock()
			defer mu.Unlock()
			errs = append(errs, err)
			report.LastOK = max(report.LastOK, w.lastOK)
			report.Elapsed = max(report.Elapsed, w.stopped)
			if report.FirstFailure == nil {
				report.FirstFailure = w.failure
			}
		})
	}
	wg.Wait()
	report.OK = l.Tally.OK.Load() - before[0]
	report.Timeouts = l.Tally.Timeouts.Load() - before[1]
	report.Failed = l.Tally.Failed.Load() - before[2]
	report.Elapsed = max(report.Elapsed, report.LastOK)
	if err := errors.Join(errs...); err != nil {
		return report, fmt.Errorf("load %s from %s: %w", l.Target, ns.Name, err)
	}
	return report, nil
}

// loadWorker is one thread with an epoll loop over flows.
type loadWorker struct {
	*Load
	kind    int
	tickets *atomic.Uint64 // flows started by all workers
	begin   time.Time
	turn    int

	ep      *poller
	target  unix.Sockaddr
	sources []unix.Sockaddr
	family  int
	open    map[int]*flow
	lastOK  time.Duration
	stopped time.Duration // when it had started its last flow
	failure error
}

type flow struct {
	deadline time.Time
	asked    bool // the request is out
}

func (w *loadWorker) run() (err error) {
	w.target, w.family = sockaddr(w.Target)
	for _, a := range w.Sources {
		sa, family := sockaddr(netip.AddrPortFrom(a, 0))
		if family != w.family {
			return fmt.Errorf("source %s: not of the target's family", a)
		}
		w.sources = append(w.sources, sa)
	}
	if w.ep, err = newPoller(); err != nil {
		return err
	}
	defer w.ep.close()
	w.open = map[int]*flow{}
	defer func() {
		for fd := range w.open {
			unix.Close(fd)
		}
	}()

	request := make([]byte, w.Payload)
	if w.kind == unix.SOCK_STREAM {
		request = []byte("GET\n")
	}
	answer := make([]byte, max(len(request), 4096))
	starting := true
	stop := func(now time.Time) {
		if starting {
			starting, w.stopped = false, now.Sub(w.begin)
		}
	}
	sweep := w.begin
	for {
		now := time.Now()
		if w.Duration > 0 && now.Sub(w.begin) >= w.Duration {
			stop(now)
		}
		for starting && len(w.open) < w.InFlight {
			if w.Count > 0 && w.tickets.Add(1) > w.Count {
				stop(now)
				break
			}
			if err := w.start(now, request); err != nil {
				w.fail(err)
				// No socket, no port or no route: asking again at once would only burn the CPU.
				time.Sleep(time.Millisecond)
				break
			}
		}
		if !starting && len(w.open) == 0 {
			return nil
		}
		events, err := w.ep.wait(5)
		if err != nil {
			return os.NewSyscallError("epoll_wait", err)
		}
		now = time.Now()
		for _, e := range events {
			w.event(int(e.Fd), e.Events, now, request, answer)
		}
		if now.Sub(sweep) >= 5*time.Millisecond {
			sweep = now
			for fd, f := range w.open {
				if now.After(f.deadline) {
					w.Tally.Timeouts.Add(1)
					w.end(fd)
				}
			}
		}
	}
}

// start opens a flow. A connected datagram socket sends at once, a stream when it is connected.
func (w *loadWorker) start(now time.Time, request []byte) error {
	fd, err := unix.Socket(w.family, w.kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	f := &flow{deadline: now.Add(w.Timeout)}
	if err := w.launch(fd, f, request); err != nil {
		unix.Close(fd)
		return err
	}
	w.open[fd] = f
	return nil
}

func (w *loadWorker) launch(fd int, f *flow, request []byte) error {
	if len(w.sources) > 0 {
		// The port is chosen by connect, which looks at the whole 4-tuple.
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
		if err := unix.Bind(fd, w.sources[w.turn%len(w.sources)]); err != nil {
			return os.NewSyscallError("bind", err)
		}
		w.turn++
	}
	if w.kind == unix.SOCK_STREAM {
		// Close sends a reset.
		if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
	}
	if err := unix.Connect(fd, w.target); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return os.NewSyscallError("connect", err)
	}
	if w.kind == unix.SOCK_DGRAM {
		f.asked = true
		if _, err := unix.Write(fd, request); err != nil {
			return os.NewSyscallError("send", err)
		}
		return w.ep.add(fd, unix.EPOLLIN)
	}
	return w.ep.add(fd, unix.EPOLLIN|unix.EPOLLOUT|unix.EPOLLET)
}

func (w *loadWorker) event(fd int, events uint32, now time.Time, request, answer []byte) {
	f := w.open[fd]
	if f == nil {
		return
	}
	if events&unix.EPOLLERR != 0 {
		code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
		if err == nil && code == 0 {
			return // an earlier socket's of the same number, which a child between fork and exec held open
		}
		w.fail(unix.Errno(code))
		w.end(fd)
		return
	}
	if !f.asked {
		if events&unix.EPOLLOUT == 0 {
			return
		}
		if _, err := unix.Write(fd, request); errors.Is(err, unix.EAGAIN) {
			return // not connected yet: again an earlier socket's event
		} else if err != nil {
			w.fail(os.NewSyscallError("write", err))
			w.end(fd)
			return
		}
		f.asked = true
		return
	}
	if events&(unix.EPOLLIN|unix.EPOLLHUP) == 0 {
		return
	}
	n, err := unix.Read(fd, answer)
	switch {
	case errors.Is(err, unix.EAGAIN):
		return
	case err != nil:
		w.fail(os.NewSyscallError("read", err))
	case n == 0 && w.kind == unix.SOCK_STREAM:
		w.fail(errors.New("closed without an answer"))
	default:
		w.Tally.OK.Add(1)
		w.lastOK = now.Sub(w.begin)
	}
	w.end(fd)
}

func (w *loadWorker) fail(err error) {
	w.Tally.Failed.Add(1)
	if w.failure == nil {
		w.failure = err
	}
}

func (w *loadWorker) end(fd int) {
	delete(w.open, fd)
	unix.Close(fd)
}

func sockaddr(ap netip.AddrPort) (sa unix.Sockaddr, family int) {
	if a := ap.Addr().Unmap(); a.Is4() {
		return &unix.SockaddrInet4{Port: int(ap.Port()), Addr: a.As4()}, unix.AF_INET
	}
	return &unix.SockaddrInet6{Port: int(ap.Port()), Addr: ap.Addr().As16()}, unix.AF_INET6
}
