// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Lets every packet on, and nothing else: what a test run costs without a policy program. */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>

#include <bpf/bpf_helpers.h>

SEC("classifier")
int empty(struct __sk_buff *skb)
{
        (void)skb;
        return TC_ACT_UNSPEC;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
