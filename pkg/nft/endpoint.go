// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/pkg/policy"
)

// addEndpoint writes the egress list of one interface, for each of the questions that policy.Evaluate asks.
func (rs *ruleset) addEndpoint(c *compiler, e *Endpoint) {
	chain := endpointPrefix + escape(e.Interface)
	rs.chains = append(rs.chains, chain)
	// goto: when the list ends without a match, no other interface is asked for.
	rs.add(outputChain, e.Interface, steps(
		loadMeta(expr.MetaKeyOIFNAME), is(nameBytes(e.Interface)...), verdict(expr.VerdictGoto, chain)))

	l := list{compiler: c, rules: e.Rules, ids: policy.IDs(e.Rules)}
	for _, id := range l.ids {
		l.counters = append(l.counters, counterName(CounterKey{e.Interface, id}))
	}
	rs.counters = append(rs.counters, l.counters...)

	rs.addFragments(&l, chain, fragmentsPrefix+escape(e.Interface))
	rs.add(chain, "neighbour discovery", isNeighbourDiscovery(), steps(verdict(expr.VerdictAccept, "")))
	rs.addList(chain, e.Rules, l.direct)
	rs.addQuoted(&l, chain, quoted4Prefix+escape(e.Interface), 4)
	rs.addQuoted(&l, chain, quoted6Prefix+escape(e.Interface), 6)
}

// list is the egress list of an endpoint. Its methods give the lines of rule i for one question each, without the
// chain that they belong to.
type list struct {
	*compiler
	rules []policy.Rule
	// ids and counters are of the rules.
	ids      []uint64
	counters []string
}

// direct is about the packet itself.
func (l *list) direct(i int) []rule {
	r := &l.rules[i]
	var lines []rule
	for _, v := range views(r) {
		for _, s := range l.rule(r, v) {
			lines = append(lines, l.line(i, s))
		}
	}
	return lines
}

// line is what rule i does with packets that pass the steps.
func (l *list) line(i int, matches []step) rule {
	r := &l.rules[i]
	out := rule{comment: r.Name()}
	count := &expr.Objref{Type: objCounter, Name: l.counters[i]}
	var does []step
	switch r.Action {
	case policy.Allow:
		does = steps(count, &expr.Notrack{}, verdict(expr.VerdictAccept, ""))
	case policy.Deny:
		does = steps(count, verdict(expr.VerdictDrop, ""))
	case policy.Failsafe:
		does = steps(count, verdict(expr.VerdictAccept, ""))
	case policy.Log:
		does, out.report = steps(count), report(l.ids[i])
	case policy.Pass:
		does = steps(count, verdict(expr.VerdictReturn, ""))
	}
	out.steps = append(matches, does...)
	return out
}

// fragment is about a fragment but the first.
func (l *list) fragment(i int) []rule {
	if needsTransport(&l.rules[i]) {
		return nil
	}
	lines := l.direct(i)
	for n := range lines {
		lines[n].comment += " for fragments"
	}
	return lines
}

// quoted is about the packet that an ICMP error of a family quotes. Only an Allow has a consequence there, and only
// an Allow is counted.
func (l *list) quoted(i, family int) []rule {
	r := &l.rules[i]
	if r.Action == policy.Log {
		return nil
	}
	var lines []rule
	for _, s := range l.rule(r, view{family: family, quoted: true}) {
		var line rule
		switch r.Action {
		case policy.Allow:
			line = l.line(i, s)
		case policy.Pass:
			line.steps = append(s, steps(verdict(expr.VerdictReturn, ""))...)
		default:
			line.steps = append(s, steps(verdict(expr.VerdictAccept, ""))...)
		}
		line.comment = r.Name() + " of the quoted packet"
		lines = append(lines, line)
	}
	return lines
}

// addList writes rules to a chain, and reports whether there was anything to write. The rules of a tier with a Pass
// are written to a chain of their own, so that to pass is to return. Such chains jump to no other: the kernel
// follows 16 jumps at most, and counts gotos.
func (rs *ruleset) addList(chain string, rules []policy.Rule, lines func(i int) []rule) bool {
	tiers, written := 0, false
	for first, end := 0, 0; first < len(rules); first = end {
		passes := false
		var tier []rule
		for end = first; end < len(rules) && rules[end].Tier == rules[first].Tier; end++ {
			more := lines(end)
			tier = append(tier, more...)
			passes = passes || rules[end].Action == policy.Pass && len(more) > 0
		}
		to := chain
		if passes {
			tiers++
			to = tierChain(tiers, chain)
			rs.chains = append(rs.chains, to)
			rs.add(chain, "tier "+rules[first].Tier, steps(verdict(expr.VerdictJump, to)))
		}
		for i := range tier {
			tier[i].chain = to
		}
		rs.rules = append(rs.rules, tier...)
		written = written || len(tier) > 0
	}
	return written
}

// addFragments sends all fragments but the first to a chain of their own, which has the rules that do not look at
// the transport header: it is in another packet. Only raw sockets send such fragments, and only where there is no
// connection tracking do they get here. But the kernel (as of 6.18) loads up to 4 bytes from where the header
// would be, so that the rules themselves cannot tell.
func (rs *ruleset) addFragments(l *list, chain, fragments string) {
	end := verdict(expr.VerdictAccept, "")
	if rs.addList(fragments, l.rules, l.fragment) {
		rs.chains = append(rs.chains, fragments)
		end = verdict(expr.VerdictGoto, fragments)
	}
	const comment = "a fragment but the first"
	rs.add(chain, comment, view{family: 4}.isFamily(), steps(
		loadPayload(expr.PayloadBaseNetworkHeader, 6, 2), and(0x1f, 0xff), isNot(0, 0), end))
	rs.add(chain, comment, view{family: 6}.isFamily(), steps(
		&expr.Exthdr{DestRegister: register, Type: unix.IPPROTO_FRAGMENT, Offset: 2, Len: 2, Op: expr.ExthdrOpIpv6},
		and(0xff, 0xf8), isNot(0, 0), end))
}

// isNeighbourDiscovery is router and neighbour solicitation and advertisement from this link.
func isNeighbourDiscovery() []step {
	v := view{family: 6}
	out := steps(v.protocol(), is(policy.ICMPv6))
	out = append(out, v.isFamily()...)
	return append(out, steps(
		loadPayload(expr.PayloadBaseNetworkHeader, 7, 1), is(255),
		v.transport(0, 1), inRange([]byte{133}, []byte{136}))...)
}

// addQuoted sends the ICMP errors of a family that no rule decided about to a chain of their own, which asks the
// same rules about the packet they quote. Only an Allow changes anything, so that rules behind the last one
// are left out, and the chain if there is none.
func (rs *ruleset) addQuoted(l *list, chain, quoted string, family int) {
	lines := make([][]rule, len(l.rules))
	last := -1
	for i := range l.rules {
		lines[i] = l.quoted(i, family)
		if l.rules[i].Action == policy.Allow && len(lines[i]) > 0 {
			last = i
		}
	}
	if !rs.addList(quoted, l.rules[:last+1], func(i int) []rule { return lines[i] }) {
		return
	}
	rs.chains = append(rs.chains, quoted)
	rs.add(chain, "which packet is this error about?", isError(family), steps(verdict(expr.VerdictGoto, quoted)))
}
