// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"encoding/binary"
	"hash/fnv"

	"github.com/untracked-cni/untracked/pkg/netset"
)

// contentHash identifies what the rule matches and does.
func (r *Rule) contentHash() uint64 {
	return hash(r.appendContent(make([]byte, 0, 160)))
}

// appendContent writes what the rule matches and does, so that only equal rules are written alike: each part is of a
// fixed length, or begins with its length.
func (r *Rule) appendContent(b []byte) []byte {
	b = append(b, byte(r.Action), byte(r.IPVersion))
	b = appendNumber(b, r.Protocol)
	b = appendNumber(b, r.NotProtocol)
	b = r.ICMP.appendContent(b)
	b = r.NotICMP.appendContent(b)
	for _, e := range []*Entity{&r.Source, &r.Destination} {
		b = appendNets(b, e.Nets, e.NetsName)
		b = appendNets(b, e.NotNets, e.NotNetsName)
		b = appendPorts(b, e.Ports)
		b = appendPorts(b, e.NotPorts)
	}
	return b
}

func (m *ICMPMatch) appendContent(b []byte) []byte {
	if m == nil {
		return append(b, 0)
	}
	return appendNumber(append(b, 1, m.Type), m.Code)
}

func appendNumber(b []byte, n *uint8) []byte {
	if n == nil {
		return append(b, 0)
	}
	return append(b, 1, *n)
}

func appendNets(b []byte, nets *netset.Set, name string) []byte {
	switch {
	case nets == nil:
		return append(b, 0)
	case name != "":
		b = binary.BigEndian.AppendUint32(append(b, 1), uint32(len(name)))
		return append(b, name...)
	}
	return binary.BigEndian.AppendUint64(append(b, 2), nets.Hash())
}

// appendPorts tells no ports from any port.
func appendPorts(b []byte, ports []PortRange) []byte {
	if ports == nil {
		return append(b, 0)
	}
	b = binary.BigEndian.AppendUint32(append(b, 1), uint32(len(ports)))
	for _, p := range ports {
		b = binary.BigEndian.AppendUint16(b, p.First)
		b = binary.BigEndian.AppendUint16(b, p.Last)
	}
	return b
}

// hash is the same in every process: counters outlive the one that made them.
func hash(b []byte) uint64 {
	h := fnv.New64a()
	h.Write(b)
	return h.Sum64()
}
