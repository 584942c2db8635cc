/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Fragments: the first one carries the ports, the later ones follow it. */
#ifndef TOMBOLO_FRAGMENT_H
#define TOMBOLO_FRAGMENT_H

#include "maps.h"
#include "packet.h"

/* As long as Linux waits for the rest of a datagram (net.ipv4.ipfrag_time). */
#define FRAGMENT_NS (30 * SECOND_NS)

static __always_inline void fragment_key(struct tb_fragment_key *key, struct packet *p,
                                         __u32 direction, __u32 endpoint)
{
        key->src = *source_of(&p->tuple, direction);
        key->dst = *destination_of(&p->tuple, direction);
        key->endpoint = endpoint;
        key->id = p->fragment_id;
        key->proto = p->tuple.proto;
        key->direction = direction;
        key->pad = 0;
}

/* Also of a packet that is then denied: what follows it is judged the same. */
static __noinline int fragment_remember(struct packet *p, __u32 direction, __u32 endpoint,
                                        __u64 now)
{
        bool ingress = direction == TB_INGRESS;
        struct tb_fragment_key key;
        struct tb_fragment first = {
            .seen_ns = now,
            .sport_be = ingress ? p->tuple.remote_port_be : p->tuple.local_port_be,
            .dport_be = ingress ? p->tuple.local_port_be : p->tuple.remote_port_be,
            .icmp_type = p->icmp ? p->detail : 0,
        };

        fragment_key(&key, p, direction, endpoint);
        return bpf_map_update_elem(&fragments, &key, &first, BPF_ANY);
}

/* Gives a later fragment its ports. False: its first one was not seen in time. */
static __noinline bool fragment_recall(struct packet *p, __u32 direction, __u32 endpoint, __u64 now)
{
        struct tb_fragment_key key;

        fragment_key(&key, p, direction, endpoint);
        struct tb_fragment *first = bpf_map_lookup_elem(&fragments, &key);

        if (!first || (now > first->seen_ns && now - first->seen_ns > FRAGMENT_NS))
                return false;
        set_ports(&p->tuple, direction, first->sport_be, first->dport_be);
        p->icmp = is_icmp(&p->tuple);
        p->detail = first->icmp_type;
        p->trackable = !p->icmp;
        return true;
}

#endif
