//! State of all clusters, the own one included.
use std::sync::Arc;

use crate::types::{ClusterId, IdentityId, IpPrefix, Labels};

/// A change that policy and datapath must follow. Keyed by entry: only the newest per key matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delta {
    /// An identity's labels are known (`Some`) or gone (`None`).
    Identity {
        /// The identity.
        id: IdentityId,
        /// Its labels.
        labels: Option<Arc<Labels>>,
    },
    /// An address belongs to an identity (`Some`) or to nobody known (`None`).
    Ip {
        /// The address or CIDR.
        prefix: IpPrefix,
        /// Owner and identity.
        target: Option<IpTarget>,
    },
    /// All of a cluster's identities and addresses known at its list were sent: what the kernel
    /// still holds of that cluster and was not sent is stale.
    Synced {
        /// The cluster.
        cluster: ClusterId,
    },
    /// The cluster is not a member any more; its entries were sent as gone before.
    Removed {
        /// The cluster.
        cluster: ClusterId,
    },
}

/// What an address maps to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IpTarget {
    /// Identity that packets from this address carry.
    pub identity: IdentityId,
    /// The cluster that said so.
    pub cluster: ClusterId,
}

/// The read side: concurrent maps that admin, events and metrics look into. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// All clusters' nodes, by cluster and name.
    pub nodes: Arc<dashmap::DashMap<(crate::types::ClusterName, String), NodeView>>,
    /// All clusters' identities (reserved ones are not in here).
    pub identities: Arc<dashmap::DashMap<IdentityId, IdentityView>>,
    /// All clusters' addresses.
    pub addresses: Arc<dashmap::DashMap<IpPrefix, IpTarget>>,
    /// Entries rejected, by cluster and reason.
    pub rejected: Arc<dashmap::DashMap<(crate::types::ClusterName, &'static str), u64>>,
    /// Entry counts by cluster and kind.
    pub counts: Arc<dashmap::DashMap<(crate::types::ClusterName, crate::keyspace::Kind), u64>>,
}

/// A node as operators list it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct NodeView {
    /// First IPv4 InternalIP, else ExternalIP, else any.
    pub ipv4: Option<std::net::Ipv4Addr>,
    /// Its IPv4 pod CIDR.
    pub ipv4_cidr: Option<IpPrefix>,
    /// First IPv6 address, same order.
    pub ipv6: Option<std::net::Ipv6Addr>,
    /// Its IPv6 pod CIDR.
    pub ipv6_cidr: Option<IpPrefix>,
    /// `local` or `clustermesh`.
    pub source: &'static str,
}

/// An identity with its provenance.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct IdentityView {
    /// Its labels.
    pub labels: Arc<Labels>,
    /// The cluster that allocated it.
    pub cluster: crate::types::ClusterName,
    /// Mod revision in that cluster's store.
    pub revision: i64,
}
