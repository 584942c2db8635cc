//! The source for machines without Kubernetes: a directory of manifests in Kubernetes spelling.
//!
//! Owned here: reading the directory's `*.yaml`, `*.yml` and `*.json` files, again on each change and
//! every few seconds. The pure steps are `parse` (text to objects), `inventory` (files to objects,
//! last good versions), `resolve` (objects to what is local) and the difference to what was sent.
//! Always true: what was sent equals `sent`; a bad file changes nothing but the status, also if it
//! turned bad while no agent ran; a directory that cannot be listed is not an empty one.
//! Absent on purpose: subdirectories, and pods of other nodes.
use std::{
    collections::{BTreeMap, HashMap},
    ffi::OsStr,
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use notify::{
    EventKind, RecommendedWatcher, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode},
};
use sha2::{Digest as _, Sha256};
use tokio::{
    io::AsyncReadExt as _,
    sync::{Notify, mpsc, watch},
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

pub use self::resolve::Place;
use self::{inventory::Inventory, parse::ParseError};
use super::{FileError, LocalEvent, Status, desired::Desired};
use crate::{limits, netdev::Netdev, saved::Saved};

mod inventory;
mod object;
mod parse;
mod resolve;
mod service;
#[cfg(test)]
mod tests;

/// Why the source ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody receives its events any more.
    #[error("send local events: the receiver is gone")]
    ReceiverGone,
}

/// Follows one directory; see the module's text.
#[derive(Debug)]
pub struct Manifests {
    dir: PathBuf,
    saved: Saved,
    place: Place,
    netdev: Option<Netdev>,
    events: mpsc::Sender<LocalEvent>,
    status: watch::Sender<Status>,
    inventory: Inventory,
    /// Why the directory could not be listed at the last try.
    list_error: Option<FileError>,
    /// Digests of the files as they were parsed last.
    digests: BTreeMap<String, [u8; 32]>,
    /// Good versions that are not saved yet.
    unsaved: BTreeMap<String, String>,
    /// Files went since the copies were compared with the directory; at the start nobody knows.
    copies_stale: bool,
    sent: Desired,
    /// What the routes said when they could last be read.
    veths: HashMap<IpAddr, String>,
    synced: bool,
    /// Wakes the loop when something in the directory changed.
    changed: Arc<Notify>,
    watcher: Option<(RecommendedWatcher, u64)>,
    /// Set at the first complete scan: until then bad files may hold `Synced` back.
    sync_deadline: Option<Instant>,
}

impl Manifests {
    /// A source for `dir` that speaks for `place`. Last good versions are kept in `saved`, which
    /// nobody else writes to. `netdev` finds the interfaces of pods that name none; without it such
    /// pods have none.
    #[must_use]
    pub fn new(
        dir: impl Into<PathBuf>,
        saved: PathBuf,
        place: Place,
        netdev: Option<Netdev>,
        events: mpsc::Sender<LocalEvent>,
    ) -> Self {
        Self {
            dir: dir.into(),
            saved: Saved::new(saved),
            place,
            netdev,
            events,
            status: watch::Sender::new(Status::default()),
            inventory: Inventory::default(),
            list_error: None,
            digests: BTreeMap::new(),
            unsaved: BTreeMap::new(),
            copies_stale: true,
            sent: Desired::default(),
            veths: HashMap::new(),
            synced: false,
            changed: Arc::new(Notify::new()),
            watcher: None,
            sync_deadline: None,
        }
    }

    /// Where the latest status can be read.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// Runs until `cancel`. Sends wait while the channel is full.
    ///
    /// # Errors
    /// If the receiver of the events is gone.
    pub async fn run(mut self, cancel: CancellationToken) -> Result<(), Error> {
        cancel
            .clone()
            .run_until_cancelled_owned(self.follow())
            .await
            .unwrap_or(Ok(()))
    }

    async fn follow(&mut self) -> Result<(), Error> {
        let mut tick = tokio::time::interval(limits::SOURCE_RESCAN);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tick.tick().await;
        let mut links = self.netdev.as_ref().map(Netdev::changes);
        let changed = Arc::clone(&self.changed);
        self.scan(Instant::now()).await?;
        loop {
            let links_changed = async {
                match &mut links {
                    Some(links) => links.changed().await,
                    None => std::future::pending().await,
                }
            };
            let mut links_lost = false;
            tokio::select! {
                () = changed.notified() => {
                    // A file is seldom written at one go: read when it is quiet, or late enough.
                    for _ in 0..limits::SOURCE_DEBOUNCES_MAX {
                        let more = changed.notified();
                        if tokio::time::timeout(limits::SOURCE_DEBOUNCE, more).await.is_err() {
                            break;
                        }
                    }
                    self.scan(Instant::now()).await?;
                }
                alive = links_changed => {
                    self.apply(Instant::now()).await?;
                    links_lost = !alive;
                }
                _ = tick.tick() => self.scan(Instant::now()).await?,
            }
            if links_lost {
                tracing::error!("netlink notifications ended, routes are looked up by time only");
                links = None;
            }
        }
    }

