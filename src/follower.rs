//! Follows the kinds of one cluster's keyspace, connection after connection: list, then watch, as
//! [`KeyEvent`]s in batches. The same code follows peers, caches and the own cluster store.
//!
//! Invariant: for each kind the output is `BeginList`, upserts, `EndList`, then changes in revision
//! order; a `BeginList` may follow at any time and begins the same again. The watch starts at the
//! list's revision + 1, so nothing falls between.
//! A new connection goes on behind the last change that was handed on, without a list, if the etcd
//! cluster is the same and its keys at that revision are those that were handed on, each with its
//! mod revision. A store that was wiped under its old id, that lags behind, or that has compacted
//! the revision, does not pass; then the kind is listed. Consumers mark at `BeginList` and sweep at
//! `EndList`, so entries that still exist do not flap.
//! Absent on purpose: decoding values, and keeping them.
use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::future::try_join_all;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use self::machine::KindMachine;
use crate::{
    etcd::{Class, Client, Error as EtcdError, Event},
    keyspace::{self, KeyEvent, Kind, Layout},
    types::ClusterName,
};

mod machine;
/// A bug that the simulation of peers plants and must find.
#[cfg(test)]
pub(crate) mod planted {
    use std::cell::Cell;

    thread_local!(static RESUME: Cell<bool> = const { Cell::new(false) });

    /// On this thread, positions are good for every etcd cluster.
    pub(crate) fn resume_across_cluster_ids(planted: bool) {
        RESUME.set(planted);
    }

    pub(super) fn resumes_across_cluster_ids() -> bool {
        RESUME.get()
    }
}

/// Pause before a watch is opened again or a list is repeated on a good connection; the second
/// value bounds its doubling.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// Why following ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no connection.
    #[error("connect to the store of {cluster}")]
    Connect {
        /// Whose keyspace.
        cluster: ClusterName,
        /// Why.
        #[source]
        source: EtcdError,
    },
    /// The connection broke or the server refused.
    #[error("follow {kind:?} of {cluster}")]
    Follow {
        /// Whose keyspace.
        cluster: ClusterName,
        /// Which kind.
        kind: Kind,
        /// Why.
        #[source]
        source: EtcdError,
    },
    /// The canaries cannot be read.
    #[error("follow the canaries of {cluster}")]
    Canaries {
        /// Whose keyspace.
        cluster: ClusterName,
        /// Why.
        #[source]
        source: EtcdError,
    },
    /// Nobody takes events any more; we are stopping.
    #[error("hand on events: the receiver is gone")]
    Closed,
}

impl Error {
    /// The client's error below it, if there is one.
    #[must_use]
    pub const fn etcd(&self) -> Option<&EtcdError> {
        match self {
            Self::Connect { source, .. }
            | Self::Follow { source, .. }
            | Self::Canaries { source, .. } => Some(source),
            Self::Closed => None,
        }
    }

    /// What follows from it.
    #[must_use]
    pub const fn class(&self) -> Class {
        match self.etcd() {
            Some(source) => source.class(),
            None => Class::Fatal,
        }
    }
}

/// Where batches go: a bounded channel of `T`, which carries a batch. When it is full, the
/// connection's flow control makes the server wait.
pub struct Sink<T> {
    sender: mpsc::Sender<T>,
    wrap: Arc<dyn Fn(Vec<KeyEvent>) -> T + Send + Sync>,
}

impl<T> Clone for Sink<T> {
    fn clone(&self) -> Self {
        Self {
            sender: self.sender.clone(),
            wrap: Arc::clone(&self.wrap),
        }
    }
}

impl<T> std::fmt::Debug for Sink<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sink").finish_non_exhaustive()
    }
}

impl<T: Send> Sink<T> {
    /// Sends to `sender` what `wrap` makes of a batch.
    pub fn new(
        sender: mpsc::Sender<T>,
        wrap: impl Fn(Vec<KeyEvent>) -> T + Send + Sync + 'static,
    ) -> Self {
        Self {
            sender,
            wrap: Arc::new(wrap),
        }
    }

