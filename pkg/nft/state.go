// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/pkg/nfnetlink"
)

// ErrNoTable is returned when there is no table inet untracked. It is fs.ErrNotExist, too.
var ErrNoTable = fmt.Errorf("no table inet %s: %w", TableName, fs.ErrNotExist)

// object is a stateful object: a counter, or what else somebody put into our table.
type object struct {
	name  string
	typ   uint32
	value Counter
}

// chain is a chain as the kernel tells of it.
type chain struct {
	baseChain
	// typ is empty for a regular chain.
	typ string
}

// decode and decodeAttributes call a function for every attribute: of a reply, or of one of its attributes.
var (
	decode           = nfnetlink.Decode
	decodeAttributes = nfnetlink.DecodeAttributes
)

// table returns the table's flags, or ErrNoTable.
func (s *socket) table() (flags uint32, err error) {
	m, err := s.get(unix.NFT_MSG_GETTABLE, s.ofTable())
	if errors.Is(err, unix.ENOENT) {
		return 0, ErrNoTable
	}
	if err != nil {
		return 0, err
	}
	err = decode(m, func(ad *netlink.AttributeDecoder) {
		if ad.Type() == unix.NFTA_TABLE_FLAGS {
			flags = ad.Uint32()
		}
	})
	return flags, err
}

// chain returns one chain, the zero chain if it does not exist.
func (s *socket) chain(name string) (chain, error) {
	a := s.ofTable()
	a.text(unix.NFTA_CHAIN_NAME, name)
	m, err := s.get(unix.NFT_MSG_GETCHAIN, a)
	if errors.Is(err, unix.ENOENT) {
		return chain{}, nil
	}
	if err != nil {
		return chain{}, err
	}
	_, c, err := parseChain(m)
	return c, err
}

// chains lists the table's chains. The kernel cannot be asked for those of one table only.
func (s *socket) chains() ([]chain, error) {
	replies, err := s.dump(unix.NFT_MSG_GETCHAIN, nil)
	if err != nil {
		return nil, err
	}
	var out []chain
	for _, m := range replies {
		table, c, err := parseChain(m)
		if err != nil {
			return nil, err
		}
		if table == cmp.Or(s.of, TableName) {
			out = append(out, c)
		}
	}
	return out, nil
}

func parseChain(m netlink.Message) (table string, c chain, err error) {
	var nested error
	err = decode(m, func(ad *netlink.AttributeDecoder) {
		switch ad.Type() {
		case unix.NFTA_CHAIN_TABLE:
			table = ad.String()
		case unix.NFTA_CHAIN_NAME:
			c.name = ad.String()
		case unix.NFTA_CHAIN_POLICY:
			c.policy = ad.Uint32()
		case unix.NFTA_CHAIN_TYPE:
			c.typ = ad.String()
		case unix.NFTA_CHAIN_HOOK:
			nested = decodeAttributes(ad.Bytes(), func(ad *netlink.AttributeDecoder) {
				switch ad.Type() {
				case unix.NFTA_HOOK_HOOKNUM:
					c.hook = ad.Uint32()
				case unix.NFTA_HOOK_PRIORITY:
					c.priority = int32(ad.Uint32())
				}
			})
		}
	})
	return table, c, errors.Join(err, nested)
}

// sets lists the names of the table's sets and maps that are not part of a rule.
func (s *socket) sets() ([]string, error) {
	replies, err := s.dump(unix.NFT_MSG_GETSET, s.ofTable())
	if err != nil {
		return nil, err
	}
	var out []string
	for _, m := range replies {
		var (
			name  string
			flags uint32
		)
		if err := decode(m, func(ad *netlink.AttributeDecoder) {
			switch ad.Type() {
			case unix.NFTA_SET_NAME:
				name = ad.String()
			case unix.NFTA_SET_FLAGS:
				flags = ad.Uint32()
			}
		}); err != nil {
			return nil, err
		}
		if flags&unix.NFT_SET_ANONYMOUS == 0 {
			out = append(out, name)
		}
	}
	return out, nil
}

// objects lists the table's stateful objects.
func (s *socket) objects() ([]object, error) {
	replies, err := s.dump(unix.NFT_MSG_GETOBJ, s.ofTable())
	if err != nil {
		return nil, err
	}
	out := make([]object, 0, len(replies))
	for _, m := range replies {
		o, err := parseObject(m)
		if err != nil {
			return nil, err
		}
		out = append(out, o)
	}
	return out, nil
}

func parseObject(m netlink.Message) (object, error) {
	var (
		o    object
		data []byte
	)
	if err := decode(m, func(ad *netlink.AttributeDecoder) {
		switch ad.Type() {
		case unix.NFTA_OBJ_NAME:
			o.name = ad.String()
		case unix.NFTA_OBJ_TYPE:
			o.typ = ad.Uint32()
		case unix.NFTA_OBJ_DATA:
			data = ad.Bytes()
		}
	}); err != nil || o.typ != objCounter {
		return o, err
	}
	err := decodeAttributes(data, func(ad *netlink.AttributeDecoder) {
		switch ad.Type() {
		case unix.NFTA_COUNTER_BYTES:
			o.value.Bytes = ad.Uint64()
		case unix.NFTA_COUNTER_PACKETS:
			o.value.Packets = ad.Uint64()
		}
	})
	return o, err
}

// rules lists what the table's rules tell about themselves, without looking into them.
func (s *socket) rules() ([]placedRule, error) {
	replies, err := s.dump(unix.NFT_MSG_GETRULE, s.ofTable())
	if err != nil {
		return nil, err
	}
	out := make([]placedRule, len(replies))
	for i, m := range replies {
		if err := decode(m, func(ad *netlink.AttributeDecoder) {
			switch ad.Type() {
			case unix.NFTA_RULE_CHAIN:
				out[i].chain = ad.String()
			case unix.NFTA_RULE_USERDATA:
				out[i].digest, out[i].ours = digestOf(ad.Bytes())
			}
		}); err != nil {
			return nil, err
		}
	}
	return out, nil
}
