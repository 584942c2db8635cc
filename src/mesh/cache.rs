//! The cache keyspace: peers' values byte for byte under `cilium/cache/`, each peer's
//! cluster-config rewritten, and a canary per kind once its first list was copied completely.
//! Invariant: a peer's configuration is there before its data and gone before it. The data of a
//! removed peer stays for a while, and for good if the peer returns with its id.
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::Terms;
use crate::{
    keyspace::{self, Capabilities, ClusterConfig, Kind, Layout},
    limits,
    store::{RangeRequest, Store},
    types::{ClusterId, ClusterName},
};

#[derive(Debug)]
pub(super) struct Cache {
    store: Store,
    /// Peers that were removed and whose data is still there.
    leaving: HashMap<ClusterName, Leaving>,
    /// Kinds of peers that returned, whose data from before was not compared with a list yet.
    leftover: Vec<(ClusterName, Kind)>,
    /// How long the data of a removed peer stays.
    pub(super) grace: Duration,
}

#[derive(Debug, Clone, Copy)]
struct Leaving {
    id: ClusterId,
    until: Instant,
}

impl Cache {
    pub(super) fn new(store: Store) -> Self {
        Self {
            store,
            leaving: HashMap::new(),
            leftover: Vec::new(),
            grace: limits::CACHE_GRACE,
        }
    }

    /// Readers look for the configuration first, so it is written before any data. Kinds that the
    /// peer does not offer are complete at once. What was relayed by another node's cache is not
    /// for other nodes to follow.
    pub(super) fn connected(&mut self, name: &ClusterName, terms: &Terms) {
        match self.leaving.remove(name) {
            Some(leaving) if leaving.id == terms.id => {
                let kinds = Kind::ALL.into_iter().map(|kind| (name.clone(), kind));
                self.leftover.extend(kinds);
            }
            Some(_) => self.purge(name),
            None => {}
        }
        if terms.relayed {
            let canaries = Layout::Relay.canaries(name);
            self.store.delete_prefix(canaries.as_bytes());
        }
        let key = keyspace::cluster_config_key(name);
        self.put(key.into(), rewritten(terms).encode().into());
        for kind in Kind::ALL {
            if !terms.config.capabilities.offers(kind) {
                let prefix = Layout::Cache.prefix(kind, name);
                self.store.delete_prefix(prefix.as_bytes());
                self.canaries(name, kind, terms.relayed);
            }
        }
    }

    pub(super) fn upsert(&self, key: Bytes, value: Bytes) {
        self.put(key, value);
    }

    pub(super) fn delete(&self, key: &[u8]) {
        self.store.delete(key);
    }

    pub(super) fn value(&self, key: &[u8]) -> Option<Bytes> {
        self.store.get(key).map(|kv| kv.value)
    }

    /// A kind's list is complete; `known` tells of a suffix whether it is the peer's now.
    pub(super) fn listed(
        &mut self,
        name: &ClusterName,
        kind: Kind,
        relayed: bool,
        known: impl Fn(&[u8]) -> bool,
    ) {
        let leftover = |(n, k): &(ClusterName, Kind)| n == name && *k == kind;
        if self.leftover.iter().any(leftover) {
            self.leftover.retain(|entry| !leftover(entry));
            self.sweep(name, kind, known);
        }
        self.canaries(name, kind, relayed);
    }

    /// Readers stop at once; the data goes at its time.
    pub(super) fn removed(&mut self, name: &ClusterName, id: ClusterId, now: Instant) {
        self.store
            .delete(keyspace::cluster_config_key(name).as_bytes());
        self.leftover.retain(|(n, _)| n != name);
        let until = now + self.grace;
        self.leaving.insert(name.clone(), Leaving { id, until });
    }

    /// Deletes what removed peers left, as far as it is time.
    pub(super) fn expire(&mut self, now: Instant) {
        let due = self.leaving.extract_if(|_, leaving| leaving.until <= now);
        let due: Vec<ClusterName> = due.map(|(name, _)| name).collect();
        for name in due {
            self.purge(&name);
        }
    }

    /// When `expire` has something to do.
    pub(super) fn expires(&self) -> Option<Instant> {
        self.leaving.values().map(|leaving| leaving.until).min()
    }

    /// Deletes all of a peer's data, canaries first.
    pub(super) fn purge(&mut self, name: &ClusterName) {
        self.leaving.remove(name);
        self.leftover.retain(|(n, _)| n != name);
        self.store
            .delete_prefix(keyspace::synced_prefix(name).as_bytes());
        for kind in Kind::ALL {
            self.store
                .delete_prefix(Layout::Cache.prefix(kind, name).as_bytes());
        }
    }

    fn sweep(&self, name: &ClusterName, kind: Kind, known: impl Fn(&[u8]) -> bool) {
        let prefix = Layout::Cache.prefix(kind, name);
        let request = RangeRequest {
            keys_only: true,
            ..RangeRequest::prefix(prefix.as_bytes())
        };
        let Ok(found) = self.store.range(&request) else {
            return;
        };
        for kv in &found.kvs {
            if !known(&kv.key[prefix.len()..]) {
                self.store.delete(&kv.key);
            }
        }
    }

    fn canaries(&self, name: &ClusterName, kind: Kind, relayed: bool) {
        let relay = (!relayed).then_some(Layout::Relay);
        for layout in [Layout::Cache].into_iter().chain(relay) {
            // Readers test for the key and ignore the value.
            let canary = layout.canary(kind, name);
            self.put(canary.into(), Bytes::from_static(b"true"));
        }
    }

    fn put(&self, key: Bytes, value: Bytes) {
        if let Err(error) = self.store.put_if_changed(key, value, 0) {
            tracing::error!(%error, "Unable to write to the cache keyspace");
        }
    }
}

/// A peer's configuration as it reads in the cache.
fn rewritten(terms: &Terms) -> ClusterConfig {
    let theirs = &terms.config.capabilities;
    ClusterConfig {
        id: terms.id.get(),
        capabilities: Capabilities {
            synced_canaries: true,
            cached: true,
            max_connected_clusters: theirs.max_connected_clusters,
            service_exports_enabled: theirs.service_exports_enabled,
            endpoint_slices_export_mode: theirs.endpoint_slices_export_mode.clone(),
        },
    }
}
