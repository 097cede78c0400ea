// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/pkg/policy"
)

// view says where a packet's fields are found: in the packet itself, or in the one that an ICMP error quotes,
// turned round to travel in the error's own direction.
type view struct {
	// family is 4 or 6, or 0 for both: then there are no addresses and no ICMP to be seen.
	family int
	quoted bool
}

// quotedHeader is where the quoted packet begins, counted from the ICMP header.
const quotedHeader = 8

// header is the length of the IP header: of a quoted one, which is known to have no options.
func (v view) header() int {
	if v.family == 4 {
		return 20
	}
	return 40
}

func (v view) protocol() expr.Any {
	switch {
	case !v.quoted:
		return loadMeta(expr.MetaKeyL4PROTO)
	case v.family == 4:
		return loadPayload(expr.PayloadBaseTransportHeader, quotedHeader+9, 1)
	}
	return loadPayload(expr.PayloadBaseTransportHeader, quotedHeader+6, 1)
}

func (v view) address(source bool) *expr.Payload {
	if v.quoted {
		source = !source
	}
	offset, length := 8, 16
	if v.family == 4 {
		offset, length = 12, 4
	}
	if !source {
		offset += length
	}
	if v.quoted {
		return loadPayload(expr.PayloadBaseTransportHeader, quotedHeader+offset, length)
	}
	return loadPayload(expr.PayloadBaseNetworkHeader, offset, length)
}

// transport loads from the TCP, UDP, … or ICMP header.
func (v view) transport(offset, length int) *expr.Payload {
	if v.quoted {
		offset += quotedHeader + v.header()
	}
	return loadPayload(expr.PayloadBaseTransportHeader, offset, length)
}

func (v view) port(source bool) *expr.Payload {
	if source != v.quoted {
		return v.transport(0, 2)
	}
	return v.transport(2, 2)
}

// field loads a field that rules are grouped by.
func (v view) field(f field) *expr.Payload {
	if f.address() {
		return v.address(f.source())
	}
	return v.port(f.source())
}

// datatype is what nft calls the values of a field.
func (v view) datatype(f field) nftables.SetDatatype {
	switch {
	case !f.address():
		return nftables.TypeInetService
	case v.family == 4:
		return nftables.TypeIPAddr
	}
	return nftables.TypeIP6Addr
}

// icmpType is the type that a rule's type has in the packet's bytes.
func (v view) icmpType(t uint8) uint8 {
	if v.quoted {
		return policy.ReverseICMPType(v.family == 4, t)
	}
	return t
}

// icmp is the protocol number of the family's ICMP.
func (v view) icmp() uint8 {
	if v.family == 4 {
		return policy.ICMP
	}
	return policy.ICMPv6
}

// isFamily lets only packets of the view's family pass.
func (v view) isFamily() []step {
	switch {
	case v.quoted || v.family == 0:
		return nil // the chain's only way in has asked already
	case v.family == 4:
		return steps(loadMeta(expr.MetaKeyNFPROTO), is(unix.NFPROTO_IPV4))
	}
	return steps(loadMeta(expr.MetaKeyNFPROTO), is(unix.NFPROTO_IPV6))
}
