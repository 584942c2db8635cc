/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* All maps; pinned by name. */
#ifndef TOMBOLO_MAPS_H
#define TOMBOLO_MAPS_H

#include "abi.h"

/* Known addresses. Written by user space, read by both programs. Linux 4.6 for no_prealloc. */
struct {
        __uint(type, BPF_MAP_TYPE_HASH);
        __uint(map_flags, BPF_F_NO_PREALLOC);
        __uint(max_entries, 1048576);
        __type(key, struct tb_address);
        __type(value, struct tb_ipcache_value);
        __uint(pinning, LIBBPF_PIN_BY_NAME);
} ipcache_exact SEC(".maps");

/* Prefixes of the mesh, asked only where the exact map knows nothing. Linux 4.11. */
struct {
        __uint(type, BPF_MAP_TYPE_LPM_TRIE);
        __uint(map_flags, BPF_F_NO_PREALLOC);
        __uint(max_entries, 65536);
        __type(key, struct tb_lpm_key);
        __type(value, struct tb_ipcache_value);
        __uint(pinning, LIBBPF_PIN_BY_NAME);
} ipcache_lpm SEC(".maps");

/* Prefixes that policies name, asked only where the mesh knows nothing. Written by user space. */
struct {
        __uint(type, BPF_MAP_TYPE_LPM_TRIE);
        __uint(map_flags, BPF_F_NO_PREALLOC);
        __uint(max_entries, 65536);
        __type(key, struct tb_lpm_key);
        __type(value, struct tb_cidr_value);
        __uint(pinning, LIBBPF_PIN_BY_NAME);
} cidr SEC(".maps");

/* Interface index to the endpoint behind it. Written by user space. */
struct {
        __uint(type, BPF_MAP_TYPE_HASH);
        __uint(max_entries, 4096);
        __type(key, __u32);
        __type(value, struct tb_endpoint);
        __uint(pinning, LIBBPF_PIN_BY_NAME);
} endpoints SEC(".maps");

/* Votes; identity zero means any, protocol zero all. Written by user space. */
struct {
        __uint(type, BPF_MAP_TYPE_HASH);
        __uint(map_flags, BPF_F_NO_PREALLOC);
        __uint(max_entries, 1048576);
        __type(key, struct tb_policy_key);
        __type(value, struct tb_policy_value);
        __uint(pinning, LIBBPF_PIN_BY_NAME);
} policy SEC(".maps");

/* Flows over IPv4: one entry for both ways. Written by the programs. */
struct {
        __uint(type, BPF_MAP_TYPE_LRU_HASH);
        __uint(max_entries, 262144);
        __type(key, struct tb_flow_v4_key);
        __type(value, struct tb_flow);
        __uint(pinning, LIBBPF_PIN_BY_NAME);
} conntrack_v4 SEC(".maps");

/* Flows over IPv6. */
struct {
        __uint(type, BPF_MAP_TYPE_LRU_HASH);
        __uint(max_entries, 131072);
        __type(key, struct tb_flow_v6_key);
        __type(value, struct tb_flow);
        __uint(pinning, LIBBPF_PIN_BY_NAME);
} conntrack_v6 SEC(".maps");

/* Who opens the flows of a port. Written by the programs, cleared by user space. */
struct {
        __uint(type, BPF_MAP_TYPE_HASH);
        __uint(map_flags, BPF_F_NO_PREALLOC);
        __uint(max_entries, 65536);
        __type(key, struct tb_roles_key);
        __type(value, struct tb_roles);
        __uint(pinning, LIBBPF_PIN_BY_NAME);
} port_roles SEC(".maps");

/* Ports of datagrams whose first fragment was seen. Written by the programs. */
struct {
        __uint(type, BPF_MAP_TYPE_LRU_HASH);
        __uint(max_entries, 8192);
        __type(key, struct tb_fragment_key);
        __type(value, struct tb_fragment);
        __uint(pinning, LIBBPF_PIN_BY_NAME);
} fragments SEC(".maps");

/* One row: epoch and flags. Written by user space. */
struct {
        __uint(type, BPF_MAP_TYPE_ARRAY);
        __uint(max_entries, 1);
        __type(key, __u32);
        __type(value, struct tb_config);
        __uint(pinning, LIBBPF_PIN_BY_NAME);
} config SEC(".maps");

/* struct tb_event each. Read by user space. Linux 5.8. */
struct {
        __uint(type, BPF_MAP_TYPE_RINGBUF);
        __uint(max_entries, 1048576);
        __uint(pinning, LIBBPF_PIN_BY_NAME);
} events SEC(".maps");

/* Row: the endpoint's slot. Read by user space, which zeroes a row before it gives it out. */
struct {
        __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
        __uint(max_entries, 4098);
        __type(key, __u32);
        __type(value, struct tb_counters);
        __uint(pinning, LIBBPF_PIN_BY_NAME);
} counters SEC(".maps");

/* Verdicts by the number of the rule that decided. Written by the programs. */
struct {
        __uint(type, BPF_MAP_TYPE_PERCPU_HASH);
        __uint(map_flags, BPF_F_NO_PREALLOC);
        __uint(max_entries, 65536);
        __type(key, __u32);
        __type(value, __u64);
        __uint(pinning, LIBBPF_PIN_BY_NAME);
} rule_hits SEC(".maps");

/* Event tokens per source address. Written by the programs. */
struct {
        __uint(type, BPF_MAP_TYPE_LRU_HASH);
        __uint(max_entries, 16384);
        __type(key, struct tb_address);
        __type(value, struct tb_rate);
        __uint(pinning, LIBBPF_PIN_BY_NAME);
} ratelimit SEC(".maps");

#endif
