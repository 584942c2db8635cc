/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a packet says: addresses, ports, flags; and which of them are neighbour discovery. */
#ifndef TOMBOLO_PACKET_H
#define TOMBOLO_PACKET_H

#include "abi.h"

/* Extension headers skipped before giving up; real packets carry at most two or three. */
#define EXTENSIONS_MAX 6

#define TCP_FLAGS_OFFSET 13
#define TCP_SYN 0x02
#define TCP_ACK 0x10

#define ICMP_ECHO_REPLY 0
#define ICMP_ECHO_REQUEST 8
#define ICMP6_ECHO_REQUEST 128
#define ICMP6_ECHO_REPLY 129
#define MLD_FIRST 130
#define MLD_LAST 132
#define ND_ROUTER_SOLICIT 133
#define ND_NEIGHBOUR_SOLICIT 135
#define ND_NEIGHBOUR_ADVERT 136
#define ND_LAST 137
#define MLD2_REPORT 143

/* What parsing found. */
struct packet {
        struct tb_address src;
        struct tb_address dst;
        __u16 sport_be;
        __u16 dport_be;
        __u8 proto;
        __u8 tcp_flags;
        __u8 icmp_type;
        __u8 hop_limit;
        __u32 l4_offset;
        /* TCP SYN without ACK or an echo request: never the answer to anything. */
        __u8 opens;
        /* May create the entry of a flow from the container. */
        __u8 trackable;
        __u8 v6;
        __u8 later_fragment;
} __attribute__((aligned(8))); /* addresses are compared in words */

static __always_inline bool address_equal(const struct tb_address *a, const struct tb_address *b)
{
        const __u64 *x = (const __u64 *)a, *y = (const __u64 *)b;

        return x[0] == y[0] && x[1] == y[1];
}

static __always_inline void address_from_v4(struct tb_address *to, __u32 addr_be)
{
        __u32 *words = (__u32 *)to;

        words[0] = words[1] = 0;
        words[2] = bpf_htonl(0xffff);
        words[3] = addr_be;
}

static __always_inline bool is_v4_mapped(const struct tb_address *a)
{
        const __u32 *words = (const __u32 *)a;

        return !words[0] && !words[1] && words[2] == bpf_htonl(0xffff);
}

static __always_inline bool is_link_local(const struct tb_address *a)
{
        return a->bytes[0] == 0xfe && (a->bytes[1] & 0xc0) == 0x80;
}

static __always_inline bool is_unspecified(const struct tb_address *a)
{
        const __u64 *x = (const __u64 *)a;

        return !x[0] && !x[1];
}

/* Reads ports, flags and types at l4_offset. Negative: truncated. */
static __always_inline int parse_l4(struct __sk_buff *skb, struct packet *p)
{
        switch (p->proto) {
        case IPPROTO_TCP:
                if (bpf_skb_load_bytes(skb, p->l4_offset + TCP_FLAGS_OFFSET, &p->tcp_flags, 1))
                        return -1;
                p->opens = (p->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
                p->trackable = p->opens;
                return bpf_skb_load_bytes(skb, p->l4_offset, &p->sport_be, 4);
        case IPPROTO_UDP:
        case IPPROTO_SCTP:
                p->trackable = 1;
                return bpf_skb_load_bytes(skb, p->l4_offset, &p->sport_be, 4);
        case IPPROTO_ICMP:
        case IPPROTO_ICMPV6:
                if (bpf_skb_load_bytes(skb, p->l4_offset, &p->icmp_type, 1))
                        return -1;
                if (p->icmp_type == (p->v6 ? ICMP6_ECHO_REQUEST : ICMP_ECHO_REQUEST)) {
                        p->opens = 1;
                        p->trackable = 1;
                } else if (p->icmp_type != (p->v6 ? ICMP6_ECHO_REPLY : ICMP_ECHO_REPLY)) {
                        return 0;
                }
                /* The id on both sides, so that a reply is the swapped request. */
                if (bpf_skb_load_bytes(skb, p->l4_offset + 4, &p->sport_be, 2))
                        return -1;
                p->dport_be = p->sport_be;
                return 0;
        default:
                p->trackable = 1;
                return 0;
        }
}

static __always_inline int parse_v4(struct __sk_buff *skb, struct packet *p)
{
        __u8 header[20];

        if (bpf_skb_load_bytes(skb, ETH_HLEN, header, sizeof(header)))
                return -1;
        __u32 length = (header[0] & 0x0f) * 4;

        if (header[0] >> 4 != 4 || length < sizeof(header))
                return -1;
        address_from_v4(&p->src, *(__u32 *)(header + 12));
        address_from_v4(&p->dst, *(__u32 *)(header + 16));
        p->proto = header[9];
        p->hop_limit = header[8];
        p->l4_offset = ETH_HLEN + length;
        if ((((__u16)header[6] << 8) | header[7]) & 0x1fff) {
                p->later_fragment = 1;
                return 0;
        }
        return parse_l4(skb, p);
}

static __always_inline int parse_v6(struct __sk_buff *skb, struct packet *p)
{
        __u8 next[2];
        __u32 offset = ETH_HLEN + 40;

        p->v6 = 1;
        /* next header and hop limit, then both addresses */
        if (bpf_skb_load_bytes(skb, ETH_HLEN + 6, next, 2) ||
            bpf_skb_load_bytes(skb, ETH_HLEN + 8, &p->src, 16) ||
            bpf_skb_load_bytes(skb, ETH_HLEN + 24, &p->dst, 16))
                return -1;
        __u8 proto = next[0];

        p->hop_limit = next[1];
        for (int i = 0; i < EXTENSIONS_MAX; i++) {
                __u8 extension[4];

                if (proto != IPPROTO_HOPOPTS && proto != IPPROTO_DSTOPTS &&
                    proto != IPPROTO_ROUTING && proto != IPPROTO_FRAGMENT)
                        break;
                if (bpf_skb_load_bytes(skb, offset, extension, sizeof(extension)))
                        return -1;
                if (proto == IPPROTO_FRAGMENT) {
                        if (extension[2] || extension[3] & 0xf8) {
                                p->proto = extension[0];
                                p->later_fragment = 1;
                                return 0;
                        }
                        offset += 8;
                } else {
                        offset += ((__u32)extension[1] + 1) * 8;
                }
                proto = extension[0];
        }
        p->proto = proto;
        p->l4_offset = offset;
        /* More headers than anybody sends: what follows is not a transport. */
        if (proto == IPPROTO_HOPOPTS || proto == IPPROTO_DSTOPTS || proto == IPPROTO_ROUTING ||
            proto == IPPROTO_FRAGMENT)
                return -1;
        return parse_l4(skb, p);
}

/* Neighbour discovery that came over this link: a router would have lowered the hop limit. */
static __always_inline bool is_neighbour_discovery(const struct packet *p)
{
        if (!p->v6 || p->proto != IPPROTO_ICMPV6 || p->later_fragment)
                return false;
        if (p->icmp_type >= ND_ROUTER_SOLICIT && p->icmp_type <= ND_LAST)
                return p->hop_limit == 255;
        return ((p->icmp_type >= MLD_FIRST && p->icmp_type <= MLD_LAST) ||
                p->icmp_type == MLD2_REPORT) &&
               p->hop_limit == 1;
}

#endif
