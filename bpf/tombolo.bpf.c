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

#include "conntrack.h"
#include "packet.h"
#include "report.h"
#include "source.h"
#include "verdict.h"

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
