//! How a peer looks from a node that reads another node's cache.
use std::{
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    etcd::{Client, ConnectOptions},
    follower::Sink,
    keyspace::{HEARTBEAT, Kind, Layout},
    peer::{
        ConfigFile, Dial, Layer, MemberEvent, Options, PeerStatus, Random, Relayed, Route, Timing,
        actor::{self, Desired},
        link::Context,
        shared::Shared,
    },
    serve,
    store::{self, Store},
    types::{ClusterId, ClusterName, MaxClusters},
};

fn west() -> ClusterName {
    "west".parse().unwrap()
}

fn put(store: &Store, key: String, value: impl Into<bytes::Bytes>) {
    store.put(key.into(), value.into(), 0).unwrap();
}

/// A cache that holds all of `west`, which has nothing.
fn cache() -> Store {
    let cache = Store::new(store::Options {
        cluster_id: 11,
        history_max: 100,
    });
    let config = r#"{"id":2,"capabilities":{"syncedCanaries":true,"cached":true}}"#;
    put(&cache, HEARTBEAT.to_owned(), "now");
    put(&cache, "cilium/cluster-config/west".to_owned(), config);
    for kind in Kind::ALL {
        put(&cache, Layout::Relay.canary(kind, &west()), "true");
    }
    cache
}

fn options(cache: &Store) -> Options {
    let cache = cache.clone();
    let endpoints = vec!["http://n2:1".parse().unwrap()];
    let via = Route::Via {
        node: "n2".to_owned(),
        cache: Some(Box::new(ConnectOptions {
            endpoints,
            ..ConnectOptions::default()
        })),
    };
    Options {
        directory: "/none".into(),
        cluster: "own".parse().unwrap(),
        id: ClusterId::new(1, MaxClusters::C255).unwrap(),
        max_clusters: MaxClusters::C255,
        cache_ttl: None,
        trust: None,
        clock: || SystemTime::UNIX_EPOCH + Duration::from_secs(1_000),
        timing: Timing::default(),
        dial: Dial::new(move |_, _, _| {
            let cache = serve::in_process(cache.clone(), CancellationToken::new());
            Box::pin(Client::in_process(cache))
        }),
        random: Random::default(),
        route: watch::channel(via).1,
    }
}

/// Goal: a peer that is dead is told to be dead by every node, not only by the one that dials it.
#[tokio::test]
async fn peer_behind_another_nodes_cache_is_as_dead_as_that_node_says() {
    let cache = cache();
    let (options, shared) = (Arc::new(options(&cache)), Arc::new(Shared::default()));
    let file = ConfigFile::parse("endpoints: [http://west:1]", Path::new("/none")).unwrap();
    let running = Desired::Running(Arc::new(("/none/west".into(), file)));
    let (_desired, wanted) = watch::channel(running);
    let (sender, _events) = mpsc::channel(64);
    let context = Context {
        name: west(),
        options: Arc::clone(&options),
        shared: Arc::clone(&shared),
        sink: Sink::new(sender, |events| MemberEvent::Keys {
            name: west(),
            events,
        }),
    };
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(actor::run(context, wanted));
    let until = async |what: &str, shown: &dyn Fn(&PeerStatus) -> bool| {
        let wait = async {
            loop {
                let status = shared.statuses(&options).pop();
                if let Some(status) = status.filter(|status| shown(status)) {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let found = tokio::time::timeout(Duration::from_secs(10), wait).await;
        found.unwrap_or_else(|_| panic!("{what}: {:?}", shared.statuses(&options)))
    };
    until("ready by the cache alone", &|status| status.ready).await;
    let mut told = Relayed {
        ready: false,
        layer: Some(Layer::Tcp),
        status: "dial west: refused".to_owned(),
        last_heard: Some(5_000),
    };
    put(&cache, Relayed::key(&west()), told.encode());
    let dead = until("dead", &|status| !status.ready).await;
    assert_eq!(
        (dead.layer, dead.last_heard),
        (Some(Layer::Tcp), Some(5_000))
    );
    assert!(
        dead.status.starts_with("dial west: refused; cache of n2: "),
        "{}",
        dead.status
    );
    assert!(dead.connected && dead.synced.nodes);
    told.ready = true;
    told.last_heard = Some(900_000);
    put(&cache, Relayed::key(&west()), told.encode());
    let live = until("live", &|status| status.ready).await;
    assert_eq!(live.last_heard, Some(900_000));
    // What another version says is as nothing.
    put(&cache, Relayed::key(&west()), "{}");
    until("heard", &|status| {
        status.ready && status.last_heard > Some(900_000)
    })
    .await;
}

#[test]
fn what_is_heard_again_and_again_is_told_now_and_then() {
    let told = Relayed {
        ready: true,
        layer: None,
        status: "etcd".to_owned(),
        last_heard: Some(50_000),
    };
    let heard = |last_heard| Relayed {
        last_heard,
        ..told.clone()
    };
    assert!(!heard(Some(59_999)).is_news(&told));
    assert!(heard(Some(60_000)).is_news(&told));
    let failed = Relayed {
        ready: false,
        ..told.clone()
    };
    assert!(failed.is_news(&told) && !heard(Some(1)).is_news(&heard(None)));
    assert_eq!(Relayed::decode(&told.encode()), Some(told));
}
