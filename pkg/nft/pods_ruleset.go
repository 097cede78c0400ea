// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	requestsCounter = "requests"
	repliesCounter  = "replies"
)

// podSet is one of the table's sets, whose elements are added and deleted one by one.
type podSet struct {
	kind string
	view
}

// The kinds of sets. What is quoted is of no type that nft knows, so that it needs sets of its own.
const (
	portsKind   = "ports"
	sourcedKind = "sourced"
	sourcesKind = "sources"
)

// podSets are all of them. Their place, counted from 1, is their number in the batch that makes them.
var podSets = func() (out []podSet) {
	for _, v := range podViews {
		for _, kind := range []string{portsKind, sourcedKind, sourcesKind} {
			out = append(out, podSet{kind, v})
		}
	}
	return out
}()

var podViews = []view{{4, false}, {4, true}, {6, false}, {6, true}}

func (s podSet) number() uint32 { return uint32(slices.Index(podSets, s) + 1) }

func (s podSet) String() string {
	if s.quoted {
		return fmt.Sprintf("quoted-%s%d", s.kind, s.family)
	}
	return fmt.Sprintf("%s%d", s.kind, s.family)
}

// interval is true for the one set that holds networks.
func (s podSet) interval() bool { return s.kind == sourcesKind }

// key loads what is looked up in the set, side by side, where the pod is at one end of the packet.
func (s podSet) key(source bool) []step {
	own := s.address(source)
	next := unix.NFT_REG32_00 + words(own.Len)
	if s.interval() {
		peer := s.address(!source)
		peer.DestRegister = next
		return steps(own, peer)
	}
	protocol, port := s.protocol(), s.port(source)
	switch p := protocol.(type) {
	case *expr.Meta:
		p.Register = next
	case *expr.Payload:
		p.DestRegister = next
	}
	port.DestRegister = next + 1
	return steps(own, protocol, port)
}

// lookup holds where the set has what a packet's end is.
func (s podSet) lookup(source bool) []step {
	return append(s.key(source), step{expr: &expr.Lookup{SourceRegister: register, SetID: s.number(), SetName: s.String()}})
}

// types are those of the key's fields.
func (s podSet) types() []nftables.SetDatatype {
	address := nftables.TypeIPAddr
	if s.family == 6 {
		address = nftables.TypeIP6Addr
	}
	if s.interval() {
		return []nftables.SetDatatype{address, address}
	}
	return []nftables.SetDatatype{address, nftables.TypeInetProto, nftables.TypeInetService}
}

// podsChain has the rules of a view.
func podsChain(v view) string {
	if v.quoted {
		return fmt.Sprintf("errors%d", v.family)
	}
	return fmt.Sprintf("pods%d", v.family)
}

// podsRuleset is what the table always has: its rules, the chains that they stand in, and the counters.
func podsRuleset() *ruleset {
	rs := &ruleset{counters: []string{requestsCounter, repliesCounter}}
	for _, base := range baseChains {
		for _, v := range []view{{family: 4}, {family: 6}} {
			rs.add(base.name, fmt.Sprintf("IPv%d", v.family), v.isFamily(), steps(verdict(expr.VerdictGoto, podsChain(v))))
		}
	}
	for _, v := range podViews {
		rs.chains = append(rs.chains, podsChain(v))
		rs.addPodLookups(v)
	}
	return rs
}

// addPodLookups asks about both ends of a packet.
func (rs *ruleset) addPodLookups(v view) {
	ends := []struct {
		source           bool
		comment, counter string
	}{{false, "to a pod", requestsCounter}, {true, "from a pod", repliesCounter}}
	chain := podsChain(v)
	ports, sourced, sources := podSet{portsKind, v}, podSet{sourcedKind, v}, podSet{sourcesKind, v}
	for _, end := range ends {
		rs.add(chain, end.comment, v.isFamily(), ports.lookup(end.source), v.exempt(end.counter))
	}
	for _, end := range ends {
		rs.add(chain, end.comment+" with sources", v.isFamily(), sourced.lookup(end.source), sources.lookup(end.source), v.exempt(end.counter))
	}
	if !v.quoted {
		rs.add(chain, "which packet is this error about?", isError(v.family), steps(verdict(expr.VerdictGoto, podsChain(view{v.family, true}))))
	}
}

// exempt takes a packet out of connection tracking. Errors are not counted.
func (v view) exempt(counter string) []step {
	out := steps(&expr.Notrack{}, verdict(expr.VerdictAccept, ""))
	if v.quoted {
		return out
	}
	return append(steps(&expr.Objref{Type: objCounter, Name: counter}), out...)
}

// newPods is the batch that makes the table with pods in it.
func newPods(before *found, pods []Pod) *batch {
	b := &batch{table: PodsTable}
	values := map[string]Counter{}
	if before.exists {
		b.deleteTable()
		for _, o := range before.objects {
			values[o.name] = o.value
		}
	}
	rs := podsRuleset()
	b.addTable()
	for _, c := range baseChains {
		b.addBaseChain(c)
	}
	for _, name := range rs.chains {
		b.addChain(name)
	}
	for _, name := range rs.counters {
		b.addCounter(name, values[name])
	}
	for _, s := range podSets {
		b.addPodSet(s)
	}
	for i := range rs.rules {
		if err := b.addRule(&rs.rules[i], rs.rules[i].steps, nil); err != nil {
			panic(fmt.Sprintf("nft: rule %q: %v", rs.rules[i].comment, err)) // no expression of ours can fail
		}
	}
	b.putIn(pods)
	return b
}

// addPodSet creates an empty set. It gets no size: the kernel makes one without networks a hash table that grows.
func (b *batch) addPodSet(s podSet) {
	types := s.types()
	datatype := concatenation(types)
	info := userdata.AppendUint32(nil, userdata.NFTNL_UDATA_SET_KEYBYTEORDER, 0) // each part has its own
	if s.quoted {
		width := datatype.Bytes
		datatype = concatenation(slices.Repeat([]nftables.SetDatatype{nftables.TypeInteger}, len(types)))
		datatype.Bytes = width
		var fields []*expr.Payload
		for _, load := range s.key(false) {
			fields = append(fields, load.expr.(*expr.Payload))
		}
		info = userdata.Append(info, userdata.NFTNL_UDATA_SET_KEY_TYPEOF, typeOf(fields))
	}
	flags := uint32(0)
	if s.interval() {
		flags = unix.NFT_SET_INTERVAL | nftSetConcat
	}
	a := b.ofTable()
	a.text(unix.NFTA_SET_NAME, s.String())
	a.u32(unix.NFTA_SET_FLAGS, flags)
	a.u32(unix.NFTA_SET_KEY_TYPE, datatype.GetNFTMagic())
	a.u32(unix.NFTA_SET_KEY_LEN, datatype.Bytes)
	a.u32(unix.NFTA_SET_ID, s.number())
	if s.interval() {
		a.describeParts(types)
	}
	a.put(unix.NFTA_SET_USERDATA, info)
	b.add(unix.NFT_MSG_NEWSET, netlink.Create, a, "add set %s", s)
}

// PodsDigest identifies what [WritePods] writes besides the pods.
func PodsDigest() string { return podsRuleset().digest() }
