//! Watches the policy directory: files in, parsed policies out.
//!
//! A file that turns bad keeps its last good version; so does one that can't be read, and so do
//! all of them while the directory itself can't be read. Only a file that is really gone, in a
//! directory that can be listed, withdraws its policies.
//! Notifications only wake the scan: what counts is what the directory holds, compared with what
//! was told last, and that is also looked at without any notification.
use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use notify::Watcher as _;
use sha2::{Digest as _, Sha256};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::{Delay, Origin, ParseError, Policy, PolicyEvent, Source, parse, parse_noting};
use crate::{limits, saved::Saved};

/// How the directory stands; only the latest counts.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Status {
    /// True once [`PolicyEvent::Synced`] was sent.
    pub synced: bool,
    /// Why the directory can't be read, if so.
    pub error: Option<String>,
    /// Its policy files.
    pub files: BTreeMap<PathBuf, FileStatus>,
}

/// How one file stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct FileStatus {
    /// Policies of its last good version, as `namespace/name`.
    pub policies: Vec<String>,
    /// Why its present version is not in force, if so.
    pub error: Option<String>,
}

/// Why a file's present version is not in force.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory can't be listed.
    #[error("list policy directory {dir}")]
    List {
        /// The directory.
        dir: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file can't be read.
    #[error("read policy file {file}")]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Something else has a policy file's name.
    #[error("policy file {file}: not a regular file")]
    NotAFile {
        /// Its path.
        file: PathBuf,
    },
    /// A file is not text.
    #[error("policy file {file}: not UTF-8 text")]
    NotText {
        /// The file.
        file: PathBuf,
    },
    /// A file is larger than any policy.
    #[error("policy file {file}: larger than {max} bytes; split it")]
    TooLarge {
        /// The file.
        file: PathBuf,
        /// The limit.
        max: u64,
    },
    /// More files than are read.
    #[error(
        "policy directory {dir}: more than {max} files, those after {last} are left out; join some"
    )]
    TooManyFiles {
        /// The directory.
        dir: PathBuf,
        /// The limit.
        max: usize,
        /// The last file that is read.
        last: PathBuf,
    },
    /// A file is not understood.
    #[error(transparent)]
    Parse(#[from] ParseError),
}

/// The watcher of one directory.
#[derive(Debug)]
pub struct Directory {
    dir: PathBuf,
    saved: Saved,
    events: mpsc::Sender<PolicyEvent>,
    delay: Delay,
    status: watch::Sender<Arc<Status>>,
    /// The last seen content of each file, good or bad.
    seen: BTreeMap<PathBuf, Seen>,
    dir_error: Option<String>,
    synced: bool,
    /// Whether policies were sent without a mark behind them.
    unmarked: bool,
}

#[derive(Debug, Default)]
struct Seen {
    /// Of the last readable version.
    digest: Option<[u8; 32]>,
    /// Whether a good version was sent.
    sent: bool,
    status: FileStatus,
}

/// The receiver of the events is gone: nobody needs them any more.
struct Unwanted;

impl Directory {
    /// A watcher of `dir` that sends to `events` once it runs. Last good versions are kept in
    /// `saved`, which nobody else writes to.
    #[must_use]
    pub fn new(
        dir: PathBuf,
        saved: PathBuf,
        events: mpsc::Sender<PolicyEvent>,
        delay: Delay,
    ) -> (Self, watch::Receiver<Arc<Status>>) {
        let (status, receiver) = watch::channel(Arc::default());
        let directory = Self {
            dir,
            saved: Saved::new(saved),
            events,
            delay,
            status,
            seen: BTreeMap::new(),
            dir_error: None,
            synced: false,
            unmarked: false,
        };
        (directory, receiver)
    }

    /// Sends what the directory holds, then what changes, until `cancel` or until the receiver of
    /// the events is dropped. A slow receiver makes it wait.
    pub async fn run(mut self, cancel: CancellationToken) {
        let work = async {
            // One wake-up is as good as many.
            let (wake, mut woken) = mpsc::channel::<()>(1);
            let mut watcher = None;
            loop {
                // Watch before looking, so that nothing falls in between. The directory may come
                // later, or be replaced: then the next round watches it.
                if watcher.is_none() {
                    watcher = self.watch(wake.clone());
                }
                if self.scan().await.is_err() {
                    return;
                }
                if self.dir_error.is_some() {
                    watcher = None;
                }
                tokio::select! {
                    _ = woken.recv() => settle(&mut woken).await,
                    () = sleep(limits::POLICY_RESCAN) => {}
                }
            }
        };
        let stopped = cancel.run_until_cancelled(work).await.is_none();
        tracing::debug!(stopped, "policy directory watcher ends");
    }

