/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What became of a packet: counters, drop events, and the action that ends a program. */
#ifndef TOMBOLO_REPORT_H
#define TOMBOLO_REPORT_H

#include "maps.h"
#include "packet.h"

/* Per source: enough for every distinct flow of a scan to be seen at first, then a sample. */
#define EVENT_BURST 200
#define EVENTS_PER_SECOND 100

static __always_inline void count(__u32 reason, __u32 direction, __u32 bytes)
{
        __u32 row = reason * 2 + direction;
        struct tb_metrics_value *value = bpf_map_lookup_elem(&metrics, &row);

        if (value) {
                value->packets += 1;
                value->bytes += bytes;
        }
}

static __always_inline int forward(struct __sk_buff *skb, __u32 direction)
{
        count(TB_FORWARDED, direction, skb->len);
        /* TCX: the next program on this hook, if any, has its say too. */
        return TC_ACT_UNSPEC;
}

/* Takes a token of `source`. Two CPUs may take the same one: a limit, not an account. */
static __always_inline bool event_allowed(const struct tb_address *source)
{
        __u64 now = bpf_ktime_get_ns();
        struct tb_rate *rate = bpf_map_lookup_elem(&ratelimit, source);

        if (!rate) {
                struct tb_rate fresh = {.refilled_ns = now, .tokens = EVENT_BURST - 1};

                bpf_map_update_elem(&ratelimit, source, &fresh, BPF_ANY);
                return true;
        }
        __u64 earned = (now - rate->refilled_ns) / (SECOND_NS / EVENTS_PER_SECOND);

        if (earned) {
                __u64 tokens = rate->tokens + earned;

                rate->tokens = tokens > EVENT_BURST ? EVENT_BURST : tokens;
                rate->refilled_ns = now;
        }
        if (!rate->tokens)
                return false;
        rate->tokens -= 1;
        return true;
}

/* Counts, reports, drops. Identities: source in the upper half. */
static __noinline int drop(struct __sk_buff *skb, struct packet *p, __u32 reason_direction,
                           __u32 endpoint, __u64 identities)
{
        __u32 reason = reason_direction >> 1, direction = reason_direction & 1;

        if (!p)
                return TC_ACT_SHOT;
        count(reason, direction, skb->len);
        if (!event_allowed(&p->src)) {
                count(TB_EVENT_SUPPRESSED, direction, skb->len);
                return TC_ACT_SHOT;
        }
        struct tb_event *event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);

        if (!event) {
                count(TB_EVENT_LOST, direction, skb->len);
                return TC_ACT_SHOT;
        }
        event->time_ns = bpf_ktime_get_boot_ns();
        event->flow = bpf_get_hash_recalc(skb);
        event->ifindex = skb->ifindex;
        event->endpoint = endpoint;
        event->source_identity = identities >> 32;
        event->destination_identity = (__u32)identities;
        event->rule = 0;
        event->src = p->src;
        event->dst = p->dst;
        event->sport_be = p->sport_be;
        event->dport_be = p->dport_be;
        event->reason = reason;
        event->direction = direction;
        event->proto = p->proto;
        event->tcp_flags = p->tcp_flags;
        bpf_ringbuf_submit(event, 0);
        return TC_ACT_SHOT;
}

#define DROP(reason, direction, endpoint, source, destination)                                     \
        drop(skb, &p, ((reason) << 1) | (direction), (endpoint),                                   \
             ((__u64)(source) << 32) | (__u32)(destination))

#endif
