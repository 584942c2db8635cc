//! The publisher and the projection against real stores.
use std::{path::Path, time::Duration};

use tokio::task::JoinSet;

use super::*;
use crate::{
    etcd::Client,
    keyspace::{IpRecord, Kind, Layout, NodeRecord, ServiceRecord, identity},
    serve,
    source::{ServiceKey, ServicePort, WorkloadKey},
    store::{KeyValue, RangeRequest, Store},
    types::{Label, Labels, LocalEndpoint, NamedPort},
};

mod identities;
mod outages;
mod producer;

const NODE_IP: &str = "192.0.2.1";

pub(super) fn noon() -> OffsetDateTime {
    time::macros::datetime!(2025-06-01 12:00:00.5 UTC)
}

fn an_hour_later() -> OffsetDateTime {
    noon() + Duration::from_secs(3600)
}

pub(super) fn options(state_dir: &Path) -> Options {
    Options {
        cluster: "west".parse().unwrap(),
        id: ClusterId::new(12, MaxClusters::C255).unwrap(),
        max: MaxClusters::C255,
        node_name: "n1".to_owned(),
        state_dir: state_dir.to_owned(),
    }
}

pub(super) fn store(cluster_id: u64) -> Store {
    Store::new(store::Options {
        cluster_id,
        history_max: 10_000,
    })
}

/// Connections to a store in this process.
fn connector(store: &Store) -> Connector {
    let store = store.clone();
    Connector::new(move || {
        Client::in_process(serve::in_process(store.clone(), CancellationToken::new()))
    })
}

fn key(name: &str) -> WorkloadKey {
    WorkloadKey {
        namespace: "shop".to_owned(),
        name: name.to_owned(),
    }
}

fn workload(name: &str, app: &str, address: &str) -> LocalWorkload {
    let label = |key: &str, value: &str| Label {
        source: "k8s".into(),
        key: key.to_owned(),
        value: value.to_owned(),
    };
    let labels = [
        label("app", app),
        label(identity::CLUSTER_LABEL, "elsewhere"),
    ];
    LocalWorkload {
        key: key(name),
        labels: Arc::new(Labels::new(labels).unwrap()),
        addresses: vec![address.parse().unwrap()],
        host_ip: Some(NODE_IP.parse().unwrap()),
        interface: Some("veth0".to_owned()),
        named_ports: ["web", "api"]
            .map(|name| NamedPort {
                name: name.to_owned(),
                port: 80,
                protocol: "TCP".to_owned(),
            })
            .to_vec(),
        this_node: true,
        audit: false,
    }
}

fn service(global: bool, shared: bool) -> LocalService {
    let port = ServicePort {
        protocol: "TCP".to_owned(),
        port: 80,
    };
    let ports: crate::source::ServicePorts = [("http".to_owned(), port)].into();
    LocalService {
        key: ServiceKey {
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
        },
        frontends: [("10.96.0.1".parse().unwrap(), ports.clone())].into(),
        backends: [("10.0.0.1".parse().unwrap(), ports)].into(),
        hostnames: BTreeMap::new(),
        labels: BTreeMap::new(),
        selector: BTreeMap::new(),
        global,
        shared,
    }
}

/// A running publisher.
struct Running {
    store: Store,
    events: mpsc::Sender<LocalEvent>,
    endpoints: mpsc::Receiver<EndpointEvent>,
    synced: watch::Receiver<bool>,
    status: watch::Receiver<Status>,
    confirmed: Connector,
    cancel: CancellationToken,
    tasks: JoinSet<Result<(), Error>>,
}

impl Running {
    async fn start(state_dir: &Path, store: &Store, clock: Clock) -> Self {
        Self::start_at(state_dir, store, connector(store), clock).await
    }

    async fn start_at(state_dir: &Path, store: &Store, connector: Connector, clock: Clock) -> Self {
        let publisher = Publisher::open(options(state_dir), connector, clock)
            .await
            .unwrap();
        let (events, source) = mpsc::channel(16);
        let (sink, endpoints) = mpsc::channel(64);
        let cancel = CancellationToken::new();
        let (synced, status) = (publisher.synced(), publisher.status());
        let confirmed = publisher.confirmed();
        let mut tasks = JoinSet::new();
        tasks.spawn(publisher.run(source, sink, cancel.clone()));
        Self {
            store: store.clone(),
            events,
            endpoints,
            synced,
            status,
            confirmed,
            cancel,
            tasks,
        }
    }

