//! `POST /v1/policy/trace`: what policy makes of a connection.
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::label_texts;
use crate::policy::{self, Basis, Outcome};

/// Asks for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// Who opens the connection.
    pub source: Side,
    /// To whom.
    pub destination: Side,
    /// IP protocol number, not 0.
    pub protocol: u8,
    /// Destination port, or ICMP type.
    pub port: u16,
}

/// How to name one side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// A workload with exactly these labels, as keys have them: `source:key=value;` each.
    Labels(String),
    /// An identity.
    Identity(u32),
    /// An address.
    Address(IpAddr),
    /// A local endpoint.
    Endpoint(u32),
}

/// The answer; what is not documented is as in [`policy::Trace`] and its parts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "documented there, which can't be read back")]
pub struct Trace {
    pub source: Party,
    pub destination: Party,
    pub protocol: u8,
    pub port: u16,
    pub egress: Half,
    pub ingress: Half,
    pub verdict: Outcome,
}

/// One side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "documented at policy::Party")]
pub struct Party {
    pub identity: Option<u32>,
    pub labels: Vec<String>,
    pub endpoint: Option<u32>,
    pub address: Option<IpAddr>,
    pub cluster: Option<String>,
}

/// One direction's policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "kebab-case")]
#[expect(missing_docs, reason = "documented at policy::Half")]
pub enum Half {
    Policy(Box<Judgement>),
    Cluster { name: String },
    Nobody,
}

/// What the policies known here say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "documented at policy::Judgement")]
pub struct Judgement {
    pub outcome: Outcome,
    pub basis: Basis,
    pub rule: Option<Rule>,
    pub audited: Option<Basis>,
    pub audited_endpoint: bool,
    pub selecting: usize,
    pub default_deny: Vec<String>,
    pub matches: Vec<Match>,
}

/// An entry of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// `namespace/name rule n ingress[m] in <origin>`.
    pub name: String,
    /// The file, or the name in the cluster store.
    pub origin: String,
    /// Whether it forbids.
    pub deny: bool,
}

/// An entry that is about the packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(
    missing_docs,
    reason = "documented at policy::Match and policy::Admits"
)]
pub struct Match {
    pub number: u32,
    pub rule: Rule,
    pub audited: bool,
    pub anybody: bool,
    pub count: usize,
    pub identities: Vec<Admitted>,
}

/// One that an entry is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admitted {
    /// Its number.
    pub identity: u32,
    /// Its labels.
    pub labels: Vec<String>,
}

impl From<policy::Trace> for Trace {
    fn from(trace: policy::Trace) -> Self {
        Self {
            source: trace.source.into(),
            destination: trace.destination.into(),
            protocol: trace.protocol,
            port: trace.port,
            egress: trace.egress.into(),
            ingress: trace.ingress.into(),
            verdict: trace.verdict,
        }
    }
}

impl From<policy::Party> for Party {
    fn from(party: policy::Party) -> Self {
        Self {
            identity: party.identity.map(|id| id.0),
            labels: label_texts(&party.labels),
            endpoint: party.endpoint.map(|id| id.0),
            address: party.address,
            cluster: party.cluster,
        }
    }
}

impl From<policy::Half> for Half {
    fn from(half: policy::Half) -> Self {
        match half {
            policy::Half::Policy(judgement) => Self::Policy(Box::new((*judgement).into())),
            policy::Half::Cluster { name } => Self::Cluster { name },
            policy::Half::Nobody => Self::Nobody,
        }
    }
}

impl From<policy::Judgement> for Judgement {
    fn from(judgement: policy::Judgement) -> Self {
        Self {
            outcome: judgement.outcome,
            basis: judgement.basis,
            rule: judgement.rule.as_deref().map(Into::into),
            audited: judgement.audited,
            audited_endpoint: judgement.audited_endpoint,
            selecting: judgement.selecting,
            default_deny: judgement.default_deny,
            matches: judgement.matches.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<&policy::RuleName> for Rule {
    fn from(name: &policy::RuleName) -> Self {
        Self {
            name: name.to_string(),
            origin: name.origin.to_string(),
            deny: name.deny,
        }
    }
}

impl From<policy::Match> for Match {
    fn from(matched: policy::Match) -> Self {
        let identities = matched.admits.identities.iter();
        let admitted = |admitted: &policy::Admitted| Admitted {
            identity: admitted.identity.0,
            labels: label_texts(&admitted.labels),
        };
        Self {
            number: matched.number,
            rule: matched.rule.as_ref().into(),
            audited: matched.audited,
            anybody: matched.admits.anybody,
            count: matched.admits.count,
            identities: identities.map(admitted).collect(),
        }
    }
}
