// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/pkg/packet"
	"github.com/untracked-cni/untracked/pkg/policy"
)

// Tracer asks the program that is attached to an interface what it does with a frame. It runs a private copy of it,
// so that no counter moves and nothing is reported: the same instructions, which the kernel's tags of the two prove,
// with the same constants but for the one that has them return the whole decision, on the same lookup tables.
type Tracer struct {
	program *ebpf.Program
	kind    Kind
	layer3  bool
}

// Tracer copies the program that classifies for a on an interface. It is an error if that is not attached there any
// more, or is another version's, of which no copy can be made. The caller closes the tracer.
func (p *Pins) Tracer(ifindex int, a Attached) (*Tracer, error) {
	if err := p.Verify(ifindex, a); err != nil {
		return nil, err
	}
	original, err := ebpf.NewProgramFromID(ebpf.ProgramID(a.Program()))
	if err != nil {
		return nil, fmt.Errorf("open program %d: %w", a.Program(), err)
	}
	defer original.Close()
	t, err := newTracer(original)
	if err != nil {
		return nil, fmt.Errorf("copy program %d of interface %d: %w", a.Program(), ifindex, err)
	}
	return t, nil
}

func newTracer(original *ebpf.Program) (*Tracer, error) {
	info, err := original.Info()
	if err != nil {
		return nil, fmt.Errorf("read program info: %w", err)
	}
	t := &Tracer{kind: Kind(info.Name)}
	if !slices.Contains([]Kind{XDP, XDPFrags, TC}, t.kind) {
		return nil, fmt.Errorf("%q is no program of ours that classifies", info.Name)
	}
	theirs, err := programMaps(info)
	if err != nil {
		return nil, err
	}
	defer theirs.close()

	spec, err := programSpec(t.kind)
	if err != nil {
		return nil, err
	}
	if err := t.specialise(spec, theirs[rodataMap]); err != nil {
		return nil, err
	}
	maps, err := theirs.copies()
	if err != nil {
		return nil, err
	}
	defer maps[countersMap].Close()
	if t.program, err = loadSpec(spec, t.kind, maps); err != nil {
		return nil, err
	}
	own, err := t.program.Info()
	if err != nil {
		t.Close()
		return nil, fmt.Errorf("read program info: %w", err)
	}
	if own.Tag != info.Tag {
		t.Close()
		return nil, fmt.Errorf("it is another version's: its tag is %s, this version's is %s; apply the policy with this version first", info.Tag, own.Tag)
	}
	return t, nil
}

// specialise gives the copy the constants of the original.
func (t *Tracer) specialise(spec *ebpf.CollectionSpec, rodata *ebpf.Map) error {
	constants, err := rodata.LookupBytes(uint32(0))
	if err != nil {
		return fmt.Errorf("read its constants: %w", err)
	}
	if want := spec.Maps[rodataMap].ValueSize; uint32(len(constants)) != want {
		return fmt.Errorf("it is another version's: it has %d bytes of constants, this version's has %d; apply the policy with this version first", len(constants), want)
	}
	spec.Maps[rodataMap].Contents = []ebpf.MapKV{{Key: uint32(0), Value: constants}}
	for _, v := range spec.Variables {
		if v.SectionName == rodataMap {
			v.Value = bytes.Clone(constants[v.Offset : v.Offset+v.Size()])
		}
	}
	var layer3 uint8
	if err := spec.Variables["layer3"].Get(&layer3); err != nil {
		return fmt.Errorf("read its constants: %w", err)
	}
	// A test run begins with an Ethernet header in any case.
	t.layer3 = layer3 != 0
	return errors.Join(spec.Variables["layer3"].Set(uint8(0)), spec.Variables["trace"].Set(uint8(1)))
}

// mapSet has maps by their names in the object.
type mapSet map[string]*ebpf.Map

func (s mapSet) close() {
	for _, m := range s {
		m.Close()
	}
}

const rodataMap = ".rodata"

