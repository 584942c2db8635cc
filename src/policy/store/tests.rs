//! Policies through a real store: the operator's hand, and what a node makes of it.
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    policy::{Delay, Origin, PolicyEvent},
    serve,
    store::{KeyRange, Options, RangeRequest, Store},
};

const LIMIT: Duration = Duration::from_secs(20);

fn store(cluster_id: u64) -> Store {
    Store::new(Options {
        cluster_id,
        history_max: 10_000,
    })
}

fn document(name: &str, port: u16) -> String {
    format!(
        "# {name}\napiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: {name}}}\n\
         spec:\n  endpointSelector: {{}}\n  ingress:\n  - toPorts: [{{ports: [{{port: \"{port}\"}}]}}]\n"
    )
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// A store that can be lost.
#[derive(Clone)]
struct World {
    store: Arc<std::sync::Mutex<Store>>,
    lost: Arc<AtomicBool>,
    /// Ends the connections when the store is lost.
    cancel: Arc<std::sync::Mutex<CancellationToken>>,
}

impl World {
    fn new() -> Self {
        Self {
            store: Arc::new(std::sync::Mutex::new(store(7))),
            lost: Arc::default(),
            cancel: Arc::default(),
        }
    }

    fn store(&self) -> Store {
        self.store.lock().unwrap().clone()
    }

    fn connector(&self) -> Connector {
        let world = self.clone();
        Connector::new(move || {
            let world = world.clone();
            async move {
                if world.lost.load(Ordering::Relaxed) {
                    return Err(etcd::Error::NoHeader);
                }
                let cancel = world.cancel.lock().unwrap().clone();
                Client::in_process(serve::in_process(world.store(), cancel)).await
            }
        })
    }

    fn policies(&self) -> Policies {
        Policies::new(self.connector())
    }

    fn lose(&self) {
        self.lost.store(true, Ordering::Relaxed);
        let cancel = std::mem::take(&mut *self.cancel.lock().unwrap());
        cancel.cancel();
    }

    fn find(&self) {
        self.lost.store(false, Ordering::Relaxed);
    }

    fn write(&self, key: &str, value: &str) {
        let key = format!("{POLICIES_PREFIX}{key}");
        self.store()
            .put(key.into(), value.to_owned().into(), 0)
            .unwrap();
    }

    fn status_of(&self, node: &str) -> Option<(NodeStatus, i64)> {
        let key = format!("{POLICY_STATUS_PREFIX}{node}");
        let request = RangeRequest {
            range: KeyRange::single(key),
            ..RangeRequest::default()
        };
        let found = self.store().range(&request).unwrap();
        let entry = found.kvs.first()?;
        Some((serde_json::from_slice(&entry.value).unwrap(), entry.lease))
    }
}

/// A node that follows, and the policies that its datapath would have.
struct Node {
    events: mpsc::Receiver<PolicyEvent>,
    status: watch::Receiver<Arc<Status>>,
    has: BTreeMap<String, String>,
    synced: bool,
    cancel: CancellationToken,
    tasks: JoinSet<()>,
}

impl Node {
    fn start(world: &World, saved: &Path) -> Self {
        let (sender, events) = mpsc::channel(4);
        let (follower, status) = Follower::new(
            world.connector(),
            "n1".to_owned(),
            saved.to_owned(),
            sender,
            Delay::default(),
        );
        let cancel = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(follower.run(cancel.clone()));
        Self {
            events,
            status,
            has: BTreeMap::new(),
            synced: false,
            cancel,
            tasks,
        }
    }

    /// Takes events until the node has these policies, by name and port.
    async fn has(&mut self, expected: &[(&str, &str)]) {
        let expected = expected
            .iter()
            .map(|(n, p)| ((*n).to_owned(), (*p).to_owned()));
        let expected: BTreeMap<_, _> = expected.collect();
        let reached = async {
            while !self.synced || self.has != expected {
                self.step().await;
            }
        };
        let reached = tokio::time::timeout(LIMIT, reached).await;
        assert!(reached.is_ok(), "{:?}, not {expected:?}", self.has);
    }

    async fn step(&mut self) {
        match self.events.recv().await.expect("the follower runs") {
            PolicyEvent::Set { origin, policies } => {
                assert_eq!(policies.len(), 1);
                let rules = format!("{:?}", policies[0].rules);
                let port = rules.split("first: ").nth(1).unwrap();
                let port = port.split(',').next().unwrap().to_owned();
                self.has.insert(short(&origin), port);
            }
            PolicyEvent::Removed { origin } => {
                assert!(self.has.remove(&short(&origin)).is_some(), "{origin}");
            }
            PolicyEvent::Mark(mark) => mark.enforced(),
            PolicyEvent::Synced => {
                assert!(!self.synced, "each source says so once");
                self.synced = true;
            }
        }
    }

    /// Goes on until the node's status is so.
    async fn status(&mut self, wanted: impl Fn(&Status) -> bool) {
        let reached = async {
            while !wanted(&self.status.borrow()) {
                tokio::select! {
                    changed = self.status.changed() => changed.unwrap(),
                    event = self.events.recv() => match event.expect("the follower runs") {
                        PolicyEvent::Mark(mark) => mark.enforced(),
                        other => panic!("{other:?}"),
                    },
                }
            }
        };
        let reached = tokio::time::timeout(LIMIT, reached).await;
        assert!(reached.is_ok(), "{:?}", self.status.borrow());
    }

    async fn stop(mut self) {
        self.cancel.cancel();
        let ended = tokio::time::timeout(LIMIT, self.tasks.join_next()).await;
        ended.unwrap().unwrap().unwrap();
    }
}

fn short(origin: &Origin) -> String {
    let Origin::Cluster(name) = origin else {
        panic!("{origin:?}")
    };
    name.rsplit('/').next().unwrap().to_owned()
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let reached = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let reached = tokio::time::timeout(LIMIT, reached).await;
    assert!(reached.is_ok(), "{what}");
}

#[tokio::test]
async fn documents_are_kept_as_given_and_told_apart() {
    let world = World::new();
    let policies = world.policies();
    let file = |text: String| vec![(PathBuf::from("p.yaml"), text)];
    let both = format!("{}---\n{}", document("a", 80), document("b", 81));
    let done = policies.apply(&file(both)).await.unwrap();
    let outcomes = |done: &[Done]| -> Vec<_> { done.iter().map(|done| done.outcome).collect() };
    assert_eq!(outcomes(&done), [Outcome::Created, Outcome::Created]);
    assert_eq!(done[0].revision, done[1].revision, "one transaction");
    let again = format!("{}---\n{}", document("a", 80), document("b", 82));
    let done = policies.apply(&file(again)).await.unwrap();
    assert_eq!(outcomes(&done), [Outcome::Unchanged, Outcome::Configured]);
    assert!(done[0].revision < done[1].revision);
    let stored = policies.list().await.unwrap();
    assert_eq!(stored.len(), 2);
    assert_eq!(stored[0].name, "CiliumNetworkPolicy/default/a");
    assert_eq!(stored[0].text, document("a", 80), "comments included");
    assert_eq!(stored[1].revision, done[1].revision);
    let names = [name("cnp/default/a"), name("cnp/default/x")];
    let done = policies.delete(&names).await.unwrap();
    assert_eq!(outcomes(&done), [Outcome::Deleted, Outcome::Missing]);
    assert_eq!(policies.list().await.unwrap().len(), 1);
}

#[tokio::test]
async fn what_is_refused_leaves_the_store_as_it_was() {
    let world = World::new();
    let policies = world.policies();
    let good = document("a", 80);
    let lines = good.lines().count();
    let refused = async |text: String| {
        let files = vec![
            (PathBuf::from("first.yaml"), document("other", 1)),
            (PathBuf::from("second.yaml"), text),
        ];
        policies.apply(&files).await.unwrap_err().to_string()
    };
    let error = refused(format!("{good}---\n{}", good.replace("80", "http/1"))).await;
    let place = format!("second.yaml:{}: spec.ingress[0].toPorts", 2 * lines + 1);
    assert!(error.contains(&place), "{error}");
    let error = refused(format!("{good}---\n{good}")).await;
    assert!(
        error.contains("CiliumNetworkPolicy/default/a is given twice"),
        "{error}"
    );
    let error = refused("# nothing\n".to_owned()).await;
    assert!(error.contains("second.yaml"), "{error}");
    let long = format!("{good}#{}\n", "x".repeat(1 << 20));
    let error = refused(long).await;
    assert!(error.contains("bytes, more than 1048576"), "{error}");
    assert!(policies.list().await.unwrap().is_empty());
    for n in 0..limits::POLICIES_MAX {
        world.write(&format!("CiliumNetworkPolicy/default/p{n}"), "");
    }
    let error = refused(good).await;
    assert!(
        error.contains("would hold 4098 policies, more than 4096"),
        "{error}"
    );
    world.lose();
    let error = policies.list().await.unwrap_err();
    assert!(matches!(error, Error::Store { op: "read", .. }), "{error}");
}

#[tokio::test]
async fn node_follows_and_says_how_far() {
    let (world, dir) = (World::new(), tempfile::tempdir().unwrap());
    let policies = world.policies();
    let apply = async |text: String| {
        let done = policies.apply(&[("p.yaml".into(), text)]).await.unwrap();
        done[0].revision
    };
    let first = apply(document("a", 80)).await;
    let mut node = Node::start(&world, &dir.path().join("saved"));
    node.has(&[("a", "80")]).await;
    node.status(|status| status.applied >= first).await;
    let second = apply(document("b", 81)).await;
    node.has(&[("a", "80"), ("b", "81")]).await;
    // What the kernel does not have yet is not said to be applied.
    assert!(node.status.borrow().applied < second);
    node.status(|status| status.applied == second).await;
    eventually("the store says so", || {
        let told = world.status_of("n1");
        told.is_some_and(|(told, lease)| told.applies("x", second) && lease != 0)
    })
    .await;
    let gone = policies.delete(&[name("cnp/default/a")]).await.unwrap();
    node.has(&[("b", "81")]).await;
    node.status(|status| status.applied == gone[0].revision)
        .await;
    // A node that stops is not waited for.
    node.stop().await;
    assert_eq!(world.status_of("n1"), None);
}

#[tokio::test]
async fn what_others_wrote_badly_leaves_the_last_good_version() {
    let (world, dir) = (World::new(), tempfile::tempdir().unwrap());
    let saved = dir.path().join("saved");
    world.write("CiliumNetworkPolicy/default/a", &document("a", 80));
    let mut node = Node::start(&world, &saved);
    node.has(&[("a", "80")]).await;
    world.write("CiliumNetworkPolicy/default/a", "kind: [");
    world.write("CiliumNetworkPolicy/default/c", &document("d", 83));
    world.write("CNP/default/e", &document("e", 84));
    world.write("nonsense", "?");
    world.write("CiliumNetworkPolicy/default/b", &document("b", 81));
    node.has(&[("a", "80"), ("b", "81")]).await;
    let refused = |status: &Status| -> Vec<String> {
        let policies = status.policies.iter();
        let refused = policies.filter(|(_, policy)| policy.error.is_some());
        refused.map(|(name, _)| name.clone()).collect()
    };
    let expected = [
        "CNP/default/e",
        "CiliumNetworkPolicy/default/a",
        "CiliumNetworkPolicy/default/c",
        "nonsense",
    ];
    node.status(|status| refused(status) == expected && status.applied == status.read)
        .await;
    eventually("the store names the refused", || {
        let told = world.status_of("n1");
        told.is_some_and(|(told, _)| told.refused == expected && told.revision > 5)
    })
    .await;
    let status = Arc::clone(&node.status.borrow());
    let error = |name: &str| status.policies[name].error.clone().unwrap();
    assert!(error("CNP/default/e").contains("tombolo/policies/v1/CiliumNetworkPolicy/default/e"));
    assert!(error("CiliumNetworkPolicy/default/c").contains("holds CiliumNetworkPolicy/default/d"));
    node.stop().await;
    // Over a restart too, also while the store is lost.
    world.lose();
    let mut node = Node::start(&world, &saved);
    node.has(&[("a", "80"), ("b", "81")]).await;
    node.status(|status| status.error.is_some()).await;
    world.find();
    node.status(|status| status.error.is_none() && status.applied > 0)
        .await;
    world.write("CiliumNetworkPolicy/default/a", &document("a", 90));
    node.has(&[("a", "90"), ("b", "81")]).await;
}

#[tokio::test]
async fn lost_store_takes_no_policy_away_and_another_one_only_what_it_lacks() {
    let (world, dir) = (World::new(), tempfile::tempdir().unwrap());
    world.write("CiliumNetworkPolicy/default/a", &document("a", 80));
    world.write("CiliumNetworkPolicy/default/b", &document("b", 81));
    let mut node = Node::start(&world, dir.path());
    node.has(&[("a", "80"), ("b", "81")]).await;
    node.status(|status| status.applied > 0).await;
    world.lose();
    node.status(|status| status.error.is_some()).await;
    // An emptier store with a lower revision, such as one that was restored.
    *world.store.lock().unwrap() = store(8);
    world.write("CiliumNetworkPolicy/default/b", &document("b", 81));
    let revision = world.store().revision();
    world.find();
    node.has(&[("b", "81")]).await;
    node.status(|status| status.error.is_none() && status.applied == revision)
        .await;
}

#[tokio::test(start_paused = true)]
async fn new_node_waits_for_the_store_but_not_for_ever() {
    let (world, dir) = (World::new(), tempfile::tempdir().unwrap());
    world.lose();
    let start = tokio::time::Instant::now();
    let mut node = Node::start(&world, &dir.path().join("saved"));
    node.has(&[]).await;
    assert!(start.elapsed() >= limits::POLICY_STORE_PATIENCE);
}
