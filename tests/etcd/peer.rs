//! The peer registry against a real etcd: import, loss of the connection, resumption, a wiped store
//! and removal.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]
use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tombolo::{
    keyspace::{KeyEvent, Kind},
    peer::{Dial, MemberEvent, Options, PeerStatus, Random, Registry, Timing},
    types::{ClusterId, ClusterName, MaxClusters},
};

use super::real::own_address;

/// An etcd on a loopback address of its own; killed when dropped.
struct Etcd {
    child: Child,
    url: String,
    peer_url: String,
    data: PathBuf,
}

impl Etcd {
    fn start(data: &Path) -> Self {
        let url = || format!("http://{}", own_address());
        let (url, peer_url) = (url(), url());
        let child = Self::spawn(data, &url, &peer_url);
        Self {
            child,
            url,
            peer_url,
            data: data.to_owned(),
        }
    }

    fn spawn(data: &Path, url: &str, peer_url: &str) -> Child {
        Command::new("etcd")
            .args(["--data-dir".as_ref(), data.as_os_str()])
            .args(["--listen-client-urls", url, "--advertise-client-urls", url])
            .args([
                "--listen-peer-urls",
                peer_url,
                "--initial-advertise-peer-urls",
                peer_url,
            ])
            .args(["--initial-cluster", &format!("default={peer_url}")])
            .args(["--initial-cluster-token", url])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn restart(&mut self) {
        self.child = Self::spawn(&self.data, &self.url, &self.peer_url);
    }

    async fn client(&self) -> etcd_client::Client {
        eventually(async || {
            let mut client = etcd_client::Client::connect([&self.url], None).await.ok()?;
            client.get("x", None).await.ok()?;
            Some(client)
        })
        .await
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

async fn eventually<T>(mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(value) = check().await {
            return value;
        }
        assert!(tokio::time::Instant::now() < deadline, "not in time");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn put(client: &mut etcd_client::Client, key: &str, value: &str) {
    client.put(key, value, None).await.unwrap();
}

fn is_connected(event: &MemberEvent, peer: &ClusterName, as_id: ClusterId) -> bool {
    matches!(event, MemberEvent::Connected { name, id, .. } if name == peer && *id == as_id)
}

fn config(id: u32, canaries: bool, cached: bool) -> String {
    format!(r#"{{"id":{id},"capabilities":{{"syncedCanaries":{canaries},"cached":{cached}}}}}"#)
}

struct World {
    registry: Registry,
    events: mpsc::Receiver<MemberEvent>,
    cancel: CancellationToken,
    run: tokio::task::JoinHandle<()>,
    dir: tempfile::TempDir,
}

impl World {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = Options {
            route: tokio::sync::watch::channel(tombolo::peer::Route::Direct).1,
            directory: dir.path().to_owned(),
            cluster: "own".parse().unwrap(),
            id: ClusterId::new(1, MaxClusters::C255).unwrap(),
            max_clusters: MaxClusters::C255,
            cache_ttl: None,
            trust: None,
            clock: std::time::SystemTime::now,
            timing: Timing::default(),
            dial: Dial::default(),
            random: Random::default(),
        };
        let (sender, events) = mpsc::channel(64);
        let registry = Registry::new(options, move |_| sender.clone());
        let cancel = CancellationToken::new();
        let run = tokio::spawn(registry.clone().run(cancel.clone()));
        Self {
            registry,
            events,
            cancel,
            run,
            dir,
        }
    }

    fn configure(&self, peer: &str, url: &str) {
        let text = format!("endpoints: [\"{url}\"]\n");
        std::fs::write(self.dir.path().join(format!("{peer}.config")), text).unwrap();
    }

    /// What is not about files.
    async fn next(&mut self) -> MemberEvent {
        loop {
            let next = tokio::time::timeout(Duration::from_secs(20), self.events.recv());
            match next.await.unwrap().unwrap() {
                MemberEvent::Terms { .. } => {}
                event => return event,
            }
        }
    }

    /// Key events up to and including the first that `last` accepts.
    async fn keys_until(&mut self, last: impl Fn(&[KeyEvent]) -> bool) -> Vec<KeyEvent> {
        let mut seen = Vec::new();
        while !last(&seen) {
            if let MemberEvent::Keys { events, .. } = self.next().await {
                seen.extend(events);
            }
        }
        seen
    }

    fn status(&self, peer: &str) -> Option<PeerStatus> {
        self.registry
            .statuses()
            .into_iter()
            .find(|status| status.name.as_str() == peer)
    }

    async fn stop(self) {
        self.cancel.cancel();
        self.run.await.unwrap();
    }
}

fn ends(events: &[KeyEvent]) -> usize {
    events
        .iter()
        .filter(|event| matches!(event, KeyEvent::EndList { .. }))
        .count()
}

fn has(events: &[KeyEvent], kind: Kind, suffix: &str) -> bool {
    events.iter().any(|event| {
        matches!(event, KeyEvent::Upsert { kind: k, suffix: s, .. } if *k == kind && s == suffix)
    })
}

fn deletes(events: &[KeyEvent], suffix: &str) -> bool {
    events
        .iter()
        .any(|event| matches!(event, KeyEvent::Delete { suffix: s, .. } if s == suffix))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peer_is_listed_watched_kept_over_an_outage_and_removed() {
    let data = tempfile::tempdir().unwrap();
    let mut etcd = Etcd::start(data.path());
    let mut client = etcd.client().await;
    put(&mut client, "cilium/.heartbeat", "now").await;
    put(
        &mut client,
        "cilium/cluster-config/west",
        &config(7, false, false),
    )
    .await;
    put(&mut client, "cilium/state/nodes/v1/west/n1", "{}").await;
    put(&mut client, "cilium/state/nodes/v1/westward/n9", "{}").await;
    put(&mut client, "cilium/state/ip/v1/default/10.0.0.1", "{}").await;
    put(
        &mut client,
        "cilium/state/identities/v1/id/458753",
        "k8s:a=b;",
    )
    .await;
    for index in 0..5000 {
        put(
            &mut client,
            &format!("cilium/state/services/v1/west/ns/s{index}"),
            "{}",
        )
        .await;
    }

    let mut world = World::start();
    world.configure("west", &etcd.url);
    let id = ClusterId::new(7, MaxClusters::C255).unwrap();
    let name = "west".parse().unwrap();
    assert!(is_connected(&world.next().await, &name, id));
    let events = world.keys_until(|seen| ends(seen) == Kind::ALL.len()).await;
    assert!(has(&events, Kind::Nodes, "n1") && has(&events, Kind::Ips, "10.0.0.1"));
    assert!(has(&events, Kind::Identities, "458753") && !has(&events, Kind::Nodes, "n9"));
    assert!(has(&events, Kind::Services, "ns/s0") && has(&events, Kind::Services, "ns/s4999"));
    let status = eventually(async || world.status("west").filter(|s| s.ready)).await;
    assert!(status.connected && status.etcd_cluster_id.is_some() && status.num_failures == 0);

    put(&mut client, "cilium/state/nodes/v1/west/n2", "{}").await;
    client
        .delete("cilium/state/nodes/v1/west/n1", None)
        .await
        .unwrap();
    let events = world.keys_until(|seen| deletes(seen, "n1")).await;
    assert!(has(&events, Kind::Nodes, "n2"));

    // The outage itself withdraws nothing; then only what happened meanwhile is told.
    etcd.kill();
    eventually(async || {
        world
            .status("west")
            .filter(|s| !s.connected && s.num_failures > 0)
    })
    .await;
    etcd.restart();
    let mut client = etcd.client().await;
    client
        .delete("cilium/state/nodes/v1/west/n2", None)
        .await
        .unwrap();
    put(&mut client, "cilium/state/nodes/v1/west/n3", "{}").await;
    assert!(matches!(world.next().await, MemberEvent::Connected { .. }));
    let events = world
        .keys_until(|seen| deletes(seen, "n2") && has(seen, Kind::Nodes, "n3"))
        .await;
    assert_eq!(events.len(), 2, "nothing is listed again: {events:?}");
    let before = eventually(async || world.status("west").filter(|s| s.ready)).await;

    // The same etcd without its data has the same id, and must not pass for what it was.
    etcd.kill();
    std::fs::remove_dir_all(data.path()).unwrap();
    etcd.restart();
    let mut client = etcd.client().await;
    put(
        &mut client,
        "cilium/cluster-config/west",
        &config(7, false, false),
    )
    .await;
    put(&mut client, "cilium/state/nodes/v1/west/n4", "{}").await;
    assert!(matches!(world.next().await, MemberEvent::Connected { .. }));
    world
        .keys_until(|seen| ends(seen) == 4 && has(seen, Kind::Nodes, "n4"))
        .await;
    let after = eventually(async || world.status("west").filter(|s| s.ready)).await;
    assert_eq!(before.etcd_cluster_id, after.etcd_cluster_id);

    // Removal works with a dead peer as well.
    etcd.kill();
    std::fs::remove_file(world.dir.path().join("west.config")).unwrap();
    while !matches!(world.next().await, MemberEvent::Removed { .. }) {}
    eventually(async || world.registry.statuses().is_empty().then_some(())).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kinds_wait_for_their_canaries_and_ids_must_be_free() {
    let data = tempfile::tempdir().unwrap();
    let etcd = Etcd::start(data.path());
    let mut client = etcd.client().await;
    put(&mut client, "cilium/.heartbeat", "now").await;
    put(
        &mut client,
        "cilium/cluster-config/west",
        &config(7, true, true),
    )
    .await;
    put(
        &mut client,
        "cilium/cluster-config/east",
        &config(7, false, false),
    )
    .await;
    put(
        &mut client,
        "cilium/cluster-config/same",
        &config(1, false, false),
    )
    .await;
    put(&mut client, "cilium/cache/nodes/v1/west/n1", "{}").await;
    put(&mut client, "cilium/synced/west/cilium/cache/ip/v1", "now").await;

    let mut world = World::start();
    world.configure("west", &etcd.url);
    assert!(matches!(world.next().await, MemberEvent::Connected { .. }));
    // The kinds that its configuration does not promise are told as empty.
    let events = world.keys_until(|seen| ends(seen) == 3).await;
    let lists = [Kind::ServiceExports, Kind::EndpointSlices, Kind::Ips]
        .map(|kind| [KeyEvent::BeginList { kind }, KeyEvent::EndList { kind }]);
    assert_eq!(events, lists.concat());
    put(
        &mut client,
        "cilium/synced/west/cilium/state/nodes/v1",
        "the other tree",
    )
    .await;
    put(
        &mut client,
        "cilium/synced/west/cilium/cache/nodes/v1",
        "now",
    )
    .await;
    let events = world.keys_until(|seen| ends(seen) == 1).await;
    assert!(has(&events, Kind::Nodes, "n1"));
    // The status follows the events, it does not come with them.
    let status =
        eventually(async || world.status("west").filter(|status| status.synced.nodes)).await;
    assert!(status.connected && !status.ready && !status.synced.services);

    world.configure("east", &etcd.url);
    world.configure("same", &etcd.url);
    let refused = async |peer: &str, text: &str| {
        eventually(async || world.status(peer).filter(|s| s.status.contains(text))).await;
    };
    refused("east", "id 7 is held by peer west").await;
    refused("same", "id 1 is our own").await;
    assert!(world.status("west").unwrap().connected);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_comes_back_with_another_id_is_removed_first_and_bad_files_change_nothing() {
    let data = tempfile::tempdir().unwrap();
    let etcd = Etcd::start(data.path());
    let mut client = etcd.client().await;
    put(
        &mut client,
        "cilium/cluster-config/west",
        &config(7, false, false),
    )
    .await;
    let mut world = World::start();
    world.configure("west", &etcd.url);
    assert!(matches!(world.next().await, MemberEvent::Connected { .. }));
    world.keys_until(|seen| ends(seen) == Kind::ALL.len()).await;

    let path = world.dir.path().join("west.config");
    std::fs::write(&path, "endpoints: [http://").unwrap();
    let status = eventually(async || {
        world
            .status("west")
            .filter(|s| s.status.contains("refused"))
    });
    assert!(status.await.connected);

    put(
        &mut client,
        "cilium/cluster-config/west",
        &config(8, false, false),
    )
    .await;
    std::fs::write(&path, format!("# again\nendpoints: [\"{}\"]\n", etcd.url)).unwrap();
    assert!(matches!(world.next().await, MemberEvent::Removed { .. }));
    let id = ClusterId::new(8, MaxClusters::C255).unwrap();
    let name = "west".parse().unwrap();
    assert!(is_connected(&world.next().await, &name, id));
    world.stop().await;
}

/// A page of the usual size would be more than a message may hold.
#[tokio::test]
async fn pages_of_a_list_shrink_until_a_message_holds_them() {
    let store = tombolo::store::Store::new(tombolo::store::Options {
        cluster_id: 11,
        history_max: 100,
    });
    let value = bytes::Bytes::from(vec![b'x'; 1 << 20]);
    for index in 0..40 {
        let key = format!("cilium/state/nodes/v1/own/n{index}");
        store.put(key.into(), value.clone(), 0).unwrap();
    }
    let channel = tombolo::serve::in_process(store, CancellationToken::new());
    let client = tombolo::etcd::Client::in_process(channel).await.unwrap();
    let mut list = client.list("cilium/state/nodes/v1/own/");
    let mut pages = Vec::new();
    while let Some(page) = list.page().await.unwrap() {
        assert_eq!(page.revision, 41);
        pages.push(page.entries.len());
    }
    assert_eq!(pages.iter().sum::<usize>(), 40);
    assert!(
        pages.len() > 1 && pages.iter().all(|len| *len < 32),
        "{pages:?}"
    );
}

/// The own store is followed through the same code, without a socket.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn follower_follows_a_store_in_this_process() {
    let store = tombolo::store::Store::new(tombolo::store::Options {
        cluster_id: 11,
        history_max: 100,
    });
    let node = "cilium/state/nodes/v1/own/n1";
    store.put(node.into(), "{}".into(), 0).unwrap();
    let (sender, mut receiver) = mpsc::channel(4);
    let subject = tombolo::follower::Subject {
        cluster: "own".parse().unwrap(),
        layout: tombolo::keyspace::Layout::State,
        kinds: vec![Kind::Nodes],
        absent: Vec::new(),
        canaries: false,
    };
    let cancel = CancellationToken::new();
    let connect = || {
        let channel = tombolo::serve::in_process(store.clone(), cancel.clone());
        tombolo::etcd::Client::in_process(channel)
    };
    let sink = tombolo::follower::Sink::new(sender, |events| events);
    let follower = tombolo::follower::Follower::new(subject);
    let run = follower.run(connect, sink, cancel.clone());
    let read = async {
        let mut seen = Vec::new();
        while ends(&seen) == 0 {
            seen.extend(receiver.recv().await.unwrap());
        }
        assert!(has(&seen, Kind::Nodes, "n1"));
        assert!(store.delete(node.as_bytes()));
        while !deletes(&seen, "n1") {
            seen.extend(receiver.recv().await.unwrap());
        }
        cancel.cancel();
    };
    let both = Box::pin(async { tokio::join!(run, read) });
    let (result, ()) = tokio::time::timeout(Duration::from_secs(20), both)
        .await
        .unwrap();
    result.unwrap();
}