    /// Sends something that is no batch, in order with the batches. Cancel safe: then not sent.
    ///
    /// # Errors
    /// [`Error::Closed`] if the receiver is gone.
    pub async fn send(&self, message: T) -> Result<(), Error> {
        self.sender
            .send(message)
            .await
            .map_err(|_closed| Error::Closed)
    }

    /// `batch` is made only when there is room for it: what it notes as handed on is. Cancel safe:
    /// then it was not made.
    async fn events(&self, batch: impl FnOnce() -> Vec<KeyEvent>) -> Result<(), Error> {
        let room = self.sender.reserve().await;
        let room = room.map_err(|_closed| Error::Closed)?;
        let batch = batch();
        if !batch.is_empty() {
            room.send((self.wrap)(batch));
        }
        Ok(())
    }
}

/// What to follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// Whose entries.
    pub cluster: ClusterName,
    /// In which tree.
    pub layout: Layout,
    /// Which of them.
    pub kinds: Vec<Kind>,
    /// Kinds that the cluster does not write: told once as an empty list, so that nothing stays of
    /// them and nobody waits for them.
    pub absent: Vec<Kind>,
    /// Start a kind only when its canary exists.
    pub canaries: bool,
}

/// How far a kind came in a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Its canary is there.
    Canary(Kind),
    /// It was listed or resumed, or is absent.
    Complete(Kind),
}

/// Follows one subject and knows how far it came.
#[derive(Debug)]
pub struct Follower {
    subject: Subject,
    kinds: Vec<KindMachine>,
    /// Absent kinds that were told.
    told_absent: Vec<Kind>,
}

impl Follower {
    /// Knows nothing yet, so the first connection lists.
    #[must_use]
    pub fn new(subject: Subject) -> Self {
        let kinds = &subject.kinds;
        Self {
            kinds: kinds.iter().map(|k| machine(&subject, *k)).collect(),
            subject,
            told_absent: Vec::new(),
        }
    }

    /// Follows something else from the next connection on. What is known of kinds that stay, in
    /// the same tree, is kept.
    pub fn retarget(&mut self, subject: Subject) {
        let old = std::mem::replace(self, Self::new(subject));
        let (now, then) = (&self.subject, &old.subject);
        if (now.layout, &now.cluster) != (then.layout, &then.cluster) {
            return;
        }
        for known in old.kinds {
            let mut kinds = self.kinds.iter_mut();
            if let Some(machine) = kinds.find(|machine| machine.kind() == known.kind()) {
                *machine = known;
            }
        }
        self.told_absent = old.told_absent;
        self.told_absent.retain(|kind| now.absent.contains(kind));
    }

    /// Lists these kinds at the next connection: the receiver does not hold them any more.
    pub fn forget(&mut self, kinds: &[Kind]) {
        for machine in &mut self.kinds {
            if kinds.contains(&machine.kind()) {
                *machine = self::machine(&self.subject, machine.kind());
            }
        }
        self.told_absent.retain(|kind| !kinds.contains(kind));
    }

    /// What it follows.
    #[must_use]
    pub const fn subject(&self) -> &Subject {
        &self.subject
    }

