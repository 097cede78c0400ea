/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * From a packet to what happens to it: package policy's Evaluate in C, and the counting of it.
 */
#ifndef UNTRACKED_VERDICT_H
#define UNTRACKED_VERDICT_H

#include "classify.h"
#include "event.h"
#include "maps.h"
#include "parse.h"

/* The packet that an ICMP error is about stands behind this many bytes, in every type of both families. */
#define ICMP_ERROR_HEADER	8

/* Longer than any packet. */
#define MAX_BYTES		0x7fffffff

#define NO_RULE			0xffffffffU

/* What a traced program returns: verdict, whether it was logged, reason, and the rule's index plus one. */
static __always_inline __u32 encode(struct decision d)
{
	return d.verdict | (d.log ? 1 << 3 : 0) | d.by << 4 | (d.rule == NO_RULE ? 0 : (d.rule + 1) << 8);
}

static __always_inline bool is_neighbour_discovery(const struct packet *p)
{
	__u64 type = p->value >> 8;

	return p->slot == SLOT_ICMPV6 && p->hop_limit == 255 && type >= 133 && type <= 136;
}

/* The types of ICMP and of ICMPv6 that quote a packet, a bit each. */
#define ICMP_ERRORS	(1 << 3 | 1 << 4 | 1 << 5 | 1 << 11 | 1 << 12)
#define ICMPV6_ERRORS	(1 << 1 | 1 << 2 | 1 << 3 | 1 << 4)

static __always_inline bool is_icmp_error(const struct packet *p)
{
	__u64 type = p->value >> 8, errors = 0;

	if (p->slot == SLOT_ICMP)
		errors = ICMP_ERRORS;
	else if (p->slot == SLOT_ICMPV6)
		errors = ICMPV6_ERRORS;
	return type < 32 && errors >> type & 1;
}

/* Turns a quoted packet round, so that it travels the way its flow arrives here. */
static __always_inline void reverse(struct packet *p)
{
	__u64 lo = p->src_lo, sport = p->sport, type = p->value >> 8;

	p->src_lo = p->dst_lo;
	p->dst_lo = lo;
	if (!p->ipv4) {
		__u64 hi = p->src_hi;

		p->src_hi = p->dst_hi;
		p->dst_hi = hi;
	}
	if (slot_has_ports(p->slot)) {
		p->sport = p->value;
		p->value = sport;
	} else if (p->slot == SLOT_ICMP) {
		if (type == 0 || type == 8)		/* echo */
			p->value ^= 8 << 8;
		else if (type == 13 || type == 14)	/* timestamp */
			p->value ^= (13 ^ 14) << 8;
	} else if (p->slot == SLOT_ICMPV6) {
		if (type == 128 || type == 129)
			p->value ^= (128 ^ 129) << 8;
	}
}

static __always_inline enum parse_result parse_ip(struct packet *p, void *ip, void *end, __u16 type,
						  struct surroundings s)
{
	if (type == ETH_P_IP)
		return parse_ipv4(p, ip, end, s);
	if (type == ETH_P_IPV6)
		return parse_ipv6(p, ip, end, s);
	return NOT_IP;
}

/* As far into a packet as an ICMP error's quotation may begin: a mask to the verifier. */
#define MAX_QUOTE_OFFSET	0x7fff

/* The value of the rule for the packet that an ICMP error quotes: it begins at data + offset, and has left bytes. */
static __always_inline __u32 quoted(void *data, void *end, __u64 offset, __s64 left, __u64 type)
{
	struct surroundings icmp = { .limit = left, .quoted = true };
	struct packet flow;

	if (parse_ip(&flow, data + (opaque(offset) & MAX_QUOTE_OFFSET), end, type, icmp) != PARSED)
		return NOTHING;
	reverse(&flow);
	return classify(&flow, false);
}

/*
 * Errors are rare, and each way to one would have the verifier follow all of the above once more. Global functions it
 * follows on their own, once.
 */
__noinline __u64 quoted_in_xdp(struct xdp_md *ctx, __u64 offset, __s64 left, __u64 type)
{
	return quoted((void *)(long)ctx->data, (void *)(long)ctx->data_end, offset, left, type);
}

__noinline __u64 quoted_in_skb(struct __sk_buff *skb, __u64 offset, __s64 left, __u64 type)
{
	return quoted((void *)(long)skb->data, (void *)(long)skb->data_end, offset, left, type);
}

/* A packet as a hook has it, and where its data begins and ends. */
struct view {
	void *ctx;
	bool in_xdp;	/* ctx is a struct xdp_md, else a struct __sk_buff */
	void *data, *end;
	bool aggregated;	/* see struct surroundings */
};

/* Decides about the IP packet at ip and counts it. Package policy's Evaluate says why. */
static __always_inline struct decision decide(struct view v, void *ip, __u64 type)
{
	struct decision d = { .rule = NO_RULE, .verdict = VERDICT_TRACKED, .by = BY_NO_MATCH };
	struct surroundings outer = { .limit = MAX_BYTES, .aggregated = v.aggregated };
	__u64 found, offset, left;
	struct packet p, copy;
	__u32 value;

	switch (parse_ip(&p, ip, v.end, type, outer)) {
	case NOT_IP:
		d.by = BY_NOT_IP;
		return d;
	case MALFORMED:
		d.verdict = VERDICT_DENIED;
		d.by = BY_MALFORMED;
		count(COUNTER_MALFORMED, 0);
		return d;
	case PARSED:
		break;
	}
	if (is_neighbour_discovery(&p)) {
		d.by = BY_FAILSAFE;
		count(COUNTER_FAILSAFE, p.bytes);
		return d;
	}
	if (!LAYOUT(rules))
		goto no_match;

	found = classify(&p, true);
	value = found;
	d.log = found >> 32;
	switch (action_of(value)) {
	case ACTION_ALLOW:
		d.verdict = VERDICT_UNTRACKED;
		d.by = BY_RULE;
		goto match;
	case ACTION_DENY:
		d.verdict = VERDICT_DENIED;
		d.by = BY_RULE;
		goto match;
	case ACTION_FAILSAFE:
		d.by = BY_FAILSAFE;
		goto match;
	}
	if (!is_icmp_error(&p))
		goto no_match;

	offset = ip - v.data + p.l4 + ICMP_ERROR_HEADER;
	left = p.left - ICMP_ERROR_HEADER;
	value = v.in_xdp ? quoted_in_xdp(v.ctx, offset, left, type) : quoted_in_skb(v.ctx, offset, left, type);
	if (action_of(value) != ACTION_ALLOW)
		goto no_match;
	d.verdict = VERDICT_UNTRACKED;
	d.by = BY_RULE;
match:
	d.rule = rule_of(value);
	count(COUNTER_RULES + d.rule, p.bytes);
	goto decided;
no_match:
	d.by = p.later_fragment ? BY_FRAGMENT : BY_NO_MATCH;
	count(p.later_fragment ? COUNTER_FRAGMENT : COUNTER_TRACKED, p.bytes);
decided:
	if (d.log && reporting && !trace) {
		if (p.ipv4)
			p.src_hi = p.dst_hi = 0;
		copy = p;	/* what has its address taken cannot stay in registers */
		report(&copy, d.rule, d.log, d.verdict, d.by);
	}
	return d;
}

#endif
