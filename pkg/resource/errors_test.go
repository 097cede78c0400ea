// SPDX-License-Identifier: Apache-2.0

package resource

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"
)

// The frames around a snippet. Each ends so that the snippet, indented, begins on a line of its own.
const (
	rulesFrame = "apiVersion: projectcalico.org/v3\nkind: GlobalNetworkPolicy\nmetadata: {name: p}\nspec:\n  applyOnForward: true\n  doNotTrack: true\n  ingress:\n"
	ruleFrame  = rulesFrame + "  - action: Allow\n" // the snippet is on line 9, in column 5
	specFrame  = "apiVersion: projectcalico.org/v3\nkind: GlobalNetworkPolicy\nmetadata: {name: p}\nspec:\n  applyOnForward: true\n  doNotTrack: true\n"
)

// object is a resource of a kind with the snippet on line 4, in column 3.
func resourceFrame(kind, name string) string {
	return fmt.Sprintf("apiVersion: projectcalico.org/v3\nkind: %s\nmetadata: {name: %s}\nspec:\n", kind, name)
}

func indent(by int, text string) string {
	if text == "" {
		return ""
	}
	return strings.Repeat(" ", by) + strings.ReplaceAll(text, "\n", "\n"+strings.Repeat(" ", by)) + "\n"
}

func repeat(n int, each func(i int) string) string {
	parts := make([]string, n)
	for i := range parts {
		parts[i] = each(i)
	}
	return strings.Join(parts, ", ")
}

// badCase is a snippet and what is wrong with it: "line:column path: …". No error means that it is fine.
type badCase struct {
	text string
	want []string
}

func ok(text string) badCase                  { return badCase{text, nil} }
func bad(text string, want ...string) badCase { return badCase{text, want} }

func runBad(t *testing.T, frame, object string, by int, cases []badCase) {
	t.Helper()
	place := regexp.MustCompile(`^\d+:\d+`)
	for _, c := range cases {
		t.Run("", func(t *testing.T) {
			_, err := read(frame + indent(by, c.text))
			var want []string
			for _, w := range c.want {
				at := place.FindString(w)
				want = append(want, "f:"+at+": "+object+":"+strings.TrimPrefix(w, at))
			}
			wantErrors(t, err, want...)
			if t.Failed() {
				t.Logf("of\n%.400s", c.text)
			}
		})
	}
}

