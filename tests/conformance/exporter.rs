//! P1 to P8: what a producer writes, as a reader over mutual TLS sees it.
use serde_json::{Value, json};

use super::{
    peer::replace,
    producer::{NODE, Producer, pod, service},
    recorder::{Change, Mark},
    relay::Relay,
    wait::eventually,
    world::World,
};

const POD: &str = "10.112.2.44";
const POD_KEY: &str = "cilium/state/ip/v1/default/10.112.2.44";
const SERVICE_KEY: &str = "cilium/state/services/v1/west/shop/checkout";
const CACHED_SERVICE: &str = "cilium/cache/services/v1/west/shop/checkout";
const GLOBAL: &str = r#"{"service.cilium.io/global": "true"}"#;

/// Canaries of the kinds that a reader may wait for, exports included.
const CANARIES: [&str; 5] = ["nodes", "identities", "ip", "services", "serviceexports"];

fn canary(kind: &str) -> String {
    format!("cilium/synced/west/cilium/state/{kind}/v1")
}

/// A reader of the producer, ready.
async fn reader(producer: &Producer) -> World {
    let world = World::start();
    replace(&world.peers().join("west"), &producer.file());
    world.ready("west").await;
    world
}

/// The identity that the producer gave to an address, once the reader has it.
async fn identity(world: &World, address: &str) -> u32 {
    eventually(address, async || world.target(address)).await
}

