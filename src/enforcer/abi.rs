//! Layouts shared with the programs; `bpf/include/abi.h` is the other half. Pure conversions.
//! Always true: all padding is zero, addresses are 16 bytes with IPv4 as `::ffff:a.b.c.d`, and
//! `_be` fields are in network byte order.
use std::{
    mem::{offset_of, size_of},
    net::{IpAddr, Ipv6Addr},
};

use crate::{
    policy::{Direction, EndpointMode, PolicyEntry, PolicyKey, Votes},
    types::{EndpointId, IdentityId, IpPrefix, LocalEndpoint},
};

/// Own addresses per endpoint that anti-spoofing can hold.
pub const ADDRESSES_MAX: usize = 4;
/// Endpoint flag: what no policy allows towards it is dropped.
pub const DENY_INGRESS: u32 = 1;
/// Endpoint flag: what no policy allows away from it is dropped.
pub const DENY_EGRESS: u32 = 2;
/// Endpoint flag: [`DENY_INGRESS`], if the policies that are only audited counted.
pub const AUDIT_DENY_INGRESS: u32 = 4;
/// Endpoint flag: [`DENY_EGRESS`], if the policies that are only audited counted.
pub const AUDIT_DENY_EGRESS: u32 = 8;
/// Endpoint flag: what policy would drop is reported and passes.
pub const AUDIT: u32 = 16;
/// Config flag: [`AUDIT`] for all endpoints.
pub const CONFIG_AUDIT: u32 = 1;
/// Config flag: identity 1 passes ingress policy.
pub const CONFIG_ALLOW_LOCALHOST: u32 = 2;
/// Config flag: flows that policy allows are reported.
pub const CONFIG_REPORT_VERDICTS: u32 = 4;
/// Config flag: new flows are reported.
pub const CONFIG_REPORT_TRACES: u32 = 8;
/// Level masks of an endpoint.
pub const LEVELS: usize = 4;
/// Flag of a value in a trie: the prefix is one of IPv4.
pub const PREFIX_IPV4: u16 = 1;
/// Reasons that are counted, per direction.
pub const REASONS: usize = 16;
/// Reason of packets that went through.
pub const FORWARDED: usize = 0;
/// From here on reasons are no drops. First: packets that passed in audit mode only.
pub const AUDITED: usize = 12;
/// Flows that found no room in the conntrack.
pub const UNTRACKED: usize = 13;
/// Events held back by the rate limit.
pub const SUPPRESSED: usize = 14;
/// Events that found the ring full.
pub const LOST: usize = 15;
/// Counter slot of packets on interfaces without endpoint.
pub const SLOT_UNKNOWN: u32 = 0;
/// Counter slot of endpoints that are gone.
pub const SLOT_GONE: u32 = 1;
/// First counter slot of endpoints.
pub const SLOT_FIRST: u32 = 2;

const EGRESS: u8 = 0x80;
const ALL_PROTOCOLS: u32 = 17;

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
    /// [`prefix_flags`] in the trie, else zero.
    pub flags: u16,
}

/// An address prefix as the trie counts it: bits of the 16-byte form.
#[must_use]
pub fn lpm_bits(prefix: &IpPrefix) -> u32 {
    u32::from(prefix.prefix_len()) + if prefix.addr().is_ipv4() { 96 } else { 0 }
}

/// The flags of a value in a trie: a prefix of one family matches no address of the other.
#[must_use]
pub const fn prefix_flags(prefix: &IpPrefix) -> u16 {
    if prefix.addr().is_ipv4() {
        PREFIX_IPV4
    } else {
        0
    }
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

/// Value of the cidr map.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CidrValue {
    /// An identity of this node.
    pub identity: u32,
    /// [`prefix_flags`].
    pub flags: u32,
}

/// Value of the endpoints map; its key is the interface index.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoint {
    /// [`EndpointId`].
    pub endpoint: u32,
    /// Its identity, for events.
    pub identity: u32,
    /// `DENY_*`, `AUDIT*`.
    pub flags: u32,
    /// How many of `addresses` count.
    pub address_count: u32,
    /// Row of the counters.
    pub slot: u32,
    /// Bits of [`level`] that have entries, at [`level_index`].
    pub levels: [u32; LEVELS],
    /// Zero.
    pub pad: u32,
    /// Own addresses.
    pub addresses: [Address; ADDRESSES_MAX],
}

