// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/test/lab"
)

const (
	tcpPort   = 6379
	udpPort   = 5353
	otherPort = 8080

	driveTCP   = time.Second
	driveUDP   = time.Second / 2
	turns      = 8
	turnTCP    = 250 * time.Millisecond
	turnUDP    = 150 * time.Millisecond
	settle     = 100 * time.Millisecond
	fill       = 2 * time.Second
	knocks     = 10
	fullTable  = 1000
	denyKnocks = 5
)

// measured is the same traffic before or after.
type measured struct {
	tcp, udp, other                      lab.Report
	tcpEntries, udpEntries, otherEntries int
	states                               lab.States // packets the firewall saw
}

// filled is what a table that is too small did.
type filled struct {
	load, other lab.Report
	dropped     uint64 // packets that conntrack threw away for want of room
	slow        bool   // the load was too slow to fill the table
}

func (d *demo) target(port uint16) netip.AddrPort {
	return netip.AddrPortFrom(d.lab.Uplinks[0].Node4, port)
}

// allowed are the client's addresses but the one that the policy will deny.
func (d *demo) allowed() []netip.Addr {
	a := d.lab.Uplinks[0].Client4
	return a[:len(a)-1]
}

func (d *demo) denied() netip.Addr {
	a := d.lab.Uplinks[0].Client4
	return a[len(a)-1]
}

type loader func(*lab.NS, lab.Load) (lab.Report, error)

// measure drives both services and the other one, and reads the node's table after each.
func (d *demo) measure() (m measured, err error) {
	if err := lab.FlushFlows(d.lab.Node); err != nil {
		return m, err
	}
	before, err := d.firewall.States()
	if err != nil {
		return m, err
	}
	room, err := lab.ConntrackMax()
	if err != nil {
		return m, err
	}
	drive := func(what string, load loader, port uint16, proto uint8, duration time.Duration) (r lab.Report, entries int, err error) {
		var tally lab.Tally
		done := d.progress("driving "+what, func() string { return thousands(tally.OK.Load()) + " answered" })
		defer done()
		r, err = load(d.lab.Client, lab.Load{
			Target: d.target(port), Sources: d.allowed(), Duration: duration, Tally: &tally,
			// Not more flows than the table holds: what happens then is shown apart.
			Count: uint64(room) * 8 / 10,
		})
		if err != nil {
			return r, 0, err
		}
		entries, err = lab.CountFlows(d.lab.Node, lab.Protocol(proto), lab.Port(port))
		return r, entries, errors.Join(err, lab.FlushFlows(d.lab.Node))
	}
	if m.tcp, m.tcpEntries, err = drive("short-lived connections to tcp/6379", lab.LoadTCP, tcpPort, unix.IPPROTO_TCP, driveTCP); err != nil {
		return m, err
	}
	if m.udp, m.udpEntries, err = drive("datagrams, each a new flow, to udp/5353", lab.LoadUDP, udpPort, unix.IPPROTO_UDP, driveUDP); err != nil {
		return m, err
	}
	if m.other, err = lab.LoadTCP(d.lab.Client, lab.Load{Target: d.target(otherPort), Count: 100}); err != nil {
		return m, err
	}
	if m.otherEntries, err = lab.CountFlows(d.lab.Node, lab.Protocol(unix.IPPROTO_TCP), lab.Port(otherPort)); err != nil {
		return m, err
	}
	after, err := d.firewall.States()
	m.states = lab.States{
		New: after.New - before.New, Established: after.Established - before.Established,
		Untracked: after.Untracked - before.Untracked, Invalid: after.Invalid - before.Invalid,
	}
	return m, err
}

// rates are successes per second, a figure for each turn.
type rates struct{ tcp, udp []float64 }

