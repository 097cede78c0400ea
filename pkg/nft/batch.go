// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"cmp"
	"encoding/binary"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/pkg/nfnetlink"
)

// objCounter is the kernel's number of the counter's object type.
const objCounter = unix.NFT_OBJECT_COUNTER

// elementBytes keeps a list of set elements below the 64 KiB that fit into a netlink attribute: the longest
// element takes less than 200.
const elementBytes = 48 << 10

// These are missing in x/sys/unix.
const (
	nftSetConcat      = 0x80
	nftaSetDescConcat = 2
	nftaSetFieldLen   = 1
	nftaSetElemKeyEnd = 10
)

// batch is a transaction: its messages take effect together or not at all.
//
// The messages are ours, the expressions in them those of google/nftables. That library's own Flush asks for
// an acknowledgement and an echo of every message, which a large policy cannot receive (ENOBUFS), and cannot
// tell which message was refused. Here the last message alone is acknowledged, and names tell of the others.
type batch struct {
	// table is the name of the table, TableName if it is empty.
	table    string
	messages []netlink.Message
	// names say what each message does, for errors.
	names []string
	setID uint32
}

func (b *batch) add(typ uint16, flags netlink.HeaderFlags, body attributes, format string, args ...any) {
	b.messages = append(b.messages, message(typ, netlink.Request|flags, body))
	b.names = append(b.names, fmt.Sprintf(format, args...))
}

// message is a request about objects of family inet.
func message(typ uint16, flags netlink.HeaderFlags, body attributes) netlink.Message {
	return nfnetlink.Message(unix.NFPROTO_INET, typ, flags, body)
}

// boundary is the message that begins or ends a batch.
func boundary(typ uint16) netlink.Message {
	return netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(typ), Flags: netlink.Request},
		Data:   binary.BigEndian.AppendUint16([]byte{unix.AF_UNSPEC, unix.NFNETLINK_V0}, unix.NFNL_SUBSYS_NFTABLES),
	}
}

// ofTable begins a message's body with a table's name, which is attribute 1 of every kind of object.
func ofTable(name string) attributes {
	var a attributes
	a.text(unix.NFTA_TABLE_NAME, cmp.Or(name, TableName))
	return a
}

func (b *batch) ofTable() attributes { return ofTable(b.table) }

// addTable creates the table, or wakes one that an admin put to sleep.
func (b *batch) addTable() {
	a := b.ofTable()
	a.u32(unix.NFTA_TABLE_FLAGS, 0)
	b.add(unix.NFT_MSG_NEWTABLE, netlink.Create, a, "add table")
}

func (b *batch) deleteTable() {
	b.add(unix.NFT_MSG_DELTABLE, 0, b.ofTable(), "delete table")
}

// flushRules removes the rules of all chains.
func (b *batch) flushRules() {
	b.add(unix.NFT_MSG_DELRULE, 0, b.ofTable(), "flush table")
}

func (b *batch) addChain(name string) {
	a := b.ofTable()
	a.text(unix.NFTA_CHAIN_NAME, name)
	b.add(unix.NFT_MSG_NEWCHAIN, netlink.Create, a, "add chain %s", name)
}

func (b *batch) addBaseChain(c baseChain) {
	a := b.ofTable()
	a.text(unix.NFTA_CHAIN_NAME, c.name)
	a.nest(unix.NFTA_CHAIN_HOOK, func() {
		a.u32(unix.NFTA_HOOK_HOOKNUM, c.hook)
		a.u32(unix.NFTA_HOOK_PRIORITY, uint32(c.priority))
	})
	a.u32(unix.NFTA_CHAIN_POLICY, c.policy)
	a.text(unix.NFTA_CHAIN_TYPE, chainType)
	b.add(unix.NFT_MSG_NEWCHAIN, netlink.Create, a, "add chain %s", c.name)
}

func (b *batch) deleteChain(name string) {
	a := b.ofTable()
	a.text(unix.NFTA_CHAIN_NAME, name)
	b.add(unix.NFT_MSG_DELCHAIN, 0, a, "delete chain %s", name)
}

// addCounter creates a counter that starts at start. One that is there already keeps its value.
func (b *batch) addCounter(name string, start Counter) {
	a := b.ofTable()
	a.text(unix.NFTA_OBJ_NAME, name)
	a.u32(unix.NFTA_OBJ_TYPE, objCounter)
	a.nest(unix.NFTA_OBJ_DATA, func() {
		a.u64(unix.NFTA_COUNTER_BYTES, start.Bytes)
		a.u64(unix.NFTA_COUNTER_PACKETS, start.Packets)
	})
	b.add(unix.NFT_MSG_NEWOBJ, netlink.Create, a, "add counter %s", name)
}

func (b *batch) deleteObject(name string, typ uint32) {
	a := b.ofTable()
	a.text(unix.NFTA_OBJ_NAME, name)
	a.u32(unix.NFTA_OBJ_TYPE, typ)
	b.add(unix.NFT_MSG_DELOBJ, 0, a, "delete object %s", name)
}

func (b *batch) deleteSet(name string) {
	a := b.ofTable()
	a.text(unix.NFTA_SET_NAME, name)
	b.add(unix.NFT_MSG_DELSET, 0, a, "delete set %s", name)
}

