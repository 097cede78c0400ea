// SPDX-License-Identifier: Apache-2.0

package resource

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"github.com/untracked-cni/untracked/pkg/netset"
)

// bigSet is a GlobalNetworkSet of n different addresses, in YAML and in JSON.
func bigSet(n int) map[string][]byte {
	var block, flow strings.Builder
	block.WriteString(resourceFrame("GlobalNetworkSet", "big") + "  nets:\n")
	flow.WriteString(`{"apiVersion":"projectcalico.org/v3","kind":"GlobalNetworkSet","metadata":{"name":"big"},"spec":{"nets":[`)
	r := rand.New(rand.NewPCG(1, 2))
	for seen := make(map[uint32]bool, n); len(seen) < n; {
		a := r.Uint32()
		if seen[a] {
			continue
		}
		if len(seen) > 0 {
			flow.WriteByte(',')
		}
		seen[a] = true
		p := netip.PrefixFrom(netset.To4(a), 32)
		fmt.Fprintf(&block, "  - %s\n", p)
		fmt.Fprintf(&flow, "%q", p)
	}
	flow.WriteString("]}}")
	return map[string][]byte{"YAML": []byte(block.String()), "JSON": []byte(flow.String())}
}

func TestBigSet(t *testing.T) {
	const n = 100_000
	for name, data := range bigSet(n) {
		set, err := read(string(data))
		if err != nil {
			t.Fatal(err)
		}
		if nets := set.NetworkSets[0].Nets; nets.Entries() != n {
			t.Errorf("%s: %d nets, want %d", name, nets.Entries(), n)
		}
	}
}

func BenchmarkRead(b *testing.B) {
	for _, n := range []int{1000, 100_000, 1_000_000} {
		for name, data := range bigSet(n) {
			b.Run(fmt.Sprintf("%s/nets=%d", name, n), func(b *testing.B) {
				b.SetBytes(int64(len(data)))
				b.ReportAllocs()
				for b.Loop() {
					var r Reader
					r.Add(data, Position{File: "f"})
					if _, err := r.Result(); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
