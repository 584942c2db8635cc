//! What makes a decoded record acceptable from a given cluster, and why one is not.
use super::{
    identity::CLUSTER_LABEL,
    records::{ClusterConfig, IpRecord, NodeRecord, ServiceRecord, prefix_of},
    slices::EndpointSlice,
};
use crate::types::{ClusterId, ClusterName, IdentityId, IpPrefix, Label, Labels, MaxClusters};

/// Why a value, or a whole cluster configuration, is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// Longer than [`crate::limits::VALUE_BYTES_MAX`].
    #[error("value is too long")]
    Oversize,
    /// Not the JSON that was expected: what is wrong and where, never the value itself.
    #[error("value does not decode: {0}")]
    Undecodable(String),
    /// A mandatory field is absent or empty.
    #[error("field {0} is missing")]
    Incomplete(&'static str),
    /// The value is empty.
    #[error("value is empty")]
    EmptyValue,
    /// The key does not have the form of its kind.
    #[error("key is malformed")]
    MalformedKey,
    /// Key and value name different things.
    #[error("key and value disagree")]
    KeyMismatch,
    /// It names another cluster than the one it came from.
    #[error("cluster name is not the producer's")]
    ClusterMismatch,
    /// It carries another cluster id than its cluster's configuration.
    #[error("cluster id {0} is not the producer's")]
    ClusterIdMismatch(u32),
    /// Not a cluster id of this mesh.
    #[error("cluster id {0} is out of range")]
    ClusterIdOutOfRange(u32),
    /// The mesh is sized differently than ours.
    #[error("maximum of {0} clusters differs from ours")]
    MaxClustersMismatch(u32),
    /// The identity belongs to another cluster, or to none.
    #[error("identity {0} is outside of the producer's range")]
    IdentityOutOfRange(u64),
    /// The identity lacks its cluster label, or has a foreign one.
    #[error("label io.cilium.k8s.policy.cluster is missing or foreign")]
    ClusterLabel,
    /// The identity has a label that only the reserved identities carry, whose meaning is fixed.
    #[error("labels of source reserved are for the reserved identities only")]
    ReservedLabel,
    /// A field has a value that means nothing.
    #[error("value of field {0} is invalid")]
    InvalidField(&'static str),
}

impl Rejection {
    /// The reason as a word for counters and status; never contains data.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Oversize => "oversize",
            Self::Undecodable(_) => "undecodable",
            Self::Incomplete(_) => "incomplete",
            Self::EmptyValue => "empty-value",
            Self::MalformedKey => "malformed-key",
            Self::KeyMismatch => "key-mismatch",
            Self::ClusterMismatch => "cluster-mismatch",
            Self::ClusterIdMismatch(_) => "cluster-id-mismatch",
            Self::ClusterIdOutOfRange(_) => "cluster-id-out-of-range",
            Self::MaxClustersMismatch(_) => "max-clusters-mismatch",
            Self::IdentityOutOfRange(_) => "identity-out-of-range",
            Self::ClusterLabel => "cluster-label",
            Self::ReservedLabel => "reserved-label",
            Self::InvalidField(_) => "invalid-field",
        }
    }
}

impl ClusterConfig {
    /// The cluster id, if this mesh may accept the cluster. Whether the id is free is the
    /// caller's to know.
    ///
    /// # Errors
    /// [`Rejection::ClusterIdOutOfRange`]; in a mesh of 511 also
    /// [`Rejection::MaxClustersMismatch`] unless the producer says 511 too.
    pub const fn accept(&self, max: MaxClusters) -> Result<ClusterId, Rejection> {
        let theirs = self.capabilities.max_connected_clusters;
        let Ok(id) = ClusterId::new(self.id, max) else {
            return Err(Rejection::ClusterIdOutOfRange(self.id));
        };
        // A reader at 255 does not look at the field: an id that does not fit fails anyway.
        if matches!(max, MaxClusters::C511) && theirs != 511 {
            return Err(Rejection::MaxClustersMismatch(theirs));
        }
        Ok(id)
    }
}

