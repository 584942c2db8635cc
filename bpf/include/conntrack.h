/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Flows: their keys in both directions, and how long one may be silent. */
#ifndef TOMBOLO_CONNTRACK_H
#define TOMBOLO_CONNTRACK_H

#include "maps.h"
#include "packet.h"

/* As long as a connection may be silent; reused ports are judged anew by their SYN. */
#define TCP_IDLE_NS (6 * 3600 * SECOND_NS)
#define OTHER_IDLE_NS (60 * SECOND_NS)

static __always_inline void key_forward(struct tb_conntrack_key *key, const struct packet *p,
                                        __u8 direction, __u32 endpoint)
{
        key->src = p->src;
        key->dst = p->dst;
        key->sport_be = p->sport_be;
        key->dport_be = p->dport_be;
        key->proto = p->proto;
        key->direction = direction;
        key->pad = 0;
        key->endpoint = endpoint;
}

static __always_inline void key_reverse(struct tb_conntrack_key *key, const struct packet *p,
                                        __u8 direction, __u32 endpoint)
{
        key->src = p->dst;
        key->dst = p->src;
        key->sport_be = p->dport_be;
        key->dport_be = p->sport_be;
        key->proto = p->proto;
        key->direction = direction;
        key->pad = 0;
        key->endpoint = endpoint;
}

/* The entry, if it was seen within its time. */
static __always_inline struct tb_conntrack_value *flow(const struct tb_conntrack_key *key,
                                                       __u64 now)
{
        struct tb_conntrack_value *value = bpf_map_lookup_elem(&conntrack, key);
        __u64 idle = key->proto == IPPROTO_TCP ? TCP_IDLE_NS : OTHER_IDLE_NS;

        /* Another CPU may have been here a moment later than our `now`. */
        if (value && now > value->seen_ns && now - value->seen_ns > idle)
                return NULL;
        return value;
}

#endif
