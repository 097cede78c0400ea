// SPDX-License-Identifier: Apache-2.0

package nat

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/pkg/nfnetlink"
)

// Timeout bounds a Read whose context allows longer.
const Timeout = 2 * time.Second

// ErrIncomplete is returned together with what was found: there are more maps than could be read in the given time.
var ErrIncomplete = errors.New("not all maps of nat rules were read")

// Read returns the translations that lead to each of the addresses. There are none where the kernel has no nf_tables.
//
// It reads the rules of each table in one go, which costs the kernel 4 to 5 µs a rule, and looks only into those that
// translate. Maps come last, from which rules choose one of several destinations: kube-proxy's nftables mode writes one
// for each port of a Service. Each takes a request for which the kernel walks through the names of those before it: 1,000
// are read in 0.1 s, 5,000 in 1 to 2 s. What did not fit is ErrIncomplete; before that, a deadline is an error as any other.
func Read(ctx context.Context, addresses []netip.Addr) (map[netip.Addr][]Translation, error) {
	ctx, cancel := context.WithTimeout(ctx, Timeout)
	defer cancel()
	f := finder{wanted: newWanted(addresses), found: map[netip.Addr][]Translation{}}
	err := f.read(ctx)
	switch {
	case errors.Is(err, nfnetlink.ErrNotSupported):
		return f.found, nil
	case errors.Is(err, ErrIncomplete):
		return f.found, err
	case err != nil:
		return nil, fmt.Errorf("read nat rules: %w", err)
	}
	return f.found, nil
}

// finder is one Read under way.
type finder struct {
	wanted wanted
	found  map[netip.Addr][]Translation
}

func (f *finder) read(ctx context.Context) error {
	conn, err := dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	tables, err := conn.tables()
	if err != nil {
		return fmt.Errorf("list tables: %w", err)
	}
	var choosing []*rule
	for _, t := range tables {
		rules, err := conn.rules(t)
		if err != nil {
			return fmt.Errorf("table %s: %w", t, err)
		}
		for _, r := range rules {
			if r.mapName() != "" {
				choosing = append(choosing, r)
				continue
			}
			f.add(r.translation(nil))
		}
	}
	return f.readMaps(conn, choosing)
}

// readMaps finds the translations of rules that choose by a map.
func (f *finder) readMaps(conn *socket, choosing []*rule) (err error) {
	values := map[setName][][]byte{}
	for n, r := range choosing {
		name := setName{r.table, r.mapName()}
		if _, ok := values[name]; !ok {
			if values[name], err = conn.values(name); errors.Is(err, os.ErrDeadlineExceeded) {
				return fmt.Errorf("%w: those of %d of %d rules", ErrIncomplete, n, len(choosing))
			}
			if err != nil {
				return fmt.Errorf("table %s: map %s: %w", name.table, name.name, err)
			}
		}
		for _, v := range values[name] {
			f.add(r.translation(v))
		}
	}
	return nil
}

func (f *finder) add(t Translation, ok bool) {
	if !ok {
		return
	}
	for _, a := range f.wanted.within(t.First, t.Last) {
		f.found[a] = append(f.found[a], t)
	}
}

// wanted are the addresses that are asked about, in order.
type wanted []netip.Addr

func newWanted(addresses []netip.Addr) wanted {
	w := make(wanted, len(addresses))
	for i, a := range addresses {
		w[i] = a.Unmap().WithZone("")
	}
	slices.SortFunc(w, netip.Addr.Compare)
	return slices.Compact(w)
}

func (w wanted) within(first, last netip.Addr) []netip.Addr {
	from, _ := slices.BinarySearchFunc(w, first, netip.Addr.Compare)
	to, included := slices.BinarySearchFunc(w, last, netip.Addr.Compare)
	if included {
		to++
	}
	return w[from:max(from, to)]
}

type table struct {
	family uint8
	name   string
}

// families are those that can have nat chains, with nft's names.
var families = map[uint8]string{unix.NFPROTO_IPV4: "ip", unix.NFPROTO_IPV6: "ip6", unix.NFPROTO_INET: "inet"}

func (t table) String() string { return families[t.family] + " " + t.name }

// setName is a map's.
type setName struct {
	table
	name string
}

// socket is one with a deadline for all that is asked on it.
type socket struct {
	*nfnetlink.Conn
	end time.Time
}

func dial(ctx context.Context) (*socket, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	conn, err := nfnetlink.Dial()
	if err != nil {
		return nil, err
	}
	end, _ := ctx.Deadline()
	return &socket{conn, end}, nil
}

// tables lists those whose rules are in force and may translate.
func (s *socket) tables() ([]table, error) {
	replies, err := s.Dump(s.end, unix.NFPROTO_UNSPEC, unix.NFT_MSG_GETTABLE, nil)
	if err != nil {
		return nil, err
	}
	var out []table
	for _, m := range replies {
		t := table{family: nfnetlink.Family(m)}
		var flags uint32
		if err := nfnetlink.Decode(m, func(ad *netlink.AttributeDecoder) {
			switch ad.Type() {
			case unix.NFTA_TABLE_NAME:
				t.name = ad.String()
			case unix.NFTA_TABLE_FLAGS:
				flags = ad.Uint32()
			}
		}); err != nil {
			return nil, err
		}
		const dormant = 1 // NFT_TABLE_F_DORMANT
		if families[t.family] != "" && flags&dormant == 0 {
			out = append(out, t)
		}
	}
	return out, nil
}

// rules are those of a table that translate, none if it is gone.
func (s *socket) rules(t table) ([]*rule, error) {
	replies, err := s.Dump(s.end, t.family, unix.NFT_MSG_GETRULE, attribute(unix.NFTA_RULE_TABLE, t.name))
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return nil, err
	}
	var out []*rule
	for _, m := range replies {
		// One of a shape from another time is passed over: what is understood of the others counts.
		if r, err := parseRule(t, m); err == nil && r != nil {
			out = append(out, r)
		}
	}
	return out, nil
}

// values are the data of a map's elements, none if it is gone with its rule.
func (s *socket) values(name setName) ([][]byte, error) {
	body := append(attribute(unix.NFTA_SET_ELEM_LIST_TABLE, name.table.name), attribute(unix.NFTA_SET_ELEM_LIST_SET, name.name)...)
	replies, err := s.Dump(s.end, name.family, unix.NFT_MSG_GETSETELEM, body)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return nil, err
	}
	var out [][]byte
	for _, m := range replies {
		out = append(out, elementValues(m)...)
	}
	return out, nil
}

func attribute(typ uint16, text string) []byte {
	e := netlink.NewAttributeEncoder()
	e.String(typ, text)
	b, err := e.Encode()
	if err != nil {
		panic(err) // a name of the kernel's own is not too long
	}
	return b
}

// elementValues are the data of a map's elements in one reply.
func elementValues(m netlink.Message) (out [][]byte) {
	inside := func(b []byte, wanted uint16, each func([]byte)) {
		for typ, value := range nfnetlink.Attributes(b) {
			if typ == wanted {
				each(value)
			}
		}
	}
	inside(nfnetlink.Body(m), unix.NFTA_SET_ELEM_LIST_ELEMENTS, func(list []byte) {
		inside(list, unix.NFTA_LIST_ELEM, func(element []byte) {
			inside(element, unix.NFTA_SET_ELEM_DATA, func(data []byte) {
				inside(data, unix.NFTA_DATA_VALUE, func(value []byte) { out = append(out, value) })
			})
		})
	})
	return out
}
