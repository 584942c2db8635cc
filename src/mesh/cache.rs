//! The cache keyspace: peers' values byte for byte under `cilium/cache/`, each peer's
//! cluster-config rewritten, and a canary per kind once its first list was copied completely.
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
}

impl Cache {
    pub(super) fn new(store: Store, max: MaxClusters) -> Self {
        Self { store, max }
    }

    /// Readers look for the configuration first, so it is written before any data.
    pub(super) fn connected(&self, name: &ClusterName, id: ClusterId) {
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
        let canary = Layout::Cache.canary(kind, name);
        if self.store.get(canary.as_bytes()).is_none() {
            // Readers test for the key and ignore the value.
            self.put(canary, Bytes::from_static(b"true"));
        }
    }

    /// The configuration goes first, so that readers stop before the data vanishes.
    pub(super) fn removed(&self, name: &ClusterName) {
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