    /// Follows until the connection breaks. Calls `progress` as each kind comes on.
    /// Dropping the future ends it between two batches or in front of one; the next call goes on
    /// there. The receiver must be the same in all calls, and keep what it was told in between.
    ///
    /// # Errors
    /// What broke; never returns otherwise.
    pub async fn follow<T: Send>(
        &mut self,
        client: &Client,
        sink: &Sink<T>,
        progress: impl Fn(Progress),
    ) -> Result<Infallible, Error> {
        let Self {
            subject,
            kinds,
            told_absent,
        } = self;
        let subject = &*subject;
        for kind in subject.absent.iter().copied() {
            if !told_absent.contains(&kind) {
                let list = || {
                    told_absent.push(kind);
                    vec![KeyEvent::BeginList { kind }, KeyEvent::EndList { kind }]
                };
                sink.events(list).await?;
            }
            progress(Progress::Complete(kind));
        }
        let progress = &progress;
        let (open, gate) = watch::channel(Vec::new());
        let canaries = async {
            if subject.canaries {
                follow_canaries(client, subject, &open, progress).await
            } else {
                open.send_replace(subject.kinds.clone());
                std::future::pending().await
            }
        };
        let kinds = try_join_all(kinds.iter_mut().map(|machine| {
            let mut gate = gate.clone();
            async move {
                gate.wait_for(|open: &Vec<Kind>| open.contains(&machine.kind()))
                    .await
                    .map_err(|_closed| Error::Closed)?;
                follow_kind(client, subject, machine, sink, progress).await
            }
        }));
        tokio::select! {
            biased;
            result = canaries => result,
            result = kinds => match result {
                Err(error) => Err(error),
                // Only without kinds: there is nothing to follow.
                Ok(_) => std::future::pending().await,
            },
        }
    }

