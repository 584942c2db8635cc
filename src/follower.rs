//! Follows the kinds of one cluster's keyspace over one connection: list, then watch, as
//! [`KeyEvent`]s in batches. The same code follows peers, caches and the own cluster store.
//!
//! Invariant: for each kind the output is `BeginList`, upserts, `EndList`, then changes in revision
//! order; a `BeginList` may follow at any time and begins the same again. The watch starts at the
//! list's revision + 1, so nothing falls between.
//! Each connection lists again. Consumers mark at `BeginList` and sweep at `EndList`, so entries
//! that still exist do not flap.
//! Absent on purpose: decoding values, keeping entries, and resuming over connections.
use std::{convert::Infallible, sync::Arc, time::Duration};

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

/// Pause before a watch is opened again or a list is repeated on a good connection; the second
/// value bounds its doubling.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// Why following ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
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
    /// What follows from it.
    #[must_use]
    pub const fn class(&self) -> Class {
        match self {
            Self::Follow { source, .. } | Self::Canaries { source, .. } => source.class(),
            Self::Closed => Class::Fatal,
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

    async fn events(&self, batch: Vec<KeyEvent>) -> Result<(), Error> {
        if batch.is_empty() {
            Ok(())
        } else {
            self.send((self.wrap)(batch)).await
        }
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
    /// Start a kind only when its canary exists.
    pub canaries: bool,
}

/// Follows until the connection breaks. Calls `listed` when a kind's list is complete. Dropping the
/// future ends it between two batches or in front of one; the next call lists again.
///
/// # Errors
/// What broke; never returns otherwise.
pub async fn follow<T: Send>(
    client: &Client,
    subject: &Subject,
    sink: &Sink<T>,
    listed: impl Fn(Kind),
) -> Result<Infallible, Error> {
    let (open, gate) = watch::channel(Vec::new());
    let canaries = async {
        if subject.canaries {
            follow_canaries(client, subject, &open).await
        } else {
            open.send_replace(subject.kinds.clone());
            std::future::pending().await
        }
    };
    let kinds = try_join_all(subject.kinds.iter().map(|kind| {
        let mut gate = gate.clone();
        let listed = &listed;
        async move {
            gate.wait_for(|open: &Vec<Kind>| open.contains(kind))
                .await
                .map_err(|_closed| Error::Closed)?;
            follow_kind(client, subject, *kind, sink, listed).await
        }
    }));
    tokio::select! {
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
pub async fn run<T: Send, C: Future<Output = Result<Client, EtcdError>>>(
    connect: impl Fn() -> C,
    subject: Subject,
    sink: Sink<T>,
    cancel: CancellationToken,
) {
    let mut pause = RETRY.0;
    let work = async {
        loop {
            let was_listed = std::cell::Cell::new(false);
            let result = match connect().await {
                Ok(client) => follow(&client, &subject, &sink, |_| was_listed.set(true)).await,
                Err(source) => Err(Error::Canaries {
                    cluster: subject.cluster.clone(),
                    source,
                }),
            };
            let Err(error) = result;
            if matches!(error, Error::Closed) {
                return;
            }
            if was_listed.get() || pause == RETRY.0 {
                tracing::warn!(
                    cluster = %subject.cluster,
                    error = &error as &dyn std::error::Error,
                    "Store connection lost, retrying"
                );
                pause = RETRY.0;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY.1);
        }
    };
    cancel.run_until_cancelled(work).await;
}

async fn follow_kind<T: Send>(
    client: &Client,
    subject: &Subject,
    kind: Kind,
    sink: &Sink<T>,
    listed: &impl Fn(Kind),
) -> Result<Infallible, Error> {
    let prefix = subject.layout.prefix(kind, &subject.cluster);
    let machine = KindMachine::new(kind, &prefix);
    let failed = |source| Error::Follow {
        cluster: subject.cluster.clone(),
        kind,
        source,
    };
    let mut pause = RETRY.0;
    loop {
        let result = list_and_watch(client, &prefix, &machine, sink, || {
            listed(kind);
        })
        .await;
        match result {
            Ok(never) => match never {},
            Err(Failure::Etcd(error)) if error.class() == Class::Relist => {
                tracing::debug!(key_prefix = prefix, error = %error, "listing again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(RETRY.1);
            }
            Err(Failure::Etcd(error)) => return Err(failed(error)),
            Err(Failure::Sink(error)) => return Err(error),
        }
    }
}

enum Failure {
    Etcd(EtcdError),
    Sink(Error),
}

async fn list_and_watch<T: Send>(
    client: &Client,
    prefix: &str,
    machine: &KindMachine,
    sink: &Sink<T>,
    listed: impl Fn(),
) -> Result<Infallible, Failure> {
    sink.events(vec![machine.begin()])
        .await
        .map_err(Failure::Sink)?;
    let mut list = client.list(prefix);
    let mut revision = 0;
    while let Some(page) = list.page().await.map_err(Failure::Etcd)? {
        revision = page.revision;
        sink.events(machine.page(page))
            .await
            .map_err(Failure::Sink)?;
    }
    sink.events(vec![machine.end()])
        .await
        .map_err(Failure::Sink)?;
    listed();
    let mut from = revision.saturating_add(1);
    loop {
        let mut watch = client.watch(prefix, from).await.map_err(Failure::Etcd)?;
        while let Some(events) = watch.recv().await.map_err(Failure::Etcd)? {
            sink.events(machine.events(events))
                .await
                .map_err(Failure::Sink)?;
        }
        from = watch.next_revision();
        tokio::time::sleep(RETRY.0).await;
    }
}

/// Opens the gate of each kind whose canary exists or appears; deletions mean nothing.
async fn follow_canaries(
    client: &Client,
    subject: &Subject,
    open: &watch::Sender<Vec<Kind>>,
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
