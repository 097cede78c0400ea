// SPDX-License-Identifier: Apache-2.0

package nat

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"

	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/google/nftables/xt"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/pkg/nfnetlink"
	"github.com/untracked-cni/untracked/pkg/policy"
)

// rule is what a rule does, as far as it is understood: the destinations that it may translate to, for packets of which
// port and protocol. Other conditions are passed over.
type rule struct {
	table table
	// base is what all its translations have in common.
	base Translation
	// loaded is what the rule loaded into a register and compares next.
	loaded map[uint32]field
	// written are the values that it wrote into registers for nat to take, in order.
	written []value
	// nat is its last expression, or dnat the xtables target in its place; both nil where it does not translate.
	nat  *expr.NAT
	dnat *xt.NatRange
}

type field int

const (
	fieldProtocol field = iota + 1
	fieldPort
)

// value is written into registers, beginning with a 32-bit one: data, or that of the element found in a map.
type value struct {
	register uint32
	data     []byte
	of       string
}

// understood are the expressions that are looked into.
var understood = map[string]func() expr.Any{
	"meta":      func() expr.Any { return &expr.Meta{} },
	"payload":   func() expr.Any { return &expr.Payload{} },
	"cmp":       func() expr.Any { return &expr.Cmp{} },
	"immediate": func() expr.Any { return &expr.Immediate{} },
	"lookup":    func() expr.Any { return &expr.Lookup{} },
	"match":     func() expr.Any { return &expr.Match{} },
	"target":    func() expr.Any { return &expr.Target{} },
	"nat":       func() expr.Any { return &expr.NAT{} },
}

// translates tells by one of two names whether some expression may translate, an nft expression's or an xtables
// target's, without a look at each: of most rules none does.
func translates(expressions []byte) bool {
	return bytes.Contains(expressions, []byte("nat\x00")) || bytes.Contains(expressions, []byte("DNAT\x00"))
}

// parseRule returns nil for a rule that does not translate.
func parseRule(t table, m netlink.Message) (*rule, error) {
	var chain, expressions, userData []byte
	for typ, value := range nfnetlink.Attributes(nfnetlink.Body(m)) {
		switch typ {
		case unix.NFTA_RULE_CHAIN:
			chain = value
		case unix.NFTA_RULE_EXPRESSIONS:
			expressions = value
		case unix.NFTA_RULE_USERDATA:
			userData = value
		}
	}
	if !translates(expressions) {
		return nil, nil
	}
	r := &rule{table: t, loaded: map[uint32]field{}}
	r.base = Translation{
		Ports: everyPort, Table: t.String(), Chain: unix.ByteSliceToString(chain), Comment: commentOf(userData),
	}
	for _, element := range nfnetlink.Attributes(expressions) {
		e, err := r.parse(element)
		if err != nil {
			return nil, err
		}
		r.follow(e)
	}
	if r.nat == nil && r.dnat == nil {
		return nil, nil
	}
	if r.base.From != 0 {
		r.base.Ports = policy.PortRange{First: r.base.From, Last: r.base.From} // unless it gives them another
	}
	return r, nil
}

// parse returns nil for an expression that is passed over.
func (r *rule) parse(element []byte) (e expr.Any, err error) {
	for typ, value := range nfnetlink.Attributes(element) {
		switch typ {
		case unix.NFTA_EXPR_NAME:
			if newExpr, ok := understood[unix.ByteSliceToString(value)]; ok {
				e = newExpr()
			}
		case unix.NFTA_EXPR_DATA: // which follows its name
			if e != nil {
				err = expr.Unmarshal(r.table.family, value, e)
			}
		}
	}
	return e, err
}

// follow takes in what one expression does, after those before it.
func (r *rule) follow(e expr.Any) {
	switch e := e.(type) {
	case nil:
		clear(r.loaded) // whatever it loads, it loads into the same registers
	case *expr.Meta:
		r.load(e.Register, e.Key == expr.MetaKeyL4PROTO, fieldProtocol)
	case *expr.Payload:
		port := e.Base == expr.PayloadBaseTransportHeader && e.Offset == 2 && e.Len == 2
		r.load(e.DestRegister, port, fieldPort)
		if !port {
			r.load(e.DestRegister, r.isProtocol(e), fieldProtocol)
		}
	case *expr.Cmp:
		r.compare(e)
	case *expr.Immediate:
		r.written = append(r.written, value{register: word(e.Register), data: e.Data})
	case *expr.Lookup:
		if e.IsDestRegSet {
			r.written = append(r.written, value{register: word(e.DestRegister), of: e.SetName})
		}
	case *expr.Match:
		r.match(e)
	case *expr.Target:
		r.dnat = target(e)
	case *expr.NAT:
		if e.Type == expr.NATTypeDestNAT {
			r.nat = e
		}
	}
}

func (r *rule) load(register uint32, is bool, f field) {
	delete(r.loaded, register)
	if is {
		r.loaded[register] = f
	}
}

// isProtocol knows the protocol in the IP header, which iptables before 1.8.8 asks for.
func (r *rule) isProtocol(e *expr.Payload) bool {
	offset := uint32(9)
	if r.table.family == unix.NFPROTO_IPV6 {
		offset = 6
	}
	return r.table.family != unix.NFPROTO_INET && e.Base == expr.PayloadBaseNetworkHeader && e.Offset == offset && e.Len == 1
}

