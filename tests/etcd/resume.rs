//! The follower over connections that break: it goes on where it was if, and only if, the store is
//! still the one that it followed.
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tombolo::{
    etcd::Client,
    follower::{Follower, Progress, Sink, Subject},
    keyspace::{KeyEvent, Kind, Layout},
    serve,
    store::{Options, Store},
};

use super::within;

const HISTORY: usize = 20;

fn store(cluster_id: u64) -> Store {
    Store::new(Options {
        cluster_id,
        history_max: HISTORY,
    })
}

fn key(node: &str) -> String {
    format!("cilium/state/nodes/v1/west/{node}")
}

fn put(store: &Store, node: &str) {
    store.put(key(node).into(), "{}".into(), 0).unwrap();
}

/// A store of cluster 11 with the nodes n1 and n2, and a reader that listed it once.
struct World {
    store: Store,
    follower: Follower,
    sink: Sink<Vec<KeyEvent>>,
    events: mpsc::Receiver<Vec<KeyEvent>>,
}

impl World {
    async fn listed() -> Self {
        // One batch at a time, so that a connection can be broken between two.
        let (sender, events) = mpsc::channel(1);
        let follower = Follower::new(Subject {
            cluster: "west".parse().unwrap(),
            layout: Layout::State,
            kinds: vec![Kind::Nodes],
            absent: Vec::new(),
            canaries: false,
        });
        let mut world = Self {
            store: store(11),
            follower,
            sink: Sink::new(sender, |events| events),
            events,
        };
        put(&world.store, "n1");
        put(&world.store, "n2");
        assert_eq!(world.connection(4).await, ["begin", "n1", "n2", "end"]);
        world
    }

    /// One connection, which breaks when the kind is complete and `count` events came.
    async fn connection(&mut self, count: usize) -> Vec<String> {
        let channel = serve::in_process(self.store.clone(), CancellationToken::new());
        let client = Client::in_process(channel).await.unwrap();
        let (complete, mut completed) = watch::channel(false);
        let note = |progress| {
            if matches!(progress, Progress::Complete(_)) {
                complete.send_replace(true);
            }
        };
        let mut seen = Vec::new();
        let read = async {
            while seen.len() < count || !*completed.borrow_and_update() {
                tokio::select! {
                    Some(events) = self.events.recv() => seen.extend(events),
                    changed = completed.changed() => changed.unwrap(),
                }
            }
        };
        let follow = self.follower.follow(&client, &self.sink, note);
        within(Box::pin(async {
            tokio::select! {
                Err(error) = follow => panic!("{error:?}"),
                () = read => {}
            }
        }))
        .await;
        while let Ok(more) = self.events.try_recv() {
            seen.extend(more);
        }
        seen.iter().map(told).collect()
    }
}

fn told(event: &KeyEvent) -> String {
    let text = |suffix: &[u8]| String::from_utf8_lossy(suffix).into_owned();
    match event {
        KeyEvent::BeginList { .. } => "begin".to_owned(),
        KeyEvent::EndList { .. } => "end".to_owned(),
        KeyEvent::Upsert { suffix, .. } => text(suffix),
        KeyEvent::Delete { suffix, .. } => format!("-{}", text(suffix)),
    }
}

#[tokio::test]
async fn reconnect_without_change_sends_nothing() {
    let mut world = World::listed().await;
    assert!(world.connection(0).await.is_empty());
    // Neither does one after other keys changed.
    world.store.put("other".into(), "1".into(), 0).unwrap();
    assert!(world.connection(0).await.is_empty());
}

#[tokio::test]
async fn changes_while_disconnected_are_seen_once_and_in_order() {
    let mut world = World::listed().await;
    assert!(world.store.delete(key("n1").as_bytes()));
    put(&world.store, "n3");
    put(&world.store, "n2");
    assert_eq!(world.connection(3).await, ["-n1", "n3", "n2"]);
    assert!(world.connection(0).await.is_empty());
    assert!(world.store.delete(key("n3").as_bytes()));
    assert_eq!(world.connection(1).await, ["-n3"]);
}

#[tokio::test]
async fn connection_that_breaks_within_the_list_leads_to_another_list() {
    let mut world = World::listed().await;
    world.store = store(12);
    put(&world.store, "n1");
    let channel = serve::in_process(world.store.clone(), CancellationToken::new());
    let client = Client::in_process(channel).await.unwrap();
    let follow = world.follower.follow(&client, &world.sink, |_| ());
    within(Box::pin(async {
        tokio::select! {
            Err(error) = follow => panic!("{error:?}"),
            begun = world.events.recv() => assert_eq!(told(&begun.unwrap()[0]), "begin"),
        }
    }))
    .await;
    assert_eq!(world.connection(3).await, ["begin", "n1", "end"]);
}

/// A wiped store, whether it is behind, or ahead with the same keys.
#[tokio::test]
async fn wiped_store_under_the_same_id_is_listed() {
    let mut world = World::listed().await;
    world.store = store(11);
    put(&world.store, "n2");
    assert_eq!(world.connection(3).await, ["begin", "n2", "end"]);

    let mut world = World::listed().await;
    world.store = store(11);
    for node in ["n2", "n1", "n4"] {
        put(&world.store, node);
    }
    assert_eq!(
        world.connection(5).await,
        ["begin", "n1", "n2", "n4", "end"]
    );
}

#[tokio::test]
async fn other_cluster_id_is_listed_though_all_else_is_equal() {
    let mut world = World::listed().await;
    world.store = store(12);
    put(&world.store, "n1");
    put(&world.store, "n2");
    assert_eq!(world.connection(4).await, ["begin", "n1", "n2", "end"]);
}

#[tokio::test]
async fn compacted_position_is_listed() {
    let mut world = World::listed().await;
    for _ in 0..2 * HISTORY {
        world.store.put("other".into(), "1".into(), 0).unwrap();
    }
    assert_eq!(world.connection(4).await, ["begin", "n1", "n2", "end"]);
    assert!(world.connection(0).await.is_empty());
}
