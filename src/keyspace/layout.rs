//! Key text: where each kind lives, in a producer's tree and in a mirror's.
use super::Kind;
use crate::types::ClusterName;

/// Written every minute by whoever serves a keyspace; RFC 3339 text.
pub const HEARTBEAT: &str = "cilium/.heartbeat";

/// Prefix of all cluster configurations, one key per cluster.
pub const CLUSTER_CONFIG_PREFIX: &str = "cilium/cluster-config/";

/// Master keys of identities: decimal id to label text.
pub const IDENTITY_ID_PREFIX: &str = "cilium/state/identities/v1/id/";

/// Slave keys of identities: label text and node address to decimal id.
pub const IDENTITY_VALUE_PREFIX: &str = "cilium/state/identities/v1/value/";

/// Mutexes of label sets: label text and lease id to nothing.
pub const IDENTITY_LOCKS_PREFIX: &str = "cilium/state/identities/v1/locks/";

/// Says which node of the cluster collects unused identities; its name, on a lease.
pub const COLLECTOR_LOCK: &str = "tombolo/locks/identity-collector";

/// Says which node of the cluster imports its peers, and where the others read its cache; JSON, on
/// a lease.
pub const IMPORTER_LOCK: &str = "tombolo/importer";

/// The policies of the cluster: kind, namespace or `_`, and name to their document.
pub const POLICIES_PREFIX: &str = "tombolo/policies/v1/";

/// How far each node follows these policies; JSON, on a lease of the node.
pub const POLICY_STATUS_PREFIX: &str = "tombolo/policy-status/v1/";

/// What the keys of a node's leases start with: each lies on the lease that it names, so that a
/// process that starts anew knows which keys its predecessor wrote.
#[must_use]
pub fn lease_tags(node: &str) -> String {
    format!("tombolo/leases/{node}/")
}

/// The key of one lease; `tags` is [`lease_tags`].
#[must_use]
pub fn lease_tag(tags: &str, lease: i64) -> String {
    format!("{tags}{lease:x}")
}

/// The lease that a key of [`lease_tag`] names.
#[must_use]
pub fn tagged_lease(key: &[u8], tags: &str) -> Option<i64> {
    let text = str::from_utf8(key.strip_prefix(tags.as_bytes())?).ok()?;
    let lease = i64::from_str_radix(text, 16).ok()?;
    // A sign or zeros in front would make two keys of one lease.
    (format!("{lease:x}") == text).then_some(lease)
}

/// Which of the two trees a cluster's entries lie in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// `cilium/state/`: as the cluster itself writes them.
    State,
    /// `cilium/cache/`: as a mirror keeps them, always with the cluster's name.
    Cache,
    /// The same keys in the cache of another node of the own cluster. Their canaries are others,
    /// which go when that node does not import any more: what is there may then be older than what
    /// the reader has.
    Relay,
}

impl Layout {
    /// The tree's own prefix, with a final slash.
    #[must_use]
    pub const fn root(self) -> &'static str {
        match self {
            Self::State => "cilium/state/",
            Self::Cache | Self::Relay => "cilium/cache/",
        }
    }

    /// What the keys of a cluster's entries of one kind start with; ends with a slash. In the
    /// state tree identities and addresses do not carry the cluster's name.
    #[must_use]
    pub fn prefix(self, kind: Kind, cluster: &ClusterName) -> String {
        let base = self.base(kind);
        match (self, kind) {
            (_, Kind::Nodes | Kind::Services | Kind::ServiceExports | Kind::EndpointSlices)
            | (Self::Cache | Self::Relay, Kind::Ips) => format!("{base}/{cluster}/"),
            (Self::State, Kind::Ips) => format!("{base}/default/"),
            (Self::State, Kind::Identities) => format!("{base}/id/"),
            (Self::Cache | Self::Relay, Kind::Identities) => format!("{base}/{cluster}/id/"),
        }
    }

    /// The key that says that a kind is complete. It embeds the kind's prefix without the parts
    /// that only one tree has.
    #[must_use]
    pub fn canary(self, kind: Kind, cluster: &ClusterName) -> String {
        format!("{}{}", self.canaries(cluster), self.base(kind))
    }

    /// Splits a key into kind and suffix, if it is an entry of `cluster`.
    #[must_use]
    pub fn parse<'k>(self, key: &'k [u8], cluster: &ClusterName) -> Option<(Kind, &'k [u8])> {
        Kind::ALL.into_iter().find_map(|kind| {
            let suffix = key.strip_prefix(self.prefix(kind, cluster).as_bytes())?;
            (!suffix.is_empty()).then_some((kind, suffix))
        })
    }

    /// What the canaries of a cluster's kinds in this tree start with.
    #[must_use]
    pub fn canaries(self, cluster: &ClusterName) -> String {
        let synced = synced_prefix(cluster);
        match self {
            Self::State | Self::Cache => synced,
            Self::Relay => format!("{synced}tombolo/"),
        }
    }

    fn base(self, kind: Kind) -> String {
        format!("{}{}/v1", self.root(), kind.segment())
    }
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 6] = [
        Self::Nodes,
        Self::Identities,
        Self::Ips,
        Self::Services,
        Self::ServiceExports,
        Self::EndpointSlices,
    ];

    /// The kinds that every producer writes. Whether there are others, its configuration says.
    pub const BASIC: [Self; 4] = [Self::Nodes, Self::Identities, Self::Ips, Self::Services];

    /// The word that stands for the kind in keys.
    #[must_use]
    pub const fn segment(self) -> &'static str {
        match self {
            Self::Nodes => "nodes",
            Self::Identities => "identities",
            Self::Ips => "ip",
            Self::Services => "services",
            Self::ServiceExports => "serviceexports",
            Self::EndpointSlices => "endpointslices",
        }
    }
}

/// `cilium/cluster-config/<cluster>`.
#[must_use]
pub fn cluster_config_key(cluster: &ClusterName) -> String {
    format!("{CLUSTER_CONFIG_PREFIX}{cluster}")
}

/// What a cluster's canaries start with; ends with a slash.
#[must_use]
pub fn synced_prefix(cluster: &ClusterName) -> String {
    format!("cilium/synced/{cluster}/")
}

/// What stands behind [`Layout::canaries`] of [`Layout::Relay`] in the key of a peer's state.
pub const KEY_OF_RELAYED_STATE: &str = "state";

/// The kind and tree whose canary a key is; unknown canaries are nobody's.
#[must_use]
pub fn parse_canary(key: &[u8], cluster: &ClusterName) -> Option<(Layout, Kind)> {
    [Layout::State, Layout::Cache, Layout::Relay]
        .into_iter()
        .find_map(|layout| {
            let rest = key.strip_prefix(layout.canaries(cluster).as_bytes())?;
            let kind = Kind::ALL
                .into_iter()
                .find(|kind| layout.base(*kind).as_bytes() == rest)?;
            Some((layout, kind))
        })
}

/// True if a text can stand as one component of a key: readers clean paths, and a component that
/// cleaning alters would be lost.
#[must_use]
pub fn is_component(text: &str) -> bool {
    !text.is_empty() && text != "." && text != ".." && !text.contains('/')
}
