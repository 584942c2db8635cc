/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a packet says: addresses, ports, flags; and which of them are neighbour discovery. */
#ifndef TOMBOLO_PACKET_H
#define TOMBOLO_PACKET_H

#include "abi.h"

/* Extension headers walked before giving up; real packets carry at most two or three. */
#define EXTENSIONS_MAX 6

/* Shortest headers that a transport can have; a packet or first fragment with less is invalid. */
#define TCP_BYTES 20
#define UDP_BYTES 8
#define ICMP_BYTES 8
/* The common header and the head of the first chunk. */
#define SCTP_BYTES 16
#define IPV4_BYTES 20
#define IPV6_BYTES 40

#define TCP_FLAGS_OFFSET 13
#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

#define SCTP_CHUNK_OFFSET 12
#define SCTP_INIT 1
#define SCTP_INIT_ACK 2

#define ICMP_ECHO_REPLY 0
#define ICMP_ECHO_REQUEST 8
#define ICMP_DEST_UNREACHABLE 3
#define ICMP_SOURCE_QUENCH 4
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETER_PROBLEM 12
#define ICMP6_ERROR_FIRST 1
#define ICMP6_ERROR_LAST 4
#define ICMP6_ECHO_REQUEST 128
#define ICMP6_ECHO_REPLY 129
#define MLD_FIRST 130
#define MLD_LAST 132
#define ND_ROUTER_SOLICIT 133
#define ND_NEIGHBOUR_SOLICIT 135
#define ND_NEIGHBOUR_ADVERT 136
#define ND_LAST 137
#define MLD2_REPORT 143

#define FRAGMENT_OFFSET_V4 0x1fff
#define FRAGMENT_MORE_V4 0x2000

/* Farther into a frame than six extension headers reach: lets the verifier follow. */
#define OFFSET_MAX 0x3fff

/* Both ends of a flow, seen from the endpoint. */
struct tuple {
        struct tb_address remote;
        struct tb_address local;
        __u16 remote_port_be;
        __u16 local_port_be;
        __u8 proto;
        __u8 v6;
} __attribute__((aligned(8))); /* addresses are compared in words */

/* What parsing found. */
struct packet {
        struct tuple tuple;
        __u32 l4_offset;
        __u32 fragment_id;
        /* TCP flags, or the type of an ICMP message. */
        __u8 detail;
        __u8 hop_limit;
        /* TCP SYN without ACK, SCTP INIT, echo request: never the answer to anything. */
        __u8 opens;
        /* TCP SYN with ACK, SCTP INIT ACK: the endpoint that sends it is a server. */
        __u8 accepts;
        /* May make the entry of a flow. */
        __u8 trackable;
        __u8 icmp;
        __u8 icmp_error;
        __u8 first_fragment;
        __u8 later_fragment;
        /* Any fragment header at all, also of a datagram in one piece. */
        __u8 fragment_header;
};

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

