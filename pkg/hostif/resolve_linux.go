// SPDX-License-Identifier: Apache-2.0

package hostif

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"path"
	"slices"
	"time"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// socketTimeout bounds the wait for each netlink answer, so that a stuck kernel cannot hold up a pod.
const socketTimeout = 5 * time.Second

// Resolve returns the interfaces that the selectors choose, sorted by name, each once. What is absent is
// simply not in the result; see [Missing]. The error is about asking the kernel, and then nothing is known:
// a caller must not take an interface for gone.
//
// It asks for as little as the selectors need. Names and default routes cost one small request an interface
// and one filtered dump a family; only globs list all interfaces, only networks and ByHost list all addresses.
// The list of interfaces alone can be incomplete without an error: if each of five readings was interrupted by a
// change, netlinksafe logs that and returns what the last one had.
func Resolve(selectors []Selector) ([]Interface, error) {
	if len(selectors) == 0 {
		return nil, nil
	}
	h, err := netlinksafe.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open rtnetlink socket: %w", err)
	}
	defer h.Close()
	if err := h.SetSocketTimeout(socketTimeout); err != nil {
		return nil, fmt.Errorf("set timeout of rtnetlink socket: %w", err)
	}
	r := resolver{handle: h, byIndex: make(map[int]netlink.Link), chosen: make(map[int]*Interface)}
	for _, s := range selectors {
		if err := r.resolve(s); err != nil {
			return nil, err
		}
	}
	return r.result()
}

// resolver remembers what it asked, so that no selector asks again.
type resolver struct {
	handle  netlinksafe.Handle
	byIndex map[int]netlink.Link // a nil value is an interface known to be gone
	// all is true once byIndex holds every interface.
	all           bool
	addrs         []netlink.Addr
	defaultRoutes []int
	asked         struct{ addrs, routes bool }
	chosen        map[int]*Interface
}

func (r *resolver) resolve(s Selector) error {
	switch s.Kind {
	case ByName:
		return r.resolveName(s)
	case ByGlob:
		return r.resolveGlob(s)
	case ByNet:
		return r.resolveNet(s)
	case ByDefaultRoute:
		return r.resolveDefaultRoute(s)
	case ByHost:
		return r.resolveHost(s)
	}
	return fmt.Errorf("interface selector of unknown kind %q", s.Kind)
}

func (r *resolver) resolveName(s Selector) error {
	link, err := r.handle.LinkByName(s.Pattern)
	switch {
	case isNotFound(err):
		return nil
	case err != nil:
		return fmt.Errorf("look up interface %s: %w", s.Pattern, err)
	}
	r.byIndex[link.Attrs().Index] = link
	r.choose(link, s)
	return nil
}

func (r *resolver) resolveGlob(s Selector) error {
	if !r.all {
		links, err := r.handle.LinkList()
		if err != nil {
			return fmt.Errorf("list interfaces: %w", err)
		}
		for _, link := range links {
			r.byIndex[link.Attrs().Index] = link
		}
		r.all = true
	}
	for _, link := range r.byIndex {
		if link == nil || isLoopback(link) {
			continue
		}
		matched, err := path.Match(s.Pattern, link.Attrs().Name)
		if err != nil {
			return fmt.Errorf("interface glob %q: %w", s.Pattern, err)
		}
		if matched {
			r.choose(link, s)
		}
	}
	return nil
}

func (r *resolver) resolveNet(s Selector) error {
	if err := r.listAddrs(); err != nil {
		return err
	}
	for i := range r.addrs {
		a, ok := localAddr(&r.addrs[i])
		if !ok || !s.Net.Contains(a) {
			continue
		}
		if err := r.chooseIndex(r.addrs[i].LinkIndex, s); err != nil {
			return err
		}
	}
	return nil
}

func (r *resolver) resolveDefaultRoute(s Selector) error {
	if err := r.listDefaultRoutes(); err != nil {
		return err
	}
	for _, index := range r.defaultRoutes {
		if err := r.chooseIndex(index, s); err != nil {
			return err
		}
	}
	return nil
}