// addSet creates a set with its elements and returns its number in the batch and its name. Anonymous sets have
// one too: left to itself, the kernel looks for a free number among all sets, for each set again. Named or not,
// it is constant: the kernel refuses to change it while a rule uses it. But see minUpdate.
func (b *batch) addSet(s *set) (id uint32, name string) {
	b.setID++
	id, name = b.setID, s.name
	flags := uint32(unix.NFT_SET_CONSTANT)
	if s.updated() {
		flags = 0
	}
	if name == "" {
		name = fmt.Sprintf("__set%d", id)
		flags |= unix.NFT_SET_ANONYMOUS
	}
	interval := s.interval()
	concatenated := interval && s.parts != nil
	if interval {
		flags |= unix.NFT_SET_INTERVAL
	}
	if concatenated {
		flags |= nftSetConcat
	}
	if s.counters != nil {
		flags |= unix.NFT_SET_OBJECT
	}
	a := b.ofTable()
	a.text(unix.NFTA_SET_NAME, name)
	a.u32(unix.NFTA_SET_FLAGS, flags)
	a.u32(unix.NFTA_SET_KEY_TYPE, s.datatype.GetNFTMagic())
	a.u32(unix.NFTA_SET_KEY_LEN, s.datatype.Bytes)
	a.u32(unix.NFTA_SET_ID, id)
	if s.counters != nil {
		a.u32(unix.NFTA_SET_OBJ_TYPE, objCounter)
	}
	switch {
	case concatenated:
		a.describeParts(s.parts)
	case !interval && !s.updated(): // lets the kernel choose a table of fixed size
		a.nest(unix.NFTA_SET_DESC, func() { a.u32(unix.NFTA_SET_DESC_SIZE, uint32(s.count)) })
	}
	a.put(unix.NFTA_SET_USERDATA, setUserData(s))
	b.add(unix.NFT_MSG_NEWSET, netlink.Create, a, "add set %s", name)
	b.elements(unix.NFT_MSG_NEWSETELEM, s, name, id, interval, s.blank())
	return id, name
}

// describeParts tells where the fields of a concatenation of ranges end.
func (a *attributes) describeParts(parts []nftables.SetDatatype) {
	a.nest(unix.NFTA_SET_DESC, func() {
		a.nest(nftaSetDescConcat, func() {
			for _, part := range parts {
				a.nest(unix.NFTA_LIST_ELEM, func() { a.u32(nftaSetFieldLen, part.Bytes) })
			}
		})
	})
}

// elements adds or deletes the ranges of a set, as elements of an interval set or of one without. blank is as for
// set.elements.
func (b *batch) elements(typ uint16, s *set, name string, id uint32, interval, blank bool) {
	flags, does := netlink.Create, "add elements to"
	if typ == unix.NFT_MSG_DELSETELEM {
		flags, does = 0, "delete elements of"
	}
	var list attributes
	flush := func() {
		a := make(attributes, 0, len(list)+128)
		a = append(a, b.ofTable()...)
		a.text(unix.NFTA_SET_ELEM_LIST_SET, name)
		if id != 0 {
			a.u32(unix.NFTA_SET_ELEM_LIST_SET_ID, id)
		}
		a.nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS, func() { a = append(a, list...) })
		b.add(typ, flags, a, "%s set %s", does, name)
		list = list[:0]
	}
	for e := range s.elements(interval, blank) {
		list.nest(unix.NFTA_LIST_ELEM, func() {
			if e.end {
				list.u32(unix.NFTA_SET_ELEM_FLAGS, unix.NFT_SET_ELEM_INTERVAL_END)
			}
			list.nest(unix.NFTA_SET_ELEM_KEY, func() { list.put(unix.NFTA_DATA_VALUE, e.key) })
			if e.last != nil {
				list.nest(nftaSetElemKeyEnd, func() { list.put(unix.NFTA_DATA_VALUE, e.last) })
			}
			if e.counter != "" {
				list.text(unix.NFTA_SET_ELEM_OBJREF, e.counter)
			}
		})
		if len(list) > elementBytes {
			flush()
		}
	}
	if len(list) > 0 {
		flush()
	}
}

// addRule appends a rule, and before it the anonymous sets it needs. steps are all of the rule's or those without
// its report, numbers holds those of the named sets.
func (b *batch) addRule(r *rule, steps []step, numbers map[*set]uint32) error {
	body := b.ofTable()
	body.text(unix.NFTA_RULE_CHAIN, r.chain)
	var failed error
	body.nest(unix.NFTA_RULE_EXPRESSIONS, func() {
		for _, s := range steps {
			e := s.expr
			if s.set != nil {
				id, name := numbers[s.set], s.set.name
				if name == "" {
					id, name = b.addSet(s.set)
				}
				if s.set.counters != nil {
					body.count(name, id)
					continue
				}
				e = &expr.Lookup{SourceRegister: register, SetID: id, SetName: name, Invert: s.invert}
			}
			wire, err := expr.Marshal(unix.NFPROTO_INET, e)
			if err != nil {
				failed = err
				return
			}
			body.put(unix.NFTA_LIST_ELEM|unix.NLA_F_NESTED, wire)
		}
	})
	body.put(unix.NFTA_RULE_USERDATA, ruleUserData(r.comment, r.digest()))
	b.add(unix.NFT_MSG_NEWRULE, netlink.Create|netlink.Append, body, "add rule %q to chain %s", r.comment, r.chain)
	return failed
}

// count adds the expression that looks up a counter in a map, and counts. Package expr knows single counters only.
func (a *attributes) count(name string, id uint32) {
	a.nest(unix.NFTA_LIST_ELEM, func() {
		a.text(unix.NFTA_EXPR_NAME, "objref")
		a.nest(unix.NFTA_EXPR_DATA, func() {
			a.u32(unix.NFTA_OBJREF_SET_SREG, register)
			a.text(unix.NFTA_OBJREF_SET_NAME, name)
			a.u32(unix.NFTA_OBJREF_SET_ID, id)
		})
	})
}
