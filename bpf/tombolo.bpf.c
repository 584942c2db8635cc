// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Policy between a container's host-side veth and the rest of the world.
 *
 * to_container: TCX egress of the veth, where the endpoint's ingress policy is asked.
 * from_container: TCX ingress of the veth, where spoofed sources are dropped and the endpoint's
 * egress policy is asked.
 *
 * Both are the same program; the direction is known when it is compiled.
 *
 * Always true: a verdict is stored together with the epoch that was read before
 * the lookups it came from, and counts only while the epoch has not moved. User
 * space changes a map first and moves the epoch second, so no verdict of before
 * a revocation outlives it, in either direction. A denied flow carries an epoch
 * that is not the current one.
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
#include "fragment.h"
#include "packet.h"
#include "related.h"
#include "report.h"
#include "source.h"
#include "verdict.h"

/* When a packet is judged: one reading for all of a run. */
struct now {
        __u64 ns;
        __u32 epoch;
        /* Of the config row. */
        __u32 flags;
};

/* A flow that is to be judged. */
struct candidate {
        /* Its entry, if it stays the same flow. */
        struct tb_flow *flow;
        /* Which side opened it. */
        __u32 opener;
        /* Of a new entry. */
        __u8 flags;
        __u8 track;
        /* The first packet of the flow, as policy is asked about it. */
        struct tb_address remote __attribute__((aligned(8)));
        __u16 port_be;
        __u8 proto;
};

/* Says that a packet passes only because policy is on trial. */
static __always_inline void audit(struct __sk_buff *skb, struct packet *p, struct place *place,
                                  __u8 reason, __u64 who)
{
        count(place->slot, TB_AUDITED, place->direction, skb->len);
        say(skb, p, place, WHAT(TB_EVENT_VERDICT, TB_ACTION_AUDIT, reason), who);
}

/* What policy cannot judge does not pass where policy has to allow it first. */
static __always_inline int unjudged(struct __sk_buff *skb, struct packet *p, struct place *place,
                                    const struct now *now, __u8 reason, __u32 remote_identity)
{
        __u32 flags = place->endpoint->flags;
        bool deny = flags >> place->direction & TB_ENDPOINT_DENY_INGRESS;
        bool trial = flags >> place->direction & TB_ENDPOINT_AUDIT_DENY_INGRESS;

        if (deny && !(flags & TB_ENDPOINT_AUDIT) && !(now->flags & TB_CONFIG_AUDIT))
                return drop(skb, p, place, reason, WHO(remote_identity, 0));
        if (deny || trial)
                audit(skb, p, place, reason, WHO(remote_identity, 0));
        return forward(skb, place);
}

/* Keeps an entry's time and state; writes only what differs, as the line is
 * shared by all CPUs. */
static __always_inline void touch(struct tb_flow *flow, const struct packet *p, __u32 direction,
                                  __u32 endpoint, __u64 now)
{
        bool opener = flow->direction == direction;
        __u8 flags = flow->flags | closed_by(p, opener) | (opener ? 0 : TB_FLOW_REPLIED);

        if (flags != flow->flags) {
                if (direction == TB_EGRESS && p->accepts && !opener)
                        role_set(&p->tuple, endpoint, TB_ROLE_SERVER);
                flow->flags = flags;
                flow->seen_ns = now;
        } else if (now > flow->seen_ns + SECOND_NS) {
                flow->seen_ns = now;
        }
}

/* The question is about the flow `tuple`, opened by one side; `flow` is its
 * entry or NULL. */
static __always_inline void about(struct candidate *c, const struct tuple *tuple,
                                  struct tb_flow *flow, __u32 opener)
{
        c->flow = flow;
        c->opener = opener;
        c->remote = tuple->remote;
        c->port_be = flow_port_be(tuple, opener);
        c->proto = tuple->proto;
}

/* What becomes of the entry of a packet that opens a flow and may: `flow` is
 * what is there. */
static __always_inline void opening(struct candidate *c, const struct packet *p,
                                    struct tb_flow *flow, __u32 direction)
{
        bool live =
            flow && (flow->flags & FLOW_CLOSED) != FLOW_CLOSED && !(flow->flags & TB_FLOW_DENIED);

        if (live && flow->direction == direction)
                c->flow = flow;
        /* While the other side's flow lives, this packet leaves it alone. */
        c->track = p->trackable && !live;
}

/*
 * A packet without an entry that opens nothing. Of TCP and SCTP it belongs to a flow that was
 * forgotten, or never seen; what the endpoint last used its port for says who opened it. An unknown
 * port counts as the sender's flow, but makes no entry: the packet might be the answer in a flow
 * that nobody let in, and each side's are judged by that side's policy.
 */
