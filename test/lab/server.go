// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Server is a small service in a namespace. Close of the lab closes it.
type Server struct {
	served   atomic.Uint64
	accepted atomic.Uint64

	loop func(wake int) // runs until wake is readable
	wake int
	done chan struct{}
	stop sync.Once
}

// Served is the number of requests answered, of datagrams received for a sink.
func (s *Server) Served() uint64 { return s.served.Load() }

// Accepted is the number of TCP connections accepted.
func (s *Server) Accepted() uint64 { return s.accepted.Load() }

// Close ends the service and its connections.
func (s *Server) Close() error {
	s.stop.Do(func() {
		unix.Write(s.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
		<-s.done
		unix.Close(s.wake)
	})
	return nil
}

// Reply is what a TCP server answers to each line it reads.
const Reply = "+OK\n"

// ServeTCP answers each line with Reply, on every address of both families, and closes a connection when the
// client does. It is one thread on epoll, so that what a load measures is the network rather than a scheduler.
func ServeTCP(ns *NS, port uint16) (*Server, error) {
	s := &Server{}
	err := serve(ns, s, unix.SOCK_STREAM, port, func(fd int) error {
		s.loop = func(wake int) { s.tcpLoop(fd, wake) }
		return unix.Listen(fd, 4096)
	})
	if err != nil {
		return nil, fmt.Errorf("serve tcp/%d in %s: %w", port, ns.Name, err)
	}
	return s, nil
}

// ServeUDP returns each datagram to its sender, on every address of both families.
func ServeUDP(ns *NS, port uint16) (*Server, error) { return serveUDP(ns, port, true) }

// SinkUDP counts datagrams and answers none.
func SinkUDP(ns *NS, port uint16) (*Server, error) { return serveUDP(ns, port, false) }

func serveUDP(ns *NS, port uint16, echo bool) (*Server, error) {
	s := &Server{}
	err := serve(ns, s, unix.SOCK_DGRAM, port, func(fd int) error {
		s.loop = func(wake int) { s.udpLoop(fd, wake, echo) }
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20)
	})
	if err != nil {
		return nil, fmt.Errorf("serve udp/%d in %s: %w", port, ns.Name, err)
	}
	return s, nil
}

// serve makes the socket, has ready finish it, and starts the loop.
func serve(ns *NS, s *Server, kind int, port uint16, ready func(fd int) error) error {
	fd := -1
	err := In(ns, func() (err error) {
		if fd, err = unix.Socket(unix.AF_INET6, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
			return os.NewSyscallError("socket", err)
		}
		if kind == unix.SOCK_STREAM {
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		}
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
		if err := unix.Bind(fd, &unix.SockaddrInet6{Port: int(port)}); err != nil {
			return os.NewSyscallError("bind", err)
		}
		return ready(fd)
	})
	if err == nil {
		s.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	}
	if err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		return err
	}
	s.done = make(chan struct{})
	go func() {
		defer close(s.done)
		defer unix.Close(fd)
		s.loop(s.wake)
	}()
	if ns.lab != nil {
		ns.lab.Defer(s.Close)
	}
	return nil
}

func (s *Server) tcpLoop(lis, wake int) {
	ep, err := newPoller(lis, wake)
	if err != nil {
		return
	}
	defer ep.close()
	conns := map[int]struct{}{}
	defer func() {
		for fd := range conns {
			unix.Close(fd)
		}
	}()
	buf := make([]byte, 4096)
	for {
		events, err := ep.wait(-1)
		if err != nil {
			return
		}
		for _, e := range events {
			switch fd := int(e.Fd); fd {
			case wake:
				return
			case lis:
				for range 64 {
					conn, _, err := unix.Accept4(lis, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
					if err != nil {
						break
					}
					s.accepted.Add(1)
					if ep.add(conn, unix.EPOLLIN) != nil {
						unix.Close(conn)
						continue
					}
					conns[conn] = struct{}{}
				}
			default:
				// A child between fork and exec holds connections that are closed here, and epoll tells of them
				// still, by a number that may be something else's by now.
				if _, ours := conns[fd]; !ours {
					continue
				}
				n, err := unix.Read(fd, buf)
				if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
					continue
				}
				if n > 0 {
					for range bytes.Count(buf[:n], []byte{'\n'}) {
						// Before the client can know of it. Replies are a few bytes: a full socket buffer
						// is a client that never reads.
						s.served.Add(1)
						if _, err = unix.Write(fd, []byte(Reply)); err != nil {
							break
						}
					}
				}
				if n <= 0 || err != nil {
					delete(conns, fd)
					unix.Close(fd)
				}
			}
		}
	}
}

func (s *Server) udpLoop(fd, wake int, echo bool) {
	ep, err := newPoller(fd, wake)
	if err != nil {
		return
	}
	defer ep.close()
	buf := make([]byte, 65536)
	for {
		events, err := ep.wait(-1)
		if err != nil {
			return
		}
		for _, e := range events {
			if int(e.Fd) == wake {
				return
			}
			for range 64 {
				// An ICMP error of an earlier answer comes as an error here, and is none of ours.
				n, from, err := unix.Recvfrom(fd, buf, 0)
				if err != nil {
					break
				}
				s.served.Add(1)
				if echo {
					unix.Sendto(fd, buf[:n], 0, from)
				}
			}
		}
	}
}

// poller is a small epoll.
type poller struct {
	fd     int
	events [256]unix.EpollEvent
}

// newPoller polls fds for reading.
func newPoller(fds ...int) (*poller, error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err
	}
	p := &poller{fd: ep}
	for _, fd := range fds {
		if err := p.add(fd, unix.EPOLLIN); err != nil {
			p.close()
			return nil, err
		}
	}
	return p, nil
}

func (p *poller) add(fd int, events uint32) error {
	return unix.EpollCtl(p.fd, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events, Fd: int32(fd)})
}

// wait returns what is ready, nothing after milliseconds; -1 waits for ever.
func (p *poller) wait(milliseconds int) ([]unix.EpollEvent, error) {
	for {
		n, err := unix.EpollWait(p.fd, p.events[:], milliseconds)
		if err == nil {
			return p.events[:n], nil
		}
		if !errors.Is(err, unix.EINTR) {
			return nil, err
		}
	}
}

func (p *poller) close() { unix.Close(p.fd) }
