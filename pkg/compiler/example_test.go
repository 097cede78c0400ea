// SPDX-License-Identifier: Apache-2.0

package compiler_test

import (
	"fmt"
	"net/netip"

	"github.com/untracked-cni/untracked/pkg/compiler"
	"github.com/untracked-cni/untracked/pkg/netset"
	"github.com/untracked-cni/untracked/pkg/policy"
)

// The packet of the package comment, from its bytes to the rule. Every number can be found in the image by hand.
func ExampleImage_Walk() {
	nets := func(s string) *netset.Set { return netset.Of(netip.MustParsePrefix(s)) }
	port := func(p uint16) []policy.PortRange { return []policy.PortRange{{First: p, Last: p}} }
	tcp, udp := uint8(policy.TCP), uint8(policy.UDP)
	image, err := compiler.Compile([]policy.Rule{
		{Action: policy.Deny, Source: policy.Entity{Nets: nets("192.0.2.0/24")}},
		{Action: policy.Allow, Protocol: &tcp, Source: policy.Entity{Nets: nets("10.0.0.0/8")}, Destination: policy.Entity{Ports: port(6379)}},
		{Action: policy.Allow, Protocol: &udp, Destination: policy.Entity{Ports: port(53)}},
	})
	if err != nil {
		panic(err)
	}
	say := func(format string, args ...any) { fmt.Printf(format+"\n", args...) }
	for _, p := range []policy.Packet{
		{Src: netip.MustParseAddr("10.1.2.3"), Protocol: policy.TCP, HasL4: true, DstPort: 6379},
		{Src: netip.MustParseAddr("192.0.2.9"), Protocol: policy.UDP, HasL4: true, DstPort: 53},
	} {
		p.Dst = netip.MustParseAddr("198.51.100.1")
		say("%s to port %d:", p.Src, p.DstPort)
		image.Walk(&p, say)
	}
	// Output:
	// 10.1.2.3 to port 6379:
	// source 10.1.2.3: root[0xa01] at 16020 is class 1
	// source 10.1.2.3 is of class 1
	// l4 0x18eb: index[0x18] is page 1, entry 0xeb is class 1
	// first[1] is nothing
	// rule: row 1 begins at cell 0; cell 0+1 is its own: value 9
	// the least is value 9: rule 1, Allow
	// 192.0.2.9 to port 53:
	// source 192.0.2.9: root[0xc000] at 202384 is line 0
	//   line at 267968: 1 boundaries are at or below key 0x209
	//   there is class 2
	// source 192.0.2.9 is of class 2
	// l4 0x10035: index[0x100] is page 2, entry 0x35 is class 2
	// first[2] is value 17
	// rule: row 2 begins at cell 0; cell 0+2 is not its own: the usual value 2
	// the least is value 2: rule 0, Deny
}
