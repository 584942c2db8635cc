//! R12 to R14: identities.
use super::{records, world::west};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r12_an_identity_without_the_label_of_its_cluster_is_dropped() {
    let (peer, world) = west().await;
    let label = "io.cilium.k8s.policy.cluster";
    let rows = [
        "k8s:app=x;".to_owned(),
        format!("k8s:app=x;k8s:{label}=north;"),
        format!("k8s:app=x;cilium:{label}=west;"),
        format!("k8s:app=x;k8s:{label}=west;k8s:{label}=north;"),
    ];
    for labels in rows {
        // Over the good one, and as a new one.
        for number in [1, 12] {
            let suffix = peer.identity(number).to_string();
            world
                .rejects(
                    &peer,
                    ("identities", &suffix),
                    labels.clone(),
                    "cluster-label",
                )
                .await;
        }
    }
    let labels = world.labels();
    assert_eq!(
        labels[&peer.identity(1)],
        records::labels("west", "checkout")
    );
    assert!(!labels.contains_key(&peer.identity(12)));
    world.ready("west").await;
    world.stop().await;
}

/// Beside R12: the labels of reserved identities are nobody's to give.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_identity_with_a_reserved_label_is_dropped() {
    let (peer, world) = west().await;
    let own = "k8s:io.cilium.k8s.policy.cluster=west;";
    for label in ["reserved:host=", "$host", "reserved.host", "reserved:x=y"] {
        for number in [1, 12] {
            let suffix = peer.identity(number).to_string();
            let labels = format!("k8s:app=x;{own}{label};");
            let entry = ("identities", &*suffix);
            world.rejects(&peer, entry, labels, "reserved-label").await;
        }
    }
    let labels = world.labels();
    assert_eq!(
        labels[&peer.identity(1)],
        records::labels("west", "checkout")
    );
    assert!(!labels.contains_key(&peer.identity(12)));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r13_an_identity_outside_of_the_peers_range_is_dropped() {
    let (peer, world) = west().await;
    let labels = records::labels("west", "x");
    for id in [
        104_u64,
        (1 << 16) + 5,
        (3 << 16) + 5,
        (1 << 24) + 5,
        (1 << 33) + (2 << 16),
    ] {
        let suffix = id.to_string();
        world
            .rejects(
                &peer,
                ("identities", &suffix),
                labels.clone(),
                "identity-out-of-range",
            )
            .await;
    }
    // Both ends of the range belong to it.
    for number in [0, 65_535] {
        peer.etcd
            .put(&peer.identity_key(number), labels.clone())
            .await;
        super::wait::eventually("an end of the range", async || {
            world
                .labels()
                .contains_key(&peer.identity(number))
                .then_some(())
        })
        .await;
    }
    world.ready("west").await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r14_an_identity_key_that_is_no_number_or_an_empty_value_is_ignored() {
    let (peer, world) = west().await;
    let labels = records::labels("west", "x");
    for suffix in ["abc", "-131073", "131073x", "1/131073"] {
        world
            .rejects(
                &peer,
                ("identities", suffix),
                labels.clone(),
                "malformed-key",
            )
            .await;
    }
    let suffix = peer.identity(1).to_string();
    world
        .rejects(&peer, ("identities", &suffix), "", "empty-value")
        .await;
    assert_eq!(
        world.labels()[&peer.identity(1)],
        records::labels("west", "checkout")
    );
    world.ready("west").await;
    world.stop().await;
}