impl Endpoint {
    /// The first [`ADDRESSES_MAX`] addresses of `local`.
    #[must_use]
    pub fn new(local: &LocalEndpoint, flags: u32, slot: u32, levels: [u32; LEVELS]) -> Self {
        let mut addresses = [[0; 16]; ADDRESSES_MAX];
        let mut address_count = 0;
        for (place, addr) in addresses.iter_mut().zip(&local.addresses) {
            *place = address(*addr);
            address_count += 1;
        }
        Self {
            endpoint: local.id.0,
            identity: local.identity.0,
            flags,
            address_count,
            slot,
            levels,
            pad: 0,
            addresses,
        }
    }
}

/// The flags of an endpoint that is judged so.
#[must_use]
pub fn mode_flags(mode: &EndpointMode) -> u32 {
    [
        (mode.default_deny.ingress, DENY_INGRESS),
        (mode.default_deny.egress, DENY_EGRESS),
        (mode.audit_default_deny.ingress, AUDIT_DENY_INGRESS),
        (mode.audit_default_deny.egress, AUDIT_DENY_EGRESS),
        (mode.audit, AUDIT),
    ]
    .into_iter()
    .filter(|(on, _)| *on)
    .fold(0, |flags, (_, flag)| flags | flag)
}

/// Which of an endpoint's level masks knows about `key`.
#[must_use]
pub fn level_index(key: &PolicyKey) -> usize {
    usize::from(key.direction == Direction::Egress) * 2
        + usize::from(key.identity == IdentityId::UNKNOWN)
}

/// The bit for `key` in that mask.
#[must_use]
pub fn level(key: &PolicyKey) -> u32 {
    if key.protocol == 0 {
        ALL_PROTOCOLS
    } else {
        u32::from(key.port_bits.min(16))
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
    /// First destination port of the block.
    pub port_be: [u8; 2],
    /// IP protocol; 0 for all.
    pub proto: u8,
    /// 128 for egress, and how many leading bits of the port count.
    pub level: u8,
}

impl From<PolicyKey> for RawPolicyKey {
    fn from(key: PolicyKey) -> Self {
        let direction = match key.direction {
            Direction::Ingress => 0,
            Direction::Egress => EGRESS,
        };
        Self {
            endpoint: key.endpoint.0,
            identity: key.identity.0,
            port_be: key.port.to_be_bytes(),
            proto: key.protocol,
            level: direction | key.port_bits,
        }
    }
}

impl From<RawPolicyKey> for PolicyKey {
    fn from(raw: RawPolicyKey) -> Self {
        Self {
            endpoint: EndpointId(raw.endpoint),
            identity: IdentityId(raw.identity),
            direction: direction(raw.level & EGRESS),
            protocol: raw.proto,
            port: u16::from_be_bytes(raw.port_be),
            port_bits: raw.level & !EGRESS,
        }
    }
}

/// Value of the policy map.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawPolicyValue {
    /// [`Votes::bits`].
    pub votes: u32,
    /// Rule number.
    pub rule: u32,
}

impl From<PolicyEntry> for RawPolicyValue {
    fn from(entry: PolicyEntry) -> Self {
        Self {
            votes: u32::from(entry.votes.bits()),
            rule: entry.rule,
        }
    }
}

impl From<RawPolicyValue> for PolicyEntry {
    fn from(raw: RawPolicyValue) -> Self {
        Self {
            // The lowest byte has all that mean something.
            votes: Votes::from_bits(raw.votes.to_le_bytes()[0]),
            rule: raw.rule,
        }
    }
}

/// The one row of the config map.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Config {
    /// Verdicts of other epochs are judged again.
    pub epoch: u32,
    /// `CONFIG_*`.
    pub flags: u32,
}

/// Packets of one reason and direction.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes, link header included.
    pub bytes: u64,
}

/// Value of the counters map, per CPU: ingress before egress for each reason.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CounterRow(pub [Count; REASONS * 2]);

impl Default for CounterRow {
    fn default() -> Self {
        Self([Count::default(); REASONS * 2])
    }
}