func TestRule(t *testing.T) {
	const (
		r       = "spec.ingress[0]."
		notPort = "; want 1 to 65535, a range such as 1000:2000 or a port's name"
		host    = "packets are judged one by one here…"
	)
	numbered := func(i int) string { return fmt.Sprintf("10.%d.%d.0/24", i/256, i%256) }
	runBad(t, ruleFrame, "GlobalNetworkPolicy p", 4, []badCase{
		// fields
		ok(""),
		bad("sorce: {}", `9:5 `+r+`sorce: unknown field; did you mean source?`),
		bad("IPVersion: 4", `9:5 `+r+`IPVersion: unknown field; did you mean ipVersion?`),
		bad("ports: [80]", `9:5 `+r+`ports: unknown field; want action, destination, http, icmp, ipVersion, metadata, notICMP, notProtocol, protocol or source`),
		bad("protocol: TCP\nprotocol: TCP", `10:5 `+r+`protocol: already given at f:9:5; want it once`),
		bad("source: []", `9:13 `+r+`source: a list; want a mapping`),
		bad("source: x", `9:13 `+r+`source: "x": text; want a mapping`),
		bad("<<: {protocol: TCP}", `9:5 spec.ingress[0]: "<<": merge keys are no part of YAML 1.2; want the fields written out`),
		bad("? [a]\n: b", `9:7 spec.ingress[0]: a list for a key; want a field's name`),
		ok("protocol: null\nsource: ~\ndestination:"),
		bad("http: {methods: [GET]}", `9:11 `+r+`http: `+host),
		bad("http: {}", `9:11 `+r+`http: `+host),
		ok("metadata: {annotations: {a/b: c}}"),
		bad("metadata: {labels: {}}", `9:16 `+r+`metadata.labels: unknown field; want annotations`),
		bad("metadata: {annotations: {a b: c}}", `9:35 `+r+`metadata.annotations.a b: "c": the key is not of the form name or domain/name…`),

		// ipVersion
		ok("ipVersion: 4"), ok("ipVersion: 6"), ok("ipVersion: 0x6"),
		bad("ipVersion: 5", `9:16 `+r+`ipVersion: "5": not an IP version; want 4 or 6`),
		bad("ipVersion: 46", `9:16 `+r+`ipVersion: "46": out of range; want 4 to 6`),
		bad("ipVersion: '4'", `9:16 `+r+`ipVersion: "4": text; want a whole number from 4 to 6`),
		bad("ipVersion: 4.5", `9:16 `+r+`ipVersion: "4.5": a number; want a whole number from 4 to 6`),

		// protocol
		ok("protocol: TCP"), ok("protocol: tcp"), ok("protocol: UDPLite"), ok("protocol: SCTP"), ok("protocol: icmpV6"),
		ok("protocol: 1"), ok("protocol: 255"), ok("protocol: '47'"), ok("notProtocol: ICMP"),
		bad("protocol: 0", `9:15 `+r+`protocol: "0": out of range; want 1 to 255`),
		bad("protocol: 256", `9:15 `+r+`protocol: "256": out of range; want 1 to 255`),
		bad("protocol: -1", `9:15 `+r+`protocol: "-1": out of range; want 1 to 255`),
		bad("protocol: '0'", `9:15 `+r+`protocol: "0": not a protocol; want TCP, UDP, ICMP, ICMPv6, SCTP, UDPLite or a number from 1 to 255`),
		bad("notProtocol: GRE", `9:18 `+r+`notProtocol: "GRE": not a protocol; …`),
		bad("protocol: true", `9:15 `+r+`protocol: "true": a boolean; want a whole number from 1 to 255`),
		bad("protocol: [TCP]", `9:15 `+r+`protocol: a list; want a whole number from 1 to 255`),

		// ICMP
		ok("protocol: ICMP\nicmp: {type: 254, code: 255}"), ok("protocol: 58\nicmp: {type: 0}"), ok("protocol: ICMP\nicmp: {}"),
		ok("notICMP: {type: 8}"), ok("protocol: TCP\nnotICMP: {}"),
		bad("protocol: ICMP\nicmp: {type: 255}", `10:18 `+r+`icmp.type: "255": out of range; want 0 to 254`),
		bad("protocol: ICMP\nicmp: {type: 1, code: 256}", `10:27 `+r+`icmp.code: "256": out of range; want 0 to 255`),
		bad("protocol: ICMP\nicmp: {type: -1}", `10:18 `+r+`icmp.type: "-1": out of range; want 0 to 254`),
		bad("protocol: ICMP\nicmp: {code: 0}", `10:18 `+r+`icmp.code: "0": a code without a type; want both, or the type alone`),
		bad("notICMP: {code: 0}", `9:21 `+r+`notICMP.code: "0": a code without a type; …`),
		bad("icmp: {type: 8}", `9:11 `+r+`icmp: icmp in a rule for something else; want protocol ICMP or ICMPv6`),
		bad("protocol: TCP\nicmp: {type: 8}", `10:11 `+r+`icmp: icmp in a rule for something else; …`),
		bad("notProtocol: ICMP\nicmp: {type: 8}", `10:11 `+r+`icmp: icmp in a rule for something else; …`),
		bad("ipVersion: 6\nprotocol: ICMP", `10:15 `+r+`protocol: "ICMP": protocol ICMP in a rule that is for IPv6 only, because of ipVersion at f:9:16; want one IP version in a rule`),
		bad("ipVersion: 4\nprotocol: 58", `10:15 `+r+`protocol: "58": protocol ICMPv6 in a rule that is for IPv4 only, …`),
		bad("notProtocol: icmp\nipVersion: 6", `9:18 `+r+`notProtocol: "icmp": notProtocol ICMP in a rule that is for IPv6 only, …`),
		bad("notProtocol: ICMPv6\nipVersion: 4", `9:18 `+r+`notProtocol: "ICMPv6": notProtocol ICMPv6 in a rule that is for IPv4 only, …`),
		ok("ipVersion: 4\nnotProtocol: ICMP"), ok("ipVersion: 6\nprotocol: 58"), ok("protocol: 1\nsource: {nets: ['fd00::/8']}"),
		ok("notProtocol: ICMP\nsource: {nets: ['fd00::/8']}"),
		bad("protocol: ICMP\nsource: {nets: ['fd00::/8']}", `9:15 `+r+`protocol: "ICMP": protocol ICMP in a rule that is for IPv6 only, because of an IPv6 network at f:10:21; …`),

		// nets
		ok("source: {nets: [0.0.0.0/0], notNets: [10.0.0.0/8]}"), ok("source: {nets: []}"),
		ok("source: {nets: [" + repeat(256, numbered) + "]}"),
		bad("source: {nets: ["+repeat(257, numbered)+"]}", `9:3751 `+r+`source.nets[256]: "10.1.0.0/24": the list has 257 elements; want at most 256`),
		bad("source: {nets: 10.0.0.0/8}", `9:20 `+r+`source.nets: "10.0.0.0/8": text; want a list`),
		bad("source: {nets: [10.0.0.1]}", `9:21 `+r+`source.nets[0]: "10.0.0.1": no length; want a CIDR, 10.0.0.1/32 for this one address`),
		bad("source: {nets: ['2001:db8::1']}", `9:21 `+r+`source.nets[0]: "2001:db8::1": no length; want a CIDR, 2001:db8::1/128 for this one address`),
		bad("source: {nets: [10.0.0.1/8]}", `9:21 `+r+`source.nets[0]: "10.0.0.1/8": has bits behind its length; want 10.0.0.0/8`),
		bad("source: {nets: [10.0.0.0/33]}", `9:21 `+r+`source.nets[0]: "10.0.0.0/33": not a CIDR; want one such as 10.0.0.0/8 or 2001:db8::/32`),
		bad("source: {nets: [example.org]}", `9:21 `+r+`source.nets[0]: "example.org": not a CIDR; …`),
		bad("source: {nets: ['fe80::%eth0/64']}", `9:21 `+r+`source.nets[0]: "fe80::%eth0/64": not a CIDR; …`),
		bad("source: {nets: ['::ffff:10.0.0.0/104']}", `9:21 `+r+`source.nets[0]: "::ffff:10.0.0.0/104": an IPv4 address in IPv6 form; want it in IPv4 form`),
		bad("source: {nets: [10.0.0.0/8, 10.0.0.0/8]}", `9:33 `+r+`source.nets[1]: "10.0.0.0/8": there twice; want it once`),
		bad("source: {nets: [null]}", `9:21 `+r+`source.nets[0]: nothing; want text`),
		bad("source: {nets: [7]}", `9:21 `+r+`source.nets[0]: "7": a number; want text: put it in quotes`),
		bad("source: {notNets: [0.0.0.0/0]}", `9:24 `+r+`source.notNets[0]: "0.0.0.0/0": all of IPv4 excluded, so that the rule matches nothing; want less, or the rule left out`),
		bad("destination: {notNets: ['::/0']}", `9:29 `+r+`destination.notNets[0]: "::/0": all of IPv6 excluded, …`),
		bad("source: {nets: [10.0.0.0/8, 'fd00::/8']}", `9:33 `+r+`source.nets[1]: "fd00::/8": an IPv6 network in a rule that is for IPv4 only, because of an IPv4 network at f:9:21; want one IP version in a rule`),
		bad("source: {nets: [10.0.0.0/8]}\ndestination: {notNets: ['fd00::/8']}", `10:29 `+r+`destination.notNets[0]: "fd00::/8": an IPv6 network in a rule that is for IPv4 only, …`),
		bad("ipVersion: 6\nsource: {nets: [10.0.0.0/8]}", `10:21 `+r+`source.nets[0]: "10.0.0.0/8": an IPv4 network in a rule that is for IPv6 only, because of ipVersion at f:9:16; …`),

		// ports
		ok("protocol: TCP\ndestination: {ports: [1, 65535, '1:65535', 5:5, a, A_b.c-9, '" + strings.Repeat("n", 128) + "']}"),
		ok("destination: {ports: [http], notPorts: [https]}"), ok("destination: {ports: []}"), ok("protocol: 132\nsource: {ports: [1]}"),
		ok("protocol: UDP\nsource: {ports: [" + repeat(50, func(i int) string { return fmt.Sprint(i + 1) }) + "]}"),
		bad("protocol: UDP\nsource: {ports: ["+repeat(51, func(i int) string { return fmt.Sprint(i + 100) })+"]}", `10:272 `+r+`source.ports[50]: "150": the list has 51 elements; want at most 50`),
		bad("protocol: UDP\nsource:\n  ports:\n  - 80\n  - 70000", `13:9 `+r+`source.ports[1]: "70000": not a port`+notPort),
		bad("protocol: UDP\nsource: {ports: ['70000', 0, '0', -1, 1.5, true, [1], null, '']}",
			`10:22 `+r+`source.ports[0]: "70000": not a port`+notPort, `10:31 `+r+`source.ports[1]: "0": not a port`+notPort,
			`10:34 `+r+`source.ports[2]: "0": port 0 is none`+notPort, `10:39 `+r+`source.ports[3]: "-1": not a port`+notPort,
			`10:43 `+r+`source.ports[4]: "1.5": not a port`+notPort, `10:48 `+r+`source.ports[5]: "true": a boolean`+notPort,
			`10:54 `+r+`source.ports[6]: a list`+notPort, `10:59 `+r+`source.ports[7]: nothing`+notPort, `10:65 `+r+`source.ports[8]: not a port`+notPort),
		bad("protocol: UDP\nsource: {notPorts: ['9:8', '0:5', '5:70000', '5:', 1000-2000, 'a b', "+strings.Repeat("n", 129)+"]}",
			`10:25 `+r+`source.notPorts[0]: "9:8": the range ends before it begins`+notPort, `10:32 `+r+`source.notPorts[1]: "0:5": port 0 is none`+notPort,
			`10:39 `+r+`source.notPorts[2]: "5:70000": not a port`+notPort, `10:50 `+r+`source.notPorts[3]: "5:": not a port`+notPort,
			`10:56 `+r+`source.notPorts[4]: "1000-2000": a range is written with ':'`+notPort, `10:67 `+r+`source.notPorts[5]: "a b": not a port`+notPort,
			`10:74 `+r+`source.notPorts[6]: "nnn…`),
		bad("destination: {ports: [80]}", `9:26 `+r+`destination.ports: port numbers in a rule without protocol; want protocol TCP, UDP or SCTP`),
		bad("destination: {notPorts: [http, 80]}", `9:29 `+r+`destination.notPorts: port numbers in a rule without protocol; …`),
		bad("notProtocol: TCP\ndestination: {ports: [80]}", `10:26 `+r+`destination.ports: port numbers in a rule without protocol; …`),
		bad("protocol: ICMP\nsource: {ports: [http]}", `10:21 `+r+`source.ports: ports in a rule for icmp; want protocol TCP, UDP or SCTP, or no ports`),
		bad("protocol: UDPLite\nsource: {notPorts: [1]}", `10:24 `+r+`source.notPorts: ports in a rule for udplite; …`),
		bad("protocol: 47\nsource: {ports: [1]}", `10:21 `+r+`source.ports: ports in a rule for protocol 47; …`),

		// selectors
		ok("source: {selector: '', notSelector: global(), namespaceSelector: ' global() '}"), ok("source: {namespaceSelector: ''}"),
		ok("source: {selector: all()}"), ok("source: {selector: \"" + strings.Repeat(" ", 1024) + "\"}"),
		bad("source: {selector: \""+strings.Repeat(" ", 1025)+"\"}", `9:24 `+r+`source.selector: "     …`),
		bad("source: {selector: global()}", `9:24 `+r+`source.selector: "global()": global() is for namespaceSelector; want it left out, or all()`),
		bad("source: {selector: has(a) || global( )}", `9:24 `+r+`source.selector: "has(a) || global( )": global() is for …`),
		ok("source: {selector: 'a == \"global(x)\"'}"),
		bad("source: {selector: 7}", `9:24 `+r+`source.selector: "7": a number; want text: put it in quotes`),
		bad("source: {namespaceSelector: all()}", `9:33 `+r+`source.namespaceSelector: "all()": namespaces and their pods are not known here; want global(), or the field left out`),
		bad("source: {namespaceSelector: global() && has(a)}", `9:33 `+r+`source.namespaceSelector: "global() && has(a)": namespaces and their …`),
		bad("source: {services: {name: a, namespace: b}}", `9:24 `+r+`source.services: Kubernetes Services are not known here; …`),
		bad("destination: {serviceAccounts: {names: [a]}}", `9:36 `+r+`destination.serviceAccounts: pods and their service accounts are not known here; …`),
		bad("source: {selctor: a}", `9:14 `+r+`source.selctor: unknown field; did you mean selector?`),
	})
}

