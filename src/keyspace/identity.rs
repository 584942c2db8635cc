//! The text of identities in keys and values.
use super::layout::{IDENTITY_ID_PREFIX, IDENTITY_VALUE_PREFIX};
use crate::types::{IdentityId, Labels};

/// The label that names an identity's home cluster; mandatory across clusters.
pub const CLUSTER_LABEL: &str = "io.cilium.k8s.policy.cluster";

/// `identities/v1/id/<decimal>`: the identity's master key.
#[must_use]
pub fn master_key(id: IdentityId) -> String {
    format!("{IDENTITY_ID_PREFIX}{id}")
}

/// `identities/v1/value/<labels>/`: what the slave keys of a label set start with. The labels'
/// final `;` keeps one set from being the prefix of another.
#[must_use]
pub fn slave_prefix(labels: &Labels) -> String {
    format!("{IDENTITY_VALUE_PREFIX}{labels}/")
}

/// The slave key by which a node, named by its address or, if it has none, by its name, holds on to
/// an identity.
#[must_use]
pub fn slave_key(labels: &Labels, node: &str) -> String {
    format!("{}{node}", slave_prefix(labels))
}

/// The label text within a slave key: all between the tree's prefix and the last slash.
#[must_use]
pub fn labels_of_slave(key: &[u8]) -> Option<&[u8]> {
    let rest = key.strip_prefix(IDENTITY_VALUE_PREFIX.as_bytes())?;
    let slash = rest.iter().rposition(|byte| *byte == b'/')?;
    Some(&rest[..slash])
}
