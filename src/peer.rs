//! Who is configured as a peer, and the state of the session with each.
//!
//! [`Registry`] watches the directory of peer files and keeps one actor per peer; the actor runs
//! sessions (connect, check, follow) with backoff, and hands events to that peer's own channel.
//! Invariant: after `Removed` nothing of that peer follows before the next `Connected`, and a lost
//! connection never withdraws anything.
//! Invariant: a file that cannot be parsed or read changes nothing for a running peer.
//! Absent on purpose: knowing entries; the mesh does. Wall clock: it comes as an argument.
use std::{path::PathBuf, sync::Arc};

use crate::{
    keyspace::{ClusterConfig, KeyEvent},
    types::{ClusterId, ClusterName, IpPrefix},
};

pub use self::{
    config_file::{ConfigFile, ConfigFileError},
    registry::{Options, Registry},
};

mod actor;
mod config_file;
mod directory;
mod registry;
mod session;
mod shared;

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
}

/// Which kinds are synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct SyncedKinds {
    /// `nodes/v1`
    pub nodes: bool,
    /// `ip/v1`
    pub endpoints: bool,
    /// `identities/v1`
    pub identities: bool,
    /// `services/v1`
    pub services: bool,
}
