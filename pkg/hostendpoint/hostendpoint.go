// SPDX-License-Identifier: Apache-2.0

// Package hostendpoint says which host endpoint each interface of a node has, and what rules each endpoint has.
//
// An endpoint is a written HostEndpoint or the implicit one, which stands for the interfaces of the configuration that
// no written one is about. [Selectors] says which interfaces to look for, [Assign] gives them their endpoints, and an
// [Expander] turns the policies that select an endpoint into ordered rules, in which addresses stand in place of
// selectors and numbers in place of port names. [Inspect] finds what is valid and hardly meant.
//
// The package is pure: which interfaces a node has, and with what addresses, is told to it. Semantics are Calico's,
// except that an interface name may be a glob, that "*" works for untracked policy as well, and that the addresses of
// an endpoint that lists none are those of its interfaces.
package hostendpoint

import (
	"net/netip"
	"path"
	"slices"
	"strings"

	"github.com/untracked-cni/untracked/pkg/hostif"
	"github.com/untracked-cni/untracked/pkg/resource"
)

// Implicit is the name of the endpoint that nobody wrote.
const Implicit = "implicit"

// allInterfaces is the interface name of a HostEndpoint that stands for every host interface.
const allInterfaces = "*"

// Interface is an interface that may have an endpoint.
type Interface struct {
	Name string
	// Addresses are the interface's own of global scope.
	Addresses []netip.Addr
	// Host says that the interface name "*" means it: package hostif's ByHost chose it.
	Host bool
	// Selected says that the configuration names it: it has the implicit endpoint, if it has no written one.
	Selected bool
	// FoundBy are the selectors by which package hostif chose it. That package also knows alternative names, and
	// addresses of a narrower scope. (optional)
	FoundBy []hostif.Selector
}

// Node is the node that endpoints are wanted for.
type Node struct {
	// Name is compared with the HostEndpoints' node.
	Name string
	// Labels are those of the implicit endpoint.
	Labels     map[string]string
	Interfaces []Interface
}

// Endpoint is a host endpoint that is in force on this node.
type Endpoint struct {
	// Name is the HostEndpoint's, or Implicit.
	Name string
	// Resource is nil for the implicit endpoint.
	Resource *resource.HostEndpoint
	Labels   map[string]string
	// Interfaces are the names of those that have this endpoint, in the order of the node's.
	Interfaces []string
	// Addresses are the expected ones or, where none is written, those of the interfaces; sorted, each once.
	Addresses []netip.Addr
}

// Selectors are those of the interfaces that HostEndpoints of a node may be about, each once, in the order of the
// HostEndpoints. What package hostif finds by them is all that [Assign] needs to see.
func Selectors(set *resource.Set, node string) []hostif.Selector {
	var out []hostif.Selector
	for i := range set.HostEndpoints {
		if set.HostEndpoints[i].Node != node {
			continue
		}
		for _, s := range selectorsOf(&set.HostEndpoints[i]) {
			if !slices.Contains(out, s) {
				out = append(out, s)
			}
		}
	}
	return out
}

func selectorsOf(h *resource.HostEndpoint) []hostif.Selector {
	switch {
	case h.InterfaceName == allInterfaces:
		return []hostif.Selector{{Kind: hostif.ByHost}}
	case isGlob(h.InterfaceName):
		return []hostif.Selector{{Kind: hostif.ByGlob, Pattern: h.InterfaceName}}
	case h.InterfaceName != "":
		return []hostif.Selector{{Kind: hostif.ByName, Pattern: h.InterfaceName}}
	}
	var out []hostif.Selector
	for _, a := range h.ExpectedIPs {
		out = append(out, hostif.Selector{Kind: hostif.ByNet, Net: netip.PrefixFrom(a, a.BitLen())})
	}
	return out
}

func isGlob(name string) bool { return strings.ContainsAny(name, `*?[\`) }

// specificity are the ways in which a HostEndpoint can be about an interface, the most specific first.
var specificity = []func(*resource.HostEndpoint, *Interface) bool{namesOrExpects, globs, meansAll}

// namesOrExpects: where a name is written, expected addresses say nothing about which interface is meant.
func namesOrExpects(h *resource.HostEndpoint, i *Interface) bool {
	if h.InterfaceName == i.Name || slices.ContainsFunc(selectorsOf(h), func(s hostif.Selector) bool {
		return (s.Kind == hostif.ByName || s.Kind == hostif.ByNet) && slices.Contains(i.FoundBy, s)
	}) {
		return true
	}
	return h.InterfaceName == "" &&
		slices.ContainsFunc(h.ExpectedIPs, func(a netip.Addr) bool { return slices.Contains(i.Addresses, a) })
}

func globs(h *resource.HostEndpoint, i *Interface) bool {
	if h.InterfaceName == allInterfaces || !isGlob(h.InterfaceName) {
		return false
	}
	matched, err := path.Match(h.InterfaceName, i.Name)
	return matched && err == nil
}

func meansAll(h *resource.HostEndpoint, i *Interface) bool {
	return h.InterfaceName == allInterfaces && i.Host
}

// Assign gives each interface of a node the one endpoint that it has: of the HostEndpoints of that node that are about
// it, the most specific, and of several, the one with the smallest name. A name or an expected address is more specific
// than a glob, and that than "*". The implicit endpoint comes last. Endpoints without an interface are not in the
// result.
func Assign(set *resource.Set, node Node) []Endpoint {
	written := make([]Endpoint, len(set.HostEndpoints))
	implicit := Endpoint{Name: Implicit, Labels: node.Labels}
	for n := range node.Interfaces {
		i := &node.Interfaces[n]
		if at := endpointOf(set, node.Name, i); at >= 0 {
			h, e := &set.HostEndpoints[at], &written[at]
			e.Name, e.Resource, e.Labels = h.Name, h, h.Labels
			e.add(i)
		} else if i.Selected {
			implicit.add(i)
		}
	}
	endpoints := append(written, implicit)
	endpoints = slices.DeleteFunc(endpoints, func(e Endpoint) bool { return len(e.Interfaces) == 0 })
	for n := range endpoints {
		e := &endpoints[n]
		if e.Resource != nil && len(e.Resource.ExpectedIPs) > 0 {
			e.Addresses = slices.Clone(e.Resource.ExpectedIPs)
		}
		slices.SortFunc(e.Addresses, netip.Addr.Compare)
		e.Addresses = slices.Compact(e.Addresses)
	}
	return endpoints
}

// endpointOf returns the index of an interface's HostEndpoint, -1 if none is about it.
func endpointOf(set *resource.Set, node string, i *Interface) int {
	for _, about := range specificity {
		for n := range set.HostEndpoints { // which are sorted by name
			if h := &set.HostEndpoints[n]; h.Node == node && about(h, i) {
				return n
			}
		}
	}
	return -1
}

func (e *Endpoint) add(i *Interface) {
	e.Interfaces = append(e.Interfaces, i.Name)
	e.Addresses = append(e.Addresses, i.Addresses...)
}
