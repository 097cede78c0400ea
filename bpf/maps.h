/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The maps the programs read and write, and the constants they are specialised by.
 *
 * Every interface has its own programs: the constants below are fixed when a program is loaded, so the
 * verifier removes the code of every dimension that the policy does not use.
 */
#ifndef UNTRACKED_MAPS_H
#define UNTRACKED_MAPS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

/*
 * A sorted list of interval starts, the class of each interval, and the rule vector of each class. Both lists
 * are padded by 2^steps entries, so that a search may look beyond the end: with the highest address, and with
 * the last class.
 */
struct intervals {
	__u32 count;	/* intervals; 0: no rule looks at this dimension */
	__u32 root;	/* byte offset of u32[65536]: the interval of address h << 16; 0: none (IPv6: always) */
	__u32 steps;	/* of the binary search behind the root, or from the first interval */
	__u32 starts;	/* byte offset of u32[] (IPv4) or of u64[] (IPv6: the high halves) */
	__u32 lows;	/* byte offset of u64[]: the low halves (IPv6) */
	__u32 classes;	/* byte offset of u32[] */
	__u32 nclasses;
	__u32 vectors;	/* byte offset of u64[nclasses][words] */
};

/* A two-level table of 16-bit values: 256 values a page, equal pages stored once. */
struct pages {
	__u32 npages;	/* 0: no rule looks at this dimension */
	__u32 index;	/* byte offset of u16[]: page of (slot, value / 256) */
	__u32 pages;	/* byte offset of u16[npages][256]: class */
	__u32 nclasses;
	__u32 vectors;	/* byte offset of u64[nclasses][words] */
};

/* Where everything is in the image. pkg/compiler writes it; its Layout has the same shape. */
struct table_layout {
	__u32 rules;
	__u32 words;	/* 64-bit words of a rule vector */
	__u32 actions;	/* byte offset of u8[rules] */
	__u32 next;	/* byte offset of u16[rules + 1]: which rule to go on at behind one that does not decide; a 0 */
	__u32 hops;	/* rules that one packet can match without a decision, at most; 0: every rule decides */
	__u32 every;	/* index in u64[] of the vector of all rules */
	__u32 last;	/* the highest index at which a vector may begin */
	struct intervals src4, dst4, src6, dst6;
	struct pages l4;	/* slot << 16 | destination port, ICMP type and code, or protocol */
	struct pages sport;	/* source port, or 65536 where there are no ports */
};

const volatile struct table_layout layout;

/* The mark bit that tells netfilter's raw table of an untracked packet. */
const volatile __u32 mark;

/* The interface has no Ethernet header (tc only). */
const volatile __u8 layer3;

/* Return the whole decision instead of a verdict: for BPF_PROG_TEST_RUN on a private copy. */
const volatile __u8 trace;

/* Report logged packets: there are the maps for it. */
const volatile __u8 reporting;

/* Whose packets these are, for reports. */
const volatile __u32 ifindex;
const volatile __u64 generation;

/* One generation of lookup tables: a single value, its size set when the map is made. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, 8);
	__uint(map_flags, BPF_F_RDONLY_PROG);
	__uint(max_entries, 1);
} tables SEC(".maps");

struct counter {
	__u64 packets;
	__u64 bytes;
	__u64 last;	/* jiffies */
};

/* Entries below COUNTER_RULES count packets that no rule decided, the others one rule each. */
enum counter_index {
	COUNTER_TRACKED,
	COUNTER_FAILSAFE,	/* neighbour discovery */
	COUNTER_MALFORMED,
	COUNTER_FRAGMENT,
	COUNTER_UNTRACKED,	/* the datapath leaves it 0: user space keeps what retired rules counted */
	COUNTER_DENIED,		/* the same */
	COUNTER_NO_METADATA,	/* the driver gave no room for the hand-over, or no linear headers */
	COUNTER_RULES = 8,
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct counter);
	__uint(max_entries, COUNTER_RULES);
} counters SEC(".maps");

static __always_inline void count(__u32 index, __u32 bytes)
{
	struct counter *c = bpf_map_lookup_elem(&counters, &index);

	if (c) {
		c->packets++;
		c->bytes += bytes;
		c->last = bpf_jiffies64();
	}
}

#endif
