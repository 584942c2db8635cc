//! What a session's status says.
use super::{Machine, Phase, has_services};
use crate::{
    follower::Subject,
    keyspace::{ClusterConfig, Kind},
    peer::{Layer, PeerStatus},
};

impl Machine {
    /// Writes what is known into the peer's status.
    pub(in crate::peer) fn describe(&self, status: &mut PeerStatus) {
        status.connected = self.is_connected();
        status.config = self.remote;
        status.synced = self.seen.complete.iter().copied().collect();
        let waiting = match &self.phase {
            Phase::Following(config) => self.waiting(config),
            _ => None,
        };
        status.ready = matches!(self.phase, Phase::Following(_)) && waiting.is_none();
        let connection = || {
            let id = status.etcd_cluster_id.unwrap_or_default();
            let state = format!(
                "1/1 connected, leases=0, lock leases=0, has-quorum=true: endpoint status checks \
                 are disabled, ID: {id:x}"
            );
            match self.relay() {
                Some(node) => format!("cache of {node}: {state}"),
                None => format!("etcd: {state}"),
            }
        };
        (status.layer, status.status) = match (&self.trouble, waiting) {
            (Some((layer, text)), _) => (Some(*layer), text.clone()),
            (None, Some((layer, text))) => (layer, format!("{}; {text}", connection())),
            (None, None) if status.ready => (None, connection()),
            (None, None) => (None, INITIAL.to_owned()),
        };
        status.warnings = self.warnings();
    }

    /// What keeps a followed peer from being synced.
    pub(super) fn waiting(&self, config: &ClusterConfig) -> Option<(Option<Layer>, String)> {
        let Subject {
            kinds, canaries, ..
        } = self.subject(config);
        let list = |missing: Vec<&Kind>| {
            let words = missing.into_iter().map(|kind| kind.segment());
            words.collect::<Vec<_>>().join(", ")
        };
        let closed = kinds
            .iter()
            .filter(|k| canaries && !self.seen.open.contains(k));
        let closed: Vec<_> = closed.collect();
        if !closed.is_empty() {
            let text = format!("waiting for the canaries of {}", list(closed));
            return Some((Some(Layer::Canaries), text));
        }
        let unread = kinds.iter().filter(|k| !self.seen.complete.contains(k));
        let unread: Vec<_> = unread.collect();
        (!unread.is_empty()).then(|| (None, format!("listing {}", list(unread))))
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings = self
            .file
            .as_ref()
            .map_or_else(Vec::new, |f| f.warnings.clone());
        if let Phase::Following(config) = &self.phase
            && !has_services(config)
        {
            let text = "the peer exports endpoint slices only: it has no services for readers of \
                        services/v1; set its clustermesh-service-v2 to prefer-legacy to see them";
            warnings.push(text.to_owned());
        }
        warnings
    }
}

const INITIAL: &str = "Waiting for initial connection to be established";
