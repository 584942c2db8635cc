//! What the importing node tells the cluster's other nodes of each peer, beside the peer's entries in
//! its cache: they hear that node, and would take a dead peer for a live one.
use bytes::Bytes;

use super::{Layer, PeerStatus};
use crate::{
    keyspace::{KEY_OF_RELAYED_STATE, Layout},
    limits,
    types::ClusterName,
};

/// The state of a peer's session on the node that dials the peer.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Relayed {
    /// As in [`PeerStatus`].
    pub ready: bool,
    /// As in [`PeerStatus`].
    pub layer: Option<Layer>,
    /// As in [`PeerStatus`].
    pub status: String,
    /// As in [`PeerStatus`]; may be older than the truth by [`limits::RELAYED_HEARD_STEP`].
    pub last_heard: Option<u64>,
}

impl Relayed {
    /// The key in the cache of the node that imports.
    #[must_use]
    pub fn key(peer: &ClusterName) -> String {
        format!("{}{KEY_OF_RELAYED_STATE}", Layout::Relay.canaries(peer))
    }

    /// As it stands in the cache.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        // Nothing in it can fail to be written.
        serde_json::to_vec(self).unwrap_or_default().into()
    }

    /// `None` for what is not ours, such as another version's.
    pub(super) fn decode(value: &[u8]) -> Option<Self> {
        if value.len() > limits::RELAYED_BYTES_MAX {
            return None;
        }
        serde_json::from_slice(value).ok()
    }

    /// True unless nothing changed but when the peer was last heard from, and that not by much.
    #[must_use]
    pub fn is_news(&self, told: &Self) -> bool {
        let step = limits::RELAYED_HEARD_STEP.as_millis();
        let heard = |relayed: &Self| u128::from(relayed.last_heard.unwrap_or(0));
        let same = Self {
            last_heard: self.last_heard,
            ..told.clone()
        };
        same != *self || heard(self) >= heard(told).saturating_add(step)
    }

    /// Shows a peer whose entries come over another node as that node sees it.
    pub(super) fn show(&self, status: &mut PeerStatus) {
        status.last_heard = self.last_heard;
        if !self.ready && status.ready {
            status.ready = false;
            status.layer = self.layer;
            status.status = format!("{}; {}", self.status, status.status);
        }
    }
}

impl From<&PeerStatus> for Relayed {
    fn from(status: &PeerStatus) -> Self {
        Self {
            ready: status.ready,
            layer: status.layer,
            status: status.status.clone(),
            last_heard: status.last_heard,
        }
    }
}
