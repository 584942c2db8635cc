//! The session's driver against a store, in virtual time.
use std::{
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{sleep, timeout},
};

use super::net::{Lots, Way, lock};
use crate::{
    follower::Sink,
    keyspace::{KeyEvent, Kind},
    peer::{
        ConfigFile, Dial, Layer, MemberEvent, Options, PeerStatus, Random, Timing,
        actor::{self, Desired},
        link::Context,
        shared::Shared,
    },
    store::{self, Store},
    types::{ClusterId, MaxClusters},
};

const HEARTBEAT: &str = "cilium/.heartbeat";
const CONFIG: &str = "cilium/cluster-config/west";
const SERVICE: &str = "cilium/state/services/v1/west/ns/s1";

fn node(name: &str) -> String {
    format!("cilium/state/nodes/v1/west/{name}")
}

fn new_store(id: u64) -> Store {
    Store::new(store::Options {
        cluster_id: id,
        history_max: 1_000,
    })
}

fn put(store: &Store, key: &str, value: &str) {
    store
        .put(key.to_owned().into(), value.to_owned().into(), 0)
        .unwrap();
}

fn running(version: u32) -> Desired {
    // The first endpoint is dead.
    let text = format!("# {version}\nendpoints: [http://dead:1, http://alive:1]\n");
    let file = ConfigFile::parse(&text, Path::new("/none")).unwrap();
    Desired::Running(Arc::new(("/none/west".into(), file)))
}

/// The peer `west` with id 2, followed by a session.
struct World {
    store: Arc<Mutex<Store>>,
    way: Way,
    shared: Arc<Shared>,
    options: Arc<Options>,
    desired: watch::Sender<Desired>,
    events: mpsc::Receiver<MemberEvent>,
    tasks: JoinSet<()>,
}

impl World {
    fn new(config: &str, cache_ttl: Option<Duration>) -> Self {
        let store = new_store(11);
        put(&store, HEARTBEAT, "now");
        put(&store, CONFIG, config);
        put(&store, &node("n1"), "{}");
        put(&store, SERVICE, "{}");
        let store = Arc::new(Mutex::new(store));
        let way = Way::new(Lots::new(1));
        let (of_dial, store_of_dial) = (way.clone(), Arc::clone(&store));
        let dial = Dial::new(move |_, _, endpoint| {
            let (way, store) = (of_dial.clone(), Arc::clone(&store_of_dial));
            let dead = endpoint.host == "dead";
            Box::pin(async move {
                let way = if dead { Way::refusing() } else { way };
                way.dial(|| lock(&store).clone()).await
            })
        });
        let lots = Lots::new(2);
        let options = Arc::new(Options {
            directory: "/none".into(),
            cluster: "own".parse().unwrap(),
            id: ClusterId::new(1, MaxClusters::C255).unwrap(),
            max_clusters: MaxClusters::C255,
            cache_ttl,
            trust: None,
            clock: || SystemTime::UNIX_EPOCH + Duration::from_secs(1_000),
            timing: Timing::default(),
            dial,
            random: Random::new(move || lots.fraction()),
            route: watch::channel(crate::peer::Route::Direct).1,
        });
        let shared = Arc::new(Shared::default());
        let (desired, wanted) = watch::channel(running(0));
        let (sender, events) = mpsc::channel(64);
        let mut world = Self {
            store,
            way,
            shared,
            options,
            desired,
            events,
            tasks: JoinSet::new(),
        };
        world.spawn("west", sender, wanted);
        world
    }

    fn spawn(
        &mut self,
        name: &str,
        sender: mpsc::Sender<MemberEvent>,
        wanted: watch::Receiver<Desired>,
    ) {
        let name: crate::types::ClusterName = name.parse().unwrap();
        let keys_of = name.clone();
        let context = Context {
            name,
            options: Arc::clone(&self.options),
            shared: Arc::clone(&self.shared),
            sink: Sink::new(sender, move |events| MemberEvent::Keys {
                name: keys_of.clone(),
                events,
            }),
        };
        self.tasks.spawn(actor::run(context, wanted));
    }

