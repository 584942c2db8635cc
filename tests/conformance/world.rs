//! The reader: cluster `east`, id 1, with the shipped import stack, whose deltas are recorded.
use std::{
    collections::BTreeMap,
    path::PathBuf,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, SystemTime},
};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    sync::watch,
};
use tokio_util::sync::CancellationToken;
use tombolo::{
    app::testing,
    etcd::{Client, Connector},
    lifecycle::Tasks,
    limits, mesh, peer, serve,
    store::{self, RangeRequest, Store},
    types::{ClusterId, MaxClusters},
};

use super::{
    peer::Peer,
    recorder::{Change, MARKER, MARKER_IDENTITY, MARKER_NET, Mark, Recorder, named},
    records,
    wait::eventually,
};

/// This node's name, and its address in its own record.
pub(crate) const NODE: &str = "node1";
pub(crate) const NODE_ADDRESS: &str = "192.0.2.1";

/// Events that a store keeps; nothing here has more.
const HISTORY: usize = 400_000;

pub(crate) struct World {
    tasks: Tasks,
    recorder: Recorder,
    /// Peer files are below it.
    dir: tempfile::TempDir,
    /// The own cluster's store.
    pub(crate) own: Store,
    pub(crate) cache: Store,
    markers: AtomicU32,
    own_markers: AtomicU32,
}

/// What a case may want otherwise.
pub(crate) struct Setup {
    pub(crate) max: MaxClusters,
    pub(crate) timing: peer::Timing,
    /// How long a removed peer's data stays in the cache.
    pub(crate) cache_grace: Duration,
    pub(crate) errors: Arc<dyn Fn() -> Vec<String> + Send + Sync>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            max: MaxClusters::C255,
            timing: peer::Timing::default(),
            cache_grace: limits::CACHE_GRACE,
            errors: Arc::new(Vec::new),
        }
    }
}

pub(crate) fn store(cluster_id: u64) -> Store {
    Store::new(store::Options {
        cluster_id,
        history_max: HISTORY,
    })
}

/// Connections to a store of this process.
pub(crate) fn connector(store: &Store) -> Connector {
    let store = store.clone();
    Connector::new(move || {
        Client::in_process(serve::in_process(store.clone(), CancellationToken::new()))
    })
}

impl World {
    pub(crate) fn start() -> Self {
        Self::with(Setup::default())
    }