    /// Sends events and waits until the store has what follows from them: a marker comes and goes.
    async fn send(&mut self, events: impl IntoIterator<Item = LocalEvent>) -> Vec<EndpointEvent> {
        for event in events {
            self.events.send(event).await.unwrap();
        }
        let marker = workload("marker", "marker", "10.255.255.1");
        self.events.send(upsert(marker)).await.unwrap();
        let mut seen = Vec::new();
        let mut marker = None;
        loop {
            match self.endpoints.recv().await.unwrap() {
                EndpointEvent::Upsert(endpoint) if endpoint.name == "marker" => {
                    marker = Some(endpoint.id);
                    let delete = LocalEvent::WorkloadDelete(key("marker"));
                    self.events.send(delete).await.unwrap();
                }
                EndpointEvent::Delete(id) if Some(id) == marker => break,
                event => seen.push(event),
            }
        }
        self.written().await;
        seen
    }

    async fn written(&mut self) {
        let written = |s: &Status| s.connected && s.unwritten == 0 && s.waiting == 0;
        self.status.wait_for(written).await.unwrap();
    }

    async fn stop(mut self) {
        self.cancel.cancel();
        self.tasks.join_next().await.unwrap().unwrap().unwrap();
    }

    fn ip(&self, address: &str) -> Option<IpRecord> {
        let key = format!("cilium/state/ip/v1/default/{address}");
        self.store
            .get(key.as_bytes())
            .map(|kv| IpRecord::decode(&kv.value).unwrap())
    }

    fn list(&self, prefix: &str) -> Vec<KeyValue> {
        list(&self.store, prefix)
    }
}

fn list(store: &Store, prefix: &str) -> Vec<KeyValue> {
    store
        .range(&RangeRequest::prefix(prefix.as_bytes()))
        .unwrap()
        .kvs
}

fn upsert(workload: LocalWorkload) -> LocalEvent {
    LocalEvent::WorkloadUpsert(workload)
}

fn endpoint(event: &EndpointEvent) -> &LocalEndpoint {
    match event {
        EndpointEvent::Upsert(endpoint) => endpoint,
        other => panic!("not an upsert: {other:?}"),
    }
}

#[tokio::test]
async fn a_workload_yields_identity_address_and_endpoint() {
    let dir = tempfile::tempdir().unwrap();
    let mut run = Running::start(dir.path(), &store(1), noon).await;
    let seen = run
        .send([upsert(workload("a", "db", "10.0.0.1")), LocalEvent::Synced])
        .await;
    let sent = endpoint(&seen[0]);
    assert_eq!(seen[1], EndpointEvent::Synced);
    run.synced.wait_for(|synced| *synced).await.unwrap();
    // The own cluster's label is forced.
    let text = "k8s:app=db;k8s:io.cilium.k8s.policy.cluster=west;";
    assert_eq!(sent.labels.to_string(), text);
    assert!(MaxClusters::C255.owns(
        ClusterId::new(12, MaxClusters::C255).unwrap(),
        sent.identity
    ));
    let master = run
        .store
        .get(identity::master_key(sent.identity).as_bytes())
        .unwrap();
    assert_eq!((&master.value[..], master.lease), (text.as_bytes(), 0));
    let slave = format!("cilium/state/identities/v1/value/{text}/{NODE_IP}");
    let slave = run.store.get(slave.as_bytes()).unwrap();
    assert_eq!(slave.value, sent.identity.to_string());
    let record = run.ip("10.0.0.1").unwrap();
    assert_eq!(
        (record.id, record.host_ip),
        (sent.identity.0, Some(NODE_IP.parse().unwrap()))
    );
    assert_eq!(
        (record.k8s_namespace.as_str(), record.k8s_pod_name.as_str()),
        ("shop", "a")
    );
    let names: Vec<_> = record
        .named_ports
        .iter()
        .map(|port| port.name.as_str())
        .collect();
    assert_eq!(names, ["api", "web"]);
    let kv = run
        .store
        .get(b"cilium/state/ip/v1/default/10.0.0.1")
        .unwrap();
    assert!(kv.lease != 0 && kv.lease == slave.lease);
    run.stop().await;
}

