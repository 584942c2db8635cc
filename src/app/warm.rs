//! The mesh as last known, on disk: after a reboot in a peer's outage its addresses still mean what
//! they did, until the peer says otherwise.
//!
//! Always true: the start waits for nobody here; only the sessions with peers begin after what was
//! saved of them is on its way into the mesh. A file that cannot be read is as none, and that is
//! logged. What is restored passes the same checks as what comes from a peer.
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs, io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::members::Members;
use crate::{
    keyspace::{KeyEvent, Kind},
    limits,
    mesh::{Fingerprint, Image, Terms, View, fingerprint},
    peer::{self, ConfigFile, MemberEvent},
    store::Store,
    types::{ClusterName, MaxClusters},
};

/// Where members are kept, one file each.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) directory: PathBuf,
    pub(super) own: ClusterName,
    pub(super) max_clusters: MaxClusters,
}

/// Restores, and then saves.
pub(super) struct Warm {
    place: Place,
    view: View,
    cache: Store,
    restored: Restored,
}

impl Warm {
    pub(super) fn new(place: Place, view: View, cache: Store) -> Self {
        Self {
            place,
            view,
            cache,
            restored: Restored::default(),
        }
    }

    /// The mesh that this is about.
    pub(super) fn view(&self) -> View {
        self.view.clone()
    }

    /// What sessions go on from.
    pub(super) fn restored(&self) -> Restored {
        self.restored.clone()
    }

    /// Restores what was saved, then follows the peers, and saves now and then until cancelled.
    pub(super) async fn run(
        self,
        join: &Members,
        registry: peer::Registry,
        cancel: CancellationToken,
    ) {
        let load = (self.restored).load(self.place.clone(), join, &self.view, &registry);
        if cancel.run_until_cancelled(load).await.is_none() {
            // Half of it is in the mesh: what is on disk is better.
            return;
        }
        let keep = keep(self.place, self.cache, self.view, cancel.clone());
        let prune = cancel.run_until_cancelled(self.restored.prune(registry.clone()));
        tokio::join!(registry.run(cancel.clone()), prune, keep);
    }
}

/// The channels of members that were restored and whose sessions have not begun.
#[derive(Debug, Clone, Default)]
pub(super) struct Restored(Arc<Mutex<HashMap<ClusterName, mpsc::Sender<MemberEvent>>>>);

