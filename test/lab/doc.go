// SPDX-License-Identifier: Apache-2.0

// Package lab builds the small network that the integration tests, the demo and the benchmark share: a node
// and its client, each a network namespace of its own, with the traffic and the instruments to see what
// happened to it.
//
//	client ──────────── uplink 0: eth0 ── eth0 ──────────── node ── cni0 ── pods, by the real chain
//	198.18.0.2 … .9     2001:db8:0::/64   the node's default route    198.18.0.1
//
// Everything goes through netlink and system calls: a machine needs no ip, nft or conntrack. What is exec'ed
// is built from this module: cnitool, the plugins, and this very program as a watchdog, which cleans up
// behind a lab whose process was killed.
//
// Functions return errors and work in any program; [New] is the thin layer for tests, [CloseOnSignal] the
// one for main programs. Out of scope: packet crafting, and anything that leaves this machine.
package lab
