//! What `/v1/monitor` tells, line by line: what the programs report, and whence everybody in it is
//! known.
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::{
    enforcer::events::{Action, Event, Kind},
    policy::{Direction, RuleName},
};

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Line {
    /// A packet was dropped.
    Drop(Packet),
    /// Policy judged a flow.
    PolicyVerdict(Packet),
    /// A new flow was let in.
    Trace(Packet),
    /// The reader was too slow for this many events.
    Lost {
        /// How many.
        count: u64,
    },
}

impl Line {
    /// The packet that it is about.
    #[must_use]
    pub const fn packet(&self) -> Option<&Packet> {
        match self {
            Self::Drop(packet) | Self::PolicyVerdict(packet) | Self::Trace(packet) => Some(packet),
            Self::Lost { .. } => None,
        }
    }

    pub(in crate::admin) const fn new(kind: Kind, packet: Packet) -> Self {
        match kind {
            Kind::Drop => Self::Drop(packet),
            Kind::PolicyVerdict => Self::PolicyVerdict(packet),
            Kind::Trace => Self::Trace(packet),
        }
    }
}

/// A packet; the fields that are not documented are those of [`Event`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "documented at Event, which can't be read back")]
pub struct Packet {
    pub time_ns: u64,
    pub flow: u32,
    pub action: Action,
    pub reason: String,
    pub direction: String,
    pub endpoint: u32,
    pub ifindex: u32,
    pub source_identity: u32,
    pub destination_identity: u32,
    pub source: IpAddr,
    pub destination: IpAddr,
    pub source_port: u16,
    pub destination_port: u16,
    pub protocol: u8,
    pub tcp_flags: u8,
    pub icmp_type: u8,
    pub bytes: u32,
    /// What is known of the source's identity.
    pub source_known: Provenance,
    /// What is known of the destination's identity.
    pub destination_known: Provenance,
    /// The rule that decided, if one did.
    pub rule: Option<Rule>,
}

impl Packet {
    pub(in crate::admin) fn new(
        event: &Event,
        known: (Provenance, Provenance),
        rule: Option<Rule>,
    ) -> Self {
        Self {
            time_ns: event.time_ns,
            flow: event.flow,
            action: event.action,
            reason: event.reason.to_owned(),
            direction: match event.direction {
                Direction::Ingress => "ingress".to_owned(),
                Direction::Egress => "egress".to_owned(),
            },
            endpoint: event.endpoint.0,
            ifindex: event.ifindex,
            source_identity: event.source_identity.0,
            destination_identity: event.destination_identity.0,
            source: event.source,
            destination: event.destination,
            source_port: event.source_port,
            destination_port: event.destination_port,
            protocol: event.protocol,
            tcp_flags: event.tcp_flags,
            icmp_type: event.icmp_type,
            bytes: event.bytes,
            source_known: known.0,
            destination_known: known.1,
            rule,
        }
    }
}

/// Whence an identity is known, at the time of the line.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provenance {
    /// `source:key=value`, sorted by key; none if they are not known.
    pub labels: Vec<String>,
    /// The cluster that allocated it; `None` for what means the same everywhere, and for what is
    /// not known.
    pub cluster: Option<String>,
    /// Mod revision in that cluster's store.
    pub revision: Option<i64>,
    /// How long its labels are known, in milliseconds.
    pub age_ms: Option<u64>,
}

/// An entry of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// As the kernel has it.
    pub number: u32,
    /// `namespace/name rule n ingress[m] in <origin>`; `None` if no rule in force has the number any
    /// more.
    pub name: Option<String>,
    /// The file, or the name in the cluster store.
    pub origin: Option<String>,
}

impl Rule {
    pub(in crate::admin) fn new(number: u32, name: Option<&RuleName>) -> Self {
        Self {
            number,
            name: name.map(ToString::to_string),
            origin: name.map(|name| name.origin.to_string()),
        }
    }
}
