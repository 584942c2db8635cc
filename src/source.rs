//! Where local workloads come from.
//!
//! Every source (YAML files, a container engine, an API server) speaks the same language: whole
//! values as [`LocalEvent`]s over a bounded channel, in any order of kinds, with one
//! [`LocalEvent::Synced`] after everything that existed at the start. A repeated value is harmless.
use std::{collections::BTreeMap, fmt, net::IpAddr, sync::Arc};

use crate::types::{IpPrefix, Labels, NamedPort};

/// One change of what this cluster's sources know. Upserts carry the whole object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LocalEvent {
    /// A node is new or changed.
    NodeUpsert(LocalNode),
    /// The node with this name is gone.
    NodeDelete(String),
    /// A workload is new or changed.
    WorkloadUpsert(LocalWorkload),
    /// A workload is gone.
    WorkloadDelete(ObjectKey),
    /// A service is new or changed.
    ServiceUpsert(LocalService),
    /// A service is gone.
    ServiceDelete(ObjectKey),
    /// Everything that existed when the source started was sent. Sent once.
    Synced,
}

/// Namespace and name of an object; orders by namespace, then name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Name within the namespace.
    pub name: String,
}

impl ObjectKey {
    /// The key of `name` in `namespace`.
    #[must_use]
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

/// `namespace/name`.
impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A node of the own cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LocalNode {
    /// Node name, unique in the cluster.
    pub name: String,
    /// Type (`InternalIP`, `ExternalIP`, `CiliumInternalIP`, …) and address, in the order of the
    /// object: the first of a type and family wins.
    pub addresses: Vec<(String, IpAddr)>,
    /// IPv4 pod CIDRs; the first is the primary one.
    pub ipv4_cidrs: Vec<IpPrefix>,
    /// IPv6 pod CIDRs; the first is the primary one.
    pub ipv6_cidrs: Vec<IpPrefix>,
    /// Labels of the node object.
    pub labels: BTreeMap<String, String>,
    /// Annotations of the node object.
    pub annotations: BTreeMap<String, String>,
}

/// A workload (a pod, a container) of the own cluster, on this node or another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalWorkload {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Pod or container name.
    pub name: String,
    /// Identity-relevant labels, filtered and with the namespace, service-account and cluster
    /// labels already in.
    pub labels: Arc<Labels>,
    /// Own addresses; empty while none are assigned, then it is not published.
    pub addresses: Vec<IpAddr>,
    /// Address of the hosting node (its InternalIP); `None` if not known yet.
    pub host_ip: Option<IpAddr>,
    /// Name of the hosting node.
    pub node_name: String,
    /// Host-side interface, known for workloads of this node only.
    pub interface: Option<String>,
    /// Ports with names, in any order.
    pub named_ports: Vec<NamedPort>,
    /// It runs on the node of this process.
    pub this_node: bool,
}

impl LocalWorkload {
    /// Its namespace and name.
    #[must_use]
    pub fn key(&self) -> ObjectKey {
        ObjectKey::new(self.namespace.as_str(), self.name.as_str())
    }
}

/// A service of the own cluster with its backends. Only those with `global` and `shared` are
/// published; the source has already left out what never is (ExternalName, no cluster address, no
/// EndpointSlice at all).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LocalService {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Service name.
    pub name: String,
    /// Cluster addresses with their ports; empty for a headless service.
    pub frontends: BTreeMap<IpAddr, Vec<NamedPort>>,
    /// Usable backends with their ports; an unnamed port has the name `""`.
    pub backends: BTreeMap<IpAddr, Vec<NamedPort>>,
    /// Host names of backends that have one.
    pub hostnames: BTreeMap<IpAddr, String>,
    /// Labels of the service object.
    pub labels: BTreeMap<String, String>,
    /// Pod selector of the service.
    pub selector: BTreeMap<String, String>,
    /// `service.cilium.io/global` (or its alias) is true.
    pub global: bool,
    /// `service.cilium.io/shared` (or its alias) is true; true by default for a global service.
    pub shared: bool,
}

impl LocalService {
    /// Its namespace and name.
    #[must_use]
    pub fn key(&self) -> ObjectKey {
        ObjectKey::new(self.namespace.as_str(), self.name.as_str())
    }
}
