//! Policies against identities: rules and deltas in, policy-map deltas out. Pure; no I/O.
use crate::types::{EndpointId, IdentityId};

/// Which way a packet goes, seen from the endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Towards the endpoint.
    Ingress,
    /// Away from it.
    Egress,
}

/// Key of one policy-map entry. Zero means "any" for identity, protocol and port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyKey {
    /// Whose policy.
    pub endpoint: EndpointId,
    /// The remote side; `IdentityId::UNKNOWN` for any.
    pub identity: IdentityId,
    /// Direction judged.
    pub direction: Direction,
    /// IP protocol number; 0 for any (then `port` is 0 too).
    pub protocol: u8,
    /// Destination port in host byte order; 0 for any.
    pub port: u16,
}

/// What a matching entry says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PolicyEntry {
    /// True for an explicit deny, which beats any allow.
    pub deny: bool,
    /// Which rule put it there (the lowest numbered of several), for events.
    pub rule: u32,
}

/// A change of what the kernel should hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MapDelta {
    /// Upsert (`Some`) or delete (`None`) one entry.
    Entry {
        /// Which.
        key: PolicyKey,
        /// New value.
        value: Option<PolicyEntry>,
    },
    /// Whether everything not allowed is dropped, per direction.
    DefaultDeny {
        /// Whose.
        endpoint: EndpointId,
        /// Towards it.
        ingress: bool,
        /// Away from it.
        egress: bool,
    },
}