// Where a selector is wrong: at the byte itself, if the text has the selector as it is.
func TestSelectorPlace(t *testing.T) {
	for text, place := range map[string]string{
		`selector: a = 'b'`:         "7:15",
		`selector: "a = 'b'"`:       "7:16",
		`selector: 'a == "é" )'`:    "7:24",
		`selector: "a \u003d 'b'"`:  "7:13",
		"selector: >-\n  a\n  ==":   "7:13",
		"selector: a ==\n  ||":      "7:13",
		"selector: |\n  a == 'b'\n": "7:13",
	} {
		_, err := read(specFrame + indent(2, text))
		errs := Errors(err)
		if len(errs) != 1 || errs[0].Path != "spec.selector" || errs[0].Position.String() != "f:"+place {
			t.Errorf("%s: %v, want one error at %s", text, err, place)
		}
	}
}

func TestPolicy(t *testing.T) {
	rules := func(n int) string {
		return "[" + repeat(n, func(int) string { return "{action: Deny}" }) + "]"
	}
	runBad(t, specFrame, "GlobalNetworkPolicy p", 2, []badCase{
		ok(""), ok("tier: abc\norder: -1.5e3\npreDNAT: false\nperformanceHints: []"), ok("namespaceSelector: ''\nserviceAccountSelector: ''"),
		ok("ingress: " + rules(1024)), ok("egress: " + rules(1024)),
		bad("ingress: "+rules(1025), `7:16397 spec.ingress[1024]: the list has 1025 elements; want at most 1024`),
		bad("egress: "+rules(1025), `7:16396 spec.egress[1024]: the list has 1025 elements; want at most 1024`),
		bad("ingress: [{}]", `7:13 spec.ingress[0].action: missing; want Allow, Deny, Log or Pass`),
		bad("ingress: [{action: allow}]", `7:22 spec.ingress[0].action: "allow": unknown; want Allow, Deny, Log or Pass`),
		bad("ingress: [x]", `7:13 spec.ingress[0]: "x": text; want a mapping`),
		bad("tier: a.b", `7:9 spec.tier: "a.b": not a tier's name; want lower-case letters, digits and '-', at most 63, a letter or digit first and last`),
		bad("tier: Default", `7:9 spec.tier: "Default": not a tier's name; …`),
		bad("order: '10'", `7:10 spec.order: "10": text; want a number`),
		bad("order: .nan", `7:10 spec.order: ".nan": not a number that orders; want one such as 100 or 0.5`),
		bad("order: .inf", `7:10 spec.order: ".inf": not a number that orders; …`),
		bad("types: []", `7:10 spec.types: empty; want Ingress, Egress or both, or the field left out`),
		bad("types: [Ingress, Ingress]", `7:20 spec.types[1]: "Ingress": there twice; want it once`),
		bad("types: [Ingress, Egress, Ingress]", `7:28 spec.types[2]: "Ingress": the list has 3 elements; want at most 2`),
		bad("types: [ingress]", `7:11 spec.types[0]: "ingress": unknown; want Ingress or Egress`),
		bad("types: Ingress", `7:10 spec.types: "Ingress": text; want a list`),
		ok("selector: a == 'global()'"),
		bad("selector: global()", `7:13 spec.selector: "global()": global() is for namespaceSelector; …`),
		bad("selector: ["+"]", `7:13 spec.selector: a list; want text`),
		bad("selector: a == '"+strings.Repeat("x", 1024)+"'", `7:13 spec.selector: "a == 'xxx…`),
		bad("namespaceSelector: global()", `7:22 spec.namespaceSelector: "global()": untracked policy is for hosts, …`),
		bad("serviceAccountSelector: has(a)", `7:27 spec.serviceAccountSelector: "has(a)": untracked policy is for hosts, …`),
		bad("preDNAT: true", `7:12 spec.preDNAT: "true": a policy cannot be both preDNAT and doNotTrack; want the field left out`),
		bad("stagedAction: Set", `7:17 spec.stagedAction: "Set": only staged policies have it, …`),
		bad("performanceHints: [Faster]", `7:22 spec.performanceHints[0]: "Faster": unknown; want AssumeNeededOnEveryNode`),
		bad("performanceHints: [AssumeNeededOnEveryNode, AssumeNeededOnEveryNode]", `7:47 spec.performanceHints[1]: "AssumeNeededOnEveryNode": there twice; want it once`),
		bad("ingres: []", `7:3 spec.ingres: unknown field; did you mean ingress?`),
	})
	runBad(t, resourceFrame("GlobalNetworkPolicy", "p"), "GlobalNetworkPolicy p", 2, []badCase{
		ok("doNotTrack: true\napplyOnForward: true"), ok("doNotTrack: on\napplyOnForward: YES"),
		bad("doNotTrack: \"true\"\napplyOnForward: true", `5:15 spec.doNotTrack: "true": text; want true or false, without quotes`),
		bad("doNotTrack: 1\napplyOnForward: 1", `5:15 spec.doNotTrack: "1": a number; want true or false, without quotes`, `6:19 spec.applyOnForward: "1": a number; …`),
		bad("doNotTrack: true", `5:3 spec.applyOnForward: missing; an untracked policy is asked about forwarded packets too, and Calico wants it to say so: applyOnForward: true`),
		bad("doNotTrack: true\napplyOnForward: false", `6:19 spec.applyOnForward: "false": an untracked policy is asked about forwarded packets too, …`),
		// Of policy that is for Calico nothing else is said.
		bad("ingress: [{http: {}}]\nnamespaceSelector: all()", `3:18 spec.doNotTrack: `+onlyUntracked),
		bad("doNotTrack: false", `5:15 spec.doNotTrack: "false": `+onlyUntracked),
		bad("doNotTrack: null", `3:18 spec.doNotTrack: `+onlyUntracked),
		bad("preDNAT: true\napplyOnForward: true", `5:12 spec.preDNAT: "true": `+onlyBeforeTracking),
		bad("preDNAT: true\nselector: has(", `5:12 spec.preDNAT: "true": `+onlyBeforeTracking),
		bad("", `3:18 spec.doNotTrack: `+onlyUntracked),
		bad("order: 1\ndoNotTrak: true", `6:3 spec.doNotTrak: unknown field; did you mean doNotTrack?`),
	})
}

