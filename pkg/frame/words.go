// SPDX-License-Identifier: Apache-2.0

package frame

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/untracked-cni/untracked/pkg/policy"
)

// Words makes a frame of a packet in words, which is one of
//
//	tcp SRC:SPORT DST:DPORT      also udp, udplite and sctp; an IPv6 address stands in [brackets]
//	icmp SRC DST TYPE [CODE]     ICMPv6 where the addresses are IPv6, and icmpv6 or icmp6 says it must be
//	proto N SRC DST              any protocol that has no form of its own
//
// The frame is complete, with all lengths and checksums: a TCP SYN, an SCTP INIT, a datagram without data, an ICMP
// header with nothing behind it. TTL and hop limit are 64, but 255 for IPv6 neighbour discovery, which is none without.
//
// An error says how far the words were understood and gives an example of what would be right.
func Words(args []string) (*Frame, error) {
	// A shell may have kept the words together.
	args = strings.Fields(strings.Join(args, " "))
	if len(args) == 0 {
		return nil, fmt.Errorf("no packet given, want one such as %s", examplePorts("tcp"))
	}
	var f *Frame
	var err error
	var want, example string
	switch protocol, rest := args[0], args[1:]; protocol {
	case "tcp", "udp", "udplite", "sctp":
		want, example = protocol+" SRC:SPORT DST:DPORT", examplePorts(protocol)
		f, err = wordsPorts(protocol, rest)
	case "icmp":
		want, example = "icmp SRC DST TYPE [CODE]", "icmp 10.0.0.1 192.0.2.1 8 0"
		f, err = wordsICMP(rest, false)
	case "icmpv6", "icmp6":
		want, example = protocol+" SRC DST TYPE [CODE]", protocol+" 2001:db8::1 2001:db8::2 128 0"
		f, err = wordsICMP(rest, true)
	case "proto":
		want, example = "proto N SRC DST", "proto 47 10.0.0.1 192.0.2.1"
		f, err = wordsProtocol(rest)
	default:
		return nil, fmt.Errorf("%q: want tcp, udp, udplite, sctp, icmp, icmpv6 or proto first, as in %s", args[0], examplePorts("tcp"))
	}
	if err != nil {
		return nil, fmt.Errorf("%q: %w; want %s, as in %s", strings.Join(args, " "), err, want, example)
	}
	return f, nil
}

func examplePorts(protocol string) string { return protocol + " 10.0.0.1:40000 192.0.2.1:6379" }

func wordsPorts(protocol string, args []string) (*Frame, error) {
	if err := count(args, "SRC:SPORT", "DST:DPORT"); err != nil {
		return nil, err
	}
	src, err := endpoint(args[0])
	if err != nil {
		return nil, fmt.Errorf("source %q %w", args[0], err)
	}
	dst, err := endpoint(args[1])
	if err != nil {
		return nil, fmt.Errorf("source understood as %s, but destination %q %w", src, args[1], err)
	}
	if err := sameFamily(src.Addr(), dst.Addr()); err != nil {
		return nil, err
	}
	n, _ := policy.ProtocolNumber(protocol)
	return build(n, src.Addr(), dst.Addr(), portsHeader(n, src.Port(), dst.Port())), nil
}

func wordsICMP(args []string, v6 bool) (*Frame, error) {
	if len(args) == 3 {
		args = append(slices.Clone(args), "0")
	}
	if err := count(args, "SRC", "DST", "TYPE", "CODE"); err != nil {
		return nil, err
	}
	src, dst, err := addressPair(args[0], args[1])
	if err != nil {
		return nil, err
	}
	if v6 && src.Is4() {
		return nil, fmt.Errorf("addresses understood as %s and %s, but ICMPv6 goes between IPv6 addresses", src, dst)
	}
	var numbers [2]uint8
	for i, what := range []string{"type", "code"} {
		if numbers[i], err = number(args[2+i]); err != nil {
			return nil, fmt.Errorf("addresses understood as %s and %s, but %s %q %w", src, dst, what, args[2+i], err)
		}
	}
	protocol := uint8(policy.ICMP)
	if src.Is6() {
		protocol = policy.ICMPv6
	}
	return build(protocol, src, dst, []byte{numbers[0], numbers[1], 0, 0, 0, 0, 0, 0}), nil
}

