/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Reports of logged packets: what becomes of a packet that a Log rule matched, told to whoever listens.
 *
 * Without a listener a report ends at its first branch. With one it is sampled: each CPU may send a burst of
 * reports at once, and from then on so many a second; those it leaves out it counts, and the next one says how many.
 */
#ifndef UNTRACKED_EVENT_H
#define UNTRACKED_EVENT_H

#include "maps.h"
#include "parse.h"

enum verdict {
	VERDICT_TRACKED,
	VERDICT_UNTRACKED,
	VERDICT_DENIED,
};

enum reason {
	BY_NO_MATCH,
	BY_RULE,
	BY_FAILSAFE,
	BY_MALFORMED,
	BY_FRAGMENT,
	BY_NOT_IP,
};

struct decision {
	__u32 rule;	/* NO_RULE where none decided */
	__u32 log;	/* the first Log rule that matched, plus one; 0: none */
	__u8 verdict;	/* enum verdict */
	__u8 by;	/* enum reason */
};

#define REPORTS_PER_SECOND	100
#define REPORTS_AT_ONCE		100
#define REPORT_INTERVAL		(1000000000ULL / REPORTS_PER_SECOND)	/* ns */

struct event {
	__u64 time;	/* CLOCK_MONOTONIC, ns */
	__u64 generation;
	__u64 suppressed;	/* packets of this interface that this CPU left out since its last report */
	__u32 ifindex;
	__u32 bytes;	/* as in struct packet, */
	__u64 src_hi, src_lo, dst_hi, dst_lo;
	__u16 sport, value;
	__u8 slot, hop_limit, ipv4, later_fragment;
	__u32 rule, log;	/* and in struct decision */
	__u8 verdict, by;
	__u8 pad[6];
};

/* Shared by all interfaces. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 256 * 1024);
	__type(value, struct event);	/* for the bindings; to the kernel a ring buffer has no values */
} events SEC(".maps");

/* Until when, in jiffies, somebody listens; shared by all interfaces, and written by who listens. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 1);
} monitor SEC(".maps");

struct budget {
	__u64 spent;	/* reports are paid for up to this time, at one each REPORT_INTERVAL */
	__u64 suppressed;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct budget);
	__uint(max_entries, 1);
} budget SEC(".maps");

/* The decision comes in pieces: were its address taken, it could not stay in registers, not even without reports. */
static __noinline void report(const struct packet *p, __u32 rule, __u32 log, __u8 verdict, __u8 by)
{
	struct budget *b;
	struct event *e;
	__u64 *until;
	__u64 now, spent;
	__u32 zero = 0;

	until = bpf_map_lookup_elem(&monitor, &zero);
	if (!until || *until <= bpf_jiffies64())
		return;
	b = bpf_map_lookup_elem(&budget, &zero);
	if (!b)
		return;
	now = bpf_ktime_get_ns();
	spent = b->spent;
	if (spent + REPORTS_AT_ONCE * REPORT_INTERVAL < now)
		spent = now - REPORTS_AT_ONCE * REPORT_INTERVAL;
	if (spent + REPORT_INTERVAL > now)
		goto suppress;
	e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);
	if (!e)
		goto suppress;
	e->time = now;
	e->generation = generation;
	e->suppressed = b->suppressed;
	e->ifindex = ifindex;
	e->bytes = p->bytes;
	e->src_hi = p->src_hi;
	e->src_lo = p->src_lo;
	e->dst_hi = p->dst_hi;
	e->dst_lo = p->dst_lo;
	e->sport = p->sport;
	e->value = p->value;
	e->slot = p->slot;
	e->hop_limit = p->hop_limit;
	e->ipv4 = p->ipv4;
	e->later_fragment = p->later_fragment;
	e->rule = rule;
	e->log = log;
	e->verdict = verdict;
	e->by = by;
	__builtin_memset(e->pad, 0, sizeof(e->pad));
	b->suppressed = 0;
	b->spent = spent + REPORT_INTERVAL;
	bpf_ringbuf_submit(e, 0);
	return;
suppress:
	b->suppressed++;
}

#endif
