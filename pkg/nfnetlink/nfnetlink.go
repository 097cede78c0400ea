// SPDX-License-Identifier: Apache-2.0

// Package nfnetlink asks the kernel about nftables: requests with their replies, and dumps, each with a deadline. What
// the objects mean, and how they are written, is its callers' business.
package nfnetlink

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"os"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// ErrNotSupported is returned when the kernel has no nf_tables.
var ErrNotSupported = errors.New("kernel has no nf_tables for family inet (CONFIG_NF_TABLES, CONFIG_NF_TABLES_INET)")

// ErrChanging is returned when no dump was completed between two changes of what was asked for.
var ErrChanging = errors.New("the ruleset kept changing")

// most that a dump's datagram holds, see netlink_recvmsg. Single replies are shorter.
const most = 32 << 10

// Conn is a netlink socket of the network namespace that its thread was in. It is for one goroutine. Close it.
type Conn struct {
	*netlink.Conn
	buffer []byte
}

// Dial opens a socket in the calling thread's network namespace.
func Dial() (*Conn, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil, ErrNotSupported
	}
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	return &Conn{Conn: conn, buffer: make([]byte, 2*most)}, nil
}

// Message is a request about nftables objects of a family, 0 for any.
func Message(family uint8, typ uint16, flags netlink.HeaderFlags, body []byte) netlink.Message {
	return netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | typ), Flags: flags},
		Data:   append([]byte{family, unix.NFNETLINK_V0, 0, 0}, body...),
	}
}

// Family is that of the object that a reply is about.
func Family(m netlink.Message) uint8 {
	if len(m.Data) == 0 {
		return unix.NFPROTO_UNSPEC
	}
	return m.Data[0]
}

// Get asks for one object.
func (c *Conn) Get(end time.Time, family uint8, typ uint16, body []byte) (netlink.Message, error) {
	replies, _, err := c.execute(end, Message(family, typ, netlink.Request, body))
	if err == nil && len(replies) != 1 {
		err = fmt.Errorf("%d replies instead of one", len(replies))
	}
	if err != nil {
		return netlink.Message{}, err
	}
	return replies[0], nil
}

// Dump asks for a list of objects until it gets one that no change interrupted, or returns ErrChanging.
func (c *Conn) Dump(end time.Time, family uint8, typ uint16, body []byte) ([]netlink.Message, error) {
	for {
		replies, interrupted, err := c.execute(end, Message(family, typ, netlink.Request|netlink.Dump, body))
		if err != nil {
			return nil, err
		}
		if !interrupted {
			return replies, nil
		}
		if time.Now().After(end) {
			return nil, ErrChanging
		}
	}
}

// execute sends a request and collects the replies to it. The kernel does its work while it takes the message, so that
// the reply to one that was not refused is there at once.
func (c *Conn) execute(end time.Time, request netlink.Message) (replies []netlink.Message, interrupted bool, err error) {
	if err := c.SetDeadline(end); err != nil {
		return nil, false, err
	}
	sent, err := c.Send(request)
	if err != nil {
		return nil, false, err
	}
	var all collector
	for done := false; !done; {
		datagram, err := c.Read()
		if err != nil {
			return nil, false, err
		}
		if done, err = all.add(sent.Header.Sequence, datagram); err != nil {
			return nil, false, err
		}
	}
	return all.replies, all.interrupted, nil
}

// collector has the replies to one request.
type collector struct {
	replies []netlink.Message
	// interrupted says that what was asked for changed meanwhile.
	interrupted bool
}

// add takes in a datagram, of which some may answer former requests, and reports whether it was the last.
func (c *collector) add(sequence uint32, datagram []netlink.Message) (done bool, err error) {
	for _, m := range datagram {
		if m.Header.Sequence != sequence {
			continue
		}
		// Where what was left is gone, only the end of the dump says so.
		c.interrupted = c.interrupted || m.Header.Flags&netlink.DumpInterrupted != 0
		switch errno := ErrorOf(m); {
		case errno == unix.EINVAL || errno == unix.EOPNOTSUPP: // nfnetlink knows no such subsystem
			return false, ErrNotSupported
		case errno != 0:
			return false, errno
		case m.Header.Type == netlink.Done:
			return true, nil
		}
		c.replies = append(c.replies, m)
		if m.Header.Flags&netlink.Multi == 0 {
			return true, nil
		}
	}
	return false, nil
}

// ErrorOf is the error that a message tells of, 0 for none.
func ErrorOf(m netlink.Message) unix.Errno {
	if (m.Header.Type == netlink.Error || m.Header.Type == netlink.Done) && len(m.Data) >= 4 {
		return unix.Errno(-int32(binary.NativeEndian.Uint32(m.Data)))
	}
	return 0
}

// Read reads a datagram. Package netlink's own Receive does not say which message of a batch an error is
// about, and has the kernel cut dumps into small pieces: it walks over all that it told already for each.
func (c *Conn) Read() ([]netlink.Message, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	n := 0
	var failed error
	err = raw.Read(func(fd uintptr) bool {
		n, _, failed = unix.Recvfrom(int(fd), c.buffer, unix.MSG_DONTWAIT)
		return failed != unix.EAGAIN && failed != unix.EINTR
	})
	if err == nil && failed != nil {
		err = os.NewSyscallError("recvfrom", failed)
	}
	if err != nil {
		return nil, err
	}
	parsed, err := syscall.ParseNetlinkMessage(bytes.Clone(c.buffer[:n]))
	if err != nil {
		return nil, err
	}
	out := make([]netlink.Message, len(parsed))
	for i, m := range parsed {
		out[i] = netlink.Message{
			Header: netlink.Header{
				Length: m.Header.Len, Type: netlink.HeaderType(m.Header.Type), Flags: netlink.HeaderFlags(m.Header.Flags),
				Sequence: m.Header.Seq, PID: m.Header.Pid,
			},
			Data: m.Data,
		}
	}
	return out, nil
}

const header = 4 // struct nfgenmsg

// Decode calls each for every attribute of a reply.
func Decode(m netlink.Message, each func(*netlink.AttributeDecoder)) error {
	if len(m.Data) < header {
		return fmt.Errorf("reply of %d bytes", len(m.Data))
	}
	return DecodeAttributes(m.Data[header:], each)
}

// DecodeAttributes calls each for every attribute in b.
func DecodeAttributes(b []byte, each func(*netlink.AttributeDecoder)) error {
	ad, err := netlink.NewAttributeDecoder(b)
	if err != nil {
		return err
	}
	ad.ByteOrder = binary.BigEndian
	for ad.Next() {
		each(ad)
	}
	return ad.Err()
}

// Attributes yields the type and the value of each attribute in b, as far as they are well-formed. It is for what there
// is much of.
func Attributes(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofNlAttr {
			length := int(binary.NativeEndian.Uint16(b))
			typ := binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
			if length < unix.SizeofNlAttr || length > len(b) || !yield(typ, b[unix.SizeofNlAttr:length]) {
				return
			}
			aligned := (length + unix.NLA_ALIGNTO - 1) &^ (unix.NLA_ALIGNTO - 1)
			b = b[min(aligned, len(b)):]
		}
	}
}

// Body is the attributes of a reply.
func Body(m netlink.Message) []byte { return m.Data[min(header, len(m.Data)):] }
