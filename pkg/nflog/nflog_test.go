// SPDX-License-Identifier: Apache-2.0

package nflog

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"github.com/mdlayher/netlink/nltest"
	nl "github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/pkg/nft"
	"github.com/untracked-cni/untracked/pkg/policy"
	"github.com/untracked-cni/untracked/test/lab"
)

// patience is for what has to arrive: only a test that fails takes that long.
const patience = 10 * time.Second

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// enterNetns puts the test into a new network namespace, in which our table logs UDP to port 9 of this host.
func enterNetns(t *testing.T) (prefix string) {
	t.Helper()
	lab.Enter(t)
	lo, err := nl.LinkByName("lo")
	must(t, err)
	must(t, nl.LinkSetUp(lo))
	udp := uint8(policy.UDP)
	rules := []policy.Rule{{
		Policy: "test", Action: policy.Log, Protocol: &udp,
		Destination: policy.Entity{Ports: []policy.PortRange{{First: 9, Last: 9}}},
	}}
	err = (&nft.Table{Mark: 1, Endpoints: []nft.Endpoint{{Interface: "lo", Rules: rules}}}).Apply()
	if errors.Is(err, nft.ErrNotSupported) || errors.Is(err, nft.ErrNoLog) {
		t.Skip(err)
	}
	must(t, err)
	return nft.LogPrefix(policy.IDs(rules)[0])
}

func openReader(t *testing.T) *Reader {
	t.Helper()
	r, err := Open(nft.LogGroup, nft.LogBytes)
	must(t, err)
	t.Cleanup(func() { r.Close() })
	return r
}

// read is the next message.
func read(t *testing.T, r *Reader) *Message {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	m, err := r.Read(ctx)
	must(t, err)
	return m
}

// send sends a datagram. Nobody receives it.
func send(t *testing.T, host string, payload []byte) {
	t.Helper()
	fd, to := -1, unix.Sockaddr(nil)
	var err error
	if a := net.ParseIP(host); a.To4() != nil {
		to = &unix.SockaddrInet4{Port: 9, Addr: [4]byte(a.To4())}
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	} else {
		to = &unix.SockaddrInet6{Port: 9, Addr: [16]byte(a)}
		fd, err = unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	}
	must(t, err)
	defer unix.Close(fd)
	must(t, unix.Sendto(fd, payload, 0, to))
}

func TestRead(t *testing.T) {
	prefix := enterNetns(t)
	r := openReader(t)
	for _, tt := range []struct {
		host    string
		payload int
		want    Message
		header  int
	}{
		{"127.0.0.1", 5, Message{EtherType: unix.ETH_P_IP}, 20},
		{"127.0.0.1", 1000, Message{EtherType: unix.ETH_P_IP}, 20},
		{"::1", 0, Message{EtherType: unix.ETH_P_IPV6}, 40},
		{"::1", 1000, Message{EtherType: unix.ETH_P_IPV6}, 40},
	} {
		before := time.Now()
		send(t, tt.host, make([]byte, tt.payload))
		got := read(t, r)
		if got.Time.Before(before) || got.Time.After(time.Now()) || got.Time == got.Time.Round(0) {
			t.Errorf("%s: time %v, want one since %v with a monotonic reading", tt.host, got.Time, before)
		}
		if want := min(tt.header+8+tt.payload, nft.LogBytes); len(got.Packet) != want {
			t.Errorf("%s: %d bytes of the packet, want %d", tt.host, len(got.Packet), want)
		} else if port := binary.BigEndian.Uint16(got.Packet[tt.header+2:]); port != 9 {
			t.Errorf("%s: port %d in % x", tt.host, port, got.Packet)
		}
		tt.want.Prefix, tt.want.Hook, tt.want.Out = prefix, unix.NF_INET_LOCAL_OUT, 1
		got.Time, got.Packet = time.Time{}, nil
		if diff := cmp.Diff(&tt.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.host, diff)
		}
	}
}

// TestNoReader: without a reader packets are sent as ever, nothing gets into the kernel's own log, and nothing waits
// for a later reader.
func TestNoReader(t *testing.T) {
	logAllNamespaces(t)
	prefix := enterNetns(t)
	addWitness(t)
	kmsg, err := os.OpenFile("/dev/kmsg", os.O_RDONLY|unix.O_NONBLOCK, 0)
	must(t, err)
	defer kmsg.Close()
	_, err = kmsg.Seek(0, io.SeekEnd)
	must(t, err)
	must(t, kmsg.SetReadDeadline(time.Now().Add(patience)))

	send(t, "127.0.0.1", []byte("first"))
	buffer, line := make([]byte, 8192), ""
	for !strings.Contains(line, witness) { // it stands behind our table
		n, err := kmsg.Read(buffer)
		if errors.Is(err, unix.EPIPE) { // some lines were overwritten
			continue
		}
		must(t, err)
		if line = string(buffer[:n]); strings.Contains(line, prefix) {
			t.Fatalf("in the kernel's log: %s", line)
		}
	}
	r := openReader(t)
	send(t, "127.0.0.1", []byte("second"))
	if m := read(t, r); !strings.HasSuffix(string(m.Packet), "second") || m.Lost != 0 {
		t.Errorf("first message %+v", m)
	}
}

