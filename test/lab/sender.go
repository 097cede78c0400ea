// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Sender sends many frames out of one interface. (SendFrame opens a socket for each, and the kernel takes its time to
// close one.)
type Sender struct {
	fd   int
	name string
}

// NewSender opens a sender. The caller must Close it.
func NewSender(ns *NS, ifname string) (*Sender, error) {
	fd, _, err := packetSocket(ns, ifname, 0)
	if err != nil {
		return nil, err
	}
	return &Sender{fd: fd, name: ifname + " in " + ns.Name}, nil
}

// Send sends an Ethernet frame, as it is.
func (s *Sender) Send(frame []byte) error {
	if _, err := unix.Write(s.fd, frame); err != nil {
		return fmt.Errorf("send frame of %d bytes out of %s: %w", len(frame), s.name, err)
	}
	return nil
}

// Close closes the sender's socket.
func (s *Sender) Close() error { return unix.Close(s.fd) }
