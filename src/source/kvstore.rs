//! The source for a Cilium cluster in kvstore mode: its agents write nodes, identities, addresses
//! and services into an etcd of theirs, which is followed here and never written to.
//!
//! Owned here: the records as they are to be published, by `normalize`; what is left of what was
//! there when the etcd is listed anew. Identities are those that Cilium's agents gave: none is
//! allocated here, and the locks and slave keys of that are nobody else's to see.
//! Always true: a record that is not the own cluster's goes nowhere and is counted; equal records
//! are sent once, however their bytes differ; while the etcd is lost, what was known stays.
use std::path::PathBuf;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use self::normalize::Normalizer;
pub use self::normalize::Producer;
use super::{FileError, LocalEvent, Status};
use crate::{
    etcd::{self, Client, Connector},
    follower::{Follower, Sink, Subject},
    keyspace::{HEARTBEAT, Kind, Layout},
    limits,
};

mod normalize;

/// Why the source ended before it was told to.
#[derive(Debug, thiserror::Error)]
#[error("send local events: the receiver is gone")]
pub struct Closed;

/// Follows one etcd; see the module's text.
#[derive(Debug)]
pub struct Kvstore {
    source: Connector,
    store: Connector,
    file: PathBuf,
    events: mpsc::Sender<LocalEvent>,
    status: watch::Sender<Status>,
    normalizer: Normalizer,
}

impl Kvstore {
    /// Reads what `source` reaches, which must not be what `store`, the cluster store, reaches.
    /// `file` is where the etcd is configured, for errors.
    #[must_use]
    pub fn new(
        producer: Producer,
        (source, store): (Connector, Connector),
        file: PathBuf,
        events: mpsc::Sender<LocalEvent>,
    ) -> Self {
        Self {
            source,
            store,
            file,
            events,
            status: watch::Sender::new(Status::default()),
            normalizer: Normalizer::new(producer),
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
    pub async fn run(mut self, cancel: CancellationToken) -> Result<(), Closed> {
        let (sender, mut batches) = mpsc::channel(limits::PEER_QUEUE_BATCHES);
        let subject = Subject {
            cluster: self.normalizer.cluster().clone(),
            layout: Layout::State,
            kinds: Kind::BASIC.to_vec(),
            absent: Vec::new(),
            canaries: false,
        };
        let lost = watch::Sender::new(None);
        let (source, store) = (self.source.clone(), self.store.clone());
        let connect = || async {
            let connected = connect(&source, &store).await;
            lost.send_replace(connected.as_ref().err().map(chain));
            connected
        };
        let follower = Follower::new(subject);
        let sink = Sink::new(sender, |events| events);
        // On the heap: the future is large and lives long.
        let follow = Box::pin(follower.run(connect, sink, cancel.clone()));
        let mut reachable = lost.subscribe();
        let hand_on = async {
            loop {
                tokio::select! {
                    Some(batch) = batches.recv() => for event in batch {
                        for event in self.normalizer.apply(event) {
                            self.events.send(event).await.map_err(|_closed| Closed)?;
                        }
                    },
                    Ok(()) = reachable.changed() => {}
                }
                let error = reachable.borrow_and_update().clone();
                self.tell(error);
            }
        };
        tokio::select! {
            () = cancel.cancelled() => Ok(()),
            // Only once cancelled: the receiver lives as long.
            _ = follow => Ok(()),
            result = hand_on => result,
        }
    }

    fn tell(&self, lost: Option<String>) {
        let error = |message| FileError {
            file: self.file.display().to_string(),
            line: 0,
            message,
        };
        let lost = lost.map(|text| format!("{text}; what was known stays published"));
        let rejected = self.normalizer.rejected();
        let counts = rejected.map(|(reason, (count, _))| (reason, *count));
        let counts = counts.collect();
        let rejected = self.normalizer.rejected();
        let rejected = rejected.map(|(reason, (count, last))| {
            format!("{count} records are not published: {reason}; the last one: {last}")
        });
        let status = Status {
            synced: self.normalizer.is_synced(),
            files: 1,
            errors: lost.into_iter().chain(rejected).map(error).collect(),
            rejected: counts,
        };
        self.status.send_if_modified(|old| {
            let changed = *old != status;
            *old = status;
            changed
        });
    }
}

/// Connects, unless what would be read is what is written.
async fn connect(source: &Connector, store: &Connector) -> Result<Client, etcd::Error> {
    let client = source.connect().await?;
    client.get(HEARTBEAT).await?;
    let store = store.connect().await?;
    store.get(HEARTBEAT).await?;
    match client.cluster_id() {
        Some(id) if store.cluster_id() == Some(id) => Err(etcd::Error::SourceIsStore { id }),
        _ => Ok(client),
    }
}

/// An error and its sources as one line.
fn chain(error: &etcd::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
