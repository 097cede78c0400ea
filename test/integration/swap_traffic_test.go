// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/pkg/compiler"
	"github.com/untracked-cni/untracked/pkg/datapath"
	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/test/lab"
)

// swapMark is the bit that the receiver's packets carry if they are untracked.
const swapMark = 0x1000

// swapBench is a node under traffic while its policy is swapped.
type swapBench struct {
	testing.TB
	lab      *lab.Lab
	flows    []swapFlow
	policies []*swapPolicy

	sender   *lab.Sender
	receiver *swapReceiver
	// order names the policies by which the swaps go, forever. phase is 2n while the n-th of them is in force, and 2n+1
	// while the next one replaces it.
	order []int
	phase atomic.Int64
}

func newSwapBench(t testing.TB) *swapBench {
	t.Helper()
	l := lab.New(t, lab.Config{})
	// The client says nothing by itself: all that arrives is what the test sends.
	check(t, lab.SetSysctl(l.Client, "net/ipv6/conf/eth0/disable_ipv6", "1"))
	b := &swapBench{TB: t, lab: l, flows: swapNewFlows(l.Uplinks[0])}
	b.policies = swapPolicies(t, b.flows)
	for i := range b.policies {
		b.order = append(b.order, i)
	}
	b.receiver = swapListen(t, l.Node)
	b.sender = must(lab.NewSender(l.Client, "eth0"))(t)
	t.Cleanup(func() { b.sender.Close() })
	return b
}

// at is the policy of a place in the order.
func (b *swapBench) at(n int64) *swapPolicy {
	return b.policies[b.order[n%int64(len(b.order))]]
}

// swapTally is what came of the traffic.
type swapTally struct {
	bursts, sent, arrived, untracked uint64
	// straddling are the bursts that were decided by two policies, one part by each.
	straddling int
	wrong      []string
}

func (t *swapTally) tracked() uint64 { return t.arrived - t.untracked }
func (t *swapTally) denied() uint64  { return t.sent - t.arrived }

// run swaps so many times under traffic. swap puts the n-th policy of the order in force; the 0th is.
func (b *swapBench) run(swaps int64, swap func(n int64) error) *swapTally {
	b.Helper()
	var stop atomic.Bool
	done := make(chan *swapTally)
	go func() { done <- b.traffic(&stop) }()
	var err error
	for n := int64(1); n <= swaps && err == nil; n++ {
		b.phase.Store(2*n - 1)
		err = swap(n)
		b.phase.Store(2 * n)
	}
	stop.Store(true)
	tally := <-done
	check(b, err)
	b.Logf("%d swaps, %d packets in %d bursts, %d of them across a swap; %d untracked, %d tracked, %d denied",
		swaps, tally.sent, tally.bursts, tally.straddling, tally.untracked, tally.tracked(), tally.denied())
	return tally
}

// traffic sends bursts of one packet of each flow and judges each burst, until it is stopped or has seen enough.
func (b *swapBench) traffic(stop *atomic.Bool) *swapTally {
	// What one CPU sends over a veth stays in order.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var all, one unix.CPUSet
	if unix.SchedGetaffinity(0, &all) == nil {
		for cpu := range 1024 {
			if all.IsSet(cpu) && one.Count() == 0 {
				one.Set(cpu)
			}
		}
		if unix.SchedSetaffinity(0, &one) == nil {
			defer unix.SchedSetaffinity(0, &all)
		}
	}
	t := &swapTally{}
	random := rand.New(rand.NewPCG(1, 2))
	for !stop.Load() && len(t.wrong) < 10 {
		t.bursts++
		if err := b.burst(t, random.Perm(swapFlows)); err != nil {
			t.wrong = append(t.wrong, err.Error())
		}
		time.Sleep(300 * time.Microsecond) // leaves the swaps some CPU
	}
	return t
}

// burst sends a packet of each flow in a given order, and the last flow's behind them, and judges what became of them.
func (b *swapBench) burst(t *swapTally, order []int) error {
	number := uint32(t.bursts)
	seen := make([]swapSeen, len(b.flows))
	order = append(order, swapLast)
	before := b.phase.Load()
	for _, i := range order {
		b.flows[i].number(number)
		if err := b.sender.Send(b.flows[i].frame); err != nil {
			return err
		}
		t.sent++
	}
	for deadline := time.Now().Add(trafficPatience); ; time.Sleep(100 * time.Microsecond) {
		// Once the last one was there, all are that are to come.
		last := seen[swapLast].count > 0
		if err := b.receiver.drain(number, seen); err != nil {
			return err
		}
		if last {
			break
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("burst %d: a packet that every policy leaves untracked never came", number)
		}
	}
	after := b.phase.Load()
	for _, s := range seen {
		if s.count > 0 {
			t.arrived++
		}
		if s.verdict() == policy.Untracked {
			t.untracked++
		}
	}
	return b.judge(t, order, seen, before/2, (after+1)/2)
}

