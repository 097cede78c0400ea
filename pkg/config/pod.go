// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"slices"

	"github.com/untracked-cni/untracked/pkg/netset"
	"github.com/untracked-cni/untracked/pkg/policy"
)

// MaxPodPorts is how many port numbers a pod may ask for, over all protocols: each takes an entry of its own in a
// table of the kernel that all pods share.
const MaxPodPorts = 1000

// MaxPodSources is how many networks a pod may name: the kernel takes one out of the set that all pods share in a time that
// grows with the set, some 0.1 ms for each thousand.
const MaxPodSources = 100

// PodRequest is what a pod asks for: ports of its own addresses, in order and without duplicates.
type PodRequest struct {
	Ports   []policy.Port // none: it asks for nothing
	Sources *netset.Set   // nil for any
}

const (
	podPortsKey   = Prefix + "ports"
	podSourcesKey = Prefix + "sources"
)

// PodRequest reads the annotations of the pod that a call is about, whose name is for errors. Its error is an
// [*Error] or a join of several. What a pod asks for must leave the failsafe ports alone.
func (c *Config) PodRequest(pod string) (PodRequest, error) {
	var r PodRequest
	var errs []*Error
	for key, value := range c.PodAnnotations {
		var e *Error
		switch key {
		case podPortsKey:
			r.Ports, e = podPorts(value, c.FailsafeInbound)
		case podSourcesKey:
			if _, ok := c.PodAnnotations[podPortsKey]; !ok {
				e = problem(value, "does nothing without %s; want both or neither", podPortsKey)
			} else {
				e = podSources(&r.Sources, value)
			}
		default:
			e = problem(value, "unknown key; want %s or %s, the only ones that a pod can have", podPortsKey, podSourcesKey)
		}
		if e != nil {
			e.Key = fmt.Sprintf("annotation %s of pod %s", key, pod)
			errs = append(errs, e)
		}
	}
	if len(errs) > 0 {
		return PodRequest{}, join(errs)
	}
	return r, nil
}

func podSources(to **netset.Set, value string) *Error {
	if e := setNets(to, value); e != nil {
		return e
	}
	if n := len((*to).Prefixes()); n > MaxPodSources {
		return problem(fmt.Sprintf("%.32s…", value), "%d networks; want at most %d: name larger ones that hold these, or leave %s out and have a network policy keep others out",
			n, MaxPodSources, podSourcesKey)
	}
	return nil
}

func podPorts(value string, failsafes []policy.FailsafePort) ([]policy.Port, *Error) {
	var given []policy.Port
	if e := setPorts(&given, value); e != nil {
		return nil, e
	}
	ranges := map[uint8][]policy.PortRange{}
	for _, p := range given {
		ranges[p.Protocol] = append(ranges[p.Protocol], p.Range)
	}
	var ports []policy.Port
	count := 0
	for protocol := range 256 {
		for _, r := range policy.NormalizePorts(ranges[uint8(protocol)]) {
			ports = append(ports, policy.Port{Protocol: uint8(protocol), Range: r})
			count += int(r.Last) - int(r.First) + 1
		}
	}
	if count > MaxPodPorts {
		return nil, problem(value, "%d port numbers; want at most %d, each port of a range counted", count, MaxPodPorts)
	}
	if at := slices.IndexFunc(failsafes, func(f policy.FailsafePort) bool { return includes(ports, f.Protocol, f.Port) }); at >= 0 {
		f := failsafes[at]
		return nil, problem(value, "%s/%d is a failsafe port of this node, which stays tracked; leave it out, or take it out of %s%s in the node's conf list",
			policy.ProtocolName(f.Protocol), f.Port, Prefix, policy.FailsafeInbound)
	}
	return ports, nil
}

func includes(ports []policy.Port, protocol uint8, port uint16) bool {
	return slices.ContainsFunc(ports, func(p policy.Port) bool {
		return p.Protocol == protocol && p.Range.First <= port && port <= p.Range.Last
	})
}

// WithoutFailsafes leaves out of ports those that a failsafe list has, for whatever network.
func WithoutFailsafes(ports []policy.Port, failsafes []policy.FailsafePort) []policy.Port {
	for _, f := range failsafes {
		if !includes(ports, f.Protocol, f.Port) {
			continue
		}
		var rest []policy.Port
		for _, p := range ports {
			if !includes([]policy.Port{p}, f.Protocol, f.Port) {
				rest = append(rest, p)
				continue
			}
			if p.Range.First < f.Port {
				rest = append(rest, policy.Port{Protocol: p.Protocol, Range: policy.PortRange{First: p.Range.First, Last: f.Port - 1}})
			}
			if f.Port < p.Range.Last {
				rest = append(rest, policy.Port{Protocol: p.Protocol, Range: policy.PortRange{First: f.Port + 1, Last: p.Range.Last}})
			}
		}
		ports = rest
	}
	return ports
}
