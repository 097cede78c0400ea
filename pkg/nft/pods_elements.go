// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"slices"

	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/pkg/policy"
)

// podElement is what a pod has in one of the sets that are not quoted; in the quoted one it has the same.
type podElement struct {
	podSet
	key []byte
	// last is where the networks of a set of such end, nil for a set of others.
	last []byte
}

func (e *podElement) String() string {
	width := 4
	if e.family == 6 {
		width = 16
	}
	own, _ := netip.AddrFromSlice(e.key[:width])
	rest := e.key[width:]
	if e.interval() {
		peer, _ := netip.AddrFromSlice(rest)
		return fmt.Sprintf("%s from %s", own, peer)
	}
	return fmt.Sprintf("%s %s/%d", own, policy.ProtocolName(rest[0]), binary.BigEndian.Uint16(rest[4:]))
}

// twin is the same in the quoted set.
func (e podElement) twin() podElement {
	e.quoted = true
	return e
}

// elementPlace is where an element is, whatever it says.
type elementPlace struct {
	podSet
	key string
}

func (e *podElement) place() elementPlace { return elementPlace{e.podSet, string(e.key)} }

// elements are all that a pod has. They are valid after the next one, too.
func (p *Pod) elements() iter.Seq[podElement] {
	return func(yield func(podElement) bool) {
		for _, addr := range p.Addresses {
			v := view{family: 6}
			if addr.Is4() {
				v.family = 4
			}
			own, kind := addr.AsSlice(), portsKind
			if p.Sources != nil {
				kind = sourcedKind
				networks := addresses(v.family, p.Sources, 0, "")
				if networks.count == 0 {
					continue // nobody can call it by an address of this family
				}
				for lo, hi := range networks.ranges {
					if !yield(podElement{podSet{sourcesKind, v}, slices.Concat(own, lo), slices.Concat(own, hi)}) {
						return
					}
				}
			}
			for _, r := range p.Ports {
				for port := int(r.Range.First); port <= int(r.Range.Last); port++ {
					// Each field is padded to whole registers.
					key := append(slices.Clone(own), r.Protocol, 0, 0, 0, byte(port>>8), byte(port), 0, 0)
					if !yield(podElement{podSet{kind, v}, key, nil}) {
						return
					}
				}
			}
		}
	}
}

// labelled is an element with its comment.
type labelled struct {
	podElement
	label string
}

// putIn adds pods.
func (b *batch) putIn(pods []Pod) {
	var all []labelled
	for i := range pods {
		label := pods[i].label()
		for e := range pods[i].elements() {
			all = append(all, labelled{e, label})
		}
	}
	b.podElements(unix.NFT_MSG_NEWSETELEM, netlink.Create|netlink.Excl, all)
}

// takeOut deletes what is still the pods' own.
func (s *socket) takeOut(b *batch, pods []Pod) error {
	var all []labelled
	for i := range pods {
		for e := range pods[i].elements() {
			owner, err := s.owner(e)
			if err != nil {
				return err
			}
			if owner == pods[i].owner() {
				all = append(all, labelled{podElement: e})
			}
		}
	}
	b.podElements(unix.NFT_MSG_DELSETELEM, 0, all)
	return nil
}

// podElements adds or deletes elements, in as many messages as it takes.
func (b *batch) podElements(typ uint16, flags netlink.HeaderFlags, all []labelled) {
	does := "add to"
	if typ == unix.NFT_MSG_DELSETELEM {
		does = "delete from"
	}
	for _, s := range podSets {
		var list attributes
		flush := func() {
			a := b.ofTable()
			a.text(unix.NFTA_SET_ELEM_LIST_SET, s.String())
			a.nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS, func() { a = append(a, list...) })
			b.add(typ, flags, a, "%s set %s", does, s)
			list = list[:0]
		}
		twin := podSet{s.kind, view{family: s.family}}
		for i := range all {
			e := &all[i]
			if e.podSet != twin {
				continue
			}
			list.element(e.key, e.last, e.label)
			if len(list) > elementBytes {
				flush()
			}
		}
		if len(list) > 0 {
			flush()
		}
	}
}