    /// Connected and synced.
    async fn synced() -> Self {
        let mut world = Self::new(r#"{"id":2}"#, None);
        assert_eq!(
            world.told().await.first().map(String::as_str),
            Some("connected")
        );
        assert!(world.status().ready, "{:?}", world.status());
        world
    }

    fn store(&self) -> Store {
        lock(&self.store).clone()
    }

    fn status(&self) -> PeerStatus {
        let statuses = self.shared.statuses(&self.options);
        let mut west = statuses.into_iter().filter(|s| s.name.as_str() == "west");
        west.next().unwrap()
    }

    /// What the mesh is told until nothing comes for a while, lists without their kinds.
    async fn told(&mut self) -> Vec<String> {
        let mut told = Vec::new();
        while let Ok(Some(event)) = timeout(Duration::from_secs(2), self.events.recv()).await {
            match event {
                MemberEvent::Connected { .. } => told.push("connected".to_owned()),
                MemberEvent::Removed { .. } => told.push("removed".to_owned()),
                MemberEvent::Expired { .. } => told.push("expired".to_owned()),
                MemberEvent::Terms { .. } => {}
                MemberEvent::Keys { events, .. } => told.extend(events.iter().map(text)),
            }
        }
        told
    }
}

fn text(event: &KeyEvent) -> String {
    let text = |suffix: &[u8]| String::from_utf8_lossy(suffix).into_owned();
    match event {
        KeyEvent::BeginList { kind } => format!("begin {}", kind.segment()),
        KeyEvent::EndList { kind } => format!("end {}", kind.segment()),
        KeyEvent::Upsert { suffix, .. } => text(suffix),
        KeyEvent::Delete { suffix, .. } => format!("-{}", text(suffix)),
    }
}

#[tokio::test(start_paused = true)]
async fn dead_endpoint_beside_a_living_one_is_no_failure() {
    let world = World::synced().await;
    let status = world.status();
    assert_eq!((status.num_failures, status.layer), (0, None));
    assert_eq!(status.endpoint.as_deref(), Some("alive:1"));
    assert_eq!(status.etcd_cluster_id, Some(11));
}

#[tokio::test(start_paused = true)]
async fn peer_that_hangs_is_shown_within_seconds_and_left_and_nothing_is_told_again() {
    let mut world = World::synced().await;
    world.way.freeze(true);
    sleep(Duration::from_secs(6)).await;
    let status = world.status();
    assert!(status.connected && !status.ready, "{status:?}");
    assert_eq!(status.layer, Some(Layer::Heartbeat));
    assert!(
        status.status.starts_with("no answer for "),
        "{}",
        status.status
    );
    let heard = status.last_heard.unwrap();
    assert!((990_000..996_000).contains(&heard), "{heard}");
    sleep(Duration::from_secs(8)).await;
    let status = world.status();
    assert_eq!((status.connected, status.num_failures), (false, 1));
    assert!(
        status.status.contains("no answer for 12 s"),
        "{}",
        status.status
    );
    world.way.freeze(false);
    sleep(Duration::from_secs(30)).await;
    assert_eq!(world.told().await, ["connected"]);
    assert!(world.status().ready);
}

#[tokio::test(start_paused = true)]
async fn heartbeat_of_any_text_is_a_beat_and_its_deletion_is_none() {
    let mut world = World::synced().await;
    for _ in 0..10 {
        sleep(Duration::from_secs(60)).await;
        put(&world.store(), HEARTBEAT, "garbage");
    }
    assert_eq!(world.status().num_failures, 0);
    sleep(Duration::from_secs(60)).await;
    assert!(world.store().delete(HEARTBEAT.as_bytes()));
    sleep(Duration::from_secs(59)).await;
    assert_eq!(world.status().num_failures, 0);
    sleep(Duration::from_secs(2)).await;
    assert_eq!(world.status().num_failures, 1);
    assert_eq!(world.told().await, ["connected"]);
}

#[tokio::test(start_paused = true)]
async fn answer_of_another_store_ends_the_connection() {
    let mut world = World::synced().await;
    let other = new_store(12);
    put(&other, HEARTBEAT, "now");
    world.way.divert(Some(other));
    sleep(Duration::from_secs(5)).await;
    world.way.divert(None);
    let status = world.status();
    assert_eq!(status.num_failures, 1);
    assert_eq!(world.told().await, ["connected"]);
}

#[tokio::test(start_paused = true)]
async fn lost_configuration_freezes_and_what_happened_meanwhile_is_told_once() {
    let mut world = World::synced().await;
    let store = world.store();
    assert!(store.delete(CONFIG.as_bytes()));
    sleep(Duration::from_secs(1)).await;
    let status = world.status();
    assert!(status.connected && !status.ready && status.status.contains("it is gone"));
    assert_eq!(status.layer, Some(Layer::ClusterConfig));
    assert!(store.delete(node("n1").as_bytes()));
    put(&store, &node("n2"), "{}");
    assert!(world.told().await.is_empty());
    put(&store, CONFIG, r#"{"id":2}"#);
    assert_eq!(world.told().await, ["connected", "-n1", "n2"]);
    assert_eq!(world.status().num_failures, 0);
}

#[tokio::test(start_paused = true)]
async fn kind_that_a_capability_promises_is_listed_and_the_others_go_on() {
    let mut world = World::synced().await;
    let store = world.store();
    put(&store, "cilium/state/serviceexports/v1/west/ns/e1", "{}");
    let enabled = r#"{"id":2,"capabilities":{"serviceExportsEnabled":true}}"#;
    put(&store, CONFIG, enabled);
    let list = [
        "connected",
        "begin serviceexports",
        "ns/e1",
        "end serviceexports",
    ];
    assert_eq!(world.told().await, list);
    assert!(world.status().ready);
    let only = r#"{"id":2,"capabilities":{"endpointSlicesExportMode":"endpointslices-only"}}"#;
    put(&store, CONFIG, only);
    let mut told = world.told().await;
    told.sort();
    let drained = |kind: &str| [format!("begin {kind}"), format!("end {kind}")];
    let mut expected: Vec<String> = ["services", "serviceexports", "endpointslices"]
        .into_iter()
        .flat_map(drained)
        .collect();
    expected.push("connected".to_owned());
    expected.sort();
    assert_eq!(told, expected);
    assert!(world.status().warnings[0].contains("endpoint slices only"));
}

#[tokio::test(start_paused = true)]
async fn other_id_withdraws_and_lists_anew_on_the_same_connection() {
    let mut world = World::synced().await;
    put(&world.store(), CONFIG, r#"{"id":3}"#);
    let told = world.told().await;
    assert_eq!(told[..2], ["removed", "connected"]);
    assert!(told.contains(&"n1".to_owned()) && told.contains(&"ns/s1".to_owned()));
    assert_eq!(world.status().num_failures, 0);
}

#[tokio::test(start_paused = true)]
async fn peer_that_waits_for_an_id_has_it_as_soon_as_it_is_free() {
    let mut world = World::synced().await;
    put(&world.store(), "cilium/cluster-config/north", r#"{"id":2}"#);
    let (sender, mut north) = mpsc::channel(64);
    let (_file, wanted) = watch::channel(running(0));
    world.spawn("north", sender, wanted);
    assert!(matches!(
        north.recv().await,
        Some(MemberEvent::Terms { .. })
    ));
    assert!(
        timeout(Duration::from_secs(60), north.recv())
            .await
            .is_err()
    );
    world.desired.send_replace(Desired::Removed);
    let first = timeout(Duration::from_millis(10), north.recv())
        .await
        .unwrap();
    assert!(matches!(first, Some(MemberEvent::Connected { .. })));
    assert_eq!(world.told().await, ["removed"]);
}

#[tokio::test(start_paused = true)]
async fn file_that_returns_during_its_removal_is_connected_after_it() {
    let mut world = World::synced().await;
    world.desired.send_replace(Desired::Removed);
    tokio::task::yield_now().await;
    world.desired.send_replace(running(1));
    let told = world.told().await;
    assert_eq!(told[..2], ["removed", "connected"]);
    assert!(told.contains(&"n1".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn services_expire_once_and_come_back_with_the_peer() {
    let mut world = World::new(r#"{"id":2}"#, Some(Duration::from_secs(30)));
    world.told().await;
    world.way.refuse(true);
    world.way.cut();
    sleep(Duration::from_secs(28)).await;
    assert!(world.events.try_recv().is_err());
    sleep(Duration::from_secs(120)).await;
    assert_eq!(world.told().await, ["expired"]);
    world.way.heal();
    sleep(Duration::from_secs(20)).await;
    let told = world.told().await;
    assert_eq!(told[0], "connected");
    assert!(
        told.contains(&"ns/s1".to_owned()) && !told.contains(&"n1".to_owned()),
        "{told:?}"
    );
    let lists = told.iter().filter(|told| told.starts_with("begin"));
    assert_eq!(lists.count(), Kind::ALL.len() - Kind::BASIC.len() + 1);
}