// judge wants the verdicts, in the order of the packets, to be those of the policy at first, from some packet on those
// of the next one, and so on up to last at most: each change is one moment.
func (b *swapBench) judge(t *swapTally, order []int, seen []swapSeen, first, last int64) error {
	now, told := first, false
	for nth, i := range order {
		got := seen[i].verdict()
		for now < last && b.at(now).verdicts[i] != got {
			now++
			if told {
				t.straddling++
			}
		}
		// From here on it is certain that a policy decided which is not the one behind it.
		told = told || b.at(now).verdicts[i] != b.at(now + 1).verdicts[i]
		if want := b.at(now).verdicts[i]; got != want {
			f := &b.flows[i]
			return fmt.Errorf("packet %d of burst %d, %s %d to %d, is %s (%d times, mark %#x); %q, which is in force now, says %s, as does none since %q",
				nth, t.bursts, f.packet.Src, f.packet.SrcPort, f.packet.DstPort, got, seen[i].count, seen[i].mark, b.at(now).name, want, b.at(first).name)
		}
		if seen[i].count > 1 {
			return fmt.Errorf("packet %d of burst %d came %d times", nth, t.bursts, seen[i].count)
		}
	}
	return nil
}

func (t *swapTally) wantRight(tb testing.TB) {
	tb.Helper()
	for _, w := range t.wrong {
		tb.Error(w)
	}
}

// wantWrong wants the judge to have seen what is wrong, and nothing where all was right yet.
func (t *swapTally) wantWrong(tb testing.TB) {
	tb.Helper()
	if len(t.wrong) == 0 || uint64(len(t.wrong)) >= t.bursts {
		tb.Errorf("%d of %d bursts were found wrong, want some: %q", len(t.wrong), t.bursts, t.wrong)
	}
}

// swapper swaps by the datapath's own functions, as node does: install, carry, prune.
type swapper struct {
	*swapBench
	mode datapath.Mode
	pins *datapath.Pins
	// generation is the one in force.
	generation uint64
}

func newSwapper(b *swapBench, mode datapath.Mode) *swapper {
	b.Helper()
	s := &swapper{swapBench: b, mode: mode, pins: datapath.PinsAt(b.lab.BPFFS)}
	check(b, s.pins.Create())
	check(b, s.install(b.at(0)))
	return s
}

func (s *swapper) index() int { return s.lab.Uplinks[0].NodeIndex }

func (s *swapper) install(p *swapPolicy) error { return s.installImage(p.list.Ingress, p.image) }

func (s *swapper) installImage(rules []policy.Rule, image *compiler.Image) error {
	return lab.In(s.lab.Node, func() error {
		g := s.pins.NewGeneration(s.generation+1, swapMark)
		defer g.Close()
		tables, err := g.Tables(rules, image)
		if err != nil {
			return err
		}
		target := datapath.Target{Name: "eth0", Index: s.index()}
		if s.mode != datapath.Classifier && s.pins.OwnXDP(s.index()) != 0 {
			target.XDPMode = s.mode
		}
		_, refused, err := g.Install(target, []datapath.Mode{s.mode}, tables)
		if err = errors.Join(err, errors.Join(refused...)); err != nil {
			return err
		}
		s.generation++
		return errors.Join(s.pins.Carry(s.index()), s.pins.Prune(map[int]uint64{s.index(): s.generation}, false))
	})
}

// wantCounts wants the interface to have counted each packet once, by whichever policy, gone or not.
func (s *swapper) wantCounts(t *swapTally) {
	s.Helper()
	c := must(s.pins.Counts(s.index()))(s)
	swapWantCounts(s, t, c.Untracked.Packets, c.Tracked.Packets, c.Denied.Packets)
	if rest := c.Failsafe.Packets + c.Malformed.Packets + c.Fragment.Packets + c.NoMetadata; rest != 0 {
		s.Errorf("counted %d packets that nobody sent: %+v", rest, c)
	}
}

func swapWantCounts(t testing.TB, tally *swapTally, untracked, tracked, denied uint64) {
	t.Helper()
	if untracked != tally.untracked || tracked != tally.tracked() || denied != tally.denied() {
		t.Errorf("counted %d untracked, %d tracked, %d denied packets; want %d, %d, %d",
			untracked, tracked, denied, tally.untracked, tally.tracked(), tally.denied())
	}
}

