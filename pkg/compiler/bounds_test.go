// SPDX-License-Identifier: Apache-2.0

package compiler

import (
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"github.com/untracked-cni/untracked/pkg/netset"
	"github.com/untracked-cni/untracked/pkg/policy"
)

// Lists that would take too much memory are refused for it before it is taken, and those of too many combinations have
// vectors.
func TestHostileLists(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 8))
	nets := func(n, shortest int) *netset.Set {
		var b netset.Builder
		for range n {
			b.Add(netip.PrefixFrom(netset.To4(r.Uint32()), shortest+r.IntN(33-shortest)).Masked())
		}
		return b.Build()
	}
	ports := func(n int) (out []policy.PortRange) {
		for range n {
			p := uint16(r.IntN(1 << 16))
			out = append(out, policy.PortRange{First: p, Last: p})
		}
		return policy.NormalizePorts(out)
	}
	for _, c := range []struct {
		name  string
		rules int
		rule  func(i int) policy.Rule
		want  string // of the error, or of the reason for vectors
	}{
		{"vectors of half a million classes", MaxVectorRules, func(i int) policy.Rule {
			return policy.Rule{Action: policy.Log - policy.Action(min(i, 1)), Source: policy.Entity{Nets: nets(128, 14)}}
		}, "more than 96 MiB"},
		{"exceptions on every side", 1100, func(int) policy.Rule {
			return policy.Rule{
				Action:      policy.Allow,
				Source:      policy.Entity{NotNets: nets(28, 10), NotPorts: ports(40)},
				Destination: policy.Entity{NotNets: nets(28, 10), NotPorts: ports(40)},
			}
		}, "overlap too much"},
		{"combinations of several kinds", 400, func(i int) policy.Rule {
			// A small world, in which each address and each port is a class of its own.
			var b netset.Builder
			var ports []policy.PortRange
			for range 200 {
				b.Add(netip.PrefixFrom(netset.To4(2*r.Uint32N(400)), 32))
				p := uint16(2 * r.IntN(400))
				ports = append(ports, policy.PortRange{First: p, Last: p})
			}
			rule := policy.Rule{Action: policy.Allow, Destination: policy.Entity{Ports: policy.NormalizePorts(ports)}}
			[]*policy.Entity{&rule.Source, &rule.Destination}[i%2].Nets = b.Build()
			return rule
		}, "combinations"},
	} {
		rules := make([]policy.Rule, c.rules)
		for i := range rules {
			rules[i] = c.rule(i)
		}
		var said string
		if image, err := Compile(rules); err != nil {
			said = err.Error()
		} else {
			said = image.Method.Reason
		}
		if !strings.Contains(said, c.want) {
			t.Errorf("%s: %q, want %q", c.name, said, c.want)
		}
	}
}