// witness begins what the table of that name writes to the kernel's log.
const witness = "untracked-test-witness"

// addWitness has the kernel's log tell of packets that our table has seen.
func addWitness(t *testing.T) {
	t.Helper()
	c, err := nftables.New()
	must(t, err)
	table := c.AddTable(&nftables.Table{Name: witness, Family: nftables.TableFamilyINet})
	chain := c.AddChain(&nftables.Chain{
		Name: "output", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityFilter,
	})
	c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		&expr.Log{Key: 1<<unix.NFTA_LOG_PREFIX | 1<<unix.NFTA_LOG_LEVEL, Level: expr.LogLevelInfo, Data: []byte(witness)},
	}})
	if err := c.Flush(); err != nil {
		t.Skipf("the kernel cannot log packets to its own log: %v", err)
	}
}

// logAllNamespaces lets namespaces other than the first one write to the kernel's log.
func logAllNamespaces(t *testing.T) {
	t.Helper()
	const file = "/proc/sys/net/netfilter/nf_log_all_netns"
	before, err := os.ReadFile(file)
	if err == nil {
		err = os.WriteFile(file, []byte("1"), 0)
	}
	if err != nil {
		t.Skipf("needs to be in the first network namespace: %v", err)
	}
	t.Cleanup(func() { os.WriteFile(file, before, 0) })
}

func TestBusy(t *testing.T) {
	enterNetns(t)
	first := openReader(t)
	for range 2 {
		_, err := Open(nft.LogGroup, nft.LogBytes)
		if !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), "nflog group 30062: another program reads it: the one with netlink port ") {
			t.Errorf("second reader: %v, want %v", err, ErrBusy)
		}
	}
	other, err := Open(nft.LogGroup+1, nft.LogBytes)
	must(t, err)
	must(t, other.Close())

	send(t, "127.0.0.1", []byte("x"))
	read(t, first)
	must(t, first.Close())
	second := openReader(t)
	send(t, "127.0.0.1", []byte("y"))
	read(t, second)
}

// TestAcknowledged: what comes together with the kernel's answer is not lost, be it before or behind it.
func TestAcknowledged(t *testing.T) {
	packet := func(prefix string) netlink.Message {
		return netlink.Message{
			Header: netlink.Header{Type: unix.NFNL_SUBSYS_ULOG<<8 | msgPacket},
			Data: append(make([]byte, 4), nltest.MustMarshalAttributes([]netlink.Attribute{
				{Type: attrPrefix, Data: append([]byte(prefix), 0)},
			})...),
		}
	}
	batches := [][]netlink.Message{
		{packet("1")},
		{packet("2"), {Header: netlink.Header{Type: netlink.Error}, Data: make([]byte, 4)}, packet("3"), packet("4")},
		{packet("5")},
	}
	r := &Reader{conn: nltest.Dial(func([]netlink.Message) ([]netlink.Message, error) {
		if len(batches) == 0 {
			return nil, errors.New("nothing is left")
		}
		next := batches[0]
		batches = batches[1:]
		return next, nil
	})}
	defer r.Close()
	must(t, r.acknowledged())
	var got []string
	for range 5 {
		got = append(got, read(t, r).Prefix)
	}
	if want := []string{"1", "2", "3", "4", "5"}; !slices.Equal(got, want) {
		t.Errorf("read %q, want %q", got, want)
	}
}

// TestNoPrivileges: that the group has no reader is not to be confused with that this process may not be one.
func TestNoPrivileges(t *testing.T) {
	enterNetns(t)
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		none := [2]unix.CapUserData{}
		if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
			done <- err
			return
		}
		_, err := Open(nft.LogGroup, nft.LogBytes)
		done <- err
	}()
	if err := <-done; !errors.Is(err, unix.EPERM) || errors.Is(err, ErrBusy) {
		t.Errorf("without privileges: %v, want %v", err, unix.EPERM)
	}
}

func TestContext(t *testing.T) {
	enterNetns(t)
	r := openReader(t)
	for range 3 {
		ctx, cancel := context.WithCancel(t.Context())
		wait := time.AfterFunc(10*time.Millisecond, cancel)
		if m, err := r.Read(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("%+v, %v, want %v", m, err, context.Canceled)
		}
		wait.Stop()
		if m, err := r.Read(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("%+v, %v, want %v at once", m, err, context.Canceled)
		}
		send(t, "::1", nil)
		read(t, r)
	}
}

// TestLost: what does not fit into the buffer of a slow reader is counted.
func TestLost(t *testing.T) {
	enterNetns(t)
	r := openReader(t)
	must(t, r.conn.SetReadBuffer(1)) // the kernel's minimum, which is some messages
	sent := byte(0)
	for ; sent < 30; sent++ {
		send(t, "127.0.0.1", []byte{sent})
	}
	next, lost := uint32(0), uint32(0)
	for ; lost == 0 && sent < nft.LogRate; sent++ {
		m := read(t, r)
		lost = m.Lost
		next += lost
		if number := uint32(m.Packet[len(m.Packet)-1]); number != next {
			t.Fatalf("message %d after a loss of %d, want %d", number, lost, next)
		}
		next++
		send(t, "127.0.0.1", []byte{sent}) // now there is room again
	}
	if lost == 0 {
		t.Errorf("nothing was lost of %d messages", sent)
	}
}
