// SPDX-License-Identifier: Apache-2.0

package nfnetlink

import (
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// dial opens a socket, whatever is in this namespace: nothing is changed there.
func dial(t *testing.T) *Conn {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to ask nf_tables")
	}
	c, err := Dial()
	if errors.Is(err, ErrNotSupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestRequests(t *testing.T) {
	c := dial(t)
	soon := func() time.Time { return time.Now().Add(10 * time.Second) }
	m, err := c.Get(soon(), unix.NFPROTO_UNSPEC, unix.NFT_MSG_GETGEN, nil)
	if errors.Is(err, ErrNotSupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	var id []byte
	if err := Decode(m, func(ad *netlink.AttributeDecoder) {
		if ad.Type() == unix.NFTA_GEN_ID {
			id = ad.Bytes()
		}
	}); err != nil || len(id) != 4 {
		t.Errorf("generation %x, %v", id, err)
	}
	if tables, err := c.Dump(soon(), unix.NFPROTO_UNSPEC, unix.NFT_MSG_GETTABLE, nil); err != nil {
		t.Errorf("tables %v, %v", tables, err)
	}
	e := netlink.NewAttributeEncoder()
	e.String(unix.NFTA_TABLE_NAME, "untracked-no-such-table")
	none, err := e.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if m, err := c.Get(soon(), unix.NFPROTO_INET, unix.NFT_MSG_GETTABLE, none); !errors.Is(err, unix.ENOENT) {
		t.Errorf("a table that is not there: %v, %v", m, err)
	}
	// A past deadline is an error, and the socket can be used again.
	if m, err := c.Dump(time.Now().Add(-time.Second), unix.NFPROTO_UNSPEC, unix.NFT_MSG_GETTABLE, nil); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("past the deadline: %v, %v", m, err)
	}
	if _, err := c.Get(soon(), unix.NFPROTO_UNSPEC, unix.NFT_MSG_GETGEN, nil); err != nil {
		t.Errorf("after the deadline: %v", err)
	}
}

// What interrupts a dump may leave nothing behind it that tells so but the dump's end.
func TestInterruptedDump(t *testing.T) {
	message := func(sequence uint32, typ netlink.HeaderType, flags netlink.HeaderFlags) netlink.Message {
		return netlink.Message{Header: netlink.Header{Type: typ, Flags: flags, Sequence: sequence}, Data: make([]byte, 4)}
	}
	const (
		object  = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWRULE
		done    = netlink.Done
		multi   = netlink.Multi
		changed = netlink.Multi | netlink.DumpInterrupted
	)
	for what, test := range map[string]struct {
		datagram    []netlink.Message
		interrupted bool
		replies     int
	}{
		"nothing":             {[]netlink.Message{message(7, done, multi)}, false, 0},
		"whole":               {[]netlink.Message{message(7, object, multi), message(7, object, multi), message(7, done, multi)}, false, 2},
		"by another object":   {[]netlink.Message{message(7, object, multi), message(7, object, changed), message(7, done, multi)}, true, 2},
		"nothing came after":  {[]netlink.Message{message(7, object, multi), message(7, done, changed)}, true, 1},
		"a former one was it": {[]netlink.Message{message(6, done, changed), message(7, object, multi), message(7, done, multi)}, false, 1},
	} {
		var c collector
		finished, err := c.add(7, test.datagram)
		if !finished || err != nil || c.interrupted != test.interrupted || len(c.replies) != test.replies {
			t.Errorf("%s: %+v, %v, %v", what, c, finished, err)
		}
	}
}

func TestDecode(t *testing.T) {
	for _, data := range [][]byte{nil, {0}, {0, 0, 0}, {2, 0, 0, 0, 9, 0, 1, 0, 'x'}, {2, 0, 0, 0, 1}} {
		n := 0
		if err := Decode(netlink.Message{Data: data}, func(*netlink.AttributeDecoder) { n++ }); err == nil || n > 0 {
			t.Errorf("% x: %v after %d attributes", data, err, n)
		}
	}
	n := 0
	if err := Decode(netlink.Message{Data: []byte{2, 0, 0, 0, 5, 0, 1, 0, 'x', 0, 0, 0}}, func(ad *netlink.AttributeDecoder) {
		n++
		if ad.Type() != 1 || string(ad.Bytes()) != "x" {
			t.Errorf("attribute %d, %q", ad.Type(), ad.Bytes())
		}
	}); err != nil || n != 1 {
		t.Errorf("%d attributes, %v", n, err)
	}
	if Family(netlink.Message{Data: []byte{2, 0, 0, 0}}) != unix.NFPROTO_IPV4 || Family(netlink.Message{}) != unix.NFPROTO_UNSPEC {
		t.Error("family")
	}
}

func TestAttributes(t *testing.T) {
	list := func(data []byte) (out string) {
		for typ, value := range Attributes(Body(netlink.Message{Data: data})) {
			out += fmt.Sprintf("%d=%s ", typ, value)
		}
		return out
	}
	for _, test := range []struct {
		data []byte
		want string
	}{
		{nil, ""},
		{[]byte{2, 0}, ""},
		{[]byte{2, 0, 0, 0}, ""},
		{[]byte{2, 0, 0, 0, 5, 0, 1, 0, 'x', 0, 0, 0, 6, 0, 2, 0x80, 'y', 'z'}, "1=x 2=yz "},
		{[]byte{2, 0, 0, 0, 4, 0, 1, 0, 9, 0, 2, 0, 'y'}, "1= "},           // cut short
		{[]byte{2, 0, 0, 0, 5, 0, 1, 0, 'x', 0, 0, 0, 3, 0, 2, 0}, "1=x "}, // shorter than its header
		{[]byte{2, 0, 0, 0, 0, 0, 0, 0, 5, 0, 1, 0, 'x', 0, 0, 0}, ""},     // of no length
		{[]byte{2, 0, 0, 0, 5, 0, 1, 0, 'x', 0, 0, 0, 1, 0}, "1=x "},       // half a header
	} {
		if got := list(test.data); got != test.want {
			t.Errorf("% x: %q, want %q", test.data, got, test.want)
		}
	}
}
