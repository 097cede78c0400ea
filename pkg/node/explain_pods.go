// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/untracked-cni/untracked/pkg/netset"
	"github.com/untracked-cni/untracked/pkg/nft"
	"github.com/untracked-cni/untracked/pkg/policy"
)

// podPorts are the ports that pods have untracked, as the table of pods looks them up.
type podPorts struct {
	names   map[podPort]string
	sources map[netip.Addr]*netset.Set // nil for any
}

type podPort struct {
	addr     netip.Addr
	protocol uint8
	port     uint16
}

// String is as [nft.MissingPods] has it.
func (p podPort) String() string {
	return fmt.Sprintf("%s %s/%d", p.addr, policy.ProtocolName(p.protocol), p.port)
}

// podPorts reads the records, if the table that goes with them is in force, without the ports that are not in it.
func (n *Node) podPorts() (*podPorts, error) {
	out := &podPorts{map[podPort]string{}, map[netip.Addr]*netset.Set{}}
	digest, err := nft.PodsInForce()
	if errors.Is(err, nft.ErrNoPodsTable) || errors.Is(err, nft.ErrNotSupported) || err == nil && digest != nft.PodsDigest() {
		return out, nil
	}
	if err != nil {
		return nil, err
	}
	all, err := n.Pods()
	if err != nil {
		return nil, err
	}
	listed := tabled(all, n.failsafes())
	lost, err := nft.MissingPods(listed...)
	if err != nil {
		return nil, err
	}
	for _, p := range listed {
		for _, a := range p.Addresses {
			out.sources[a] = p.Sources
			for _, r := range p.Ports {
				for port := int(r.Range.First); port <= int(r.Range.Last); port++ {
					if key := (podPort{a, r.Protocol, uint16(port)}); !slices.Contains(lost, key.String()) {
						out.names[key] = p.Name
					}
				}
			}
		}
	}
	return out, nil
}

// of names the pod by whose request a packet is untracked, be it at one end or the other; of an ICMP error, at the ends of
// the packet that it quotes.
func (p *podPorts) of(packet *policy.Packet) string {
	if packet.Quoted != nil {
		packet = packet.Quoted
	}
	if !packet.HasL4 {
		return ""
	}
	if pod := p.at(packet.Protocol, packet.Dst, packet.DstPort, packet.Src); pod != "" {
		return pod
	}
	return p.at(packet.Protocol, packet.Src, packet.SrcPort, packet.Dst)
}

func (p *podPorts) at(protocol uint8, own netip.Addr, port uint16, peer netip.Addr) string {
	pod := p.names[podPort{own, protocol, port}]
	if sources := p.sources[own]; sources != nil && !sources.Contains(peer) {
		return ""
	}
	return pod
}
