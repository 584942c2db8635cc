// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Policy between a container's host-side veth and the rest of the world.
 *
 * to_container   TCX egress of the veth: ingress policy of the endpoint behind it.
 * from_container TCX ingress of the veth: anti-spoofing, and the flows the endpoint opens itself.
 *
 * Always true: a verdict is stored together with the epoch that was read before the lookups it
 * came from, and counts only while the epoch has not moved. User space changes a map first and
 * moves the epoch second, so no verdict of before a revocation outlives it, in either direction.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/pkt_cls.h>
#include <stdbool.h>
#include <stddef.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "abi.h"
#include "maps.h"

#define SECOND_NS 1000000000ULL
/* As long as a connection may be silent; reused ports are judged anew by their SYN. */
#define TCP_IDLE_NS (6 * 3600 * SECOND_NS)
#define OTHER_IDLE_NS (60 * SECOND_NS)
/* Per source: enough for every distinct flow of a scan to be seen at first, then a sample. */
#define EVENT_BURST 200
#define EVENTS_PER_SECOND 100
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

static __always_inline __u32 identity_of(const struct tb_address *address)
{
        struct tb_ipcache_value *value = bpf_map_lookup_elem(&ipcache_exact, address);

        if (!value) {
                struct tb_lpm_key key = {.prefix_bits = 128, .address = *address};

                value = bpf_map_lookup_elem(&ipcache_lpm, &key);
        }
        return value && value->identity ? value->identity : TB_IDENTITY_WORLD;
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

static __always_inline __u32 verdict_at(struct tb_policy_key *key)
{
        struct tb_policy_value *value = bpf_map_lookup_elem(&policy, key);

        return value ? value->verdict : 0;
}

/*
 * May `identity` reach `port_be` of this endpoint? All levels are asked, as a deny in any of them
 * wins; with none at all the endpoint's default decides.
 */
static __noinline int ingress_allowed(struct tb_endpoint *endpoint, __u32 identity, __u32 port_be,
                                      __u32 proto)
{
        __u32 seen = 0;

        if (!endpoint)
                return 0;
        /* An ICMP id is no port. */
        if (proto != IPPROTO_TCP && proto != IPPROTO_UDP && proto != IPPROTO_SCTP)
                port_be = 0;
        for (int any = 0; any < 2; any++) {
                struct tb_policy_key key = {
                    .endpoint = endpoint->endpoint,
                    .identity = any ? TB_IDENTITY_ANY : identity,
                    .dport_be = port_be,
                    .proto = proto,
                    .direction = TB_INGRESS,
                };

                seen |= verdict_at(&key);
                if (port_be) {
                        key.dport_be = 0;
                        seen |= verdict_at(&key);
                }
                key.proto = 0;
                seen |= verdict_at(&key);
        }
        if (seen & TB_DENY)
                return 0;
        return seen & TB_ALLOW || !(endpoint->flags & TB_ENDPOINT_DENY_INGRESS);
}

static __always_inline __u32 current_epoch(void)
{
        __u32 row = 0;
        struct tb_config *value = bpf_map_lookup_elem(&config, &row);

        return value ? *(volatile __u32 *)&value->epoch : 0;
}

SEC("classifier")
int to_container(struct __sk_buff *skb)
{
        struct packet p = {};
        struct tb_conntrack_key key;
        struct tb_conntrack_value *value;
        __u32 ifindex = skb->ifindex;
        __u16 l3 = skb->protocol;
        struct tb_endpoint *endpoint = bpf_map_lookup_elem(&endpoints, &ifindex);

        if (!endpoint)
                return DROP(TB_UNKNOWN_ENDPOINT, TB_INGRESS, 0, 0, 0);
        if (l3 == bpf_htons(ETH_P_ARP))
                return forward(skb, TB_INGRESS);

        bool default_deny = endpoint->flags & TB_ENDPOINT_DENY_INGRESS;

        if (l3 != bpf_htons(ETH_P_IP) && l3 != bpf_htons(ETH_P_IPV6)) {
                if (!default_deny)
                        return forward(skb, TB_INGRESS);
                return DROP(TB_UNSUPPORTED_L3, TB_INGRESS, endpoint->endpoint, 0,
                            endpoint->identity);
        }
        if (l3 == bpf_htons(ETH_P_IP) ? parse_v4(skb, &p) : parse_v6(skb, &p)) {
                if (!default_deny)
                        return forward(skb, TB_INGRESS);
                return DROP(TB_INVALID_PACKET, TB_INGRESS, endpoint->endpoint, 0,
                            endpoint->identity);
        }
        /* Such an address on the wire would borrow the identity of an IPv4 host. */
        if (p.v6 && (is_v4_mapped(&p.src) || is_v4_mapped(&p.dst)))
                return DROP(TB_INVALID_SOURCE, TB_INGRESS, endpoint->endpoint, 0,
                            endpoint->identity);
        if (is_neighbour_discovery(&p))
                return forward(skb, TB_INGRESS);
        if (p.later_fragment) {
                if (!default_deny)
                        return forward(skb, TB_INGRESS);
                return DROP(TB_FRAGMENT, TB_INGRESS, endpoint->endpoint, identity_of(&p.src),
                            endpoint->identity);
        }

        __u64 now = bpf_ktime_get_ns();
        __u32 epoch = current_epoch();

        if (!p.opens) {
                /* An answer to what the endpoint opened itself? */
                key_reverse(&key, &p, TB_EGRESS, endpoint->endpoint);
                value = flow(&key, now);
                if (value) {
                        value->seen_ns = now;
                        return forward(skb, TB_INGRESS);
                }
        }
        key_forward(&key, &p, TB_INGRESS, endpoint->endpoint);
        value = flow(&key, now);
        if (value && !p.opens && value->epoch == epoch && !(value->flags & TB_CT_DENIED)) {
                value->seen_ns = now;
                return forward(skb, TB_INGRESS);
        }

        __u32 identity = identity_of(&p.src);

        if (!ingress_allowed(endpoint, identity, p.dport_be, p.proto)) {
                /* Kept, so that what the container still sends is known to belong to it. */
                if (value) {
                        value->flags = TB_CT_DENIED;
                        value->seen_ns = now;
                }
                return DROP(TB_POLICY_DENIED, TB_INGRESS, endpoint->endpoint, identity,
                            endpoint->identity);
        }
        struct tb_conntrack_value fresh = {.seen_ns = now, .epoch = epoch};

        bpf_map_update_elem(&conntrack, &key, &fresh, BPF_ANY);
        return forward(skb, TB_INGRESS);
}

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

SEC("classifier")
int from_container(struct __sk_buff *skb)
{
        struct packet p = {};
        struct tb_conntrack_key key;
        struct tb_conntrack_value *value;
        __u32 ifindex = skb->ifindex;
        __u16 l3 = skb->protocol;
        struct tb_endpoint *endpoint = bpf_map_lookup_elem(&endpoints, &ifindex);

        if (!endpoint)
                return DROP(TB_UNKNOWN_ENDPOINT, TB_EGRESS, 0, 0, 0);
        if (l3 == bpf_htons(ETH_P_ARP)) {
                if (arp_valid(skb, endpoint, &p))
                        return forward(skb, TB_EGRESS);
                return DROP(TB_INVALID_SOURCE, TB_EGRESS, endpoint->endpoint, endpoint->identity,
                            0);
        }
        if (l3 != bpf_htons(ETH_P_IP) && l3 != bpf_htons(ETH_P_IPV6))
                return DROP(TB_UNSUPPORTED_L3, TB_EGRESS, endpoint->endpoint, endpoint->identity,
                            0);
        if (l3 == bpf_htons(ETH_P_IP) ? parse_v4(skb, &p) : parse_v6(skb, &p))
                return DROP(TB_INVALID_PACKET, TB_EGRESS, endpoint->endpoint, endpoint->identity,
                            0);
        if (!source_valid(skb, endpoint, &p))
                return DROP(TB_INVALID_SOURCE, TB_EGRESS, endpoint->endpoint, endpoint->identity,
                            identity_of(&p.dst));
        /* Nothing to track: no flow of its own, or no ports in it. */
        if (p.later_fragment || is_neighbour_discovery(&p))
                return forward(skb, TB_EGRESS);

        __u64 now = bpf_ktime_get_ns();
        __u32 epoch = current_epoch();

        if (!p.opens) {
                /* An answer within a flow that was let in: only while it still would be. */
                key_reverse(&key, &p, TB_INGRESS, endpoint->endpoint);
                value = flow(&key, now);
                if (value) {
                        value->seen_ns = now;
                        if (value->epoch == epoch && !(value->flags & TB_CT_DENIED))
                                return forward(skb, TB_EGRESS);

                        __u32 remote = identity_of(&p.dst);

                        if (!ingress_allowed(endpoint, remote, p.sport_be, p.proto)) {
                                value->flags = TB_CT_DENIED;
                                return DROP(TB_POLICY_DENIED, TB_EGRESS, endpoint->endpoint,
                                            endpoint->identity, remote);
                        }
                        value->epoch = epoch;
                        value->flags = 0;
                        return forward(skb, TB_EGRESS);
                }
        }
        key_forward(&key, &p, TB_EGRESS, endpoint->endpoint);
        value = flow(&key, now);
        if (value) {
                value->seen_ns = now;
        } else if (p.trackable) {
                struct tb_conntrack_value fresh = {.seen_ns = now, .epoch = epoch};

                bpf_map_update_elem(&conntrack, &key, &fresh, BPF_ANY);
        }
        return forward(skb, TB_EGRESS);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
