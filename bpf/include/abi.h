/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Layouts shared with user space; src/enforcer/abi.rs is the other half. Change both, and the
 * version directory of the pins (enforcer::kernel::SCHEMA) with them.
 * `_be` fields are in network byte order, all others in host byte order. Padding is zero.
 */
#ifndef TOMBOLO_ABI_H
#define TOMBOLO_ABI_H

#define TB_ADDRESSES_MAX 4

/* Of every `_ns` field. */
#define SECOND_NS 1000000000ULL

/* Seen from the endpoint. */
#define TB_INGRESS 0
#define TB_EGRESS 1

#define TB_ENDPOINT_DENY_INGRESS (1U << 0)
#define TB_ENDPOINT_DENY_EGRESS (1U << 1)
#define TB_ENDPOINT_AUDIT_DENY_INGRESS (1U << 2)
#define TB_ENDPOINT_AUDIT_DENY_EGRESS (1U << 3)
#define TB_ENDPOINT_AUDIT (1U << 4)

/* Flags of the config row. */
#define TB_CONFIG_AUDIT (1U << 0)
#define TB_CONFIG_ALLOW_LOCALHOST (1U << 1)
#define TB_CONFIG_REPORT_VERDICTS (1U << 2)
#define TB_CONFIG_REPORT_TRACES (1U << 3)

/* Votes of a policy entry. */
#define TB_ALLOW (1U << 0)
#define TB_DENY (1U << 1)
#define TB_AUDIT_ALLOW (1U << 2)
#define TB_AUDIT_DENY (1U << 3)

/* Bit of a level mask for the entries of all protocols; bits 0 to 16 are port_bits. */
#define TB_LEVEL_ALL_PROTOCOLS 17
#define TB_PORT_BITS_MAX 16

#define TB_IDENTITY_ANY 0
#define TB_IDENTITY_HOST 1
#define TB_IDENTITY_WORLD_IPV4 9
#define TB_IDENTITY_WORLD_IPV6 10

/* Flag of a value in a trie: the prefix is one of IPv4. */
#define TB_PREFIX_IPV4 (1U << 0)

/* Flags of a flow. */
#define TB_FLOW_REPLIED (1U << 0)
#define TB_FLOW_OPENER_CLOSED (1U << 1)
#define TB_FLOW_ANSWERER_CLOSED (1U << 2)
#define TB_FLOW_DENIED (1U << 3)

/* How long a flow may be silent, in seconds; src/limits.rs has the reasons. */
#define TB_TCP_OPENING_SECONDS 60
#define TB_TCP_ESTABLISHED_SECONDS 21600
#define TB_TCP_CLOSING_SECONDS 10
#define TB_ICMP_SECONDS 30
#define TB_OTHER_SECONDS 60

/* What a port of an endpoint was last used for, in two bits. */
#define TB_ROLE_UNKNOWN 0
#define TB_ROLE_SERVER 1
#define TB_ROLE_CLIENT 2
#define TB_ROLE_WORDS 16
#define TB_ROLES_PER_BLOCK (TB_ROLE_WORDS * 32)

/* Reasons: column of the counters, and `reason` of an event. */
#define TB_FORWARDED 0
#define TB_POLICY_DENIED 1
#define TB_INVALID_SOURCE 2
#define TB_UNSUPPORTED_L3 3
#define TB_INVALID_PACKET 4
#define TB_FRAGMENT 5
#define TB_UNKNOWN_ENDPOINT 6
#define TB_VLAN 7
/*
 * From here on no drops: packets that passed in audit mode only, flows that found no room in the
 * conntrack, events that were not sent, as over the rate, or as the ring was full.
 */
#define TB_AUDITED 12
#define TB_UNTRACKED 13
#define TB_EVENT_SUPPRESSED 14
#define TB_EVENT_LOST 15
#define TB_REASONS 16

/* Counter slots: interfaces without endpoint; what user space kept of endpoints that are gone. */
#define TB_SLOT_UNKNOWN 0
#define TB_SLOT_GONE 1

/* Kinds and actions of events. */
#define TB_EVENT_DROP 1
#define TB_EVENT_VERDICT 2
#define TB_EVENT_TRACE 3
#define TB_ACTION_ALLOW 1
#define TB_ACTION_DENY 2
#define TB_ACTION_AUDIT 3

/* IPv4 addresses are written ::ffff:a.b.c.d everywhere but in keys of conntrack_v4. */
struct tb_address {
        __u8 bytes[16];
};

struct tb_ipcache_value {
        __u32 identity;
        __u16 cluster;
        __u16 flags;
};

struct tb_lpm_key {
        __u32 prefix_bits;
        struct tb_address address;
};

struct tb_cidr_value {
        __u32 identity;
        __u32 flags;
};

struct tb_endpoint {
        __u32 endpoint;
        __u32 identity;
        __u32 flags;
        __u32 address_count;
        /* Its row of the counters. */
        __u32 slot;
        /* Levels that have an entry: [direction * 2 + 1 for any identity]. */
        __u32 levels[4];
        __u32 pad;
        struct tb_address addresses[TB_ADDRESSES_MAX];
};

