//! Keeps one actor per configured peer, by the files in a directory.
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use notify::Watcher as _;
use tokio::{
    sync::{mpsc, watch},
    task::{Id, JoinSet},
};
use tokio_util::sync::CancellationToken;

use super::{
    MemberEvent, Options, PeerStatus,
    actor::{self, Desired},
    config_file::ConfigFile,
    directory::{self, Change, PeerFile, Tracker},
    inspect,
    link::Context,
    shared::Shared,
};
use crate::{
    follower::Sink,
    limits,
    types::{ClusterId, ClusterName},
};

type Members = dyn Fn(&ClusterName) -> mpsc::Sender<MemberEvent> + Send + Sync;

/// All peers. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Registry {
    options: Arc<Options>,
    members: Arc<Members>,
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl Registry {
    /// Makes the registry; nothing runs yet. `members` gives each peer's own channel into the mesh.
    /// It is called once per name and run: a removed peer that returns keeps its channel, so that
    /// its `Removed` and its next `Connected` stay in order.
    pub fn new(
        options: Options,
        members: impl Fn(&ClusterName) -> mpsc::Sender<MemberEvent> + Send + Sync + 'static,
    ) -> Self {
        Self {
            options: Arc::new(options),
            members: Arc::new(members),
            shared: Arc::new(Shared::default()),
        }
    }

    /// All configured peers, sorted by name.
    #[must_use]
    pub fn statuses(&self) -> Vec<PeerStatus> {
        self.shared.statuses(&self.options)
    }

    /// True once the directory was listed: from then on `statuses` names every configured peer.
    #[must_use]
    pub fn scanned(&self) -> bool {
        self.shared.scanned.load(Ordering::Acquire)
    }

    /// The files that are good now, by peer.
    #[must_use]
    pub fn files(&self) -> BTreeMap<ClusterName, ConfigFile> {
        let Options {
            directory, cluster, ..
        } = &*self.options;
        let found = inspect::configured(directory, Some(cluster)).unwrap_or_default();
        let good = |(name, peer): (_, inspect::Configured)| Some((name, peer.file.ok()?));
        found.into_iter().filter_map(good).collect()
    }

    /// Reserves the id that a peer had in an earlier run, as if it were connected.
    ///
    /// # Errors
    /// Who has it: another peer, or the own cluster.
    pub fn reserve(&self, name: &ClusterName, id: ClusterId) -> Result<(), ClusterName> {
        if id == self.options.id {
            return Err(self.options.cluster.clone());
        }
        self.shared.reserve(name, id)
    }

    /// Releases the id of a peer that has no file and no session; to be called once all that was
    /// known of it is withdrawn.
    pub fn release(&self, name: &ClusterName) {
        self.shared.release(name);
    }

    /// All ids that configured peers have, had in an earlier run, or are pinned to; `None` while
    /// there is a peer of which nothing is known.
    #[must_use]
    pub fn ids(&self) -> Option<Vec<ClusterId>> {
        self.scanned().then(|| self.shared.ids()).flatten()
    }

    /// Follows the directory until cancelled. A directory that cannot be listed changes nothing.
    pub async fn run(self, cancel: CancellationToken) {
        let mut run = Run {
            registry: self,
            tracker: Tracker::default(),
            actors: BTreeMap::new(),
            tasks: JoinSet::new(),
            names: HashMap::new(),
            unlisted: false,
        };
        // Dropping the set at the end aborts all sessions; nothing is withdrawn.
        cancel.run_until_cancelled(run.follow()).await;
    }
}

struct Run {
    registry: Registry,
    tracker: Tracker,
    actors: BTreeMap<ClusterName, watch::Sender<Desired>>,
    tasks: JoinSet<()>,
    names: HashMap<Id, ClusterName>,
    /// The directory could not be listed at the last scan.
    unlisted: bool,
}

impl Run {
    async fn follow(&mut self) {
        // One slot: what matters is that something happened, not what.
        let (poke, mut poked) = mpsc::channel::<()>(1);
        let mut watcher = None;
        let mut tick = tokio::time::interval(limits::PEER_SCAN_INTERVAL);
        loop {
            if watcher.is_none() {
                // Installed before the scan, so that no change slips between.
                watcher = self.watch_directory(&poke);
            }
            self.scan();
            if !self.unlisted {
                self.registry.shared.scanned.store(true, Ordering::Release);
            }
            if self.unlisted {
                // A directory that is made anew needs a new watch.
                watcher = None;
            }
            tokio::select! {
                _ = tick.tick() => {}
                Some(()) = poked.recv() => {
                    tokio::time::sleep(limits::PEER_SCAN_SETTLE).await;
                    while poked.try_recv().is_ok() {}
                }
                Some(ended) = self.tasks.join_next_with_id(), if !self.tasks.is_empty() => {
                    self.ended(ended);
                }
            }
        }
    }