impl NodeRecord {
    /// Checks that the record belongs to `cluster` and to its key; `suffix` is the node name.
    ///
    /// # Errors
    /// In this order: incomplete, id out of range, foreign cluster, key mismatch, foreign id.
    pub fn check(
        &self,
        suffix: &[u8],
        cluster: &ClusterName,
        id: ClusterId,
    ) -> Result<(), Rejection> {
        if self.cluster.is_empty() {
            return Err(Rejection::Incomplete("Cluster"));
        }
        if self.name.is_empty() {
            return Err(Rejection::Incomplete("Name"));
        }
        if self.cluster_id == 0 || self.cluster_id > MaxClusters::C511.max_id() {
            return Err(Rejection::ClusterIdOutOfRange(self.cluster_id));
        }
        if self.cluster != cluster.as_str() {
            return Err(Rejection::ClusterMismatch);
        }
        if self.name.as_bytes() != suffix {
            return Err(Rejection::KeyMismatch);
        }
        same_id(self.cluster_id, id)
    }
}

impl IpRecord {
    /// The text that the record's key must end with: the address, and `/<length>` if a mask is set.
    #[must_use]
    pub fn key_suffix(&self) -> Option<String> {
        let ip = self.ip?;
        if self.mask.0.is_none() {
            return Some(ip.to_string());
        }
        let (ones, _) = self.mask.size()?;
        Some(format!("{ip}/{ones}"))
    }

    /// The address or range, if the key agrees.
    ///
    /// # Errors
    /// [`Rejection::Incomplete`] without address, [`Rejection::KeyMismatch`] if the key names
    /// another one or the mask makes no range.
    pub fn prefix(&self, suffix: &[u8]) -> Result<IpPrefix, Rejection> {
        let ip = self.ip.ok_or(Rejection::Incomplete("IP"))?;
        if self
            .key_suffix()
            .is_none_or(|text| text.as_bytes() != suffix)
        {
            return Err(Rejection::KeyMismatch);
        }
        if self.mask.0.is_none() {
            return Ok(IpPrefix::host(ip));
        }
        let prefix = prefix_of(ip, &self.mask).ok_or(Rejection::KeyMismatch)?;
        // Two keys must not mean one range.
        if prefix.addr() == ip {
            Ok(prefix)
        } else {
            Err(Rejection::KeyMismatch)
        }
    }

    /// The identity as a reader has to see it: a remote host is a remote node. 0 means that the
    /// workload has none yet.
    ///
    /// # Errors
    /// [`Rejection::IdentityOutOfRange`] unless it is below 256 or in the range of `cluster`.
    pub fn identity(&self, cluster: ClusterId, max: MaxClusters) -> Result<IdentityId, Rejection> {
        let id = IdentityId(self.id);
        if id == IdentityId::HOST {
            Ok(IdentityId::REMOTE_NODE)
        } else if id.is_reserved() || max.owns(cluster, id) {
            Ok(id)
        } else {
            Err(Rejection::IdentityOutOfRange(self.id.into()))
        }
    }
}

impl ServiceRecord {
    /// Checks that the record belongs to `cluster` and to its key; `suffix` is `namespace/name`.
    ///
    /// # Errors
    /// In this order: incomplete, foreign cluster, key mismatch, foreign id.
    pub fn check(
        &self,
        suffix: &[u8],
        cluster: &ClusterName,
        id: ClusterId,
    ) -> Result<(), Rejection> {
        same_object(
            (&self.cluster, &self.namespace, &self.name),
            suffix,
            cluster,
        )?;
        same_id(self.cluster_id, id)
    }
}