impl CounterRow {
    /// Adds what `other` counted.
    pub fn add(&mut self, other: &Self) {
        for (own, more) in self.0.iter_mut().zip(&other.0) {
            own.packets += more.packets;
            own.bytes += more.bytes;
        }
    }
}

/// Key of `port_roles`: a block of 512 ports of an endpoint.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RolesKey {
    /// [`EndpointId`].
    pub endpoint: u32,
    /// Port divided by 512.
    pub block: u16,
    /// IP protocol.
    pub proto: u8,
    /// Zero.
    pub pad: u8,
}

/// Key of `conntrack_v4`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowV4Key {
    /// [`EndpointId`].
    pub endpoint: u32,
    /// The other side.
    pub remote_be: [u8; 4],
    /// The endpoint's address.
    pub local_be: [u8; 4],
    /// The other side's port, or of an echo that the endpoint sent its ICMP type.
    pub remote_port_be: [u8; 2],
    /// The endpoint's port, or of an echo that it was sent its ICMP type.
    pub local_port_be: [u8; 2],
    /// IP protocol.
    pub proto: u8,
    /// Zero.
    pub pad: [u8; 3],
}

/// Key of `conntrack_v6`; fields as in [`FlowV4Key`].
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "documented at FlowV4Key")]
pub struct FlowV6Key {
    pub endpoint: u32,
    pub remote: Address,
    pub local: Address,
    pub remote_port_be: [u8; 2],
    pub local_port_be: [u8; 2],
    pub proto: u8,
    pub pad: [u8; 3],
}

/// Value of both conntrack maps.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// `CLOCK_MONOTONIC`; behind by a second at most while the flow goes on.
    pub seen_ns: u64,
    /// Counts only while it is the config's.
    pub epoch: u32,
    /// Of the verdict that let it in; 0 if no rule did.
    pub rule: u32,
    /// Identity of the other side, when it was judged.
    pub identity: u32,
    /// Who opened it: 0 the other side, 1 the endpoint.
    pub direction: u8,
    /// `FLOW_*`.
    pub flags: u8,
    /// Zero.
    pub pad: u16,
}

/// Flow flag: the side that did not open it has answered.
pub const FLOW_REPLIED: u8 = 1;
/// Flow flag: its opener will send no more, or it was reset.
pub const FLOW_OPENER_CLOSED: u8 = 2;
/// Flow flag: the other side will send no more, or it was reset.
pub const FLOW_ANSWERER_CLOSED: u8 = 4;
/// Flow flag: policy does not let it on any more.
pub const FLOW_DENIED: u8 = 8;

/// Sizes of rows that only the programs touch, for the check of pins.
pub const ROLES_VALUE_BYTES: u32 = 128;
/// See [`ROLES_VALUE_BYTES`].
pub const FRAGMENT_KEY_BYTES: u32 = 44;
/// See [`ROLES_VALUE_BYTES`].
pub const FRAGMENT_VALUE_BYTES: u32 = 16;
/// See [`ROLES_VALUE_BYTES`].
pub const RATE_VALUE_BYTES: u32 = 16;

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
        5 => "First logical datagram fragment not found",
        6 => "Unknown endpoint",
        7 => "VLAN traffic disallowed by VLAN filter",
        _ => "Unknown reason",
    }
}

