//! What the programs report of packets: drops, policy verdicts, traces; decoded from the ring.
//! Pure: `enforcer::run` reads the ring.
use std::net::IpAddr;

use super::abi;
use crate::{
    policy::Direction,
    types::{EndpointId, IdentityId},
};

/// `struct tb_event` of `bpf/include/abi.h`.
pub const EVENT_BYTES: usize = 80;

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A packet was dropped.
    Drop,
    /// Policy judged a flow, and what came of it: allowed, or would be denied but for audit mode.
    PolicyVerdict,
    /// A new flow was let in.
    Trace,
}

/// What was done with the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// It passed.
    Allow,
    /// It did not.
    Deny,
    /// It passed, as policy is on trial: else it would have been dropped for the event's reason.
    Audit,
}

/// One packet that the programs report.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Event {
    /// What it is about.
    pub kind: Kind,
    /// What was done with the packet.
    pub action: Action,
    /// Number of the rule that decided; 0 if none did.
    pub rule: u32,
    /// Unix time in nanoseconds.
    pub time_ns: u64,
    /// The kernel's flow hash.
    pub flow: u32,
    /// Cilium's words: `Policy denied`, `Invalid source ip`, …; empty for what is allowed.
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
    /// Host byte order; 0 without ports. Of an echo its id, or in the reply the request's type.
    pub source_port: u16,
    /// Host byte order; 0 without ports. Of an ICMP message its type, of an echo reply the id.
    pub destination_port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// TCP flags byte; 0 for other protocols.
    pub tcp_flags: u8,
    /// Type of an ICMP message; 0 for other protocols.
    pub icmp_type: u8,
    /// Size of the packet, link header included.
    pub bytes: u32,
}

/// Decodes `struct tb_event`; `None` if it is shorter or of no known kind. `boot_unix_ns` is the
/// Unix time of boot.
#[must_use]
pub fn decode(bytes: &[u8], boot_unix_ns: u64) -> Option<Event> {
    let bytes: &[u8; EVENT_BYTES] = bytes.get(..EVENT_BYTES)?.try_into().ok()?;
    let word =
        |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let long = |at: usize| -> [u8; 16] { std::array::from_fn(|i| bytes[at + i]) };
    let time: [u8; 8] = std::array::from_fn(|i| bytes[i]);
    let (protocol, detail) = (bytes[72], bytes[73]);
    let action = action(bytes[69])?;
    Some(Event {
        kind: kind(bytes[68])?,
        action,
        rule: word(28),
        time_ns: boot_unix_ns.saturating_add(u64::from_ne_bytes(time)),
        flow: word(8),
        reason: match action {
            Action::Allow => "",
            Action::Deny | Action::Audit => abi::reason(bytes[70]),
        },
        direction: abi::direction(bytes[71]),
        endpoint: EndpointId(word(16)),
        ifindex: word(12),
        source_identity: IdentityId(word(20)),
        destination_identity: IdentityId(word(24)),
        source: abi::ip(long(32)),
        destination: abi::ip(long(48)),
        source_port: u16::from_be_bytes([bytes[64], bytes[65]]),
        destination_port: u16::from_be_bytes([bytes[66], bytes[67]]),
        protocol,
        tcp_flags: if protocol == TCP { detail } else { 0 },
        icmp_type: match protocol {
            ICMP | ICMPV6 => detail,
            _ => 0,
        },
        bytes: word(76),
    })
}

const TCP: u8 = 6;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

const fn kind(raw: u8) -> Option<Kind> {
    match raw {
        1 => Some(Kind::Drop),
        2 => Some(Kind::PolicyVerdict),
        3 => Some(Kind::Trace),
        _ => None,
    }
}

const fn action(raw: u8) -> Option<Action> {
    match raw {
        1 => Some(Action::Allow),
        2 => Some(Action::Deny),
        3 => Some(Action::Audit),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw() -> [u8; EVENT_BYTES] {
        let mut raw = [0; EVENT_BYTES];
        raw[28..32].copy_from_slice(&7_u32.to_ne_bytes());
        raw[42..48].copy_from_slice(&[0xff, 0xff, 10, 1, 0, 2]);
        raw[66..74].copy_from_slice(&[0x18, 0xeb, 1, 2, 1, 1, 6, 2]);
        raw
    }

    #[test]
    fn events_say_what_the_programs_wrote() {
        let event = decode(&raw(), 5).unwrap();
        assert_eq!(
            (event.kind, event.action, event.reason, event.rule),
            (Kind::Drop, Action::Deny, "Policy denied", 7)
        );
        assert_eq!((event.time_ns, event.direction), (5, Direction::Egress));
        assert_eq!(event.source.to_string(), "10.1.0.2");
        assert_eq!(
            (event.destination_port, event.protocol, event.tcp_flags),
            (6379, 6, 2)
        );
    }

    #[test]
    fn truncated_and_unknown_events_are_refused() {
        assert_eq!(decode(&raw()[..EVENT_BYTES - 1], 0), None);
        for place in [68, 69] {
            let mut raw = raw();
            raw[place] = 9;
            assert_eq!(decode(&raw, 0), None);
        }
    }
}
