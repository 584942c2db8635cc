/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What became of a packet: counters, events, and the action that ends a program. */
#ifndef TOMBOLO_REPORT_H
#define TOMBOLO_REPORT_H

#include "maps.h"
#include "packet.h"

/* Per source: enough for every distinct flow of a scan to be seen at first, then a sample. */
#define EVENT_BURST 200
#define EVENTS_PER_SECOND 100

/* Where a packet is, for everything that is said about it. */
struct place {
        struct tb_endpoint *endpoint;
        __u32 direction;
        __u32 slot;
};

/* What an event says besides the packet. */
struct outcome {
        __u32 slot;
        __u32 direction;
        __u32 endpoint;
        __u32 own_identity;
        __u32 remote_identity;
        __u32 rule;
        __u8 kind;
        __u8 action;
        __u8 reason;
};

static __always_inline void count(__u32 slot, __u32 reason, __u32 direction, __u32 bytes)
{
        struct tb_counters *row = bpf_map_lookup_elem(&counters, &slot);

        if (row && reason < TB_REASONS) {
                struct tb_count *value = &row->of[reason * 2 + (direction & 1)];

                value->packets += 1;
                value->bytes += bytes;
        }
}

static __always_inline void count_rule(__u32 rule)
{
        __u64 *hits;

        if (!rule)
                return;
        hits = bpf_map_lookup_elem(&rule_hits, &rule);
        if (hits) {
                *hits += 1;
        } else {
                __u64 one = 1;

                bpf_map_update_elem(&rule_hits, &rule, &one, BPF_NOEXIST);
        }
}

/* Takes a token of `source`. Two CPUs may take the same one: a limit, not an account. */
static __always_inline bool event_allowed(const struct tb_address *source)
{
        __u64 now = bpf_ktime_get_coarse_ns();
        struct tb_rate *rate = bpf_map_lookup_elem(&ratelimit, source);

        if (!rate) {
                struct tb_rate fresh = {.refilled_ns = now, .tokens = EVENT_BURST - 1};

                bpf_map_update_elem(&ratelimit, source, &fresh, BPF_ANY);
                return true;
        }
        __u64 passed = now > rate->refilled_ns ? now - rate->refilled_ns : 0;

        if (passed > SECOND_NS / EVENTS_PER_SECOND) {
                __u64 tokens = rate->tokens + passed / (SECOND_NS / EVENTS_PER_SECOND);

                rate->tokens = tokens > EVENT_BURST ? EVENT_BURST : tokens;
                rate->refilled_ns = now;
        }
        if (!rate->tokens)
                return false;
        rate->tokens -= 1;
        return true;
}

/* Sends an event, or counts why not. Global, so that the verifier walks it once. */
__noinline int report(struct __sk_buff *skb, struct packet *p, struct outcome *outcome)
{
        if (!p || !outcome)
                return 0;
        const __u32 direction = outcome->direction & 1;
        const bool ingress = direction == TB_INGRESS;
        const struct tb_address *source = ingress ? &p->tuple.remote : &p->tuple.local;
        const struct tb_address *destination = ingress ? &p->tuple.local : &p->tuple.remote;

        if (!event_allowed(source)) {
                count(outcome->slot, TB_EVENT_SUPPRESSED, direction, skb->len);
                return 0;
        }
        struct tb_event *event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);

        if (!event) {
                count(outcome->slot, TB_EVENT_LOST, direction, skb->len);
                return 0;
        }
        event->time_ns = bpf_ktime_get_boot_ns();
        event->flow = bpf_get_hash_recalc(skb);
        event->ifindex = skb->ifindex;
        event->endpoint = outcome->endpoint;
        event->source_identity = ingress ? outcome->remote_identity : outcome->own_identity;
        event->destination_identity = ingress ? outcome->own_identity : outcome->remote_identity;
        event->rule = outcome->rule;
        event->src = *source;
        event->dst = *destination;
        event->sport_be = ingress ? p->tuple.remote_port_be : p->tuple.local_port_be;
        event->dport_be = ingress ? p->tuple.local_port_be : p->tuple.remote_port_be;
        event->kind = outcome->kind;
        event->action = outcome->action;
        event->reason = outcome->reason;
        event->direction = direction;
        event->proto = p->tuple.proto;
        event->detail = p->detail;
        event->pad = 0;
        event->bytes = skb->len;
        bpf_ringbuf_submit(event, 0);
        return 0;
}

/* Kind, action and reason of an event, and of whom it speaks: arguments of a call are few. */
#define WHAT(kind, action, reason) ((kind) << 16 | (action) << 8 | (reason))
#define WHO(remote_identity, rule) ((__u64)(remote_identity) << 32 | (rule))

/* An event about the packet as it stands. A call of its own for its stack. */
static __noinline int say(struct __sk_buff *skb, struct packet *p, const struct place *place,
                          __u32 what, __u64 who)
{
        struct outcome outcome = {
            .slot = place->slot,
            .direction = place->direction,
            .endpoint = place->endpoint ? place->endpoint->endpoint : 0,
            .own_identity = place->endpoint ? place->endpoint->identity : 0,
            .remote_identity = who >> 32,
            .rule = who,
            .kind = what >> 16,
            .action = what >> 8,
            .reason = what,
        };

        return report(skb, p, &outcome);
}

static __always_inline int forward(struct __sk_buff *skb, const struct place *place)
{
        count(place->slot, TB_FORWARDED, place->direction, skb->len);
        /* TCX: the next program on this hook, if any, has its say too. */
        return TC_ACT_UNSPEC;
}

/* Counts, reports, drops. */
static __always_inline int drop(struct __sk_buff *skb, struct packet *p, const struct place *place,
                                __u8 reason, __u64 who)
{
        count(place->slot, reason, place->direction, skb->len);
        say(skb, p, place, WHAT(TB_EVENT_DROP, TB_ACTION_DENY, reason), who);
        return TC_ACT_SHOT;
}

#endif
