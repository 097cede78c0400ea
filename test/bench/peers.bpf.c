//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * What the benchmark compares with: the two usual ways to classify a packet, between the same parser, counters and
 * hand-over as ours. Neither has failsafe ports, Log rules or ICMP errors to care for, which speaks for them.
 */
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "../../bpf/parse.h"

#define METADATA_MAGIC	0x756e7472U
#define COUNTER_RULES	8
#define NO_RULE		0xffffffffU

struct counter {
	__u64 packets;
	__u64 bytes;
	__u64 last;	/* jiffies */
};

/* As in bpf/maps.h: entry 0 for packets that no rule matched, those from COUNTER_RULES on for a rule each. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct counter);
	__uint(max_entries, COUNTER_RULES);
} counters SEC(".maps");

struct lpm4_key {
	__u32 bits;
	__be32 address;
};

struct lpm6_key {
	__u32 bits;
	__be64 address[2];
} __attribute__((packed));

/* A source: the rule that drops it whatever it sends, or the number that its services stand under. */
struct source {
	__u32 number;
	__u32 denied;
};

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__type(key, struct lpm4_key);
	__type(value, struct source);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} sources4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__type(key, struct lpm6_key);
	__type(value, struct source);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} sources6 SEC(".maps");

struct service {
	__u32 source;
	__u16 port;
	__u16 slot;	/* enum l4_slot */
};

/* The rule that allows a service. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct service);
	__type(value, __u32);
	__uint(max_entries, 1);
} services SEC(".maps");

/* A rule as it was written; a mask for the port, too, so that one branch tells whether it matches. */
struct line {
	__u32 net;
	__u32 mask;
	__u16 port;
	__u16 port_mask;
	__u16 slot;
	__u16 denied;
};

/* All rules in order: a single value, its size set when the map is made. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(struct line));
	__uint(map_flags, BPF_F_RDONLY_PROG);
	__uint(max_entries, 1);
} lines SEC(".maps");

/* The lines are compared in blocks, for the verifier follows no loop as often as there may be lines. */
#define BLOCK_LINES	1024

const volatile __u32 blocks = 1;
const volatile __u32 block_lines = 1;

/* The number of the first line's rule. */
const volatile __u32 first_rule;

struct verdict {
	__u32 rule;
	bool denied;
};

static __always_inline void count(__u32 index, __u32 bytes)
{
	struct counter *c = bpf_map_lookup_elem(&counters, &index);

	if (c) {
		c->packets++;
		c->bytes += bytes;
		c->last = bpf_jiffies64();
	}
}

static __always_inline bool parse(struct packet *p, struct xdp_md *ctx)
{
	struct surroundings outer = { .limit = 0x7fffffff };
	void *end = (void *)(long)ctx->data_end;
	void *ip = (void *)(long)ctx->data;
	__u16 type = parse_ethernet(&ip, end);

	if (type == ETH_P_IP)
		return parse_ipv4(p, ip, end, outer) == PARSED;
	return type == ETH_P_IPV6 && parse_ipv6(p, ip, end, outer) == PARSED;
}

static __always_inline int conclude(struct xdp_md *ctx, const struct packet *p, struct verdict v)
{
	__u32 *metadata;

	if (v.rule == NO_RULE) {
		count(0, p->bytes);
		return XDP_PASS;
	}
	count(COUNTER_RULES + v.rule, p->bytes);
	if (v.denied)
		return XDP_DROP;
	if (!bpf_xdp_adjust_meta(ctx, -(int)sizeof(*metadata))) {
		metadata = (void *)(long)ctx->data_meta;
		if ((void *)(metadata + 1) <= (void *)(long)ctx->data)
			*metadata = METADATA_MAGIC;
	}
	return XDP_PASS;
}

/* Membership: the source in the kernel's trie, then source and port together in a hash. */
SEC("xdp")
int peer_lpm(struct xdp_md *ctx)
{
	struct verdict v = { .rule = NO_RULE };
	struct service wanted = {};
	struct packet p = {};
	struct source *s;
	__u32 *rule;

	if (!parse(&p, ctx))
		return XDP_PASS;
	if (p.ipv4) {
		struct lpm4_key key = { 32, bpf_htonl(p.src_lo) };

		s = bpf_map_lookup_elem(&sources4, &key);
	} else {
		struct lpm6_key key = { 128, { bpf_cpu_to_be64(p.src_hi), bpf_cpu_to_be64(p.src_lo) } };

		s = bpf_map_lookup_elem(&sources6, &key);
	}
	if (s && s->denied) {
		v.rule = s->number;
		v.denied = true;
	} else if (s) {
		wanted.source = s->number;
		wanted.port = p.value;
		wanted.slot = p.slot;
		rule = bpf_map_lookup_elem(&services, &wanted);
		if (rule)
			v.rule = *rule;
	}
	return conclude(ctx, &p, v);
}

struct scan {
	__u32 src;
	__u16 port;
	__u16 slot;
	struct verdict verdict;
};

/*
 * One rule after the other. That a rule matches is the path straight on, so that the verifier, which leaves the other
 * one for later, has no more than one left at any time.
 */
static long scan_block(__u32 block, struct scan *s)
{
	__u32 zero = 0, src = s->src, port = s->port, slot = s->slot;
	const struct line *l = bpf_map_lookup_elem(&lines, &zero);

	if (!l || block >= blocks)
		return 1;
	l += (__u64)block * block_lines;
#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < block_lines && i < BLOCK_LINES; i++, l++) {
		__u64 differs = (src & l->mask) ^ l->net;

		differs |= (port & l->port_mask) ^ l->port;
		differs |= slot ^ l->slot;
		if (__builtin_expect(!opaque(differs), 1)) {
			s->verdict.rule = first_rule + block * block_lines + i;
			s->verdict.denied = l->denied;
			return 1;
		}
	}
	return 0;
}

SEC("xdp")
int peer_linear(struct xdp_md *ctx)
{
	struct scan s = { .verdict.rule = NO_RULE };
	struct packet p = {};

	if (!parse(&p, ctx) || !p.ipv4)
		return XDP_PASS;
	s.src = p.src_lo;
	s.port = p.value;
	s.slot = p.slot;
	bpf_loop(blocks, scan_block, &s, 0);
	return conclude(ctx, &p, s.verdict);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