struct tb_policy_key {
        __u32 endpoint;
        __u32 identity;
        /* First port of the block; zero below port_bits. */
        __u16 port_be;
        __u8 proto;
        /* direction << 7 | port_bits */
        __u8 level;
};

struct tb_policy_value {
        __u32 votes;
        __u32 rule;
};

struct tb_flow_v4_key {
        __u32 endpoint;
        __u32 remote_be;
        __u32 local_be;
        __u16 remote_port_be;
        __u16 local_port_be;
        __u8 proto;
        __u8 pad[3];
};

struct tb_flow_v6_key {
        __u32 endpoint;
        struct tb_address remote;
        struct tb_address local;
        __u16 remote_port_be;
        __u16 local_port_be;
        __u8 proto;
        __u8 pad[3];
};

struct tb_flow {
        /* Since boot without suspend; behind by a second at most while the flow goes on. */
        __u64 seen_ns;
        __u32 epoch;
        /* Of the verdict that let it in. */
        __u32 rule;
        __u32 identity;
        /* TB_INGRESS: the remote side opened it. */
        __u8 direction;
        __u8 flags;
        __u16 pad;
};

struct tb_fragment_key {
        struct tb_address src;
        struct tb_address dst;
        __u32 endpoint;
        __u32 id;
        __u8 proto;
        __u8 direction;
        __u16 pad;
};

struct tb_fragment {
        __u64 seen_ns;
        __u16 sport_be;
        __u16 dport_be;
        __u8 icmp_type;
        __u8 pad[3];
};

struct tb_roles_key {
        __u32 endpoint;
        /* Port divided by TB_ROLES_PER_BLOCK. */
        __u16 block;
        __u8 proto;
        __u8 pad;
};

struct tb_roles {
        __u64 words[TB_ROLE_WORDS];
};

struct tb_config {
        __u32 epoch;
        __u32 flags;
};

struct tb_count {
        __u64 packets;
        __u64 bytes;
};

/* Of one endpoint: [reason * 2 + direction]. */
struct tb_counters {
        struct tb_count of[TB_REASONS * 2];
};

struct tb_rate {
        __u64 refilled_ns;
        __u32 tokens;
        __u32 pad;
};

struct tb_event {
        __u64 time_ns; /* since boot, suspend included */
        __u32 flow;
        __u32 ifindex;
        __u32 endpoint;
        __u32 source_identity;
        __u32 destination_identity;
        __u32 rule;
        struct tb_address src;
        struct tb_address dst;
        __u16 sport_be;
        __u16 dport_be;
        __u8 kind;
        __u8 action;
        __u8 reason;
        __u8 direction;
        __u8 proto;
        /* TCP flags, or the type of an ICMP message. */
        __u8 detail;
        __u16 pad;
        __u32 bytes;
};

_Static_assert(sizeof(struct tb_ipcache_value) == 8, "ipcache value");
_Static_assert(sizeof(struct tb_lpm_key) == 20, "lpm key");
_Static_assert(sizeof(struct tb_cidr_value) == 8, "cidr value");
_Static_assert(sizeof(struct tb_endpoint) == 104, "endpoint");
_Static_assert(__builtin_offsetof(struct tb_endpoint, levels) == 20, "endpoint levels");
_Static_assert(__builtin_offsetof(struct tb_endpoint, addresses) == 40, "endpoint addresses");
_Static_assert(sizeof(struct tb_policy_key) == 12, "policy key");
_Static_assert(sizeof(struct tb_policy_value) == 8, "policy value");
_Static_assert(sizeof(struct tb_flow_v4_key) == 20, "flow v4 key");
_Static_assert(sizeof(struct tb_flow_v6_key) == 44, "flow v6 key");
_Static_assert(__builtin_offsetof(struct tb_flow_v6_key, remote_port_be) == 36, "flow v6 ports");
_Static_assert(sizeof(struct tb_flow) == 24, "flow");
_Static_assert(sizeof(struct tb_fragment_key) == 44, "fragment key");
_Static_assert(sizeof(struct tb_fragment) == 16, "fragment");
_Static_assert(sizeof(struct tb_roles_key) == 8, "roles key");
_Static_assert(sizeof(struct tb_roles) == 128, "roles");
_Static_assert(sizeof(struct tb_config) == 8, "config");
_Static_assert(sizeof(struct tb_counters) == 512, "counters");
_Static_assert(sizeof(struct tb_rate) == 16, "rate");
_Static_assert(sizeof(struct tb_event) == 80, "event");
_Static_assert(__builtin_offsetof(struct tb_event, src) == 32, "event src");
_Static_assert(__builtin_offsetof(struct tb_event, sport_be) == 64, "event sport");
_Static_assert(__builtin_offsetof(struct tb_event, bytes) == 76, "event bytes");

#endif
