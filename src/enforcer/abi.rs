//! Layouts shared with the programs; `bpf/include/abi.h` is the other half. Pure conversions.
//! Always true: all padding is zero, addresses are 16 bytes with IPv4 as `::ffff:a.b.c.d`, and
//! `_be` fields are in network byte order.
use std::{
    mem::{offset_of, size_of},
    net::{IpAddr, Ipv6Addr},
};

use crate::{
    policy::{Direction, PolicyEntry, PolicyKey, Votes},
    types::{EndpointId, IdentityId, IpPrefix, LocalEndpoint},
};

/// Own addresses per endpoint that anti-spoofing can hold.
pub const ADDRESSES_MAX: usize = 4;
/// Endpoint flag: what no policy allows towards it is dropped.
pub const DENY_INGRESS: u32 = 1;
/// Endpoint flag: what no policy allows away from it is dropped. Kept, not judged yet.
pub const DENY_EGRESS: u32 = 2;
/// Rows of the metrics map per direction.
pub const REASONS: usize = 16;
/// Metrics row of packets that went through.
pub const FORWARDED: usize = 0;
/// Metrics row of drop events held back by the rate limit.
pub const SUPPRESSED: usize = 14;
/// Metrics row of drop events that found the ring full.
pub const LOST: usize = 15;

const ALLOW: u32 = 1;
const DENY: u32 = 2;

/// An address as the maps hold it.
pub type Address = [u8; 16];

/// IPv4 as `::ffff:a.b.c.d`, IPv6 as it is.
#[must_use]
pub const fn address(addr: IpAddr) -> Address {
    match addr {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// The inverse of [`address`].
#[must_use]
pub const fn ip(address: Address) -> IpAddr {
    Ipv6Addr::from_octets(address).to_canonical()
}

/// Value of both ipcache maps.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IpcacheValue {
    /// What packets from there carry.
    pub identity: u32,
    /// Who said so; lets a restart know whose entry it is.
    pub cluster: u16,
    /// None yet.
    pub flags: u16,
}

/// An address prefix as the trie counts it: bits of the 16-byte form.
#[must_use]
pub fn lpm_bits(prefix: &IpPrefix) -> u32 {
    u32::from(prefix.prefix_len()) + if prefix.addr().is_ipv4() { 96 } else { 0 }
}

/// The inverse of [`lpm_bits`] with its address; `None` for what we never write.
#[must_use]
pub fn prefix(bits: u32, addr: Address) -> Option<IpPrefix> {
    let addr = ip(addr);
    let bits = if addr.is_ipv4() {
        bits.checked_sub(96)?
    } else {
        bits
    };
    IpPrefix::new(addr, u8::try_from(bits).ok()?)
}

/// Value of the endpoints map; its key is the interface index.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoint {
    /// [`EndpointId`].
    pub endpoint: u32,
    /// Its identity, for events.
    pub identity: u32,
    /// `DENY_*`.
    pub flags: u32,
    /// How many of `addresses` count.
    pub address_count: u32,
    /// Own addresses.
    pub addresses: [Address; ADDRESSES_MAX],
}

impl Endpoint {
    /// The first [`ADDRESSES_MAX`] addresses of `local`, with `flags`.
    #[must_use]
    pub fn new(local: &LocalEndpoint, flags: u32) -> Self {
        let mut addresses = [[0; 16]; ADDRESSES_MAX];
        let mut address_count = 0;
        for (slot, addr) in addresses.iter_mut().zip(&local.addresses) {
            *slot = address(*addr);
            address_count += 1;
        }
        Self {
            endpoint: local.id.0,
            identity: local.identity.0,
            flags,
            address_count,
            addresses,
        }
    }
}

/// Key of the policy map.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RawPolicyKey {
    /// [`EndpointId`].
    pub endpoint: u32,
    /// Remote identity; 0 for any.
    pub identity: u32,
    /// Destination port; 0 for any.
    pub dport_be: [u8; 2],
    /// IP protocol; 0 for any.
    pub proto: u8,
    /// 0 ingress, 1 egress.
    pub direction: u8,
}

impl From<PolicyKey> for RawPolicyKey {
    fn from(key: PolicyKey) -> Self {
        Self {
            endpoint: key.endpoint.0,
            identity: key.identity.0,
            dport_be: key.port.to_be_bytes(),
            proto: key.protocol,
            direction: u8::from(key.direction == Direction::Egress),
        }
    }
}

impl From<RawPolicyKey> for PolicyKey {
    fn from(raw: RawPolicyKey) -> Self {
        Self {
            endpoint: EndpointId(raw.endpoint),
            identity: IdentityId(raw.identity),
            direction: direction(raw.direction),
            protocol: raw.proto,
            port: u16::from_be_bytes(raw.dport_be),
            port_bits: if raw.dport_be == [0; 2] { 0 } else { 16 },
        }
    }
}