    fn watch_directory(&self, poke: &mpsc::Sender<()>) -> Option<notify::RecommendedWatcher> {
        let poke = poke.clone();
        let on_event = move |event: notify::Result<notify::Event>| {
            // Our own scans open and read files; reacting to that would never end.
            if !event.is_ok_and(|event| event.kind.is_access()) {
                // A full slot is a poke that is still to be seen.
                poke.try_send(()).ok();
            }
        };
        let mut watcher = notify::recommended_watcher(on_event).ok()?;
        let directory = &self.registry.options.directory;
        watcher
            .watch(directory, notify::RecursiveMode::NonRecursive)
            .ok()?;
        Some(watcher)
    }

    fn scan(&mut self) {
        let options = Arc::clone(&self.registry.options);
        let found = match directory::scan(&options.directory, &options.cluster) {
            Ok(found) => found,
            Err(error) => {
                if !self.unlisted {
                    tracing::warn!(
                        path = %options.directory.display(),
                        error = %error,
                        "Directory of peer files cannot be listed; peers stay as they are"
                    );
                }
                self.unlisted = true;
                return;
            }
        };
        self.unlisted = false;
        let (changes, misnamed) = self.tracker.update(found, Instant::now());
        for path in misnamed {
            tracing::error!(config = %path.display(), "File name is no cluster name; file ignored");
        }
        for change in changes {
            match change {
                Change::Upsert(name, file) => self.upsert(name, &file),
                Change::Conflict(name, paths) => {
                    let paths: Vec<_> = paths.iter().map(|p| p.display().to_string()).collect();
                    let text = format!("several files name this peer: {}", paths.join(", "));
                    tracing::error!(clusterName = %name, error = text, "Remote cluster configuration refused");
                    self.registry.shared.refuse(&name, Some(text));
                }
                Change::Remove(name) => self.remove(&name),
            }
        }
    }

    fn upsert(&mut self, name: ClusterName, file: &PeerFile) {
        let directory = &self.registry.options.directory;
        let config = file.path.display();
        match ConfigFile::from_bytes(&file.bytes, directory) {
            Ok(parsed) => {
                tracing::info!(clusterName = %name, config = %config, "New remote cluster configuration");
                if !parsed.unknown.is_empty() {
                    let keys = parsed.unknown.join(", ");
                    tracing::warn!(clusterName = %name, config = %config, keys, "Unknown keys in remote cluster configuration ignored");
                }
                if parsed.connect.tls.insecure_skip_verify {
                    tracing::warn!(clusterName = %name, config = %config, "Server of remote cluster is not verified: insecure-skip-tls-verify is set");
                }
                self.registry.shared.refuse(&name, None);
                self.registry.shared.pin(&name, parsed.cluster_id);
                let desired = Desired::Running(Arc::new((file.path.clone(), parsed)));
                self.want(name, desired);
            }
            Err(error) => {
                let mut text = format!("{config} refused: {error}");
                if let Some(source) = std::error::Error::source(&error) {
                    text = format!("{text}: {source}");
                }
                tracing::error!(clusterName = %name, config = %config, error = text, "Remote cluster configuration refused");
                self.registry.shared.refuse(&name, Some(text));
            }
        }
    }

    fn remove(&self, name: &ClusterName) {
        tracing::info!(clusterName = %name, "Remote cluster configuration removed");
        match self.actors.get(name) {
            Some(actor) => {
                actor.send_replace(Desired::Removed);
            }
            // Its file was never good enough to start with.
            None => self.registry.shared.remove(name),
        }
    }

    fn want(&mut self, name: ClusterName, desired: Desired) {
        if let Some(actor) = self.actors.get(&name) {
            actor.send_replace(desired);
            return;
        }
        let sender = (self.registry.members)(&name);
        let (actor, receiver) = watch::channel(desired);
        self.actors.insert(name.clone(), actor);
        let keys_of = name.clone();
        let context = Context {
            name: name.clone(),
            options: Arc::clone(&self.registry.options),
            shared: Arc::clone(&self.registry.shared),
            sink: Sink::new(sender, move |events| MemberEvent::Keys {
                name: keys_of.clone(),
                events,
            }),
        };
        let task = self.tasks.spawn(actor::run(context, receiver));
        self.names.insert(task.id(), name);
    }

    /// An actor ends by itself only if its channel is closed, or by a bug; then the next scan
    /// begins anew with it.
    fn ended(&mut self, ended: Result<(Id, ()), tokio::task::JoinError>) {
        let (id, error) = match ended {
            Ok((id, ())) => (id, "its channel is closed".to_owned()),
            Err(error) => (error.id(), error.to_string()),
        };
        if let Some(name) = self.names.remove(&id) {
            tracing::error!(clusterName = %name, error, "Connection to remote cluster stopped");
            self.actors.remove(&name);
            self.tracker.forget(&name);
        }
    }
}