func TestMeta(t *testing.T) {
	long := strings.Repeat("a", 64)
	frame := func(kind, meta string) string {
		return "apiVersion: projectcalico.org/v3\nkind: " + kind + "\nspec: {doNotTrack: true, applyOnForward: true}\nmetadata: " + meta + "\n"
	}
	policyOf := func(meta string) string { return frame("GlobalNetworkPolicy", meta) }
	set := func(meta string) string {
		return strings.Replace(frame("GlobalNetworkSet", meta), "{doNotTrack: true, applyOnForward: true}", "{}", 1)
	}
	for _, c := range []struct {
		text string
		want []string
	}{
		{policyOf("{name: a}"), nil},
		{policyOf("{name: a-1.b-2}"), nil},
		{policyOf("{name: " + long + "." + long + "}"), nil},
		{set("{name: a.b.c.d}"), nil},
		{set("{name: x, namespace: '', labels: {a: '', b/c.D_e-f: X}, annotations: {A/B: 'x y'}, uid: 7}"), nil},
		{policyOf("{name: a.b.c}"), []string{`f:4:18: GlobalNetworkPolicy a.b.c: metadata.name: "a.b.c": not a name of this kind; want lower-case letters, digits and '-', with at most one '.', a letter or digit first and last in each part`}},
		{policyOf("{name: Redis}"), []string{`f:4:18: GlobalNetworkPolicy Redis: metadata.name: "Redis": not a name…`}},
		{policyOf("{name: -a}"), []string{`f:4:18: GlobalNetworkPolicy -a: metadata.name: "-a": not a name…`}},
		{policyOf("{name: a..b}"), []string{`f:4:18: GlobalNetworkPolicy a..b: metadata.name: "a..b": not a name…`}},
		{policyOf("{name: a_b}"), []string{`f:4:18: GlobalNetworkPolicy a_b: metadata.name: "a_b": not a name…`}},
		{set("{name: " + strings.Repeat("a.", 127) + "}"), []string{`f:4:18: …`}},
		{set("{name: " + strings.Repeat("a", 254) + "}"), []string{`f:4:18: …`}},
		{set("{name: 7}"), []string{`f:4:18: GlobalNetworkSet 7: metadata.name: "7": a number; want text: put it in quotes`}},
		{set("{name: ''}"), []string{`f:4:18: GlobalNetworkSet: metadata.name: empty; want a name`}},
		{set("{}"), []string{`f:4:11: GlobalNetworkSet: metadata.name: missing; want a name`}},
		{set("x"), []string{`f:4:11: GlobalNetworkSet: metadata: "x": text; want a mapping`}},
		{set(""), []string{`f:1:1: GlobalNetworkSet: metadata: missing; want a metadata with a name`}},
		{set("{name: x, namespace: default}"), []string{`f:4:32: GlobalNetworkSet x: metadata.namespace: "default": resources of this kind are of no namespace; want the field left out`}},
		{set("{name: x, generateName: y-}"), []string{`f:4:35: GlobalNetworkSet x: metadata.generateName: "y-": names are not made up here; want metadata.name`}},
		{set("{name: x, lables: {}}"), []string{`f:4:21: GlobalNetworkSet x: metadata.lables: unknown field; did you mean labels?`}},
		{set("{name: x, labels: {a b: c}}"), []string{`f:4:35: GlobalNetworkSet x: metadata.labels.a b: "c": the key is not of the form…`}},
		{set("{name: x, labels: {A/b: c}}"), []string{`f:4:35: GlobalNetworkSet x: metadata.labels.A/b: "c": the key is not of the form…`}},
		{set("{name: x, labels: {" + long + ": c}}"), []string{`f:4:96: GlobalNetworkSet x: metadata.labels.a…`}},
		{set("{name: x, labels: {a: " + long + "}}"), []string{`f:4:33: GlobalNetworkSet x: metadata.labels.a: "` + long + `": not a label's value; want letters, digits, '-', '_' and '.', at most 63, a letter or digit first and last`}},
		{set("{name: x, labels: {a: true, b: 1, c: null, d: [x]}}"), []string{
			`f:4:33: GlobalNetworkSet x: metadata.labels.a: "true": a boolean; want text: put it in quotes`,
			`f:4:42: GlobalNetworkSet x: metadata.labels.b: "1": a number; want text: put it in quotes`,
			`f:4:48: GlobalNetworkSet x: metadata.labels.c: no value; want one, or ""`,
			`f:4:57: GlobalNetworkSet x: metadata.labels.d: a list; want text`,
		}},
		{set("{name: x, annotations: {a: " + strings.Repeat("x", 256<<10) + "}}"), []string{`f:4:34: GlobalNetworkSet x: metadata.annotations: annotations of 262145 bytes; want at most 262144`}},
		{set("{name: x, labels: {projectcalico.org/namespace: a}}"), []string{`f:4:59: GlobalNetworkSet x: metadata.labels.projectcalico.org/namespace: "a": Calico keeps this label for what is in a namespace; want it left out`}},
	} {
		_, err := read(c.text)
		wantErrors(t, err, c.want...)
	}
}