static __always_inline void midstream(struct candidate *c, struct packet *p, __u32 endpoint,
                                      __u32 direction)
{
        __u32 role = role_of(&p->tuple, endpoint), opener = direction;

        if (role != TB_ROLE_UNKNOWN)
                opener = role == TB_ROLE_SERVER ? TB_INGRESS : TB_EGRESS;
        /* An echo reply to nothing is a message of its type, like any other. */
        if (p->icmp)
                set_ports(&p->tuple, direction, 0, bpf_htons(p->detail));
        about(c, &p->tuple, NULL, opener);
        c->track = p->trackable;
        if (!has_roles(&p->tuple))
                return;
        c->flags = TB_FLOW_REPLIED;
        if (role == TB_ROLE_UNKNOWN || (p->tuple.proto == IPPROTO_TCP && p->detail & TCP_RST))
                c->track = 0;
}

/* Reports a flow that policy allows, where somebody asked for that. */
static __always_inline void report_allowed(struct __sk_buff *skb, struct packet *p,
                                           struct place *place, __u32 flags, __u64 who,
                                           bool tracked)
{
        if (flags & TB_CONFIG_REPORT_VERDICTS)
                say(skb, p, place, WHAT(TB_EVENT_VERDICT, TB_ACTION_ALLOW, 0), who);
        if (flags & TB_CONFIG_REPORT_TRACES && tracked)
                say(skb, p, place, WHAT(TB_EVENT_TRACE, TB_ACTION_ALLOW, 0), who);
}

/* Keeps what was decided: refreshes the entry, or makes one. True: a new one.
 */
static __always_inline bool keep(struct __sk_buff *skb, struct packet *p, struct place *place,
                                 const struct now *now, const struct candidate *c, __u32 identity,
                                 __u32 rule)
{
        if (c->flow) {
                c->flow->flags &= ~TB_FLOW_DENIED;
                c->flow->rule = rule;
                c->flow->identity = identity;
                c->flow->epoch = now->epoch;
                return false;
        }
        if (!c->track)
                return false;
        struct tb_flow flow = {
            .seen_ns = now->ns,
            .epoch = now->epoch,
            .rule = rule,
            .identity = identity,
            .direction = c->opener,
            .flags = c->flags,
        };

        if (flow_insert(&p->tuple, place->endpoint->endpoint, &flow))
                return true;
        count(place->slot, TB_UNTRACKED, place->direction, skb->len);
        return false;
}

/* Asks policy about the flow to which the packet belongs, and does what it
 * says. */
static __always_inline int decide(struct __sk_buff *skb, struct packet *p, struct place *place,
                                  const struct now *now, struct candidate *c)
{
        struct question q = {
            .identity = identity_of(&c->remote),
            .direction = c->opener,
            .port_be = c->port_be,
            .proto = c->proto,
        };
        __u64 answer = judge(place->endpoint, &q, now->flags);
        __u32 rule = (__u32)answer, action = answer >> 32;

        count_rule(rule);
        if (action == DENY) {
                if (c->flow) {
                        c->flow->epoch = now->epoch - 1;
                        c->flow->flags |= TB_FLOW_DENIED;
                }
                return drop(skb, p, place, TB_POLICY_DENIED, WHO(q.identity, rule));
        }
        if (action == AUDIT)
                audit(skb, p, place, TB_POLICY_DENIED, WHO(q.identity, rule));

        /* Asked only now: a flood of what is denied costs no look-up. */
        if (p->opens)
                opening(c, p, flow_lookup(&p->tuple, place->endpoint->endpoint, now->ns),
                        place->direction);

        bool fresh = keep(skb, p, place, now, c, q.identity, rule);

        if (place->direction == TB_EGRESS && p->opens)
                role_set(&p->tuple, place->endpoint->endpoint, TB_ROLE_CLIENT);
        if (action == ALLOW && !c->flow &&
            now->flags & (TB_CONFIG_REPORT_VERDICTS | TB_CONFIG_REPORT_TRACES))
                report_allowed(skb, p, place, now->flags, WHO(q.identity, rule), fresh);
        return forward(skb, place);
}

/* A packet that has a source, a destination and a protocol: its flow, or a new
 * one. */