    /// Reads the directory and sends what follows from it.
    async fn scan(&mut self, now: Instant) -> Result<(), Error> {
        self.list_error = self.read_dir().await.err();
        self.apply(now).await?;
        self.save().await;
        Ok(())
    }

    /// Brings the copies up to date. After sending: the disk's pace is not the workloads'.
    async fn save(&mut self) {
        for (name, text) in std::mem::take(&mut self.unsaved) {
            self.saved.keep(Path::new(&name), &text).await;
        }
        if self.copies_stale && self.list_error.is_none() {
            let exists = |name: &OsStr| {
                let path = self.dir.join(name);
                self.inventory.contains(&path.display().to_string())
            };
            self.saved.retain(exists).await;
            self.copies_stale = false;
        }
    }

    /// Sends what follows from the files as last read and the routes.
    async fn apply(&mut self, now: Instant) -> Result<(), Error> {
        self.read_routes().await;
        let (desired, mut errors) = resolve::resolve(&self.inventory, &self.place, &self.veths);
        errors.splice(0..0, self.list_error.clone());
        for event in self.sent.diff(&desired) {
            if let LocalEvent::WorkloadUpsert(workload) = &event
                && workload.interface.is_none()
            {
                tracing::warn!(
                    namespace = %workload.key.namespace,
                    name = %workload.key.name,
                    "workload has no known interface, nothing is enforced on it"
                );
            }
            self.send(event).await?;
        }
        self.sent = desired;
        if self.list_error.is_none() && !self.synced {
            let deadline = *self
                .sync_deadline
                .get_or_insert_with(|| now + limits::SOURCE_BAD_FILE_GRACE);
            // Whoever hears `Synced` may drop what was not sent, and a file half written at our
            // start has not told us of its pods yet.
            if now >= deadline || !self.inventory.has_unread() {
                self.send(LocalEvent::Synced).await?;
                self.synced = true;
                tracing::info!(files = self.inventory.len(), "manifests read");
                if self.sent.nodes.is_empty() {
                    tracing::warn!(node = %self.place.node_name, "no manifest describes this node");
                }
            }
        }
        self.report(errors);
        Ok(())
    }

    async fn send(&self, event: LocalEvent) -> Result<(), Error> {
        self.events
            .send(event)
            .await
            .map_err(|_gone| Error::ReceiverGone)
    }

    /// Publishes the status; logs errors that are new.
    fn report(&self, errors: Vec<FileError>) {
        let next = Status {
            synced: self.synced,
            files: self.inventory.len(),
            errors,
            rejected: Vec::new(),
        };
        self.status.send_if_modified(|status| {
            for FileError {
                file,
                line,
                message,
            } in next
                .errors
                .iter()
                .filter(|error| !status.errors.contains(error))
            {
                tracing::error!(%file, line, error = %message, "manifest has an error");
            }
            let modified = *status != next;
            *status = next;
            modified
        });
    }

