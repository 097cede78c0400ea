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

/* What a traced program returns: verdict, whether it was logged, reason, and the rule's index plus one. */
static __always_inline __u32 encode(struct decision d)
{
	return d.verdict | (d.log ? 1 << 3 : 0) | d.by << 4 | (d.rule == NO_RULE ? 0 : (d.rule + 1) << 8);
}

static __always_inline bool is_neighbour_discovery(const struct packet *p)
{
	__u8 type = p->value >> 8;

	return p->slot == SLOT_ICMPV6 && p->hop_limit == 255 && type >= 133 && type <= 136;
}

/* The types of ICMP and of ICMPv6 that quote a packet, a bit each. */
#define ICMP_ERRORS	(1 << 3 | 1 << 4 | 1 << 5 | 1 << 11 | 1 << 12)
#define ICMPV6_ERRORS	(1 << 1 | 1 << 2 | 1 << 3 | 1 << 4)

static __always_inline bool is_icmp_error(const struct packet *p)
{
	__u32 type = p->value >> 8, errors = 0;

	if (p->slot == SLOT_ICMP)
		errors = ICMP_ERRORS;
	else if (p->slot == SLOT_ICMPV6)
		errors = ICMPV6_ERRORS;
	return type < 32 && errors >> type & 1;
}

/* Turns a quoted packet round, so that it travels the way its flow arrives here. */
static __always_inline void reverse(struct packet *p)
{
	__u64 hi = p->src_hi, lo = p->src_lo;
	__u16 sport = p->sport;
	__u8 type = p->value >> 8;

	p->src_hi = p->dst_hi;
	p->src_lo = p->dst_lo;
	p->dst_hi = hi;
	p->dst_lo = lo;
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

/* Decides about the IP packet at ip and counts it. Package policy's Evaluate says why. */
static __always_inline struct decision decide(void *ip, void *end, __u16 type, bool aggregated)
{
	struct decision d = { .rule = NO_RULE, .verdict = VERDICT_TRACKED, .by = BY_NO_MATCH };
	struct surroundings outer = { .limit = MAX_BYTES, .aggregated = aggregated };
	struct surroundings icmp = { .quoted = true };
	struct packet p = {}, flow;
	const void *image;
	__u32 zero = 0, rule, none = COUNTER_TRACKED;
	__u64 found;

	switch (parse_ip(&p, ip, end, type, outer)) {
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
	if (p.later_fragment) {
		none = COUNTER_FRAGMENT;
		d.by = BY_FRAGMENT;
	}
	if (is_neighbour_discovery(&p)) {
		d.by = BY_FAILSAFE;
		count(COUNTER_FAILSAFE, p.bytes);
		return d;
	}
	image = bpf_map_lookup_elem(&tables, &zero);
	if (!image || !layout.rules)
		goto no_match;

	found = classify(image, &p, true);
	rule = found;
	d.log = found >> 32;
	switch (action_of(image, rule)) {
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

	ip += (p.l4 & MAX_HEADER_BYTES) + ICMP_ERROR_HEADER;
	icmp.limit = p.left - ICMP_ERROR_HEADER;
	if (parse_ip(&flow, ip, end, type, icmp) != PARSED)
		goto no_match;
	reverse(&flow);
	rule = classify(image, &flow, false);
	if (action_of(image, rule) != ACTION_ALLOW)
		goto no_match;
	d.verdict = VERDICT_UNTRACKED;
	d.by = BY_RULE;
match:
	d.rule = rule;
	count(COUNTER_RULES + rule, p.bytes);
	goto decided;
no_match:
	count(none, p.bytes);
decided:
	if (d.log && reporting && !trace)
		report(&p, d.rule, d.log, d.verdict, d.by);
	return d;
}

#endif
