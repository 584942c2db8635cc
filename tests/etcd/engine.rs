//! Several nodes of one cluster that share an etcd: allocation, outages, garbage collection.
mod arbitration;
mod kvstore_source;
mod members;
mod node;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio_util::sync::CancellationToken;
use tombolo::{
    etcd::{self, Client},
    publish::Collector,
};

use self::{
    members::Members,
    node::{Node, eventually, workload},
};
use crate::Face;

/// How many label sets all nodes share, and how many each has for itself.
const SHARED: usize = 10;
const OWN: usize = 10;

fn own(node: usize, index: usize) -> String {
    format!("own-{node}-{index}")
}

/// The key of each label set, after a check that no label set and no number occurs twice.
fn one_to_one(identities: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut by_labels = BTreeMap::new();
    for (key, labels) in identities {
        let before = by_labels.insert(labels.clone(), key.clone());
        assert_eq!(before, None, "{labels} is also {key}");
    }
    by_labels
}

async fn has(node: &Node, prefix: &str, count: usize) {
    let what = format!("{count} keys below {prefix}");
    eventually(&what, async || {
        (node.export_keys(prefix).len() == count).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_share_an_etcd_agree_on_identities_and_survive_its_outages() {
    let mut members = Members::start(3);
    members.ready().await;
    let mut nodes = Vec::new();
    for index in 0..3 {
        nodes.push(Node::start(index, &members.urls()).await);
    }
    // All at once: the same label sets in all nodes, and some of each node's own.
    for index in 0..SHARED.max(OWN) {
        for node in &nodes {
            node.upsert(workload(node.index, index, &format!("shared-{index}")))
                .await;
            node.upsert(workload(node.index, 100 + index, &own(node.index, index)))
                .await;
        }
    }
    for node in &nodes {
        node.synced().await;
    }
    let ips = 3 * (SHARED + OWN);
    for node in &nodes {
        has(node, "cilium/state/ip/", ips).await;
        has(node, "cilium/state/identities/", SHARED + 3 * OWN).await;
        has(node, "cilium/synced/west/", 5).await;
    }
    let identities = nodes[0].export_keys("cilium/state/identities/");
    assert_eq!(one_to_one(&identities).len(), SHARED + 3 * OWN);
    for node in &nodes[1..] {
        assert_eq!(node.export_keys("cilium/state/identities/"), identities);
    }

    // One member less: writes go on through the others.
    members.kill(0);
    nodes[0].upsert(workload(0, 200, "shared-0")).await;
    nodes[1].upsert(workload(1, 200, "late")).await;
    for node in &nodes {
        has(node, "cilium/state/ip/", ips + 2).await;
    }
    members.restart(0);
    members.ready().await;

    // History goes, so that the followers have to list again when they come back.
    let mut client = members.client().await;
    for _ in 0..2 {
        client.put("unrelated", "", None).await.unwrap();
    }
    let head = client.get("unrelated", None).await.unwrap();
    let head = head.header().unwrap().revision();
    client.compact(head, None).await.unwrap();

    // None at all: what is known stays, a workload whose labels have a number starts at once, and
    // comes to the others later.
    for index in 0..3 {
        members.kill(index);
    }
    for node in &nodes {
        let noticed = async || (!node.status().connected).then_some(());
        node.ask();
        eventually("the outage is noticed", noticed).await;
        assert_eq!(node.status().errors().count(), 1);
    }
    nodes[2].upsert(workload(2, 201, "shared-1")).await;
    nodes[2].endpoint("w-2-201").await;
    nodes[2].upsert(workload(2, 202, "later")).await;
    for node in &nodes {
        let beats = node.beats();
        let goes_on = async || (node.beats() > beats + 5).then_some(());
        eventually("the heartbeat goes on", goes_on).await;
    }
    for node in &nodes {
        assert_eq!(node.export_keys("cilium/state/ip/").len(), ips + 2);
    }
    for index in 0..3 {
        members.restart(index);
    }
    for node in &nodes {
        has(node, "cilium/state/ip/", ips + 4).await;
        has(node, "cilium/state/identities/", SHARED + 3 * OWN + 2).await;
        assert_eq!(node.status().errors().count(), 0);
    }
    one_to_one(&nodes[0].export_keys("cilium/state/identities/"));
    for node in nodes {
        // Each key came once and never went; a beat is put again, a record is not.
        for (key, history) in node.stop().await {
            let beats = key == "cilium/.heartbeat";
            assert!(beats || history == ["put"], "{key}: {history:?}");
            assert!(!history.contains(&"delete"), "{key}: {history:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn labels_that_many_nodes_ask_for_at_once_get_one_number() {
    let members = Members::start(1);
    members.ready().await;
    let mut nodes = Vec::new();
    for index in 0..4 {
        nodes.push(Node::start(index, &members.urls()).await);
    }
    for round in 0..3 {
        let asked = nodes.iter().map(async |node| {
            // Each node in another order.
            for step in 0..50 {
                let app = (step * (2 * node.index + 1) + node.index * 7) % 50;
                let app = format!("round-{round}-{app}");
                node.upsert(workload(node.index, 1000 * round + step, &app))
                    .await;
            }
        });
        futures::future::join_all(asked).await;
        if round == 0 {
            for node in &nodes {
                node.synced().await;
            }
        }
    }
    for node in &nodes {
        has(node, "cilium/state/ip/", 4 * 3 * 50).await;
        has(node, "cilium/state/identities/", 3 * 50).await;
        one_to_one(&node.export_keys("cilium/state/identities/"));
    }
    let mut client = members.client().await;
    let locks = "cilium/state/identities/v1/locks/";
    let left = client
        .get(locks, Some(etcd_client::GetOptions::new().with_prefix()))
        .await
        .unwrap();
    assert_eq!(left.count(), 0, "every mutex is given back");
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unused_identities_go_and_used_ones_stay_with_two_collectors() {
    let members = Members::start(1);
    members.ready().await;
    let node = Node::start(0, &members.urls()).await;
    node.upsert(workload(0, 1, "stays")).await;
    node.upsert(workload(0, 2, "goes")).await;
    node.upsert(workload(0, 3, "comes-back")).await;
    node.synced().await;
    has(&node, "cilium/state/identities/", 3).await;
    let before = one_to_one(&node.export_keys("cilium/state/identities/"));
    let id = |app: &str| {
        let text = format!("k8s:app={app};k8s:io.cilium.k8s.policy.cluster=west;");
        before[&text].clone()
    };

    let cancel = CancellationToken::new();
    // A round never falls on the very end of the wait, and all that is to happen within the wait
    // does so on a busy machine too.
    let timing = (Duration::from_secs(1), Duration::from_millis(5500));
    let mut collectors = tokio::task::JoinSet::new();
    let mut stop = Vec::new();
    for index in 0..2 {
        let options = node::options(index, std::path::Path::new("/nonexistent"));
        let connector = node::connector(&members.urls());
        let cancel = cancel.child_token();
        stop.push(cancel.clone());
        collectors.spawn(Collector::with_timing(&options, connector, timing).run(cancel));
    }
    node.delete(0, 2).await;
    node.delete(0, 3).await;
    let gone = std::time::Instant::now();
    has(&node, "cilium/state/ip/", 1).await;
    // Used for a moment, most likely between two rounds: its wait begins anew.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    node.upsert(workload(0, 3, "comes-back")).await;
    has(&node, "cilium/state/ip/", 2).await;
    node.delete(0, 3).await;
    let again = std::time::Instant::now();
    let went = async |app: &str| {
        let listed = async || node.export_keys(&id(app)).is_empty().then_some(());
        eventually(app, listed).await;
    };
    went("goes").await;
    assert!(gone.elapsed() >= timing.1, "after {:?}", gone.elapsed());
    went("comes-back").await;
    assert!(again.elapsed() >= timing.1, "after {:?}", again.elapsed());
    let left: BTreeSet<_> = node
        .export_keys("cilium/state/identities/")
        .into_keys()
        .collect();
    assert_eq!(left, BTreeSet::from([id("stays")]));

    // Whoever held the lock gives it up when it ends; the other goes on.
    let mut client = members.client().await;
    let lock = "tombolo/locks/identity-collector";
    let holder = client.get(lock, None).await.unwrap();
    let holder = holder.kvs()[0].value_str().unwrap().to_owned();
    let index: usize = holder.trim_start_matches("node-").parse().unwrap();
    stop[index].cancel();
    collectors.join_next().await.unwrap().unwrap();
    node.upsert(workload(0, 4, "short-lived")).await;
    has(&node, "cilium/state/identities/", 2).await;
    node.delete(0, 4).await;
    has(&node, "cilium/state/identities/", 1).await;
    let holder = client.get(lock, None).await.unwrap();
    assert_eq!(
        holder.kvs()[0].value_str().unwrap(),
        format!("node-{}", 1 - index)
    );
    cancel.cancel();
    while let Some(ended) = collectors.join_next().await {
        ended.unwrap();
    }
    // Each number that went, went once.
    for (key, history) in node.stop().await {
        if key.starts_with("cilium/state/identities/") {
            let deleted = history.iter().filter(|what| **what == "delete").count();
            assert_eq!(
                deleted,
                usize::from(key != id("stays")),
                "{key}: {history:?}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_forgets_is_no_cluster_store_for_others() {
    let face = Face::start("admin-west").await;
    let options = node::connect_options(&[format!("http://{}", face.endpoint)]);
    let refused = Client::connect_to_store(&options).await;
    assert!(
        matches!(refused, Err(etcd::Error::NotDurable { .. })),
        "{refused:?}"
    );
    face.stop().await;
}
