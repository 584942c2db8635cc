//! The export's views over gRPC: who sees what, and that nobody can tell what they do not see.
use std::time::Duration;

use etcd_client::{
    Compare, CompareOp, GetOptions, LeaseTimeToLiveOptions, SortOrder, SortTarget, Txn, TxnOp,
    WatchOptions,
};
use time::OffsetDateTime;
use tokio::{sync::watch, task::JoinHandle};
use tombolo::{
    etcd::{Client, Connector},
    publish::{self, Projection},
    types::{ClusterId, MaxClusters},
};

use super::*;

const SHOP_FOR_EAST: &str = "[{peer: east, namespaces: [shop], services: ['shop/*']}]";

/// A cluster store and the export that a projection makes of it, served to one common name.
struct World {
    face: Face,
    cluster: Store,
    policy: watch::Sender<ExportPolicy>,
    projection: JoinHandle<Result<(), publish::Error>>,
    cancel: CancellationToken,
}

fn noon() -> OffsetDateTime {
    time::macros::datetime!(2025-06-01 12:00:00 UTC)
}

fn fresh_store() -> Store {
    store(rand::random::<u64>() | 1)
}

fn same_store() -> Store {
    store(12)
}

impl World {
    async fn start(name: &'static str, policy: &str, make: fn() -> Store) -> Self {
        let policy = ExportPolicy::parse(policy).unwrap();
        let views = Views::new(&policy, make);
        let face = Face::of(name, views.clone()).await;
        let (policy, receiver) = watch::channel(policy);
        let cluster = face.cluster().clone();
        let cancel = CancellationToken::new();
        let (own, token) = (cluster.clone(), cancel.clone());
        let connector = Connector::new(move || {
            Client::in_process(serve::in_process(own.clone(), token.clone()))
        });
        let options = publish::Options {
            cluster: "west".parse().unwrap(),
            id: ClusterId::new(1, MaxClusters::C255).unwrap(),
            max: MaxClusters::C255,
            node_name: "n1".to_owned(),
            state_dir: "unused".into(),
        };
        let projection = Projection::new(options, connector, views, receiver, noon);
        let projection = tokio::spawn(projection.run(cancel.clone()));
        Self {
            face,
            cluster,
            policy,
            projection,
            cancel,
        }
    }

    fn put(&self, key: &str, value: &str) {
        let key = format!("cilium/state/{key}");
        self.cluster
            .put(key.into(), value.to_owned().into(), 0)
            .unwrap();
    }

    fn identity(&self, id: u32, namespace: &str) {
        let labels = format!(
            "k8s:io.cilium.k8s.policy.cluster=west;k8s:io.kubernetes.pod.namespace={namespace};"
        );
        self.put(&format!("identities/v1/id/{id}"), &labels);
    }

