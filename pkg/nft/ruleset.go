// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"fmt"
	"hash/fnv"
	"io"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/pkg/netset"
	"github.com/untracked-cni/untracked/pkg/policy"
)

// ruleset is a Table as nftables objects: all that Apply writes, and all that Digest is made of.
type ruleset struct {
	// chains are the regular chains.
	chains []string
	// counters are the names of the counters, one for each policy rule.
	counters []string
	// sets are the sets with a name.
	sets []*set
	// rules are in the order in which they are written.
	rules []rule
	// silent leaves the reports out of what is written.
	silent bool
}

// rule is one line of a chain.
type rule struct {
	chain string
	steps []step
	// report stands behind the steps of a Log rule: what tells readers about a packet, in a kernel that can.
	report  []step
	comment string
}

// all are the steps with the report.
func (r *rule) all() []step { return slices.Concat(r.steps, r.report) }

// baseChain is a chain with a hook, of type filter and in family inet.
type baseChain struct {
	name     string
	hook     uint32
	priority int32
	policy   uint32
}

// priorityRaw is NF_IP_PRI_RAW: behind defragmentation (-400) and before connection tracking (-200).
const priorityRaw = -300

// policyAccept is NF_ACCEPT.
const policyAccept = 1

var baseChains = []baseChain{
	{preroutingChain, unix.NF_INET_PRE_ROUTING, priorityRaw, policyAccept},
	{outputChain, unix.NF_INET_LOCAL_OUT, priorityRaw, policyAccept},
}

const chainType = "filter"

// ruleset compiles the table. It is pure.
func (t *Table) ruleset() *ruleset {
	rs := &ruleset{}
	c := &compiler{hashes: map[*netset.Set]uint64{}}
	endpoints := t.sorted()
	rs.addPrerouting(c, t.Mark, endpoints)
	for _, e := range endpoints {
		rs.addEndpoint(c, &e)
	}
	rs.nameSets()
	return rs
}

func (rs *ruleset) add(chain, comment string, parts ...[]step) {
	r := rule{chain: chain, comment: comment}
	for _, p := range parts {
		r.steps = append(r.steps, p...)
	}
	rs.rules = append(rs.rules, r)
}

// addPrerouting turns the mark into notrack for packets to a local address, and takes it off. A packet
// without the mark pays for one comparison.
//
// A packet may have been marked on one interface and arrive by another: a VLAN, macvlan or bridge on top. Where that
// one is no endpoint its answers leave tracked, and so the packet must be, or conntrack sees half a flow.
func (rs *ruleset) addPrerouting(c *compiler, mark uint32, endpoints []Endpoint) {
	load := loadMeta(expr.MetaKeyMARK)
	rs.add(preroutingChain, "no verdict from tc", steps(
		load, and(hostOrder(mark)...), isNot(hostOrder(mark)...), verdict(expr.VerdictAccept, "")))
	awaited := false
	for _, e := range endpoints {
		var end expr.Any = &expr.Notrack{}
		if len(e.Answers) > 0 {
			end = verdict(expr.VerdictJump, arrivingPrefix+escape(e.Interface))
			awaited = true
		}
		rs.add(preroutingChain, e.Interface+": untracked, unless it is forwarded", steps(
			loadMeta(expr.MetaKeyIIFNAME), is(nameBytes(e.Interface)...),
			&expr.Fib{Register: register, ResultADDRTYPE: true, FlagDADDR: true}, is(hostOrder(unix.RTN_LOCAL)...),
			end))
	}
	rs.add(preroutingChain, "take the verdict off", steps(
		load, and(hostOrder(^mark)...), &expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: register}))
	if !awaited {
		return
	}
	rs.chains = append(rs.chains, awaitedChain)
	for _, transparent := range []byte{0, 1} { // either will do: without a socket there is no value at all
		rs.add(awaitedChain, "a local socket waits for it", steps(
			&expr.Socket{Key: expr.SocketKeyTransparent, Register: register}, is(transparent), &expr.Notrack{}))
	}
	for _, e := range endpoints {
		rs.addAnswers(c, &e)
	}
}