const _: () = {
    assert!(size_of::<IpcacheValue>() == 8);
    assert!(offset_of!(IpcacheValue, cluster) == 4);
    assert!(size_of::<CidrValue>() == 8);
    assert!(size_of::<Endpoint>() == 104);
    assert!(offset_of!(Endpoint, levels) == 20);
    assert!(offset_of!(Endpoint, addresses) == 40);
    assert!(size_of::<RawPolicyKey>() == 12);
    assert!(offset_of!(RawPolicyKey, port_be) == 8);
    assert!(offset_of!(RawPolicyKey, level) == 11);
    assert!(size_of::<RawPolicyValue>() == 8);
    assert!(size_of::<Config>() == 8);
    assert!(size_of::<CounterRow>() == 512);
    assert!(size_of::<RolesKey>() == 8);
    assert!(size_of::<FlowV4Key>() == 20);
    assert!(size_of::<FlowV6Key>() == 44);
    assert!(offset_of!(FlowV6Key, remote_port_be) == 36);
    assert!(size_of::<Flow>() == 24);
    assert!(offset_of!(Flow, direction) == 20);
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits;

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
    fn policy_keys_survive_the_raw_form() {
        for (direction, port, port_bits) in [
            (Direction::Ingress, 6379, 16),
            (Direction::Egress, 1024, 6),
            (Direction::Egress, 0, 0),
        ] {
            let key = PolicyKey {
                endpoint: EndpointId(7),
                identity: IdentityId(9),
                direction,
                protocol: 6,
                port,
                port_bits,
            };
            assert_eq!(PolicyKey::from(RawPolicyKey::from(key)), key);
        }
    }

    /// What both halves write as numbers is the same in both.
    #[test]
    fn numbers_of_the_header_are_these() {
        let header = include_str!("../../bpf/include/abi.h");
        let number = |name: &str| {
            let line = header.lines().find_map(|line| {
                line.strip_prefix("#define ")?
                    .strip_prefix(name)?
                    .strip_prefix(' ')
            });
            let text = line.unwrap_or_else(|| panic!("no {name} in abi.h"));
            let Some(shift) = text.strip_prefix("(1U << ") else {
                return text.parse().unwrap();
            };
            1_u64 << shift.trim_end_matches(')').parse::<u32>().unwrap()
        };
        for (name, ours) in [
            ("TB_ENDPOINT_DENY_EGRESS", u64::from(DENY_EGRESS)),
            ("TB_ENDPOINT_AUDIT_DENY_INGRESS", AUDIT_DENY_INGRESS.into()),
            ("TB_ENDPOINT_AUDIT_DENY_EGRESS", AUDIT_DENY_EGRESS.into()),
            ("TB_ENDPOINT_AUDIT", AUDIT.into()),
            ("TB_CONFIG_AUDIT", CONFIG_AUDIT.into()),
            ("TB_CONFIG_ALLOW_LOCALHOST", CONFIG_ALLOW_LOCALHOST.into()),
            ("TB_CONFIG_REPORT_VERDICTS", CONFIG_REPORT_VERDICTS.into()),
            ("TB_CONFIG_REPORT_TRACES", CONFIG_REPORT_TRACES.into()),
            ("TB_ALLOW", Votes::ALLOW.bits().into()),
            ("TB_DENY", Votes::DENY.bits().into()),
            ("TB_AUDIT_ALLOW", Votes::AUDIT_ALLOW.bits().into()),
            ("TB_AUDIT_DENY", Votes::AUDIT_DENY.bits().into()),
            ("TB_FLOW_REPLIED", FLOW_REPLIED.into()),
            ("TB_FLOW_OPENER_CLOSED", FLOW_OPENER_CLOSED.into()),
            ("TB_FLOW_ANSWERER_CLOSED", FLOW_ANSWERER_CLOSED.into()),
            ("TB_FLOW_DENIED", FLOW_DENIED.into()),
            ("TB_LEVEL_ALL_PROTOCOLS", ALL_PROTOCOLS.into()),
            ("TB_SLOT_GONE", SLOT_GONE.into()),
            ("TB_AUDITED", AUDITED as u64),
            ("TB_UNTRACKED", UNTRACKED as u64),
            ("TB_EVENT_SUPPRESSED", SUPPRESSED as u64),
            ("TB_EVENT_LOST", LOST as u64),
            ("TB_REASONS", REASONS as u64),
            ("TB_TCP_OPENING_SECONDS", limits::FLOW_TCP_OPENING.as_secs()),
            (
                "TB_TCP_ESTABLISHED_SECONDS",
                limits::FLOW_TCP_ESTABLISHED.as_secs(),
            ),
            ("TB_TCP_CLOSING_SECONDS", limits::FLOW_TCP_CLOSING.as_secs()),
            ("TB_ICMP_SECONDS", limits::FLOW_ICMP.as_secs()),
            ("TB_OTHER_SECONDS", limits::FLOW_OTHER.as_secs()),
        ] {
            assert_eq!(number(name), ours, "{name}");
        }
    }
}