    fn watch(&self, wake: mpsc::Sender<()>) -> Option<notify::RecommendedWatcher> {
        let handler = move |event: notify::Result<notify::Event>| {
            // Reading the directory is an access as well and must not wake us.
            let concerns = match &event {
                Ok(event) => !matches!(
                    event.kind,
                    notify::EventKind::Access(
                        notify::event::AccessKind::Open(_) | notify::event::AccessKind::Read
                    ) | notify::EventKind::Access(notify::event::AccessKind::Close(
                        notify::event::AccessMode::Read
                    ))
                ),
                Err(_) => true,
            };
            if concerns && let Err(mpsc::error::TrySendError::Closed(())) = wake.try_send(()) {
                tracing::trace!("policy directory notification after the end");
            }
        };
        let watching = notify::recommended_watcher(handler).and_then(|mut watcher| {
            watcher.watch(&self.dir, notify::RecursiveMode::NonRecursive)?;
            Ok(watcher)
        });
        match watching {
            Ok(watcher) => Some(watcher),
            Err(error) => {
                let dir = self.dir.display();
                tracing::debug!(%dir, %error, "policy directory is read without notifications");
                None
            }
        }
    }

    async fn scan(&mut self) -> Result<(), Unwanted> {
        let came = std::time::Instant::now();
        match self.list().await {
            Ok((files, surplus)) => {
                self.note_directory(surplus.as_ref());
                let gone: Vec<PathBuf> = self
                    .seen
                    .keys()
                    .filter(|f| !files.contains(*f))
                    .cloned()
                    .collect();
                // What is new comes before what is gone, so that a renamed file leaves no gap.
                for file in &files {
                    self.look_at(file.clone()).await?;
                }
                if !self.synced || !gone.is_empty() {
                    let exists = |name: &OsStr| files.contains(&self.dir.join(name));
                    self.saved.retain(exists).await;
                }
                for file in gone {
                    let was_sent = self.seen.remove(&file).is_some_and(|s| s.sent);
                    if was_sent {
                        tracing::info!(file = %file.display(), "policy file removed");
                        let origin = Origin::File(file);
                        self.send(PolicyEvent::Removed { origin }).await?;
                    }
                }
            }
            Err(error) => self.note_directory(Some(&error)),
        }
        if self.unmarked {
            let mark = self.delay.mark(Source::Files, came, None);
            self.send(PolicyEvent::Mark(mark)).await?;
            self.unmarked = false;
        }
        if !self.synced && self.dir_error.is_none() {
            self.synced = true;
            self.send(PolicyEvent::Synced).await?;
        }
        self.publish_status();
        Ok(())
    }

    /// The policy files, and the complaint that there are too many.
    async fn list(&self) -> Result<(BTreeSet<PathBuf>, Option<Error>), Error> {
        let list_error = |source| Error::List {
            dir: self.dir.clone(),
            source,
        };
        let mut entries = tokio::fs::read_dir(&self.dir).await.map_err(list_error)?;
        let mut files = BTreeSet::new();
        let mut surplus = None;
        while let Some(entry) = entries.next_entry().await.map_err(list_error)? {
            let file = entry.path();
            if !is_policy_file(&file) {
                continue;
            }
            files.insert(file);
            if files.len() > limits::POLICY_FILES_MAX {
                files.pop_last();
                let last = files.last().cloned().unwrap_or_default();
                let (dir, max) = (self.dir.clone(), limits::POLICY_FILES_MAX);
                surplus = Some(Error::TooManyFiles { dir, max, last });
            }
        }
        Ok((files, surplus))
    }

    async fn look_at(&mut self, file: PathBuf) -> Result<(), Unwanted> {
        let bytes = match read(&file).await {
            Ok(bytes) => bytes,
            // Gone since the list: the next one says so.
            Err(Error::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(());
            }
            Err(error) => {
                self.note_file(file.clone(), None, &error);
                return self.restore(file).await;
            }
        };
        let digest: [u8; 32] = Sha256::digest(&bytes).into();
        if self
            .seen
            .get(&file)
            .is_some_and(|s| s.digest == Some(digest))
        {
            return Ok(());
        }
        let parsed = String::from_utf8(bytes)
            .map_err(|_error| Error::NotText { file: file.clone() })
            .and_then(|text| {
                let mut narrowed = Vec::new();
                let policies = parse_noting(&text, &file, &mut narrowed)?;
                note_narrowed(&narrowed);
                Ok((policies, text))
            });
        let (policies, text) = match parsed {
            Ok(parsed) => parsed,
            Err(error) => {
                self.note_file(file.clone(), Some(digest), &error);
                return self.restore(file).await;
            }
        };
        self.saved.keep(&file, &text).await;
        let names = policies.iter().map(Policy::title).collect();
        let count = policies.len();
        tracing::info!(file = %file.display(), count, "policy file applied");
        let status = FileStatus {
            policies: names,
            error: None,
        };
        self.seen.insert(
            file.clone(),
            Seen {
                digest: Some(digest),
                sent: true,
                status,
            },
        );
        let origin = Origin::File(file);
        self.send(PolicyEvent::Set { origin, policies }).await
    }

