/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The first match by vectors: a class has one bit a rule, set where the rule accepts it. The vectors' conjunction has
 * the rules that match, the lowest bit is the first.
 */
#ifndef UNTRACKED_VECTORS_H
#define UNTRACKED_VECTORS_H

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

/* The value of a rule: vectors are padded to whole words; a bit beyond the last rule is never set. */
static __always_inline __u32 value_of(__u32 rule)
{
	if (rule >= LAYOUT(rules))
		return NOTHING;
	return rule << ACTION_BITS | *(const __u8 *)(TABLE(actions) + rule);
}

/* Out of line, with registers of its own: the way of combined tables needs them all. */
static __noinline __u32 first_by_vectors(__u64 src, __u64 dst, __u64 sport, __u64 l4)
{
	const __u64 class[DIMENSIONS] = { [SRC] = src, [DST] = dst, [SPORT] = sport, [L4] = l4 };
	const __u64 *vector[DIMENSIONS] = {};

#pragma clang loop unroll(full)
	for (int d = 0; d < DIMENSIONS; d++) {
		__u64 at = PLACE(vectors) + d * sizeof(struct vectors);

		if (!USES(d))
			continue;
		if (class[d] >= layout_number(PART(vectors, at, count)))
			return NOTHING;
		vector[d] = layout_table(PART(vectors, at, at)) + class[d] * LAYOUT(words) * 8;
	}
	for (__u32 w = 0; w < LAYOUT(words); w++) {
		__u64 match = ~0ULL;

#pragma clang loop unroll(full)
		for (int d = 0; d < DIMENSIONS; d++) {
			if (vector[d])
				match &= vector[d][w];
		}
		if (match)
			return value_of(w * 64 + find_lowest_bit(match));
	}
	return NOTHING;
}

#define NOT_COUNTED	0xffffffffU

/* Where the vector of a dimension is in the image, in words of 8 bytes. */
static __always_inline __u64 vector_index(const struct classes *c, enum dimension d)
{
	if (!USES(d))
		return LAYOUT(every);
	return layout_number(PART(vectors, PLACE(vectors) + d * sizeof(struct vectors), at)) / 8 + c->of[d] * LAYOUT(words);
}

/* Where a vector is. The index stays in one register from the check to the sum, for verifiers that look no further. */
static __always_inline const __u64 *vector_at(__u64 index)
{
	const __u64 *vector;

	index = opaque(index);
	if (index > LAYOUT(last))
		return NULL;
	vector = TABLE(image);
	vector += index;
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
__noinline __u64 walk(__u64 src_index, __u64 dst_index, __u64 sport_index, __u64 l4_index, __u32 bytes)
{
	__u32 steps = LAYOUT(words) + LAYOUT(hops);
	const __u64 *src, *dst, *l4, *sport;
	__u64 zero, at, log;

	if (!LAYOUT(hops))
		return NOTHING;
	src = vector_at(src_index);
	dst = vector_at(dst_index);
	l4 = vector_at(l4_index);
	sport = vector_at(sport_index);
	if (!src || !dst || !l4 || !sport)
		return NOTHING;
	zero = load_u16(TABLE(next), LAYOUT(rules) * 2);
	at = opaque(zero) & 0xffff;
	log = opaque(zero) & 0xffff;
#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < steps; i++) {
		__u64 w = at >> 6, match, none_yet;
		__u32 rule, value;
		__u8 action;

		if (w >= LAYOUT(words))
			break;
		match = src[w] & dst[w] & l4[w] & sport[w] & ~0ULL << (at & 63);
		if (!match) {
			at = opaque(w + 1) << 6 ^ zero;
			continue;
		}
		rule = w * 64 + find_lowest_bit(match);
		value = value_of(rule);
		action = action_of(value);
		if (action < ACTION_LOG || value == NOTHING)
			return log << 32 | value;
		if (opaque(opaque(bytes) ^ zero) != NOT_COUNTED)
			count(COUNTER_RULES + rule, bytes);
		none_yet = opaque(log - 1) >> 63;	/* 1 while log is 0 */
		log = (log + (rule + 1) * (none_yet & (ACTION_PASS - action))) & 0xffff;	/* which is 1 for Log */
		at = load_u16(TABLE(next), rule * 2);
	}
	return log << 32 | NOTHING;
}

#endif
