// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// timeout bounds each step: a request with its reply, or a batch with its acknowledgement. The kernel does its
// work while it takes the message, so that the reply to a step that was not refused is there at once.
const timeout = 10 * time.Second

// ErrNotSupported is returned when the kernel has no nf_tables.
var ErrNotSupported = errors.New("kernel has no nf_tables for family inet (CONFIG_NF_TABLES, CONFIG_NF_TABLES_INET)")

// socket is a netlink socket of the calling thread's network namespace. Close it.
type socket struct{ *netlink.Conn }

func dial() (*socket, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil, ErrNotSupported
	}
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	return &socket{conn}, nil
}

// get asks for one object.
func (s *socket) get(typ uint16, body attributes) (netlink.Message, error) {
	replies, err := s.execute(message(typ, netlink.Request, body))
	if err == nil && len(replies) != 1 {
		err = fmt.Errorf("%d replies instead of one", len(replies))
	}
	if err != nil {
		return netlink.Message{}, err
	}
	return replies[0], nil
}

// dump asks for a list of objects until it gets one that no change interrupted.
func (s *socket) dump(typ uint16, body attributes) ([]netlink.Message, error) {
	end := time.Now().Add(timeout)
	for {
		replies, err := s.execute(message(typ, netlink.Request|netlink.Dump, body))
		if err != nil {
			return nil, err
		}
		interrupted := false
		for _, m := range replies {
			interrupted = interrupted || m.Header.Flags&netlink.DumpInterrupted != 0
		}
		if !interrupted {
			return replies, nil
		}
		if time.Now().After(end) {
			return nil, fmt.Errorf("the ruleset kept changing for %v", timeout)
		}
	}
}

// execute sends a request and collects the replies to it.
func (s *socket) execute(request netlink.Message) ([]netlink.Message, error) {
	if err := s.SetDeadline(time.Now().Add(timeout)); err != nil {
		return nil, err
	}
	sent, err := s.Send(request)
	if err != nil {
		return nil, err
	}
	var out []netlink.Message
	for {
		replies, err := s.receive()
		if err != nil {
			return nil, err
		}
		for _, m := range replies {
			if m.Header.Sequence != sent.Header.Sequence {
				continue
			}
			switch errno := errorOf(m); {
			case errno == unix.EINVAL || errno == unix.EOPNOTSUPP: // nfnetlink knows no such subsystem
				return nil, ErrNotSupported
			case errno != 0:
				return nil, errno
			case m.Header.Type == netlink.Done:
				return out, nil
			}
			out = append(out, m)
			if m.Header.Flags&netlink.Multi == 0 {
				return out, nil
			}
		}
	}
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
		replies, err := s.receive()
		if err != nil {
			return err
		}
		for _, m := range replies {
			if m.Header.Type != netlink.Error {
				continue
			}
			errno, n := errorOf(m), int(m.Header.Sequence-first) // the beginning of the batch is number 0
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

// errorOf is the error that a message tells of, 0 for none.
func errorOf(m netlink.Message) unix.Errno {
	if (m.Header.Type == netlink.Error || m.Header.Type == netlink.Done) && len(m.Data) >= 4 {
		return unix.Errno(-int32(binary.NativeEndian.Uint32(m.Data)))
	}
	return 0
}

// receive reads a datagram. Package netlink's own Receive does not say which message of a batch an error is
// about, and has the kernel cut dumps into small pieces: it walks over all that it told already for each.
func (s *socket) receive() ([]netlink.Message, error) {
	raw, err := s.SyscallConn()
	if err != nil {
		return nil, err
	}
	const most = 32 << 10 // of a dump's datagram, see netlink_recvmsg; single replies are shorter
	buffer := make([]byte, 2*most)
	n := 0
	var failed error
	err = raw.Read(func(fd uintptr) bool {
		n, _, failed = unix.Recvfrom(int(fd), buffer, unix.MSG_DONTWAIT)
		return failed != unix.EAGAIN && failed != unix.EINTR
	})
	if err == nil && failed != nil {
		err = os.NewSyscallError("recvfrom", failed)
	}
	if err != nil {
		return nil, err
	}
	parsed, err := syscall.ParseNetlinkMessage(buffer[:n])
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
