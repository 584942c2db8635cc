//! S1 to S7: what is read, and from when on.
use serde_json::{Value, json};

use super::{
    peer::{Peer, Tree},
    records,
    world::World,
};

/// All that `Peer::publish` writes but canaries.
async fn without_canaries(name: &'static str, id: u32) -> Peer {
    let peer = Peer::empty(name, id).await;
    peer.publish_config(&records::config(id)).await;
    peer.publish_data().await;
    peer
}

/// Another peer is imported from end to end meanwhile.
async fn bystander(world: &World) {
    let north = Peer::start("north", 3).await;
    world.import(&north).await;
}

const NONE: [&str; 4] = ["nodes", "services", "endpoints", "identities"];

fn synced(peer: &Value, kinds: &[&str]) -> bool {
    kinds.iter().all(|kind| peer["synced"][kind] == true)
}

fn unsynced(peer: &Value, kinds: &[&str]) -> bool {
    kinds.iter().all(|kind| peer["synced"][kind] == false)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s01_nothing_is_read_before_its_canary() {
    let peer = without_canaries("west", 2).await;
    let world = World::start();
    world.join(&peer);
    let is = |p: &Value| p["config"]["retrieved"] == true;
    world.until("west", "config", is).await;
    bystander(&world).await;
    world.has_nothing_of(&peer).await;
    let status = world.peer("west").await;
    assert!(unsynced(&status, &NONE), "{status}");
    assert_eq!(
        (&status["connected"], &status["ready"]),
        (&json!(true), &json!(false))
    );
    assert_eq!(
        (&status["num-failures"], peer.proxy.connections()),
        (&json!(0), 1)
    );
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s02_one_canary_opens_one_kind() {
    let peer = without_canaries("west", 2).await;
    let world = World::start();
    world.join(&peer);
    peer.etcd.put(&peer.canary("nodes"), "now").await;
    world.targets(&peer.node(), 6).await;
    world
        .until("west", "nodes synced", |p| synced(p, &["nodes"]))
        .await;
    world.applied().await;
    let status = world.peer("west").await;
    assert!(
        unsynced(&status, &["services", "endpoints", "identities"]),
        "{status}"
    );
    assert_eq!(
        (&status["num-nodes"], &status["num-endpoints"]),
        (&json!(1), &json!(0))
    );
    bystander(&world).await;
    assert_eq!(
        (
            world.target(&peer.pod()),
            world.labels().contains_key(&peer.identity(1))
        ),
        (None, false)
    );
    assert_eq!(
        world.cached_keys("cilium/cache/services/v1/west/"),
        Vec::<String>::new()
    );
    peer.publish_canaries().await;
    world.has(&peer).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s03_a_canary_that_goes_changes_nothing() {
    let peer = Peer::start("west", 2).await;
    let world = World::start();
    world.import(&peer).await;
    world.settle(&peer).await;
    let mark = world.mark();
    peer.etcd.delete_prefix("cilium/synced/west/").await;
    // Still read, each kind of it.
    world.settle(&peer).await;
    world.assert_nothing(mark);
    let status = world.peer("west").await;
    assert_eq!(
        (&status["ready"], &status["num-failures"]),
        (&json!(true), &json!(0))
    );
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s04_an_unknown_canary_is_ignored() {
    let peer = without_canaries("west", 2).await;
    peer.etcd.put(&peer.canary("foo"), "now").await;
    let world = World::start();
    world.join(&peer);
    world
        .until("west", "config", |p| p["config"]["retrieved"] == true)
        .await;
    bystander(&world).await;
    world.has_nothing_of(&peer).await;
    let status = world.peer("west").await;
    assert!(unsynced(&status, &NONE), "{status}");
    peer.publish_canaries().await;
    world.has(&peer).await;
    let status = world.peer("west").await;
    assert_eq!(
        (&status["num-failures"], peer.proxy.connections()),
        (&json!(0), 1)
    );
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s05_a_producer_without_canaries_is_read_at_once() {
    let peer = Peer::empty("west", 2).await;
    peer.publish_config(&json!({"id": 2})).await;
    peer.publish_data().await;
    let world = World::start();
    world.import(&peer).await;
    assert_eq!(world.peer("west").await["config"]["sync-canaries"], false);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s06_a_cache_is_read_in_its_own_shapes_only() {
    let mut peer = Peer::empty("west", 2).await;
    // What must not be read: the same cluster's state, and a canary of it.
    let pod = peer.address(99);
    let entries = vec![
        (
            peer.key("nodes", "n9"),
            peer.node_record("n9", "10.7.2.99").to_string(),
        ),
        (peer.key("ip", &pod), records::ip(&pod, 2).to_string()),
        (peer.identity_key(9), records::labels("west", "state")),
        (peer.canary("nodes"), "now".to_owned()),
        (peer.canary("ip"), "now".to_owned()),
    ];
    peer.etcd.put_all(entries).await;
    peer.tree = Tree::Cache;
    // And what older caches hold beside the identities.
    let beside = "cilium/cache/identities/v1/west/value/k8s:a=b;/10.0.0.1";
    peer.etcd.put(beside, "131073").await;
    let mut config = records::config(2);
    config["capabilities"]["cached"] = json!(true);
    peer.publish_config(&config).await;
    peer.publish_data().await;
    peer.publish_canaries().await;
    let world = World::start();
    world.import(&peer).await;
    world.settle(&peer).await;
    assert_eq!(
        (world.target(&pod), world.target("10.7.2.99")),
        (None, None)
    );
    assert!(!world.labels().contains_key(&peer.identity(9)));
    let identities = world.cached_keys("cilium/cache/identities/v1/west/");
    assert!(
        identities.iter().all(|key| key.contains("/west/id/")),
        "{identities:?}"
    );
    assert_eq!(world.peer("west").await["config"]["kvstoremesh"], true);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s07_another_cluster_in_the_same_etcd_is_not_seen() {
    let peer = Peer::start("west", 2).await;
    let other = |kind: &str, suffix: &str| Tree::State.key(kind, "west2", suffix);
    let node = records::node("west2", 9, "n1", "10.7.9.21").to_string();
    let service = records::service("west2", 9, "checkout", &[]).to_string();
    let entries = vec![
        (
            "cilium/cluster-config/west2".to_owned(),
            records::config(9).to_string(),
        ),
        (
            "cilium/synced/west2/cilium/state/nodes/v1".to_owned(),
            "now".to_owned(),
        ),
        (other("nodes", "n1"), node),
        (other("services", "shop/checkout"), service),
    ];
    peer.etcd.put_all(entries).await;
    let world = World::start();
    world.import(&peer).await;
    let status = world.peer("west").await;
    assert_eq!(
        (&status["num-nodes"], &status["num-shared-services"]),
        (&json!(1), &json!(1))
    );
    assert_eq!(world.target("10.7.9.21"), None);
    let all = world.cached_keys("cilium/");
    assert!(!all.iter().any(|key| key.contains("west2")), "{all:?}");
    assert_eq!(world.status().await["rejected"], json!([]));
    world.stop().await;
}
