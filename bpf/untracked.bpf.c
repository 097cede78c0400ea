//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The programs of an interface: XDP, its twin for drivers with multi-buffer packets, the tc hand-over behind
 * them, and the tc classifier for where XDP cannot be had.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "maps.h"
#include "parse.h"
#include "verdict.h"

/* "untr": what the XDP program puts in front of an untracked packet for the hand-over program. */
#define METADATA_MAGIC 0x756e7472U

/* Linear bytes of a multi-buffer packet that hold its headers. */
#define XDP_LINEAR_BYTES 128

/* Linear bytes the tc classifier asks for: Ethernet, two tags, IPv6 with options, and a quoted packet. */
#define TC_LINEAR_BYTES 256

static __always_inline int xdp(struct xdp_md *ctx)
{
	struct view v = { .ctx = ctx, .in_xdp = true };
	struct decision d;
	__u32 *metadata;
	__u16 type;
	void *ip;
	int action = XDP_PASS;

	v.data = ip = (void *)(long)ctx->data;
	v.end = (void *)(long)ctx->data_end;
	type = parse_ethernet(&ip, v.end);
	d = decide(v, ip, type);
	if (d.verdict == VERDICT_DENIED)
		action = XDP_DROP;
	if (d.verdict == VERDICT_UNTRACKED) {
		if (bpf_xdp_adjust_meta(ctx, -(int)sizeof(*metadata))) {
			count(COUNTER_NO_METADATA, 0);
		} else {
			metadata = (void *)(long)ctx->data_meta;
			if ((void *)(metadata + 1) <= (void *)(long)ctx->data)
				*metadata = METADATA_MAGIC;
		}
	}
	return trace ? (int)encode(d) : action;
}

SEC("xdp")
int untracked_xdp(struct xdp_md *ctx)
{
	return xdp(ctx);
}

/*
 * Some drivers leave the whole of a multi-buffer packet, headers too, outside the linear part (mlx5 does). Then
 * nothing can be said of it here, and it is counted as what user space answers with the tc program.
 */
SEC("xdp.frags")
int untracked_xdpf(struct xdp_md *ctx)
{
	__u64 linear = (long)ctx->data_end - (long)ctx->data;

	if (linear < XDP_LINEAR_BYTES && bpf_xdp_get_buff_len(ctx) > linear) {
		count(COUNTER_NO_METADATA, 0);
		return XDP_PASS;
	}
	return xdp(ctx);
}

/* Turns the metadata of the XDP program into the mark. Everything else goes on as it is. */
SEC("tc")
int untracked_mark(struct __sk_buff *skb)
{
	__u32 *metadata = (void *)(long)skb->data_meta;

	if ((void *)(metadata + 1) <= (void *)(long)skb->data && *metadata == METADATA_MAGIC)
		skb->mark |= mark;
	return TC_ACT_UNSPEC;
}

/* Classifies by itself. */
SEC("tc")
int untracked_tc(struct __sk_buff *skb)
{
	struct view v = { .ctx = skb, .aggregated = skb->gso_segs };
	struct decision d;
	__u16 type;
	void *ip;
	int action = TC_ACT_UNSPEC;

	v.data = ip = (void *)(long)skb->data;
	v.end = (void *)(long)skb->data_end;

	/* What was put together from several packets has linear headers already, and must keep its geometry. */
	if (!v.aggregated && ip + TC_LINEAR_BYTES > v.end && skb->len > (__u64)(v.end - ip)) {
		bpf_skb_pull_data(skb, skb->len < TC_LINEAR_BYTES ? skb->len : TC_LINEAR_BYTES);
		v.data = ip = (void *)(long)skb->data;
		v.end = (void *)(long)skb->data_end;
	}
	if (layer3) {
		/* Only where the data begins with the IP header: nothing else may be taken for a malformed one. */
		type = bpf_ntohs(skb->protocol);
		if (ip + 1 > v.end || *(__u8 *)ip >> 4 != (type == ETH_P_IP ? 4 : 6))
			type = 0;
	} else {
		type = parse_ethernet(&ip, v.end);
	}
	d = decide(v, ip, type);
	if (d.verdict == VERDICT_DENIED)
		action = TC_ACT_SHOT;
	if (d.verdict == VERDICT_UNTRACKED)
		skb->mark |= mark;
	return trace ? (int)encode(d) : action;
}

/* bpf_xdp_adjust_meta() and bpf_skb_pull_data() are open to any licence; no GPL-only helper is used. */
char LICENSE[] SEC("license") = "Dual BSD/GPL";