/// What was taken away since then.
fn withdrawn(world: &World, mark: Mark) -> Vec<Change> {
    let changes = world.since(mark);
    changes
        .into_iter()
        .filter(|change| !change.present)
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p01_an_empty_cluster_has_config_heartbeat_and_all_canaries() {
    let producer = Producer::start(&[]).await;
    let world = reader(&producer).await;
    let status = world.peer("west").await;
    for count in [
        "num-nodes",
        "num-endpoints",
        "num-identities",
        "num-shared-services",
    ] {
        assert_eq!(status[count], 0, "{count}");
    }
    assert_eq!(
        (
            &status["config"]["cluster-id"],
            &status["config"]["sync-canaries"]
        ),
        (&json!(2), &json!(true))
    );
    let config = producer.exported("cilium/cluster-config/west").unwrap();
    let config: Value = serde_json::from_slice(&config.value).unwrap();
    assert_eq!(
        config,
        json!({"id": 2, "capabilities": {"syncedCanaries": true, "maxConnectedClusters": 255}})
    );
    for kind in CANARIES {
        assert!(producer.exported(&canary(kind)).is_some(), "{kind}");
    }
    assert!(producer.exported("cilium/.heartbeat").is_some());
    assert_eq!(
        producer.exported_keys("cilium/state/"),
        Vec::<String>::new()
    );
    assert!(world.map().values().all(|(_, cluster)| *cluster == 1));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p02_the_canary_waits_for_an_upsert_that_fails() {
    let mut producer = Producer::stopped().await;
    let relay = Relay::start(&producer.etcd).await;
    let faults = relay.faults.clone();
    producer.relay = Some(relay);
    // More often than there is time for.
    faults.refuse_writes(SERVICE_KEY, 1_000);
    let service = service("checkout", GLOBAL);
    producer.write("cluster.yaml", &[NODE, &service]);
    producer.run().await;
    eventually("three refusals", async || {
        (faults.refusals_left() <= 1_000 - 3).then_some(())
    })
    .await;
    eventually("the error", async || producer.status().error).await;
    for kind in CANARIES {
        assert!(producer.exported(&canary(kind)).is_none(), "{kind}");
    }
    let world = World::start();
    replace(&world.peers().join("west"), &producer.file());
    let is = |p: &Value| p["config"]["retrieved"] == true;
    let waiting = world.until("west", "waits", is).await;
    assert_eq!(
        (&waiting["ready"], &waiting["synced"]["services"]),
        (&json!(false), &json!(false))
    );
    assert_eq!(world.cached(CACHED_SERVICE), None);

    faults.refuse_writes("", 0);
    world.caches(CACHED_SERVICE).await;
    world.ready("west").await;
    let written = producer.exported(SERVICE_KEY).unwrap().mod_revision;
    let complete = producer.exported(&canary("services")).unwrap().mod_revision;
    assert!(written < complete, "{written} {complete}");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p03_what_was_on_a_lost_lease_is_written_under_a_new_one() {
    let producer = Producer::start(&[
        NODE,
        &pod("a", "checkout", POD),
        &service("checkout", GLOBAL),
    ])
    .await;
    let world = reader(&producer).await;
    let before = identity(&world, POD).await;
    world.caches(CACHED_SERVICE).await;
    let old = producer.etcd.end_leases().await;
    assert!(!old.is_empty());
    eventually("everything on it is gone", async || {
        producer.etcd.list(POD_KEY).await.is_empty().then_some(())
    })
    .await;
    // Any write finds out.
    producer.write("more.yaml", &[&pod("b", "other", "10.112.2.45")]);
    let keys = [
        POD_KEY,
        SERVICE_KEY,
        "cilium/state/nodes/v1/west/n1",
        "cilium/cluster-config/west",
    ];
    for key in keys {
        let found = eventually(key, async || {
            producer.etcd.list(key).await.into_iter().next()
        })
        .await;
        assert!(found.lease() != 0 && !old.contains(&found.lease()), "{key}");
    }
    identity(&world, "10.112.2.45").await;
    world.targets(POD, before).await;
    world.caches(CACHED_SERVICE).await;
    assert!(
        CANARIES
            .iter()
            .all(|kind| producer.exported(&canary(kind)).is_some())
    );
    assert!(producer.exported("cilium/.heartbeat").is_some());
    world.applied().await;
    let status = world.ready("west").await;
    assert_eq!(
        (&status["num-failures"], &status["num-endpoints"]),
        (&json!(0), &json!(2))
    );
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p04_a_clean_restart_deletes_nothing() {
    let mut producer = Producer::start(&[
        NODE,
        &pod("a", "checkout", POD),
        &service("checkout", GLOBAL),
    ])
    .await;
    let world = reader(&producer).await;
    let before = identity(&world, POD).await;
    world.caches(CACHED_SERVICE).await;
    world.targets("10.7.2.21", 6).await;
    let mark = world.quiet().await;
    let history = producer.etcd.history().await;
    producer.stop().await;
    world
        .until("west", "away", |p| p["connected"] == false)
        .await;
    producer.run().await;
    world.ready("west").await;
    producer.write("more.yaml", &[&pod("b", "other", "10.112.2.45")]);
    identity(&world, "10.112.2.45").await;
    assert_eq!(withdrawn(&world, mark), []);
    let touched: Vec<Change> = world
        .since(mark)
        .into_iter()
        .filter(|c| c.what.contains(POD))
        .collect();
    assert_eq!(touched, [], "unchanged, so nothing of it is told");
    assert_eq!(identity(&world, POD).await, before);
    // Locks are taken and given back.
    let mut deleted = history.deletions().await;
    deleted.retain(|key| !key.contains("/locks/"));
    assert_eq!(deleted, Vec::<String>::new());
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p05_objects_that_did_not_change_are_not_written() {
    let objects = [
        NODE.to_owned(),
        pod("a", "checkout", POD),
        service("checkout", GLOBAL),
    ];
    let objects = objects.each_ref().map(String::as_str);
    let producer = Producer::start(&objects).await;
    let world = reader(&producer).await;
    identity(&world, POD).await;
    world.caches(CACHED_SERVICE).await;
    let mark = world.quiet().await;
    let history = producer.etcd.history().await;
    producer.write("cluster.yaml", &[&["# sent again"][..], &objects].concat());
    producer.write("more.yaml", &[&pod("b", "checkout", "10.112.2.45")]);
    let later = identity(&world, "10.112.2.45").await;
    assert_eq!(Some(later), world.target(POD), "the same labels");
    let key = "cilium/state/ip/v1/default/10.112.2.45";
    assert_eq!(history.changes().await, [key]);
    world.assert_only(
        mark,
        &["ip 10.112.2.45", "cilium/cache/ip/v1/west/10.112.2.45"],
    );
    assert_eq!(world.peer("west").await["num-failures"], 0);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p06_a_service_that_is_not_shared_or_not_global_any_more_is_deleted() {
    let producer = Producer::start(&[NODE]).await;
    let world = reader(&producer).await;
    let lost = [
        r#"{"service.cilium.io/global": "true", "service.cilium.io/shared": "false"}"#,
        r#"{"service.cilium.io/global": "false"}"#,
        "{}",
    ];
    for annotations in lost {
        producer.write("service.yaml", &[&service("checkout", GLOBAL)]);
        world.caches(CACHED_SERVICE).await;
        let value = producer.exports(SERVICE_KEY).await.value;
        assert!(String::from_utf8_lossy(&value).contains(r#""shared":true"#));
        let mark = world.quiet().await;
        producer.write("service.yaml", &[&service("checkout", annotations)]);
        producer.withdraws(SERVICE_KEY).await;
        eventually("gone", async || {
            world.cached(CACHED_SERVICE).is_none().then_some(())
        })
        .await;
        world.assert_only(mark, &[CACHED_SERVICE]);
        assert_eq!(producer.etcd.list(SERVICE_KEY).await.len(), 0);
    }
    world
        .until("west", "no service", |p| p["num-shared-services"] == 0)
        .await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p07_the_older_annotation_counts_only_without_the_newer() {
    let alias = r#"{"io.cilium/global-service": "true"}"#;
    let both = r#"{"io.cilium/global-service": "true", "service.cilium.io/global": "false"}"#;
    let producer =
        Producer::start(&[NODE, &service("checkout", alias), &service("other", both)]).await;
    let world = reader(&producer).await;
    world.caches(CACHED_SERVICE).await;
    // Whatever follows from the same file is there by now.
    assert_eq!(
        producer.exported_keys("cilium/state/services/"),
        [SERVICE_KEY]
    );
    assert_eq!(
        world.cached_keys("cilium/cache/services/"),
        [CACHED_SERVICE]
    );
    world
        .until("west", "one service", |p| p["num-shared-services"] == 1)
        .await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p08_an_address_stays_while_one_of_its_pods_lives() {
    let producer = Producer::start(&[NODE]).await;
    let world = reader(&producer).await;
    producer.write("old.yaml", &[&pod("old", "checkout", POD)]);
    let before = identity(&world, POD).await;
    let mark = world.quiet().await;
    // The same application, so that the address keeps its identity as well.
    producer.write(
        "new.yaml",
        &[
            &pod("new", "checkout", POD),
            &pod("beside", "checkout", "10.112.2.45"),
        ],
    );
    identity(&world, "10.112.2.45").await;
    producer.remove("old.yaml");
    eventually("the new pod's record", async || {
        let record = producer.exported(POD_KEY)?.value;
        String::from_utf8_lossy(&record)
            .contains(r#""K8sPodName":"new""#)
            .then_some(())
    })
    .await;
    let cached = format!("cilium/cache/ip/v1/west/{POD}");
    eventually("the cache has it", async || {
        world.cached(&cached)?.contains("\"new\"").then_some(())
    })
    .await;
    assert_eq!(withdrawn(&world, mark), []);
    assert!(
        !world
            .since(mark)
            .iter()
            .any(|change| change.what == format!("ip {POD}"))
    );
    assert_eq!(world.target(POD), Some(before));
    world.applied().await;
    assert_eq!(world.peer("west").await["num-endpoints"], 2);
    producer.remove("new.yaml");
    producer.withdraws(POD_KEY).await;
    eventually("gone", async || world.target(POD).is_none().then_some(())).await;
    world.stop().await;
}