// addAnswers asks for the socket where an answer may be another's, also an ICMP error about such a call.
func (rs *ruleset) addAnswers(c *compiler, e *Endpoint) {
	if len(e.Answers) == 0 {
		return
	}
	chain := arrivingPrefix + escape(e.Interface)
	rs.chains = append(rs.chains, chain)
	ask := steps(verdict(expr.VerdictGoto, awaitedChain))
	answers := slices.Clone(e.Answers)
	for i := range answers {
		answers[i].Action = policy.Allow // there is nothing else to do with a match
	}
	rs.addList(chain, &list{compiler: c, rules: answers}, question{
		views:  views,
		action: func(policy.Action) ([]step, bool) { return ask, false },
	})
	for _, family := range []int{4, 6} {
		// The kernel finds sockets of these two protocols only.
		about, _ := view{family: family, quoted: true}.member(view{family: family, quoted: true}.protocol(),
			octets("protocols", nftables.TypeInetProto, []uint8{policy.TCP, policy.UDP}), false)
		rs.add(chain, "an error about a call", isErrorType(family), about, ask)
	}
	rs.add(chain, "everything else is for what is served here", steps(&expr.Notrack{}))
}

// nameBytes is an interface's name as the kernel compares it.
func nameBytes(ifname string) []byte {
	name := make([]byte, ifNameSize)
	copy(name, ifname)
	return name
}

// isError holds for an ICMP error (see policy.IsICMPError) whose quoted packet has its transport header right
// behind an IP header of the usual length.
func isError(family int) []step {
	quoted := view{family: family, quoted: true}
	out := isErrorType(family)
	version := loadPayload(expr.PayloadBaseTransportHeader, quotedHeader, 1)
	if family == 4 {
		fragment := loadPayload(expr.PayloadBaseTransportHeader, quotedHeader+6, 2)
		return append(out, steps(
			version, is(0x45),
			fragment, and(0x1f, 0xff), is(0, 0))...)
	}
	notTransport, _ := quoted.member(quoted.protocol(), octets("protocols", nftables.TypeInetProto, extensionHeaders), true)
	out = append(out, steps(version, and(0xf0), is(0x60))...)
	return append(out, notTransport...)
}

func isErrorType(family int) []step {
	direct := view{family: family}
	out := append(direct.isFamily(), steps(direct.protocol(), is(direct.icmp()))...)
	var types []uint8
	for t := range 256 {
		if policy.IsICMPError(family, uint8(t)) {
			types = append(types, uint8(t))
		}
	}
	datatype := nftables.TypeICMPType
	if family == 6 {
		datatype = nftables.TypeICMP6Type
	}
	isOne, _ := direct.member(direct.transport(0, 1), octets("types", datatype, types), false)
	return append(out, isOne...)
}

// extensionHeaders are the next headers of IPv6 behind which another one follows: hop-by-hop options, routing,
// fragment, authentication, destination options.
var extensionHeaders = []uint8{0, 43, 44, 51, 60}

// nameSets makes equal sets one, such as a deny list that is asked for on several interfaces or for both the
// packet and the quoted one, and names those that listings had better not show in every rule. It also keeps the
// number of sets small, in which the kernel's time for a batch is quadratic.
func (rs *ruleset) nameSets() {
	type use struct {
		set   *set
		steps []*step
	}
	var uses []*use
	byHash := map[uint64][]*use{}
	for _, r := range rs.rules {
		for i := range r.steps {
			st := &r.steps[i]
			if st.set == nil {
				continue
			}
			same := byHash[st.set.hash]
			at := slices.IndexFunc(same, func(u *use) bool { return u.set.equal(st.set) })
			if at < 0 {
				u := &use{set: st.set}
				uses = append(uses, u)
				byHash[st.set.hash] = append(same, u)
				same, at = byHash[st.set.hash], len(same)
			}
			same[at].steps = append(same[at].steps, st)
		}
	}
	for _, u := range uses {
		if u.set.count <= maxAnonymous && len(u.steps) <= maxAnonymousUses {
			continue // the kernel takes an anonymous set in one rule only
		}
		if u.set.counters != nil && u.set.raw != nil {
			continue // what nft (1.0.6) lists of such a map with a name it cannot read
		}
		rs.sets = append(rs.sets, u.set)
		for _, st := range u.steps {
			st.set = u.set
		}
	}
	taken := map[string]bool{}
	for _, s := range rs.sets {
		s.name = fmt.Sprintf("%s-%08x", s.kind, uint32(s.named()))
		for taken[s.name] {
			s.name += "x"
		}
		taken[s.name] = true
	}
}

// named identifies a set: by where its content comes from, or by the content.
func (s *set) named() uint64 {
	if s.comment == "" {
		return s.hash
	}
	h := fnv.New64a()
	io.WriteString(h, s.comment)
	return h.Sum64()
}