// element is one of a list; last and label are optional.
func (a *attributes) element(key, last []byte, label string) {
	a.nest(unix.NFTA_LIST_ELEM, func() {
		a.nest(unix.NFTA_SET_ELEM_KEY, func() { a.put(unix.NFTA_DATA_VALUE, key) })
		if last != nil {
			a.nest(nftaSetElemKeyEnd, func() { a.put(unix.NFTA_DATA_VALUE, last) })
		}
		if label != "" {
			a.put(unix.NFTA_SET_ELEM_USERDATA, userdata.AppendString(nil, userdata.NFTNL_UDATA_SET_ELEM_COMMENT, label))
		}
	})
}

// owner tells whose an element is, empty for nobody's.
func (s *socket) owner(e podElement) (string, error) {
	a := s.ofTable()
	a.text(unix.NFTA_SET_ELEM_LIST_SET, e.podSet.String())
	a.nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS, func() { a.element(e.key, e.last, "") })
	m, err := s.get(unix.NFT_MSG_GETSETELEM, a)
	if errors.Is(err, unix.ENOENT) {
		return "", nil
	}
	label := ""
	if err == nil {
		label, err = labelOf(m)
	}
	if err != nil {
		return "", fmt.Errorf("ask for %s: %w", &e, err)
	}
	return ownerOf(label), nil
}

// owners tells whose all elements are.
func (s *socket) owners() (map[elementPlace]string, error) {
	out := map[elementPlace]string{}
	for _, set := range podSets {
		elements, err := s.podElements(set)
		if err != nil {
			return nil, err
		}
		for i := range elements {
			out[elements[i].place()] = ownerOf(elements[i].label)
		}
	}
	return out, nil
}

// labelOf is the comment on the one element of a reply.
func labelOf(m netlink.Message) (string, error) {
	all, err := decodePodElements(m, podSet{})
	if err == nil && len(all) != 1 {
		err = fmt.Errorf("%d elements instead of one", len(all))
	}
	if err != nil {
		return "", err
	}
	return all[0].label, nil
}

// podElements lists a set. The kernel goes on to grow the hash table of a large one after it was written, and what moves
// meanwhile may be left out: a dump goes on from how many it has told, not from which.
func (s *socket) podElements(set podSet) ([]labelled, error) {
	a := s.ofTable()
	a.text(unix.NFTA_SET_ELEM_LIST_SET, set.String())
	replies, err := s.dump(unix.NFT_MSG_GETSETELEM, a)
	if err != nil {
		return nil, err
	}
	var out []labelled
	for _, m := range replies {
		some, err := decodePodElements(m, set)
		if err != nil {
			return nil, err
		}
		out = append(out, some...)
	}
	return out, nil
}

func decodePodElements(m netlink.Message, set podSet) (out []labelled, err error) {
	var errs []error
	nested := func(b []byte, each func(*netlink.AttributeDecoder)) { errs = append(errs, decodeAttributes(b, each)) }
	err = decode(m, func(list *netlink.AttributeDecoder) {
		if list.Type() != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
			return
		}
		nested(list.Bytes(), func(element *netlink.AttributeDecoder) {
			e := labelled{podElement: podElement{podSet: set}}
			nested(element.Bytes(), func(ad *netlink.AttributeDecoder) {
				switch ad.Type() {
				case unix.NFTA_SET_ELEM_KEY:
					nested(ad.Bytes(), func(value *netlink.AttributeDecoder) { e.key = value.Bytes() })
				case unix.NFTA_SET_ELEM_USERDATA:
					e.label, _ = userdata.GetString(ad.Bytes(), userdata.NFTNL_UDATA_SET_ELEM_COMMENT)
				}
			})
			out = append(out, e)
		})
	})
	return out, errors.Join(append(errs, err)...)
}
