//! R1 to R5: nodes.
use serde_json::{Value, json};

use super::{
    records::{self, with},
    world::{NODE, NODE_ADDRESS, west},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r01_a_node_that_disagrees_with_key_or_cluster_is_dropped_and_the_old_one_kept() {
    let (peer, world) = west().await;
    let good = peer.node_record("n1", "10.7.2.99");
    let rows: [(&str, Value, &str); 3] = [
        ("Cluster", json!("other"), "cluster-mismatch"),
        ("Name", json!("n2"), "key-mismatch"),
        ("ClusterID", json!(3), "cluster-id-mismatch"),
    ];
    for (field, value, reason) in rows {
        let bad = with(good.clone(), field, value).to_string();
        world
            .rejects(&peer, ("nodes", "n1"), bad.clone(), reason)
            .await;
        world
            .rejects(
                &peer,
                ("nodes", "never-good"),
                bad.replace("n1", "never-good"),
                reason,
            )
            .await;
    }
    assert_eq!(
        (world.target(&peer.node()), world.target("10.7.2.99")),
        (Some(6), None)
    );
    let old = peer.node_record("n1", &peer.node()).to_string();
    assert_eq!(world.cached(&peer.cached("nodes", "n1")), Some(old));
    world.ready("west").await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r02_a_node_with_cluster_id_0_is_dropped() {
    let (peer, world) = west().await;
    let bad = with(peer.node_record("n1", "10.7.2.99"), "ClusterID", 0);
    world
        .rejects(
            &peer,
            ("nodes", "n1"),
            bad.to_string(),
            "cluster-id-out-of-range",
        )
        .await;
    assert_eq!(
        (world.target(&peer.node()), world.target("10.7.2.99")),
        (Some(6), None)
    );
    world.ready("west").await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r03_unknown_address_types_and_fields_are_read_over() {
    let (peer, world) = west().await;
    let mut node = peer.node_record("n2", "10.7.2.22");
    node["IPAddresses"] = json!([
        {"Type": "FutureIP", "IP": "10.7.2.23", "Zone": 1},
        {"Type": "InternalIP", "IP": "10.7.2.22"},
    ]);
    node["Labels"] = Value::Null;
    node["Future"] = json!({"x": [1, {"y": null}]});
    peer.etcd
        .put(&peer.key("nodes", "n2"), node.to_string())
        .await;
    world.targets("10.7.2.22", 6).await;
    world.targets("10.7.2.23", 6).await;
    assert_eq!(
        world.cached(&peer.cached("nodes", "n2")),
        Some(node.to_string())
    );
    assert_eq!(world.status().await["rejected"], json!([]));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r04_a_mask_in_base64_is_a_prefix_length() {
    let (peer, world) = west().await;
    let cidr = json!({"IP": "10.112.3.0", "Mask": "////AA=="});
    let node = with(peer.node_record("n2", "10.7.2.22"), "IPv4AllocCIDR", cidr);
    peer.etcd
        .put(&peer.key("nodes", "n2"), node.to_string())
        .await;
    world.targets("10.7.2.22", 6).await;
    let nodes = world.route("/v1/nodes").await;
    let is = |node: &&Value| node["cluster"] == "west" && node["name"] == "n2";
    let node = nodes.as_array().unwrap().iter().find(is).unwrap();
    assert_eq!(
        (&node["ipv4"], &node["ipv4_cidr"]),
        (&json!("10.7.2.22"), &json!("10.112.3.0/24"))
    );
    assert_eq!(world.status().await["rejected"], json!([]));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r05_no_peer_reconfigures_our_own_node() {
    let (peer, world) = west().await;
    world.targets(NODE_ADDRESS, 1).await;
    let forged = records::node("east", 1, NODE, "10.7.2.66").to_string();
    world
        .rejects(&peer, ("nodes", NODE), forged, "cluster-mismatch")
        .await;
    let squatter = peer.node_record("n3", NODE_ADDRESS).to_string();
    world
        .rejects(&peer, ("nodes", "n3"), squatter, "address-of-own-cluster")
        .await;
    // A node of theirs may have the name of ours.
    let namesake = peer.node_record(NODE, "10.7.2.67").to_string();
    peer.etcd.put(&peer.key("nodes", NODE), namesake).await;
    world.targets("10.7.2.67", 6).await;
    assert_eq!(world.map()[NODE_ADDRESS], (1, 1));
    assert_eq!(world.target("10.7.2.66"), None);
    world.stop().await;
}
