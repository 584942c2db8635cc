// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The maps of version 1 and programs that keep to them: ingress passes what the policy map lists
 * for TCP over IPv4 and what belongs to a flow, egress notes the flows that the endpoint opens.
 * Enough for a migration to have something to take over; never part of the agent.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define INGRESS 0
#define EGRESS 1
#define DENY_INGRESS 1
#define ALLOW 1

struct address {
        __u8 bytes[16];
};

struct identity {
        __u32 identity;
        __u16 cluster;
        __u16 flags;
};

struct lpm_key {
        __u32 bits;
        struct address address;
};

struct endpoint {
        __u32 endpoint, identity, flags, address_count;
        struct address addresses[4];
};

struct policy_key {
        __u32 endpoint, identity;
        __u16 dport_be;
        __u8 proto, direction;
};

struct policy_value {
        __u32 verdict, rule;
};

struct flow_key {
        struct address src, dst;
        __u16 sport_be, dport_be;
        __u8 proto, direction;
        __u16 pad;
        __u32 endpoint;
};

struct flow {
        __u64 seen_ns;
        __u32 epoch, flags;
};

struct two_words {
        __u64 first, second;
};

#define MAP(name_, type_, flags_, entries_, key_, value_)                                          \
        struct {                                                                                   \
                __uint(type, type_);                                                               \
                __uint(map_flags, flags_);                                                         \
                __uint(max_entries, entries_);                                                     \
                __type(key, key_);                                                                 \
                __type(value, value_);                                                             \
                __uint(pinning, LIBBPF_PIN_BY_NAME);                                               \
        } name_ SEC(".maps")

MAP(ipcache_exact, BPF_MAP_TYPE_HASH, BPF_F_NO_PREALLOC, 1048576, struct address, struct identity);
MAP(ipcache_lpm, BPF_MAP_TYPE_LPM_TRIE, BPF_F_NO_PREALLOC, 65536, struct lpm_key, struct identity);
MAP(endpoints, BPF_MAP_TYPE_HASH, 0, 4096, __u32, struct endpoint);
MAP(policy, BPF_MAP_TYPE_HASH, BPF_F_NO_PREALLOC, 1048576, struct policy_key, struct policy_value);
MAP(conntrack, BPF_MAP_TYPE_LRU_HASH, 0, 262144, struct flow_key, struct flow);
MAP(config, BPF_MAP_TYPE_ARRAY, 0, 1, __u32, __u64);
MAP(metrics, BPF_MAP_TYPE_PERCPU_ARRAY, 0, 32, __u32, struct two_words);
MAP(ratelimit, BPF_MAP_TYPE_LRU_HASH, 0, 16384, struct address, struct two_words);

static __always_inline int parse(struct __sk_buff *skb, struct flow_key *key, __u8 *flags)
{
        struct iphdr ip;
        struct tcphdr tcp;

        if (skb->protocol != bpf_htons(ETH_P_IP) ||
            bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)) || ip.protocol != IPPROTO_TCP ||
            bpf_skb_load_bytes(skb, ETH_HLEN + sizeof(ip), &tcp, sizeof(tcp)))
                return -1;
        key->src.bytes[10] = key->src.bytes[11] = 0xff;
        key->dst.bytes[10] = key->dst.bytes[11] = 0xff;
        __builtin_memcpy(key->src.bytes + 12, &ip.saddr, 4);
        __builtin_memcpy(key->dst.bytes + 12, &ip.daddr, 4);
        key->sport_be = tcp.source;
        key->dport_be = tcp.dest;
        key->proto = IPPROTO_TCP;
        *flags = (tcp.syn && !tcp.ack);
        return 0;
}

static __always_inline void note(const struct flow_key *key)
{
        struct flow fresh = {.seen_ns = bpf_ktime_get_ns(), .epoch = 1};

        bpf_map_update_elem(&conntrack, key, &fresh, BPF_ANY);
}

SEC("classifier")
int to_container(struct __sk_buff *skb)
{
        __u32 ifindex = skb->ifindex;
        struct endpoint *endpoint = bpf_map_lookup_elem(&endpoints, &ifindex);
        struct flow_key key = {}, reverse = {};
        __u8 opens;

        if (!endpoint)
                return TC_ACT_SHOT;
        if (skb->protocol == bpf_htons(ETH_P_ARP) || !(endpoint->flags & DENY_INGRESS))
                return TC_ACT_UNSPEC;
        if (parse(skb, &key, &opens))
                return TC_ACT_SHOT;
        reverse.src = key.dst;
        reverse.dst = key.src;
        reverse.sport_be = key.dport_be;
        reverse.dport_be = key.sport_be;
        reverse.proto = key.proto;
        reverse.direction = EGRESS;
        reverse.endpoint = key.endpoint = endpoint->endpoint;
        if (!opens && bpf_map_lookup_elem(&conntrack, &reverse)) {
                note(&reverse);
                return TC_ACT_UNSPEC;
        }
        key.direction = INGRESS;
        struct identity *source = bpf_map_lookup_elem(&ipcache_exact, &key.src);
        struct policy_key listed = {
            .endpoint = endpoint->endpoint,
            .identity = source ? source->identity : 2,
            .dport_be = key.dport_be,
            .proto = key.proto,
            .direction = INGRESS,
        };
        struct policy_value *verdict = bpf_map_lookup_elem(&policy, &listed);

        if (!verdict || verdict->verdict != ALLOW)
                return TC_ACT_SHOT;
        note(&key);
        return TC_ACT_UNSPEC;
}

SEC("classifier")
int from_container(struct __sk_buff *skb)
{
        __u32 ifindex = skb->ifindex;
        struct endpoint *endpoint = bpf_map_lookup_elem(&endpoints, &ifindex);
        struct flow_key key = {};
        __u8 opens;

        if (!endpoint)
                return TC_ACT_SHOT;
        key.endpoint = endpoint->endpoint;
        key.direction = EGRESS;
        if (!parse(skb, &key, &opens) && opens)
                note(&key);
        /* Maps that only the agent of version 1 used; named so that they are made. */
        __u32 row = 0;

        bpf_map_lookup_elem(&config, &row);
        bpf_map_lookup_elem(&metrics, &row);
        bpf_map_lookup_elem(&ratelimit, &key.src);
        struct lpm_key prefix = {.bits = 128};

        bpf_map_lookup_elem(&ipcache_lpm, &prefix);
        return TC_ACT_UNSPEC;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
