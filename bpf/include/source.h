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

/* May the container send with this source, and say this about its neighbours? */
static __always_inline bool source_valid(struct __sk_buff *skb, const struct tb_endpoint *endpoint,
                                         const struct packet *p)
{
        bool discovery = is_neighbour_discovery(p);

        if (!p->v6)
                return is_own(endpoint, &p->src);
        if (is_v4_mapped(&p->src))
                return false;
        /* A container is no router: neither advertisements nor redirects. */
        if (discovery && p->icmp_type > ND_ROUTER_SOLICIT && p->icmp_type <= ND_LAST &&
            p->icmp_type != ND_NEIGHBOUR_SOLICIT && p->icmp_type != ND_NEIGHBOUR_ADVERT)
                return false;
        if (discovery && p->icmp_type == ND_NEIGHBOUR_ADVERT) {
                struct tb_address target __attribute__((aligned(8)));

                if (bpf_skb_load_bytes(skb, p->l4_offset + 8, &target, sizeof(target)))
                        return false;
                if (!is_own(endpoint, &target) && !is_link_local(&target))
                        return false;
        }
        if (is_own(endpoint, &p->src))
                return true;
        return discovery && (is_link_local(&p->src) || is_unspecified(&p->src));
}

static __always_inline bool arp_valid(struct __sk_buff *skb, const struct tb_endpoint *endpoint,
                                      struct packet *p)
{
        /* sender IP at 14, target IP at 24 of an Ethernet/IPv4 ARP packet */
        __u32 sender_be, target_be;

        if (bpf_skb_load_bytes(skb, ETH_HLEN + 14, &sender_be, 4) ||
            bpf_skb_load_bytes(skb, ETH_HLEN + 24, &target_be, 4))
                return false;
        address_from_v4(&p->src, sender_be);
        address_from_v4(&p->dst, target_be);
        /* 0.0.0.0 asks whether an address is free (RFC 5227). */
        return !sender_be || is_own(endpoint, &p->src);
}

#endif