static __always_inline int follow(struct __sk_buff *skb, struct packet *p, struct place *place,
                                  const struct now *now)
{
        const __u32 direction = place->direction, endpoint = place->endpoint->endpoint;
        struct candidate c = {};
        struct tb_flow *flow = NULL;
        struct tuple inner = {};

        if (p->first_fragment)
                fragment_remember(p, direction, endpoint, now->ns);
        if (p->later_fragment && !fragment_recall(p, direction, endpoint, now->ns))
                return unjudged(skb, p, place, now, TB_FRAGMENT, identity_of(&p->tuple.remote));
        if (p->icmp_error && related_tuple(skb, p, &inner, direction))
                flow = flow_lookup(&inner, endpoint, now->ns);
        if (flow) {
                if (flow->epoch == now->epoch)
                        return forward(skb, place);
                about(&c, &inner, flow, flow->direction);
                return decide(skb, p, place, now, &c);
        }
        if (p->opens) {
                about(&c, &p->tuple, NULL, direction);
                return decide(skb, p, place, now, &c);
        }
        flow = flow_lookup(&p->tuple, endpoint, now->ns);
        if (flow && flow->epoch == now->epoch) {
                touch(flow, p, direction, endpoint, now->ns);
                return forward(skb, place);
        }
        if (flow)
                about(&c, &p->tuple, flow, flow->direction);
        else
                midstream(&c, p, endpoint, direction);
        return decide(skb, p, place, now, &c);
}

/* Global, so that the verifier walks what follows once, not once for each kind
 * of packet. */
__noinline int follow_ingress(struct __sk_buff *skb, struct packet *p, struct tb_endpoint *endpoint,
                              struct now *now)
{
        if (!p || !endpoint || !now)
                return TC_ACT_SHOT;
        struct place place = {endpoint, TB_INGRESS, endpoint->slot};

        return follow(skb, p, &place, now);
}

__noinline int follow_egress(struct __sk_buff *skb, struct packet *p, struct tb_endpoint *endpoint,
                             struct now *now)
{
        if (!p || !endpoint || !now)
                return TC_ACT_SHOT;
        struct place place = {endpoint, TB_EGRESS, endpoint->slot};

        return follow(skb, p, &place, now);
}

static __always_inline bool is_vlan(struct __sk_buff *skb)
{
        return skb->vlan_present || skb->protocol == bpf_htons(ETH_P_8021Q) ||
               skb->protocol == bpf_htons(ETH_P_8021AD);
}

/* What is no IP packet, or none that can be read. */
static __always_inline int strange(struct __sk_buff *skb, struct packet *p, struct place *place,
                                   const struct now *now, __u8 reason)
{
        if (place->direction == TB_EGRESS)
                return drop(skb, p, place, reason, 0);
        return unjudged(skb, p, place, now, reason, 0);
}

static __always_inline int run(struct __sk_buff *skb, const __u32 direction)
{
        struct packet p = {};
        struct place place = {.direction = direction, .slot = TB_SLOT_UNKNOWN};
        struct now now;
        __u32 ifindex = skb->ifindex, row = 0;
        __u16 l3 = skb->protocol;
        struct tb_config *settings = bpf_map_lookup_elem(&config, &row);

        place.endpoint = bpf_map_lookup_elem(&endpoints, &ifindex);
        if (!place.endpoint || !settings)
                return drop(skb, &p, &place, TB_UNKNOWN_ENDPOINT, 0);
        place.slot = place.endpoint->slot;
        now.epoch = *(volatile __u32 *)&settings->epoch;
        now.flags = settings->flags;
        now.ns = bpf_ktime_get_coarse_ns();
        if (is_vlan(skb))
                return strange(skb, &p, &place, &now, TB_VLAN);
        if (l3 == bpf_htons(ETH_P_ARP)) {
                if (direction == TB_EGRESS && !arp_valid(skb, place.endpoint, &p.tuple))
                        return drop(skb, &p, &place, TB_INVALID_SOURCE, 0);
                return forward(skb, &place);
        }
        if (l3 != bpf_htons(ETH_P_IP) && l3 != bpf_htons(ETH_P_IPV6))
                return strange(skb, &p, &place, &now, TB_UNSUPPORTED_L3);
        if (l3 == bpf_htons(ETH_P_IP) ? parse_v4(skb, &p, direction) : parse_v6(skb, &p, direction))
                return strange(skb, &p, &place, &now, TB_INVALID_PACKET);
        /* Such an address on the wire would borrow the identity of an IPv4 host. */
        if (p.tuple.v6 && (is_v4_mapped(&p.tuple.remote) || is_v4_mapped(&p.tuple.local)))
                return drop(skb, &p, &place, TB_INVALID_SOURCE, 0);
        if (direction == TB_EGRESS && !source_valid(skb, place.endpoint, &p))
                return drop(skb, &p, &place, TB_INVALID_SOURCE,
                            WHO(identity_of(&p.tuple.remote), 0));
        if (is_neighbour_discovery(&p))
                return forward(skb, &place);
        return direction == TB_INGRESS ? follow_ingress(skb, &p, place.endpoint, &now)
                                       : follow_egress(skb, &p, place.endpoint, &now);
}

SEC("classifier")
int to_container(struct __sk_buff *skb)
{
        return run(skb, TB_INGRESS);
}

SEC("classifier")
int from_container(struct __sk_buff *skb)
{
        return run(skb, TB_EGRESS);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
