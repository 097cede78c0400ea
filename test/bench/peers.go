// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"

	"github.com/untracked-cni/untracked/pkg/netset"
)

//go:generate go tool bpf2go -go-package main -output-stem peers -target bpfel -no-global-types peers peers.bpf.c

// peer is one of the programs of peers.bpf.c.
type peer string

const (
	lpmPeer    peer = "peer_lpm"
	linearPeer peer = "peer_linear"
)

// spec is the peer's program with the lines of a shape in its maps. The caller closes the maps that are returned.
func (p peer) spec(s *shape) (*ebpf.CollectionSpec, map[string]*ebpf.Map, error) {
	spec, err := loadPeers()
	if err != nil {
		return nil, nil, err
	}
	for name := range spec.Programs {
		if name != string(p) {
			delete(spec.Programs, name)
		}
	}
	var maps map[string]*ebpf.Map
	if p == lpmPeer {
		delete(spec.Maps, "lines")
		maps, err = fillTries(spec, s)
	} else {
		for _, name := range []string{"sources4", "sources6", "services"} {
			delete(spec.Maps, name)
		}
		maps, err = fillLines(spec, s)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("fill the maps of %s: %w", p, err)
	}
	return spec, maps, nil
}

// fillTries makes the maps of peer_lpm.
func fillTries(spec *ebpf.CollectionSpec, s *shape) (maps map[string]*ebpf.Map, err error) {
	type source struct{ Number, Denied uint32 }
	type service struct {
		Source     uint32
		Port, Slot uint16
	}
	tries := map[string][][]byte{}
	sources := map[string][]source{}
	var services []service
	var rules []uint32
	numbers := map[netip.Prefix]uint32{}
	for _, l := range s.lines {
		name := "sources4"
		if l.net.Addr().Is6() {
			name = "sources6"
		}
		number, known := numbers[l.net]
		if !known {
			number = uint32(len(numbers))
			if l.deny {
				number = uint32(l.rule)
			}
			numbers[l.net] = number
			tries[name] = append(tries[name], append(binary.NativeEndian.AppendUint32(nil, uint32(l.net.Bits())), l.net.Addr().AsSlice()...))
			sources[name] = append(sources[name], source{number, map[bool]uint32{true: 1}[l.deny]})
		}
		if !l.deny {
			services = append(services, service{number, l.port, 0})
			rules = append(rules, uint32(l.rule))
		}
	}
	spec.Maps["services"].MaxEntries = uint32(max(1, len(services)))
	maps = map[string]*ebpf.Map{}
	defer func() {
		if err != nil {
			closeMaps(maps)
		}
	}()
	for _, name := range []string{"sources4", "sources6", "services"} {
		if keys := tries[name]; len(keys) > 0 {
			spec.Maps[name].MaxEntries = uint32(len(keys))
		}
		if maps[name], err = ebpf.NewMap(spec.Maps[name]); err != nil {
			return nil, err
		}
		for i, k := range tries[name] {
			if err := maps[name].Put(k, sources[name][i]); err != nil {
				return nil, err
			}
		}
	}
	for i := range services {
		if err := maps["services"].Put(services[i], rules[i]); err != nil {
			return nil, err
		}
	}
	return maps, nil
}

// fillLines makes the map of peer_linear, which takes IPv4 only.
func fillLines(spec *ebpf.CollectionSpec, s *shape) (map[string]*ebpf.Map, error) {
	const (
		mostInBlock = 1024 // BLOCK_LINES
		tcp         = 0    // SLOT_TCP
		noSlot      = 0xffff
	)
	var value []byte
	add := func(net, mask uint32, rest ...uint16) {
		value = binary.NativeEndian.AppendUint32(value, net)
		value = binary.NativeEndian.AppendUint32(value, mask)
		for _, v := range rest {
			value = binary.NativeEndian.AppendUint16(value, v)
		}
	}
	for _, l := range s.lines {
		if !l.net.Addr().Is4() {
			return nil, fmt.Errorf("%s: it takes IPv4 only", l.net)
		}
		lo, hi := netset.Bounds4(l.net)
		var portMask, denied uint16
		if l.port != 0 {
			portMask = 0xffff
		}
		if l.deny {
			denied = 1
		}
		add(lo, ^(lo ^ hi), l.port, portMask, tcp, denied)
	}
	inBlock := min(len(s.lines), mostInBlock)
	blocks := (len(s.lines) + inBlock - 1) / inBlock
	for range blocks*inBlock - len(s.lines) {
		add(0, 0, 0, 0, noSlot, 0) // matches nothing
	}
	for name, n := range map[string]int{"blocks": blocks, "block_lines": inBlock, "first_rule": s.first} {
		if err := spec.Variables[name].Set(uint32(n)); err != nil {
			return nil, err
		}
	}
	spec.Maps["lines"].ValueSize = uint32(len(value))
	m, err := ebpf.NewMap(spec.Maps["lines"])
	if err != nil {
		return nil, err
	}
	if err := m.Put(uint32(0), value); err != nil {
		m.Close()
		return nil, err
	}
	return map[string]*ebpf.Map{"lines": m}, nil
}

func closeMaps(maps map[string]*ebpf.Map) {
	for _, m := range maps {
		m.Close()
	}
}
