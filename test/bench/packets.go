// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/untracked-cni/untracked/pkg/compiler"
	"github.com/untracked-cni/untracked/pkg/datapath"
	"github.com/untracked-cni/untracked/pkg/netset"
	"github.com/untracked-cni/untracked/pkg/policy"
)

const repeats = 1_000_000

// benchPackets runs the real programs, counters and metadata included, a million times on one frame. A stub
// in front takes the metadata back that the last run left; its own cost is shown and not subtracted.
func benchPackets(rounds int) ([]Row, error) {
	var b packetBench
	defer b.close()
	if rounds < 5 {
		b.repeat = repeats / 100
	} else {
		b.repeat = repeats
	}
	empty, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "empty", Type: ebpf.XDP, AttachType: ebpf.AttachXDP, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()},
	})
	if err != nil {
		return nil, err
	}
	b.closers = append(b.closers, empty)

	host := netip.MustParseAddr("192.0.2.1")
	client := netip.MustParseAddr("198.51.100.7")
	client6, host6 := netip.MustParseAddr("2001:db8::7"), netip.MustParseAddr("2001:db8::1")
	redis := tcpFrame(client, host, 40000, 6379)
	other := tcpFrame(client, host, 40000, 8080)
	redis6 := tcpFrame(client6, host6, 40000, 6379)

	one := shorthand(nil, "tcp/6379")
	small := shorthand(randomSet(100), "tcp/6379,udp/53")
	large := shorthand(randomSet(100_000), "tcp/6379,udp/53")

	b.add("empty program", empty, redis)
	if err := b.addBehindStub("stub, then the empty program", empty, redis); err != nil {
		return nil, err
	}
	for _, c := range []struct {
		name  string
		kind  datapath.Kind
		rules []policy.Rule
		frame []byte
	}{
		{"XDP, one port: untracked", datapath.XDP, one, redis},
		{"XDP, one port: no match", datapath.XDP, one, other},
		{"XDP, one port, IPv6: untracked", datapath.XDP, one, redis6},
		{"XDP, 100 denied CIDRs: untracked", datapath.XDP, small, redis},
		{"XDP, 100,000 denied CIDRs: untracked", datapath.XDP, large, redis},
		{"XDP, 100,000 denied CIDRs: denied", datapath.XDP, large, tcpFrame(netset.To4(deniedAddress), host, 1, 2)},
		{"tc, one port: untracked", datapath.TC, one, redis},
		{"tc, 100 denied CIDRs: untracked", datapath.TC, small, redis},
	} {
		program, err := b.load(c.kind, c.rules)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.name, err)
		}
		if c.kind == datapath.TC {
			b.add(c.name, program, c.frame)
		} else if err := b.addBehindStub(c.name, program, c.frame); err != nil {
			return nil, err
		}
	}
	return interleave(b.subjects, rounds, "ns", "empty program")
}

type packetBench struct {
	repeat   uint32
	subjects []subject
	closers  []interface{ Close() error }
}

func (b *packetBench) close() {
	for _, c := range b.closers {
		c.Close()
	}
}

func (b *packetBench) add(name string, p *ebpf.Program, frame []byte) {
	b.subjects = append(b.subjects, subject{name, func() (float64, error) {
		_, each, err := p.Benchmark(frame, int(b.repeat), nil)
		return float64(each.Nanoseconds()), err
	}})
}

