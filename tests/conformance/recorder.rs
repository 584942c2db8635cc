//! Everything that leaves the mesh: each delta, and each event of the cache.
//! What is recorded since a mark decides whether something flapped.
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use futures::FutureExt as _;
use tokio::task::JoinSet;
use tombolo::{
    mesh::{Delta, Deltas},
    store::{Event, KeyRange, Store, WatchRequest, Watcher},
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

/// What was seen, and where more comes from.
struct Seen {
    deltas: Deltas,
    cache: Watcher,
    changes: Vec<Change>,
    /// Address or range to identity and cluster.
    map: BTreeMap<String, (u32, u32)>,
    labels: BTreeMap<u32, String>,
}

/// Records as long as it lives.
pub(crate) struct Recorder {
    seen: Arc<Mutex<Seen>>,
    _tasks: JoinSet<()>,
}

/// A moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark(usize);

impl Recorder {
    pub(crate) fn start(deltas: Deltas, cache: &Store) -> Self {
        let request = WatchRequest {
            range: KeyRange::prefix(b"cilium/"),
            start_revision: 1,
            ..WatchRequest::default()
        };
        let seen = Arc::new(Mutex::new(Seen {
            deltas,
            cache: cache.watch(request).unwrap(),
            changes: Vec::new(),
            map: BTreeMap::new(),
            labels: BTreeMap::new(),
        }));
        let mut tasks = JoinSet::new();
        tasks.spawn(record(Arc::clone(&seen)));
        Self {
            seen,
            _tasks: tasks,
        }
    }

    /// All that has left the mesh by now.
    fn seen(&self) -> MutexGuard<'_, Seen> {
        let mut seen = self.seen.lock().unwrap();
        seen.catch_up();
        seen
    }

    pub(crate) fn mark(&self) -> Mark {
        Mark(self.seen().changes.len())
    }

    /// Changes since then, in order, markers and heartbeats left out.
    pub(crate) fn since(&self, mark: Mark) -> Vec<Change> {
        let seen = self.seen();
        let changes = seen.changes[mark.0..].iter();
        changes
            .filter(|change| !is_marker(&change.what))
            .cloned()
            .collect()
    }

    /// Address or range to identity and cluster, as the kernel would have it.
    pub(crate) fn map(&self) -> BTreeMap<String, (u32, u32)> {
        self.seen().map.clone()
    }

    /// Identity and cluster of an address or range.
    pub(crate) fn target(&self, prefix: &str) -> Option<(u32, u32)> {
        self.seen().map.get(prefix).copied()
    }

    /// The labels of an identity.
    pub(crate) fn label(&self, identity: u32) -> Option<String> {
        self.seen().labels.get(&identity).cloned()
    }

    pub(crate) fn labels(&self) -> BTreeMap<u32, String> {
        self.seen().labels.clone()
    }
}

/// Takes deltas out soon: what waits is merged by key, which hides how often it changed (though not
/// that it did).
async fn record(seen: Arc<Mutex<Seen>>) {
    loop {
        seen.lock().unwrap().catch_up();
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

impl Seen {
    fn catch_up(&mut self) {
        while let Some(batch) = self.deltas.try_pop_batch(usize::MAX) {
            assert!(!batch.lost, "the queue of deltas was overrun");
            batch.items.into_iter().for_each(|delta| self.apply(delta));
        }
        while let Some(batch) = self.cache.recv().now_or_never() {
            let batch = batch.expect("the history is long enough");
            self.changes.extend(batch.events.iter().map(|event| Change {
                what: String::from_utf8_lossy(event.key()).into_owned(),
                present: matches!(event, Event::Put { .. }),
            }));
        }
    }

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
            Delta::NamedPorts { prefix, ports } => {
                (format!("ports of {prefix}"), !ports.is_empty())
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
