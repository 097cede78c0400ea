// SPDX-License-Identifier: Apache-2.0

// Package nft writes and reads the nftables table `inet untracked`: the half of the datapath that XDP and tc
// cannot do.
//
//	table inet untracked {
//	  chain prerouting {            # raw priority: before connection tracking
//	    meta mark & 0x1000 != 0x1000 accept
//	    iifname "eth0" fib daddr type local notrack
//	    meta mark set meta mark & ~0x1000
//	  }
//	  chain awaited {               # jumped to, by way of chain in-eth0, for answers to calls of this host
//	    socket transparent 0 notrack                          # whose socket is found, transparent or not
//	    socket transparent 1 notrack
//	  }
//	  chain output {                # raw priority: what local sockets send
//	    oifname "eth0" goto out-eth0
//	  }
//	  chain out-eth0 {              # the egress list of one endpoint, in order
//	    … goto fragments-eth0                                 # a fragment but the first
//	    … icmpv6 type 133-136 accept                          # neighbour discovery
//	    tcp sport 22 counter name "out-eth0-…" accept         # Failsafe
//	    ip daddr @net4-… counter name "out-eth0-…" drop       # Deny
//	    udp sport 53 counter name "out-eth0-…" notrack accept # Allow
//	    tcp sport . ip daddr @rules4-… counter name tcp sport map @counters4-… notrack accept # many Allows, see below
//	    jump tier1.out-eth0                                   # a tier with a Pass
//	    tcp dport 80 counter name "out-eth0-…" limit rate 100/second burst 100 packets log prefix "untracked …" group 30062 snaplen 256
//	    icmp type { … } goto quoted4-eth0                     # an error: about which packet?
//	  }
//	  chain tier1.out-eth0 {
//	    udp dport 123 counter name "out-eth0-…" return        # Pass: on with the next tier
//	  }
//	  chain quoted4-eth0 { … }      # the same list, asked about the quoted packet turned round
//	}
//
// A rule that logs has no verdict: the limit holds back the report, and not the packet. Reports go to [LogGroup], which
// package nflog reads.
//
// A packet would pay for each rule that it passes. So rules that are alike but for ports or addresses, such as those that
// auto-return makes of what a host serves, are written as one (see group): a set tells whether any of them matches, and
// a map tells whose counter it is, by a field in which no two of them share a value.
//
//	set rules4-…    { type inet_service . ipv4_addr; elements = { 6379 . 10.0.0.0/8, 5432 . 10.1.0.0/16, … } }
//	map counters4-… { type inet_service : counter;   elements = { 6379 : "out-eth0-…", 5432 : "out-eth0-…", … } }
//
// Where the rules differ in one field only, the map alone does both. A set that is large, or looked up by many rules,
// has a name, which depends on its content, or on what it is a list of. Others stand in the rule.
//
// [policy.Evaluate] is the specification of the output half. These differences are known, all about packets that
// hardly any socket sends:
//   - a transport header that is cut short behind the field a rule asks for counts as known;
//   - what follows an IPv6 authentication header is not seen: the protocol is 51;
//   - a quoted packet with IPv4 options, IPv6 extension headers or a fragment offset is not looked at;
//   - an IPv4-mapped IPv6 address is an IPv6 address.
//
// The ports of pods have a table of their own, see [PodsTable].
//
// The table belongs to this package alone: [Table.Apply] removes whatever else it finds in it. Nothing here runs
// the nft command, but nft can list all of it, and load what it listed.
//
// All functions act in the network namespace of the calling OS thread.
package nft
