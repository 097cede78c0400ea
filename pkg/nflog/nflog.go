// SPDX-License-Identifier: Apache-2.0

// Package nflog reads the packets that nftables' log statement sends to a group.
//
// It knows nothing of who logs and why, reads one group with a copy of each packet, and changes nothing that others
// would notice: the loggers of protocol families, which other readers of nflog bind first, stay as they are.
//
// All functions act in the network namespace of the calling OS thread; a Reader stays in that of Open.
package nflog

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

var (
	// ErrBusy is returned when another socket reads the group: there can be one only.
	ErrBusy = errors.New("another program reads it")
	// ErrNotSupported is returned when the kernel has no nflog.
	ErrNotSupported = errors.New("the kernel has no nflog (CONFIG_NETFILTER_NETLINK_LOG, module nfnetlink_log)")
)

// Message is a packet that was logged.
type Message struct {
	// Time is when the message was read, with a monotonic reading. The kernel tells a time only of packets that came
	// in, by a clock that may be set back.
	Time   time.Time
	Prefix string
	// Hook is the number of the hook in which it was logged (NF_INET_LOCAL_OUT, …).
	Hook uint8
	// In and Out are the indexes of the interfaces it came from and goes to, 0 for none.
	In, Out int
	// EtherType is the protocol of Packet, which begins with its network header and ends after the number of bytes
	// that the log statement or Open asks for.
	EtherType uint16
	Packet    []byte
	// Lost is how many messages were lost right before this one because nobody read them in time.
	Lost uint32
}

// What the kernel's linux/netfilter/nfnetlink_log.h calls NFULNL_… and NFULA_….
const (
	msgPacket, msgConfig = 0, 1

	cfgCmd, cfgMode, cfgQThresh, cfgFlags = 1, 2, 5, 6

	cmdBind        = 1
	modeCopyPacket = 2
	flagSeq        = 1

	attrPacketHdr, attrIfindexIn, attrIfindexOut = 1, 4, 5
	attrPayload, attrPrefix, attrSeq             = 9, 10, 12
)

// readBuffer is for some thousand messages of packets that are cut to 256 bytes.
const readBuffer = 2 << 20

// timeout bounds the kernel's answer to a request, which is there at once.
const timeout = 10 * time.Second

// Reader reads one group. It is for one goroutine. Close it.
type Reader struct {
	conn    *netlink.Conn
	pending []netlink.Message
	// next is the number of the next message if none gets lost.
	next uint32
}

// Open starts to read a group, up to the given number of bytes of each packet.
//
// Returns ErrBusy, with the reader in words, if there is one already, and ErrNotSupported. Needs CAP_NET_ADMIN.
func Open(group uint16, bytes uint32) (*Reader, error) {
	r, err := open(group, bytes)
	if err != nil {
		return nil, fmt.Errorf("read nflog group %d: %w", group, err)
	}
	return r, nil
}

func open(group uint16, bytes uint32) (*Reader, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil, ErrNotSupported
	}
	if err != nil {
		return nil, err
	}
	r := &Reader{conn: conn}
	if err := r.bind(group, bytes); err != nil {
		conn.Close()
		return nil, err
	}
	return r, nil
}