    /// A file that is bad at the first look counts as its last good version of an earlier run.
    async fn restore(&mut self, file: PathBuf) -> Result<(), Unwanted> {
        let Some(seen) = self.seen.get_mut(&file).filter(|seen| !seen.sent) else {
            return Ok(());
        };
        let Some(text) = self.saved.last_good(&file).await else {
            return Ok(());
        };
        let Ok(policies) = parse(&text, &file) else {
            return Ok(());
        };
        seen.sent = true;
        seen.status.policies = policies.iter().map(Policy::title).collect();
        tracing::warn!(file = %file.display(), "policy file is bad; its last good version applies");
        let origin = Origin::File(file);
        self.send(PolicyEvent::Set { origin, policies }).await
    }

    fn note_file(&mut self, file: PathBuf, digest: Option<[u8; 32]>, error: &Error) {
        let text = chain(error);
        let seen = self.seen.entry(file.clone()).or_default();
        seen.digest = digest;
        if seen.status.error.as_ref() != Some(&text) {
            let (file, kept) = (file.display(), seen.sent);
            if let Error::Parse(ParseError { line, field, .. }) = error {
                let line = line.unwrap_or_default();
                tracing::error!(%file, line, field, kept, error = text, "policy file refused");
            } else {
                tracing::error!(%file, kept, error = text, "policy file refused");
            }
            seen.status.error = Some(text);
        }
    }

    fn note_directory(&mut self, error: Option<&Error>) {
        let text = error.map(chain);
        if self.dir_error != text {
            let dir = self.dir.display();
            match &text {
                Some(error) => tracing::error!(%dir, error, "policy directory has a problem"),
                None => tracing::info!(%dir, "policy directory is fine again"),
            }
            self.dir_error = text;
        }
    }

    async fn send(&mut self, event: PolicyEvent) -> Result<(), Unwanted> {
        self.unmarked = true;
        self.events.send(event).await.map_err(|_closed| Unwanted)
    }

    fn publish_status(&self) {
        let files = self
            .seen
            .iter()
            .map(|(file, s)| (file.clone(), s.status.clone()))
            .collect();
        let status = Status {
            synced: self.synced,
            error: self.dir_error.clone(),
            files,
        };
        self.status.send_if_modified(|old| {
            let changed = **old != status;
            if changed {
                *old = Arc::new(status);
            }
            changed
        });
    }
}

/// Tells of policies that are imported fail-closed. A file may have many such places; the first
/// says enough to look at it.
fn note_narrowed(narrowed: &[ParseError]) {
    let Some(first) = narrowed.first() else {
        return;
    };
    let (file, count, field) = (first.file.display(), narrowed.len(), &first.field);
    let (line, reason) = (first.line.unwrap_or_default(), &first.refusal);
    tracing::warn!(%file, line, field, count, %reason, "policy file imported fail-closed");
}

/// Waits until no wake-up came for a while.
async fn settle(woken: &mut mpsc::Receiver<()>) {
    let last = Instant::now() + limits::POLICY_DEBOUNCE_MAX;
    loop {
        let quiet = (Instant::now() + limits::POLICY_DEBOUNCE).min(last);
        match timeout_at(quiet, woken.recv()).await {
            Ok(Some(())) if Instant::now() < last => {}
            Ok(_) | Err(_) => return,
        }
    }
}

/// Whether a file of the directory is read: by its name.
pub(crate) fn is_policy_file(file: &Path) -> bool {
    let name = file
        .file_name()
        .is_some_and(|n| !n.as_encoded_bytes().starts_with(b"."));
    name && file
        .extension()
        .is_some_and(|e| e == "yaml" || e == "yml" || e == "json")
}

async fn read(file: &Path) -> Result<Vec<u8>, Error> {
    use tokio::io::AsyncReadExt as _;
    let read_error = |source| Error::Read {
        file: file.to_owned(),
        source,
    };
    // Opening a pipe would wait for its writer.
    if !tokio::fs::metadata(file)
        .await
        .map_err(read_error)?
        .is_file()
    {
        return Err(Error::NotAFile {
            file: file.to_owned(),
        });
    }
    let open = tokio::fs::File::open(file).await.map_err(read_error)?;
    let mut bytes = Vec::new();
    let max = limits::POLICY_FILE_BYTES_MAX;
    // A file may grow while it is read, so its size is not asked for.
    open.take(max + 1)
        .read_to_end(&mut bytes)
        .await
        .map_err(read_error)?;
    if bytes.len() as u64 > max {
        return Err(Error::TooLarge {
            file: file.to_owned(),
            max,
        });
    }
    Ok(bytes)
}

/// The error with its sources, on one line.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests;
