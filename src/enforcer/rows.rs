//! Rows of the kernel's maps, decoded for whoever looks at them. Pure; `kernel` reads them.
use std::net::IpAddr;

use super::{
    abi::{self, Address},
    kernel::Counters,
};
use crate::{
    enforcer::{Error, Handle},
    policy::{PolicyEntry, PolicyKey},
    types::{EndpointId, IdentityId, IpPrefix},
};

/// What can be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    /// The policy map.
    Policy,
    /// Identities by address: those of the mesh, then those of prefixes that rules name.
    Ipcache,
    /// Tracked flows.
    Conntrack,
}

/// A row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Row {
    /// Of [`Table::Policy`].
    Policy {
        /// Its key.
        key: PolicyKey,
        /// What it says.
        entry: PolicyEntry,
    },
    /// Of [`Table::Ipcache`].
    Address {
        /// The address or CIDR.
        prefix: IpPrefix,
        /// Its identity.
        identity: IdentityId,
        /// Number of the cluster that said so; `None` for a prefix that rules name.
        cluster: Option<u16>,
    },
    /// Of [`Table::Conntrack`].
    Flow(Flow),
}

/// A tracked flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// Whose.
    pub endpoint: EndpointId,
    /// True if the endpoint opened it.
    pub outgoing: bool,
    /// IP protocol number.
    pub protocol: u8,
    /// The endpoint's address.
    pub local: IpAddr,
    /// The other side's.
    pub remote: IpAddr,
    /// Host byte order.
    pub local_port: u16,
    /// Host byte order.
    pub remote_port: u16,
    /// Identity of the other side, when it was judged.
    pub identity: IdentityId,
    /// Number of the rule that let it in; 0 if none did.
    pub rule: u32,
    /// `abi::FLOW_*`.
    pub flags: u8,
    /// When a packet of it was seen last, by `CLOCK_MONOTONIC`; a second behind at most.
    pub seen_ns: u64,
}

impl Table {
    const fn maps(self) -> &'static [&'static str] {
        match self {
            Self::Policy => &["policy"],
            Self::Ipcache => &["ipcache_exact", "ipcache_lpm", "cidr"],
            Self::Conntrack => &["conntrack_v4", "conntrack_v6"],
        }
    }
}

impl Handle {
    /// Hands out the rows of a table, a batch in memory at a time, until `each` returns false. Rows
    /// that come or go meanwhile may be missed. Blocks: a million rows take about a second.
    ///
    /// # Errors
    /// If a map cannot be read.
    pub fn rows(&self, table: Table, mut each: impl FnMut(Row) -> bool) -> Result<(), Error> {
        let Some(counters) = &self.counters else {
            return Ok(());
        };
        table
            .maps()
            .iter()
            .try_for_each(|map| read(counters, map, &mut each))
    }
}

fn read(
    counters: &Counters,
    map: &'static str,
    each: &mut impl FnMut(Row) -> bool,
) -> Result<(), Error> {
    counters.read_map(map, |key, value| match decode(map, key, value) {
        Some(row) => each(row),
        None => true,
    })
}

/// `None` for what we never write.
fn decode(map: &str, key: &[u8], value: &[u8]) -> Option<Row> {
    match map {
        "policy" => {
            let raw = abi::RawPolicyKey {
                endpoint: word(key, 0)?,
                identity: word(key, 4)?,
                port_be: bytes(key, 8)?,
                proto: *key.get(10)?,
                level: *key.get(11)?,
            };
            let entry = abi::RawPolicyValue {
                votes: word(value, 0)?,
                rule: word(value, 4)?,
            };
            let (key, entry) = (raw.into(), entry.into());
            Some(Row::Policy { key, entry })
        }
        "ipcache_exact" => {
            let address: Address = bytes(key, 0)?;
            address_row(IpPrefix::host(abi::ip(address)), value, true)
        }
        "ipcache_lpm" | "cidr" => {
            let prefix = abi::prefix(word(key, 0)?, bytes(key, 4)?)?;
            address_row(prefix, value, map != "cidr")
        }
        "conntrack_v4" => {
            let ip = |at| Some(IpAddr::from(bytes::<4>(key, at)?));
            flow(key, value, (ip(8)?, ip(4)?), 12)
        }
        "conntrack_v6" => {
            let ip = |at| Some(abi::ip(bytes(key, at)?));
            flow(key, value, (ip(20)?, ip(4)?), 36)
        }
        _ => None,
    }
}

