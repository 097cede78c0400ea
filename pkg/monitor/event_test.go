// SPDX-License-Identifier: Apache-2.0

package monitor

import (
	"encoding/json"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/untracked-cni/untracked/pkg/policy"
)

var blocklist = []policy.Rule{
	{Policy: "failsafe-inbound", Action: policy.Failsafe},
	{Tier: "default", Policy: "blocklist", Action: policy.Log},
	{Tier: "default", Policy: "blocklist", Index: 1, Action: policy.Deny},
}

func TestEvent(t *testing.T) {
	v4 := [2]netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("192.0.2.1")}
	v6 := [2]netip.Addr{netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")}
	for _, tt := range []struct {
		name       string
		packet     policy.Packet
		decision   policy.Decision
		rules      []policy.Rule
		missed     uint64
		line, json string
	}{
		{
			name:     "denied by a rule",
			packet:   policy.Packet{Src: v4[0], Dst: v4[1], Protocol: policy.TCP, HasL4: true, SrcPort: 40000, DstPort: 6379},
			decision: policy.Decision{Verdict: policy.Denied, By: policy.ByRule, Rule: 2, Logged: true},
			rules:    blocklist,
			line:     "12:01:02.345 eth0 ingress denied default/blocklist[1] tcp 10.0.0.1:40000 > 192.0.2.1:6379 60 bytes",
			json: `{"time":"2026-03-04T12:01:02.345678901+01:00","interface":"eth0","direction":"ingress","verdict":"denied","by":"rule",` +
				`"rule":{"tier":"default","policy":"blocklist","index":1,"action":"Deny"},"log":{"tier":"default","policy":"blocklist","index":0},` +
				`"protocol":"tcp","source":"10.0.0.1","destination":"192.0.2.1","sourcePort":40000,"destinationPort":6379,"bytes":60,"missed":0}`,
		},
		{
			name:     "ports are zero, others are missing",
			packet:   policy.Packet{Src: v6[0], Dst: v6[1], Protocol: policy.UDP, HasL4: true},
			decision: policy.Decision{Verdict: policy.Tracked, By: policy.ByNoMatch, Rule: policy.NoRule, Logged: true},
			rules:    blocklist, missed: 7,
			line: "12:01:02.345 eth0 ingress tracked no-match udp [2001:db8::1]:0 > [2001:db8::2]:0 60 bytes (7 missed before)",
			json: `{"time":"2026-03-04T12:01:02.345678901+01:00","interface":"eth0","direction":"ingress","verdict":"tracked","by":"no-match",` +
				`"log":{"tier":"default","policy":"blocklist","index":0},` +
				`"protocol":"udp","source":"2001:db8::1","destination":"2001:db8::2","sourcePort":0,"destinationPort":0,"bytes":60,"missed":7}`,
		},
		{
			name:     "icmp, and rules that are not known any more",
			packet:   policy.Packet{Src: v4[0], Dst: v4[1], Protocol: policy.ICMP, HasL4: true, ICMPType: 8},
			decision: policy.Decision{Verdict: policy.Untracked, By: policy.ByRule, Rule: 2, Logged: true},
			line:     "12:01:02.345 eth0 ingress untracked rule icmp 10.0.0.1 > 192.0.2.1 type 8 code 0 60 bytes",
			json: `{"time":"2026-03-04T12:01:02.345678901+01:00","interface":"eth0","direction":"ingress","verdict":"untracked","by":"rule",` +
				`"protocol":"icmp","source":"10.0.0.1","destination":"192.0.2.1","icmpType":8,"icmpCode":0,"bytes":60,"missed":0}`,
		},
		{
			name:     "a later fragment of a protocol without a name, failsafe",
			packet:   policy.Packet{Src: v4[0], Dst: v4[1], Protocol: 47, LaterFragment: true},
			decision: policy.Decision{Verdict: policy.Tracked, By: policy.ByFailsafe, Rule: 0, Logged: true},
			rules:    blocklist,
			line:     "12:01:02.345 eth0 ingress tracked failsafe-inbound[0] protocol 47 10.0.0.1 > 192.0.2.1 60 bytes",
			json: `{"time":"2026-03-04T12:01:02.345678901+01:00","interface":"eth0","direction":"ingress","verdict":"tracked","by":"failsafe",` +
				`"rule":{"tier":"","policy":"failsafe-inbound","index":0,"action":"Failsafe"},"log":{"tier":"default","policy":"blocklist","index":0},` +
				`"protocol":"47","source":"10.0.0.1","destination":"192.0.2.1","bytes":60,"missed":0}`,
		},
	} {
		e := newEvent(&tt.packet, tt.decision, tt.rules, 1)
		e.Time = time.Date(2026, 3, 4, 12, 1, 2, 345678901, time.FixedZone("", 3600))
		e.Interface, e.Direction, e.Bytes, e.Missed = "eth0", policy.Ingress, 60, tt.missed
		got, err := json.Marshal(e)
		if diff := cmp.Diff(tt.json, string(got)); err != nil || diff != "" {
			t.Errorf("%s: %v, JSON (-want +got):\n%s", tt.name, err, diff)
		}
		_, offset := e.Time.Zone()
		_, local := e.Time.Local().Zone()
		e.Time = e.Time.Add(time.Duration(offset-local) * time.Second) // so that it is noon wherever the test runs
		if diff := cmp.Diff(tt.line, e.String()); diff != "" {
			t.Errorf("%s: line (-want +got):\n%s", tt.name, diff)
		}
	}
}
