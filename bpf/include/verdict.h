/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Who is on the other side, and what policy says: identity, levels, votes. */
#ifndef TOMBOLO_VERDICT_H
#define TOMBOLO_VERDICT_H

#include "maps.h"
#include "packet.h"

#define LEVEL_ONE_PORT (1U << TB_PORT_BITS_MAX)
#define LEVEL_ANY_PORT (1U << 0)
#define LEVEL_ALL_PROTOCOLS (1U << TB_LEVEL_ALL_PROTOCOLS)
/* Blocks of two ports to half of all. */
#define LEVEL_BLOCKS (LEVEL_ONE_PORT - 2)

/* What is asked of policy, and what it answered. */
struct question {
        __u32 endpoint;
        __u32 identity;
        /* TB_INGRESS or TB_EGRESS. */
        __u32 direction;
        __u16 port_be;
        __u8 proto;
        /* Votes seen. */
        __u8 votes;
        /* Of the most specific entry that denies, else allows, else the same on trial. */
        __u32 rule;
        __u32 weight;
};

/* What the answer means. */
enum action {
        DENY = TB_ACTION_DENY,
        ALLOW = TB_ACTION_ALLOW,
        /* Denied, or denied by a policy on trial, and passed. */
        AUDIT = TB_ACTION_AUDIT,
};

/*
 * A short prefix of IPv6, such as ::/3, has the mapped form of every IPv4 address in it too. As any
 * prefix of IPv4 is longer than that, such a hit says that there is none of IPv4.
 */
static __always_inline bool is_of_family(__u32 flags, const struct tb_address *address)
{
        return !(flags & TB_PREFIX_IPV4) == !is_v4_mapped(address);
}

/* Mesh addresses before the mesh's prefixes before those that policies name, else the world. */
static __noinline __u32 identity_of(const struct tb_address *address)
{
        struct tb_ipcache_value *value = bpf_map_lookup_elem(&ipcache_exact, address);
        struct tb_lpm_key key;

        if (value && value->identity)
                return value->identity;
        if (!value) {
                key.prefix_bits = 128;
                key.address = *address;
                value = bpf_map_lookup_elem(&ipcache_lpm, &key);
                if (value && !is_of_family(value->flags, address))
                        value = NULL;
                if (value && value->identity)
                        return value->identity;
        }
        if (!value) {
                struct tb_cidr_value *named = bpf_map_lookup_elem(&cidr, &key);

                if (named && named->identity && is_of_family(named->flags, address))
                        return named->identity;
        }
        return is_v4_mapped(address) ? TB_IDENTITY_WORLD_IPV4 : TB_IDENTITY_WORLD_IPV6;
}

/* Whose rule is named: that of the heaviest. */
static __always_inline __u32 weight_of(__u32 votes)
{
        if (votes & TB_DENY)
                return 4;
        if (votes & TB_ALLOW)
                return 3;
        return votes & TB_AUDIT_DENY ? 2 : 1;
}

static __always_inline void ask(struct question *q, __u32 identity, __u32 proto, __u32 port_bits)
{
        struct tb_policy_key key = {
            .endpoint = q->endpoint,
            .identity = identity,
            .port_be = q->port_be & bpf_htons(0xffff0000U >> port_bits),
            .proto = proto,
            .level = q->direction << 7 | port_bits,
        };
        struct tb_policy_value *value = bpf_map_lookup_elem(&policy, &key);

        if (!value)
                return;
        q->votes |= value->votes;
        if (weight_of(value->votes) > q->weight) {
                q->weight = weight_of(value->votes);
                q->rule = value->rule;
        }
}

/* All levels of one identity that have an entry at all, the most specific first. */
static __always_inline void ask_levels(struct question *q, __u32 identity, __u32 levels)
{
        if (levels & LEVEL_ONE_PORT)
                ask(q, identity, q->proto, TB_PORT_BITS_MAX);
        if (levels & LEVEL_BLOCKS) {
#pragma clang loop unroll(disable)
                for (__u32 bits = TB_PORT_BITS_MAX - 1; bits > 0; bits--) {
                        if (levels >> bits & 1)
                                ask(q, identity, q->proto, bits);
                }
        }
        if (levels & LEVEL_ANY_PORT)
                ask(q, identity, q->proto, 0);
        if (levels & LEVEL_ALL_PROTOCOLS)
                ask(q, identity, 0, 0);
}

/*
 * Judges by all levels, as a deny in any of them wins; with none at all the endpoint's default
 * decides. Gives back the action, and below it the number of the rule that made it. Global, so that
 * the verifier walks it once.
 */
__noinline __u64 judge(struct tb_endpoint *endpoint, struct question *q, __u32 config_flags)
{
        if (!endpoint || !q)
                return (__u64)DENY << 32;
        __u32 direction = q->direction & 1;
        __u32 default_deny = endpoint->flags >> direction & TB_ENDPOINT_DENY_INGRESS;
        __u32 audit_deny = endpoint->flags >> direction & TB_ENDPOINT_AUDIT_DENY_INGRESS;

        if (q->identity == TB_IDENTITY_HOST && direction == TB_INGRESS &&
            config_flags & TB_CONFIG_ALLOW_LOCALHOST)
                return (__u64)ALLOW << 32;
        q->endpoint = endpoint->endpoint;
        ask_levels(q, q->identity, endpoint->levels[direction * 2]);
        ask_levels(q, TB_IDENTITY_ANY, endpoint->levels[direction * 2 + 1]);

        __u32 votes = q->votes;
        bool audit = endpoint->flags & TB_ENDPOINT_AUDIT || config_flags & TB_CONFIG_AUDIT;
        enum action action = ALLOW;

        if (votes & TB_DENY || (!(votes & TB_ALLOW) && default_deny))
                action = audit ? AUDIT : DENY;
        else if (votes & TB_AUDIT_DENY || (!(votes & (TB_ALLOW | TB_AUDIT_ALLOW)) && audit_deny))
                action = AUDIT;
        return (__u64)action << 32 | q->rule;
}

#endif
