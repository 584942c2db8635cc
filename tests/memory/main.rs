//! What a remote endpoint costs in memory, all of the mesh's indexes and the cache included. A
//! binary of its own: what is resident counts for the whole process.
#![expect(clippy::unwrap_used, reason = "a test")]
use std::{net::Ipv4Addr, sync::Arc};

use tombolo::{
    keyspace::{ClusterConfig, KeyEvent, Kind},
    limits::STORE_HISTORY_EVENTS_MAX,
    mesh::{Deltas, Mesh, Settings, Terms},
    store::{Options, Store},
    types::{ClusterId, MaxClusters},
};

/// Just above what a hash table of a power of two holds, when it is emptiest.
const ENDPOINTS: u32 = 250_000;
const IDENTITIES: u32 = 25_000;
/// The aim is 512 B; debug assertions and the allocator's mood are within the rest.
const BYTES_MAX: usize = 512;

/// Without pages of the program's file, which come in as its code is first run.
fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kibibytes = line.unwrap().trim().trim_end_matches(" kB");
    kibibytes.parse::<usize>().unwrap() * 1024
}

fn upsert(kind: Kind, suffix: String, value: String) -> KeyEvent {
    KeyEvent::Upsert {
        kind,
        suffix: suffix.into(),
        value: value.into(),
        revision: 1,
    }
}

fn identity(n: u32) -> KeyEvent {
    let labels = format!(
        "k8s:app=checkout-{n};k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name=shop;k8s:io.cilium.k8s.policy.cluster=west;k8s:io.cilium.k8s.policy.serviceaccount=default;k8s:io.kubernetes.pod.namespace=shop;"
    );
    upsert(Kind::Identities, ((2 << 16) + n).to_string(), labels)
}

fn endpoint(n: u32) -> KeyEvent {
    let (ip, id) = (
        Ipv4Addr::from_bits(0x0a40_0000 + n),
        (2 << 16) + n % IDENTITIES,
    );
    let value = format!(
        r#"{{"IP":"{ip}","Mask":null,"HostIP":"10.7.0.21","ID":{id},"Key":0,"Metadata":"","K8sNamespace":"shop","K8sPodName":"checkout-6c9f7d-{n:05x}"}}"#
    );
    upsert(Kind::Ips, ip.to_string(), value)
}

#[test]
fn remote_endpoint_takes_half_a_kilobyte() {
    let id = |n| ClusterId::new(n, MaxClusters::C255).unwrap();
    let settings = Settings {
        cluster_name: "east".parse().unwrap(),
        cluster_id: id(1),
        max_clusters: MaxClusters::C255,
        node_name: "node1".into(),
    };
    let cache = Store::new(Options {
        cluster_id: 7,
        history_max: STORE_HISTORY_EVENTS_MAX,
    });
    let deltas = Deltas::new(1 << 16);
    let mut mesh = Mesh::new(settings, cache.clone(), deltas.clone());
    let west = "west".parse().unwrap();
    let terms = Terms {
        id: id(2),
        config: ClusterConfig::default(),
        allowed_cidrs: Arc::default(),
        relayed: false,
    };
    mesh.connected(&west, terms);
    let before = resident_bytes();
    let mut list = |kind, count: u32, entry: fn(u32) -> KeyEvent| {
        mesh.apply(&west, [KeyEvent::BeginList { kind }]);
        for from in (0..count).step_by(256) {
            let events: Vec<_> = (from..count.min(from + 256)).map(entry).collect();
            mesh.apply(&west, events);
            drop(deltas.try_pop_batch(usize::MAX));
        }
        mesh.apply(&west, [KeyEvent::EndList { kind }]);
    };
    list(Kind::Identities, IDENTITIES, identity);
    let with_identities = resident_bytes();
    list(Kind::Ips, ENDPOINTS, endpoint);
    let after = resident_bytes();
    assert_eq!(mesh.view().addresses.len(), ENDPOINTS as usize);
    let each = (after - before) / ENDPOINTS as usize;
    println!(
        "{each} B an endpoint, {} B of them for the identities; {} B of the records themselves",
        (with_identities - before) / ENDPOINTS as usize,
        cache.len_bytes() / ENDPOINTS as usize,
    );
    assert!(each <= BYTES_MAX, "{each} B an endpoint");
}
