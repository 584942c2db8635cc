//! A Cilium cluster in kvstore mode as the source: an etcd filled as Cilium's agents and operator
//! fill it, and what peers see of it.
use std::{collections::BTreeSet, time::Duration};

use tokio_util::sync::CancellationToken;
use tombolo::{
    source::{
        Status,
        kvstore::{Kvstore, Producer},
    },
    types::{ClusterId, MaxClusters},
};

use super::{
    members::Members,
    node::{Node, connector, eventually},
};

/// Cluster west has id 12 here, so its identities begin at 12 << 16.
const LABELS: &str = "k8s:app=db;k8s:io.cilium.k8s.policy.cluster=west;";
const NODE: &str = r#"{"Name":"n1","Cluster":"west","IPAddresses":[{"Type":"InternalIP","IP":"192.0.2.1"}],"IPv4AllocCIDR":{"IP":"10.0.0.0","Mask":"////AA=="},"ClusterID":12,"Source":"local","EncryptionKey":0,"NodeIdentity":1}"#;
const SERVICE: &str = r#"{"cluster":"west","namespace":"shop","name":"web","frontends":{"10.96.0.1":{"http":{"Protocol":"TCP","Port":80}}},"backends":{"10.0.0.9":{"http":{"Protocol":"TCP","Port":80}}},"hostnames":{},"labels":{},"selector":{},"includeExternal":true,"shared":true,"clusterID":12}"#;

fn ip(address: &str, id: u32) -> String {
    format!(
        r#"{{"IP":"{address}","Mask":null,"HostIP":"192.0.2.1","ID":{id},"Key":0,"Metadata":"cilium-global:default:n1:7","K8sNamespace":"shop","K8sPodName":"db-0","NamedPorts":[]}}"#
    )
}

/// Agents and operator, by hand.
async fn fill(client: &mut etcd_client::Client) {
    let slave = format!("cilium/state/identities/v1/value/{LABELS}/192.0.2.1");
    let lock = format!("cilium/state/identities/v1/locks/{LABELS}/694d7a3f");
    let records = [
        ("cilium/.heartbeat", "2025-06-01T12:00:00Z".to_owned()),
        (
            "cilium/cluster-config/west",
            r#"{"id":12,"capabilities":{}}"#.to_owned(),
        ),
        ("cilium/state/nodes/v1/west/n1", NODE.to_owned()),
        ("cilium/state/identities/v1/id/786433", LABELS.to_owned()),
        (&slave, "786433".to_owned()),
        (&lock, String::new()),
        (
            "cilium/state/ip/v1/default/10.0.0.9",
            ip("10.0.0.9", 786_433),
        ),
        ("cilium/state/ip/v1/default/192.0.2.1", ip("192.0.2.1", 1)),
        ("cilium/state/services/v1/west/shop/web", SERVICE.to_owned()),
        // Another cluster's, as an agent with a wrong configuration would write them.
        (
            "cilium/state/nodes/v1/east/n9",
            NODE.replace("west", "east"),
        ),
        (
            "cilium/state/identities/v1/id/65537",
            LABELS.replace("west", "east"),
        ),
        (
            "cilium/state/ip/v1/default/10.9.0.9",
            ip("10.9.0.9", 65_537),
        ),
    ];
    for (key, value) in records {
        client.put(key, value, None).await.unwrap();
    }
}

fn source(node: &Node, cilium: &Members, store: &Members) -> Kvstore {
    let max = MaxClusters::C255;
    let producer = Producer {
        name: "west".parse().unwrap(),
        id: ClusterId::new(12, max).unwrap(),
        max,
    };
    let ends = (connector(&cilium.urls()), connector(&store.urls()));
    Kvstore::new(producer, ends, "cilium.yaml".into(), node.events())
}

