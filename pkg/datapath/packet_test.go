// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"encoding/binary"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/pkg/packet/packettest"
	"github.com/untracked-cni/untracked/pkg/policy"
)

// runnable reports whether a test run takes a frame: with an skb it wants a whole IP header where the ethertype
// promises one (net/bpf/test_run.c), though a driver could hand over less.
func runnable(kind Kind, frame []byte) bool {
	if len(frame) < 14 {
		return false
	}
	if kind != TC {
		return true
	}
	switch binary.BigEndian.Uint16(frame[12:]) {
	case unix.ETH_P_IP:
		return len(frame) >= 14+20
	case unix.ETH_P_IPV6:
		return len(frame) >= 14+40
	}
	// An empty skb is refused too.
	return len(frame) > 14
}

// Every loaded program decides the named frames as they say.
func TestFixtures(t *testing.T) {
	requireRoot(t)
	for _, kind := range kinds(t) {
		t.Run(string(kind), func(t *testing.T) {
			program := load(t, kind, packettest.Rules(), ProgramOptions{MarkBit: 0x1000, Trace: true})
			for _, f := range packettest.Fixtures() {
				if !runnable(kind, f.Frame) {
					t.Logf("%s: %d bytes, no frame for an skb", f.Name, len(f.Frame))
					continue
				}
				got, err := Decide(program.Program, f.Frame)
				if err != nil {
					t.Errorf("%s: %v", f.Name, err)
				} else if got != f.Want {
					t.Errorf("%s: got %+v, want %+v", f.Name, got, f.Want)
				}
			}
		})
	}
}

// The verdicts become what the kernel acts on: XDP and tc return codes.
func TestActions(t *testing.T) {
	requireRoot(t)
	const xdpDrop, xdpPass, tcShot, tcUnspec = 1, 2, 2, 0xffffffff
	for kind, codes := range map[Kind]struct{ drop, pass uint32 }{
		XDP: {xdpDrop, xdpPass}, XDPFrags: {xdpDrop, xdpPass}, TC: {tcShot, tcUnspec},
	} {
		if !slices.Contains(kinds(t), kind) {
			continue
		}
		program := load(t, kind, packettest.Rules(), ProgramOptions{MarkBit: 0x1000})
		for _, f := range packettest.Fixtures() {
			if !runnable(kind, f.Frame) {
				continue
			}
			want := codes.pass
			if f.Want.Verdict == policy.Denied {
				want = codes.drop
			}
			// Room for what a test run may write back, metadata included.
			got, _, err := program.Test(f.Frame)
			if err != nil {
				t.Errorf("%s, %s: %v", kind, f.Name, err)
			} else if got != want {
				t.Errorf("%s, %s: returned %d, want %d for %s", kind, f.Name, got, want, f.Want.Verdict)
			}
		}
	}
}

// What a driver may hand over but a test run refuses is refused loudly: such frames are for the Go parser's tests.
func TestShortFrames(t *testing.T) {
	requireRoot(t)
	for _, kind := range []Kind{XDP, TC} {
		program := load(t, kind, packettest.Rules(), ProgramOptions{MarkBit: 0x1000, Trace: true})
		for _, n := range []int{0, 1, 13} {
			if _, err := Decide(program.Program, make([]byte, n)); err == nil {
				t.Errorf("%s takes a frame of %d bytes", kind, n)
			}
		}
	}
	program := load(t, TC, packettest.Rules(), ProgramOptions{MarkBit: 0x1000, Trace: true})
	for etherType, header := range map[uint16]int{unix.ETH_P_IP: 20, unix.ETH_P_IPV6: 40} {
		frame := make([]byte, 14+header)
		binary.BigEndian.PutUint16(frame[12:], etherType)
		frame[14] = byte(etherType>>8) & 0xf0 // not a version, so malformed
		if got, err := Decide(program.Program, frame); err != nil || got.By != policy.ByMalformed {
			t.Errorf("%#x with a header of zeroes: %+v, %v", etherType, got, err)
		}
		if _, err := Decide(program.Program, frame[:len(frame)-1]); err == nil {
			t.Logf("%#x: this kernel takes an skb with half a header", etherType)
		}
	}
}
