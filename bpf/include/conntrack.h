/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Flows: one entry for both ways, under the endpoint's view of the addresses; how long one may be
 * silent; and which side opens the flows of a port, for packets whose entry is gone.
 */
#ifndef TOMBOLO_CONNTRACK_H
#define TOMBOLO_CONNTRACK_H

#include "maps.h"
#include "packet.h"

#define FLOW_CLOSED (TB_FLOW_OPENER_CLOSED | TB_FLOW_ANSWERER_CLOSED)

static __always_inline void flow_v4_key(struct tb_flow_v4_key *key, const struct tuple *tuple,
                                        __u32 endpoint)
{
        key->endpoint = endpoint;
        key->remote_be = v4_of(&tuple->remote);
        key->local_be = v4_of(&tuple->local);
        key->remote_port_be = tuple->remote_port_be;
        key->local_port_be = tuple->local_port_be;
        key->proto = tuple->proto;
        key->pad[0] = key->pad[1] = key->pad[2] = 0;
}

static __always_inline void flow_v6_key(struct tb_flow_v6_key *key, const struct tuple *tuple,
                                        __u32 endpoint)
{
        key->endpoint = endpoint;
        key->remote = tuple->remote;
        key->local = tuple->local;
        key->remote_port_be = tuple->remote_port_be;
        key->local_port_be = tuple->local_port_be;
        key->proto = tuple->proto;
        key->pad[0] = key->pad[1] = key->pad[2] = 0;
}

static __always_inline __u64 idle_ns(const struct tb_flow *flow, const struct tuple *tuple)
{
        if (is_icmp(tuple))
                return TB_ICMP_SECONDS * SECOND_NS;
        if (tuple->proto != IPPROTO_TCP)
                return TB_OTHER_SECONDS * SECOND_NS;
        if ((flow->flags & FLOW_CLOSED) == FLOW_CLOSED)
                return TB_TCP_CLOSING_SECONDS * SECOND_NS;
        if (flow->flags & TB_FLOW_REPLIED)
                return TB_TCP_ESTABLISHED_SECONDS * SECOND_NS;
        return TB_TCP_OPENING_SECONDS * SECOND_NS;
}

/* The entry, if it was seen within its time. */
static __always_inline struct tb_flow *flow_lookup(const struct tuple *tuple, __u32 endpoint,
                                                   __u64 now)
{
        struct tb_flow *flow;

        if (tuple->v6) {
                struct tb_flow_v6_key key;

                flow_v6_key(&key, tuple, endpoint);
                flow = bpf_map_lookup_elem(&conntrack_v6, &key);
        } else {
                struct tb_flow_v4_key key;

                flow_v4_key(&key, tuple, endpoint);
                flow = bpf_map_lookup_elem(&conntrack_v4, &key);
        }
        /* Another CPU may have been here a moment later than our `now`. */
        if (flow && now > flow->seen_ns && now - flow->seen_ns > idle_ns(flow, tuple))
                return NULL;
        return flow;
}

/* False: no room. */
static __always_inline bool flow_insert(const struct tuple *tuple, __u32 endpoint,
                                        const struct tb_flow *flow)
{
        if (tuple->v6) {
                struct tb_flow_v6_key key;

                flow_v6_key(&key, tuple, endpoint);
                return !bpf_map_update_elem(&conntrack_v6, &key, flow, BPF_ANY);
        }
        struct tb_flow_v4_key key;

        flow_v4_key(&key, tuple, endpoint);
        return !bpf_map_update_elem(&conntrack_v4, &key, flow, BPF_ANY);
}

/* Which side of the flow this packet comes from is closed by it; zero for most. */
static __always_inline __u8 closed_by(const struct packet *p, bool opener)
{
        if (p->tuple.proto != IPPROTO_TCP || p->later_fragment)
                return 0;
        if (p->detail & TCP_RST)
                return FLOW_CLOSED;
        if (p->detail & TCP_FIN)
                return opener ? TB_FLOW_OPENER_CLOSED : TB_FLOW_ANSWERER_CLOSED;
        return 0;
}

/* The policy port of a flow: where its opener sent the first packet. */
static __always_inline __u16 flow_port_be(const struct tuple *tuple, __u32 opener)
{
        return opener == TB_INGRESS ? tuple->local_port_be : tuple->remote_port_be;
}

static __always_inline bool has_roles(const struct tuple *tuple)
{
        return tuple->proto == IPPROTO_TCP || tuple->proto == IPPROTO_SCTP;
}

static __always_inline void roles_key(struct tb_roles_key *key, const struct tuple *tuple,
                                      __u32 endpoint)
{
        key->endpoint = endpoint;
        key->block = bpf_ntohs(tuple->local_port_be) / TB_ROLES_PER_BLOCK;
        key->proto = tuple->proto;
        key->pad = 0;
}

static __always_inline __u32 role_of(const struct tuple *tuple, __u32 endpoint)
{
        struct tb_roles_key key;
        __u32 port = bpf_ntohs(tuple->local_port_be) % TB_ROLES_PER_BLOCK;

        if (!has_roles(tuple))
                return TB_ROLE_UNKNOWN;
        roles_key(&key, tuple, endpoint);
        struct tb_roles *roles = bpf_map_lookup_elem(&port_roles, &key);

        return roles ? roles->words[port / 32 & (TB_ROLE_WORDS - 1)] >> port % 32 * 2 & 3
                     : TB_ROLE_UNKNOWN;
}

/* Remembers what the endpoint just used its port for. No room: the port stays unknown. */
static __always_inline void role_set(const struct tuple *tuple, __u32 endpoint, __u64 role)
{
        static const struct tb_roles none;
        struct tb_roles_key key;
        __u32 port = bpf_ntohs(tuple->local_port_be) % TB_ROLES_PER_BLOCK;
        __u32 shift = port % 32 * 2;

        if (!has_roles(tuple))
                return;
        roles_key(&key, tuple, endpoint);
        struct tb_roles *roles = bpf_map_lookup_elem(&port_roles, &key);

        if (!roles) {
                bpf_map_update_elem(&port_roles, &key, &none, BPF_NOEXIST);
                roles = bpf_map_lookup_elem(&port_roles, &key);
                if (!roles)
                        return;
        }
        __u64 *word = &roles->words[port / 32 & (TB_ROLE_WORDS - 1)];

        if ((*word >> shift & 3) == role)
                return;
        /* In two steps, as other CPUs set other ports: unknown in between. */
        __sync_fetch_and_and(word, ~(3ULL << shift));
        __sync_fetch_and_or(word, role << shift);
}

#endif
