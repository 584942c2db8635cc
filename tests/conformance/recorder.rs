//! Everything that leaves the mesh: each delta, and each event of the cache.
//! What is recorded since a mark decides whether something flapped.
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use tokio::task::JoinSet;
use tombolo::{
    mesh::{Delta, Deltas},
    store::{Event, KeyRange, Store, WatchRequest},
};

/// What markers are made of, see `World::settle`: they come and go as they like.
pub(crate) const MARKER: &str = "settle";
pub(crate) const MARKER_NET: &str = "198.18.";
pub(crate) const MARKER_IDENTITY: u32 = 30_000;

/// A change that left the mesh.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Change {
    /// `ip <prefix>`, `identity <id>`, `cluster <id>`, or a key of the cache.
    pub(crate) what: String,
    /// It is there now; false if it went.
    pub(crate) present: bool,
}

#[derive(Default)]
struct Seen {
    changes: Vec<Change>,
    /// Address or range to identity and cluster.
    map: BTreeMap<String, (u32, u32)>,
    labels: BTreeMap<u32, String>,
    lost: bool,
}

/// Records as long as it lives.
pub(crate) struct Recorder {
    seen: Arc<Mutex<Seen>>,
    deltas: Deltas,
    _tasks: JoinSet<()>,
}

/// A moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mark(usize);

impl Recorder {
    pub(crate) fn start(deltas: Deltas, cache: &Store) -> Self {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let mut tasks = JoinSet::new();
        tasks.spawn(record_deltas(deltas.clone(), Arc::clone(&seen)));
        let request = WatchRequest {
            range: KeyRange::prefix(b"cilium/"),
            start_revision: 1,
            ..WatchRequest::default()
        };
        let mut watcher = cache.watch(request).unwrap();
        let seen_by_watch = Arc::clone(&seen);
        tasks.spawn(async move {
            loop {
                let batch = watcher.recv().await.expect("the history is long enough");
                let mut seen = seen_by_watch.lock().unwrap();
                seen.changes.extend(batch.events.iter().map(|event| Change {
                    what: String::from_utf8_lossy(event.key()).into_owned(),
                    present: matches!(event, Event::Put { .. }),
                }));
            }
        });
        Self {
            seen,
            deltas,
            _tasks: tasks,
        }
    }

    pub(crate) fn mark(&self) -> Mark {
        Mark(self.seen.lock().unwrap().changes.len())
    }

    /// Changes since then, in order, markers and heartbeats left out.
    pub(crate) fn since(&self, mark: Mark) -> Vec<Change> {
        let seen = self.seen.lock().unwrap();
        assert!(!seen.lost, "the queue of deltas was overrun");
        let changes = seen.changes[mark.0..].iter();
        changes
            .filter(|change| !is_marker(&change.what))
            .cloned()
            .collect()
    }

    /// Address or range to identity and cluster, as the kernel would have it.
    pub(crate) fn map(&self) -> BTreeMap<String, (u32, u32)> {
        self.seen.lock().unwrap().map.clone()
    }

    pub(crate) fn labels(&self) -> BTreeMap<u32, String> {
        self.seen.lock().unwrap().labels.clone()
    }

    /// True if every delta so far was taken down.
    pub(crate) fn is_idle(&self) -> bool {
        self.deltas.is_empty()
    }
}

async fn record_deltas(deltas: Deltas, seen: Arc<Mutex<Seen>>) {
    loop {
        // One by one: nothing is out of the queue and not yet taken down for long.
        let batch = deltas.pop_batch(1).await;
        let mut seen = seen.lock().unwrap();
        seen.lost |= batch.lost;
        batch.items.into_iter().for_each(|delta| seen.apply(delta));
    }
}

impl Seen {
    fn apply(&mut self, delta: Delta) {
        let (what, present) = match delta {
            Delta::Ip { prefix, target } => {
                let text = prefix.to_string();
                match target {
                    Some(target) => {
                        let target = (target.identity.0, target.cluster.get());
                        self.map.insert(text.clone(), target);
                    }
                    None => {
                        self.map.remove(&text);
                    }
                }
                (format!("ip {text}"), target.is_some())
            }
            Delta::Identity { id, labels } => {
                let present = labels.is_some();
                match labels {
                    Some(labels) => drop(self.labels.insert(id.0, labels.to_string())),
                    None => drop(self.labels.remove(&id.0)),
                }
                (format!("identity {}", id.0), present)
            }
            Delta::Synced { cluster } => (format!("cluster {cluster}"), true),
            Delta::Removed { cluster } => (format!("cluster {cluster}"), false),
        };
        self.changes.push(Change { what, present });
    }
}

fn is_marker(what: &str) -> bool {
    let identity = what
        .rsplit(['/', ' '])
        .next()
        .and_then(|last| last.parse::<u32>().ok());
    let kind = what.starts_with("identity ") || what.contains("/identities/");
    let numbered = identity.is_some_and(|id| kind && id & 0x7fff >= MARKER_IDENTITY);
    what.contains(MARKER) || what.contains(MARKER_NET) || what.ends_with(".heartbeat") || numbered
}

/// What changed, each once.
pub(crate) fn named(changes: &[Change]) -> BTreeSet<&str> {
    changes.iter().map(|change| change.what.as_str()).collect()
}
