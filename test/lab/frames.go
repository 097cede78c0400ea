// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ErrNoFrame is returned when none came in time.
var ErrNoFrame = errors.New("no frame in time")

// SendFrame sends an Ethernet frame, as it is, out of an interface.
func SendFrame(ns *NS, ifname string, frame []byte) error {
	fd, index, err := packetSocket(ns, ifname, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: index}); err != nil {
		return fmt.Errorf("send frame of %d bytes out of %s in %s: %w", len(frame), ifname, ns.Name, err)
	}
	return nil
}

// Capture sees the frames that pass an interface in either direction, from its making on. A VLAN tag is not
// in the frame: the kernel has taken it off by then.
type Capture struct {
	fd  int
	buf []byte
}

// NewCapture starts to capture on an interface. The kernel keeps up to 8 MB for a slow reader.
func NewCapture(ns *NS, ifname string) (*Capture, error) {
	fd, _, err := packetSocket(ns, ifname, unix.ETH_P_ALL)
	if err != nil {
		return nil, err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("capture on %s in %s: %w", ifname, ns.Name, err)
	}
	return &Capture{fd: fd, buf: make([]byte, 1<<18)}, nil
}

// Next returns the next frame that match likes (nil: any), and whether it was leaving the interface; or
// ErrNoFrame when patience is over.
func (c *Capture) Next(patience time.Duration, match func(frame []byte, leaving bool) bool) (frame []byte, leaving bool, err error) {
	for deadline := time.Now().Add(patience); ; {
		left := time.Until(deadline)
		if left <= 0 {
			return nil, false, ErrNoFrame
		}
		poll := []unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(poll, int(left.Milliseconds())+1); err != nil && !errors.Is(err, unix.EINTR) {
			return nil, false, os.NewSyscallError("poll", err)
		}
		n, from, err := unix.Recvfrom(c.fd, c.buf, unix.MSG_DONTWAIT)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, false, os.NewSyscallError("recvfrom", err)
		}
		ll, ok := from.(*unix.SockaddrLinklayer)
		leaving := ok && ll.Pkttype == unix.PACKET_OUTGOING
		if frame := c.buf[:n]; match == nil || match(frame, leaving) {
			return append([]byte(nil), frame...), leaving, nil
		}
	}
}

// Close ends the capture.
func (c *Capture) Close() error { return unix.Close(c.fd) }

// packetSocket opens an AF_PACKET socket on an interface, to receive frames of the given type; 0 is none.
func packetSocket(ns *NS, ifname string, ethertype uint16) (fd, index int, err error) {
	err = In(ns, func() error {
		l, err := netlink.LinkByName(ifname)
		if err != nil {
			return err
		}
		index = l.Attrs().Index
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return os.NewSyscallError("socket", err)
		}
		var wire [2]byte
		binary.BigEndian.PutUint16(wire[:], ethertype)
		if err := unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: index, Protocol: binary.NativeEndian.Uint16(wire[:])}); err != nil {
			unix.Close(fd)
			return os.NewSyscallError("bind", err)
		}
		return nil
	})
	if err != nil {
		return -1, 0, fmt.Errorf("packet socket on %s in %s: %w", ifname, ns.Name, err)
	}
	return fd, index, nil
}