#[tokio::test]
async fn p5_repeated_objects_write_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut run = Running::start(dir.path(), &store(1), noon).await;
    run.send([upsert(workload("a", "db", "10.0.0.1"))]).await;
    let before = run.store.get(b"cilium/state/ip/v1/default/10.0.0.1");
    let slaves = run.list("cilium/state/identities/v1/");
    let seen = run.send([upsert(workload("a", "db", "10.0.0.1"))]).await;
    assert_eq!(seen, []);
    assert_eq!(
        run.store.get(b"cilium/state/ip/v1/default/10.0.0.1"),
        before
    );
    let has_marker = |text: &[u8]| String::from_utf8_lossy(text).contains("marker");
    let is_marker = |kv: &KeyValue| has_marker(&kv.key) || has_marker(&kv.value);
    let after: Vec<_> = run.list("cilium/state/identities/v1/");
    for kv in slaves.iter().filter(|kv| !is_marker(kv)) {
        assert!(after.contains(kv));
    }
    run.stop().await;
}

#[tokio::test]
async fn p8_an_address_goes_to_the_next_claimant() {
    let dir = tempfile::tempdir().unwrap();
    let mut run = Running::start(dir.path(), &store(1), noon).await;
    let seen = run
        .send([
            upsert(workload("old", "db", "10.0.0.1")),
            upsert(workload("new", "web", "10.0.0.1")),
        ])
        .await;
    assert_eq!(seen.len(), 1);
    assert_eq!(run.ip("10.0.0.1").unwrap().k8s_pod_name, "old");
    let seen = run.send([LocalEvent::WorkloadDelete(key("old"))]).await;
    assert_eq!(run.ip("10.0.0.1").unwrap().k8s_pod_name, "new");
    assert_eq!(endpoint(&seen[0]).name, "new");
    let seen = run.send([upsert(workload("new", "web", "10.0.0.2"))]).await;
    assert_eq!(
        endpoint(&seen[0]).addresses,
        ["10.0.0.2".parse::<IpAddr>().unwrap()]
    );
    assert!(run.ip("10.0.0.1").is_none() && run.ip("10.0.0.2").is_some());
    run.stop().await;
}

#[tokio::test]
async fn nodes_and_services_carry_the_own_cluster() {
    let dir = tempfile::tempdir().unwrap();
    let mut run = Running::start(dir.path(), &store(1), noon).await;
    let (west, id) = (options(dir.path()).cluster, options(dir.path()).id);
    let node = LocalNode {
        name: "n1".to_owned(),
        addresses: vec![("InternalIP".to_owned(), NODE_IP.parse().unwrap())],
        ipv4_cidrs: vec![
            "10.0.0.0/24".parse().unwrap(),
            "10.0.1.0/24".parse().unwrap(),
        ],
        ..LocalNode::default()
    };
    let bad = LocalNode {
        name: "a/b".to_owned(),
        ..LocalNode::default()
    };
    run.send([
        LocalEvent::NodeUpsert(node),
        LocalEvent::NodeUpsert(bad),
        LocalEvent::ServiceUpsert(service(true, true)),
    ])
    .await;
    let kv = run.store.get(b"cilium/state/nodes/v1/west/n1").unwrap();
    let record = NodeRecord::decode(&kv.value).unwrap();
    record.check(b"n1", &west, id).unwrap();
    assert_eq!(record.source, "custom-resource");
    assert_eq!(
        record.ipv4_secondary_alloc_cidrs.map(|cidrs| cidrs.len()),
        Some(1)
    );
    assert_eq!(run.list("cilium/state/nodes/").len(), 1);
    let service_key = b"cilium/state/services/v1/west/shop/web";
    let kv = run.store.get(service_key).unwrap();
    let record = ServiceRecord::decode(&kv.value).unwrap();
    record.check(b"shop/web", &west, id).unwrap();
    assert!(record.shared && record.include_external);
    for (global, shared) in [(true, false), (false, true)] {
        run.send([LocalEvent::ServiceUpsert(service(global, shared))])
            .await;
        assert!(run.store.get(service_key).is_none());
        run.send([LocalEvent::ServiceUpsert(service(true, true))])
            .await;
    }
    run.send([
        LocalEvent::ServiceDelete(service(true, true).key),
        LocalEvent::NodeDelete("n1".to_owned()),
    ])
    .await;
    assert!(run.store.get(service_key).is_none() && run.list("cilium/state/nodes/").is_empty());
    run.stop().await;
}

