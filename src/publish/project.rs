//! The export: what peers may read of this cluster.
//!
//! Order: cluster-config and heartbeat at once; then records, which are copied as they stand in
//! the cluster store; the canaries only after a complete copy that began when the publisher had
//! written everything that its source knew. A canary that came earlier would make readers delete
//! entries that still exist.
use bytes::Bytes;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Clock, Error, Options, rfc3339};
use crate::{
    keyspace::{self, Capabilities, ClusterConfig, Kind, Layout},
    limits,
    store::{Event, KeyRange, KeyValue, RangeRequest, Store, WatchRequest, Watcher},
};

/// Keeps the export equal to the own cluster's records.
#[derive(Debug)]
pub struct Projection {
    options: Options,
    cluster: Store,
    export: Store,
    clock: Clock,
    prefixes: [String; 4],
}

impl Projection {
    /// Copies from `cluster` to `export`, which nobody else writes to.
    #[must_use]
    pub fn new(options: Options, cluster: Store, export: Store, clock: Clock) -> Self {
        let prefixes = Kind::ALL.map(|kind| Layout::State.prefix(kind, &options.cluster));
        Self {
            options,
            cluster,
            export,
            clock,
            prefixes,
        }
    }

    /// Projects until cancelled. `synced` is the publisher's; until it turns true the export has
    /// no canaries, so that readers wait. If its sender is gone before, they never come.
    ///
    /// # Errors
    /// [`Error::List`] or [`Error::Put`] if one of the stores refuses.
    pub async fn run(
        self,
        mut synced: watch::Receiver<bool>,
        cancel: CancellationToken,
    ) -> Result<(), Error> {
        self.put_config()?;
        let mut minute = tokio::time::interval(limits::HEARTBEAT_INTERVAL);
        let mut ready = false;
        let mut publisher_lives = true;
        let mut watcher = self.copy_all()?;
        loop {
            tokio::select! {
                biased;
                () = cancel.cancelled() => return Ok(()),
                _ = minute.tick() => {
                    self.put_config()?;
                    self.put_always(keyspace::HEARTBEAT.into(), self.time())?;
                }
                changed = synced.wait_for(|synced| *synced), if !ready && publisher_lives => {
                    publisher_lives = changed.is_ok();
                    ready = publisher_lives;
                    drop(changed);
                    if ready {
                        // What the publisher wrote last may not have come through the watch yet.
                        watcher = self.copy_all()?;
                        self.put_canaries()?;
                    }
                }
                batch = watcher.recv() => match batch {
                    Ok(batch) => for event in batch.events {
                        self.copy(event)?;
                    },
                    Err(error) => {
                        tracing::warn!(%error, "Projection fell behind; copying everything again");
                        watcher = self.copy_all()?;
                    }
                }
            }
        }
    }

    /// Makes the export's records equal to the cluster store's and watches from there on. Equal
    /// records are not touched, so readers see differences only.
    fn copy_all(&self) -> Result<Watcher, Error> {
        loop {
            let mut request = RangeRequest::prefix(Layout::State.root().as_bytes());
            let listed = self.cluster.range(&request).map_err(Error::List)?;
            let wanted = listed.kvs.iter().filter(|kv| self.is_exported(&kv.key));
            let wanted: std::collections::HashSet<Bytes> =
                wanted.map(|kv| kv.key.clone()).collect();
            request.keys_only = true;
            let present = self.export.range(&request).map_err(Error::List)?;
            for kv in present.kvs.iter().filter(|kv| !wanted.contains(&kv.key)) {
                self.export.delete(&kv.key);
            }
            for kv in listed.kvs.into_iter().filter(|kv| wanted.contains(&kv.key)) {
                self.put(kv)?;
            }
            let request = WatchRequest {
                range: KeyRange::prefix(Layout::State.root().as_bytes()),
                start_revision: listed.revision + 1,
                ..WatchRequest::default()
            };
            // Compacted between list and watch: only a burst larger than the history does that.
            if let Ok(watcher) = self.cluster.watch(request) {
                return Ok(watcher);
            }
        }
    }

    fn copy(&self, event: Event) -> Result<(), Error> {
        match event {
            Event::Put { kv, .. } if self.is_exported(&kv.key) => self.put(kv),
            Event::Delete { key, .. } if self.is_exported(&key) => {
                self.export.delete(&key);
                Ok(())
            }
            Event::Put { .. } | Event::Delete { .. } => Ok(()),
        }
    }

    /// Records of the own cluster only: no slave keys, no locks, nothing of our own.
    fn is_exported(&self, key: &[u8]) -> bool {
        let begins = |prefix: &String| {
            key.strip_prefix(prefix.as_bytes())
                .is_some_and(|suffix| !suffix.is_empty())
        };
        self.prefixes.iter().any(begins)
    }

    fn put(&self, kv: KeyValue) -> Result<(), Error> {
        let key = kv.key.clone();
        let put = self.export.put_if_changed(kv.key, kv.value, 0);
        put.map(drop).map_err(|source| put_error(&key, source))
    }

    fn put_always(&self, key: String, value: String) -> Result<(), Error> {
        let key = Bytes::from(key);
        let put = self.export.put(key.clone(), value.into(), 0);
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
        let key = Bytes::from(keyspace::cluster_config_key(&self.options.cluster));
        let put = self
            .export
            .put_if_changed(key.clone(), config.encode().into(), 0);
        put.map(drop).map_err(|source| put_error(&key, source))
    }

    /// Also for kinds without entries, and for the one that we never have.
    fn put_canaries(&self) -> Result<(), Error> {
        let cluster = &self.options.cluster;
        for kind in Kind::ALL {
            self.put_always(Layout::State.canary(kind, cluster), self.time())?;
        }
        let exports = keyspace::service_exports_canary(Layout::State, cluster);
        self.put_always(exports, self.time())
    }

    fn time(&self) -> String {
        rfc3339((self.clock)())
    }
}

fn put_error(key: &[u8], source: crate::store::Error) -> Error {
    Error::Put {
        key: String::from_utf8_lossy(key).into_owned(),
        source,
    }
}
