//! A node without a kernel: publisher, export and the export's history.
use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tombolo::{
    etcd::{Client, ConnectOptions, Connector},
    limits,
    publish::{ExportPolicy, Options, Projection, Publisher, Status, Views},
    source::{LocalEvent, LocalWorkload, WorkloadKey},
    store::{self, Event, KeyRange, RangeRequest, Store, WatchRequest},
    types::{ClusterId, EndpointEvent, Label, Labels, MaxClusters},
};

/// What became of each key of an export, in order.
pub(super) type History = BTreeMap<String, Vec<&'static str>>;

/// How often an export's heart beats here.
pub(super) const BEAT: Duration = Duration::from_millis(50);

/// How long anything may take: a few calls that hang on a busy machine, each with the longest pause
/// before it is tried again.
const PATIENCE: Duration =
    Duration::from_secs(3 * (limits::CALL_TIMEOUT.as_secs() + limits::STORE_BACKOFF.1.as_secs()));

pub(super) struct Node {
    pub(super) index: usize,
    events: mpsc::Sender<LocalEvent>,
    synced: watch::Receiver<bool>,
    status: watch::Receiver<Status>,
    confirmed: Connector,
    /// Names of the endpoints told.
    endpoints: Arc<Mutex<Vec<String>>>,
    export: Store,
    history: Arc<Mutex<History>>,
    cancel: CancellationToken,
    tasks: JoinSet<()>,
    _dir: tempfile::TempDir,
}

pub(super) fn connect_options(urls: &[String]) -> ConnectOptions {
    ConnectOptions {
        endpoints: urls.iter().map(|url| url.parse().unwrap()).collect(),
        ..ConnectOptions::default()
    }
}

pub(super) fn connector(urls: &[String]) -> Connector {
    let options = connect_options(urls);
    Connector::new(move || {
        let options = options.clone();
        async move { Client::connect_to_store(&options).await }
    })
}

pub(super) fn options(index: usize, state_dir: &Path) -> Options {
    Options {
        cluster: "west".parse().unwrap(),
        id: ClusterId::new(12, MaxClusters::C255).unwrap(),
        max: MaxClusters::C255,
        node_name: format!("node-{index}"),
        state_dir: state_dir.to_owned(),
    }
}

fn key(node: usize, index: usize) -> WorkloadKey {
    WorkloadKey {
        namespace: "shop".to_owned(),
        name: format!("w-{node}-{index}"),
    }
}

pub(super) fn workload(node: usize, index: usize, app: &str) -> LocalWorkload {
    let label = Label {
        source: "k8s".into(),
        key: "app".to_owned(),
        value: app.to_owned(),
    };
    let address = [10, u8::try_from(node).unwrap(), 0, 0];
    let address = u32::from_be_bytes(address) + u32::try_from(index).unwrap();
    LocalWorkload {
        key: key(node, index),
        labels: Arc::new(Labels::new([label]).unwrap()),
        addresses: vec![std::net::Ipv4Addr::from_bits(address).into()],
        host_ip: Some(format!("192.0.2.{node}").parse().unwrap()),
        interface: None,
        named_ports: Vec::new(),
        this_node: true,
        audit: false,
    }
}

/// A store with an id of its own.
fn new_store() -> Store {
    Store::new(store::Options {
        cluster_id: rand::random::<u64>() | 1,
        history_max: 100_000,
    })
}

