//! What all peers' actors and the readers of status share.
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
};

use super::{PeerStatus, SyncedKinds};
use crate::types::{ClusterId, ClusterName};

#[derive(Debug, Default)]
pub(super) struct Shared {
    peers: Mutex<BTreeMap<ClusterName, Slot>>,
    ids: Mutex<BTreeMap<ClusterId, ClusterName>>,
    /// The directory was listed at least once: all configured peers have a status.
    pub(super) scanned: AtomicBool,
}

#[derive(Debug)]
struct Slot {
    status: PeerStatus,
    /// What is wrong with the file that is not in use.
    refused: Option<String>,
}

impl Shared {
    pub(super) fn statuses(&self) -> Vec<PeerStatus> {
        let peers = lock(&self.peers);
        let merge = |slot: &Slot| {
            let mut status = slot.status.clone();
            if let Some(refused) = &slot.refused {
                status.status = format!("{refused}; {}", status.status);
            }
            status
        };
        peers.values().map(merge).collect()
    }

    /// Changes a peer's status; makes one if there is none.
    pub(super) fn update(&self, name: &ClusterName, change: impl FnOnce(&mut PeerStatus)) {
        let mut peers = lock(&self.peers);
        change(
            &mut peers
                .entry(name.clone())
                .or_insert_with(|| Slot::new(name))
                .status,
        );
    }

    /// Notes what is wrong with a peer's new file, or that nothing is.
    pub(super) fn refuse(&self, name: &ClusterName, why: Option<String>) {
        lock(&self.peers)
            .entry(name.clone())
            .or_insert_with(|| Slot::new(name))
            .refused = why;
    }

    /// Forgets a peer: status and id.
    pub(super) fn remove(&self, name: &ClusterName) {
        lock(&self.peers).remove(name);
        lock(&self.ids).retain(|_, holder| holder != name);
    }

    /// Reserves an id for a peer and releases the one it had. First come, first served.
    ///
    /// # Errors
    /// The holder, if that is another peer; nothing changes then.
    pub(super) fn reserve(&self, name: &ClusterName, id: ClusterId) -> Result<(), ClusterName> {
        let mut ids = lock(&self.ids);
        match ids.get(&id) {
            Some(holder) if holder != name => Err(holder.clone()),
            Some(_) => Ok(()),
            None => {
                ids.retain(|_, holder| holder != name);
                ids.insert(id, name.clone());
                Ok(())
            }
        }
    }
}

impl Slot {
    fn new(name: &ClusterName) -> Self {
        let status = PeerStatus {
            name: name.clone(),
            config_path: PathBuf::new(),
            ready: false,
            connected: false,
            status: "Waiting for initial connection to be established".to_owned(),
            etcd_cluster_id: None,
            config: None,
            synced: SyncedKinds::default(),
            num_failures: 0,
            last_failure: None,
        };
        Self {
            status,
            refused: None,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere leaves single values behind, never half of one.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::MaxClusters;

    #[test]
    fn an_id_belongs_to_the_first_who_asks_until_it_leaves() {
        let shared = Shared::default();
        let name = |text: &str| -> ClusterName { text.parse().unwrap() };
        let id = |id| ClusterId::new(id, MaxClusters::C255).unwrap();
        shared.reserve(&name("a"), id(1)).unwrap();
        shared.reserve(&name("a"), id(1)).unwrap();
        assert_eq!(shared.reserve(&name("b"), id(1)), Err(name("a")));
        shared.reserve(&name("a"), id(2)).unwrap();
        shared.reserve(&name("b"), id(1)).unwrap();
        assert_eq!(shared.reserve(&name("a"), id(1)), Err(name("b")));
        shared.remove(&name("b"));
        shared.reserve(&name("a"), id(1)).unwrap();
    }
}