func wordsProtocol(args []string) (*Frame, error) {
	if err := count(args, "N", "SRC", "DST"); err != nil {
		return nil, err
	}
	protocol, err := number(args[0])
	if err != nil {
		return nil, fmt.Errorf("protocol %q %w", args[0], err)
	}
	src, dst, err := addressPair(args[1], args[2])
	if err != nil {
		return nil, fmt.Errorf("protocol understood as %d, but %w", protocol, err)
	}
	switch name := policy.ProtocolName(protocol); {
	case policy.HasPorts(protocol):
		return nil, fmt.Errorf("protocol %d is %s, whose packets have ports; say %s", protocol, name, examplePorts(name))
	case protocol == policy.ICMP && src.Is4(), protocol == policy.ICMPv6 && src.Is6():
		return nil, fmt.Errorf("protocol %d is %s, whose packets have a type; say icmp %s %s TYPE CODE", protocol, name, src, dst)
	case src.Is6() && slices.Contains(extensionHeaders, protocol):
		return nil, fmt.Errorf("%d is an IPv6 extension header, behind which the protocol is", protocol)
	}
	return build(protocol, src, dst, nil), nil
}

// extensionHeaders are those that package packet follows.
var extensionHeaders = []uint8{0, 43, 44, 51, 60}

// count holds the words behind the first against what they should be.
func count(args []string, want ...string) error {
	switch {
	case len(args) < len(want):
		return fmt.Errorf("ends before %s", want[len(args)])
	case len(args) > len(want):
		return fmt.Errorf("%q is one word too many", args[len(want)])
	}
	return nil
}

// The errors of these begin behind the name and the text of what they are about.

func endpoint(s string) (netip.AddrPort, error) {
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return ap, checkAddress(ap.Addr())
	}
	if a, err := netip.ParseAddr(strings.Trim(s, "[]")); err != nil {
		return netip.AddrPort{}, errors.New("is no address with a port from 0 to 65535")
	} else if a.Is6() {
		return netip.AddrPort{}, errors.New("is an IPv6 address, which needs brackets and a port, as in [2001:db8::1]:53")
	}
	return netip.AddrPort{}, errors.New("has no port")
}

func addressPair(from, to string) (src, dst netip.Addr, err error) {
	if src, err = address(from); err != nil {
		return src, dst, fmt.Errorf("source %q %w", from, err)
	}
	if dst, err = address(to); err != nil {
		return src, dst, fmt.Errorf("source understood as %s, but destination %q %w", src, to, err)
	}
	return src, dst, sameFamily(src, dst)
}

func address(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(strings.Trim(s, "[]"))
	if err == nil {
		return a, checkAddress(a)
	}
	if _, err := netip.ParseAddrPort(s); err == nil {
		return a, errors.New("has a port, which this protocol has not")
	}
	return a, errors.New("is no address")
}

func checkAddress(a netip.Addr) error {
	switch {
	case a.Zone() != "":
		return errors.New("has a zone, which packets do not carry; leave it out")
	case a.Is4In6():
		return fmt.Errorf("is an IPv4 address in IPv6's notation; say %s", a.Unmap())
	}
	return nil
}

func sameFamily(src, dst netip.Addr) error {
	if src.Is4() != dst.Is4() {
		return fmt.Errorf("addresses understood as %s and %s, which are not of one family", src, dst)
	}
	return nil
}

func number(s string) (uint8, error) {
	n, err := strconv.ParseUint(s, 10, 8)
	if err != nil {
		return 0, errors.New("is no number from 0 to 255")
	}
	return uint8(n), nil
}
