/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * From an address to its class: pkg/compiler/tree.go builds what is read here, and explains it.
 */
#ifndef UNTRACKED_TREE_H
#define UNTRACKED_TREE_H

#include "maps.h"
#include "parse.h"

/* The highest two bits of a reference. */
#define REF_CLASS	0
#define REF_FIRST	1	/* a node that looks at the first key */
#define REF_SECOND	2	/* at the second */
#define REF_KIND(ref)	((ref) >> 30)

/* Of a node: a page's shift, bits less one and number, or a line's number. */
#define REF_PAGE		(1 << 29)
#define PAGE_SHIFT(ref)		((ref) >> 23 & 63)
#define PAGE_MASK(ref)		((2ULL << ((ref) >> 19 & 15)) - 1)
#define PAGE_OFFSET(ref)	((__u64)((ref) & ((1 << 19) - 1)) * 256)
#define LINE_OFFSET(ref)	((__u64)((ref) & (REF_PAGE - 1)) * 64)

static __always_inline __u32 load_u32(const void *image, __u64 offset)
{
	return *(const __u32 *)(image + offset);
}

static __always_inline __u16 load_u16(const void *image, __u64 offset)
{
	return *(const __u16 *)(image + offset);
}

static __always_inline __u64 load_u64(const void *image, __u64 offset)
{
	return *(const __u64 *)(image + offset);
}

/* 1 if a < b, which are below 2^63; without a branch. */
static __always_inline __u64 is_less(__u64 a, __u64 b)
{
	return opaque(a - b) >> 63;
}

/*
 * A line of IPv4 has 9 boundaries of 16 bits, three in each of three words: in lanes of 21 bits, so that a lane has a
 * bit above the number to borrow from. One subtraction compares a key with three boundaries, since the bit is left
 * where a boundary is at or below the key.
 */
#define LANES		(1ULL | 1ULL << 21 | 1ULL << 42)
#define ABOVE_LANES	(LANES << 16)

/* Where in a line the reference for a key is: behind as many others as there are boundaries at or below the key. */
static __always_inline __u64 in_line4(const void *line, __u64 key)
{
	__u64 keys = key * LANES | ABOVE_LANES, n = 0;

	for (int i = 0; i < 3; i++)
		n += (keys - load_u64(line, i * 8)) & ABOVE_LANES;
	return 24 + ((n >> 16) * LANES >> 42 & 15) * 4;
}

/* A line of IPv6 has 5 boundaries, in a word each. */
static __always_inline __u64 in_line6(const void *line, __u64 key)
{
	__u64 n = 0;

	for (int i = 0; i < 5; i++)
		n += is_less(load_u64(line, i * 8), key + 1);
	return 40 + n * 4;
}

/* Whether a reference is to a node that looks at this key. */
static __always_inline bool is_node(__u32 ref, __u32 key)
{
	return REF_KIND(ref) == key;
}

/* What a node says of a key. */
static __always_inline __u32 step(__u32 ref, __u64 key, bool ipv4)
{
	const void *nodes = TABLE(nodes);

	if (ref & REF_PAGE) {
		__u64 at = PAGE_OFFSET(ref) + (key >> PAGE_SHIFT(ref) & PAGE_MASK(ref)) * 4;
		return load_u32(nodes, within(at, LAYOUT(last_node)));
	}
	nodes += within(LINE_OFFSET(ref), LAYOUT(last_node));
	return load_u32(nodes, ipv4 ? in_line4(nodes, key) : in_line6(nodes, key));
}

static __always_inline __u32 find4(__u64 tree, __u64 addr)
{
	__u64 key = addr & 0xffff;
	__u32 ref;

	if (!layout_number(PART(tree, tree, root)))
		return layout_number(PART(tree, tree, class));
	ref = load_u32(layout_table(PART(tree, tree, root)), (addr >> 16 & 0xffff) * 4);
	if (is_node(ref, REF_FIRST))
		ref = step(ref, key, true);
	if (is_node(ref, REF_FIRST))
		ref = step(ref, key, true);
	return ref;
}

/* Follows a reference as long as it leads to nodes that look at this key. */
static __always_inline __u32 descend6(__u32 ref, __u32 which, __u64 key, __u32 steps)
{
#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < steps && is_node(ref, which); i++)
		ref = step(ref, key, false);
	return ref;
}

static __always_inline __u32 find6(__u64 tree, __u64 hi, __u64 lo)
{
	__u32 ref;

	if (!layout_number(PART(tree, tree, root)))
		return layout_number(PART(tree, tree, class));
	ref = load_u32(layout_table(PART(tree, tree, root)), hi >> 48 << 2);
	ref = descend6(ref, REF_FIRST, hi << 16 >> 8 | lo >> 56, layout_number(PART(tree, tree, steps)));
	return descend6(ref, REF_SECOND, lo << 8 >> 8, layout_number(PART(tree, tree, deeper)));
}

#endif
