/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * From bytes to the fields that rules can match.
 *
 * pkg/packet is the same parser in Go and the reference for this one. Both follow what the kernel's own IP
 * stack would do with the packet: lengths come from the IP header, never from padding behind it.
 *
 * The verifier follows every path through the parser and, behind each, all that comes after it. It gives a
 * path up where it has seen a wider state at the same place. So the way a header was reached (VLAN tags, IP
 * options, kinds of extension headers) is kept from it: offsets and lengths are opaque() and masked, and what
 * depends on the protocol comes out of tables instead of branches.
 */
#ifndef UNTRACKED_PARSE_H
#define UNTRACKED_PARSE_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define MAX_VLAN_TAGS		2
#define MAX_EXTENSION_HEADERS	8
#define MAX_HEADER_BYTES	0x3fff	/* of an IP header with its extensions: 14 bits, a mask to the verifier */

#define IP_OFFSET_MASK		0x1fff	/* fragment offset of IPv4 */
#define IP6_OFFSET_MASK		0xfff8	/* fragment offset of IPv6, in the upper 13 bits */

/* An ICMP error quotes at least 8 bytes of what came after the IP header (RFC 792). */
#define QUOTED_L4_BYTES		8

/* The first index of the l4 dimension: which header the 16-bit value was read from. */
enum l4_slot {
	SLOT_TCP,
	SLOT_UDP,
	SLOT_UDPLITE,
	SLOT_SCTP,
	SLOT_ICMP,
	SLOT_ICMPV6,
	SLOT_PROTOCOL,	/* no known header: the value is the IP protocol */
};

/* The header behind a protocol number: its slot plus one, 0 where rules know none, and its least length. */
struct transport {
	__u8 slot;
	__u8 bytes;	/* never less than 8 */
};

#define TRANSPORTS				\
	[IPPROTO_TCP] = { SLOT_TCP + 1, 20 },	\
	[IPPROTO_UDP] = { SLOT_UDP + 1, 8 },	\
	[IPPROTO_UDPLITE] = { SLOT_UDPLITE + 1, 8 },	\
	[IPPROTO_SCTP] = { SLOT_SCTP + 1, 12 }

static const struct transport transports_ipv4[256] = { TRANSPORTS, [IPPROTO_ICMP] = { SLOT_ICMP + 1, 8 } };
static const struct transport transports_ipv6[256] = { TRANSPORTS, [IPPROTO_ICMPV6] = { SLOT_ICMPV6 + 1, 8 } };

/* How an extension header's length byte counts: (value + add) << shift bytes; shift 0: none, or not here. */
static const struct extension {
	__u8 add;
	__u8 shift;
} extensions[256] = {
	[IPPROTO_HOPOPTS] = { 1, 3 },
	[IPPROTO_ROUTING] = { 1, 3 },
	[IPPROTO_DSTOPTS] = { 1, 3 },
	[IPPROTO_AH] = { 2, 2 },
	[IPPROTO_FRAGMENT] = { 1, 3 },	/* its "length" is a reserved byte, taken as 0 */
};

/* As wide as registers: to keep something narrower costs instructions. */
struct packet {
	__u64 src_hi, src_lo, dst_hi, dst_lo;	/* host byte order; IPv4 has the low halves only */
	__u64 bytes;	/* length of the IP packet */
	__u64 l4;	/* offset of the transport header from the IP header */
	__s64 left;	/* bytes from there on, by the IP header's account */
	__u64 sport;	/* valid when slot has ports */
	__u64 value;	/* destination port, ICMP type << 8 | code, or protocol */
	__u64 slot;	/* enum l4_slot */
	__u64 hop_limit;
	bool ipv4;
	bool later_fragment;
};

enum parse_result {
	PARSED,
	NOT_IP,
	MALFORMED,
};

/* What surrounds an IP packet: nothing as it arrived, an ICMP error if it is quoted in one. */
struct surroundings {
	__s64 limit;	/* bytes that the enclosing header leaves for this packet */
	bool quoted;
	bool aggregated;	/* tc may see packets put together to over 64 KiB, without a length (BIG TCP) */
};

/* Hides where a value comes from, from the compiler and the verifier alike. */
static __always_inline __u64 opaque(__u64 v)
{
	asm volatile("" : "+r"(v));
	return v;
}

/*
 * index, or 0 if it is greater than limit, in one register from the comparison on: were the index kept in memory,
 * verifiers of old would not know that it was compared.
 */
static __always_inline __u64 within(__u64 index, __u64 limit)
{
	asm volatile("if %0 <= %1 goto +1; %0 = 0" : "+r"(index) : "r"(limit));
	return index;
}

static __always_inline bool slot_has_ports(__u64 slot)
{
	return slot <= SLOT_SCTP;
}

/*
 * Finds the IP header behind the Ethernet header and up to two VLAN tags. Returns the ethertype there in host
 * byte order, 0 where the frame ends before it.
 */
static __always_inline __u16 parse_ethernet(void **ip, void *end)
{
	struct ethhdr *eth = *ip;
	__u64 offset = sizeof(*eth);
	__u16 type;

	if ((void *)(eth + 1) > end)
		return 0;
	type = bpf_ntohs(eth->h_proto);
	for (int i = 0; i < MAX_VLAN_TAGS; i++) {
		__be16 *tag = (void *)eth + offset;	/* TCI, then the next ethertype */

		if (type != ETH_P_8021Q && type != ETH_P_8021AD)
			break;
		if ((void *)(tag + 2) > end)
			return 0;
		type = bpf_ntohs(tag[1]);
		offset += 4;
	}
	*ip = (void *)eth + (opaque(offset) & 31);
	return type;
}

