//! What the admin routes answer, as JSON; shared with the command line, which reads it back.
//! Names in the mesh part of the status follow Cilium's JSON (kebab-case).
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::{enforcer, peer::Layer, tls::inspect::Certificate, types::Labels};

pub mod maps;
pub mod monitor;
pub mod policy;
pub mod trace;

pub(super) fn label_texts(labels: &Labels) -> Vec<String> {
    labels.as_slice().iter().map(ToString::to_string).collect()
}

/// `/v1/status`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Status {
    /// This cluster.
    pub cluster: Cluster,
    /// This node's name.
    pub node_name: String,
    /// The agent's version.
    pub version: String,
    /// When this was written, Unix seconds by the agent's clock.
    pub time: u64,
    /// How long the agent runs.
    pub uptime_seconds: u64,
    /// Nothing is waited for.
    pub ready: bool,
    /// What is waited for, empty when ready.
    pub waiting: Vec<String>,
    /// The peers.
    pub cluster_mesh: ClusterMesh,
    /// What the own cluster holds, all its nodes.
    pub local: Counts,
    /// How many workloads this node has.
    pub num_local_endpoints: usize,
    /// Those without a known interface, as `namespace/name`: nothing is enforced for them.
    pub not_enforced: Vec<String>,
    /// What an operator must repair, one line each.
    pub errors: Vec<String>,
    /// Peers' entries that were refused, sorted by cluster and reason.
    pub rejected: Vec<Rejected>,
    /// Which policies are in force.
    pub policies: policy::Summary,
    /// The datapath's own status.
    pub datapath: enforcer::Status,
}

/// The own cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Cluster {
    /// Its name.
    pub name: String,
    /// Its number.
    pub id: u32,
    /// Largest cluster id of the mesh.
    pub max_connected_clusters: u32,
}

/// The mesh block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ClusterMesh {
    /// One per configured peer, sorted by name.
    pub clusters: Vec<RemoteCluster>,
    /// Services that peers share; those of several peers under one name are one.
    pub num_global_services: u64,
}

/// How many entries a cluster has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Counts {
    /// `nodes/v1`
    pub num_nodes: u64,
    /// `ip/v1`
    pub num_endpoints: u64,
    /// `identities/v1`
    pub num_identities: u64,
    /// `services/v1`
    pub num_shared_services: u64,
    /// `serviceexports/v1`
    pub num_service_exports: u64,
    /// `endpointslices/v1`
    pub num_endpoint_slices: u64,
}

/// One peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RemoteCluster {
    /// Its name.
    pub name: String,
    /// Its peer file.
    pub config_path: String,
    /// Connected, configuration retrieved, and all kinds synced.
    pub ready: bool,
    /// A connection to its etcd stands.
    pub connected: bool,
    /// One line about the connection, or about the lowest layer that fails.
    pub status: String,
    /// The lowest layer that fails; `None` if none does.
    pub failed_layer: Option<Layer>,
    /// The endpoint in use, or the one tried last: host and port.
    pub endpoint: Option<String>,
    /// When its server last sent something, Unix milliseconds; `None` before the first time.
    pub last_heard: Option<u64>,
    /// How much of it we hold.
    #[serde(flatten)]
    pub counts: Counts,
    /// How much of us it may see.
    pub exported: Counts,
    /// Failed attempts since start.
    pub num_failures: u64,
    /// When the last one was, Unix seconds.
    pub last_failure: Option<u64>,
    /// Its cluster-config.
    pub config: RemoteConfig,
    /// Which kinds are synced.
    pub synced: Synced,
    /// Kinds, as keys spell them, of which entries are known from the disk only.
    pub restored: Vec<String>,
    /// How many of its records wait for an address that another cluster has.
    pub num_claims_waiting: u64,
    /// Those that wait longest.
    pub claims_waiting: Vec<ClaimWaiting>,
    /// What works but is surely not meant, such as unknown keys in its file.
    pub warnings: Vec<String>,
    /// The certificates that its file names.
    pub certificates: Vec<PeerCertificate>,
}

/// A record that is not in force until another cluster gives up an address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ClaimWaiting {
    /// The kind, as keys spell it.
    pub kind: String,
    /// Its key behind the kind's prefix, cut if it is very long.
    pub key: String,
    /// The address or CIDR.
    pub prefix: String,
    /// The cluster that has it.
    pub holder_id: u32,
}

/// A certificate of a peer's file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PeerCertificate {
    /// `client` (ours, for this peer) or `ca` (whom we trust there).
    pub role: String,
    /// The file.
    pub path: String,
    /// Its public parts.
    #[serde(flatten)]
    pub certificate: Certificate,
}

/// What a peer says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RemoteConfig {
    /// We do not go on without it; always true.
    pub required: bool,
    /// It was read; the other fields mean something only then.
    pub retrieved: bool,
    /// Its id.
    pub cluster_id: u32,
    /// Data lives under `cilium/cache/`.
    pub kvstoremesh: bool,
    /// It writes canaries.
    pub sync_canaries: bool,
    /// It can export services by MCS-API (not null), and does (true).
    pub service_exports_enabled: Option<bool>,
    /// It writes endpoint slices.
    pub endpoint_slices: bool,
}

/// Kinds whose list is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Synced {
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

/// Entries refused for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejected {
    /// Whose.
    pub cluster: String,
    /// Why.
    pub reason: String,
    /// How often since start.
    pub count: u64,
    /// The last of them.
    pub last: Option<Offender>,
}

/// An entry that was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Offender {
    /// The kind, as keys spell it.
    pub kind: String,
    /// Its key behind the kind's prefix, cut if it is very long.
    pub key: String,
    /// What is wrong with it.
    pub error: String,
}

/// One of `/v1/nodes`, which is sorted by cluster and name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its cluster.
    pub cluster: String,
    /// Its name within the cluster.
    pub name: String,
    /// Its IPv4 address.
    pub ipv4: Option<Ipv4Addr>,
    /// Its IPv4 pod CIDR.
    pub ipv4_cidr: Option<String>,
    /// Its IPv6 address.
    pub ipv6: Option<Ipv6Addr>,
    /// Its IPv6 pod CIDR.
    pub ipv6_cidr: Option<String>,
    /// `local` or `clustermesh`.
    pub source: String,
}

/// One of `/v1/identities`, which is sorted by id and includes the reserved ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its number.
    pub id: u32,
    /// `source:key=value`, sorted by key.
    pub labels: Vec<String>,
    /// Who allocated it; `None` for reserved ones.
    pub cluster: Option<String>,
    /// Mod revision in that cluster's store.
    pub revision: Option<i64>,
}

/// One of `/v1/endpoints`, which is sorted by id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Its number on this node.
    pub id: u32,
    /// Its identity.
    pub identity: u32,
    /// `source:key=value`, sorted by key.
    pub labels: Vec<String>,
    /// Kubernetes namespace.
    pub namespace: String,
    /// Pod or container name.
    pub name: String,
    /// Own addresses.
    pub addresses: Vec<IpAddr>,
    /// Host-side interface; without one nothing is enforced.
    pub interface: Option<String>,
    /// `name:port/protocol`.
    pub named_ports: Vec<String>,
}

/// One of `/v1/ip`, which is sorted by prefix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ip {
    /// Address or CIDR.
    pub prefix: String,
    /// Its identity.
    pub identity: u32,
    /// The cluster that said so.
    pub cluster_id: u32,
}
