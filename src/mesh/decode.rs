//! Bytes to the typed part of an entry, with the checks that need no other entry.
use std::{net::IpAddr, sync::Arc};

use super::{
    Cost, NodeView,
    member::{IpKey, Node, Record},
};
use crate::{
    keyspace::{
        self, EndpointSlice, IpRecord, Kind, NodeRecord, ServiceExportRecord, ServiceRecord,
    },
    limits::{NAMED_PORTS_MAX, VALUE_BYTES_MAX},
    types::{ClusterId, ClusterName, MaxClusters, NamedPort},
};

/// Whose entry it is.
pub(super) struct Author<'a> {
    pub(super) name: &'a ClusterName,
    pub(super) id: ClusterId,
    pub(super) max: MaxClusters,
    /// It is the own cluster.
    pub(super) own: bool,
}

/// A decoded entry.
pub(super) enum Decoded {
    /// To be in force. `node` is set for nodes only: their read side holds more than enforcement
    /// needs. Only addresses have `ports`.
    Record {
        record: Record,
        node: Option<NodeView>,
        ports: Vec<NamedPort>,
    },
    /// A service that its cluster does not share: the same as none, but the cache has it.
    Unshared,
}

/// Why an entry is not taken in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Rejection {
    #[error(transparent)]
    Record(#[from] keyspace::Rejection),
    #[error("address belongs to the own cluster")]
    AddressOfOwnCluster,
    #[error("address belongs to the cluster with id {0}, which had it first")]
    AddressOfOtherPeer(ClusterId),
    #[error("address is not in the allowed-cidrs of the peer's file")]
    AddressNotAllowed,
    #[error("prefix is too wide for a peer without allowed-cidrs in its file")]
    PrefixTooWide,
    #[error("peer has {0} keys, which is all that it may have")]
    TooManyKeys(usize),
    #[error("peer may have {0} bytes of keys and values, and this is more")]
    TooManyBytes(usize),
    #[error("peer changes more than {0} entries a second; the newest of each waits for its turn")]
    EventRate(u32),
}

impl Rejection {
    /// The reason as a word for counters and status.
    pub(super) const fn reason(&self) -> &'static str {
        match self {
            Self::Record(rejection) => rejection.reason(),
            Self::AddressOfOwnCluster => "address-of-own-cluster",
            Self::AddressOfOtherPeer(_) => "address-of-other-peer",
            Self::AddressNotAllowed => "address-not-allowed",
            Self::PrefixTooWide => "prefix-too-wide",
            Self::TooManyKeys(_) => "too-many-keys",
            Self::TooManyBytes(_) => "too-many-bytes",
            Self::EventRate(_) => "event-rate",
        }
    }

    /// The bytes could not be read: the cache copies them unchanged, for readers that can.
    /// Anything else was read and breaks a rule: it goes nowhere.
    pub(super) const fn is_undecodable(&self) -> bool {
        matches!(self, Self::Record(keyspace::Rejection::Undecodable(_)))
    }
}

/// Decodes one value and checks what needs no other entry. Adds up in `cost` what it took.
pub(super) fn decode(
    author: &Author<'_>,
    kind: Kind,
    suffix: &[u8],
    value: &[u8],
    cost: &mut Cost,
) -> Result<Decoded, Rejection> {
    cost.bytes += value.len();
    if value.len() > VALUE_BYTES_MAX {
        return Err(keyspace::Rejection::Oversize.into());
    }
    let with_ports = |record, ports| {
        let node = None;
        Ok(Decoded::Record {
            record,
            node,
            ports,
        })
    };
    let plain = |record| with_ports(record, Vec::new());
    match kind {
        Kind::Nodes => {
            let node = NodeRecord::decode(value)?;
            node.check(suffix, author.name, author.id)?;
            let source = if author.own { "local" } else { "clustermesh" };
            let record = Record::Node(Arc::new(Node {
                number: 0,
                addresses: addresses(&node),
                cidrs: cidrs(&node),
            }));
            let node = Some(view(&node, source));
            let ports = Vec::new();
            Ok(Decoded::Record {
                record,
                node,
                ports,
            })
        }
        Kind::Identities => {
            let (id, labels) =
                keyspace::decode_identity(suffix, value, author.name, author.id, author.max)?;
            plain(Record::Identity {
                id,
                labels: labels.into(),
            })
        }
        Kind::Ips => {
            let ip = IpRecord::decode(value)?;
            let prefix = ip.prefix(suffix)?;
            let identity = ip.identity(author.id, author.max)?;
            let masked = ip.mask.0.is_some();
            let key = IpKey { prefix, masked };
            let mut ports = ip.named_ports;
            ports.truncate(NAMED_PORTS_MAX);
            with_ports(Record::Ip { key, identity }, ports)
        }
        Kind::Services => {
            let service = ServiceRecord::decode(value)?;
            service.check(suffix, author.name, author.id)?;
            if !service.shared {
                return Ok(Decoded::Unshared);
            }
            plain(Record::Named(kind))
        }
        Kind::ServiceExports => {
            ServiceExportRecord::decode(value)?.check(suffix, author.name)?;
            plain(Record::Named(kind))
        }
        Kind::EndpointSlices => {
            EndpointSlice::decode_counting(value, &mut cost.expanded)?.check(
                suffix,
                author.name,
                author.id,
            )?;
            plain(Record::Named(kind))
        }
    }
}

fn addresses(node: &NodeRecord) -> Vec<IpAddr> {
    let listed = node.ip_addresses.iter().flatten().filter_map(|a| a.ip);
    let health = [
        node.ipv4_health_ip,
        node.ipv6_health_ip,
        node.ipv4_ingress_ip,
        node.ipv6_ingress_ip,
    ];
    // Health and ingress endpoints have reserved identities of their own in their ip entries.
    let own = |ip: &IpAddr| !health.contains(&Some(*ip));
    let mut all: Vec<IpAddr> = listed.filter(own).collect();
    all.sort_unstable();
    all.dedup();
    all
}

fn cidrs(node: &NodeRecord) -> Vec<crate::types::IpPrefix> {
    let primary = node.ipv4_alloc_cidr.iter().chain(&node.ipv6_alloc_cidr);
    let secondary = [
        &node.ipv4_secondary_alloc_cidrs,
        &node.ipv6_secondary_alloc_cidrs,
    ];
    let secondary = secondary.into_iter().flatten().flatten();
    primary
        .chain(secondary)
        .filter_map(keyspace::Cidr::prefix)
        .collect()
}

fn view(node: &NodeRecord, source: &'static str) -> NodeView {
    let best = |v4: bool| {
        let of = |kind: Option<&str>| {
            let mut all = node.ip_addresses.iter().flatten();
            all.find_map(|a| {
                let fits = kind.is_none_or(|k| k == a.kind);
                a.ip.filter(|ip| fits && ip.is_ipv4() == v4)
            })
        };
        of(Some("InternalIP"))
            .or_else(|| of(Some("ExternalIP")))
            .or_else(|| of(None))
    };
    let ipv4 = match best(true) {
        Some(IpAddr::V4(ip)) => Some(ip),
        _ => None,
    };
    let ipv6 = match best(false) {
        Some(IpAddr::V6(ip)) => Some(ip),
        _ => None,
    };
    NodeView {
        ipv4,
        ipv4_cidr: node
            .ipv4_alloc_cidr
            .as_ref()
            .and_then(keyspace::Cidr::prefix),
        ipv6,
        ipv6_cidr: node
            .ipv6_alloc_cidr
            .as_ref()
            .and_then(keyspace::Cidr::prefix),
        source,
    }
}
