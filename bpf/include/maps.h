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

/* Known CIDRs, asked only where the exact map knows nothing. Linux 4.11. */
struct {
        __uint(type, BPF_MAP_TYPE_LPM_TRIE);
        __uint(map_flags, BPF_F_NO_PREALLOC);
        __uint(max_entries, 65536);
        __type(key, struct tb_lpm_key);
        __type(value, struct tb_ipcache_value);
        __uint(pinning, LIBBPF_PIN_BY_NAME);
} ipcache_lpm SEC(".maps");

/* Interface index to the endpoint behind it. Written by user space. */
struct {
        __uint(type, BPF_MAP_TYPE_HASH);
        __uint(max_entries, 4096);
        __type(key, __u32);
        __type(value, struct tb_endpoint);
        __uint(pinning, LIBBPF_PIN_BY_NAME);
} endpoints SEC(".maps");

/* Verdicts; zero in identity, dport and proto means any. Written by user space. */
struct {
        __uint(type, BPF_MAP_TYPE_HASH);
        __uint(map_flags, BPF_F_NO_PREALLOC);
        __uint(max_entries, 1048576);
        __type(key, struct tb_policy_key);
        __type(value, struct tb_policy_value);
        __uint(pinning, LIBBPF_PIN_BY_NAME);
} policy SEC(".maps");

/* Flows as their first packet had it. Written by the programs. */
struct {
        __uint(type, BPF_MAP_TYPE_LRU_HASH);
        __uint(max_entries, 262144);
        __type(key, struct tb_conntrack_key);
        __type(value, struct tb_conntrack_value);
        __uint(pinning, LIBBPF_PIN_BY_NAME);
} conntrack SEC(".maps");

/* One row: the epoch. Written by user space. */
struct {
        __uint(type, BPF_MAP_TYPE_ARRAY);
        __uint(max_entries, 1);
        __type(key, __u32);
        __type(value, struct tb_config);
        __uint(pinning, LIBBPF_PIN_BY_NAME);
} config SEC(".maps");

/* struct tb_event per drop. Read by user space. Linux 5.8. */
struct {
        __uint(type, BPF_MAP_TYPE_RINGBUF);
        __uint(max_entries, 1048576);
        __uint(pinning, LIBBPF_PIN_BY_NAME);
} events SEC(".maps");

/* Row reason * 2 + direction. Read by user space. */
struct {
        __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
        __uint(max_entries, TB_REASONS * 2);
        __type(key, __u32);
        __type(value, struct tb_metrics_value);
        __uint(pinning, LIBBPF_PIN_BY_NAME);
} metrics SEC(".maps");

/* Event tokens per source address. Written by the programs. */
struct {
        __uint(type, BPF_MAP_TYPE_LRU_HASH);
        __uint(max_entries, 16384);
        __type(key, struct tb_address);
        __type(value, struct tb_rate);
        __uint(pinning, LIBBPF_PIN_BY_NAME);
} ratelimit SEC(".maps");

#endif
