//! Bytes to the typed part of an entry, with the checks that need no other entry.
use std::net::IpAddr;

use super::{NodeView, Record};
use crate::{
    keyspace::{self, IpRecord, Kind, NodeRecord, ServiceRecord},
    limits::VALUE_BYTES_MAX,
    types::{ClusterId, ClusterName, MaxClusters},
};

/// Whose entry it is.
pub(super) struct Author<'a> {
    pub(super) name: &'a ClusterName,
    pub(super) id: ClusterId,
    pub(super) max: MaxClusters,
    /// It is the own cluster.
    pub(super) own: bool,
}

/// A decoded entry. `node` is set for nodes only: their read side holds more than enforcement needs.
pub(super) struct Decoded {
    pub(super) record: Record,
    pub(super) node: Option<NodeView>,
}

/// Why an entry is not taken in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Rejection {
    #[error(transparent)]
    Record(#[from] keyspace::Rejection),
    #[error("address belongs to the own cluster")]
    AddressOfOwnCluster,
    #[error("prefix is too wide to be claimed by a peer")]
    PrefixTooWide,
}

impl Rejection {
    /// The reason as a word for counters and status.
    pub(super) const fn reason(&self) -> &'static str {
        match self {
            Self::Record(rejection) => rejection.reason(),
            Self::AddressOfOwnCluster => "address-of-own-cluster",
            Self::PrefixTooWide => "prefix-too-wide",
        }
    }

    /// The bytes could not be read: the cache copies them unchanged, for readers that can.
    /// Anything else was read and breaks a rule: it goes nowhere.
    pub(super) const fn is_undecodable(&self) -> bool {
        matches!(self, Self::Record(keyspace::Rejection::Undecodable(_)))
    }
}

/// Decodes and checks one value.
pub(super) fn decode(
    author: &Author<'_>,
    kind: Kind,
    suffix: &[u8],
    value: &[u8],
) -> Result<Decoded, Rejection> {
    if value.len() > VALUE_BYTES_MAX {
        return Err(keyspace::Rejection::Oversize.into());
    }
    let plain = |record| Ok(Decoded { record, node: None });
    match kind {
        Kind::Nodes => {
            let node = NodeRecord::decode(value)?;
            node.check(suffix, author.name, author.id)?;
            let source = if author.own { "local" } else { "clustermesh" };
            let record = Record::Node {
                addresses: addresses(&node),
                cidrs: cidrs(&node),
            };
            Ok(Decoded {
                record,
                node: Some(view(&node, source)),
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
            plain(Record::Ip { prefix, identity })
        }
        Kind::Services => {
            ServiceRecord::decode(value)?.check(suffix, author.name, author.id)?;
            plain(Record::Service)
        }
        Kind::ServiceExports | Kind::EndpointSlices => plain(Record::Inert),
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
