//! R22 and R23: service exports and endpoint slices.
use serde_json::{Value, json};

use super::{
    peer::Peer,
    records::{config, with},
    world::World,
};

/// The kinds beside those that every producer writes.
const MORE: [&str; 2] = ["serviceexports", "endpointslices"];
/// Most bytes that a slice may expand to.
const SLICE_MAX: usize = 16 << 20;

/// A peer of the newest version, imported.
async fn west() -> (Peer, World) {
    let peer = Peer::start("west", 2).await;
    let mut config = config(2);
    config["capabilities"]["serviceExportsEnabled"] = json!(true);
    config["capabilities"]["endpointSlicesExportMode"] = json!("services-and-endpointslices");
    peer.publish_config(&config).await;
    for kind in MORE {
        peer.etcd.put(&peer.canary(kind), "now").await;
    }
    let world = World::start();
    world.import(&peer).await;
    world.settle(&peer).await;
    (peer, world)
}

fn export() -> Value {
    json!({
        "cluster": "west", "name": "checkout", "namespace": "shop",
        "exportCreationTimestamp": "2025-05-02T09:30:00Z",
        "ports": [{"name": "http", "protocol": "TCP", "port": 80}],
        "type": "ClusterSetIP", "sessionAffinity": "None"
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r22_a_service_export_of_unknown_type_or_affinity_is_dropped() {
    let (peer, world) = west().await;
    let key = ("serviceexports", "shop/checkout");
    let cached = peer.cached(key.0, key.1);
    peer.etcd
        .put(&peer.key(key.0, key.1), export().to_string())
        .await;
    world.caches(&cached).await;
    let status = world
        .until("west", "one export", |p| p["num-service-exports"] == 1)
        .await;
    assert_eq!(status["config"]["service-exports-enabled"], true);
    assert_eq!(status["synced"]["service-exports"], true);
    for (field, value) in [
        ("sessionAffinity", ""),
        ("sessionAffinity", "x"),
        ("type", "X"),
        ("type", ""),
    ] {
        let bad = with(export(), field, value).to_string();
        world.rejects(&peer, key, bad, "invalid-field").await;
    }
    let zero = with(export(), "exportCreationTimestamp", "0001-01-01T00:00:00Z").to_string();
    world.rejects(&peer, key, zero, "incomplete").await;
    assert_eq!(world.cached(&cached), Some(export().to_string()));
    assert_eq!(world.peer("west").await["num-service-exports"], 1);
    world.stop().await;
}

/// A field with this number, as protobuf writes it.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let length = u8::try_from(bytes.len()).unwrap();
    assert!(length < 128);
    [&[number << 3 | 2, length], bytes].concat()
}

/// A slice `shop/checkout-1` with this one address.
fn slice(kind: &str, address: &str) -> Vec<u8> {
    [
        field(1, b"west"),
        vec![2 << 3, 2],
        field(3, b"shop"),
        field(4, b"checkout-1"),
        field(7, kind.as_bytes()),
        field(8, &field(1, address.as_bytes())),
    ]
    .concat()
}

const BLOCK_RAW: u32 = 0;
const BLOCK_RLE: u32 = 1;
const BLOCK_MAX: u32 = 128 << 10;

/// A zstd frame without a declared length: these bytes, then `zeros` times 0.
fn frame(bytes: &[u8], zeros: usize) -> Vec<u8> {
    // Magic number, no flags, a window of 128 KiB.
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0, 7 << 3];
    let mut block = |kind: u32, size: usize, last: bool, data: &[u8]| {
        let head = u32::try_from(size).unwrap() << 3 | kind << 1 | u32::from(last);
        frame.extend(&head.to_le_bytes()[..3]);
        frame.extend(data);
    };
    block(BLOCK_RAW, bytes.len(), zeros == 0, bytes);
    let mut left = zeros;
    while left > 0 {
        let size = left.min(BLOCK_MAX as usize);
        left -= size;
        block(BLOCK_RLE, size, left == 0, &[0]);
    }
    frame
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r23_a_slice_that_expands_too_far_or_has_a_zoned_address_is_dropped() {
    let (peer, world) = west().await;
    let key = ("endpointslices", "shop/checkout-1");
    let good = frame(&slice("IPv6", "2001:db8::1"), 0);
    peer.etcd.put(&peer.key(key.0, key.1), good.clone()).await;
    let cached = peer.cached(key.0, key.1);
    world.caches(&cached).await;
    world
        .until("west", "one slice", |p| p["num-endpoint-slices"] == 1)
        .await;
    let bomb = frame(&slice("IPv4", "10.112.2.44"), SLICE_MAX);
    assert!(bomb.len() < 1_000, "small on the wire");
    world.rejects(&peer, key, bomb, "oversize").await;
    for (kind, address) in [
        ("IPv6", "fe80::1%eth0"),
        ("IPv6", "10.0.0.1"),
        ("IPv4", "::1"),
        ("FQDN", "x.example"),
    ] {
        let bad = frame(&slice(kind, address), 0);
        world.rejects(&peer, key, bad, "invalid-field").await;
    }
    let kept = world.cache.get(cached.as_bytes()).unwrap();
    assert_eq!(kept.value, good);
    assert_eq!(world.peer("west").await["ready"], true);
    world.stop().await;
}