    /// Follows over connections that `connect` makes, until cancelled; for the own cluster store.
    /// Failures are logged once per outage.
    ///
    /// # Errors
    /// [`Error::Closed`] if the receiver is gone.
    pub async fn run<T: Send, C: Future<Output = Result<Client, EtcdError>>>(
        mut self,
        connect: impl Fn() -> C,
        sink: Sink<T>,
        cancel: CancellationToken,
    ) -> Result<(), Error> {
        let mut pause = RETRY.0;
        let work = async {
            loop {
                let complete = AtomicBool::new(false);
                let result = match connect().await {
                    Ok(client) => {
                        let note = |progress| {
                            if let Progress::Complete(_) = progress {
                                complete.store(true, Ordering::Relaxed);
                            }
                        };
                        self.follow(&client, &sink, note).await
                    }
                    Err(source) => Err(Error::Connect {
                        cluster: self.subject.cluster.clone(),
                        source,
                    }),
                };
                let Err(error) = result;
                if matches!(error, Error::Closed) {
                    return error;
                }
                if complete.into_inner() || pause == RETRY.0 {
                    tracing::warn!(
                        cluster = %self.subject.cluster,
                        error = &error as &dyn std::error::Error,
                        "Store connection lost, retrying"
                    );
                    pause = RETRY.0;
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(RETRY.1);
            }
        };
        cancel.run_until_cancelled(work).await.map_or(Ok(()), Err)
    }
}

fn machine(subject: &Subject, kind: Kind) -> KindMachine {
    KindMachine::new(kind, &subject.layout.prefix(kind, &subject.cluster))
}

async fn follow_kind<T: Send>(
    client: &Client,
    subject: &Subject,
    machine: &mut KindMachine,
    sink: &Sink<T>,
    progress: &impl Fn(Progress),
) -> Result<Infallible, Error> {
    let kind = machine.kind();
    let prefix = subject.layout.prefix(kind, &subject.cluster);
    let failed = |source| Error::Follow {
        cluster: subject.cluster.clone(),
        kind,
        source,
    };
    let mut from = resume(client, &prefix, machine).await.map_err(failed)?;
    let mut pause = RETRY.0;
    loop {
        let round = async {
            let from = match from.take() {
                Some(from) => from,
                None => list(client, &prefix, machine, sink).await?,
            };
            progress(Progress::Complete(kind));
            watch_from(client, &prefix, from, machine, sink).await
        };
        let Err(failure) = round.await;
        match failure {
            Failure::Etcd(error) if error.class() == Class::Relist => {
                tracing::debug!(key_prefix = prefix, error = %error, "listing again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(RETRY.1);
            }
            Failure::Etcd(error) => return Err(failed(error)),
            Failure::Sink(error) => return Err(error),
        }
    }
}

enum Failure {
    Etcd(EtcdError),
    Sink(Error),
}

impl From<EtcdError> for Failure {
    fn from(error: EtcdError) -> Self {
        Self::Etcd(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Sink(error)
    }
}

/// Where to watch from if the server agrees with what was handed on; `None` if it must be listed.
async fn resume(
    client: &Client,
    prefix: &str,
    machine: &KindMachine,
) -> Result<Option<i64>, EtcdError> {
    let Some(mut check) = machine.check() else {
        return Ok(None);
    };
    let mut list = client.list_keys_at(prefix, check.revision());
    loop {
        match list.page().await {
            Ok(Some(page)) if check.page(client.cluster_id(), &page) => {}
            Ok(None) if check.agrees() => {
                tracing::debug!(key_prefix = prefix, revision = check.revision(), "resumed");
                return Ok(Some(check.revision().saturating_add(1)));
            }
            Ok(_) => return Ok(None),
            Err(error) if error.class() == Class::Relist => return Ok(None),
            Err(error) => return Err(error),
        }
    }
}

/// Hands on a whole list; returns where to watch from.
async fn list<T: Send>(
    client: &Client,
    prefix: &str,
    machine: &mut KindMachine,
    sink: &Sink<T>,
) -> Result<i64, Failure> {
    sink.events(|| vec![machine.begin()]).await?;
    let mut list = client.list(prefix);
    let mut revision = 0;
    while let Some(page) = list.page().await? {
        revision = page.revision;
        sink.events(|| machine.page(page)).await?;
    }
    let cluster = client.cluster_id();
    sink.events(|| vec![machine.end(cluster, revision)]).await?;
    Ok(revision.saturating_add(1))
}

async fn watch_from<T: Send>(
    client: &Client,
    prefix: &str,
    mut from: i64,
    machine: &mut KindMachine,
    sink: &Sink<T>,
) -> Result<Infallible, Failure> {
    loop {
        let mut watch = client.watch(prefix, from).await?;
        let ended = loop {
            match watch.recv().await {
                Ok(Some(events)) => {
                    let batch = || machine.events(events, watch.next_revision());
                    sink.events(batch).await?;
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        // Progress may have been told without events.
        from = watch.next_revision();
        machine.advance(from);
        ended?;
        tokio::time::sleep(RETRY.0).await;
    }
}

/// Opens the gate of each kind whose canary exists or appears; deletions mean nothing.
async fn follow_canaries(
    client: &Client,
    subject: &Subject,
    open: &watch::Sender<Vec<Kind>>,
    progress: &impl Fn(Progress),
) -> Result<Infallible, Error> {
    let (cluster, prefix) = (&subject.cluster, keyspace::synced_prefix(&subject.cluster));
    let failed = |source| Error::Canaries {
        cluster: cluster.clone(),
        source,
    };
    let see = |key: &[u8]| {
        let Some((layout, kind)) = keyspace::parse_canary(key, cluster) else {
            return;
        };
        open.send_if_modified(|open| {
            let fresh = layout == subject.layout && !open.contains(&kind);
            if fresh {
                open.push(kind);
                progress(Progress::Canary(kind));
            }
            fresh
        });
    };
    let round = async || {
        let mut list = client.list(&prefix);
        let mut from = 0;
        while let Some(page) = list.page().await? {
            from = page.revision.saturating_add(1);
            page.entries.iter().for_each(|entry| see(&entry.key));
        }
        loop {
            let mut watch = client.watch(&prefix, from).await?;
            while let Some(events) = watch.recv().await? {
                for event in &events {
                    if let Event::Put(entry) = event {
                        see(&entry.key);
                    }
                }
            }
            from = watch.next_revision();
            tokio::time::sleep(RETRY.0).await;
        }
    };
    loop {
        let result: Result<Infallible, EtcdError> = round().await;
        let Err(error) = result;
        if error.class() != Class::Relist {
            return Err(failed(error));
        }
        tokio::time::sleep(RETRY.1).await;
    }
}
