//! The cache keyspace: peers' values byte for byte under `cilium/cache/`, each peer's
//! cluster-config rewritten, and a canary per kind once its first list was copied completely.
use std::collections::HashSet;

use bytes::Bytes;

use crate::{
    keyspace::{self, Kind, Layout},
    store::Store,
    types::{ClusterId, ClusterName, MaxClusters},
};

#[derive(Debug)]
pub(super) struct Cache {
    store: Store,
    max: MaxClusters,
    /// Peers whose entries come over a connection of this node's own.
    direct: HashSet<ClusterName>,
}

impl Cache {
    pub(super) fn new(store: Store, max: MaxClusters) -> Self {
        let direct = HashSet::new();
        Self { store, max, direct }
    }

    /// Readers look for the configuration first, so it is written before any data.
    /// What was `relayed` by another node's cache is not for other nodes to follow.
    pub(super) fn connected(&mut self, name: &ClusterName, id: ClusterId, relayed: bool) {
        if relayed {
            self.direct.remove(name);
            let canaries = Layout::Relay.canaries(name);
            self.store.delete_prefix(canaries.as_bytes());
        } else {
            self.direct.insert(name.clone());
        }
        let capabilities = keyspace::Capabilities {
            synced_canaries: true,
            cached: true,
            max_connected_clusters: self.max.max_id(),
            ..Default::default()
        };
        let config = keyspace::ClusterConfig {
            id: id.get(),
            capabilities,
        };
        self.put(keyspace::cluster_config_key(name), config.encode().into());
    }

    pub(super) fn upsert(&self, name: &ClusterName, kind: Kind, suffix: &[u8], value: Bytes) {
        self.put_bytes(key(name, kind, suffix), value);
    }

    pub(super) fn delete(&self, name: &ClusterName, kind: Kind, suffix: &[u8]) {
        self.store.delete(&key(name, kind, suffix));
    }

    /// A kind's list is complete.
    pub(super) fn listed(&self, name: &ClusterName, kind: Kind) {
        let relay = self.direct.contains(name).then_some(Layout::Relay);
        for layout in [Layout::Cache].into_iter().chain(relay) {
            let canary = layout.canary(kind, name);
            if self.store.get(canary.as_bytes()).is_none() {
                // Readers test for the key and ignore the value.
                self.put(canary, Bytes::from_static(b"true"));
            }
        }
    }

    /// The configuration goes first, so that readers stop before the data vanishes.
    pub(super) fn removed(&mut self, name: &ClusterName) {
        self.direct.remove(name);
        self.store
            .delete(keyspace::cluster_config_key(name).as_bytes());
        self.store
            .delete_prefix(keyspace::synced_prefix(name).as_bytes());
        for kind in Kind::ALL {
            self.store
                .delete_prefix(Layout::Cache.prefix(kind, name).as_bytes());
        }
    }

    fn put(&self, key: String, value: Bytes) {
        self.put_bytes(key.into(), value);
    }

    fn put_bytes(&self, key: Bytes, value: Bytes) {
        if let Err(error) = self.store.put_if_changed(key, value, 0) {
            tracing::error!(%error, "Unable to write to the cache keyspace");
        }
    }
}

fn key(name: &ClusterName, kind: Kind, suffix: &[u8]) -> Bytes {
    let mut key = Layout::Cache.prefix(kind, name).into_bytes();
    key.extend_from_slice(suffix);
    key.into()
}
