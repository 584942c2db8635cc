//! What all peers' actors and the readers of status share.
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
    time::{Duration, UNIX_EPOCH},
};

use tokio::{sync::watch, time::Instant};

use super::{Layer, Options, PeerStatus, Relayed, SyncedKinds};
use crate::{
    etcd::Heard,
    types::{ClusterId, ClusterName},
};

#[derive(Debug, Default)]
pub(super) struct Shared {
    peers: Mutex<BTreeMap<ClusterName, Slot>>,
    ids: Mutex<BTreeMap<ClusterId, ClusterName>>,
    /// Told when an id gets free.
    freed: watch::Sender<()>,
    /// The directory was listed at least once: all configured peers have a status.
    pub(super) scanned: AtomicBool,
}

#[derive(Debug)]
struct Slot {
    status: PeerStatus,
    /// What is wrong with the file that is not in use.
    refused: Option<String>,
    /// When the last connection last heard from the peer.
    heard: Option<Heard>,
    /// What the node says whose cache the last connection was to.
    relayed: Option<Relayed>,
    /// The only id that its file lets it have.
    pinned: Option<ClusterId>,
}

impl Shared {
    /// What is known of all peers now.
    pub(super) fn statuses(&self, options: &Options) -> Vec<PeerStatus> {
        lock(&self.peers)
            .values()
            .map(|slot| slot.tell(options))
            .collect()
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

    /// Notes where to read when the peer was last heard from.
    pub(super) fn heard(&self, name: &ClusterName, heard: Heard) {
        if let Some(slot) = lock(&self.peers).get_mut(name) {
            slot.heard = Some(heard);
        }
    }

    /// Forgets a peer: status and id.
    pub(super) fn remove(&self, name: &ClusterName) {
        lock(&self.peers).remove(name);
        self.release(name);
    }

    /// Frees a peer's id.
    pub(super) fn release(&self, name: &ClusterName) {
        lock(&self.ids).retain(|_, holder| holder != name);
        self.freed.send_replace(());
    }

    /// Notes what the importing node says of a peer.
    pub(super) fn relayed(&self, name: &ClusterName, relayed: Option<Relayed>) {
        if let Some(slot) = lock(&self.peers).get_mut(name) {
            slot.relayed = relayed;
        }
    }

    /// Notes the id that a peer's file pins.
    pub(super) fn pin(&self, name: &ClusterName, id: Option<ClusterId>) {
        if let Some(slot) = lock(&self.peers).get_mut(name) {
            slot.pinned = id;
        }
    }

    /// See [`super::Registry::ids`].
    pub(super) fn ids(&self) -> Option<Vec<ClusterId>> {
        let peers = lock(&self.peers);
        let ids = lock(&self.ids);
        let mut all = Vec::new();
        for (name, slot) in peers.iter() {
            let told = slot.status.config.map(|config| config.cluster_id);
            let reserved = ids.iter().filter(|(_, holder)| *holder == name);
            let reserved = reserved.map(|(id, _)| *id);
            let before = all.len();
            all.extend(told.into_iter().chain(slot.pinned).chain(reserved));
            if all.len() == before {
                return None;
            }
        }
        Some(all)
    }

    /// Changes each time that an id gets free.
    pub(super) fn freed(&self) -> watch::Receiver<()> {
        self.freed.subscribe()
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
                let before = ids.len();
                ids.retain(|_, holder| holder != name);
                let released = ids.len() < before;
                ids.insert(id, name.clone());
                if released {
                    self.freed.send_replace(());
                }
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
            layer: None,
            endpoint: None,
            warnings: Vec::new(),
            last_heard: None,
            certificate_expiry: None,
            etcd_cluster_id: None,
            config: None,
            synced: SyncedKinds::default(),
            num_failures: 0,
            last_failure: None,
        };
        Self {
            status,
            refused: None,
            heard: None,
            relayed: None,
            pinned: None,
        }
    }

    /// The status with what only the moment of asking knows.
    fn tell(&self, options: &Options) -> PeerStatus {
        let mut status = self.status.clone();
        if let Some(heard) = &self.heard {
            let silence = Instant::now().saturating_duration_since(heard.at());
            let wall = (options.clock)().checked_sub(silence);
            let wall = wall.and_then(|wall| wall.duration_since(UNIX_EPOCH).ok());
            status.last_heard = wall.and_then(|wall| u64::try_from(wall.as_millis()).ok());
            // Asked for a sign of life, and it did not come in the time of any round trip.
            if status.connected && silence > options.timing.probe + PROBE_PATIENCE {
                status.ready = false;
                status.layer = status.layer.or(Some(Layer::Heartbeat));
                status.status = format!("no answer for {} s; {}", silence.as_secs(), status.status);
            }
        }
        if let Some(relayed) = &self.relayed {
            relayed.show(&mut status);
        }
        if let Some(refused) = &self.refused {
            status.layer = Some(Layer::File);
            status.status = format!("{refused}; {}", status.status);
        }
        status
    }
}

/// How long the answer to a probe may take before it is missed.
const PROBE_PATIENCE: Duration = Duration::from_secs(1);

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

    #[test]
    fn ids_are_known_once_each_peer_has_told_kept_or_pinned_one() {
        let shared = Shared::default();
        let name = |text: &str| text.parse::<ClusterName>().unwrap();
        let id = |number| ClusterId::new(number, MaxClusters::C255).unwrap();
        assert_eq!(shared.ids(), Some(Vec::new()));
        for peer in ["north", "west"] {
            shared.refuse(&name(peer), None);
        }
        assert_eq!(shared.ids(), None);
        // Known from an earlier run, and dead.
        shared.reserve(&name("west"), id(2)).unwrap();
        assert_eq!(shared.ids(), None);
        shared.pin(&name("north"), Some(id(3)));
        assert_eq!(shared.ids(), Some(vec![id(3), id(2)]));
        shared.remove(&name("north"));
        assert_eq!(shared.ids(), Some(vec![id(2)]));
    }
}
