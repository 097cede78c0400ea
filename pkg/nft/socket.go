// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"fmt"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/untracked-cni/untracked/pkg/nfnetlink"
)

// timeout bounds each step: a request with its reply, or a batch with its acknowledgement. The kernel does its
// work while it takes the message, so that the reply to a step that was not refused is there at once.
const timeout = 10 * time.Second

// ErrNotSupported is returned when the kernel has no nf_tables.
var ErrNotSupported = nfnetlink.ErrNotSupported

// socket is a netlink socket of the calling thread's network namespace. Close it.
type socket struct {
	*nfnetlink.Conn
	// of is the name of the table that is asked for, TableName if it is empty.
	of string
}

func (s *socket) ofTable() attributes { return ofTable(s.of) }

func dial() (*socket, error) {
	conn, err := nfnetlink.Dial()
	if err != nil {
		return nil, err
	}
	return &socket{Conn: conn}, nil
}

// get asks for one object.
func (s *socket) get(typ uint16, body attributes) (netlink.Message, error) {
	return s.Get(time.Now().Add(timeout), unix.NFPROTO_INET, typ, body)
}

// dump asks for a list of objects until it gets one that no change interrupted.
func (s *socket) dump(typ uint16, body attributes) ([]netlink.Message, error) {
	return s.Dump(time.Now().Add(timeout), unix.NFPROTO_INET, typ, body)
}

// commit sends a batch. It returns the first refusal; then the kernel has changed nothing.
func (s *socket) commit(b *batch) error {
	messages := append([]netlink.Message{boundary(unix.NFNL_MSG_BATCH_BEGIN)}, b.messages...)
	messages[len(messages)-1].Header.Flags |= netlink.Acknowledge
	messages = append(messages, boundary(unix.NFNL_MSG_BATCH_END))

	size := 4096
	for _, m := range messages {
		size += len(m.Data) + unix.SizeofNlMsghdr + unix.NLMSG_ALIGNTO
	}
	// A batch is one datagram. Past the system's limit (212992 bytes by default) this takes CAP_NET_ADMIN, as
	// does the batch.
	if err := s.SetWriteBuffer(size); err != nil {
		return fmt.Errorf("make room for %d bytes: %w", size, err)
	}
	// The first refusal is all we want: others may be lost.
	for _, option := range []netlink.ConnOption{netlink.CapAcknowledge, netlink.NoENOBUFS} {
		if err := s.SetOption(option, true); err != nil {
			return err
		}
	}
	if err := s.SetDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	sent, err := s.SendMessages(messages)
	if err != nil {
		return err
	}
	if err := s.SetDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	first := sent[0].Header.Sequence
	for {
		replies, err := s.Read()
		if err != nil {
			return err
		}
		for _, m := range replies {
			if m.Header.Type != netlink.Error {
				continue
			}
			errno, n := nfnetlink.ErrorOf(m), int(m.Header.Sequence-first) // the beginning of the batch is number 0
			switch {
			case errno == 0 && n == len(b.messages):
				return nil
			case errno == 0:
			case n == 0 && errno == unix.EOPNOTSUPP:
				return ErrNotSupported
			case n >= 1 && n <= len(b.names):
				return fmt.Errorf("%s: %w", b.names[n-1], errno)
			default:
				return errno
			}
		}
	}
}
