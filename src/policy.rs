//! Policies against identities: rules and deltas in, policy-map deltas out.
//!
//! `parse` turns files into [`Policy`]s and refuses what is not enforced; [`Engine`] follows
//! identities, endpoints and policies and says what the kernel should hold; [`verdict`] is the one
//! place that says what such entries mean. All of that is pure. Only `directory` does I/O: it
//! watches the policy directory and is the engine's feeder.
//!
//! Always true: a policy that is not understood completely is not applied at all, so that no rule
//! gets wider by a part that was skipped.
pub use self::{
    engine::{Engine, Options},
    parse::{ParseError, Refusal, parse},
    rule::{Grant, Peer, Peers, Policy, PortProtocol, Rule},
    selector::{Operator, Requirement, Selector},
};
use crate::types::{EndpointId, IdentityId};

pub mod directory;
mod engine;
mod parse;
mod rule;
mod selector;
mod yaml;

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

/// What the entries say about a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// An entry allows it and none denies it.
    Allow {
        /// The rule of the most specific allowing entry.
        rule: u32,
    },
    /// An entry denies it.
    Deny {
        /// The rule of the most specific denying entry.
        rule: u32,
    },
    /// No entry matches: dropped if the endpoint has default deny in this direction, else passed.
    NoMatch,
}

impl Verdict {
    /// True if a packet with this verdict passes an endpoint with or without default deny.
    #[must_use]
    pub const fn passes(self, default_deny: bool) -> bool {
        match self {
            Self::Allow { .. } => true,
            Self::Deny { .. } => false,
            Self::NoMatch => !default_deny,
        }
    }
}

/// Judges one packet: `key` has the packet's identity, protocol and port, `lookup` reads entries.
///
/// A deny on any level beats an allow on any other. Levels, the most specific first: identity with
/// port and protocol, with protocol, alone; then the same for any identity. The datapath program asks
/// the same ones; only which of several rules is named depends on their order.
pub fn verdict(lookup: impl Fn(&PolicyKey) -> Option<PolicyEntry>, key: &PolicyKey) -> Verdict {
    let of = |identity| {
        let exact = PolicyKey { identity, ..*key };
        [
            exact,
            PolicyKey { port: 0, ..exact },
            PolicyKey {
                protocol: 0,
                port: 0,
                ..exact
            },
        ]
    };
    let levels = of(key.identity).into_iter().chain(of(IdentityId::UNKNOWN));
    let mut verdict = Verdict::NoMatch;
    for entry in levels.filter_map(|level| lookup(&level)) {
        if entry.deny {
            return Verdict::Deny { rule: entry.rule };
        }
        if verdict == Verdict::NoMatch {
            verdict = Verdict::Allow { rule: entry.rule };
        }
    }
    verdict
}

#[cfg(test)]
mod tests;