func (r *Reader) bind(group uint16, bytes uint32) error {
	if err := r.conn.SetReadBuffer(readBuffer); err != nil {
		return err
	}
	// Messages are numbered, so that there is no need for an error that says only that some are lost.
	if err := r.conn.SetOption(netlink.NoENOBUFS, true); err != nil {
		return err
	}
	a := netlink.NewAttributeEncoder()
	a.ByteOrder = binary.BigEndian
	a.Uint8(cfgCmd, cmdBind)
	a.Bytes(cfgMode, append(binary.BigEndian.AppendUint32(nil, bytes), modeCopyPacket, 0))
	// Each message is sent at once: what it costs is bounded by the limits of those who log.
	a.Uint32(cfgQThresh, 1)
	a.Uint16(cfgFlags, flagSeq)
	attributes, err := a.Encode()
	if err != nil {
		return err
	}
	header := binary.BigEndian.AppendUint16([]byte{unix.AF_UNSPEC, unix.NFNETLINK_V0}, group)
	if err := r.conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	_, err = r.conn.Send(netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_ULOG<<8 | msgConfig, Flags: netlink.Request | netlink.Acknowledge},
		Data:   append(header, attributes...),
	})
	if err == nil {
		err = r.acknowledged()
	}
	switch {
	case errors.Is(err, unix.EPERM):
		if port, ok := readerOf(group); ok {
			return fmt.Errorf("%w: the one with netlink port %d, which usually is its process id", ErrBusy, port)
		}
		return err
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP): // nfnetlink knows no such subsystem
		return ErrNotSupported
	case err != nil:
		return err
	}
	return r.conn.SetDeadline(time.Time{})
}

// acknowledged waits for the answer to the one request there is. Packets may come before it and with it.
func (r *Reader) acknowledged() error {
	for answered := false; !answered; {
		messages, err := r.conn.Receive()
		if err != nil {
			return err
		}
		for _, m := range messages {
			if m.Header.Type == netlink.Error {
				answered = true
			} else {
				r.pending = append(r.pending, m)
			}
		}
	}
	return nil
}

// readerOf finds the netlink port of a group's reader. The kernel calls a second one not permitted, as it does with
// one that has no privileges.
func readerOf(group uint16) (port uint32, ok bool) {
	f, err := os.Open("/proc/thread-self/net/netfilter/nfnetlink_log")
	if err != nil {
		return 0, false
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var number uint16
		if n, _ := fmt.Sscan(lines.Text(), &number, &port); n == 2 && number == group {
			return port, true
		}
	}
	return 0, false
}

// Read waits for the next message, or until the context ends: then it returns the context's error, and may be called
// again.
func (r *Reader) Read(ctx context.Context) (*Message, error) {
	for {
		for len(r.pending) == 0 {
			if err := r.receive(ctx); err != nil {
				return nil, err
			}
		}
		m := r.pending[0]
		r.pending = r.pending[1:]
		if m.Header.Type == unix.NFNL_SUBSYS_ULOG<<8|msgPacket {
			return r.parse(m)
		}
	}
}

func (r *Reader) receive(ctx context.Context) error {
	late := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		r.conn.SetReadDeadline(time.Now())
		close(late)
	})
	var err error
	r.pending, err = r.conn.Receive()
	if !stop() {
		<-late
		r.conn.SetReadDeadline(time.Time{})
		if err != nil {
			err = ctx.Err()
		}
	}
	return err
}

func (r *Reader) parse(from netlink.Message) (*Message, error) {
	const header = 4 // struct nfgenmsg
	if len(from.Data) < header {
		return nil, fmt.Errorf("nflog message of %d bytes", len(from.Data))
	}
	ad, err := netlink.NewAttributeDecoder(from.Data[header:])
	if err != nil {
		return nil, fmt.Errorf("nflog message: %w", err)
	}
	ad.ByteOrder = binary.BigEndian
	m := &Message{Time: time.Now()}
	for ad.Next() {
		switch b := ad.Bytes(); ad.Type() {
		case attrPacketHdr:
			if len(b) >= 3 {
				m.EtherType, m.Hook = binary.BigEndian.Uint16(b), b[2]
			}
		case attrIfindexIn:
			m.In = int(ad.Uint32())
		case attrIfindexOut:
			m.Out = int(ad.Uint32())
		case attrPayload:
			m.Packet = b
		case attrPrefix:
			m.Prefix = ad.String()
		case attrSeq:
			n := ad.Uint32()
			m.Lost, r.next = n-r.next, n+1
		}
	}
	if err := ad.Err(); err != nil {
		return nil, fmt.Errorf("nflog message: %w", err)
	}
	return m, nil
}

// Close stops the reading of the group.
func (r *Reader) Close() error { return r.conn.Close() }
