/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The first match by combined tables: the same few reads for any number of rules.
 */
#ifndef UNTRACKED_COMBINED_H
#define UNTRACKED_COMBINED_H

struct row {
	__u32 value;	/* where the row has no cell of its own */
	__u32 base;	/* of its cells */
};

struct cell {
	__u32 row;	/* whose it is */
	__u32 value;
};

/* a if it is the less, else b. Both are below 2^63. */
static __always_inline __u64 lesser(__u64 a, __u64 b)
{
	__u64 difference = a - b;

	return b + difference * (opaque(difference) >> 63);
}

static __always_inline __u64 combine(__u64 row, __u64 column)
{
	const struct row *r = TABLE(rows);
	const struct cell *c = TABLE(cells);
	__u64 usual, is_own;

	r += within(row, LAYOUT(last_row));
	c += within(r->base + column, LAYOUT(last_cell));
	usual = r->value;
	is_own = is_less(c->row ^ row, 1);
	return usual + (c->value - usual) * is_own;
}

/* What combine() does where rows have no cells. */
static __always_inline __u64 row_value(__u64 row)
{
	const struct row *r = TABLE(rows);

	return r[within(row, LAYOUT(last_row))].value;
}

static __always_inline __u64 first_combined(const struct classes *c)
{
	__u64 l4 = c->of[L4], best = NOTHING;

	if (LAYOUT(first))
		best = load_u32(TABLE(first), within(l4, LAYOUT(last_first)) * 4);
#pragma clang loop unroll(full)
	for (int i = 0; i < KINDS; i++) {
		__u64 kind = PLACE(kinds) + i * sizeof(struct kind), row = 0, pairs = PART(kind, kind, second);

		if (!layout_number(PART(kind, kind, used)))
			continue;
#pragma clang loop unroll(full)
		for (int d = 0; d < L4; d++) {
			if (!((i + 1) & 1 << d))
				continue;
			if (!((i + 1) & ((1 << d) - 1))) {
				row = c->of[d];
			} else {
				row = combine(layout_number(pairs) + row, c->of[d]);
				pairs = PART(kind, kind, third);
			}
		}
		if (row == layout_number(PART(kind, kind, none)))	/* as for most packets, but in the one kind that matters */
			continue;
		row += layout_number(PART(kind, kind, rows));
		if (layout_number(PART(kind, kind, used)) > 1)
			best = lesser(combine(row, l4), best);
		else
			best = lesser(row_value(row), best);
	}
	return opaque(best);
}

#endif
