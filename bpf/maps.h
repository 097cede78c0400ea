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

/* The dimensions of a packet: bits of table_layout.uses, and indexes of its vectors. */
enum dimension {
	SRC,
	DST,
	SPORT,
	L4,	/* protocol and destination port, or ICMP type and code */
	DIMENSIONS,
};

/* Finds the class of an address. */
struct tree {
	__u32 root;	/* byte offset of u32[65536]: references by the top 16 bits; 0: there is one class */
	__u32 class;	/* that one */
	__u32 steps;	/* nodes behind the root, at most, by the first key */
	__u32 deeper;	/* and by the second (IPv6) */
};

/* A two-level table of 16-bit values: 256 values a page, equal pages stored once. */
struct pages {
	__u32 last_page;
	__u32 index;	/* byte offset of u16[]: page of (slot, value / 256) */
	__u32 pages;	/* byte offset of u16[last_page + 1][256]: class */
};

/* The rules that mind the same of source, destination and source port: a bit each makes the kind's index plus one. */
struct kind {
	__u32 used;	/* 0: there are none; 2: some mind the l4 dimension, too */
	__u32 second;	/* row of the pairs of the first two dimensions */
	__u32 third;	/* row of the pairs of those with the third one */
	__u32 rows;	/* row of the rules */
	__u32 none;	/* the class that no rule of the kind accepts; one that there is not, if each accepts some */
};
#define KINDS 7

struct vectors {
	__u32 count;	/* classes */
	__u32 at;	/* byte offset of u64[count][words] */
};

/* Where everything is in the image. pkg/compiler writes it, and explains it; its Layout has the same shape. */
struct table_layout {
	__u32 image;	/* 0: the whole */
	__u32 rules;
	__u32 uses;	/* dimensions that any rule minds, a bit each */

	__u32 nodes;	/* byte offset of the nodes of all trees */
	__u32 last_node;	/* the highest offset from there that is looked at */
	struct tree src4, dst4, src6, dst6;
	struct pages l4;	/* slot << 16 | destination port, ICMP type and code, or protocol */
	struct pages sport;	/* source port, or 65536 where there are no ports */

	/* Combined tables. */
	__u32 first;	/* byte offset of u32[l4 classes]: of the rules that mind nothing else; 0: there are none */
	__u32 last_first;	/* the highest index */
	__u32 rows;	/* byte offset of struct row[] */
	__u32 last_row;	/* the highest index */
	__u32 cells;	/* byte offset of struct cell[] */
	__u32 last_cell;
	struct kind kinds[KINDS];

	/* Vectors, where words is not 0. */
	__u32 words;	/* 64-bit words of a rule vector */
	__u32 actions;	/* byte offset of u8[rules] */
	__u32 next;	/* byte offset of u16[rules + 1]: which rule to go on at behind one that does not decide; a 0 */
	__u32 hops;	/* rules that one packet can match without a decision, at most; 0: every rule decides */
	__u32 every;	/* index in u64[] of the vector of all rules */
	__u32 last;	/* the highest index at which a vector may begin */
	struct vectors vectors[DIMENSIONS];
};

/*
 * The layout is for whoever wants to read it from a loaded program (pkg/datapath's Tracer does). The programs
 * themselves have each number where they use it: a load, even of a constant, would be more instructions each time.
 * What is written here is a move of a magic number plus the number's place in the layout; the loader turns it into a
 * move of the number, or of the address of a table, as pkg/datapath's inlineLayout tells.
 */
const volatile struct table_layout layout;

#define MAGIC_NUMBER	0x7ab1e000
#define MAGIC_TABLE	0x7ab1e0007ab1e000ULL

static __always_inline __u64 layout_number(__u64 place)
{
	__u64 number;

	asm volatile("%0 = %1" : "=r"(number) : "i"(MAGIC_NUMBER + place));
	return number;
}

static __always_inline const void *layout_table(__u64 place)
{
	const void *table;

	asm volatile("%0 = %1 ll" : "=r"(table) : "i"(MAGIC_TABLE + place));
	return table;
}

/* A number of the layout, by its place. PART is the place of a number in a struct that is itself at a place. */
#define PLACE(field)		__builtin_offsetof(struct table_layout, field)
#define PART(type, at, field)	((at) + __builtin_offsetof(struct type, field))
#define LAYOUT(field)		layout_number(PLACE(field))

/* The table that the number at a place is the offset of. */
#define TABLE(field)		layout_table(PLACE(field))

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
	__uint(map_flags, BPF_F_RDONLY_PROG | BPF_F_MMAPABLE);	/* the latter for the alignment of the value, to pages */
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
