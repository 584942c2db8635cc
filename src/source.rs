//! Where local nodes, workloads and services come from.
//!
//! A source turns what it watches into [`LocalEvent`]s: whole values, only when they changed, and
//! [`LocalEvent::Synced`] once after everything that was there at the start. Identity allocation and
//! the keyspace are `publish`'s. [`manifests`] are for machines without Kubernetes; [`kvstore`] is the
//! etcd of a Cilium cluster, whose records need no making and whose identities are given.
use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use bytes::Bytes;

use crate::{
    keyspace::Kind,
    types::{IpPrefix, Labels, NamedPort},
};

pub mod desired;
pub mod kvstore;
pub mod labels;
pub mod manifests;

/// A change of what is local. Each value replaces the previous one of its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LocalEvent {
    /// A node is new or changed.
    NodeUpsert(LocalNode),
    /// The node of this name is gone.
    NodeDelete(String),
    /// A workload is new or changed.
    WorkloadUpsert(LocalWorkload),
    /// A workload is gone.
    WorkloadDelete(WorkloadKey),
    /// A service is new or changed. Only services to be exported are sent.
    ServiceUpsert(LocalService),
    /// A service is gone, or is no longer exported.
    ServiceDelete(ServiceKey),
    /// A finished record is new or changed.
    RecordUpsert(LocalRecord),
    /// A finished record is gone.
    RecordDelete {
        /// Its kind.
        kind: Kind,
        /// Its key behind the kind's prefix.
        suffix: Bytes,
    },
    /// Everything that the source knew at its start was sent; comes exactly once.
    Synced,
}

/// A node of the own cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LocalNode {
    /// Its name; the key.
    pub name: String,
    /// Addresses with their type as Cilium spells it (`InternalIP`, `CiliumInternalIP`, …); order
    /// matters: the first of a type and family wins.
    pub addresses: Vec<(String, IpAddr)>,
    /// IPv4 ranges of its pods, the primary one first.
    pub ipv4_cidrs: Vec<IpPrefix>,
    /// IPv6 ranges of its pods, the primary one first.
    pub ipv6_cidrs: Vec<IpPrefix>,
    /// Labels, verbatim.
    pub labels: BTreeMap<String, String>,
    /// Annotations, verbatim.
    pub annotations: BTreeMap<String, String>,
    /// The address that answers health probes over IPv4.
    pub health_ipv4: Option<IpAddr>,
    /// The address that answers health probes over IPv6.
    pub health_ipv6: Option<IpAddr>,
}

/// What names a workload.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkloadKey {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Pod or container name.
    pub name: String,
}

/// A workload of the own cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalWorkload {
    /// What names it.
    pub key: WorkloadKey,
    /// Identity-relevant labels: filtered, with those of namespace, cluster and service account.
    pub labels: Arc<Labels>,
    /// Own addresses, as reported, without repetition; at least one.
    pub addresses: Vec<IpAddr>,
    /// The address of the node it runs on.
    pub host_ip: Option<IpAddr>,
    /// Host-side interface; `None` if unknown.
    pub interface: Option<String>,
    /// Ports with names, sorted by name.
    pub named_ports: Vec<NamedPort>,
    /// True if it runs on this node, so that it can be enforced here.
    pub this_node: bool,
    /// Nothing of it is dropped by policy, only reported.
    pub audit: bool,
}

/// A record as it is to be published: the own cluster's, its identity given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalRecord {
    /// Its kind.
    pub kind: Kind,
    /// Its key behind the kind's prefix.
    pub suffix: Bytes,
    /// Its bytes.
    pub value: Bytes,
}

/// What names a service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Service name.
    pub name: String,
}

/// A port of a service address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServicePort {
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// The number, host byte order.
    pub port: u16,
}

/// Ports by name (`""` if it has none).
pub type ServicePorts = BTreeMap<String, ServicePort>;

/// A service to be exported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalService {
    /// What names it.
    pub key: ServiceKey,
    /// Its own addresses; empty if headless.
    pub frontends: BTreeMap<IpAddr, ServicePorts>,
    /// Where it balances to; may be empty.
    pub backends: BTreeMap<IpAddr, ServicePorts>,
    /// Host names of backends that have one.
    pub hostnames: BTreeMap<IpAddr, String>,
    /// Labels of the service.
    pub labels: BTreeMap<String, String>,
    /// Its pod selector, informational.
    pub selector: BTreeMap<String, String>,
    /// It spans clusters.
    pub global: bool,
    /// Its backends are offered to other clusters.
    pub shared: bool,
}

/// Something wrong in one file; the file's last good version stays in use.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct FileError {
    /// The file's path.
    pub file: String,
    /// The line within the file, from 1; 0 if none can be named.
    pub line: u64,
    /// What is wrong, with the path of the field.
    pub message: String,
}

/// What a source reports of itself, for status views.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize)]
pub struct Status {
    /// Everything sent so far includes all that was there at the start.
    pub synced: bool,
    /// Files in use, bad ones with a last good version included.
    pub files: usize,
    /// Current errors, sorted by file and line.
    pub errors: Vec<FileError>,
    /// How many records were refused since the start, by reason; only of a source that has such.
    pub rejected: Vec<(&'static str, u64)>,
}