/// Value of the policy map.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawPolicyValue {
    /// 1 allow, 2 deny.
    pub verdict: u32,
    /// Rule number.
    pub rule: u32,
}

impl From<PolicyEntry> for RawPolicyValue {
    fn from(entry: PolicyEntry) -> Self {
        Self {
            verdict: if entry.votes.contains(Votes::DENY) {
                DENY
            } else {
                ALLOW
            },
            rule: entry.rule,
        }
    }
}

impl From<RawPolicyValue> for PolicyEntry {
    fn from(raw: RawPolicyValue) -> Self {
        Self {
            votes: if raw.verdict & DENY == 0 {
                Votes::ALLOW
            } else {
                Votes::DENY
            },
            rule: raw.rule,
        }
    }
}

/// The one row of the config map.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// Verdicts of older epochs are judged again.
    pub epoch: u32,
    /// Zero.
    pub pad: u32,
}

/// Value of the metrics map, per CPU.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metrics {
    /// Packets.
    pub packets: u64,
    /// Bytes, link header included.
    pub bytes: u64,
}

/// Sizes of the maps that only the programs touch, for the check of pins.
pub const CONNTRACK_KEY_BYTES: u32 = 44;
/// See [`CONNTRACK_KEY_BYTES`].
pub const CONNTRACK_VALUE_BYTES: u32 = 16;
/// See [`CONNTRACK_KEY_BYTES`].
pub const RATE_VALUE_BYTES: u32 = 16;
/// `struct tb_event`.
pub const EVENT_BYTES: usize = 72;

/// The direction's number as the programs write it.
#[must_use]
pub const fn direction(raw: u8) -> Direction {
    if raw == 0 {
        Direction::Ingress
    } else {
        Direction::Egress
    }
}

/// Cilium's words for a drop reason.
#[must_use]
pub const fn reason(raw: u8) -> &'static str {
    match raw {
        1 => "Policy denied",
        2 => "Invalid source ip",
        3 => "Unsupported L3 protocol",
        4 => "Invalid packet",
        5 => "IP fragmentation not supported",
        6 => "Unknown endpoint",
        _ => "Unknown reason",
    }
}

/// Decodes `struct tb_event`; `None` if it is shorter. `boot_unix_ns` is the Unix time of boot.
#[must_use]
pub fn event(bytes: &[u8], boot_unix_ns: u64) -> Option<super::DropEvent> {
    let bytes: &[u8; EVENT_BYTES] = bytes.get(..EVENT_BYTES)?.try_into().ok()?;
    let word =
        |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let long = |at: usize| -> [u8; 16] { std::array::from_fn(|i| bytes[at + i]) };
    let time: [u8; 8] = std::array::from_fn(|i| bytes[i]);
    Some(super::DropEvent {
        time_ns: boot_unix_ns.saturating_add(u64::from_ne_bytes(time)),
        flow: word(8),
        ifindex: word(12),
        endpoint: EndpointId(word(16)),
        source_identity: IdentityId(word(20)),
        destination_identity: IdentityId(word(24)),
        source: ip(long(32)),
        destination: ip(long(48)),
        source_port: u16::from_be_bytes([bytes[64], bytes[65]]),
        destination_port: u16::from_be_bytes([bytes[66], bytes[67]]),
        reason: reason(bytes[68]),
        direction: direction(bytes[69]),
        protocol: bytes[70],
        tcp_flags: bytes[71],
    })
}

const _: () = {
    assert!(size_of::<IpcacheValue>() == 8);
    assert!(offset_of!(IpcacheValue, cluster) == 4);
    assert!(size_of::<Endpoint>() == 80);
    assert!(offset_of!(Endpoint, addresses) == 16);
    assert!(size_of::<RawPolicyKey>() == 12);
    assert!(offset_of!(RawPolicyKey, dport_be) == 8);
    assert!(offset_of!(RawPolicyKey, proto) == 10);
    assert!(size_of::<RawPolicyValue>() == 8);
    assert!(size_of::<Config>() == 8);
    assert!(size_of::<Metrics>() == 16);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_survive_the_trie_form() {
        for text in ["10.0.0.0/8", "0.0.0.0/0", "fd00::/16", "10.1.2.3"] {
            let parsed: IpPrefix = text.parse().unwrap();
            assert_eq!(
                prefix(lpm_bits(&parsed), address(parsed.addr())),
                Some(parsed)
            );
        }
        assert_eq!(prefix(20, address(IpAddr::from([10, 0, 0, 0]))), None);
    }

    #[test]
    fn truncated_events_are_refused() {
        assert_eq!(event(&[0; EVENT_BYTES - 1], 0), None);
        assert!(event(&[0; EVENT_BYTES], 0).is_some());
    }
}
