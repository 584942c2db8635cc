/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* ICMP errors: which flow they are about. */
#ifndef TOMBOLO_RELATED_H
#define TOMBOLO_RELATED_H

#include "packet.h"

/* Of the transport header, an error carries eight bytes at least. */
#define EMBEDDED_BYTES 8

/* Ports of the packet inside; `direction` is the one that it went. */
static __always_inline bool embedded_ports(struct __sk_buff *skb, struct tuple *inner,
                                           __u32 direction, __u32 offset)
{
        __u8 l4[EMBEDDED_BYTES];

        if (bpf_skb_load_bytes(skb, offset, l4, sizeof(l4)))
                return false;
        if (is_icmp(inner))
                icmp_ports(inner, direction, l4[0], be16_at(l4 + 4));
        else if (inner->proto == IPPROTO_TCP || inner->proto == IPPROTO_UDP ||
                 inner->proto == IPPROTO_SCTP)
                set_ports(inner, direction, be16_at(l4), be16_at(l4 + 2));
        return true;
}

static __always_inline bool embedded_v4(struct __sk_buff *skb, struct tuple *inner, __u32 direction,
                                        __u32 offset)
{
        __u8 header[IPV4_BYTES];

        if (bpf_skb_load_bytes(skb, offset, header, sizeof(header)))
                return false;
        __u32 length = (header[0] & 0x0f) * 4;

        if (header[0] >> 4 != 4 || length < IPV4_BYTES ||
            bpf_ntohs(be16_at(header + 6)) & FRAGMENT_OFFSET_V4)
                return false;
        address_from_v4(source_of(inner, direction), *(__u32 *)(header + 12));
        address_from_v4(destination_of(inner, direction), *(__u32 *)(header + 16));
        inner->proto = header[9];
        return embedded_ports(skb, inner, direction, offset + length);
}

static __always_inline bool embedded_v6(struct __sk_buff *skb, struct tuple *inner, __u32 direction,
                                        __u32 offset)
{
        __u8 header[IPV6_BYTES];

        if (bpf_skb_load_bytes(skb, offset, header, sizeof(header)) || header[0] >> 4 != 6)
                return false;
        __builtin_memcpy(source_of(inner, direction), header + 8, 16);
        __builtin_memcpy(destination_of(inner, direction), header + 24, 16);
        inner->proto = header[6];
        inner->v6 = 1;
        return embedded_ports(skb, inner, direction, offset + IPV6_BYTES);
}

/*
 * The flow that an ICMP error is about: that of the packet inside, which went the other way and
 * came from where the error goes. False: none that could be told; extension headers inside are not
 * walked. A call of its own for its stack.
 */
static __noinline bool related_tuple(struct __sk_buff *skb, struct packet *p, struct tuple *inner,
                                     __u32 direction)
{
        __u32 back = direction == TB_INGRESS ? TB_EGRESS : TB_INGRESS;
        __u32 offset = p->l4_offset + ICMP_BYTES;

        if (p->tuple.v6 ? !embedded_v6(skb, inner, back, offset)
                        : !embedded_v4(skb, inner, back, offset))
                return false;
        return address_equal(source_of(inner, back), destination_of(&p->tuple, direction));
}

#endif
