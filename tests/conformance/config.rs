//! C1 to C14: which peers are accepted.
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tombolo::{peer::Timing, types::MaxClusters};

use super::{
    logs,
    peer::{Peer, replace},
    records,
    world::{Setup, World},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c01_a_missing_config_is_waited_for_without_a_new_connection() {
    let peer = Peer::empty("west", 2).await;
    peer.publish_data().await;
    peer.publish_canaries().await;
    let world = World::start();
    world.join(&peer);
    let waiting = world
        .until("west", "waits", |p| p["connected"] == true)
        .await;
    assert_eq!(
        (&waiting["ready"], &waiting["config"]["retrieved"]),
        (&json!(false), &json!(false))
    );
    world.has_nothing_of(&peer).await;
    peer.publish_config(&records::config(2)).await;
    world.has(&peer).await;
    let status = world.peer("west").await;
    assert_eq!(
        (&status["num-failures"], peer.proxy.connections()),
        (&json!(0), 1)
    );
    // What the command prints is what all cases look at.
    let printed = world.printed_status()["cluster-mesh"]["clusters"][0].clone();
    let now = world.peer("west").await;
    for field in [
        "name",
        "ready",
        "connected",
        "status",
        "config",
        "synced",
        "num-endpoints",
    ] {
        assert_eq!(printed[field], now[field], "{field}");
        assert!(!now[field].is_null(), "{field}");
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c02_without_a_config_the_connection_is_rebuilt_with_growing_delays() {
    let peer = Peer::empty("west", 2).await;
    peer.publish_data().await;
    let timing = Timing {
        config_wait: Duration::from_millis(300),
        backoff: (Duration::from_millis(400), Duration::from_secs(60)),
        ..Timing::default()
    };
    let world = World::with(Setup {
        timing,
        ..Setup::default()
    });
    world.join(&peer);
    let mut failed = Vec::new();
    for count in 1..=4 {
        let status = world
            .until("west", "fails", |p| {
                p["num-failures"].as_u64() >= Some(count)
            })
            .await;
        assert_eq!(status["ready"], false);
        failed.push(Instant::now());
    }
    let gaps: Vec<Duration> = failed.windows(2).map(|two| two[1] - two[0]).collect();
    // The jitter takes at most half of a delay, so every second one is longer for sure.
    assert!(gaps[2] > gaps[0], "{gaps:?}");
    assert!(peer.proxy.connections() >= 4);
    let status = world.peer("west").await;
    assert!(
        status["status"]
            .as_str()
            .unwrap()
            .contains("cluster-config"),
        "{status}"
    );
    assert!(status["last-failure"].is_u64());
    world.has_nothing_of(&peer).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c03_a_config_that_is_no_json_concerns_its_peer_only() {
    let (peer, north) = tokio::join!(Peer::start("west", 2), Peer::start("north", 3));
    peer.etcd.put(&peer.config_key(), "{not json").await;
    let world = World::start();
    world.import(&north).await;
    world.settle(&north).await;
    let mark = world.mark();
    world.join(&peer);
    world
        .refused("west", "accept the peer's cluster-config")
        .await;
    world.settle(&north).await;
    world.assert_nothing(mark);
    assert_eq!(world.peer("north").await["ready"], true);
    peer.publish_config(&records::config(2)).await;
    world.has(&peer).await;
    world.stop().await;
}

/// Writes each of these configs under a name of its own, and sees the peer refused.
async fn refuses(max: MaxClusters, configs: &[(&str, &str)]) {
    let mut peer = Peer::empty("west", 2).await;
    let world = World::with(Setup {
        max,
        ..Setup::default()
    });
    peer.publish_data().await;
    peer.publish_canaries().await;
    world.join(&peer);
    for (config, reason) in configs {
        peer.etcd.put(&peer.config_key(), *config).await;
        let status = world.refused("west", reason).await;
        assert_eq!(status["synced"]["nodes"], false, "{config}");
        world.has_nothing_of(&peer).await;
    }
    assert_eq!(
        world.cached_keys("cilium/cluster-config/"),
        Vec::<String>::new()
    );
    // The line is not what hindered it.
    peer.id = 9;
    peer.shift = if max == MaxClusters::C511 { 15 } else { 16 };
    peer.etcd.delete_prefix("cilium/state/").await;
    peer.publish_data().await;
    let good = json!({"id": 9, "capabilities": {"syncedCanaries": true, "maxConnectedClusters": max.max_id()}});
    peer.publish_config(&good).await;
    world.has(&peer).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c04_a_config_without_id_is_refused() {
    let rows = [
        (r#"{"capabilities":{}}"#, "cluster id 0 is out of range"),
        (
            r#"{"id":0,"capabilities":{"syncedCanaries":true}}"#,
            "cluster id 0 is out of range",
        ),
    ];
    refuses(MaxClusters::C255, &rows).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c05_an_id_above_255_is_refused_and_255_accepted() {
    let rows = [(r#"{"id":256}"#, "cluster id 256 is out of range")];
    refuses(MaxClusters::C255, &rows).await;
    let (peer, world) = (Peer::start("west", 255).await, World::start());
    world.import(&peer).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c06_a_mesh_of_511_takes_only_peers_that_say_511() {
    let rows = [
        (
            r#"{"id":9,"capabilities":{"maxConnectedClusters":255}}"#,
            "maximum of 255 clusters",
        ),
        (r#"{"id":9}"#, "maximum of 0 clusters"),
    ];
    refuses(MaxClusters::C511, &rows).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c07_a_mesh_of_255_takes_a_peer_of_511_with_a_small_id() {
    let peer = Peer::start("west", 7).await;
    let config =
        json!({"id": 7, "capabilities": {"syncedCanaries": true, "maxConnectedClusters": 511}});
    peer.publish_config(&config).await;
    let world = World::start();
    world.import(&peer).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c08_our_own_id_is_refused() {
    refuses(MaxClusters::C255, &[(r#"{"id":1}"#, "id 1 is our own")]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c09_an_id_belongs_to_the_first_until_its_file_goes() {
    let (west, north) = tokio::join!(Peer::start("west", 2), Peer::start("north", 2));
    // Other addresses than west's, which has the same id.
    north.etcd.delete_prefix("cilium/state/").await;
    let pod = north.address(99);
    let identity = (north.identity_key(7), records::labels("north", "late"));
    let ip = (
        north.key("ip", &pod),
        records::ip(&pod, north.identity(7)).to_string(),
    );
    north.etcd.put_all(vec![identity, ip]).await;
    let world = World::start();
    world.import(&west).await;
    world.settle(&west).await;
    let mark = world.mark();
    world.join(&north);
    world.refused("north", "id 2 is held by peer west").await;
    world.settle(&west).await;
    world.assert_nothing(mark);
    assert_eq!(world.peer("west").await["ready"], true);
    world.leave(&west);
    world.targets(&pod, north.identity(7)).await;
    world.ready("north").await;
    assert_eq!(world.peer("west").await, Value::Null);
    assert_eq!(world.target(&west.pod()), None);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c10_a_peer_that_comes_back_with_another_id_starts_afresh() {
    let mut peer = Peer::start("west", 2).await;
    let world = World::start();
    world.import(&peer).await;
    world.settle(&peer).await;
    let old = [
        format!("ip {}", peer.pod()),
        format!("ip {}", peer.node()),
        format!("identity {}", peer.identity(1)),
        peer.cached("services", "shop/checkout"),
    ];
    let mark = world.mark();
    peer.proxy.cut();
    peer.etcd.wipe().await;
    peer.id = 3;
    peer.publish().await;
    peer.proxy.mend();
    world.has(&peer).await;
    let changes = world.since(mark);
    let withdrawn = changes
        .iter()
        .position(|c| c.what == "cluster 2" && !c.present);
    let withdrawn = withdrawn.expect("cluster 2 was removed");
    let fresh = changes
        .iter()
        .position(|c| c.what == format!("ip {}", peer.pod()));
    assert!(withdrawn < fresh.expect("the new pod"), "{changes:?}");
    for what in old {
        let of_old: Vec<bool> = changes
            .iter()
            .filter(|c| c.what == what)
            .map(|c| c.present)
            .collect();
        assert_eq!(of_old.first(), Some(&false), "{what}");
    }
    assert!(!world.map().values().any(|(_, cluster)| *cluster == 2));
    assert_eq!(world.peer("west").await["config"]["cluster-id"], 3);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c11_field_names_of_any_case_and_unknown_fields_are_read() {
    let peer = Peer::start("west", 2).await;
    let config = r#"{"ID":2,"Capabilities":{"SYNCEDCANARIES":true},"future":{"x":[1]}}"#;
    peer.etcd.put(&peer.config_key(), config).await;
    let world = World::start();
    world.import(&peer).await;
    assert_eq!(world.peer("west").await["config"]["sync-canaries"], true);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c12_configs_of_wrong_type_or_with_garbage_behind_are_refused() {
    let text = "value does not decode";
    let rows = [r#"{"id":"2"}"#, r#"{"id":-2}"#, r#"{"id":2}x"#].map(|config| (config, text));
    refuses(MaxClusters::C255, &rows).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c13_the_file_of_the_own_cluster_is_ignored() {
    let (peer, north) = tokio::join!(Peer::start("east", 2), Peer::start("north", 3));
    let world = World::start();
    world.join(&peer);
    world.import(&north).await;
    let status = world.status().await;
    let names: Vec<&Value> = status["cluster-mesh"]["clusters"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| &c["name"])
        .collect();
    assert_eq!(names, ["north"]);
    assert_eq!(
        (world.target(&peer.pod()), peer.proxy.connections()),
        (None, 0)
    );
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c14_files_whose_name_is_no_cluster_name_are_ignored_with_an_error() {
    let log = logs::errors();
    let peer = Peer::start("west", 2).await;
    let world = World::start();
    let long = "a".repeat(33);
    for name in ["West", "-west", &long] {
        replace(&world.peers().join(name), &peer.file());
    }
    let north = Peer::start("north", 3).await;
    world.import(&north).await;
    let status = world.status().await;
    assert_eq!(
        status["cluster-mesh"]["clusters"].as_array().unwrap().len(),
        1
    );
    assert_eq!(
        (world.target(&peer.pod()), peer.proxy.connections()),
        (None, 0)
    );
    for name in ["West", "-west", &long] {
        let path = world.peers().join(name).display().to_string();
        let line = log.line_with(&["ERROR", &path, "no cluster name"]);
        assert!(line.is_some(), "{path}");
    }
    world.stop().await;
}