    fn address(&self, ip: &str, id: u32) {
        let record = format!(r#"{{"IP":"{ip}","Mask":null,"HostIP":"192.0.2.1","ID":{id}}}"#);
        self.put(&format!("ip/v1/default/{ip}"), &record);
    }

    /// Waits until the reader's store is at this revision.
    async fn reaches(&self, revision: i64) {
        let store = self.face.keyspaces.export.of(Some("east")).store;
        let reached = async {
            while store.revision() < revision {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        within(reached).await;
        assert_eq!(store.revision(), revision);
    }

    async fn stop(self) {
        self.cancel.cancel();
        within(self.projection).await.unwrap().unwrap();
        self.face.stop().await;
    }
}

/// Everything that a reader can ask for, as text.
async fn answers(world: &World, last: i64) -> Vec<String> {
    let mut client = world.face.client().await;
    let state = "cilium/state/";
    let prefix = || GetOptions::new().with_prefix();
    let mut all = Vec::new();
    let mut say = |what: &str, answer: String| all.push(format!("{what}: {answer}"));
    for (what, options) in [
        ("all", prefix()),
        ("keys", prefix().with_keys_only()),
        ("count", prefix().with_count_only()),
        ("page", prefix().with_limit(2)),
        ("new", prefix().with_min_mod_revision(last - 1)),
        (
            "by revision",
            prefix().with_sort(SortTarget::Mod, SortOrder::Descend),
        ),
    ] {
        say(
            what,
            format!("{:?}", client.get(state, Some(options)).await),
        );
    }
    for revision in 1..=last + 1 {
        let past = Some(prefix().with_revision(revision));
        say("past", format!("{:?}", client.get(state, past).await));
    }
    for key in [
        "cilium/.heartbeat",
        "cilium/cluster-config/west",
        "cilium/state/ip/v1/default/10.0.0.66",
        "cilium/state/identities/v1/id/65666",
    ] {
        say(key, format!("{:?}", client.get(key, None).await));
        let txn = Txn::new()
            .when([Compare::create_revision(key, CompareOp::Greater, 0)])
            .and_then([TxnOp::get(key, None)]);
        say(key, format!("{:?}", client.txn(txn).await));
        let range = client.get("cilium/", Some(prefix())).await;
        say(
            "not granted",
            format!("{:?}", range.map_err(|e| e.to_string())),
        );
        let put = client.put(key, "x", None).await;
        say("put", format!("{:?}", put.map_err(|e| e.to_string())));
    }
    let lease = client.lease_grant(60, None).await.unwrap().id();
    let keys = Some(LeaseTimeToLiveOptions::new().with_keys());
    let told = client.lease_time_to_live(lease, keys).await.unwrap();
    say(
        "lease",
        format!("{:?} {}", told.header(), told.keys().len()),
    );
    say("status", format!("{:?}", client.status().await));
    let compacted = client.compact(last, None).await;
    say(
        "compact",
        format!("{:?}", compacted.map_err(|e| e.to_string())),
    );

    let options = WatchOptions::new()
        .with_prefix()
        .with_start_revision(1)
        .with_prev_key();
    let mut stream = client.watch(state, Some(options)).await.unwrap();
    let mut events = Vec::new();
    while events.last().is_none_or(|(revision, _)| *revision < last) {
        let message = within(stream.message()).await.unwrap().unwrap();
        for event in message.events() {
            let revision = event.kv().unwrap().mod_revision();
            events.push((revision, format!("{event:?}")));
        }
    }
    say("watch", format!("{events:?}"));
    all
}

#[tokio::test]
async fn what_a_view_hides_leaves_no_trace_in_it() {
    let plain = World::start("remote-east", SHOP_FOR_EAST, same_store).await;
    let full = World::start("remote-east", SHOP_FOR_EAST, same_store).await;
    // Heartbeat, config and five canaries stand at 8.
    for world in [&plain, &full] {
        world.reaches(8).await;
    }
    let hidden = async |round: u32| {
        full.identity(
            65_666,
            if round.is_multiple_of(2) {
                "ops"
            } else {
                "lab"
            },
        );
        full.address("10.0.0.66", 65_666);
        full.put("services/v1/west/ops/db", &format!("{{\"round\":{round}}}"));
        // An address without identity, and records of others.
        full.address("10.0.0.67", 65_999);
        full.put("nodes/v1/north/n9", "{}");
        full.cluster.put("tombolo/x".into(), "y".into(), 0).unwrap();
        full.cluster.delete(b"cilium/state/ip/v1/default/10.0.0.66");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    type Step = (i64, fn(&World));
    let steps: [Step; 8] = [
        (9, |world| {
            world.put("nodes/v1/west/n1", "{\"Name\":\"n1\"}")
        }),
        // Not shown before its identity.
        (9, |world| world.address("10.0.0.1", 65_537)),
        (11, |world| world.identity(65_537, "shop")),
        (12, |world| world.put("services/v1/west/shop/cart", "{}")),
        (12, |world| world.put("services/v1/west/pay/till", "{}")),
        // Leaves what east may see, with its address, and comes back.
        (14, |world| world.identity(65_537, "ops")),
        (16, |world| world.identity(65_537, "shop")),
        (18, |world| {
            let gone = world.cluster.delete(b"cilium/state/identities/v1/id/65537");
            assert!(gone);
        }),
    ];
    for (round, (revision, step)) in (0..).zip(steps) {
        hidden(round).await;
        for world in [&plain, &full] {
            step(world);
            world.reaches(revision).await;
        }
        hidden(round + 1).await;
    }
    let (plain_answers, full_answers) = (answers(&plain, 18).await, answers(&full, 18).await);
    assert!(plain_answers.len() > 40);
    for (one, other) in plain_answers.iter().zip(&full_answers) {
        assert_eq!(one, other);
    }
    // The same keys are there for who may see them.
    let everything = World::start("remote-east", "[{peer: east}]", same_store).await;
    everything.identity(65_666, "ops");
    everything.reaches(9).await;
    for world in [plain, full, everything] {
        world.stop().await;
    }
}

#[tokio::test]
async fn a_change_of_the_policy_ends_the_streams_of_those_it_concerns() {
    let world = World::start("remote-east", SHOP_FOR_EAST, fresh_store).await;
    world.identity(65_537, "shop");
    world.identity(65_538, "ops");
    world.reaches(9).await;
    let ids = async |client: &mut etcd_client::Client| {
        let prefix = Some(GetOptions::new().with_prefix().with_keys_only());
        let listed = client
            .get("cilium/state/identities/", prefix)
            .await
            .unwrap();
        let keys = listed.kvs().iter();
        let keys = keys.map(|kv| kv.key_str().unwrap().to_owned());
        let cluster_id = listed.header().unwrap().cluster_id();
        (cluster_id, keys.collect::<Vec<_>>())
    };
    let mut client = world.face.client().await;
    let prefix = || Some(WatchOptions::new().with_prefix());
    let mut stream = client.watch("cilium/state/", prefix()).await.unwrap();
    let shop = "cilium/state/identities/v1/id/65537".to_owned();
    let ops = "cilium/state/identities/v1/id/65538".to_owned();
    let (before, keys) = ids(&mut client).await;
    assert_eq!(keys, [shop]);

    // A rule for somebody named already who is not east: nothing ends.
    let text =
        "[{peer: east, namespaces: [shop], services: ['shop/*']}, {peer: east, labels: {x: y}}]";
    let other_views = "[{peer: east, namespaces: [shop], services: ['shop/*']}, {peer: south}]";
    world
        .policy
        .send_replace(ExportPolicy::parse(other_views).unwrap());
    world.identity(65_539, "shop");
    let seen = async {
        // The first message says that the watch was created.
        while stream.message().await.unwrap().unwrap().events().is_empty() {}
    };
    within(seen).await;

    world
        .policy
        .send_replace(ExportPolicy::parse(text).unwrap());
    let ended = within(stream.message()).await;
    assert!(!matches!(ended, Ok(Some(_))), "{ended:?}");
    // The next connection reads another store, complete from its first revision on.
    let mut client = world.face.client().await;
    let (after, keys) = ids(&mut client).await;
    assert_ne!(before, after);
    assert_eq!(keys.len(), 2);
    let all = "[{peer: east}]";
    world.policy.send_replace(ExportPolicy::parse(all).unwrap());
    let shown = async {
        loop {
            let (_, keys) = ids(&mut world.face.client().await).await;
            if keys.contains(&ops) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within(Box::pin(shown)).await;
    world.stop().await;
}
