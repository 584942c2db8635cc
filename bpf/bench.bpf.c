// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * For measurements only: what a run costs without a policy program, and a way to give a program
 * another flow at each repetition of a test run, which repeats one packet.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* Addresses and ports of an IPv4 packet without options. */
#define SOURCE_OFFSET (ETH_HLEN + 12)
#define DESTINATION_OFFSET (ETH_HLEN + 16)
#define SOURCE_PORT_OFFSET (ETH_HLEN + 20)
#define DESTINATION_PORT_OFFSET (ETH_HLEN + 22)
#define HEADERS_BYTES (ETH_HLEN + 24)

#define CLIENTS 1024

/* Which flow is next, out of how many; the first client and its port; whether it is answered. */
struct cycle {
        __u32 next;
        __u32 flows;
        __u32 address;
        __u16 port;
        __u16 answer;
};

struct {
        __uint(type, BPF_MAP_TYPE_ARRAY);
        __uint(max_entries, 1);
        __type(key, __u32);
        __type(value, struct cycle);
} cycles SEC(".maps");

struct {
        __uint(type, BPF_MAP_TYPE_PROG_ARRAY);
        __uint(max_entries, 1);
        __type(key, __u32);
        __type(value, __u32);
} programs SEC(".maps");

/* Lets every packet on, and nothing else. */
SEC("classifier")
int empty(struct __sk_buff *skb)
{
        (void)skb;
        return TC_ACT_UNSPEC;
}

/* Makes the packet the next flow's, and hands it to the program that is measured. */
SEC("classifier")
int each_flow(struct __sk_buff *skb)
{
        __u32 row = 0;
        struct cycle *cycle = bpf_map_lookup_elem(&cycles, &row);
        __u8 *data = (__u8 *)(long)skb->data;

        if (!cycle || data + HEADERS_BYTES > (__u8 *)(long)skb->data_end)
                return TC_ACT_SHOT;
        __u32 n = cycle->next++ & (cycle->flows - 1);
        __u32 address = bpf_htonl(cycle->address + n % CLIENTS);
        __u16 port = bpf_htons(cycle->port + n / CLIENTS);

        if (cycle->answer) {
                *(__u32 *)(data + DESTINATION_OFFSET) = address;
                *(__u16 *)(data + DESTINATION_PORT_OFFSET) = port;
        } else {
                *(__u32 *)(data + SOURCE_OFFSET) = address;
                *(__u16 *)(data + SOURCE_PORT_OFFSET) = port;
        }
        bpf_tail_call(skb, &programs, 0);
        return TC_ACT_SHOT;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
