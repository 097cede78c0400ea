// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"os/exec"
	"time"
)

// Cmd is an exec.Cmd whose process starts inside a network namespace. It shares all else with this process,
// mounts above all: what it pins to a bpf file system stays. Close of the lab ends what still runs.
type Cmd struct {
	*exec.Cmd
	ns *NS
}

// Command is exec.Command inside ns.
func Command(ns *NS, name string, args ...string) *Cmd {
	return &Cmd{Cmd: exec.Command(name, args...), ns: ns}
}

// CommandContext is exec.CommandContext inside ns.
func CommandContext(ctx context.Context, ns *NS, name string, args ...string) *Cmd {
	return &Cmd{Cmd: exec.CommandContext(ctx, name, args...), ns: ns}
}

// Start starts the process. A child inherits the namespace of the thread that forks it.
func (c *Cmd) Start() error { return In(c.ns, c.Cmd.Start) }

// Run starts the process and waits for it.
func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// Output runs the process and returns its standard output.
func (c *Cmd) Output() ([]byte, error) {
	var stdout bytes.Buffer
	c.Stdout = &stdout
	err := c.Run()
	return stdout.Bytes(), err
}

// CombinedOutput runs the process and returns its standard output and error.
func (c *Cmd) CombinedOutput() ([]byte, error) {
	var both bytes.Buffer
	c.Stdout, c.Stderr = &both, &both
	err := c.Run()
	return both.Bytes(), err
}

// Dial connects from inside ns; network is "tcp" or "udp". The zero Addr as source leaves it to the kernel.
func Dial(ns *NS, network string, source netip.Addr, target netip.AddrPort, timeout time.Duration) (conn net.Conn, err error) {
	d := net.Dialer{Timeout: timeout}
	d.SetMultipathTCP(false)
	if source.IsValid() {
		switch network {
		case "tcp":
			d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(source, 0))
		default:
			d.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(source, 0))
		}
	}
	err = In(ns, func() error {
		conn, err = d.Dial(network, target.String())
		return err
	})
	return conn, err
}

// Listen is net.Listen inside ns.
func Listen(ns *NS, network, address string) (lis net.Listener, err error) {
	var c net.ListenConfig
	c.SetMultipathTCP(false)
	err = In(ns, func() error {
		lis, err = c.Listen(context.Background(), network, address)
		return err
	})
	return lis, err
}

// ListenPacket is net.ListenPacket inside ns.
func ListenPacket(ns *NS, network, address string) (conn net.PacketConn, err error) {
	err = In(ns, func() error {
		conn, err = net.ListenPacket(network, address)
		return err
	})
	return conn, err
}
