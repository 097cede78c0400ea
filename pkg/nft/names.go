// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
)

// Chains. Those of endpoints are a prefix and the interface, those of tiers begin with what tierChain says.
const (
	preroutingChain = "prerouting"
	outputChain     = "output"
	awaitedChain    = "awaited"

	arrivingPrefix  = "in-"
	endpointPrefix  = "out-"
	fragmentsPrefix = "fragments-"
	quoted4Prefix   = "quoted4-"
	quoted6Prefix   = "quoted6-"
)

// tierChain names the n-th tier that has a chain of its own, counted from 1, of another chain.
func tierChain(n int, chain string) string { return fmt.Sprintf("tier%d.%s", n, chain) }

// ifNameSize is IFNAMSIZ, the terminating zero included.
const ifNameSize = 16

// escape makes an interface name one that nft can print and parse: its identifiers are made of letters,
// digits and -_./ only. The slash, which no interface name holds, stands before two hex digits.
func escape(name string) string {
	var b strings.Builder
	for i := range len(name) {
		c := name[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_', c == '.':
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "/%02x", c)
		}
	}
	return b.String()
}

func unescape(s string) (string, bool) {
	first, rest, found := strings.Cut(s, "/")
	out := []byte(first)
	for found {
		if len(rest) < 2 {
			return "", false
		}
		c, err := hex.DecodeString(rest[:2])
		if err != nil {
			return "", false
		}
		first, rest, found = strings.Cut(rest[2:], "/")
		out = append(append(out, c...), first...)
	}
	return string(out), true
}

// counterName is the endpoint's chain, a dash and the rule's identity in 16 hex digits.
func counterName(k CounterKey) string {
	id := binary.BigEndian.AppendUint64(nil, k.RuleID)
	return endpointPrefix + escape(k.Interface) + "-" + hex.EncodeToString(id)
}

// parseCounterName is false for a counter that is none of ours.
func parseCounterName(name string) (CounterKey, bool) {
	rest, ok := strings.CutPrefix(name, endpointPrefix)
	dash := len(rest) - 17
	if !ok || dash < 1 || rest[dash] != '-' {
		return CounterKey{}, false
	}
	id, err := strconv.ParseUint(rest[dash+1:], 16, 64)
	if err != nil {
		return CounterKey{}, false
	}
	ifname, ok := unescape(rest[:dash])
	k := CounterKey{Interface: ifname, RuleID: id}
	return k, ok && counterName(k) == name
}
