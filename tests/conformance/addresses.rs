//! R6 to R11: addresses.
use serde_json::json;

use super::{
    records::{self, with},
    wait::eventually,
    world::west,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r06_an_address_that_its_key_does_not_name_is_dropped() {
    let (peer, world) = west().await;
    let record = records::ip("10.0.0.2", peer.identity(1)).to_string();
    world
        .rejects(&peer, ("ip", "10.0.0.1"), record, "key-mismatch")
        .await;
    assert_eq!(
        (world.target("10.0.0.1"), world.target("10.0.0.2")),
        (None, None)
    );
    world.ready("west").await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r07_a_peers_host_is_a_remote_node() {
    let (peer, world) = west().await;
    let address = peer.address(7);
    peer.put_ip(&address, 1).await;
    world.targets(&address, 6).await;
    assert_eq!(world.status().await["rejected"], json!([]));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r08_identities_of_the_peer_and_reserved_ones_are_taken_and_no_others() {
    let (peer, world) = west().await;
    let before = world.peer("west").await["num-endpoints"].as_u64().unwrap();
    let [reserved, none, own] = [104, 0, peer.identity(5)];
    for (last, identity) in [(1, reserved), (2, none), (3, own)] {
        peer.put_ip(&peer.address(last), identity).await;
    }
    world.targets(&peer.address(1), reserved).await;
    world.targets(&peer.address(3), own).await;
    world.caches(&peer.cached("ip", &peer.address(2))).await;
    world.applied().await;
    // Known, and nobody's yet.
    assert_eq!(world.target(&peer.address(2)), None);
    let status = world.peer("west").await;
    assert_eq!(status["num-endpoints"], before + 3);
    for (last, identity) in [(4, 3 << 16), (5, 1 << 24), (6, 256), (8, u32::MAX)] {
        let address = peer.address(last);
        let record = records::ip(&address, identity).to_string();
        world
            .rejects(&peer, ("ip", &address), record, "identity-out-of-range")
            .await;
        assert_eq!(world.target(&address), None);
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r09_what_is_local_stays_local() {
    let (peer, world) = west().await;
    let (address, identity) = ("10.1.0.9", (1 << 16) + 7);
    let key = format!("cilium/state/ip/v1/default/{address}");
    let local = records::ip(address, identity).to_string();
    world.own.put(key.into(), local.into(), 0).unwrap();
    world.targets(address, identity).await;
    let theirs = records::ip(address, peer.identity(1)).to_string();
    world
        .rejects(&peer, ("ip", address), theirs, "address-of-own-cluster")
        .await;
    let mark = world.mark();
    peer.etcd.delete(&peer.key("ip", address)).await;
    world.settle(&peer).await;
    world.assert_nothing(mark);
    assert_eq!(world.map()[address], (identity, 1));
    world.ready("west").await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r10_an_address_waits_for_its_identity() {
    let (peer, world) = west().await;
    let (address, identity) = (peer.address(10), peer.identity(10));
    peer.put_ip(&address, identity).await;
    world.targets(&address, identity).await;
    world.settle(&peer).await;
    assert!(world.label(identity).is_none());
    let mark = world.mark();
    let labels = records::labels("west", "late");
    peer.etcd.put(&peer.identity_key(10), labels.clone()).await;
    eventually("labels", async || world.label(identity)).await;
    assert_eq!(world.label(identity), Some(labels));
    let cached = peer.cached("identities", &identity.to_string());
    world.settle(&peer).await;
    world.assert_only(mark, &[&format!("identity {identity}"), &cached]);
    let status = world.peer("west").await;
    assert_eq!(status["ready"], true);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r11_a_range_is_read_with_the_slash_in_its_key() {
    let (peer, world) = west().await;
    let record = with(
        records::ip("10.50.0.0", peer.identity(1)),
        "Mask",
        "//8AAA==",
    );
    peer.etcd
        .put(&peer.key("ip", "10.50.0.0/16"), record.to_string())
        .await;
    world.targets("10.50.0.0/16", peer.identity(1)).await;
    assert_eq!(
        world.cached(&peer.cached("ip", "10.50.0.0/16")),
        Some(record.to_string())
    );
    // With a mask of full length the key has one too.
    let host = with(
        records::ip("10.51.0.7", peer.identity(1)),
        "Mask",
        "/////w==",
    )
    .to_string();
    world
        .rejects(&peer, ("ip", "10.51.0.7"), host, "key-mismatch")
        .await;
    let status = world.peer("west").await;
    assert_eq!(status["ready"], true);
    world.stop().await;
}
