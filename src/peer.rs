//! Who is configured as a peer, and the state of the session with each.
//!
//! [`Registry`] watches the directory of peer files and keeps one actor per peer. A pure state
//! machine decides what the actor does next (which endpoint, how long to wait, what to accept); the
//! actor dials, watches, and hands events to that peer's own channel.
//! Invariant: after `Removed` nothing of that peer follows before the next `Connected`, and a lost
//! connection never withdraws anything.
//! Invariant: a file that cannot be parsed or read changes nothing for a running peer.
//! Absent on purpose: knowing entries; the mesh does. Wall clock, chance and the way to dial: they
//! come as arguments.
use std::{path::PathBuf, sync::Arc};

use crate::{
    keyspace::{ClusterConfig, KeyEvent, Kind},
    types::{ClusterId, ClusterName, IpPrefix},
};

pub use self::{
    config_file::{ConfigFile, ConfigFileError},
    options::{Dial, Options, Random, Timing},
    pending::Pending,
    registry::Registry,
    relayed::Relayed,
    route::Route,
};

mod actor;
mod config_file;
mod directory;
pub mod inspect;
mod link;
mod machine;
mod options;
mod pending;
mod registry;
mod relayed;
mod route;
mod shared;
#[cfg(test)]
mod tests;

/// What the mesh learns of one peer, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberEvent {
    /// A session begins and the peer's configuration is accepted; lists follow, or changes
    /// behind what was sent before. A peer that came
    /// back with another id was `Removed` first.
    Connected {
        /// The peer.
        name: ClusterName,
        /// Its cluster id, reserved for it until it is removed.
        id: ClusterId,
        /// Its configuration as it wrote it.
        config: ClusterConfig,
        /// The only ranges that it may claim addresses in; empty if its file lists none.
        allowed_cidrs: Arc<[IpPrefix]>,
        /// The entries come by the cache of another node of the own cluster.
        relayed: bool,
    },
    /// The operator's file says this, whether or not the peer is in reach; what is known of the
    /// peer, from the disk too, must not go beyond it.
    Terms {
        /// The peer.
        name: ClusterName,
        /// The only id that it may have.
        cluster_id: Option<ClusterId>,
        /// As in `Connected`.
        allowed_cidrs: Arc<[IpPrefix]>,
    },
    /// Changes, in order.
    Keys {
        /// The peer.
        name: ClusterName,
        /// Never empty.
        events: Vec<KeyEvent>,
    },
    /// The peer was out of reach for as long as its services may outlive it: withdraw those.
    Expired {
        /// The peer.
        name: ClusterName,
    },
    /// The operator took the peer's file away, or the peer's id changed: withdraw all of it.
    Removed {
        /// The peer.
        name: ClusterName,
    },
}

/// What is known of one peer; only status, never data. Field names follow Cilium's JSON.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct PeerStatus {
    /// From the file name.
    pub name: ClusterName,
    /// The file really read.
    pub config_path: PathBuf,
    /// Connected, configuration retrieved, and all kinds synced.
    pub ready: bool,
    /// A connection to its etcd stands.
    pub connected: bool,
    /// One line about the lowest layer that fails, or the connection.
    pub status: String,
    /// The lowest layer that fails; `None` if none does.
    pub layer: Option<Layer>,
    /// The endpoint in use, or the one tried last: host and port.
    pub endpoint: Option<String>,
    /// What works but is surely not meant, such as unknown keys in the file.
    pub warnings: Vec<String>,
    /// When its server last sent something, Unix milliseconds; `None` before the first time.
    pub last_heard: Option<u64>,
    /// When the certificate expires that is shown to the peer, Unix seconds; `None` without one.
    pub certificate_expiry: Option<i64>,
    /// Its etcd's cluster id.
    pub etcd_cluster_id: Option<u64>,
    /// What its cluster-config says; `None` until retrieved.
    pub config: Option<RemoteConfig>,
    /// Kinds that are complete in this connection, by a list or because nothing was missed.
    pub synced: SyncedKinds,
    /// Failed attempts since start.
    pub num_failures: u64,
    /// When the last one was, Unix seconds.
    pub last_failure: Option<u64>,
}

/// What a session stands on, lowest first. A layer that fails hides those above it.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Layer {
    /// The peer file, and the files that it names.
    File,
    /// The address of the endpoint's host.
    Resolve,
    /// The TCP connection.
    Tcp,
    /// Handshake, certificates and HTTP/2 on top of it.
    Tls,
    /// The right to read.
    Authorization,
    /// The peer's cluster-config: there, valid and acceptable.
    ClusterConfig,
    /// The peer's word that its kinds are complete.
    Canaries,
    /// The peer's signs of life, and that they are of one store.
    Heartbeat,
}

/// The parts of a peer's cluster-config that matter to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct RemoteConfig {
    /// Its id.
    pub cluster_id: ClusterId,
    /// Data lives under `cilium/cache/`.
    pub kvstoremesh: bool,
    /// It writes canaries.
    pub sync_canaries: bool,
    /// It can export services by MCS-API (`Some`), and does (`true`).
    pub service_exports_enabled: Option<bool>,
    /// It writes endpoint slices.
    pub endpoint_slices: bool,
}

/// Which kinds are synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct SyncedKinds {
    /// `nodes/v1`
    pub nodes: bool,
    /// `ip/v1`
    pub endpoints: bool,
    /// `identities/v1`
    pub identities: bool,
    /// `services/v1`
    pub services: bool,
    /// `serviceexports/v1`; true also where the peer does not write them.
    pub service_exports: bool,
    /// `endpointslices/v1`; true also where the peer does not write them.
    pub endpoint_slices: bool,
}

impl SyncedKinds {
    /// Whether this one is.
    #[must_use]
    pub const fn has(self, kind: Kind) -> bool {
        match kind {
            Kind::Nodes => self.nodes,
            Kind::Ips => self.endpoints,
            Kind::Identities => self.identities,
            Kind::Services => self.services,
            Kind::ServiceExports => self.service_exports,
            Kind::EndpointSlices => self.endpoint_slices,
        }
    }
}

impl FromIterator<Kind> for SyncedKinds {
    fn from_iter<I: IntoIterator<Item = Kind>>(kinds: I) -> Self {
        let mut synced = Self::default();
        for kind in kinds {
            *match kind {
                Kind::Nodes => &mut synced.nodes,
                Kind::Ips => &mut synced.endpoints,
                Kind::Identities => &mut synced.identities,
                Kind::Services => &mut synced.services,
                Kind::ServiceExports => &mut synced.service_exports,
                Kind::EndpointSlices => &mut synced.endpoint_slices,
            } = true;
        }
        synced
    }
}
