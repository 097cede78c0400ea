// SPDX-License-Identifier: Apache-2.0

package resource

import (
	"bytes"
	"errors"

	"github.com/untracked-cni/untracked/pkg/netset"
)

const namespaceLabel = "projectcalico.org/namespace"

// networkSet reads a GlobalNetworkSet. As in Calico its networks may overlap and have host bits, and a single address
// may stand for itself. One may also be there twice: such sets are often merged from several lists.
func (r *Reader) networkSet(o object) {
	var b netset.Builder
	m := r.resource(o, domainName, func(v value) {
		v.fields(map[string]func(value){
			"nets": func(v value) { v.nets(&b) },
		})
	})
	if _, ok := m.Labels[namespaceLabel]; ok {
		o.peek("metadata").peek("labels").peek(namespaceLabel).fail("Calico keeps this label for what is in a namespace; want it left out")
	}
	r.set.NetworkSets = append(r.set.NetworkSets, NetworkSet{m, b.Build()})
}

// nets reads a list that may be very long: nothing is allocated for an element that is as it should be.
func (v value) nets(b *netset.Builder) {
	if !v.isList(unlimited) {
		return
	}
	for i, n := range v.node.Content {
		if v.full() {
			return
		}
		if !isText(n) { // an alias, or wrong
			if _, ok := v.element(i).string(); !ok {
				continue
			}
			n = v.element(i).node
		}
		switch err := addNet(b, []byte(n.Value)); {
		case errors.Is(err, errMapped):
			v.element(i).fail("%s", err)
		case err != nil:
			v.element(i).fail("not an address or CIDR; want one such as 10.0.0.0/8 or 2001:db8::/32")
		}
		if r := v.runAt(i); r != nil && r.addTo(b) != nil {
			v.source.uncertain = true
		}
	}
}

var errMapped = errors.New("an IPv4 address in IPv6 form; want it in IPv4 form")

// addNet adds one network to a set.
func addNet(b *netset.Builder, s []byte) error {
	if bytes.IndexByte(s, ':') < 0 {
		return b.AddText(s)
	}
	p, err := netset.ParsePrefix(string(s))
	if err != nil {
		return err
	}
	if p.Addr().Is4In6() {
		return errMapped
	}
	b.Add(p)
	return nil
}
