/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Anti-spoofing: what a container may say about itself, by IP, ARP and neighbour discovery. */
#ifndef TOMBOLO_SOURCE_H
#define TOMBOLO_SOURCE_H

#include "packet.h"

static __always_inline bool is_own(const struct tb_endpoint *endpoint, const struct tb_address *a)
{
        for (__u32 i = 0; i < TB_ADDRESSES_MAX; i++) {
                if (i < endpoint->address_count && address_equal(&endpoint->addresses[i], a))
                        return true;
        }
        return false;
}

/* May the container say this about its neighbours? It is no router. */
static __always_inline bool
discovery_valid(struct __sk_buff *skb, const struct tb_endpoint *endpoint, const struct packet *p)
{
        struct tb_address target __attribute__((aligned(8)));

        if (p->detail == ND_NEIGHBOUR_ADVERT) {
                if (bpf_skb_load_bytes(skb, p->l4_offset + 8, &target, sizeof(target)))
                        return false;
                return is_own(endpoint, &target) || is_link_local(&target);
        }
        return p->detail <= ND_ROUTER_SOLICIT || p->detail == ND_NEIGHBOUR_SOLICIT ||
               p->detail == MLD2_REPORT;
}

/* May the container send with this source? */
static __always_inline bool source_valid(struct __sk_buff *skb, const struct tb_endpoint *endpoint,
                                         const struct packet *p)
{
        const struct tb_address *source = &p->tuple.local;

        if (!p->tuple.v6)
                return is_own(endpoint, source);
        if (is_v4_mapped(source))
                return false;
        if (!is_neighbour_discovery(p))
                return is_own(endpoint, source);
        return discovery_valid(skb, endpoint, p) &&
               (is_own(endpoint, source) || is_link_local(source) || is_unspecified(source));
}

static __always_inline bool arp_valid(struct __sk_buff *skb, const struct tb_endpoint *endpoint,
                                      struct tuple *tuple)
{
        /* sender IP at 14, target IP at 24 of an Ethernet/IPv4 ARP packet */
        __u32 sender_be, target_be;

        if (bpf_skb_load_bytes(skb, ETH_HLEN + 14, &sender_be, 4) ||
            bpf_skb_load_bytes(skb, ETH_HLEN + 24, &target_be, 4))
                return false;
        address_from_v4(&tuple->local, sender_be);
        address_from_v4(&tuple->remote, target_be);
        /* 0.0.0.0 asks whether an address is free (RFC 5227). */
        return !sender_be || is_own(endpoint, &tuple->local);
}

#endif
