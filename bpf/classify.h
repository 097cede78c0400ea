/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * From fields to the first matching rule: from the value in each dimension to its class, and from the classes to the
 * rule. pkg/compiler makes the tables and says how they work; its walk.go reads them in the same steps.
 *
 * Nothing here branches on what a packet has where arithmetic does it: the processor need not guess, and the verifier
 * does not follow both sides. Nothing is ever out of bounds, either, in the tables that pkg/compiler makes: within() is for
 * the verifier.
 */
#ifndef UNTRACKED_CLASSIFY_H
#define UNTRACKED_CLASSIFY_H

#include "maps.h"
#include "parse.h"
#include "tree.h"

/* What a rule does, in package policy's numbers; those from ACTION_LOG on do not decide. */
enum action {
	ACTION_ALLOW = 1,
	ACTION_DENY,
	ACTION_FAILSAFE,
	ACTION_LOG,
	ACTION_PASS,
};

/* A rule's value is its index and its action; the least of several is the first rule's. */
#define ACTION_BITS	3
#define NOTHING		0xffffffffULL

#define NO_PORTS	0x10000U

static __always_inline __u32 rule_of(__u32 value)
{
	return value >> ACTION_BITS;
}

static __always_inline __u32 action_of(__u32 value)
{
	return value & ((1 << ACTION_BITS) - 1);
}

static __always_inline __u64 page_class(__u64 pages, __u64 key)
{
	__u64 page = load_u16(layout_table(PART(pages, pages, index)), key >> 8 << 1);

	/*
	 * Opaque, so that the sum stays a sum: of an OR the verifier knows no tight bound, and before Linux 6.10
	 * none at all.
	 */
	page = opaque(within(page, layout_number(PART(pages, pages, last_page))) * 256 * 2);
	return load_u16(layout_table(PART(pages, pages, pages)), page + (key & 255) * 2);
}

struct classes {
	__u64 of[DIMENSIONS];
};

#define USES(dimension) (LAYOUT(uses) & 1 << (dimension))

/* Classes in dimensions that no rule minds are 0. */
static __always_inline struct classes find_classes(const struct packet *p)
{
	struct classes c = {};

	/* A sum, as above. And masks that clang would leave out, as it knows what a byte swap gives: old verifiers do not. */
	if (USES(L4))
		c.of[L4] = page_class(PLACE(l4), opaque((p->slot & 7) << 16) + (opaque(p->value) & 0xffff));
	if (USES(SPORT))
		c.of[SPORT] = page_class(PLACE(sport), slot_has_ports(p->slot) ? opaque(p->sport) & 0xffff : NO_PORTS);
	if (p->ipv4) {
		if (USES(SRC))
			c.of[SRC] = find4(PLACE(src4), p->src_lo);
		if (USES(DST))
			c.of[DST] = find4(PLACE(dst4), p->dst_lo);
	} else {
		if (USES(SRC))
			c.of[SRC] = find6(PLACE(src6), p->src_hi, p->src_lo);
		if (USES(DST))
			c.of[DST] = find6(PLACE(dst6), p->dst_hi, p->dst_lo);
	}
	return c;
}

#include "combined.h"
#include "vectors.h"

/*
 * The value of the first rule that matches p and decides, or NOTHING. The upper half is the index plus one of the
 * first Log rule that matched before, or 0. first says that this packet is asked about, not one that it quotes: the
 * rules that match without deciding count it.
 */
static __always_inline __u64 classify(const struct packet *p, bool first)
{
	struct classes c = find_classes(p);

	if (!LAYOUT(words))
		return first_combined(&c);
	if (!LAYOUT(hops))
		return first_by_vectors(c.of[SRC], c.of[DST], c.of[SPORT], c.of[L4]);
	return walk(vector_index(&c, SRC), vector_index(&c, DST), vector_index(&c, SPORT), vector_index(&c, L4),
		    first ? p->bytes : NOT_COUNTED);
}

#endif
