//! The ClusterMesh keyspace: key text, record bytes, and the events that carry them.
//! Pure and total: undecodable bytes yield a rejection, never a panic.
use bytes::Bytes;

pub use self::{
    check::{Rejection, decode_identity, identity_of_key, parse_identity_id},
    exports::{ClientIpConfig, ExportPort, ServiceExportRecord, SessionAffinityConfig, Timestamp},
    gojson::Mask,
    layout::{
        HEARTBEAT, KEY_OF_RELAYED_STATE, Layout, cluster_config_key, is_component, parse_canary,
        synced_prefix,
    },
    records::{
        Capabilities, Cidr, ClusterConfig, IpRecord, NodeAddress, NodeRecord, ServicePort,
        ServicePorts, ServiceRecord,
    },
    slices::EndpointSlice,
};

mod check;
mod exports;
mod gojson;
pub mod identity;
pub mod layout;
mod records;
mod slices;
#[cfg(test)]
mod tests;

/// The kinds of entries that clusters exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// `nodes/v1`
    Nodes,
    /// `identities/v1`
    Identities,
    /// `ip/v1`
    Ips,
    /// `services/v1`
    Services,
    /// `serviceexports/v1`
    ServiceExports,
    /// `endpointslices/v1`
    EndpointSlices,
}

impl KeyEvent {
    /// What it is about.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Upsert { kind, .. }
            | Self::Delete { kind, .. }
            | Self::BeginList { kind }
            | Self::EndList { kind } => *kind,
        }
    }
}

/// One change of a member's keyspace as its follower saw it. `suffix` is the key behind the kind's
/// prefix (node name, decimal id, address, `namespace/name`), so that an entry is the same entry
/// under `state/` and under `cache/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyEvent {
    /// Created or changed; the bytes are not decoded yet.
    Upsert {
        /// What it is.
        kind: Kind,
        /// Key behind the kind's prefix.
        suffix: Bytes,
        /// Value as stored, shared by all who serve it.
        value: Bytes,
        /// The member store's mod revision; comparable within that store only.
        revision: i64,
    },
    /// Deleted, or found missing by a relist.
    Delete {
        /// What it was.
        kind: Kind,
        /// Key behind the kind's prefix.
        suffix: Bytes,
    },
    /// A (re)list of the kind begins: entries not seen again until `EndList` are stale.
    BeginList {
        /// The kind listed.
        kind: Kind,
    },
    /// The list is complete: sweep what `BeginList` marked and no `Upsert` confirmed.
    EndList {
        /// The kind listed.
        kind: Kind,
    },
}