/*
 * Reads ports or ICMP type and code at p->l4, unless they are truncated or, as far as unknown is not 0, not there. All
 * that may be wrong is put into the sign of one number, for a single branch.
 */
static __always_inline void parse_l4(struct packet *p, void *ip, void *end, __u64 protocol, bool quoted, __s64 unknown)
{
	const struct transport *t = p->ipv4 ? &transports_ipv4[protocol] : &transports_ipv6[protocol];
	__be16 *field = ip + (p->l4 & MAX_HEADER_BYTES);
	__s64 need = quoted ? QUOTED_L4_BYTES : t->bytes;
	__u64 slot = t->slot, first, second;

	asm volatile("" : "+r"(field));	/* what is checked is what is read: not the same sum, made once more */
	p->slot = SLOT_PROTOCOL;
	p->value = protocol;
	p->sport = 0;
	if ((void *)field + 8 > end)
		return;
	if (((p->left - need) | (end - (void *)field - need) | (__s64)(slot - 1) | -unknown) < 0)
		return;
	first = bpf_ntohs(field[0]);
	second = bpf_ntohs(field[1]);
	p->slot = slot - 1;
	p->sport = first;
	p->value = slot_has_ports(p->slot) ? second : first;
}

static __always_inline enum parse_result parse_ipv4(struct packet *p, void *data, void *end,
						    struct surroundings s)
{
	struct iphdr *ip = data;
	__s64 header, total, offset;

	if ((void *)(ip + 1) > end || ip->version != 4)
		return MALFORMED;
	header = ip->ihl * 4;
	total = bpf_ntohs(ip->tot_len);
	if (s.aggregated && !total)
		total = end - data;
	if (((header - (__s64)sizeof(*ip)) | (total - header) | (end - data - header)) < 0)
		return MALFORMED;
	p->ipv4 = true;
	p->src_lo = bpf_ntohl(ip->saddr);
	p->dst_lo = bpf_ntohl(ip->daddr);
	p->hop_limit = ip->ttl;
	p->bytes = total;
	p->l4 = opaque(header);
	p->left = (total < s.limit ? total : s.limit) - header;
	offset = bpf_ntohs(ip->frag_off) & IP_OFFSET_MASK;
	p->later_fragment = offset;
	parse_l4(p, data, end, ip->protocol, s.quoted, offset);
	return PARSED;
}

static __always_inline __u64 load_be64(__be32 *words)
{
	return (__u64)bpf_ntohl(words[0]) << 32 | bpf_ntohl(words[1]);
}

static __always_inline enum parse_result parse_ipv6(struct packet *p, void *data, void *end,
						    struct surroundings s)
{
	struct ipv6hdr *ip = data;
	__s64 left, room = s.limit - (__s64)sizeof(*ip);
	__u64 offset = sizeof(*ip);
	bool later = false;
	__u64 protocol;

	if ((void *)(ip + 1) > end || ip->version != 6)
		return MALFORMED;
	left = bpf_ntohs(ip->payload_len);
	if (!left)	/* a jumbogram, or put together to over 64 KiB: the data ends it */
		left = end - (void *)(ip + 1);
	p->ipv4 = false;
	p->src_hi = load_be64(&ip->saddr.in6_u.u6_addr32[0]);
	p->src_lo = load_be64(&ip->saddr.in6_u.u6_addr32[2]);
	p->dst_hi = load_be64(&ip->daddr.in6_u.u6_addr32[0]);
	p->dst_lo = load_be64(&ip->daddr.in6_u.u6_addr32[2]);
	p->hop_limit = ip->hop_limit;
	p->bytes = sizeof(*ip) + left;
	if (left > room)
		left = room;
	left = opaque(left);
	protocol = ip->nexthdr;

	/*
	 * The headers that the kernel's ipv6_skip_exthdr() follows. One that is cut short, or the ninth, ends
	 * the walk: its own number is then the protocol.
	 */
#pragma clang loop unroll(disable)
	for (int i = 0; i < MAX_EXTENSION_HEADERS; i++) {
		__u8 *ext = data + (offset & MAX_HEADER_BYTES);
		__u64 add = extensions[protocol].add, shift = extensions[protocol].shift;
		bool fragment = protocol == IPPROTO_FRAGMENT;
		__u64 length;

		if (!shift || left < 8 || offset > MAX_HEADER_BYTES || (void *)(ext + 8) > end)
			break;
		length = fragment ? 0 : ext[1];
		length = (opaque(length + add) << (shift & 3)) & 0xfff;
		if (left < (__s64)length || end - (void *)ext < (__s64)length)
			break;
		protocol = ext[0];
		if (fragment && (bpf_ntohs(*(__be16 *)(ext + 2)) & IP6_OFFSET_MASK)) {
			later = true;
			break;
		}
		left = opaque(left - length);
		offset = opaque(offset + length);
	}
	p->later_fragment = opaque(later) & 1;
	p->l4 = offset;
	p->left = left;
	parse_l4(p, data, end, opaque(protocol) & 255, s.quoted, p->later_fragment | offset >> 14);
	return PARSED;
}

#endif
