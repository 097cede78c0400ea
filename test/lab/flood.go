// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	floodBatch = 64
	// The range of source ports, as in the namespaces' sysctl: above the default failsafe ports.
	floodFirstPort, floodPorts = 11000, 65536 - 11000
)

// FloodUDP sends datagrams one way, each a new flow: the source port moves on with every packet, the source
// address with every batch. It writes UDP headers to raw sockets, many packets a system call, for what a
// socket per flow costs would hide what the receiver pays.
func FloodUDP(ns *NS, l Load) (report Report, err error) {
	l.defaults()
	err = In(ns, func() error {
		target, family := sockaddr(netip.AddrPortFrom(l.Target.Addr(), 0))
		var sockets []int
		defer func() {
			for _, fd := range sockets {
				unix.Close(fd)
			}
		}()
		for n := range max(1, len(l.Sources)) {
			fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
			if err != nil {
				return os.NewSyscallError("socket", err)
			}
			sockets = append(sockets, fd)
			if len(l.Sources) > 0 {
				sa, _ := sockaddr(netip.AddrPortFrom(l.Sources[n], 0))
				if err := unix.Bind(fd, sa); err != nil {
					return os.NewSyscallError("bind", err)
				}
			}
			if family == unix.AF_INET6 {
				// IPv6 wants a checksum in the UDP header, at offset 6; IPv4 takes 0 for none.
				if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_CHECKSUM, 6); err != nil {
					return os.NewSyscallError("setsockopt", err)
				}
			}
			if err := unix.Connect(fd, target); err != nil {
				return os.NewSyscallError("connect", err)
			}
		}
		report, err = l.flood(sockets)
		return err
	})
	if err != nil {
		return report, fmt.Errorf("flood %s from %s: %w", l.Target, ns.Name, err)
	}
	return report, nil
}

func (l *Load) flood(sockets []int) (report Report, err error) {
	const header = 8
	packets := make([][]byte, floodBatch)
	iovecs := make([]unix.Iovec, floodBatch)
	batch := make([]unix.Mmsghdr, floodBatch)
	for i := range batch {
		packets[i] = make([]byte, header+l.Payload)
		binary.BigEndian.PutUint16(packets[i][2:], l.Target.Port())
		binary.BigEndian.PutUint16(packets[i][4:], uint16(len(packets[i])))
		iovecs[i].Base = &packets[i][0]
		iovecs[i].SetLen(len(packets[i]))
		batch[i].Hdr.Iov = &iovecs[i]
		batch[i].Hdr.SetIovlen(1)
	}
	begin := time.Now()
	for port, turn := 0, 0; ; turn++ {
		report.Elapsed = time.Since(begin)
		if l.Duration > 0 && report.Elapsed >= l.Duration || l.Count > 0 && report.OK >= l.Count {
			return report, nil
		}
		n := floodBatch
		if l.Count > 0 {
			n = int(min(uint64(n), l.Count-report.OK))
		}
		for i := range n {
			binary.BigEndian.PutUint16(packets[i], uint16(floodFirstPort+port))
			binary.BigEndian.PutUint16(packets[i][6:], 0)
			port = (port + 1) % floodPorts
		}
		sent, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(sockets[turn%len(sockets)]),
			uintptr(unsafe.Pointer(&batch[0])), uintptr(n), 0, 0, 0)
		switch {
		case errno == 0:
			report.OK += uint64(sent)
			l.Tally.OK.Add(uint64(sent))
			report.LastOK = time.Since(begin)
		case errors.Is(errno, unix.ENOBUFS), errors.Is(errno, unix.ECONNREFUSED):
			// A full queue, or the answer to an earlier packet.
			report.Failed++
		case errors.Is(errno, unix.EINTR), errors.Is(errno, unix.EAGAIN):
		default:
			return report, os.NewSyscallError("sendmmsg", errno)
		}
	}
}
