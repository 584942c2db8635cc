//! R15 to R19: services.
use serde_json::{Value, json};

use super::{
    peer::Peer,
    records::{self, with},
    world::World,
};

const KEY: (&str, &str) = ("services", "shop/checkout");

/// West, imported, with the service `shop/checkout`.
async fn west() -> (Peer, World) {
    let (peer, world) = (Peer::start("west", 2).await, World::start());
    world.import(&peer).await;
    (peer, world)
}

/// The record that west begins with.
fn checkout(peer: &Peer) -> Value {
    records::service("west", 2, "checkout", &[&peer.pod()])
}

/// A new record of that service is read as it is.
async fn accepts(peer: &Peer, world: &World, record: &Value) {
    let mark = world.mark();
    peer.etcd
        .put(&peer.key(KEY.0, KEY.1), record.to_string())
        .await;
    world.settle(peer).await;
    let key = peer.cached(KEY.0, KEY.1);
    assert_eq!(world.cached(&key), Some(record.to_string()));
    world.assert_only(mark, &[&key]);
    assert_eq!(world.status().await["rejected"], json!([]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r15_a_service_that_is_not_shared_any_more_is_withdrawn() {
    let (peer, world) = west().await;
    assert_eq!(world.shared_services(&peer).await, 1);
    let record = with(checkout(&peer), "shared", false);
    accepts(&peer, &world, &record).await;
    assert_eq!(world.shared_services(&peer).await, 0);
    accepts(&peer, &world, &checkout(&peer)).await;
    assert_eq!(world.shared_services(&peer).await, 1);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r16_a_service_that_disagrees_with_key_or_cluster_is_dropped_and_the_old_one_kept() {
    let (peer, world) = west().await;
    world.settle(&peer).await;
    let good = records::service("west", 2, "checkout", &["10.112.2.99"]);
    let rows: [(&str, Value, &str); 4] = [
        ("name", json!("b"), "key-mismatch"),
        ("namespace", json!("default"), "key-mismatch"),
        ("cluster", json!("north"), "cluster-mismatch"),
        ("clusterID", json!(3), "cluster-id-mismatch"),
    ];
    for (field, value, reason) in rows {
        let bad = with(good.clone(), field, value).to_string();
        world.rejects(&peer, KEY, bad, reason).await;
    }
    assert_eq!(
        world.cached(&peer.cached(KEY.0, KEY.1)),
        Some(checkout(&peer).to_string())
    );
    assert_eq!(world.shared_services(&peer).await, 1);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r17_a_backend_that_is_no_address_spoils_the_whole_record() {
    let (peer, world) = west().await;
    world.settle(&peer).await;
    let mark = world.mark();
    let mut backends: Vec<String> = (1..10).map(|last| peer.address(last)).collect();
    backends.push("not-an-ip".to_owned());
    let backends: Vec<&str> = backends.iter().map(String::as_str).collect();
    let bad = records::service("west", 2, "checkout", &backends).to_string();
    let new = bad.replace("checkout", "never-good");
    peer.etcd.put(&peer.key(KEY.0, KEY.1), bad.clone()).await;
    peer.etcd
        .put(&peer.key("services", "shop/never-good"), new)
        .await;
    world.settle(&peer).await;
    assert_eq!(world.rejected("west", "undecodable").await, 2);
    // The old record counts still, and the new one is known as a key only. The cache copies what
    // nobody here can read, for readers that can.
    let status = world.peer("west").await;
    assert_eq!(status["ready"], true);
    assert!(world.shared_services(&peer).await >= 1, "{status}");
    let copied = [
        peer.cached(KEY.0, KEY.1),
        peer.cached("services", "shop/never-good"),
    ];
    world.assert_only(mark, &copied.each_ref().map(String::as_str));
    assert_eq!(world.cached(&copied[0]), Some(bad));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r18_a_port_without_name_has_the_empty_key() {
    let (peer, world) = west().await;
    let mut record = checkout(&peer);
    let port = json!({"": {"Protocol": "TCP", "Port": 80}});
    record["frontends"]["10.96.44.10"] = port.clone();
    record["backends"][peer.pod()] = port;
    accepts(&peer, &world, &record).await;
    assert_eq!(world.shared_services(&peer).await, 1);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r19_a_headless_service_has_no_frontends() {
    let (peer, world) = west().await;
    accepts(
        &peer,
        &world,
        &with(checkout(&peer), "frontends", json!({})),
    )
    .await;
    assert_eq!(world.shared_services(&peer).await, 1);
    world.stop().await;
}
