//! The export: what peers may read of this cluster.
//!
//! Order: cluster-config and heartbeat at once; then records, as a follower of the cluster store
//! delivers them; the canary of a kind only after that kind's first complete list. A canary that
//! came earlier would make readers delete entries that still exist; therefore the connections that
//! are followed must not be made before everything local is in the store.
//! When the cluster store is lost, the export stays as it is, and its heartbeat goes on. A new list
//! changes what differs and nothing else.
use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Clock, Error, Options, rfc3339};
use crate::{
    etcd::Connector,
    follower::{Follower, Sink, Subject},
    keyspace::{self, Capabilities, ClusterConfig, KeyEvent, Kind, Layout},
    limits,
    store::{RangeRequest, Store},
};

/// Keeps the export equal to the own cluster's records.
#[derive(Debug)]
pub struct Projection {
    options: Options,
    connector: Connector,
    export: Store,
    clock: Clock,
    heartbeat: Duration,
    /// The keys listed so far, of each kind whose list is under way.
    lists: HashMap<Kind, HashSet<Bytes>>,
    /// Kinds that have their canary.
    complete: HashSet<Kind>,
}

impl Projection {
    /// Copies from the store that `connector` reaches to `export`, which nobody else writes to.
    /// `connector` is [`Publisher::confirmed`](super::Publisher::confirmed).
    #[must_use]
    pub fn new(options: Options, connector: Connector, export: Store, clock: Clock) -> Self {
        Self {
            options,
            connector,
            export,
            clock,
            heartbeat: limits::HEARTBEAT_INTERVAL,
            lists: HashMap::new(),
            complete: HashSet::new(),
        }
    }

    /// Beats at another pace than once a minute.
    #[must_use]
    pub const fn with_heartbeat(mut self, every: Duration) -> Self {
        self.heartbeat = every;
        self
    }

    /// Projects until cancelled.
    ///
    /// # Errors
    /// [`Error::List`] or [`Error::Put`] if the export refuses.
    pub async fn run(mut self, cancel: CancellationToken) -> Result<(), Error> {
        let (sender, mut batches) = mpsc::channel(limits::PEER_QUEUE_BATCHES);
        let connector = self.connector.clone();
        let subject = Subject {
            cluster: self.options.cluster.clone(),
            layout: Layout::State,
            kinds: Kind::ALL.to_vec(),
            canaries: false,
        };
        let sink = Sink::new(sender, |events| events);
        let follower = Follower::new(subject);
        // On the heap: the future is large and lives long.
        let follow = Box::pin(follower.run(|| connector.connect(), sink, cancel.clone()));
        let copy = async {
            let mut beat = tokio::time::interval(self.heartbeat);
            loop {
                tokio::select! {
                    _ = beat.tick() => {
                        self.put_config()?;
                        self.put_always(keyspace::HEARTBEAT.into())?;
                    }
                    Some(events) = batches.recv() => for event in events {
                        self.apply(event)?;
                    },
                }
            }
        };
        tokio::select! {
            () = cancel.cancelled() => Ok(()),
            // Only once cancelled: the receiver lives as long.
            _ = follow => Ok(()),
            result = copy => result,
        }
    }

    fn apply(&mut self, event: KeyEvent) -> Result<(), Error> {
        match event {
            KeyEvent::BeginList { kind } => drop(self.lists.insert(kind, HashSet::new())),
            KeyEvent::Upsert {
                kind,
                suffix,
                value,
                ..
            } => {
                let key = self.key(kind, &suffix);
                if let Some(list) = self.lists.get_mut(&kind) {
                    list.insert(key.clone());
                }
                self.put(key, value)?;
            }
            KeyEvent::Delete { kind, suffix } => {
                self.export.delete(&self.key(kind, &suffix));
            }
            KeyEvent::EndList { kind } => {
                if let Some(list) = self.lists.remove(&kind) {
                    self.sweep(kind, &list)?;
                }
                if self.complete.insert(kind) {
                    self.put_canaries(kind)?;
                }
            }
        }
        Ok(())
    }

    /// Deletes what a complete list lacks.
    fn sweep(&self, kind: Kind, list: &HashSet<Bytes>) -> Result<(), Error> {
        let prefix = Layout::State.prefix(kind, &self.options.cluster);
        let mut request = RangeRequest::prefix(prefix.as_bytes());
        request.keys_only = true;
        let present = self.export.range(&request).map_err(Error::List)?;
        for kv in present.kvs.iter().filter(|kv| !list.contains(&kv.key)) {
            self.export.delete(&kv.key);
        }
        Ok(())
    }

    fn key(&self, kind: Kind, suffix: &[u8]) -> Bytes {
        let prefix = Layout::State.prefix(kind, &self.options.cluster);
        [prefix.as_bytes(), suffix].concat().into()
    }

    fn put(&self, key: Bytes, value: Bytes) -> Result<(), Error> {
        let put = self.export.put_if_changed(key.clone(), value, 0);
        put.map(drop).map_err(|source| put_error(&key, source))
    }

    /// Puts the time, which must be seen to change.
    fn put_always(&self, key: String) -> Result<(), Error> {
        let (key, time) = (Bytes::from(key), rfc3339((self.clock)()));
        let put = self.export.put(key.clone(), time.into(), 0);
        put.map(drop).map_err(|source| put_error(&key, source))
    }

    fn put_config(&self) -> Result<(), Error> {
        let config = ClusterConfig {
            id: self.options.id.get(),
            capabilities: Capabilities {
                synced_canaries: true,
                max_connected_clusters: self.options.max.max_id(),
                ..Capabilities::default()
            },
        };
        let key = keyspace::cluster_config_key(&self.options.cluster);
        self.put(key.into(), config.encode().into())
    }

    /// Also for a kind without entries. The one that we never have goes with the services.
    fn put_canaries(&self, kind: Kind) -> Result<(), Error> {
        let cluster = &self.options.cluster;
        self.put_always(Layout::State.canary(kind, cluster))?;
        if kind == Kind::Services {
            self.put_always(keyspace::service_exports_canary(Layout::State, cluster))?;
        }
        Ok(())
    }
}

fn put_error(key: &[u8], source: crate::store::Error) -> Error {
    Error::Put {
        key: String::from_utf8_lossy(key).into_owned(),
        source,
    }
}
