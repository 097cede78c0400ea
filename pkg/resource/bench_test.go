// SPDX-License-Identifier: Apache-2.0

package resource

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
)

// bigSet is a GlobalNetworkSet of n different addresses.
func bigSet(n int) []byte {
	var b strings.Builder
	b.WriteString(resourceFrame("GlobalNetworkSet", "big") + "  nets:\n")
	r := rand.New(rand.NewPCG(1, 2))
	for seen := make(map[uint32]bool, n); len(seen) < n; {
		a := r.Uint32()
		if seen[a] {
			continue
		}
		seen[a] = true
		var bytes [4]byte
		binary.BigEndian.PutUint32(bytes[:], a)
		fmt.Fprintf(&b, "  - %s/32\n", netip.AddrFrom4(bytes))
	}
	return []byte(b.String())
}

func TestBigSet(t *testing.T) {
	const n = 100_000
	set, err := read(string(bigSet(n)))
	if err != nil {
		t.Fatal(err)
	}
	if got := set.NetworkSets[0].Nets.Entries(); got != n {
		t.Errorf("%d nets, want %d", got, n)
	}
}

func BenchmarkRead(b *testing.B) {
	for _, n := range []int{1000, 100_000, 1_000_000} {
		data := bigSet(n)
		b.Run(fmt.Sprintf("nets=%d", n), func(b *testing.B) {
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