func TestNetworkSet(t *testing.T) {
	runBad(t, resourceFrame("GlobalNetworkSet", "s"), "GlobalNetworkSet s", 2, []badCase{
		ok(""), ok("nets: []"), ok("nets: [10.0.0.1, 10.0.0.1/32, 10.0.0.1/8, '::/0', 0.0.0.0/0, &a 1.1.1.0/24]"),
		ok("nets: [10.0.0.1, 10.0.0.1]"), ok("nets: [&x 10.0.0.1, *x]"),
		bad("nets: [example.org, 7, null]", `5:10 spec.nets[0]: "example.org": not an address or CIDR; want one such as 10.0.0.0/8 or 2001:db8::/32`,
			`5:23 spec.nets[1]: "7": a number; want text: put it in quotes`, `5:26 spec.nets[2]: nothing; want text`),
		bad("nets: ['::ffff:1.2.3.4']", `5:10 spec.nets[0]: "::ffff:1.2.3.4": an IPv4 address in IPv6 form; want it in IPv4 form`),
		bad("nets: ['fe80::1%eth0']", `5:10 spec.nets[0]: "fe80::1%eth0": not an address or CIDR; …`),
		bad("nets: {a: b}", `5:9 spec.nets: a mapping; want a list`),
		bad("net: []", `5:3 spec.net: unknown field; did you mean nets?`),
	})
}

