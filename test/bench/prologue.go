// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// pace is how the packets of one measurement follow each other.
type pace int

const (
	// fixed: the same packet each time, so that all it needs is in the nearest cache and every branch is foreseen.
	fixed pace = iota
	// rotating: every packet has another source and other ports. The CPU works on several at once, as it does on those
	// of a busy receive queue.
	rotating
	// dependent: which packet comes next depends on the rule that the last one matched.
	dependent
)

// prologue is a few instructions in front of a program's own: it prepares the packet and falls through. The kernel runs
// a program a million times on one buffer, so whatever shall differ from run to run has to be written by the program.
//
// It first takes back the metadata of the run before, or there would be no room left after a few (XDP). Then it
// writes the next key's source and ports into the packet, in place, and nothing else. The keys are in a map together with
// the number of the next one, which is a counter; but if dependent, it is how many packets the rule has counted that all
// of them match. So there is no next key without the verdict on the last packet. That alone would not keep the CPU, which
// guesses branches and store addresses, from beginning with the next packet early. Therefore the counter is read
// by an atomic instruction (that adds 0): it waits for all that was done before, and the packet for it.
type prologue struct {
	xdp  bool
	pace pace
	keys *ebpf.Map // of newKeys; for fixed none
	n    int       // keys
	ipv6 bool
	// counters and entry are the cell that a dependent prologue reads.
	counters *ebpf.Map
	entry    uint32
}

// The value of the keys map: the number of the next key, then the keys. A key is the source as it is on the wire, then
// both ports.
const (
	keysOffset = 64
	keySize4   = 8
	keySize6   = 24
)

// newKeys makes the map of a prologue's keys, a power of two of them.
func newKeys(keys []key) (*ebpf.Map, error) {
	if bits.OnesCount(uint(len(keys))) != 1 {
		return nil, fmt.Errorf("%d keys: want a power of two", len(keys))
	}
	size := keySize4
	if keys[0].src.Is6() {
		size = keySize6
	}
	value := make([]byte, keysOffset+len(keys)*size)
	for i, k := range keys {
		b := value[keysOffset+i*size:]
		n := copy(b, k.src.AsSlice())
		binary.BigEndian.PutUint16(b[n:], k.sport)
		binary.BigEndian.PutUint16(b[n+2:], k.dport)
	}
	m, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: "bench_keys", Type: ebpf.Array, KeySize: 4, ValueSize: uint32(len(value)), MaxEntries: 1,
	})
	if err != nil {
		return nil, fmt.Errorf("make the map of keys: %w", err)
	}
	if err := m.Put(uint32(0), value); err != nil {
		m.Close()
		return nil, fmt.Errorf("fill the map of keys: %w", err)
	}
	return m, nil
}

// Offsets of struct xdp_md and struct __sk_buff, and of what a prologue writes in a frame without VLAN tags.
const (
	xdpData, xdpDataEnd, xdpDataMeta = 0, 4, 8
	skbData, skbDataEnd              = 76, 80

	source4, ports4 = 14 + 12, 14 + 20
	source6, ports6 = 14 + 8, 14 + 40
)

func (p *prologue) instructions() asm.Instructions {
	const done = "bench_prologue_done"
	ctx, key, next, data := asm.R6, asm.R7, asm.R8, asm.R2
	insns := asm.Instructions{asm.Mov.Reg(ctx, asm.R1)}
	if p.xdp {
		insns = append(insns,
			asm.LoadMem(asm.R2, ctx, xdpData, asm.Word),
			asm.LoadMem(asm.R3, ctx, xdpDataMeta, asm.Word),
			asm.Sub.Reg(asm.R2, asm.R3),
			asm.FnXdpAdjustMeta.Call(),
		)
	}
	switch p.pace {
	case rotating:
		insns = append(insns,
			asm.LoadMapValue(key, p.keys.FD(), 0),
			asm.LoadMem(next, key, 0, asm.DWord),
			asm.Mov.Reg(asm.R1, next),
			asm.Add.Imm(asm.R1, 1),
			asm.StoreMem(key, 0, asm.R1, asm.DWord),
		)
	case dependent:
		insns = append(insns,
			asm.StoreImm(asm.RFP, -4, int64(p.entry), asm.Word),
			asm.Mov.Reg(asm.R2, asm.RFP),
			asm.Add.Imm(asm.R2, -4),
			asm.LoadMapPtr(asm.R1, p.counters.FD()),
			asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, done),
			asm.Mov.Imm(next, 0),
			fetchAdd(asm.R0, next),
			asm.LoadMapValue(key, p.keys.FD(), 0),
		)
	}
	if p.pace != fixed {
		size, source, ports := keySize4, source4, ports4
		if p.ipv6 {
			size, source, ports = keySize6, source6, ports6
		}
		begin, end := int16(xdpData), int16(xdpDataEnd)
		if !p.xdp {
			begin, end = skbData, skbDataEnd
		}
		insns = append(insns,
			asm.And.Imm(next, int32(p.n-1)),
			asm.Mul.Imm(next, int32(size)),
			asm.Add.Reg(key, next),
			asm.LoadMem(data, ctx, begin, asm.Word),
			asm.LoadMem(asm.R3, ctx, end, asm.Word),
			asm.Mov.Reg(asm.R4, data),
			asm.Add.Imm(asm.R4, int32(ports+4)),
			asm.JGT.Reg(asm.R4, asm.R3, done),
		)
		word := func(from, to int, size asm.Size) {
			insns = append(insns,
				asm.LoadMem(asm.R5, key, int16(keysOffset+from), size),
				asm.StoreMem(data, int16(to), asm.R5, size),
			)
		}
		if !p.ipv6 {
			word(0, source, asm.Word)
			word(4, ports, asm.Word)
		} else {
			word(0, source, asm.DWord)
			word(8, source+8, asm.DWord)
			word(16, ports, asm.Word)
		}
	}
	return append(insns, asm.Mov.Reg(asm.R1, ctx).WithSymbol(done))
}

// fetchAdd adds src to the 8 bytes at dst, atomically, and leaves in src what they were.
func fetchAdd(dst, src asm.Register) asm.Instruction {
	ins := asm.FetchAdd.Mem(dst, src, asm.DWord, 0)
	// Without it, cilium/ebpf 0.22 forgets the operation's own bits when it encodes the instruction: a plain addition.
	ins.Constant = int64(asm.FetchAdd >> 8)
	return ins
}

// prepend puts the prologue in front of a program. What the kernel knows of the program's first instruction, its name
// and its type, moves with the beginning.
func (p *prologue) prepend(program *ebpf.ProgramSpec) error {
	own := program.Instructions
	if len(own) == 0 || own[0].IsLoadFromMap() || own[0].IsFunctionReference() {
		return errors.New("put a prologue in front: want a program that begins with a plain instruction")
	}
	insns := p.instructions()
	insns[0].Metadata, own[0].Metadata = own[0].Metadata, asm.Metadata{}
	program.Instructions = append(insns, own...)
	return nil
}
