//! Policies against identities: rules and deltas in, policy-map deltas out.
//!
//! `parse` turns files into [`Policy`]s and refuses what is not enforced; [`Engine`] follows
//! identities, endpoints and policies and says what the kernel should hold; [`verdict`] is the one
//! place that says what such entries mean. All of that is pure. Only `directory` and `store` do I/O:
//! they follow the policy directory and the policies in the cluster store and feed the engine, which
//! unites both: none comes first.
//!
//! Always true: a policy that is not understood completely is not applied at all, so that no rule
//! gets wider by a part that was skipped.
pub use self::{
    engine::{Enforcement, Engine, Options},
    event::{Delay, Mark, PolicyEvent, Source},
    names::{RuleName, RuleNames},
    parse::{ParseError, Refusal, parse, parse_noting},
    rule::{Grant, Kind, Origin, Peer, Peers, Policy, Port, Rule},
    selector::{Operator, Requirement, Selector},
    trace::{
        Admits, Admitted, Basis, Half, Judgement, Match, Outcome, Party, Query, Question, Side,
        Trace,
    },
    verdict::{Verdict, verdict},
};
use crate::types::{EndpointId, IdentityId, IpPrefix};

mod cidr;
pub mod directory;
mod engine;
mod event;
mod names;
mod parse;
mod rule;
mod selector;
pub mod store;
mod trace;
mod verdict;
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

/// Something for each direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, serde::Serialize)]
pub struct PerDirection<T> {
    /// Towards the endpoint.
    pub ingress: T,
    /// Away from it.
    pub egress: T,
}

impl<T> PerDirection<T> {
    /// The one for `direction`.
    #[must_use]
    pub const fn get(&self, direction: Direction) -> &T {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }

    /// The one for `direction`, to be changed.
    #[must_use]
    pub const fn get_mut(&mut self, direction: Direction) -> &mut T {
        match direction {
            Direction::Ingress => &mut self.ingress,
            Direction::Egress => &mut self.egress,
        }
    }
}

/// Key of one policy-map entry. Zero means "any" for identity and protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyKey {
    /// Whose policy.
    pub endpoint: EndpointId,
    /// The remote side; `IdentityId::UNKNOWN` for any.
    pub identity: IdentityId,
    /// Direction judged.
    pub direction: Direction,
    /// IP protocol number; 0 for any (then `port_bits` is 0 too).
    pub protocol: u8,
    /// Destination port, or ICMP type, in host byte order: the first of a block of ports.
    pub port: u16,
    /// How many leading bits of `port` count: 16 for one port, 0 for all; those behind are zero.
    pub port_bits: u8,
}

/// What the rules behind an entry want: a set of votes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Votes(u8);

impl Votes {
    /// None.
    pub const NONE: Self = Self(0);
    /// A rule allows it.
    pub const ALLOW: Self = Self(1);
    /// A rule denies it, which beats any allow.
    pub const DENY: Self = Self(2);
    /// A rule of a policy that is only audited allows it.
    pub const AUDIT_ALLOW: Self = Self(4);
    /// A rule of a policy that is only audited denies it.
    pub const AUDIT_DENY: Self = Self(8);

    /// The set as the maps hold it; bits that mean nothing are dropped.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits & 15)
    }

    /// As the maps hold it.
    #[must_use]
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// True if all of `other` are in it.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Those of both.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// True if it has none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// What a matching entry says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PolicyEntry {
    /// What its rules want; never empty.
    pub votes: Votes,
    /// Which rule is named in events: the lowest numbered that denies, if any does, else that
    /// allows; one that is enforced before one that is only audited.
    pub rule: u32,
}

/// How an endpoint is judged where no entry matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct EndpointMode {
    /// What is not allowed is dropped.
    pub default_deny: PerDirection<bool>,
    /// The same, if the policies that are only audited counted.
    pub audit_default_deny: PerDirection<bool>,
    /// Nothing is dropped by policy, only reported.
    pub audit: bool,
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
    /// How an endpoint is judged.
    Endpoint {
        /// Whose.
        endpoint: EndpointId,
        /// How.
        mode: EndpointMode,
    },
    /// An address prefix that rules name has (`Some`) or loses (`None`) an identity of this node.
    Cidr {
        /// The prefix.
        prefix: IpPrefix,
        /// Its identity, of scope 1.
        identity: Option<IdentityId>,
    },
}