func TestHostEndpoint(t *testing.T) {
	const missing = "missing; want name, protocol and port"
	runBad(t, resourceFrame("HostEndpoint", "h"), "HostEndpoint h", 2, []badCase{
		ok("{node: n.example.org, interfaceName: eth0}"), ok("{node: n, interfaceName: '*'}"), ok("{node: n, interfaceName: 'eth*', expectedIPs: []}"),
		ok("{node: n, interfaceName: 'en[ps]?s*'}"), ok("{node: n, interfaceName: 'eth[^0].100'}"), ok("{node: n, expectedIPs: [10.0.0.1, '::1']}"),
		ok("{node: n, interfaceName: a23456789012345}"),
		bad("{node: n}", `5:3 spec.interfaceName: missing; want interfaceName or expectedIPs, to say which interface this is`),
		bad("{node: n, interfaceName: '', expectedIPs: []}", `5:3 spec.interfaceName: missing; …`),
		bad("{interfaceName: eth0}", `5:3 spec.node: missing; want the name of the node that the interface is on`),
		bad("", `4:6 spec.node: missing; …`, `4:6 spec.interfaceName: missing; …`),
		bad("{node: N_1, interfaceName: eth0}", `5:10 spec.node: "N_1": not a node's name; …`),
		bad("{node: 7, interfaceName: eth0}", `5:10 spec.node: "7": a number; want text: put it in quotes`),
		bad("{node: n, interfaceName: a234567890123456}", `5:28 spec.interfaceName: "a234567890123456": 16 bytes; want at most 15, as interface names have`),
		bad("{node: n, interfaceName: eth/0}", `5:28 spec.interfaceName: "eth/0": not an interface's name; want letters, digits, '_', '.' and '-', or a glob such as eth* or *`),
		bad("{node: n, interfaceName: 'eth[0'}", `5:28 spec.interfaceName: "eth[0": not a complete glob; want one such as eth*, eth? or eth[0-3]`),
		bad("{node: n, interfaceName: é}", `5:28 spec.interfaceName: "é": not an interface's name; …`),
		bad("{node: n, expectedIPs: [10.0.0.0/8, x, '::1%lo', '::ffff:10.0.0.1', 10.0.0.9, 10.0.0.9]}",
			`5:27 spec.expectedIPs[0]: "10.0.0.0/8": not an address; want one such as 192.0.2.1 or 2001:db8::1`, `5:39 spec.expectedIPs[1]: "x": not an address; …`,
			`5:42 spec.expectedIPs[2]: "::1%lo": not an address; …`, `5:52 spec.expectedIPs[3]: "::ffff:10.0.0.1": an IPv4 address in IPv6 form; want 10.0.0.1`,
			`5:81 spec.expectedIPs[5]: "10.0.0.9": there twice; want it once`),
		bad("{node: n, interfaceName: a, profiles: [A, b, b]}", `5:42 spec.profiles[0]: "A": not a profile's name; …`, `5:45 spec.profiles[1]: "b": profiles are not known here, …`, `5:48 spec.profiles[2]: "b": there twice; want it once`),
		bad("{node: n, interfaceName: a, ports: [{name: A, protocol: ICMP, port: 0}]}", `5:46 spec.ports[0].name: "A": not a port's name; …`,
			`5:59 spec.ports[0].protocol: "ICMP": a protocol without ports; want TCP, UDP or SCTP`, `5:71 spec.ports[0].port: "0": out of range; want 1 to 65535`),
		bad("{node: n, interfaceName: a, ports: [{name: a--b, protocol: 6, port: '80'}]}", `5:46 spec.ports[0].name: "a--b": not a port's name; …`, `5:71 spec.ports[0].port: "80": text; want a whole number from 1 to 65535`),
		bad("{node: n, interfaceName: a, ports: [{}, x]}", `5:39 spec.ports[0].name: `+missing, `5:39 spec.ports[0].protocol: `+missing, `5:39 spec.ports[0].port: `+missing, `5:43 spec.ports[1]: "x": text; want a mapping`),
		bad("{node: n, interfaceName: a, ports: [{name: '80', protocol: UDPLite, port: 65536}]}", `5:46 spec.ports[0].name: "80": not a port's name; …`, `5:62 spec.ports[0].protocol: "UDPLite": a protocol without ports; …`, `5:77 spec.ports[0].port: "65536": out of range; …`),
		bad("{node: n, interface: eth0}", `5:3 spec.interfaceName: missing; …`, `5:13 spec.interface: unknown field; did you mean interfaceName?`),
	})
}

