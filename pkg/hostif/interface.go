// SPDX-License-Identifier: Apache-2.0

package hostif

import "net/netip"

// Interface is a host interface at the moment it was asked for. Names and indexes are reused: a caller
// that acts later must be prepared for either to have moved on.
type Interface struct {
	Name  string
	Index int
	MTU   int
	// Driver is ethtool's name of the driver, empty where there is none. Valid after [Describe].
	Driver string
	// Kind is rtnetlink's name of the kind of a virtual device, such as "bridge" or "veth"; "device" for others.
	Kind string
	// LinkType is the kernel's name of the link layer, such as "ether", "infiniband" or "none".
	LinkType string
	// Layer3 says that packets begin with their IP header here, as on WireGuard and tun.
	Layer3 bool
	// Up is the administrative state; an interface that is up may still have no carrier.
	Up  bool
	XDP XDPState
	// Master is the bond, bridge, team or VRF that the interface is part of; the zero Master is none.
	Master Master
	// Addresses are the interface's own of global scope, with the length of the network's prefix, sorted, each once;
	// link-local ones are left out. Valid after [AddAddresses].
	Addresses []netip.Prefix
	// SelectedBy are the selectors that chose the interface, in the order they were given.
	SelectedBy []Selector
}

// Master names the device above an interface.
type Master struct {
	Name  string
	Index int
}

// XDPState is what the kernel says of an interface's XDP hook, whoever attached the program.
type XDPState struct {
	Attached bool
	// ProgID is 0 if none is attached, and in mode multi.
	ProgID uint32
	Mode   XDPMode
}

// XDPMode is how a program is attached.
type XDPMode string

// The modes, empty where none is attached. XDPMulti is a program on the network card together with one
// in the driver or the stack.
const (
	XDPNative  XDPMode = "native"
	XDPGeneric XDPMode = "generic"
	XDPOffload XDPMode = "offload"
	XDPMulti   XDPMode = "multi"
)