fn address_row(prefix: IpPrefix, value: &[u8], of_mesh: bool) -> Option<Row> {
    let cluster = u16::from_ne_bytes(bytes(value, 4)?);
    Some(Row::Address {
        prefix,
        identity: IdentityId(word(value, 0)?),
        cluster: of_mesh.then_some(cluster),
    })
}

/// `ports` is where the remote port stands; the local one and the protocol follow.
fn flow(key: &[u8], value: &[u8], (local, remote): (IpAddr, IpAddr), ports: usize) -> Option<Row> {
    Some(Row::Flow(Flow {
        endpoint: EndpointId(word(key, 0)?),
        outgoing: *value.get(20)? == 1,
        protocol: *key.get(ports + 4)?,
        local,
        remote,
        remote_port: u16::from_be_bytes(bytes(key, ports)?),
        local_port: u16::from_be_bytes(bytes(key, ports + 2)?),
        identity: IdentityId(word(value, 16)?),
        rule: word(value, 12)?,
        flags: *value.get(21)?,
        seen_ns: u64::from_ne_bytes(bytes(value, 0)?),
    }))
}

fn word(from: &[u8], at: usize) -> Option<u32> {
    bytes(from, at).map(u32::from_ne_bytes)
}

fn bytes<const N: usize>(from: &[u8], at: usize) -> Option<[u8; N]> {
    from.get(at..at + N)?.try_into().ok()
}

const _: () = {
    use std::mem::offset_of;
    assert!(offset_of!(abi::FlowV4Key, remote_be) == 4);
    assert!(offset_of!(abi::FlowV4Key, local_be) == 8);
    assert!(offset_of!(abi::FlowV4Key, remote_port_be) == 12);
    assert!(offset_of!(abi::FlowV4Key, proto) == 16);
    assert!(offset_of!(abi::FlowV6Key, local) == 20);
    assert!(offset_of!(abi::FlowV6Key, remote_port_be) == 36);
    assert!(offset_of!(abi::FlowV6Key, proto) == 40);
    assert!(offset_of!(abi::Flow, rule) == 12);
    assert!(offset_of!(abi::Flow, identity) == 16);
    assert!(offset_of!(abi::Flow, direction) == 20);
    assert!(offset_of!(abi::Flow, flags) == 21);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_what_the_programs_wrote_and_short_ones_are_none() {
        let mut key = vec![0; 20];
        key[..4].copy_from_slice(&7_u32.to_ne_bytes());
        key[4..17].copy_from_slice(&[10, 1, 0, 3, 10, 1, 0, 2, 0xa6, 0xe8, 0x18, 0xeb, 6]);
        let mut value = vec![0; 24];
        value[12..16].copy_from_slice(&9_u32.to_ne_bytes());
        value[16..20].copy_from_slice(&38354_u32.to_ne_bytes());
        value[21] = 1;
        let expected = Flow {
            endpoint: EndpointId(7),
            outgoing: false,
            protocol: 6,
            local: [10, 1, 0, 2].into(),
            remote: [10, 1, 0, 3].into(),
            local_port: 6379,
            remote_port: 42728,
            identity: IdentityId(38354),
            rule: 9,
            flags: abi::FLOW_REPLIED,
            seen_ns: 0,
        };
        let row = decode("conntrack_v4", &key, &value);
        assert_eq!(row, Some(Row::Flow(expected)));
        assert_eq!(decode("conntrack_v4", &key[..16], &value), None);
        assert_eq!(decode("conntrack_v6", &key, &value), None);
        let address = abi::address([10, 1, 0, 2].into());
        let row = decode("ipcache_exact", &address, &[9, 0, 0, 0, 101, 0, 0, 0]);
        let expected = Row::Address {
            prefix: "10.1.0.2".parse().unwrap(),
            identity: IdentityId(9),
            cluster: Some(101),
        };
        assert_eq!(row, Some(expected));
        assert_eq!(decode("policy", &[0; 11], &[0; 8]), None);
    }
}