// takeTurns measures with and without the entry, so that whatever else runs on this machine slows both. The
// order is with, without, without, with, and so on; it ends with.
func (d *demo) takeTurns() (without, with rates, err error) {
	var begun atomic.Int32
	done := d.progress("driving both", func() string { return fmt.Sprintf("turn %d of %d", begun.Load(), turns) })
	defer done()
	for turn := range turns {
		begun.Add(1)
		order := []*rates{&with, &without}
		if turn%2 == 1 {
			order = []*rates{&without, &with}
		}
		for n, r := range order {
			if n == 1 {
				command := []string{"remove"}
				if r == &with {
					command = []string{"apply", d.chain.File}
				}
				if _, err := d.untracked(command...); err != nil {
					return without, with, err
				}
			}
			if err := lab.FlushFlows(d.lab.Node); err != nil {
				return without, with, err
			}
			// The kernel frees the entries later, and that is not this turn's to pay.
			time.Sleep(settle)
			for _, l := range []struct {
				load     loader
				port     uint16
				duration time.Duration
				to       *[]float64
			}{{lab.LoadTCP, tcpPort, turnTCP, &r.tcp}, {lab.LoadUDP, udpPort, turnUDP, &r.udp}} {
				report, err := l.load(d.lab.Client, lab.Load{Target: d.target(l.port), Sources: d.allowed(), Duration: l.duration})
				if err != nil {
					return without, with, err
				}
				*l.to = append(*l.to, report.PerSecond())
			}
		}
	}
	return without, with, nil
}

func median(figures []float64) float64 {
	sorted := slices.Sorted(slices.Values(figures))
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}

// gain is how much the one median is above the other.
func gain(without, with []float64) string {
	if median(without) == 0 {
		return "?"
	}
	return fmt.Sprintf("%+.0f %%", 100*(median(with)/median(without)-1))
}

// overfill drives tcp/6379 while the table has room for few, and has somebody knock at the other service.
func (d *demo) overfill() (f filled, err error) {
	if err := lab.FlushFlows(d.lab.Node); err != nil {
		return f, err
	}
	statsBefore, err := lab.ReadConntrackStats(d.lab.Node)
	if err != nil {
		return f, err
	}
	restore, err := lab.LimitConntrack(d.limit)
	if err != nil {
		return f, err
	}
	defer restore()

	var tally lab.Tally
	done := d.progress("driving tcp/6379", func() string {
		return thousands(tally.OK.Load()) + " answered, " + thousands(tally.Timeouts.Load()) + " timed out"
	})
	defer done()
	load := lab.Load{Target: d.target(tcpPort), Sources: d.allowed(), Timeout: fill / 8, Tally: &tally}
	first := load
	// Fills the table, if this machine is not too busy just now: entries of closed connections last 10 s.
	first.Count, first.Duration = uint64(d.limit), 8*time.Second
	filling, err := lab.LoadTCP(d.lab.Client, first)
	if err != nil {
		return f, err
	}
	// The kernel's collector makes room for a twentieth of the table now and then: knocks are spread.
	others := make(chan error, knocks)
	var neighbour lab.Tally
	for n := range knocks {
		go func() {
			time.Sleep(fill * time.Duration(n+1) / (knocks + 4))
			_, err := lab.LoadTCP(d.lab.Client, lab.Load{Target: d.target(otherPort), Count: 1, Timeout: 900 * time.Millisecond, Tally: &neighbour})
			others <- err
		}()
	}
	load.Duration = fill
	f.load, err = lab.LoadTCP(d.lab.Client, load)
	for range knocks {
		err = errors.Join(err, <-others)
	}
	if err != nil {
		return f, err
	}
	f.other.OK = neighbour.OK.Load()
	f.slow = filling.OK+filling.Timeouts < uint64(d.limit)*9/10
	if f.load.OK == 0 {
		f.load.LastOK = filling.LastOK
	} else {
		f.load.LastOK += filling.Elapsed
	}
	f.load.OK += filling.OK
	f.load.Timeouts += filling.Timeouts
	f.load.Failed += filling.Failed
	stats, err := lab.ReadConntrackStats(d.lab.Node)
	if err != nil {
		return f, err
	}
	f.dropped = stats.Drop - statsBefore.Drop
	return f, restore()
}
