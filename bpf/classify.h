/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * From fields to the first matching rule.
 *
 * Each dimension of a packet (source, destination, destination port with protocol, source port) is looked
 * up on its own and gives a class; a class has a vector with one bit a rule, set where the rule does not
 * mind this dimension's value. The vectors' conjunction holds the rules that match, its lowest bit the first.
 */
#ifndef UNTRACKED_CLASSIFY_H
#define UNTRACKED_CLASSIFY_H

#include "maps.h"
#include "parse.h"

/* What a rule does, in package policy's numbers; those from ACTION_LOG on do not decide. */
enum action {
	ACTION_ALLOW = 1,
	ACTION_DENY,
	ACTION_FAILSAFE,
	ACTION_LOG,
	ACTION_PASS,
};

#define NO_RULE		0xffffffffU
#define NO_PORTS	0x10000U

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

/*
 * The index of the last interval that starts at or below addr. The comparison is arithmetic: with a branch the
 * verifier would follow both sides of every step. So it would, from Linux 6.18 on, with a mask of 0 or -1
 * (maybe_fork_scalars() in kernel/bpf/verifier.c); hence the shift of 0 or 1.
 */
static __always_inline __u64 search4(const void *image, const volatile struct intervals *t, __u32 addr)
{
	__u64 base = 0;

	if (t->root) {
		base = load_u32(image, t->root + (addr >> 16) * 4);
		if (base >= t->count)	/* never */
			base = 0;
	}
	for (__u32 k = t->steps; k > 0;) {
		__u64 start, above;

		k--;
		start = load_u32(image, t->starts + (base + (1ULL << k)) * 4);
		above = opaque(opaque((__u64)addr - start) >> 63);
		base += (above ^ 1) << k;
	}
	return base;
}

static __always_inline __u64 search6(const void *image, const volatile struct intervals *t, __u64 hi, __u64 lo)
{
	__u64 base = 0;

	for (__u32 k = t->steps; k > 0;) {
		__u64 start_hi, start_lo, d, e, borrow, above;

		k--;
		start_hi = load_u64(image, t->starts + (base + (1ULL << k)) * 8);
		start_lo = load_u64(image, t->lows + (base + (1ULL << k)) * 8);
		/* Borrow of the 128-bit subtraction addr - start: 1 when start is above addr. */
		d = opaque(lo - start_lo);
		borrow = ((~lo & start_lo) | (~(lo ^ start_lo) & d)) >> 63;
		e = opaque(hi - start_hi - borrow);
		above = opaque(((~hi & start_hi) | (~(hi ^ start_hi) & e)) >> 63);
		base += (above ^ 1) << k;
	}
	return base;
}

/* The vector of an interval's class; NULL, which the compiler of the tables never causes, ends the search. */
static __always_inline const __u64 *interval_vector(const void *image, const volatile struct intervals *t,
						    __u64 interval)
{
	__u32 class = load_u32(image, t->classes + interval * 4);

	if (class >= t->nclasses)
		return NULL;
	return image + t->vectors + (__u64)class * layout.words * 8;
}

static __always_inline const __u64 *page_vector(const void *image, const volatile struct pages *t, __u64 key)
{
	__u32 page = *(const __u16 *)(image + t->index + (key >> 8) * 2);
	__u64 first;
	__u32 class;

	if (page >= t->npages)
		return NULL;
	/*
	 * Opaque, so that the sum stays a sum: of an OR the verifier knows no tight bound, and before Linux 6.10
	 * none at all.
	 */
	first = opaque((__u64)page * 256 * 2);
	class = *(const __u16 *)(image + t->pages + first + (key & 255) * 2);
	if (class >= t->nclasses)
		return NULL;
	return image + t->vectors + (__u64)class * layout.words * 8;
}

/* de Bruijn multiplication: BPF has no count-trailing-zeros. v is not 0. */
static const __u8 lowest_bit[64] = {
	0,  1,  48, 2,  57, 49, 28, 3,  61, 58, 50, 42, 38, 29, 17, 4,
	62, 55, 59, 36, 53, 51, 43, 22, 45, 39, 33, 30, 24, 18, 12, 5,
	63, 47, 56, 27, 60, 41, 37, 16, 54, 35, 52, 21, 44, 32, 23, 11,
	46, 26, 40, 15, 34, 20, 31, 10, 25, 14, 19, 9,  13, 8,  7,  6,
};

static __always_inline __u32 find_lowest_bit(__u64 v)
{
	return lowest_bit[((v & -v) * 0x03f79d71b4cb0a89ULL) >> 58];
}

static __always_inline __u8 action_of(const void *image, __u32 rule)
{
	/* Vectors are padded to whole words; a bit beyond the last rule is never set. */
	if (rule >= layout.rules)
		return 0;
	return *(const __u8 *)(image + layout.actions + rule);
}

#define NOT_COUNTED	0xffffffffU

/* Where a vector is in the image, as walk() wants it. */
static __always_inline __u64 vector_index(const void *image, const __u64 *vector)
{
	return vector ? (__u64)((void *)vector - image) / 8 : layout.every;
}