impl EndpointSlice {
    /// Checks that the slice belongs to `cluster` and to its key; `suffix` is `namespace/name`.
    ///
    /// # Errors
    /// In this order: incomplete, foreign cluster, key mismatch, foreign id.
    pub fn check(
        &self,
        suffix: &[u8],
        cluster: &ClusterName,
        id: ClusterId,
    ) -> Result<(), Rejection> {
        same_object(
            (&self.cluster, &self.namespace, &self.name),
            suffix,
            cluster,
        )?;
        same_id(self.cluster_id, id)
    }
}

/// Checks cluster, namespace and name of a record against where it was found.
pub(super) fn same_object(
    (of, namespace, name): (&str, &str, &str),
    suffix: &[u8],
    cluster: &ClusterName,
) -> Result<(), Rejection> {
    let fields = [("cluster", of), ("namespace", namespace), ("name", name)];
    if let Some((field, _)) = fields.iter().find(|(_, value)| value.is_empty()) {
        return Err(Rejection::Incomplete(field));
    }
    if of != cluster.as_str() {
        return Err(Rejection::ClusterMismatch);
    }
    let rest = suffix.strip_prefix(namespace.as_bytes());
    if rest.and_then(|rest| rest.strip_prefix(b"/")) != Some(name.as_bytes()) {
        return Err(Rejection::KeyMismatch);
    }
    Ok(())
}

fn same_id(theirs: u32, id: ClusterId) -> Result<(), Rejection> {
    if theirs == id.get() {
        Ok(())
    } else {
        Err(Rejection::ClusterIdMismatch(theirs))
    }
}

/// Reads the suffix of an identity's key. Only the canonical decimal counts, so that one identity
/// has one key.
///
/// # Errors
/// [`Rejection::MalformedKey`].
pub fn parse_identity_id(suffix: &[u8]) -> Result<u64, Rejection> {
    let text = str::from_utf8(suffix).unwrap_or_default();
    let digits = text.starts_with(|c: char| c.is_ascii_digit());
    let canonical = digits && (text.len() == 1 || !text.starts_with('0'));
    text.parse()
        .ok()
        .filter(|_| canonical)
        .ok_or(Rejection::MalformedKey)
}

/// The identity that a key names, if it lies in the range of `cluster`. This is all that a
/// deletion is checked for.
///
/// # Errors
/// [`Rejection::MalformedKey`] or [`Rejection::IdentityOutOfRange`].
pub fn identity_of_key(
    suffix: &[u8],
    cluster: ClusterId,
    max: MaxClusters,
) -> Result<IdentityId, Rejection> {
    let raw = parse_identity_id(suffix)?;
    let id = u32::try_from(raw).map(IdentityId);
    id.ok()
        .filter(|id| max.owns(cluster, *id))
        .ok_or(Rejection::IdentityOutOfRange(raw))
}

/// Decodes and checks an identity entry of the cluster `name` with the id `cluster`.
///
/// # Errors
/// Malformed key, empty or oversize value, out of range, cluster label missing or foreign, a label
/// of the source `reserved`: with `reserved:host` a workload would pass for a node.
pub fn decode_identity(
    suffix: &[u8],
    value: &[u8],
    name: &ClusterName,
    cluster: ClusterId,
    max: MaxClusters,
) -> Result<(IdentityId, Labels), Rejection> {
    let id = identity_of_key(suffix, cluster, max)?;
    if value.is_empty() {
        return Err(Rejection::EmptyValue);
    }
    if value.len() > crate::limits::VALUE_BYTES_MAX {
        return Err(Rejection::Oversize);
    }
    let labels = Labels::parse(&String::from_utf8_lossy(value));
    let is_own = |label: &Label| label.source == "k8s" && label.value == name.as_str();
    let present = labels.with_key(CLUSTER_LABEL).next().is_some();
    if !present || !labels.with_key(CLUSTER_LABEL).all(is_own) {
        return Err(Rejection::ClusterLabel);
    }
    let mut all = labels.as_slice().iter();
    if all.any(|label| label.source == "reserved") {
        return Err(Rejection::ReservedLabel);
    }
    Ok((id, labels))
}