func (r *rule) compare(e *expr.Cmp) {
	if e.Op != expr.CmpOpEq {
		return
	}
	switch r.loaded[e.Register] {
	case fieldProtocol:
		if len(e.Data) == 1 {
			r.base.Protocol = e.Data[0]
		}
	case fieldPort:
		if len(e.Data) == 2 {
			r.base.From = binary.BigEndian.Uint16(e.Data)
		}
	}
}

// match takes in what xtables matches say.
func (r *rule) match(e *expr.Match) {
	only := func(ports [2]uint16, inverted bool) {
		if ports[0] == ports[1] && !inverted {
			r.base.From = ports[0]
		}
	}
	switch info := e.Info.(type) {
	case *xt.Comment:
		r.base.Comment = string(*info)
	case *xt.Tcp:
		r.base.Protocol = policy.TCP
		only(info.DstPorts, info.InvFlags&xt.TcpInvDestPorts != 0)
	case *xt.Udp:
		r.base.Protocol = policy.UDP
		only(info.DstPorts, info.InvFlags&xt.UdpInvDestPorts != 0)
	}
}

// target returns the range of a DNAT, in whichever revision, nil for another target.
func target(e *expr.Target) *xt.NatRange {
	if e.Name != "DNAT" {
		return nil
	}
	switch info := e.Info.(type) {
	case *xt.NatIPv4MultiRangeCompat:
		if len(*info) == 1 {
			one := (*info)[0] // as the kernel takes one, it has one
			return (*xt.NatRange)(&one)
		}
	case *xt.NatRange:
		return info
	case *xt.NatRange2:
		return &info.NatRange
	}
	return nil
}

// word is the number of the 32-bit register that a register begins with: the kernel counts those of 128 bits from 1
// to 4, and those of 32 bits, which are parts of them, from 8 on.
func word(register uint32) uint32 {
	if register >= unix.NFT_REG32_00 {
		return register - unix.NFT_REG32_00
	}
	return 4 * (register - unix.NFT_REG_1)
}

// mapName is the map whose element tells the destination, empty if the rule itself does.
func (r *rule) mapName() string {
	if r.nat == nil {
		return ""
	}
	if w := r.writtenTo(r.nat.RegAddrMin); w != nil {
		return w.of
	}
	return ""
}

// translation is the rule with the given element of its map, or nil where it has none. It returns false where the rule
// leaves the address as it is, or what address there will be cannot be told.
func (r *rule) translation(element []byte) (Translation, bool) {
	if r.dnat != nil {
		return r.ofTarget()
	}
	t := r.base
	length := 4
	if r.nat.Family == unix.NFPROTO_IPV6 {
		length = 16
	}
	first, last := r.read(r.nat.RegAddrMin, length, element), r.read(r.nat.RegAddrMax, length, element)
	if first == nil {
		return t, false
	}
	if last == nil {
		last = first
	}
	t.First, t.Last = fromIP(first), fromIP(last)
	low, high := r.read(r.nat.RegProtoMin, 2, element), r.read(r.nat.RegProtoMax, 2, element)
	if high == nil {
		high = low
	}
	if low != nil {
		t.Ports = policy.PortRange{First: binary.BigEndian.Uint16(low), Last: binary.BigEndian.Uint16(high)}
	}
	return t, true
}

func (r *rule) ofTarget() (Translation, bool) {
	const withAddress, withPort = uint(xt.NatRangeMapIPs), uint(xt.NatRangeProtoSpecified)
	t := r.base
	t.First, t.Last = fromIP(r.dnat.MinIP), fromIP(r.dnat.MaxIP)
	if r.dnat.Flags&withPort != 0 {
		t.Ports = policy.PortRange{First: r.dnat.MinPort, Last: r.dnat.MaxPort}
	}
	return t, r.dnat.Flags&withAddress != 0
}

func fromIP(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a
}

// writtenTo is the last value that reaches a register, nil if none does, or there is no such register.
func (r *rule) writtenTo(register uint32) *value {
	if register == 0 {
		return nil
	}
	at := word(register)
	for i := len(r.written) - 1; i >= 0; i-- {
		w := &r.written[i]
		const all = 16 // registers that there are
		width := uint32(len(w.data)+3) / 4
		if w.of != "" {
			width = all // how many of them an element takes is not known yet
		}
		if w.register <= at && at < w.register+width {
			return w
		}
	}
	return nil
}

// read returns what is in a register after all that was written, with the given element of the rule's map; nil where
// that is not known.
func (r *rule) read(register uint32, length int, element []byte) []byte {
	w := r.writtenTo(register)
	if w == nil {
		return nil
	}
	data := w.data
	if w.of != "" {
		if w.of != r.mapName() {
			return nil // another map, of whose elements it may be any
		}
		data = element
	}
	offset := int(word(register)-w.register) * 4
	if len(data) < offset+length {
		return nil
	}
	return data[offset:][:length]
}

// commentOf reads a rule's comment, as nft leaves it in the user data.
func commentOf(data []byte) string {
	for len(data) >= 2 {
		typ, length := userdata.Type(data[0]), int(data[1])
		if len(data) < 2+length {
			return ""
		}
		if typ == userdata.TypeComment {
			return unix.ByteSliceToString(data[2:][:length])
		}
		data = data[2+length:]
	}
	return ""
}
