// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"fmt"
	"slices"

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
	rs.addList(chain, &l, direct)
	rs.addQuoted(&l, chain, quoted4Prefix+escape(e.Interface), 4)
	rs.addQuoted(&l, chain, quoted6Prefix+escape(e.Interface), 6)
}

// list is the egress list of an endpoint.
type list struct {
	*compiler
	rules []policy.Rule
	// ids and counters are of the rules.
	ids      []uint64
	counters []string
}

// question is one of those that a list is asked.
type question struct {
	// views are those that a rule needs to be written for.
	views func(*policy.Rule) []view
	// action is what a rule does that has the given action. It is counted, or not.
	action func(policy.Action) (does []step, counts bool)
	// comment stands behind the rule's name.
	comment string
}

// direct is about the packet itself.
var direct = question{views: views, action: act}

// ofFragment is about a fragment but the first.
var ofFragment = question{
	views: func(r *policy.Rule) []view {
		if needsTransport(r) {
			return nil
		}
		return views(r)
	},
	action:  act,
	comment: " for fragments",
}

// ofQuoted is about the packet that an ICMP error of a family quotes. Only an Allow has a consequence there, and only
// an Allow is counted.
func ofQuoted(family int) question {
	return question{
		views: func(r *policy.Rule) []view {
			if r.Action == policy.Log {
				return nil
			}
			return []view{{family: family, quoted: true}}
		},
		action: func(a policy.Action) ([]step, bool) {
			if a == policy.Deny {
				a = policy.Failsafe
			}
			does, _ := act(a)
			return does, a == policy.Allow
		},
		comment: " of the quoted packet",
	}
}

func act(a policy.Action) (does []step, counts bool) {
	switch a {
	case policy.Allow:
		does = steps(&expr.Notrack{}, verdict(expr.VerdictAccept, ""))
	case policy.Deny:
		does = steps(verdict(expr.VerdictDrop, ""))
	case policy.Failsafe:
		does = steps(verdict(expr.VerdictAccept, ""))
	case policy.Pass:
		does = steps(verdict(expr.VerdictReturn, ""))
	}
	return does, true
}

// lines are what is written for a group.
func (l *list) lines(q question, g *group) []rule {
	if len(g.members) < minGroup {
		var out []rule
		for _, m := range g.members {
			for _, matches := range l.rule(&l.rules[m.rule], m.view, 0) {
				out = append(out, l.line(q, m.rule, matches))
			}
		}
		return out
	}
	r := &l.rules[g.rule]
	does, counts := q.action(r.Action)
	var counters []string
	if counts {
		for _, m := range g.members {
			counters = append(counters, l.counters[m.rule])
		}
	}
	lookups := g.lookups(counters)
	var out []rule
	for _, matches := range l.rule(r, g.view, g.varying) {
		out = append(out, rule{
			comment: fmt.Sprintf("%s and %d more%s", r.Name(), len(g.members)-1, q.comment),
			steps:   slices.Concat(matches, lookups, does),
		})
	}
	return out
}

// line is what rule i does with packets that pass the steps.
func (l *list) line(q question, i int, matches []step) rule {
	r := &l.rules[i]
	does, counts := q.action(r.Action)
	out := rule{comment: r.Name() + q.comment, steps: matches}
	if counts {
		out.steps = append(out.steps, steps(&expr.Objref{Type: objCounter, Name: l.counters[i]})...)
	}
	out.steps = append(out.steps, does...)
	if r.Action == policy.Log {
		out.report = report(l.ids[i])
	}
	return out
}

// items are the rules [first, end) in the views of a question.
func (l *list) items(q question, first, end int) []*item {
	var out []*item
	for i := first; i < end; i++ {
		for _, v := range q.views(&l.rules[i]) {
			if it := l.item(i, &l.rules[i], v); it != nil {
				out = append(out, it)
			}
		}
	}
	return out
}

// addList writes the list to a chain, and reports whether there was anything to write. The rules of a tier with a Pass
// are written to a chain of their own, so that to pass is to return. Such chains jump to no other: the kernel
// follows 16 jumps at most, and counts gotos.
func (rs *ruleset) addList(chain string, l *list, q question) bool {
	tiers, written := 0, false
	for first, end := 0, 0; first < len(l.rules); first = end {
		for end = first; end < len(l.rules) && l.rules[end].Tier == l.rules[first].Tier; {
			end++
		}
		items := l.items(q, first, end)
		to := chain
		if slices.ContainsFunc(items, func(it *item) bool { return l.rules[it.rule].Action == policy.Pass }) {
			tiers++
			to = tierChain(tiers, chain)
			rs.chains = append(rs.chains, to)
			rs.add(chain, "tier "+l.rules[first].Tier, steps(verdict(expr.VerdictJump, to)))
		}
		for _, g := range groups(l.rules, items) {
			for _, r := range l.lines(q, g) {
				r.chain = to
				rs.rules = append(rs.rules, r)
			}
		}
		written = written || len(items) > 0
	}
	return written
}

// addFragments sends all fragments but the first to a chain of their own, which has the rules that do not look at
// the transport header: it is in another packet. Only raw sockets send such fragments, and only where there is no
// connection tracking do they get here. But the kernel (as of 6.18) loads up to 4 bytes from where the header
// would be, so that the rules themselves cannot tell.
func (rs *ruleset) addFragments(l *list, chain, fragments string) {
	end := verdict(expr.VerdictAccept, "")
	if rs.addList(fragments, l, ofFragment) {
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
	q := ofQuoted(family)
	asked := *l
	for n := len(l.rules); n > 0 && (l.rules[n-1].Action != policy.Allow || len(l.items(q, n-1, n)) == 0); n-- {
		asked.rules = l.rules[:n-1]
	}
	if !rs.addList(quoted, &asked, q) {
		return
	}
	rs.chains = append(rs.chains, quoted)
	rs.add(chain, "which packet is this error about?", isError(family), steps(verdict(expr.VerdictGoto, quoted)))
}
