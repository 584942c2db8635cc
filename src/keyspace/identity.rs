//! The text of identities in keys and values.
use std::net::IpAddr;

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

/// The slave key by which a node holds on to an identity. `None` if a reader's path cleaning would
/// alter the labels' text.
#[must_use]
pub fn slave_key(labels: &Labels, node: IpAddr) -> Option<String> {
    let text = labels.to_string();
    let clean = text.split('/').all(|part| !matches!(part, "" | "." | ".."));
    clean.then(|| format!("{IDENTITY_VALUE_PREFIX}{text}/{node}"))
}
