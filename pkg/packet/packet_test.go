// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/untracked-cni/untracked/pkg/packet/packettest"
	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/pkg/policy/policytest"
)

func TestFixtures(t *testing.T) {
	rules := packettest.Rules()
	names := map[string]bool{}
	for _, f := range packettest.Fixtures() {
		if names[f.Name] {
			t.Errorf("two fixtures are named %q", f.Name)
		}
		names[f.Name] = true
		t.Run(f.Name, func(t *testing.T) {
			if got := Decide(rules, f.Frame); got != f.Want {
				t.Errorf("got %+v, want %+v", got, f.Want)
			}
			p, reason := Parse(f.Frame)
			if (p == nil) != (f.Want.By == policy.ByNotIP || f.Want.By == policy.ByMalformed) || p == nil && reason != f.Want.By {
				t.Fatalf("parsed to %+v, %q", p, reason)
			}
			if f.Packet == nil {
				return
			}
			p.Quoted = nil
			if diff := cmp.Diff(f.Packet, p, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
				t.Errorf("packet (-want +got):\n%s", diff)
			}
			// Without the Ethernet header it is the same packet.
			for _, etherType := range []uint16{etherTypeIPv4, etherTypeIPv6} {
				if (etherType == etherTypeIPv4) != p.Src.Is4() {
					continue
				}
				_, ip := ethernet(f.Frame)
				if got := DecideIP(rules, etherType, ip); got != f.Want {
					t.Errorf("without Ethernet header: got %+v, want %+v", got, f.Want)
				}
			}
		})
	}
}

// No frame, however it is cut, makes the parser read beyond it or speak of what it cannot know.
func TestTruncations(t *testing.T) {
	rules := packettest.Rules()
	for _, f := range packettest.Fixtures() {
		for n := range len(f.Frame) {
			cut := f.Frame[:n:n]
			got := Decide(rules, cut)
			if n < ethernetHeader && got.By != policy.ByNotIP {
				t.Errorf("%s, %d bytes: %+v", f.Name, n, got)
			}
			if p, _ := Parse(cut); p != nil && p.HasL4 && p.LaterFragment {
				t.Errorf("%s, %d bytes: a later fragment with a transport header: %+v", f.Name, n, p)
			}
		}
	}
	for seed := range uint64(50) {
		g := policytest.New(seed)
		for range 100 {
			frame := g.Frame()
			Decide(rules, frame[:g.IntN(len(frame)+1)])
		}
	}
}
