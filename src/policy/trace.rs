//! What a trace is asked and answers: how policy judges packets between two sides, by which rule, and
//! whom else the rules in question admit. The answers have one JSON shape.
use std::{net::IpAddr, sync::Arc};

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::{Direction, RuleName};
use crate::types::{EndpointId, IdentityId, Labels};

/// How to name one side of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Side {
    /// A workload with exactly these labels, whether there is one or not. Without a label for the
    /// cluster it is one of the own cluster, unless it has reserved labels.
    Labels(Arc<Labels>),
    /// An identity that is known.
    Identity(IdentityId),
    /// An address, as a packet would have it.
    Address(IpAddr),
    /// A local endpoint.
    Endpoint(EndpointId),
}

/// A new connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Who opens it.
    pub source: Side,
    /// To whom.
    pub destination: Side,
    /// IP protocol number, not 0.
    pub protocol: u8,
    /// Destination port, or ICMP type.
    pub port: u16,
}

/// A question on its way to whoever has the engine.
#[derive(Debug)]
pub struct Query {
    /// What is asked.
    pub question: Question,
    /// Where the answer goes; see [`Engine::trace`](super::Engine::trace).
    pub answer: oneshot::Sender<Option<Trace>>,
}

/// The answer to a [`Question`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Trace {
    /// Who opens the connection.
    pub source: Party,
    /// To whom.
    pub destination: Party,
    /// IP protocol number.
    pub protocol: u8,
    /// Destination port, or ICMP type.
    pub port: u16,
    /// Egress policy, at the source.
    pub egress: Half,
    /// Ingress policy, at the destination.
    pub ingress: Half,
    /// What follows from the halves that can be judged here.
    pub verdict: Outcome,
}

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It passes.
    Allowed,
    /// It is dropped.
    Denied,
    /// It passes, and is reported: it would be dropped if what is only audited counted.
    Audited,
    /// Nothing of it is judged by this cluster.
    Unknown,
}

/// One side, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Party {
    /// The identity of its packets; `None` if no identity known here has its labels.
    pub identity: Option<IdentityId>,
    /// Its labels; none if they are not known.
    pub labels: Arc<Labels>,
    /// The local endpoint that it is, or the first that has its identity.
    pub endpoint: Option<EndpointId>,
    /// The address, if it was named by one.
    pub address: Option<IpAddr>,
    /// The cluster that it is of; `None` outside the mesh.
    pub cluster: Option<String>,
}

/// One direction's policy, at the side that it protects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "by", rename_all = "kebab-case")]
pub enum Half {
    /// By the own cluster, with the policies known on this node.
    Policy(Box<Judgement>),
    /// By another cluster, with policies that are not known here.
    Cluster {
        /// Which.
        name: String,
    },
    /// By nobody: the side is no workload of the mesh.
    Nobody,
}

/// What the policies known here say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Judgement {
    /// Which way.
    pub direction: Direction,
    /// What becomes of the packet here.
    pub outcome: Outcome,
    /// Why it would pass or not, if no endpoint and no policy were only audited where they are.
    pub basis: Basis,
    /// The rule that decides; `None` where none does.
    pub rule: Option<Arc<RuleName>>,
    /// The same if policies that are only audited counted, where that is not the same.
    pub audited: Option<Basis>,
    /// The endpoint is only audited: nothing of it is dropped by policy.
    pub audited_endpoint: bool,
    /// How many rules select the endpoint.
    pub selecting: usize,
    /// Those of them, as `namespace/name rule`, that drop what none allows.
    pub default_deny: Vec<String>,
    /// Every entry of them that is about such packets, in the order of their numbers.
    pub matches: Vec<Match>,
}

/// What decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Basis {
    /// A rule allows it and none denies it.
    Allowed,
    /// A rule denies it.
    Denied,
    /// No rule allows it, and what none allows is dropped.
    DefaultDeny,
    /// No rule is about it, and nothing is dropped by default.
    NoDefaultDeny,
}

impl Basis {
    /// True if it lets packets pass.
    #[must_use]
    pub const fn passes(self) -> bool {
        matches!(self, Self::Allowed | Self::NoDefaultDeny)
    }
}

/// An entry of a rule that is about the packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Match {
    /// Its number, as events have it.
    pub number: u32,
    /// What it is.
    pub rule: Arc<RuleName>,
    /// Its policy is only audited.
    pub audited: bool,
    /// Whom it is about.
    pub admits: Admits,
}

/// Whom an entry of a rule is about: it admits or forbids them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Admits {
    /// Everybody, known or not; then none is listed.
    pub anybody: bool,
    /// How many identities known here.
    pub count: usize,
    /// The first of them, at most [`TRACE_IDENTITIES_MAX`](crate::limits::TRACE_IDENTITIES_MAX).
    pub identities: Vec<Admitted>,
}

/// One that an entry is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Admitted {
    /// Its number.
    pub identity: IdentityId,
    /// Its labels.
    pub labels: Arc<Labels>,
}
