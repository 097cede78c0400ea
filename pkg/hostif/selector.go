// SPDX-License-Identifier: Apache-2.0

// Package hostif knows the node's host interfaces: which of them a configuration selects, and what the
// datapath needs to know of each before a program is attached.
//
// Selectors are plain data and need no kernel. Everything that asks the kernel does so in the network
// namespace of the calling thread, reads only, and lives in files that end in _linux.go. Out of scope:
// attaching, detaching and pinning programs.
package hostif

import (
	"errors"
	"fmt"
	"net/netip"
	"path"
	"strings"

	"github.com/untracked-cni/untracked/pkg/netset"
)

// Kind says how a Selector chooses.
type Kind string

const (
	// ByName chooses the one interface of that name, or of that alternative name, loopback included.
	ByName Kind = "name"
	// ByGlob chooses by pattern, in the syntax of [path.Match]. It never chooses loopback.
	ByGlob Kind = "glob"
	// ByNet chooses the interfaces that hold an address inside a network. It never chooses loopback.
	ByNet Kind = "net"
	// ByDefaultRoute chooses the interfaces of the main table's default routes of both families.
	ByDefaultRoute Kind = "default-route"
	// ByHost chooses every interface that connects the host, rather than a pod, with others: those of ByDefaultRoute,
	// and those with a network on the link, which is an address of global scope with a prefix shorter than the address.
	// That leaves out pods' veths and what CNI plugins and kube-proxy park addresses on, such as flannel.1 and
	// kube-ipvs0. A bridge with a network, such as cni0 or docker0, is there for pods, too: it needs a default route.
	// It never chooses loopback. No list has a word for it.
	ByHost Kind = "host"
)

// DefaultRoute is the word that a list of selectors has for ByDefaultRoute.
const DefaultRoute = "default-route"

// Selector chooses host interfaces. Selectors are comparable with ==.
type Selector struct {
	Kind Kind
	// Pattern is the name or the glob. Valid for ByName and ByGlob.
	Pattern string
	// Net has its host bits cleared. Valid for ByNet.
	Net netip.Prefix
}

// String is the selector as [ParseSelectors] reads it, and "*" for ByHost, as HostEndpoints write it.
func (s Selector) String() string {
	switch s.Kind {
	case ByNet:
		return s.Net.String()
	case ByDefaultRoute:
		return DefaultRoute
	case ByHost:
		return "*"
	}
	return s.Pattern
}

// ParseSelectors reads a comma list of interface names, globs, addresses or CIDRs, and `default-route`.
// Spaces around an item are ignored. An error begins with the quoted item that it is about.
func ParseSelectors(s string) ([]Selector, error) {
	var out []Selector
	for _, item := range strings.Split(s, ",") {
		item = strings.TrimSpace(item)
		selector, err := parseSelector(item)
		if err != nil {
			return nil, fmt.Errorf("%q: %w; want an interface name, a glob such as eth*, a CIDR such as 10.0.0.0/8 or %s", item, err, DefaultRoute)
		}
		out = append(out, selector)
	}
	return out, nil
}

func parseSelector(item string) (Selector, error) {
	if item == DefaultRoute {
		return Selector{Kind: ByDefaultRoute}, nil
	}
	// Neither '/' nor ':' can be in an interface name. 10.0.0.1 can be one, but nobody means that.
	if _, err := netip.ParseAddr(item); err == nil || strings.ContainsAny(item, "/:") {
		p, err := netset.ParsePrefix(item)
		if err != nil {
			return Selector{}, errors.New("neither an interface name, which has no '/' and no ':', nor an address or CIDR")
		}
		return Selector{Kind: ByNet, Net: p}, nil
	}
	if i := strings.IndexFunc(item, isSpaceOrControl); i >= 0 {
		return Selector{}, errors.New("interface names have no white space or control characters")
	}
	if strings.ContainsAny(item, `*?[\`) {
		if _, err := path.Match(item, ""); err != nil {
			return Selector{}, errors.New("not a complete glob pattern")
		}
		return Selector{Kind: ByGlob, Pattern: item}, nil
	}
	return Selector{Kind: ByName, Pattern: item}, checkName(item)
}

// maxName is the kernel's IFNAMSIZ without the terminating zero byte.
const maxName = 15

// checkName holds a name against the kernel's rule, dev_valid_name in net/core/dev.c.
func checkName(name string) error {
	switch {
	case name == "":
		return errors.New("an empty item")
	case name == "." || name == "..":
		return errors.New("not an interface name")
	case len(name) > maxName:
		return fmt.Errorf("interface names have at most %d bytes, this has %d", maxName, len(name))
	}
	return nil
}

// isSpaceOrControl covers the kernel's isspace, which sees bytes as Latin-1, and more that no name has.
func isSpaceOrControl(r rune) bool { return r <= ' ' || r >= 0x7f && r <= 0xa0 }

// Missing returns the selectors that chose none of the found interfaces, in their order. found is what
// [Resolve] returned for a list that had all of them.
func Missing(selectors []Selector, found []Interface) []Selector {
	chose := make(map[Selector]bool)
	for i := range found {
		for _, s := range found[i].SelectedBy {
			chose[s] = true
		}
	}
	var missing []Selector
	for _, s := range selectors {
		if !chose[s] {
			missing = append(missing, s)
		}
	}
	return missing
}