/* The other way round. The index stays in one register from the check to the sum, for verifiers that look no further. */
static __always_inline const __u64 *vector_at(const __u64 *image, __u64 index)
{
	const __u64 *vector;

	index = opaque(index);
	if (index > layout.last)
		return NULL;
	vector = image + index;
	asm volatile("" : "+r"(vector));
	return vector;
}

/*
 * The end of classify() where some rules do not decide: what it returns, from the indexes of the vectors in 8-byte
 * words. bytes is the packet's length, for the counters of the rules that match without deciding, or NOT_COUNTED.
 *
 * A step ends at the next word, or behind a rule that does not decide. There may be many, so this is a global function:
 * the verifier follows it once, whatever it is called with. And all steps must look alike to it, whatever happened in
 * the ones before: positions come from memory, or are mixed with a 0 from there; there is no branch to keep the first
 * Log rule; and opaque() where a branch would tell the verifier about a variable that outlives the step.
 */
__noinline __u64 walk(__u64 src_index, __u64 dst_index, __u64 l4_index, __u64 sport_index, __u32 bytes)
{
	__u32 steps = layout.words + layout.hops, key = 0;
	const __u64 *image, *src, *dst, *l4, *sport;
	__u64 zero, at, log;

	image = bpf_map_lookup_elem(&tables, &key);
	if (!layout.hops || !image)
		return NO_RULE;
	src = vector_at(image, src_index);
	dst = vector_at(image, dst_index);
	l4 = vector_at(image, l4_index);
	sport = vector_at(image, sport_index);
	if (!src || !dst || !l4 || !sport)
		return NO_RULE;
	zero = load_u16(image, layout.next + layout.rules * 2);
	at = opaque(zero) & 0xffff;
	log = opaque(zero) & 0xffff;
#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < steps; i++) {
		__u64 w = at >> 6, match, none_yet;
		__u32 rule;
		__u8 action;

		if (w >= layout.words)
			break;
		match = src[w] & dst[w] & l4[w] & sport[w] & ~0ULL << (at & 63);
		if (!match) {
			at = opaque(w + 1) << 6 ^ zero;
			continue;
		}
		rule = w * 64 + find_lowest_bit(match);
		action = action_of(image, rule);
		if (action < ACTION_LOG)
			return log << 32 | rule;
		if (opaque(opaque(bytes) ^ zero) != NOT_COUNTED)
			count(COUNTER_RULES + rule, bytes);
		none_yet = opaque(log - 1) >> 63;	/* 1 while log is 0 */
		log = (log + (rule + 1) * (none_yet & (ACTION_PASS - action))) & 0xffff;	/* which is 1 for Log */
		at = load_u16(image, layout.next + rule * 2);
	}
	return log << 32 | NO_RULE;
}

/*
 * The index of the first rule that matches p and decides, or NO_RULE. The upper half is the index plus one of the
 * first Log rule that matched before, or 0. first says that this packet is asked about, not one that it quotes: the
 * rules that match without deciding count it.
 */
static __noinline __u64 classify(const void *image, const struct packet *p, bool first)
{
	const __u64 *src = NULL, *dst = NULL, *l4 = NULL, *sport = NULL;

	if (!image || !p)
		return NO_RULE;

#define REQUIRE(vector) do { if (!(vector)) return NO_RULE; } while (0)
	if (p->ipv4) {
		if (layout.src4.count) {
			src = interval_vector(image, &layout.src4, search4(image, &layout.src4, p->src_lo));
			REQUIRE(src);
		}
		if (layout.dst4.count) {
			dst = interval_vector(image, &layout.dst4, search4(image, &layout.dst4, p->dst_lo));
			REQUIRE(dst);
		}
	} else {
		if (layout.src6.count) {
			src = interval_vector(image, &layout.src6,
					      search6(image, &layout.src6, p->src_hi, p->src_lo));
			REQUIRE(src);
		}
		if (layout.dst6.count) {
			dst = interval_vector(image, &layout.dst6,
					      search6(image, &layout.dst6, p->dst_hi, p->dst_lo));
			REQUIRE(dst);
		}
	}
	if (layout.l4.npages) {
		__u64 slot = p->slot;

		if (slot > SLOT_PROTOCOL)
			return NO_RULE;
		l4 = page_vector(image, &layout.l4, opaque(slot << 16) + p->value);	/* a sum, as in page_vector() */
		REQUIRE(l4);
	}
	if (layout.sport.npages) {
		sport = page_vector(image, &layout.sport, slot_has_ports(p->slot) ? p->sport : NO_PORTS);
		REQUIRE(sport);
	}
#undef REQUIRE

	if (layout.hops)
		return walk(vector_index(image, src), vector_index(image, dst), vector_index(image, l4),
			    vector_index(image, sport), first ? p->bytes : NOT_COUNTED);

	for (__u32 w = 0; w < layout.words; w++) {
		__u64 match = ~0ULL;

		if (src)
			match &= src[w];
		if (dst)
			match &= dst[w];
		if (l4)
			match &= l4[w];
		if (sport)
			match &= sport[w];
		if (match)
			return w * 64 + find_lowest_bit(match);
	}
	return NO_RULE;
}

#endif
