//! Programs the kernel: what the maps should hold, against what they hold.
use std::net::IpAddr;

use crate::{
    policy::Direction,
    types::{EndpointId, IdentityId},
};

/// One packet that the datapath dropped, decoded from the ring buffer.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct DropEvent {
    /// Unix time in nanoseconds.
    pub time_ns: u64,
    /// The kernel's flow hash.
    pub flow: u32,
    /// Cilium's words: `Policy denied`, `Invalid source ip`, …
    pub reason: &'static str,
    /// Seen from the endpoint.
    pub direction: Direction,
    /// The local endpoint whose interface the packet was on.
    pub endpoint: EndpointId,
    /// That interface.
    pub ifindex: u32,
    /// Identity of the sender.
    pub source_identity: IdentityId,
    /// Identity of the receiver.
    pub destination_identity: IdentityId,
    /// Sender's address.
    pub source: IpAddr,
    /// Receiver's address.
    pub destination: IpAddr,
    /// Host byte order; 0 without ports.
    pub source_port: u16,
    /// Host byte order; 0 without ports.
    pub destination_port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// TCP flags byte; 0 for other protocols.
    pub tcp_flags: u8,
}