func TestTier(t *testing.T) {
	runBad(t, resourceFrame("Tier", "edge"), "Tier edge", 2, []badCase{
		ok(""), ok("order: 10"), ok("defaultAction: Pass"), ok("defaultAction: Deny"),
		bad("defaultAction: Allow", `5:18 spec.defaultAction: "Allow": unknown; want Deny or Pass`),
		bad("order: x", `5:10 spec.order: "x": text; want a number`),
	})
	runBad(t, resourceFrame("Tier", "default"), "Tier default", 2, []badCase{
		ok("order: 1000000"), ok("order: 1e6\ndefaultAction: Deny"),
		bad("", `4:6 spec.order: tier default is Calico's; want its order, 1000000`),
		bad("order: 999\ndefaultAction: Pass", `5:10 spec.order: "999": tier default is Calico's; want its order, 1000000`, `6:18 spec.defaultAction: "Pass": tier default is Calico's; want its default action, Deny`),
	})
	runBad(t, resourceFrame("Tier", "kube-admin"), "Tier kube-admin", 2, []badCase{
		ok("order: 1000\ndefaultAction: Pass"),
		bad("order: 1000", `5:3 spec.defaultAction: tier kube-admin is Calico's; want its default action, Pass`),
	})
	runBad(t, resourceFrame("Tier", "kube-baseline"), "Tier kube-baseline", 2, []badCase{
		ok("order: 10000000\ndefaultAction: Pass"),
		bad("order: 1\ndefaultAction: Deny", `5:10 spec.order: …`, `6:18 spec.defaultAction: …`),
	})
	_, err := read(resourceFrame("Tier", "a.b"))
	wantErrors(t, err, `f:3:18: Tier a.b: metadata.name: "a.b": not a name of this kind; …`)
}

func TestKinds(t *testing.T) {
	for header, want := range map[string]string{
		"{kind: Tier, metadata: {name: x}}":                                                          `f:1:1: Tier x: apiVersion: missing; want projectcalico.org/v3`,
		"{apiVersion: projectcalico.org/v3, metadata: {name: x}}":                                    `f:1:1: x: kind: missing; want HostEndpoint, GlobalNetworkPolicy, GlobalNetworkSet or Tier, or a List of them`,
		"{apiVersion: projectcalico.org/v1, kind: Tier}":                                             `f:1:14: Tier: apiVersion: "projectcalico.org/v1": unknown version; want projectcalico.org/v3`,
		"{apiVersion: crd.projectcalico.org/v1, kind: Tier, metadata: {name: x}}":                    `f:1:14: Tier x: apiVersion: "crd.projectcalico.org/v1": this is the format that Calico stores; want projectcalico.org/v3, …`,
		"{apiVersion: projectcalico.org/v3, kind: NetworkPolicy, metadata: {name: x, namespace: y}}": `f:1:42: NetworkPolicy x: kind: "NetworkPolicy": a namespaced policy is for the tracked traffic of pods; …`,
		"{apiVersion: crd.projectcalico.org/v1, kind: NetworkPolicy}":                                `f:1:46: NetworkPolicy: kind: "NetworkPolicy": a namespaced policy …`,
		"{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy}":                                    `f:1:42: NetworkPolicy: kind: "NetworkPolicy": a namespaced policy …`,
		"{apiVersion: projectcalico.org/v3, kind: StagedGlobalNetworkPolicy, metadata: {name: x}}":   `f:1:42: StagedGlobalNetworkPolicy x: kind: "StagedGlobalNetworkPolicy": a staged policy is not enforced; …`,
		"{apiVersion: projectcalico.org/v3, kind: FelixConfiguration, metadata: {name: default}}":    `f:1:42: FelixConfiguration default: kind: "FelixConfiguration": nothing here is configured by it; failsafe ports are in untracked.cni/failsafe-inbound …`,
		"{apiVersion: projectcalico.org/v3, kind: Profile}":                                          `f:1:42: Profile: kind: "Profile": no profile is consulted …`,
		"{apiVersion: projectcalico.org/v3, kind: GlobalnetworkPolicy}":                              `f:1:42: GlobalnetworkPolicy: kind: "GlobalnetworkPolicy": unknown kind; did you mean GlobalNetworkPolicy?`,
		"{apiVersion: v1, kind: ConfigMap}":                                                          `f:1:24: ConfigMap: kind: "ConfigMap": nothing here is done with this kind; …`,
		"{apiVersion: v2, kind: List}":                                                               `f:1:14: List: apiVersion: "v2": not the version of a List; want v1`,
		"{apiVersion: v1, kind: TierList}":                                                           `f:1:14: TierList: apiVersion: "v1": unknown version; want projectcalico.org/v3`,
		"{apiVersion: v1, kind: List, item: []}":                                                     `f:1:30: List: item: unknown field; did you mean items?`,
		"{apiVersion: v1, kind: List, items: [{apiVersion: v1, kind: List}]}":                        `f:1:61: List: kind: "List": a list in a list; want resources`,
		"{apiVersion: v1, kind: List, items: {}}":                                                    `f:1:37: List: items: a mapping; want a list`,
		"{apiVersion: projectcalico.org/v3, kind: NetworkPolicyList}":                                `f:1:42: NetworkPolicyList: kind: "NetworkPolicyList": nothing here is done …`,
		"kind: " + strings.Repeat("é", 99):                                                           `f:1:7: ` + strings.Repeat("é", 40) + `…: kind: "` + strings.Repeat("é", 40) + `…": nothing here …`,
		"text":                                                                                       `f:1:1: "text": text; want a mapping`,
		"!0%0a {}":                                                                                   `f:1:1: kind: missing; …`,
		"!0%0a x":                                                                                    "f:1:1: \"x\": of type !0\ufffd; want a mapping",
		"!a [{apiVersion: v1, kind: List, \"a\\nb\": 1}]":                                            "f:1:34: List: a\ufffdb: unknown field; want apiVersion, items, kind or metadata",
		"{apiVersion: projectcalico.org/v3, kind: Tier, metadata: {name: x}, stats: {}}":             `f:1:69: Tier x: stats: unknown field; did you mean status?`,
	} {
		_, err := read(header)
		wantErrors(t, err, want)
	}
}