func (r *resolver) resolveHost(s Selector) error {
	if err := r.resolveDefaultRoute(s); err != nil {
		return err
	}
	if err := r.listAddrs(); err != nil {
		return err
	}
	for i := range r.addrs {
		p, ok := globalPrefix(&r.addrs[i])
		if !ok || p.IsSingleIP() {
			continue
		}
		link, err := r.link(r.addrs[i].LinkIndex)
		if err != nil {
			return err
		}
		if link != nil && !isLoopback(link) && link.Type() != "bridge" {
			r.choose(link, s)
		}
	}
	return nil
}

func (r *resolver) listAddrs() error {
	if r.asked.addrs {
		return nil
	}
	addrs, err := listAddrs()
	if err != nil {
		return err
	}
	r.addrs, r.asked.addrs = addrs, true
	return nil
}

func (r *resolver) listDefaultRoutes() error {
	if r.asked.routes {
		return nil
	}
	indexes, err := defaultRouteIndexes()
	if err != nil {
		return err
	}
	r.defaultRoutes, r.asked.routes = indexes, true
	return nil
}

// chooseIndex is choose for all but loopback and what vanished since the index was read.
func (r *resolver) chooseIndex(index int, s Selector) error {
	link, err := r.link(index)
	if err != nil {
		return err
	}
	if link != nil && !isLoopback(link) {
		r.choose(link, s)
	}
	return nil
}

// link returns nil for an interface that is gone.
func (r *resolver) link(index int) (netlink.Link, error) {
	link, known := r.byIndex[index]
	if known {
		return link, nil
	}
	link, err := r.handle.LinkByIndex(index)
	if err != nil && !isNotFound(err) {
		return nil, fmt.Errorf("look up interface of index %d: %w", index, err)
	}
	if err != nil {
		link = nil
	}
	r.byIndex[index] = link
	return link, nil
}

func (r *resolver) choose(link netlink.Link, s Selector) {
	index := link.Attrs().Index
	i, ok := r.chosen[index]
	if !ok {
		i = newInterface(link)
		r.chosen[index] = i
	}
	if !slices.Contains(i.SelectedBy, s) {
		i.SelectedBy = append(i.SelectedBy, s)
	}
}

func (r *resolver) result() ([]Interface, error) {
	out := make([]Interface, 0, len(r.chosen))
	for _, i := range r.chosen {
		if i.Master.Index != 0 {
			master, err := r.link(i.Master.Index)
			if err != nil {
				return nil, err
			}
			if master != nil {
				i.Master.Name = master.Attrs().Name
			}
		}
		out = append(out, *i)
	}
	slices.SortFunc(out, func(a, b Interface) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Index, b.Index))
	})
	return out, nil
}

// layer3Types are the link layers without a header of their own. Others, such as ipip or infiniband, have one that
// a tc program meets first, each its own.
var layer3Types = []string{"none", "ppp", "rawip"}

func newInterface(link netlink.Link) *Interface {
	a := link.Attrs()
	return &Interface{
		Kind:     link.Type(),
		Name:     a.Name,
		Index:    a.Index,
		MTU:      a.MTU,
		LinkType: a.EncapType,
		Layer3:   slices.Contains(layer3Types, a.EncapType),
		Up:       a.Flags&net.FlagUp != 0,
		XDP:      newXDPState(a.Xdp),
		Master:   Master{Index: a.MasterIndex},
	}
}

func newXDPState(x *netlink.LinkXdp) XDPState {
	if x == nil || !x.Attached {
		return XDPState{}
	}
	state := XDPState{Attached: true, ProgID: x.ProgId}
	switch x.AttachMode {
	case nl.XDP_ATTACHED_DRV:
		state.Mode = XDPNative
	case nl.XDP_ATTACHED_SKB:
		state.Mode = XDPGeneric
	case nl.XDP_ATTACHED_HW:
		state.Mode = XDPOffload
	default:
		state.Mode = XDPMulti
	}
	return state
}

func isLoopback(link netlink.Link) bool { return link.Attrs().Flags&net.FlagLoopback != 0 }

func isNotFound(err error) bool {
	var notFound netlink.LinkNotFoundError
	return errors.As(err, &notFound)
}