impl Node {
    pub(super) async fn start(index: usize, urls: &[String]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = options(index, dir.path());
        let clock = || time::macros::datetime!(2025-06-01 12:00:00 UTC);
        let publisher = Publisher::open(options.clone(), connector(urls), clock);
        let publisher = publisher.await.unwrap();
        let (synced, status) = (publisher.synced(), publisher.status());
        let confirmed = publisher.confirmed();
        let views = Views::new(&ExportPolicy::default(), new_store);
        let export = views.of(None).store;
        let (events, source) = mpsc::channel(16);
        let (sink, mut told) = mpsc::channel(16);
        let cancel = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let running = publisher.run(source, sink, cancel.clone());
        tasks.spawn(async move { running.await.unwrap() });
        let (_, policy) = watch::channel(ExportPolicy::default());
        let projection = Projection::new(options, confirmed.clone(), views, policy, clock);
        let running = projection.with_heartbeat(BEAT).run(cancel.clone());
        tasks.spawn(async move { running.await.unwrap() });
        let endpoints = Arc::new(Mutex::new(Vec::new()));
        let names = Arc::clone(&endpoints);
        tasks.spawn(async move {
            while let Some(event) = told.recv().await {
                if let EndpointEvent::Upsert(endpoint) = event {
                    names.lock().unwrap().push(endpoint.name.clone());
                }
            }
        });
        let history = Arc::new(Mutex::new(History::new()));
        tasks.spawn(record(export.clone(), Arc::clone(&history), cancel.clone()));
        Self {
            index,
            events,
            synced,
            status,
            confirmed,
            endpoints,
            export,
            history,
            cancel,
            tasks,
            _dir: dir,
        }
    }

    pub(super) async fn upsert(&self, workload: LocalWorkload) {
        let event = LocalEvent::WorkloadUpsert(workload);
        self.events.send(event).await.unwrap();
    }

    pub(super) async fn delete(&self, node: usize, index: usize) {
        let event = LocalEvent::WorkloadDelete(key(node, index));
        self.events.send(event).await.unwrap();
    }

    /// Where a source of its own sends to.
    pub(super) fn events(&self) -> mpsc::Sender<LocalEvent> {
        self.events.clone()
    }

    /// Says that this was all, and waits until it is in the store.
    pub(super) async fn synced(&self) {
        self.events.send(LocalEvent::Synced).await.unwrap();
        let mut synced = self.synced.clone();
        crate::within(synced.wait_for(|synced| *synced))
            .await
            .unwrap();
    }

    /// Makes the publisher look at its store, without waiting for what it finds.
    pub(super) fn ask(&self) {
        let confirmed = self.confirmed.clone();
        tokio::spawn(async move { confirmed.connect().await.map(drop) });
    }

    pub(super) fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// Waits until `policy` and `enforcer` know of an endpoint.
    pub(super) async fn endpoint(&self, name: &str) {
        let told = async || {
            let names = self.endpoints.lock().unwrap();
            names.iter().any(|n| n == name).then_some(())
        };
        eventually(name, told).await;
    }

    /// Keys and values of the export.
    pub(super) fn export_keys(&self, prefix: &str) -> BTreeMap<String, String> {
        let request = RangeRequest::prefix(prefix.as_bytes());
        let found = self.export.range(&request).unwrap().kvs;
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        found
            .iter()
            .map(|kv| (text(&kv.key), text(&kv.value)))
            .collect()
    }

    /// How often the heart has beaten.
    pub(super) fn beats(&self) -> i64 {
        let heartbeat = self.export.get(b"cilium/.heartbeat");
        heartbeat.map_or(0, |heartbeat| heartbeat.version)
    }

    pub(super) async fn stop(mut self) -> History {
        self.cancel.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
        std::mem::take(&mut *self.history.lock().unwrap())
    }
}

async fn record(export: Store, history: Arc<Mutex<History>>, cancel: CancellationToken) {
    let request = WatchRequest {
        range: KeyRange::prefix(b"cilium/"),
        start_revision: 1,
        ..WatchRequest::default()
    };
    let mut watcher = export.watch(request).unwrap();
    while let Some(batch) = cancel.run_until_cancelled(watcher.recv()).await {
        for event in batch.unwrap().events {
            let key = String::from_utf8(event.key().to_vec()).unwrap();
            let what = match event {
                Event::Put { .. } => "put",
                Event::Delete { .. } => "delete",
            };
            history.lock().unwrap().entry(key).or_default().push(what);
        }
    }
}

pub(super) async fn eventually<T>(what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(value) = check().await {
            return value;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "not in time: {what}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