async fn exported(node: &Node, wanted: &[&str]) {
    let wanted: BTreeSet<&str> = wanted.iter().copied().collect();
    eventually("what is exported", async || {
        let keys = node.export_keys("cilium/state/");
        let keys: BTreeSet<&str> = keys.keys().map(String::as_str).collect();
        (keys == wanted).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cilium_cluster_in_kvstore_mode_is_exported_normalized() {
    let (mut cilium, store) = (Members::start(1), Members::start(1));
    cilium.ready().await;
    store.ready().await;
    let mut agents = cilium.client().await;
    fill(&mut agents).await;
    let node = Node::start(0, &store.urls()).await;
    let source = source(&node, &cilium, &store);
    let (mut status, cancel) = (source.status(), CancellationToken::new());
    let running = tokio::spawn(source.run(cancel.clone()));
    let all = [
        "cilium/state/identities/v1/id/786433",
        "cilium/state/ip/v1/default/10.0.0.9",
        "cilium/state/ip/v1/default/192.0.2.1",
        "cilium/state/nodes/v1/west/n1",
        "cilium/state/services/v1/west/shop/web",
    ];
    exported(&node, &all).await;
    assert_eq!(node.export_keys("cilium/synced/west/").len(), 5);
    let records = node.export_keys("cilium/state/");
    assert_eq!(records[all[0]], LABELS);
    assert_eq!(records[all[4]], SERVICE);
    assert!(
        records[all[1]].contains("\"ID\":786433"),
        "{}",
        records[all[1]]
    );
    let counted = |status: &Status| {
        let texts = status.errors.iter().map(|error| error.message.as_str());
        let texts: Vec<&str> = texts.collect();
        let range = "2 records are not published: identity-out-of-range";
        status.synced && texts.len() == 1 && texts[0].starts_with(range)
    };
    crate::within(status.wait_for(counted)).await.unwrap();

    // The same said in other words, a real change, a new record, and one that goes.
    let spelled = NODE
        .replace("\"Name\"", "\"name\"")
        .replace(",\"NodeIdentity\":1", "");
    let spelled = spelled.replace("\"EncryptionKey\":0", "\"NodeIdentity\":1,\"Unknown\":[]");
    agents.put(all[3], spelled, None).await.unwrap();
    agents
        .put(all[1], ip("10.0.0.9", 786_433), None)
        .await
        .unwrap();
    let changed = SERVICE.replace("\"Port\":80", "\"Port\":81");
    agents.put(all[4], changed.clone(), None).await.unwrap();
    agents.delete(all[2], None).await.unwrap();
    let next = "cilium/state/ip/v1/default/10.0.0.10";
    agents
        .put(next, ip("10.0.0.10", 786_433), None)
        .await
        .unwrap();
    exported(&node, &[all[0], all[1], next, all[3], all[4]]).await;
    eventually("the changed service", async || {
        (node.export_keys(all[4])[all[4]] == changed).then_some(())
    })
    .await;

    // While Cilium's etcd is lost, all stays.
    cilium.kill(0);
    let lost = |status: &Status| status.errors.len() == 2;
    crate::within(status.wait_for(lost)).await.unwrap();
    cilium.restart(0);
    cilium.ready().await;
    let mut agents = cilium.client().await;
    agents.delete(next, None).await.unwrap();
    exported(&node, &[all[0], all[1], all[3], all[4]]).await;
    crate::within(status.wait_for(counted)).await.unwrap();

    // It was only read.
    let ours = etcd_client::GetOptions::new().with_prefix();
    let ours = agents.get("tombolo/", Some(ours)).await.unwrap();
    assert_eq!(ours.count(), 0);
    cancel.cancel();
    running.await.unwrap().unwrap();
    let history = node.stop().await;
    for (key, wanted) in [
        (all[0], &["put"][..]),
        (all[1], &["put"]),
        (all[2], &["put", "delete"]),
        (all[3], &["put"]),
        (all[4], &["put", "put"]),
        (next, &["put", "delete"]),
    ] {
        assert_eq!(history[key], wanted, "{key}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cluster_store_is_no_source() {
    let store = Members::start(1);
    store.ready().await;
    let node = Node::start(0, &store.urls()).await;
    let source = source(&node, &store, &store);
    let (mut status, cancel) = (source.status(), CancellationToken::new());
    let running = tokio::spawn(source.run(cancel.clone()));
    let refused = |status: &Status| {
        let mut errors = status.errors.iter();
        errors.any(|error| error.message.contains("it is the cluster store"))
    };
    crate::within(status.wait_for(refused)).await.unwrap();
    assert!(!status.borrow().synced);
    cancel.cancel();
    tokio::time::timeout(Duration::from_secs(5), running)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    node.stop().await;
}