// addBehindStub measures p as the target of a tail call from a program that resets the metadata.
func (b *packetBench) addBehindStub(name string, p *ebpf.Program, frame []byte) error {
	next, err := ebpf.NewMap(&ebpf.MapSpec{Name: "next", Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		return err
	}
	b.closers = append(b.closers, next)
	if err := next.Put(uint32(0), p); err != nil {
		return err
	}
	const data, dataMeta = 0, 8 // struct xdp_md
	stub, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "stub", Type: ebpf.XDP, AttachType: ebpf.AttachXDP, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{
			asm.Mov.Reg(asm.R6, asm.R1),
			asm.LoadMem(asm.R2, asm.R1, data, asm.Word),
			asm.LoadMem(asm.R3, asm.R1, dataMeta, asm.Word),
			asm.Sub.Reg(asm.R2, asm.R3),
			asm.FnXdpAdjustMeta.Call(),
			asm.Mov.Reg(asm.R1, asm.R6),
			asm.LoadMapPtr(asm.R2, next.FD()),
			asm.Mov.Imm(asm.R3, 0),
			asm.FnTailCall.Call(),
			asm.Mov.Imm(asm.R0, 0),
			asm.Return(),
		},
	})
	if err != nil {
		return fmt.Errorf("load the stub: %w", err)
	}
	b.closers = append(b.closers, stub)
	b.add(name, stub, frame)
	return nil
}

func (b *packetBench) load(kind datapath.Kind, rules []policy.Rule) (*ebpf.Program, error) {
	image, err := compiler.Compile(rules)
	if err != nil {
		return nil, err
	}
	tables, err := datapath.NewTables(image)
	if err != nil {
		return nil, err
	}
	b.closers = append(b.closers, tables)
	counters, ledger, err := datapath.NewCounters(rules)
	if err != nil {
		return nil, err
	}
	b.closers = append(b.closers, counters, ledger)
	p, err := datapath.LoadProgram(kind, datapath.ProgramOptions{
		MarkBit: 0x1000, Layout: image.Layout, Tables: tables, Counters: counters,
	})
	if err == nil {
		b.closers = append(b.closers, p)
	}
	return p, err
}

// shorthand is the ingress list of a usual entry, default failsafes included.
func shorthand(deny *netset.Set, ports string) []policy.Rule {
	list, err := policy.ParsePorts(ports)
	if err != nil {
		panic(err)
	}
	inbound, _ := policy.ParseFailsafes(policy.DefaultFailsafeInbound)
	outbound, _ := policy.ParseFailsafes(policy.DefaultFailsafeOutbound)
	s := policy.Shorthand{Deny: deny, Ports: list}
	return policy.Join(policy.FailsafeRules(inbound, outbound), s.Denies(), s.Allows()).Ingress
}

const deniedAddress = 0x0b010203 // 11.1.2.3, in every random set

// randomSet is the same for the same n: half single addresses, the rest /24 and /20, in 11.0.0.0/8 and up.
func randomSet(n int) *netset.Set {
	r := rand.New(rand.NewPCG(1, uint64(n)))
	var b netset.Builder
	b.Add(netip.PrefixFrom(netset.To4(deniedAddress), 32))
	for range n - 1 {
		a := netset.To4(0x0b000000 + r.Uint32N(0xa0000000))
		b.Add(netip.PrefixFrom(a, []int{32, 32, 24, 20}[r.IntN(4)]))
	}
	return b.Build()
}

// tcpFrame is an Ethernet frame with a TCP header and nothing behind it, padded to 60 bytes.
func tcpFrame(src, dst netip.Addr, sport, dport uint16) []byte {
	tcp := make([]byte, 20)
	binary.BigEndian.PutUint16(tcp[0:], sport)
	binary.BigEndian.PutUint16(tcp[2:], dport)
	tcp[12] = 5 << 4
	frame := make([]byte, 12)
	if src.Is4() {
		ip := make([]byte, 20)
		ip[0], ip[8], ip[9] = 0x45, 64, policy.TCP
		binary.BigEndian.PutUint16(ip[2:], 40)
		copy(ip[12:], src.AsSlice())
		copy(ip[16:], dst.AsSlice())
		frame = append(append(append(frame, 0x08, 0x00), ip...), tcp...)
	} else {
		ip := make([]byte, 40)
		ip[0], ip[6], ip[7] = 0x60, policy.TCP, 64
		binary.BigEndian.PutUint16(ip[4:], 20)
		copy(ip[8:], src.AsSlice())
		copy(ip[24:], dst.AsSlice())
		frame = append(append(append(frame, 0x86, 0xdd), ip...), tcp...)
	}
	return append(frame, make([]byte, max(0, 60-len(frame)))...)
}
