// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"encoding/binary"
	"strings"
	"unicode"

	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
)

// digestType is the type of our entry in a rule's user data, far from those that nft knows (0 and 1) and so
// skipped by it.
const digestType = userdata.Type(0xd1)

// maxComment is the longest comment that nft itself would write (NFTNL_UDATA_COMMENT_MAXLEN).
const maxComment = 127

// comment makes text fit for nft to print between double quotes.
func comment(text string) string {
	text = strings.Map(func(r rune) rune {
		if r == '"' || r == '\\' || !unicode.IsPrint(r) {
			return '_'
		}
		return r
	}, text)
	if len(text) > maxComment {
		text = strings.ToValidUTF8(text[:maxComment], "")
	}
	return text
}

func ruleUserData(text string, digest uint64) []byte {
	b := userdata.AppendString(nil, userdata.TypeComment, comment(text))
	return userdata.Append(b, digestType, binary.BigEndian.AppendUint64(nil, digest))
}

// digestOf finds our entry. A rule without one is not ours.
func digestOf(data []byte) (uint64, bool) {
	for len(data) >= 2 {
		length := int(data[1])
		if len(data) < 2+length {
			break
		}
		if userdata.Type(data[0]) == digestType && length == 8 {
			return binary.BigEndian.Uint64(data[2:]), true
		}
		data = data[2+length:]
	}
	return 0, false
}

// setUserData is what nft needs to know for listing a set.
func setUserData(s *set) []byte {
	order := uint32(2) // BYTEORDER_BIG_ENDIAN
	if s.parts != nil {
		order = 0 // BYTEORDER_INVALID: each part has its own
	}
	b := userdata.AppendUint32(nil, userdata.NFTNL_UDATA_SET_KEYBYTEORDER, order)
	if s.raw != nil {
		b = userdata.Append(b, userdata.NFTNL_UDATA_SET_KEY_TYPEOF, typeOf(s.raw))
	}
	if s.comment != "" && s.name != "" {
		b = userdata.AppendString(b, userdata.NFTNL_UDATA_SET_COMMENT, comment(s.comment))
	}
	return b
}

// typeOf is nft's `typeof @th,offset,length`, or a concatenation of such: see set_make_key, payload_expr_build_udata
// and concat_expr_build_udata in its sources.
func typeOf(fields []*expr.Payload) []byte {
	const (
		expression, data                    = 0, 1          // of a typeof
		protocol, typ, base, offset, length = 0, 1, 2, 3, 4 // of a payload expression
		payload, concat                     = 7, 13         // EXPR_PAYLOAD, EXPR_CONCAT
		transport                           = 3             // PROTO_BASE_TRANSPORT_HDR
	)
	var all []byte
	for i, field := range fields {
		var p []byte
		for _, v := range []struct {
			typ   userdata.Type
			value uint32
		}{{protocol, 0}, {typ, 0}, {base, transport}, {offset, 8 * field.Offset}, {length, 8 * field.Len}} {
			p = userdata.AppendUint32(p, v.typ, v.value)
		}
		one := userdata.Append(userdata.AppendUint32(nil, expression, payload), data, p)
		if len(fields) == 1 {
			return one
		}
		all = userdata.Append(all, userdata.Type(i), one)
	}
	return userdata.Append(userdata.AppendUint32(nil, expression, concat), data, all)
}
