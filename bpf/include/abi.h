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

#define TB_INGRESS 0
#define TB_EGRESS 1

#define TB_ENDPOINT_DENY_INGRESS (1U << 0)
#define TB_ENDPOINT_DENY_EGRESS (1U << 1)

#define TB_ALLOW 1
#define TB_DENY 2

#define TB_CT_DENIED (1U << 0)

#define TB_IDENTITY_ANY 0
#define TB_IDENTITY_WORLD 2

/* Reasons: row of the metrics map, and `reason` of an event. */
#define TB_FORWARDED 0
#define TB_POLICY_DENIED 1
#define TB_INVALID_SOURCE 2
#define TB_UNSUPPORTED_L3 3
#define TB_INVALID_PACKET 4
#define TB_FRAGMENT 5
#define TB_UNKNOWN_ENDPOINT 6
/* Not drops: events that were not sent, as over the rate, or as the ring was full. */
#define TB_EVENT_SUPPRESSED 14
#define TB_EVENT_LOST 15
#define TB_REASONS 16

/* IPv4 addresses are written ::ffff:a.b.c.d everywhere. */
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

struct tb_endpoint {
        __u32 endpoint;
        __u32 identity;
        __u32 flags;
        __u32 address_count;
        struct tb_address addresses[TB_ADDRESSES_MAX];
};

struct tb_policy_key {
        __u32 endpoint;
        __u32 identity;
        __u16 dport_be;
        __u8 proto;
        __u8 direction;
};

struct tb_policy_value {
        __u32 verdict;
        __u32 rule;
};

struct tb_conntrack_key {
        struct tb_address src;
        struct tb_address dst;
        __u16 sport_be;
        __u16 dport_be;
        __u8 proto;
        __u8 direction;
        __u16 pad;
        __u32 endpoint;
};

struct tb_conntrack_value {
        __u64 seen_ns;
        __u32 epoch;
        __u32 flags;
};

struct tb_config {
        __u32 epoch;
        __u32 pad;
};

struct tb_metrics_value {
        __u64 packets;
        __u64 bytes;
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
        __u8 reason;
        __u8 direction;
        __u8 proto;
        __u8 tcp_flags;
};

_Static_assert(sizeof(struct tb_ipcache_value) == 8, "ipcache value");
_Static_assert(sizeof(struct tb_lpm_key) == 20, "lpm key");
_Static_assert(sizeof(struct tb_endpoint) == 80, "endpoint");
_Static_assert(sizeof(struct tb_policy_key) == 12, "policy key");
_Static_assert(sizeof(struct tb_policy_value) == 8, "policy value");
_Static_assert(sizeof(struct tb_conntrack_key) == 44, "conntrack key");
_Static_assert(sizeof(struct tb_conntrack_value) == 16, "conntrack value");
_Static_assert(sizeof(struct tb_config) == 8, "config");
_Static_assert(sizeof(struct tb_metrics_value) == 16, "metrics value");
_Static_assert(sizeof(struct tb_rate) == 16, "rate");
_Static_assert(sizeof(struct tb_event) == 72, "event");
_Static_assert(__builtin_offsetof(struct tb_event, src) == 32, "event src");
_Static_assert(__builtin_offsetof(struct tb_event, sport_be) == 64, "event sport");
_Static_assert(__builtin_offsetof(struct tb_conntrack_key, sport_be) == 32, "conntrack sport");
_Static_assert(__builtin_offsetof(struct tb_endpoint, addresses) == 16, "endpoint addresses");

#endif
