// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// clock relates jiffies, which cost a program one load to read, to the time of day.
type clock struct {
	now     time.Time
	jiffies uint64
	tick    time.Duration
}

// readClock reads both at once: the kernel shows the number of jiffies to BPF programs alone.
func readClock() (clock, error) {
	// The resolution of the coarse clocks is one tick.
	var tick unix.Timespec
	if err := unix.ClockGetres(unix.CLOCK_MONOTONIC_COARSE, &tick); err != nil {
		return clock{}, fmt.Errorf("read the length of a jiffy: %w", err)
	}
	var program *ebpf.Program
	err := withMemlock(func() (err error) {
		program, err = ebpf.NewProgram(&ebpf.ProgramSpec{
			Name: "untracked_clock", Type: ebpf.XDP, License: "Dual BSD/GPL", Instructions: writeJiffies,
		})
		return err
	})
	if err != nil {
		return clock{}, fmt.Errorf("load the program that reads jiffies: %w", err)
	}
	defer program.Close()
	_, out, err := program.Test(make([]byte, 14)) // the least that an XDP program can be run on
	if err != nil {
		return clock{}, fmt.Errorf("run the program that reads jiffies: %w", err)
	}
	return clock{time.Now(), binary.NativeEndian.Uint64(out), time.Duration(tick.Nano())}, nil
}

// writeJiffies overwrites the beginning of the packet.
var writeJiffies = asm.Instructions{
	asm.Mov.Reg(asm.R6, asm.R1),
	asm.FnJiffies64.Call(),
	asm.LoadMem(asm.R2, asm.R6, 0, asm.Word), // data
	asm.LoadMem(asm.R3, asm.R6, 4, asm.Word), // data_end
	asm.Mov.Reg(asm.R4, asm.R2),
	asm.Add.Imm(asm.R4, 8),
	asm.JGT.Reg(asm.R4, asm.R3, "out"),
	asm.StoreMem(asm.R2, 0, asm.R0, asm.DWord),
	asm.Mov.Imm(asm.R0, 2).WithSymbol("out"), // XDP_PASS
	asm.Return(),
}

// time is when the jiffies were as given; 0 jiffies never were.
func (c clock) time(jiffies uint64) time.Time {
	if jiffies == 0 {
		return time.Time{}
	}
	return c.now.Add(-time.Duration(c.jiffies-jiffies) * c.tick)
}

// after is what the jiffies will be when d has passed.
func (c clock) after(d time.Duration) uint64 {
	return c.jiffies + uint64((d+c.tick-1)/c.tick)
}