impl Restored {
    /// The channel that a member's session goes on with, behind what was restored.
    pub(super) fn take(&self, name: &ClusterName) -> Option<mpsc::Sender<MemberEvent>> {
        self.lock().remove(name)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<ClusterName, mpsc::Sender<MemberEvent>>> {
        // A panic elsewhere leaves whole entries behind.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the mesh what was saved.
    async fn load(&self, place: Place, join: &Members, view: &View, registry: &peer::Registry) {
        let files = registry.clone();
        let read = move || (place.read_all(), files.files());
        let read = tokio::task::spawn_blocking(read).await;
        let (images, files) = read.unwrap_or_default();
        for mut image in images {
            if let Err(error) = admit(&mut image, &files, registry) {
                tracing::error!(clusterName = %image.name, error, "Saved cluster is not restored");
                continue;
            }
            let sender = join.join(image.name.clone());
            self.lock().insert(image.name.clone(), sender.clone());
            tell(image, &sender, view).await;
        }
    }

    /// Withdraws those that are not configured any more, once the configuration is known. Who has a
    /// file that is no good has no session that would do it, so this goes on while there are such.
    async fn prune(&self, registry: peer::Registry) {
        while !registry.scanned() {
            tokio::time::sleep(limits::PEER_SCAN_SETTLE).await;
        }
        loop {
            let configured = registry.statuses().into_iter().map(|s| s.name);
            self.withdraw_others(&configured.collect(), &registry).await;
            if self.lock().is_empty() {
                return;
            }
            tokio::time::sleep(limits::PEER_SCAN_INTERVAL).await;
        }
    }

    async fn withdraw_others(&self, configured: &HashSet<ClusterName>, registry: &peer::Registry) {
        let gone: Vec<_> = self
            .lock()
            .extract_if(|name, _| !configured.contains(name))
            .collect();
        for (name, sender) in gone {
            tracing::info!(clusterName = %name, "Remote cluster is not configured any more");
            let removed = MemberEvent::Removed { name: name.clone() };
            // Without the mesh there is nothing to withdraw.
            sender.send(removed).await.ok();
            registry.release(&name);
        }
    }
}

/// Only what the peer's file allows now is restored, and only under an id that is free.
fn admit(
    image: &mut Image,
    files: &BTreeMap<ClusterName, ConfigFile>,
    registry: &peer::Registry,
) -> Result<(), String> {
    let id = image.terms.id;
    if let Some(file) = files.get(&image.name) {
        if let Some(pin) = file.cluster_id.filter(|pin| *pin != id) {
            return Err(format!(
                "it had id {id}, and its file pins cluster-id {pin}"
            ));
        }
        image.terms.allowed_cidrs = Arc::clone(&file.allowed_cidrs);
    }
    let reserved = registry.reserve(&image.name, id);
    reserved.map_err(|holder| format!("it had id {id}, which cluster {holder} has now"))
}

async fn tell(image: Image, sender: &mpsc::Sender<MemberEvent>, view: &View) {
    let Image {
        name,
        terms,
        entries,
    } = image;
    tracing::info!(clusterName = %name, count = entries.len(), "Remote cluster restored from disk");
    // As lists that the peer's own will complete: what comes of them is no change.
    let mut begin = Vec::new();
    for kind in Kind::ALL {
        if entries.iter().any(|entry| entry.kind() == kind) {
            view.restored.insert((name.clone(), kind));
            begin.push(KeyEvent::BeginList { kind });
        }
    }
    let connected = MemberEvent::Connected {
        name: name.clone(),
        id: terms.id,
        config: terms.config,
        allowed_cidrs: terms.allowed_cidrs,
        relayed: terms.relayed,
    };
    let mut sent = sender.send(connected).await;
    let mut entries = begin.into_iter().chain(entries).peekable();
    while sent.is_ok() && entries.peek().is_some() {
        let events = entries.by_ref().take(limits::RESTORE_BATCH).collect();
        let name = name.clone();
        sent = sender.send(MemberEvent::Keys { name, events }).await;
    }
}

/// What was saved of each member.
type Saved = HashMap<ClusterName, (Fingerprint, Terms)>;

/// Saves members that changed, as often as it is cheap, and when cancelled.
async fn keep(place: Place, cache: Store, view: View, cancel: CancellationToken) {
    let mut saved = Saved::new();
    let (mut wait, mut last) = (limits::SAVE_INTERVAL.0, false);
    while !last {
        last = cancel
            .run_until_cancelled(tokio::time::sleep(wait))
            .await
            .is_none();
        let (place, cache, view) = (place.clone(), cache.clone(), view.clone());
        let since = Instant::now();
        let work = move || {
            let bytes = place.save_all(&cache, &view, &mut saved);
            (saved, bytes)
        };
        match tokio::task::spawn_blocking(work).await {
            Ok((members, bytes)) => {
                saved = members;
                wait = pause(since.elapsed(), bytes);
            }
            Err(_) => return,
        }
    }
}

/// How long nothing is saved after saving so many bytes took so long.
fn pause(took: Duration, bytes: u64) -> Duration {
    let written = Duration::from_secs(bytes / limits::SAVE_BYTES_PER_SECOND);
    let (least, most) = limits::SAVE_INTERVAL;
    took.saturating_mul(limits::SAVE_TIME_SHARE)
        .max(written)
        .clamp(least, most)
}

impl Place {
    fn read_all(&self) -> Vec<Image> {
        let Ok(files) = fs::read_dir(&self.directory) else {
            // The first start.
            return Vec::new();
        };
        let mut images = Vec::new();
        for file in files.flatten() {
            let path = file.path();
            match self.read(&path) {
                Ok(Some(image)) => images.push(image),
                Ok(None) => {}
                Err(error) => tracing::error!(
                    path = %path.display(),
                    %error,
                    "Saved cluster can't be read; nothing is known of it until it answers"
                ),
            }
        }
        images
    }

    /// `None` for files that are not a peer's.
    fn read(&self, path: &Path) -> io::Result<Option<Image>> {
        let name = path.file_name().and_then(|name| name.to_str());
        let Some(name) = name.and_then(|name| name.parse::<ClusterName>().ok()) else {
            return Ok(None);
        };
        if fs::metadata(path)?.len() > limits::SAVED_CLUSTER_BYTES_MAX {
            return Err(io::Error::other("the file is too long"));
        }
        let image = Image::read(&fs::read(path)?, self.max_clusters).map_err(io::Error::other)?;
        if image.name != name || name == self.own {
            return Err(io::Error::other("the file is of another cluster"));
        }
        Ok(Some(image))
    }

    /// Returns how many bytes were written.
    fn save_all(&self, cache: &Store, view: &View, saved: &mut Saved) -> u64 {
        let members = view.terms.iter().filter(|entry| *entry.key() != self.own);
        let members: Vec<_> = members
            .map(|entry| (entry.key().clone(), entry.value().clone()))
            .collect();
        self.remove_others(&members.iter().map(|(name, _)| name.clone()).collect());
        saved.retain(|name, _| members.iter().any(|(member, _)| member == name));
        let mut bytes = 0;
        for (name, terms) in members {
            let now = (fingerprint(&name, cache), terms);
            if saved.get(&name) == Some(&now) {
                continue;
            }
            match self.save(&name, &now.1, cache) {
                Ok(written) => {
                    bytes += written;
                    saved.insert(name, now);
                }
                Err(error) => tracing::error!(
                    clusterName = %name,
                    directory = %self.directory.display(),
                    %error,
                    "Cluster could not be saved; after a reboot it is unknown until it answers"
                ),
            }
        }
        bytes
    }

    /// Returns how many bytes were written.
    fn save(&self, name: &ClusterName, terms: &Terms, cache: &Store) -> io::Result<u64> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.directory)?;
        let part = self.directory.join(".part");
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = io::BufWriter::new(options.open(&part)?);
        Image::write(name, terms, cache, &mut file)?;
        let file = file.into_inner().map_err(io::Error::other)?;
        file.sync_all()?;
        fs::rename(&part, self.directory.join(name.as_str()))?;
        Ok(file.metadata()?.len())
    }

    /// Removed peers must not come back.
    fn remove_others(&self, members: &HashSet<ClusterName>) {
        let Ok(files) = fs::read_dir(&self.directory) else {
            return;
        };
        for file in files.flatten() {
            let name = file.file_name();
            let name = name.to_str().and_then(|name| name.parse().ok());
            if name.is_some_and(|name: ClusterName| !members.contains(&name))
                && let Err(error) = fs::remove_file(file.path())
            {
                tracing::error!(path = %file.path().display(), %error, "Saved cluster could not be removed");
            }
        }
    }
}

#[cfg(test)]
mod tests;