#[tokio::test]
async fn a_stop_withdraws_nothing_but_the_lease_ends_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut run = Running::start(dir.path(), &store(1), noon).await;
    run.send([upsert(workload("a", "db", "10.0.0.1"))]).await;
    assert!(run.store.get(b"cilium/cluster-config/west").is_some());
    let store = run.store.clone();
    run.stop().await;
    assert!(store.get(b"cilium/state/ip/v1/default/10.0.0.1").is_some());
    store.expire(std::time::Instant::now() + limits::LEASE_TTL * 2);
    assert!(store.get(b"cilium/state/ip/v1/default/10.0.0.1").is_none());
}

#[tokio::test]
async fn the_export_has_records_first_and_canaries_last() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = store(1);
    let views = Views::new(&ExportPolicy::default(), || store(2));
    let export = views.of(None).store;
    let mut run = Running::start(dir.path(), &cluster, noon).await;
    let foreign = [
        "cilium/state/nodes/v1/north/n",
        "tombolo/x",
        "cilium/state/identities/v1/locks/y",
    ];
    for key in foreign {
        cluster.put(key.into(), "{}".into(), 0).unwrap();
    }
    let confirmed = run.confirmed.clone();
    let (_, policy) = watch::channel(ExportPolicy::default());
    let projection = Projection::new(options(dir.path()), confirmed, views, policy, noon);
    run.tasks.spawn(projection.run(run.cancel.clone()));
    let heartbeat = || export.get(b"cilium/.heartbeat");
    eventually(|| heartbeat().is_some()).await;
    assert_eq!(heartbeat().unwrap().value, "2025-06-01T12:00:00Z");
    let config = export.get(b"cilium/cluster-config/west").unwrap().value;
    let text = r#"{"id":12,"capabilities":{"syncedCanaries":true,"maxConnectedClusters":255}}"#;
    assert_eq!(config, text);
    // Before the source has said everything, nothing is listed.
    run.send([upsert(workload("a", "db", "10.0.0.1"))]).await;
    assert_eq!(list(&export, "cilium/synced/").len(), 0);
    run.send([upsert(workload("b", "web", "10.0.0.2")), LocalEvent::Synced])
        .await;
    eventually(|| list(&export, "cilium/synced/west/").len() == 5).await;
    assert_eq!(list(&export, "cilium/state/ip/").len(), 2);
    let west = options(dir.path()).cluster;
    let record = export.get(b"cilium/state/ip/v1/default/10.0.0.2").unwrap();
    let canary = Layout::State.canary(Kind::Ips, &west);
    let canary = export.get(canary.as_bytes()).unwrap();
    assert!(canary.mod_revision > record.mod_revision);
    assert_eq!(record.lease, 0);
    assert!(list(&export, "cilium/state/identities/v1/value/").is_empty());
    // Two label sets and the marker's.
    eventually(|| list(&export, "cilium/state/identities/v1/id/").len() == 3).await;
    for key in foreign {
        assert!(export.get(key.as_bytes()).is_none());
    }
    run.send([
        LocalEvent::WorkloadDelete(key("a")),
        LocalEvent::WorkloadDelete(key("b")),
    ])
    .await;
    eventually(|| list(&export, "cilium/state/ip/").is_empty()).await;
    assert_eq!(list(&export, "cilium/synced/west/").len(), 5);
    run.stop().await;
}

async fn eventually(mut holds: impl FnMut() -> bool) {
    let polled = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), polled)
        .await
        .unwrap();
}
