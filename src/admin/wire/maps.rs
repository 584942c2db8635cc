//! Rows of the kernel's maps, one JSON object a line: `/v1/bpf/policy`, `/v1/bpf/ipcache` and
//! `/v1/bpf/ct`.
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// An entry of the policy map.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Whose.
    pub endpoint: u32,
    /// `ingress` or `egress`.
    pub direction: String,
    /// The other side; 0 for anybody.
    pub identity: u32,
    /// Its labels; none if they are not known.
    pub labels: Vec<String>,
    /// IP protocol number; 0 for all.
    pub protocol: u8,
    /// First destination port of the block, or ICMP type.
    pub port: u16,
    /// Last of the block.
    pub last_port: u16,
    /// `allow`, `deny`, `audit-allow`, `audit-deny`.
    pub votes: Vec<String>,
    /// Number of the rule that is named for it.
    pub rule: u32,
    /// Its name, if it is in force.
    pub rule_name: Option<String>,
}

/// An entry of the maps of addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// Address or CIDR.
    pub prefix: String,
    /// Its identity.
    pub identity: u32,
    /// Number of the cluster that said so; `None` for a prefix that rules name.
    pub cluster_id: Option<u16>,
}

/// A tracked flow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// Whose.
    pub endpoint: u32,
    /// `in` if the other side opened it, `out` if the endpoint did.
    pub direction: String,
    /// IP protocol number.
    pub protocol: u8,
    /// Who opened it.
    pub source: IpAddr,
    /// Its port.
    pub source_port: u16,
    /// To whom.
    pub destination: IpAddr,
    /// Its port.
    pub destination_port: u16,
    /// Identity of the side that is not the endpoint, when it was judged.
    pub identity: u32,
    /// Number of the rule that let it in; 0 if none did.
    pub rule: u32,
    /// Its name, if it is in force.
    pub rule_name: Option<String>,
    /// `replied`, `opener-closed`, `answerer-closed`, `denied`.
    pub flags: Vec<String>,
    /// How long no packet was seen, in milliseconds; a second more than it is at most.
    pub idle_ms: u64,
}