// programMaps opens the maps that a program uses. The caller closes them.
func programMaps(info *ebpf.ProgramInfo) (_ mapSet, err error) {
	out := mapSet{}
	defer func() {
		if err != nil {
			out.close()
		}
	}()
	ids, ok := info.MapIDs()
	if !ok {
		return nil, errors.New("this kernel does not say which maps it uses")
	}
	names := map[string]string{
		rodataMap: rodataMap, tablesName: tablesMap, countersName: countersMap, eventsName: eventsMap, monitorName: monitorMap,
	}
	for _, id := range ids {
		m, err := ebpf.NewMapFromID(id)
		if err != nil {
			return nil, fmt.Errorf("open map %d: %w", id, err)
		}
		info, err := m.Info()
		if err != nil {
			m.Close()
			return nil, fmt.Errorf("read map info: %w", err)
		}
		if name, ok := names[info.Name]; ok && out[name] == nil {
			out[name] = m
		} else {
			m.Close()
		}
	}
	for _, name := range []string{rodataMap, tablesMap, countersMap} {
		if out[name] == nil {
			return nil, fmt.Errorf("it is another version's: it has no map %s", name)
		}
	}
	return out, nil
}

// copies are the maps for a copy of the program that uses s: the same ones, but for counters of its own. To the maps of
// reports it only keeps a name, in code that tracing makes dead: instructions that lack it would have another tag.
func (s mapSet) copies() (mapSet, error) {
	counters, err := newMap(&ebpf.MapSpec{
		Name: "untracked_trace", Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: counterSize, MaxEntries: s[countersMap].MaxEntries(),
	})
	if err != nil {
		return nil, err
	}
	out := mapSet{tablesMap: s[tablesMap], countersMap: counters}
	if s[eventsMap] != nil {
		out[eventsMap], out[monitorMap] = s[eventsMap], s[monitorMap]
	}
	return out, nil
}

// Close frees the copy.
func (t *Tracer) Close() error { return t.program.Close() }

// Decide returns what the program decides about a frame with an Ethernet header, of any length. For an interface
// without Ethernet headers, the caller puts one in front of the packet.
//
// A test run does not take every frame. What it refuses is replaced by a frame that the program cannot tell from it
// for its decision: one without a whole Ethernet header by one of no IP type; an IP header that is cut short by one of
// zeroes, as malformed; and a long frame by its beginning, provided that all headers are in it.
func (t *Tracer) Decide(frame []byte) (policy.Decision, error) {
	frame, err := t.runnable(frame)
	if err != nil {
		return policy.Decision{}, err
	}
	return Decide(t.program, frame)
}

const (
	ethernetHeader = 14
	// maxRun fits, with all that the kernel puts around it, a page of 4 KiB.
	maxRun = 3000
)

// notIP is as much an IP packet as half an Ethernet header is.
var notIP = make([]byte, ethernetHeader+1)

func (t *Tracer) runnable(frame []byte) ([]byte, error) {
	if len(frame) < ethernetHeader {
		return notIP, nil
	}
	if len(frame) > maxRun {
		whole, reason := packet.Parse(frame)
		cut, cutReason := packet.Parse(frame[:maxRun])
		if reason != cutReason || !samePacket(whole, cut) {
			return nil, fmt.Errorf("the headers of a frame of %d bytes reach beyond its first %d, which are all that the kernel can be asked about", len(frame), maxRun)
		}
		frame = frame[:maxRun]
	}
	if t.kind != TC {
		return frame, nil
	}
	header, version := 0, byte(0)
	switch binary.BigEndian.Uint16(frame[12:]) {
	case unix.ETH_P_IP:
		header, version = 20, 4
	case unix.ETH_P_IPV6:
		header, version = 40, 6
	}
	payload := frame[ethernetHeader:]
	switch {
	case t.layer3 && header > 0 && (len(payload) == 0 || payload[0]>>4 != version):
		return notIP, nil // to a program that looks for no Ethernet header
	case len(payload) < max(header, 1):
		// The kernel makes no skb of it. Zeroes are no version of IP, nor a VLAN tag.
		return append(slices.Clone(frame[:ethernetHeader]), make([]byte, max(header, 1))...), nil
	}
	return frame, nil
}

func samePacket(a, b *policy.Packet) bool {
	if a == nil || b == nil {
		return a == b
	}
	x, y := *a, *b
	x.Quoted, y.Quoted = nil, nil
	return x == y && samePacket(a.Quoted, b.Quoted)
}
