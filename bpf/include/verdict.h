/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Who sent it, and may it enter: identity, policy levels, epoch. */
#ifndef TOMBOLO_VERDICT_H
#define TOMBOLO_VERDICT_H

#include "maps.h"

static __always_inline __u32 identity_of(const struct tb_address *address)
{
        struct tb_ipcache_value *value = bpf_map_lookup_elem(&ipcache_exact, address);

        if (!value) {
                struct tb_lpm_key key = {.prefix_bits = 128, .address = *address};

                value = bpf_map_lookup_elem(&ipcache_lpm, &key);
        }
        return value && value->identity ? value->identity : TB_IDENTITY_WORLD;
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

#endif