    async fn read_routes(&mut self) {
        let Some(netdev) = &self.netdev else { return };
        if !resolve::needs_routes(&self.inventory, &self.place) {
            return;
        }
        match netdev.veth_routes().await {
            Ok(veths) => self.veths = veths,
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(error, "routes are unknown, pods keep their interfaces");
            }
        }
    }

    /// Brings the inventory up to date with the directory.
    async fn read_dir(&mut self) -> Result<(), FileError> {
        let failed = |path: &Path, error: &io::Error| FileError {
            file: path.display().to_string(),
            line: 0,
            message: error.to_string(),
        };
        let paths = match self.list().await {
            Ok(paths) => paths,
            Err(error) => {
                self.watcher = None;
                return Err(failed(&self.dir, &error));
            }
        };
        let before = self.inventory.len();
        self.inventory.retain(|name| paths.contains_key(name));
        self.copies_stale |= self.inventory.len() < before;
        self.digests.retain(|name, _| paths.contains_key(name));
        for (name, path) in &paths {
            match read_file(path).await {
                Ok(text) => {
                    let digest = Sha256::digest(&text).into();
                    if self.digests.insert(name.clone(), digest) != Some(digest) {
                        self.parse(name, &text).await;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    self.inventory.retain(|other| other != name);
                    self.digests.remove(name);
                    self.copies_stale = true;
                }
                Err(error) => {
                    self.digests.remove(name);
                    let error = ParseError {
                        line: 0,
                        message: error.to_string(),
                    };
                    self.refuse(name, error).await;
                }
            }
        }
        Ok(())
    }

    async fn parse(&mut self, name: &str, text: &[u8]) {
        match parse_text(text) {
            Ok((parsed, text)) => {
                for (line, kind) in &parsed.ignored {
                    tracing::warn!(file = %name, line, %kind, "kind of no use here is ignored");
                }
                self.inventory.set(name, Ok(parsed));
                self.unsaved.insert(name.to_owned(), text.to_owned());
            }
            Err(error) => self.refuse(name, error).await,
        }
    }

    /// Takes note of a bad version. At the first look, what counts is the last good version of an
    /// earlier run.
    async fn refuse(&mut self, name: &str, error: ParseError) {
        if !self.inventory.contains(name)
            && let Some(text) = self.saved.last_good(Path::new(name)).await
            && let Ok(parsed) = parse::parse(&text)
        {
            tracing::warn!(file = %name, "manifest is bad; its last good version applies");
            self.inventory.set(name, Ok(parsed));
        }
        self.inventory.set(name, Err(error));
    }

    /// The manifest files by name; arms the watch first, so that no change can be missed.
    async fn list(&mut self) -> io::Result<BTreeMap<String, PathBuf>> {
        let inode = std::os::unix::fs::MetadataExt::ino(&tokio::fs::metadata(&self.dir).await?);
        if self
            .watcher
            .as_ref()
            .is_none_or(|&(_, watched)| watched != inode)
        {
            self.watcher = match watch_dir(&self.dir, Arc::clone(&self.changed)) {
                Ok(watcher) => Some((watcher, inode)),
                Err(error) => {
                    tracing::warn!(%error, "directory is not watched, only read from time to time");
                    None
                }
            };
        }
        let mut entries = tokio::fs::read_dir(&self.dir).await?;
        let mut paths = BTreeMap::new();
        while let Some(entry) = entries.next_entry().await? {
            let path = entry.path();
            if !is_manifest(&path) {
                continue;
            }
            if paths.len() == limits::SOURCE_FILES_MAX {
                let message = format!("more than {} manifest files", limits::SOURCE_FILES_MAX);
                return Err(io::Error::other(message));
            }
            paths.insert(path.display().to_string(), path);
        }
        Ok(paths)
    }
}

/// A file's objects and its text.
fn parse_text(text: &[u8]) -> Result<(parse::Parsed, &str), ParseError> {
    let text = std::str::from_utf8(text).map_err(|error| {
        let before = &text[..error.valid_up_to()];
        let lines = before.iter().filter(|&&b| b == b'\n').count();
        let line = u64::try_from(lines).map_or(0, |lines| lines + 1);
        ParseError {
            line,
            message: "not UTF-8".to_owned(),
        }
    })?;
    // This is what a file looks like that is about to be written.
    if text.trim().is_empty() {
        let message = "empty; delete the file to remove its objects".to_owned();
        return Err(ParseError { line: 1, message });
    }
    Ok((parse::parse(text)?, text))
}

/// Editors and volume mounts keep their own files under names with a dot in front.
fn is_manifest(path: &Path) -> bool {
    let hidden = path
        .file_name()
        .is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    !hidden
        && path
            .extension()
            .is_some_and(|e| e == "yaml" || e == "yml" || e == "json")
}

async fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    // Opening anything else may wait for ever.
    if !tokio::fs::metadata(path).await?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let max = limits::SOURCE_FILE_BYTES_MAX;
    let mut text = Vec::new();
    let mut file = tokio::fs::File::open(path).await?.take(max + 1);
    if u64::try_from(file.read_to_end(&mut text).await?).is_ok_and(|len| len <= max) {
        Ok(text)
    } else {
        Err(io::Error::other(format!(
            "more than the limit of {max} bytes"
        )))
    }
}

fn watch_dir(dir: &Path, changed: Arc<Notify>) -> notify::Result<RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Our own reading opens and closes files too.
        let reading = event.is_ok_and(|event| match event.kind {
            EventKind::Access(kind) => kind != AccessKind::Close(AccessMode::Write),
            _ => false,
        });
        if !reading {
            changed.notify_one();
        }
    })?;
    watcher.watch(dir, RecursiveMode::NonRecursive)?;
    Ok(watcher)
}