func TestSyntax(t *testing.T) {
	for text, want := range map[string]string{
		"a: [1,\nb: 2\n":                       "f:3:1: not valid YAML or JSON: while parsing a flow sequence: did not find expected ',' or ']'",
		"é: 'é' x":                             "f:1:10: not valid YAML or JSON: …",
		"{\"a\": 1}\n{\"a\": 2}":               "f:2:1: not valid YAML or JSON: …",
		"\ufeffa:\r\n\tb: c":                   "f:2:1: not valid YAML or JSON: …",
		"a: b\n  c\x00d":                       "f:2:4: control character 0x00; want text",
		"a: \xff\xfe":                          "f:1:4: byte 0xff is not UTF-8; want text in UTF-8",
		"a\u2028b: \uffff":                     "f:1:8: U+FFFF is not a character; want text in UTF-8",
		"a: *b":                                "f:1:4: not valid YAML or JSON: unknown anchor…",
		strings.Repeat("[", 20000):             "f:1:10001: not valid YAML or JSON: while increasing flow level: exceeded max depth of 10000",
		strings.Repeat("- ", 20000):            "f:1:20001: not valid YAML or JSON: …",
		"%YAML 2.0\n---\na: b":                 "f:1:1: not valid YAML or JSON: found incompatible YAML document",
		"a: " + strings.Repeat("*", 100_000):   "f:1:4: not valid YAML or JSON: unknown anchor '***…",
		"# \u0085 \u2028 x\n{a: \"\u2028\", [": "f:2:…",
	} {
		_, err := read(text)
		wantErrors(t, err, want)
	}
}

// Every place is that of the text's own file, also where the text is a part of it.
func TestEmbedded(t *testing.T) {
	var r Reader
	r.Add([]byte("{\"kind\":1,\n \"x\":[]}"), Position{File: "c", Line: 7, Column: 20})
	_, err := r.Result()
	wantErrors(t, err, `c:7:28: 1: kind: "1": nothing here is done with this kind; …`)

	r = Reader{}
	r.Add([]byte("a\nb: c\n- d"), Position{File: "c", Line: 7, Column: 20})
	_, err = r.Result()
	wantErrors(t, err, `c:8:2: not valid YAML or JSON: …`)
}

// Errors are in the order of the texts, and within a text in that of the places; what was read before a mistake in
// the grammar is judged too.
func TestOrderAndDuplicates(t *testing.T) {
	const tier = "---\napiVersion: projectcalico.org/v3\nkind: Tier\nmetadata: {name: x}\nspec: {order: a}\n"
	_, err := read(tier+tier+"--- [\n", tier)
	wantErrors(t, err,
		`f:5:15: Tier x: spec.order: "a": text; want a number`,
		`f:9:18: Tier x: metadata.name: "x": there already is one at f:4:18; want each name once`,
		`f:10:15: Tier x: spec.order: "a": text; want a number`,
		`f:12:1: not valid YAML or JSON: …`,
		`f2:4:18: Tier x: metadata.name: "x": there already is one at f:4:18; want each name once`,
		`f2:5:15: Tier x: spec.order: "a": text; want a number`,
	)
	if _, err := read(strings.ReplaceAll(tier, "a}", "1}") + strings.NewReplacer("Tier", "GlobalNetworkSet", "order: a", "").Replace(tier)); err != nil {
		t.Errorf("one name in two kinds: %v", err)
	}
	var one *Error
	if !errors.As(fmt.Errorf("lint: %w", err), &one) || one.Line != 5 || len(Errors(fmt.Errorf("lint: %w", err))) != 6 {
		t.Errorf("wrapped: %v", Errors(fmt.Errorf("lint: %w", err)))
	}
	if Errors(nil) != nil || Errors(errors.New("x")) != nil {
		t.Error("errors of another package")
	}
}

func TestTooMuch(t *testing.T) {
	// A billion laughs: five rules a line, in each of which stand 256 nets, written once.
	laughs := resourceFrame("GlobalNetworkPolicy", "p") + "  ingress:\n  - &r\n    action: Allow\n    source: {nets: &n [" +
		repeat(256, func(i int) string { return fmt.Sprintf("10.0.%d.0/24", i) }) + "], notNets: *n}\n    destination: {nets: *n, notNets: *n}\n" +
		strings.Repeat("  - *r\n", 1023) + "  egress:\n" + strings.Repeat("  - *r\n", 1024) + "  applyOnForward: true\n  doNotTrack: true\n"
	_, err := read(laughs)
	if errs := Errors(err); len(errs) != 1 || !strings.Contains(errs[0].Problem, "aliases (*name) repeat too much") {
		t.Errorf("%d errors, first %.300v", len(errs), errs[0])
	}
	if _, err := read("a: &a [*a]"); err == nil {
		t.Error("an alias inside of what it names")
	}
	_, err = read("apiVersion: v1\nkind: List\nitems: &a [*a, *a]")
	if len(Errors(err)) != 2 {
		t.Errorf("a list in itself: %v", err)
	}
	many := resourceFrame("GlobalNetworkSet", "s") + "  nets: [" + repeat(5000, func(i int) string { return fmt.Sprintf("x%d", i) }) + "]\n"
	_, err = read(many)
	if errs := Errors(err); len(errs) != maxErrors+1 || !strings.Contains(errs[maxErrors].Problem, "more than 1000 problems") {
		t.Errorf("%d errors", len(errs))
	}
}
