//! Nodes that say different things under one key.
use std::time::Duration;

use tombolo::{limits, source::LocalWorkload};

use super::{
    members::Members,
    node::{Node, eventually, workload},
};

const ADDRESS: &str = "10.9.9.9";
const KEY: &str = "cilium/state/ip/v1/default/10.9.9.9";

fn claims(node: usize, app: &str) -> LocalWorkload {
    LocalWorkload {
        addresses: vec![ADDRESS.parse().unwrap()],
        ..workload(node, 1, app)
    }
}

/// Waits until a node's export has the address as the pod's.
async fn owned_by(node: &Node, pod: &str) {
    eventually(pod, async || {
        let record = node.export_keys(KEY).remove(KEY)?;
        record
            .contains(&format!("\"K8sPodName\":\"{pod}\""))
            .then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_an_address_that_two_nodes_claim_stays_with_the_first_until_it_goes() {
    let members = Members::start(1);
    members.ready().await;
    let first = Node::start(0, &members.urls()).await;
    first.upsert(claims(0, "db")).await;
    first.synced().await;
    let second = Node::start(1, &members.urls()).await;
    second.upsert(claims(1, "web")).await;
    second.synced().await;
    let waits = async || (!second.status().contended.is_empty()).then_some(());
    eventually("the second knows that it waits", waits).await;
    assert_eq!(second.status().contended, [KEY]);
    // Neither its next tries nor a comparison of everything make a difference.
    for _ in 0..5 {
        first.ask();
        second.ask();
        tokio::time::sleep(limits::HELD_RETRY / 3).await;
        owned_by(&first, "w-0-1").await;
    }
    assert!(first.status().contended.is_empty());

    // The first one restarts with something new to say: what its last process wrote is its own.
    for (key, history) in first.stop().await {
        assert!(key != KEY || history == ["put"], "{history:?}");
    }
    let first = Node::start(0, &members.urls()).await;
    let mut changed = claims(0, "db");
    changed.host_ip = Some("192.0.2.77".parse().unwrap());
    first.upsert(changed).await;
    first.synced().await;
    eventually("the new record", async || {
        let record = second.export_keys(KEY).remove(KEY)?;
        record.contains("192.0.2.77").then_some(())
    })
    .await;
    first.delete(0, 1).await;
    let gone = std::time::Instant::now();
    owned_by(&second, "w-1-1").await;
    owned_by(&first, "w-1-1").await;
    assert!(gone.elapsed() < limits::HELD_RETRY + Duration::from_secs(3));
    assert!(second.status().contended.is_empty());
    let history = second.stop().await.remove(KEY).unwrap();
    assert_eq!(history, ["put", "put", "delete", "put"]);
    first.stop().await;
}