static __always_inline __u32 v4_of(const struct tb_address *a)
{
        return ((const __u32 *)a)[3];
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

static __always_inline __u16 be16_at(const __u8 *bytes)
{
        return *(const __u16 *)bytes;
}

/*
 * `size` bytes of the frame: in place if they are in its linear part, else copied to `buffer`.
 * NULL: the frame ends before.
 */
static __always_inline const __u8 *bytes_at(struct __sk_buff *skb, __u32 offset, __u8 *buffer,
                                            __u32 size)
{
        const __u8 *data = (const __u8 *)(long)skb->data, *end = (const __u8 *)(long)skb->data_end;

        if (offset <= OFFSET_MAX) {
                data += offset;
                if (data + size <= end)
                        return data;
        }
        return bpf_skb_load_bytes(skb, offset, buffer, size) ? NULL : buffer;
}

static __always_inline struct tb_address *source_of(struct tuple *tuple, __u32 direction)
{
        return direction == TB_INGRESS ? &tuple->remote : &tuple->local;
}

static __always_inline struct tb_address *destination_of(struct tuple *tuple, __u32 direction)
{
        return direction == TB_INGRESS ? &tuple->local : &tuple->remote;
}

static __always_inline void set_ports(struct tuple *tuple, __u32 direction, __u16 source_be,
                                      __u16 destination_be)
{
        tuple->remote_port_be = direction == TB_INGRESS ? source_be : destination_be;
        tuple->local_port_be = direction == TB_INGRESS ? destination_be : source_be;
}

static __always_inline bool is_icmp(const struct tuple *tuple)
{
        return tuple->proto == (tuple->v6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP);
}

static __always_inline bool is_icmp_error(bool v6, __u8 type)
{
        if (v6)
                return type >= ICMP6_ERROR_FIRST && type <= ICMP6_ERROR_LAST;
        return type == ICMP_DEST_UNREACHABLE || type == ICMP_SOURCE_QUENCH ||
               type == ICMP_TIME_EXCEEDED || type == ICMP_PARAMETER_PROBLEM;
}

/*
 * The ports of an ICMP message: its type is the port it is sent to. An echo goes from the id to
 * the request's type, and its reply back, so that one id used from both ends makes two flows.
 */
static __always_inline void icmp_ports(struct tuple *tuple, __u32 direction, __u8 type, __u16 id_be)
{
        __u8 request = tuple->v6 ? ICMP6_ECHO_REQUEST : ICMP_ECHO_REQUEST;
        __u8 reply = tuple->v6 ? ICMP6_ECHO_REPLY : ICMP_ECHO_REPLY;

        if (type == request)
                set_ports(tuple, direction, id_be, bpf_htons(request));
        else if (type == reply)
                set_ports(tuple, direction, bpf_htons(request), id_be);
        else
                set_ports(tuple, direction, 0, bpf_htons(type));
}

/* Reads ports, flags and types at l4_offset. Negative: truncated. */
static __always_inline int parse_l4(struct __sk_buff *skb, struct packet *p, __u32 direction)
{
        __u8 buffer[TCP_BYTES];
        const __u8 *l4;

        p->trackable = 1;
        switch (p->tuple.proto) {
        case IPPROTO_TCP:
                l4 = bytes_at(skb, p->l4_offset, buffer, TCP_BYTES);
                if (!l4)
                        return -1;
                p->detail = l4[TCP_FLAGS_OFFSET];
                p->opens = (p->detail & (TCP_SYN | TCP_ACK)) == TCP_SYN;
                p->accepts = (p->detail & (TCP_SYN | TCP_ACK)) == (TCP_SYN | TCP_ACK);
                break;
        case IPPROTO_UDP:
                l4 = bytes_at(skb, p->l4_offset, buffer, UDP_BYTES);
                if (!l4)
                        return -1;
                break;
        case IPPROTO_SCTP:
                l4 = bytes_at(skb, p->l4_offset, buffer, SCTP_BYTES);
                if (!l4)
                        return -1;
                p->opens = l4[SCTP_CHUNK_OFFSET] == SCTP_INIT;
                p->accepts = l4[SCTP_CHUNK_OFFSET] == SCTP_INIT_ACK;
                break;
        default:
                if (!is_icmp(&p->tuple))
                        return 0;
                l4 = bytes_at(skb, p->l4_offset, buffer, ICMP_BYTES);
                if (!l4)
                        return -1;
                p->icmp = 1;
                p->detail = l4[0];
                p->opens = p->detail == (p->tuple.v6 ? ICMP6_ECHO_REQUEST : ICMP_ECHO_REQUEST);
                p->trackable = p->opens;
                p->icmp_error = is_icmp_error(p->tuple.v6, p->detail);
                icmp_ports(&p->tuple, direction, p->detail, be16_at(l4 + 4));
                return 0;
        }
        set_ports(&p->tuple, direction, be16_at(l4), be16_at(l4 + 2));
        return 0;
}

/* Negative: truncated, or not what its version says. */
static __always_inline int parse_v4(struct __sk_buff *skb, struct packet *p, __u32 direction)
{
        __u8 buffer[IPV4_BYTES];
        const __u8 *header = bytes_at(skb, ETH_HLEN, buffer, IPV4_BYTES);

        if (!header)
                return -1;
        __u32 length = (header[0] & 0x0f) * 4;
        __u16 fragment = bpf_ntohs(be16_at(header + 6));

        if (header[0] >> 4 != 4 || length < IPV4_BYTES)
                return -1;
        address_from_v4(source_of(&p->tuple, direction), *(const __u32 *)(header + 12));
        address_from_v4(destination_of(&p->tuple, direction), *(const __u32 *)(header + 16));
        p->tuple.proto = header[9];
        p->hop_limit = header[8];
        p->l4_offset = ETH_HLEN + length;
        if (fragment & (FRAGMENT_OFFSET_V4 | FRAGMENT_MORE_V4)) {
                p->fragment_id = be16_at(header + 4);
                p->first_fragment = !(fragment & FRAGMENT_OFFSET_V4);
                p->later_fragment = !p->first_fragment;
                /* It would overwrite the flags of the header in the first one (RFC 3128). */
                if (p->tuple.proto == IPPROTO_TCP && (fragment & FRAGMENT_OFFSET_V4) == 1)
                        return -1;
        }
        return p->later_fragment ? 0 : parse_l4(skb, p, direction);
}

static __always_inline bool is_extension(__u8 proto)
{
        return proto == IPPROTO_HOPOPTS || proto == IPPROTO_DSTOPTS || proto == IPPROTO_ROUTING ||
               proto == IPPROTO_FRAGMENT || proto == IPPROTO_AH;
}

/* Walks the extension headers from `proto` at l4_offset on. Negative: truncated, or too many. */
static __always_inline int parse_extensions(struct __sk_buff *skb, struct packet *p, __u8 proto)
{
#pragma clang loop unroll(disable)
        for (int i = 0; i < EXTENSIONS_MAX && is_extension(proto); i++) {
                __u8 head[8];

                /* The shortest of them has eight bytes. */
                if (bpf_skb_load_bytes(skb, p->l4_offset, head, sizeof(head)))
                        return -1;
                if (proto == IPPROTO_FRAGMENT) {
                        __u16 offset = bpf_ntohs(be16_at(head + 2)) >> 3;

                        p->fragment_header = 1;
                        p->fragment_id = *(const __u32 *)(head + 4);
                        p->later_fragment = offset > 0;
                        p->first_fragment = !offset && head[3] & 1;
                        p->l4_offset += 8;
                        if (offset) {
                                p->tuple.proto = head[0];
                                return head[0] == IPPROTO_TCP && offset == 1 ? -1 : 0;
                        }
                } else if (proto == IPPROTO_AH) {
                        p->l4_offset += ((__u32)head[1] + 2) * 4;
                } else {
                        p->l4_offset += ((__u32)head[1] + 1) * 8;
                }
                proto = head[0];
        }
        p->tuple.proto = proto;
        return is_extension(proto) ? -1 : 0;
}

static __always_inline int parse_v6(struct __sk_buff *skb, struct packet *p, __u32 direction)
{
        __u8 buffer[IPV6_BYTES];
        const __u8 *header = bytes_at(skb, ETH_HLEN, buffer, IPV6_BYTES);

        if (!header || header[0] >> 4 != 6)
                return -1;
        p->tuple.v6 = 1;
        p->tuple.proto = header[6];
        p->hop_limit = header[7];
        __builtin_memcpy(source_of(&p->tuple, direction), header + 8, 16);
        __builtin_memcpy(destination_of(&p->tuple, direction), header + 24, 16);
        p->l4_offset = ETH_HLEN + IPV6_BYTES;
        if (is_extension(p->tuple.proto) && parse_extensions(skb, p, p->tuple.proto))
                return -1;
        return p->later_fragment ? 0 : parse_l4(skb, p, direction);
}

/*
 * Neighbour discovery that came over this link: a router would have lowered the hop limit, and
 * nobody sends it in fragments (RFC 6980).
 */
static __always_inline bool is_neighbour_discovery(const struct packet *p)
{
        if (!p->tuple.v6 || p->tuple.proto != IPPROTO_ICMPV6 || p->fragment_header)
                return false;
        if (p->detail >= ND_ROUTER_SOLICIT && p->detail <= ND_LAST)
                return p->hop_limit == 255;
        return ((p->detail >= MLD_FIRST && p->detail <= MLD_LAST) || p->detail == MLD2_REPORT) &&
               p->hop_limit == 1;
}

#endif
