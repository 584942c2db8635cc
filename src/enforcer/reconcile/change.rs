//! What the reconciler is told, and what it tells.
use std::collections::{BTreeMap, BTreeSet};

use crate::{
    mesh::{IpTarget, Sample},
    policy::{MapDelta, Mark},
    types::{ClusterId, EndpointEvent, EndpointId, IpPrefix},
};

/// Something the kernel must follow. Order matters: a cluster's addresses and the policy entries
/// that follow from its identities come before its [`Change::Synced`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// From the policy engine.
    Map(MapDelta),
    /// An address belongs to an identity (`Some`) or to nobody known (`None`).
    Ip {
        /// The address or CIDR.
        prefix: IpPrefix,
        /// Owner and identity.
        target: Option<IpTarget>,
    },
    /// This node's workloads; its `Synced` sweeps those of a former process.
    Endpoint(EndpointEvent),
    /// Everything known of a cluster was sent: what is left of a former process is stale.
    Synced {
        /// The cluster.
        cluster: ClusterId,
    },
    /// The cluster is not a member any more.
    RemovedCluster {
        /// The cluster.
        cluster: ClusterId,
    },
    /// These are all clusters there can be: restored entries of any other are stale.
    Members(Vec<ClusterId>),
    /// Everything before this followed from a batch whose way is measured.
    Sampled(Sample),
    /// Everything before this followed from policies whose way is followed.
    Mark(Mark),
    /// Interfaces came or went.
    InterfacesChanged,
    /// Which events somebody listens for, besides drops and what only audit mode lets pass.
    Reports {
        /// Flows that policy allows.
        verdicts: bool,
        /// New flows.
        traces: bool,
    },
}

/// How the enforcer is doing; the newest value only.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Status {
    /// Batches applied, the first reconcile included.
    pub generation: u64,
    /// All of this node's endpoints were told.
    pub endpoints_synced: bool,
    /// Clusters, by number, of which everything known was told.
    pub clusters_synced: BTreeSet<u32>,
    /// Endpoints with programs on their interface.
    pub enforced: usize,
    /// Endpoints that should be enforced and are not, or not fully, and why.
    pub problems: BTreeMap<EndpointId, String>,
    /// Entries in both ipcache maps.
    pub ipcache: usize,
    /// Prefixes that rules name.
    #[serde(default)]
    pub cidrs: usize,
    /// Entries in the policy map.
    pub policy: usize,
    /// Entries of a former process that nobody confirmed or took back yet.
    pub restored: usize,
    /// Current epoch.
    pub epoch: u32,
    /// Writes that failed and are tried again.
    pub pending: usize,
    /// Failed kernel calls since the start.
    pub errors_total: u64,
    /// The newest of them, with its causes.
    pub last_error: Option<String>,
}