// Five hundred times the policy becomes another one, of another shape, and no packet meets anything but one of the two;
// none is lost to the counters either.
func TestSwapUnderTraffic(t *testing.T) {
	const swaps = 500
	for _, mode := range []datapath.Mode{datapath.Native, datapath.Classifier} {
		t.Run(string(mode), func(t *testing.T) {
			s := newSwapper(newSwapBench(t), mode)
			tally := s.run(swaps, func(n int64) error { return s.install(s.at(n)) })
			tally.wantRight(t)
			s.wantCounts(tally)
			if tally.straddling == 0 {
				t.Errorf("no burst was under way at a swap: the test shows nothing")
			}
			if s.generation != 1+swaps {
				t.Errorf("generation %d after %d swaps", s.generation, swaps)
			}
		})
	}
}

// The judge sees swaps that are not atomic. Both ways to do it wrong are tried: to take the old programs off before the
// new ones are attached, and to write new tables below a program that was made for the old ones.
func TestSwapWrongIsSeen(t *testing.T) {
	for _, mode := range []datapath.Mode{datapath.Native, datapath.Classifier} {
		t.Run("detach and attach, "+string(mode), func(t *testing.T) {
			s := newSwapper(newSwapBench(t), mode)
			tally := s.run(20, func(n int64) error {
				time.Sleep(20 * time.Millisecond) // for some bursts
				if err := lab.In(s.lab.Node, func() error { return s.pins.Prune(nil, false) }); err != nil {
					return err
				}
				return s.install(s.at(n))
			})
			tally.wantWrong(t)
		})
		t.Run("new tables, old program, "+string(mode), func(t *testing.T) {
			b := newSwapBench(t)
			b.order = b.order[:2] // two small ones
			size := max(len(b.at(0).image.Bytes), len(b.at(1).image.Bytes))
			padded := func(p *swapPolicy) *compiler.Image {
				return &compiler.Image{Bytes: append(slices.Clone(p.image.Bytes), make([]byte, size-len(p.image.Bytes))...), Layout: p.image.Layout}
			}
			s := newSwapper(b, mode)
			check(t, s.installImage(b.at(0).list.Ingress, padded(b.at(0))))
			tables := must(ebpf.LoadPinnedMap(filepath.Join(s.pins.Dir(), "interfaces", fmt.Sprint(s.index()), fmt.Sprintf("tables-%d", s.generation)), nil))(t)
			defer tables.Close()
			tally := s.run(2, func(n int64) error {
				time.Sleep(100 * time.Millisecond) // for some bursts
				return tables.Put(uint32(0), padded(b.at(n)).Bytes)
			})
			tally.wantWrong(t)
		})
	}
}

// The same by the command, the whole of it: conntrack itself says which packets it was not to see.
func TestSwapByCommand(t *testing.T) {
	const swaps = 24
	for _, mode := range []string{"native", "tc"} {
		t.Run(mode, func(t *testing.T) {
			b := newSwapBench(t)
			swapMarkUntracked(t, b.lab.Node)
			n := &trafficNode{TB: t, Node: b.lab.Node, Client: b.lab.Client, lab: b.lab, u: b.lab.Uplinks[0]}
			n.chain = must(b.lab.Chain(lab.ChainConfig{Annotations: map[string]string{}}))(t)
			apply := func(i int64) error {
				annotations := maps.Clone(b.at(i).annotations())
				annotations["mode"] = mode
				if err := n.chain.Rewrite(lab.ChainConfig{Annotations: annotations}); err != nil {
					return err
				}
				if code, out := n.applyFile(); code != 0 {
					return fmt.Errorf("apply: exit code %d\n%s", code, out)
				}
				return nil
			}
			check(t, apply(0))
			tally := b.run(swaps, apply)
			tally.wantRight(t)
			p := n.packets("eth0")
			swapWantCounts(t, tally, p.Untracked, p.Tracked, p.Denied)
			if s := n.healthy(); s.Policy.Generation != 1+swaps {
				t.Errorf("generation %d after %d swaps", s.Policy.Generation, swaps)
			}
		})
	}
}

// swapMarkUntracked marks what connection tracking was told not to see.
func swapMarkUntracked(t testing.TB, ns *lab.NS) {
	t.Helper()
	word := func(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }
	check(t, lab.In(ns, func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "swap-witness"})
		chain := c.AddChain(&nftables.Chain{
			Name: "prerouting", Table: table, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityMangle,
		})
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: word(expr.CtStateBitUNTRACKED), Xor: word(0)},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: word(0)},
			&expr.Immediate{Register: 1, Data: word(swapMark)},
			&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1},
		}})
		return c.Flush()
	}))
}