    pub(crate) fn with(setup: Setup) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let directory = dir.path().join("peers");
        std::fs::create_dir(&directory).unwrap();
        let (own, cache) = (store(11), store(13));
        let node = records::node("east", 1, NODE, NODE_ADDRESS).to_string();
        let key = format!("cilium/state/nodes/v1/east/{NODE}");
        own.put(key.into(), node.into(), 0).unwrap();
        let settings = mesh::Settings {
            cluster_name: "east".parse().unwrap(),
            cluster_id: ClusterId::new(1, setup.max).unwrap(),
            max_clusters: setup.max,
            node_name: NODE.to_owned(),
        };
        let parts = testing::Parts {
            peers: peers(directory, &settings, setup.timing),
            settings,
            own: connector(&own),
            cache: cache.clone(),
            cache_grace: setup.cache_grace,
            socket_path: dir.path().join("tombolo.sock"),
            errors: setup.errors,
        };
        let tasks = Tasks::new();
        let deltas = testing::import(&tasks, parts).unwrap();
        let recorder = Recorder::start(deltas, &cache);
        Self {
            tasks,
            recorder,
            dir,
            own,
            cache,
            markers: AtomicU32::new(0),
            own_markers: AtomicU32::new(0),
        }
    }

    /// The end of a case: no task may have failed or panicked.
    pub(crate) async fn stop(self) {
        testing::finish(&self.tasks).await.unwrap();
    }

    // --- peer files ---

    pub(crate) fn peers(&self) -> PathBuf {
        self.dir.path().join("peers")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("tombolo.sock")
    }

    pub(crate) fn join(&self, peer: &Peer) {
        peer.write_file(&self.peers());
    }

    /// Joins, and waits for all that `Peer::publish` wrote.
    pub(crate) async fn import(&self, peer: &Peer) {
        self.join(peer);
        self.has(peer).await;
    }

    pub(crate) fn leave(&self, peer: &Peer) {
        std::fs::remove_file(self.peers().join(peer.name)).unwrap();
    }

    // --- status ---

    /// The body of an admin route.
    pub(crate) async fn route(&self, route: &str) -> Value {
        let mut stream = UnixStream::connect(self.socket()).await.unwrap();
        let request = format!("GET {route} HTTP/1.1\r\nHost: tombolo\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        serde_json::from_str(body).unwrap()
    }

    /// What `tombolo status -o json` prints.
    pub(crate) fn printed_status(&self) -> Value {
        let printed = Command::new(env!("CARGO_BIN_EXE_tombolo"))
            .args(["status", "-o", "json", "--socket-path"])
            .arg(self.socket())
            .output()
            .unwrap();
        serde_json::from_slice(&printed.stdout).unwrap()
    }

    /// The same without the command, for the many looks of a case.
    pub(crate) async fn status(&self) -> Value {
        self.route("/v1/status").await
    }

    /// A peer's part of it; null if there is no such peer.
    pub(crate) async fn peer(&self, name: &str) -> Value {
        let status = self.status().await;
        let clusters = status["cluster-mesh"]["clusters"].as_array().unwrap();
        let found = clusters.iter().find(|cluster| cluster["name"] == name);
        found.cloned().unwrap_or_default()
    }

    /// Waits until a peer's part is as it should be; returns it.
    pub(crate) async fn until(&self, name: &str, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        eventually(&format!("{name}: {what}"), async || {
            last = self.peer(name).await;
            is(&last).then(|| last.clone())
        })
        .await
    }

    pub(crate) async fn ready(&self, name: &str) -> Value {
        self.until(name, "ready", |peer| peer["ready"] == true)
            .await
    }

    /// Waits until the peer's line in the status says this, and that it is not ready.
    pub(crate) async fn refused(&self, name: &str, text: &str) -> Value {
        let is = |peer: &Value| {
            let says = peer["status"]
                .as_str()
                .is_some_and(|line| line.contains(text));
            says && peer["ready"] == false
        };
        self.until(name, text, is).await
    }

    /// How many of a peer's entries were refused for this reason.
    pub(crate) async fn rejected(&self, name: &str, reason: &str) -> u64 {
        let status = self.status().await;
        let rejected = status["rejected"].as_array().unwrap();
        let is = |entry: &&Value| entry["cluster"] == name && entry["reason"] == reason;
        rejected
            .iter()
            .find(is)
            .map_or(0, |entry| entry["count"].as_u64().unwrap())
    }

    // --- what left the mesh ---

    pub(crate) fn map(&self) -> BTreeMap<String, (u32, u32)> {
        self.recorder.map()
    }

    pub(crate) fn labels(&self) -> BTreeMap<u32, String> {
        self.recorder.labels()
    }

    pub(crate) fn label(&self, identity: u32) -> Option<String> {
        self.recorder.label(identity)
    }

    pub(crate) fn cached(&self, key: &str) -> Option<String> {
        let found = self.cache.get(key.as_bytes())?;
        Some(String::from_utf8_lossy(&found.value).into_owned())
    }

    pub(crate) fn cached_keys(&self, prefix: &str) -> Vec<String> {
        let found = self
            .cache
            .range(&RangeRequest::prefix(prefix.as_bytes()))
            .unwrap();
        let key = |kv: &store::KeyValue| String::from_utf8_lossy(&kv.key).into_owned();
        found.kvs.iter().map(key).collect()
    }

    pub(crate) fn mark(&self) -> Mark {
        self.recorder.mark()
    }

    pub(crate) fn since(&self, mark: Mark) -> Vec<Change> {
        self.recorder.since(mark)
    }

    /// No delta and no event of the cache since then was about anything but `allowed`.
    pub(crate) fn assert_only(&self, mark: Mark, allowed: &[&str]) {
        let changes = self.since(mark);
        let others: Vec<&str> = named(&changes)
            .into_iter()
            .filter(|what| !allowed.contains(what))
            .collect();
        assert!(others.is_empty(), "flapped: {others:?}");
    }

    pub(crate) fn assert_nothing(&self, mark: Mark) {
        self.assert_only(mark, &[]);
    }

    /// The identity of an address; `None` if nobody has it.
    pub(crate) fn target(&self, prefix: &str) -> Option<u32> {
        self.recorder.target(prefix).map(|(identity, _)| identity)
    }

    /// Waits until an address has this identity.
    pub(crate) async fn targets(&self, prefix: &str, identity: u32) {
        eventually(&format!("{prefix} is {identity}"), async || {
            (self.target(prefix) == Some(identity)).then_some(())
        })
        .await;
    }

    /// Waits for a key of the cache.
    pub(crate) async fn caches(&self, key: &str) {
        eventually(key, async || self.cached(key)).await;
    }

    /// Waits for all that `Peer::publish` wrote, in map, labels, cache and status.
    pub(crate) async fn has(&self, peer: &Peer) {
        self.targets(&peer.pod(), peer.identity(1)).await;
        self.targets(&peer.node(), 6).await;
        let labels = records::labels(peer.name, "checkout");
        eventually("labels", async || {
            (self.label(peer.identity(1)).as_ref() == Some(&labels)).then_some(())
        })
        .await;
        self.caches(&peer.cached("services", "shop/checkout")).await;
        self.ready(peer.name).await;
        self.applied().await;
        let status = self.peer(peer.name).await;
        assert_eq!(status["connected"], true);
        assert_eq!(status["config"]["cluster-id"], peer.id);
        for count in [
            "num-nodes",
            "num-endpoints",
            "num-identities",
            "num-shared-services",
        ] {
            assert!(status[count].as_u64() >= Some(1), "{count}: {status}");
        }
    }

    /// Waits until the mesh is through with all that left it so far, counts included: it takes
    /// members in turn, and a marker of the own cluster came out behind that.
    pub(crate) async fn applied(&self) {
        let number = self.own_markers.fetch_add(1, Ordering::Relaxed);
        let address = format!("{MARKER_NET}0.{number}");
        let record = records::ip(&address, 2).to_string();
        let key = format!("cilium/state/ip/v1/default/{address}");
        self.own.put(key.into(), record.into(), 0).unwrap();
        self.targets(&address, 2).await;
    }

    /// Nothing of the peer is in map, labels, cache or counts.
    pub(crate) async fn has_nothing_of(&self, peer: &Peer) {
        let of_peer = |(_, cluster): &(u32, u32)| *cluster == peer.id;
        let map = self.map();
        assert!(!map.values().any(of_peer), "{map:?}");
        let labels = self.labels();
        let in_range = |id: &u32| id >> peer.shift == peer.id;
        assert!(!labels.keys().any(in_range), "{labels:?}");
        let data = self.cached_keys("cilium/cache/");
        let own = format!("/v1/{}/", peer.name);
        assert!(!data.iter().any(|key| key.contains(&own)), "{data:?}");
        let status = self.peer(peer.name).await;
        if !status.is_null() {
            for count in [
                "num-nodes",
                "num-endpoints",
                "num-identities",
                "num-shared-services",
            ] {
                assert_eq!(status[count], 0, "{count}");
            }
        }
    }

    /// How many services this peer shares, without markers.
    pub(crate) async fn shared_services(&self, peer: &Peer) -> u64 {
        let status = self.peer(peer.name).await;
        let all = status["num-shared-services"].as_u64().unwrap();
        all - u64::from(self.markers.load(Ordering::Relaxed))
    }

    /// Waits until nothing has left the mesh for a while, where no marker can be written.
    pub(crate) async fn quiet(&self) -> Mark {
        const LOOKS: u32 = 15;
        let (mut mark, mut unchanged) = (self.mark(), 0);
        eventually("quiet", async || {
            unchanged = if self.mark() == mark {
                unchanged + 1
            } else {
                0
            };
            mark = self.mark();
            (unchanged == LOOKS).then_some(mark)
        })
        .await
    }

    /// The peer writes a record that is refused for this reason and goes nowhere.
    pub(crate) async fn rejects(
        &self,
        peer: &Peer,
        (kind, suffix): (&str, &str),
        value: impl Into<Vec<u8>>,
        reason: &str,
    ) {
        self.settle(peer).await;
        let (mark, before) = (self.mark(), self.rejected(peer.name, reason).await);
        peer.etcd.put(&peer.key(kind, suffix), value).await;
        self.settle(peer).await;
        let after = self.rejected(peer.name, reason).await;
        assert_eq!(after, before + 1, "{reason} of {kind} {suffix}");
        self.assert_nothing(mark);
    }

    /// Waits until everything that the peer wrote so far went through: a marker of each kind,
    /// written now, came out behind it.
    pub(crate) async fn settle(&self, peer: &Peer) {
        let number = self.markers.fetch_add(1, Ordering::Relaxed);
        let name = format!("{MARKER}{number}");
        let address = format!("{MARKER_NET}{}.{number}", peer.id & 255);
        let identity = peer.identity(MARKER_IDENTITY + number);
        let service = records::service(peer.name, peer.id, &name, &[]);
        let entries = [
            (
                "nodes",
                name.clone(),
                records::node(peer.name, peer.id, &name, "").to_string(),
            ),
            (
                "identities",
                identity.to_string(),
                records::labels(peer.name, MARKER),
            ),
            ("ip", address.clone(), records::ip(&address, 2).to_string()),
            ("services", format!("shop/{name}"), service.to_string()),
        ];
        let writes = entries.iter();
        let writes = writes.map(|(kind, suffix, value)| (peer.key(kind, suffix), value.clone()));
        peer.etcd.put_all(writes.collect()).await;
        for (kind, suffix, _) in &entries {
            self.caches(&peer.cached(kind, suffix)).await;
        }
        self.targets(&address, 2).await;
        eventually("marker", async || {
            self.label(identity).is_some().then_some(())
        })
        .await;
        self.applied().await;
    }
}

fn peers(directory: PathBuf, settings: &mesh::Settings, timing: peer::Timing) -> peer::Options {
    peer::Options {
        directory,
        cluster: settings.cluster_name.clone(),
        id: settings.cluster_id,
        max_clusters: settings.max_clusters,
        cache_ttl: None,
        trust: None,
        clock: SystemTime::now,
        timing,
        dial: peer::Dial::default(),
        random: peer::Random::default(),
        // Nobody else imports; its sender is not needed any more.
        route: watch::channel(peer::Route::Direct).1,
    }
}

/// Cluster west with id 2, and a world that has imported it.
pub(crate) async fn west() -> (Peer, World) {
    let (peer, world) = (Peer::start("west", 2).await, World::start());
    world.import(&peer).await;
    world.settle(&peer).await;
    (peer, world)
}
