//! What members said, judged one record at a time by the rules of the keyspace alone: what the mesh
//! shows must be among it.
use std::{collections::BTreeMap, net::IpAddr};

use tombolo::{
    keyspace::{
        self, EndpointSlice, IpRecord, KeyEvent, Kind, NodeRecord, Rejection, ServiceExportRecord,
        ServiceRecord,
    },
    types::{ClusterId, ClusterName, IdentityId, IpPrefix, Labels},
};
use tombolo_fuzz::MAX;

/// A value that does not break the rules of the keyspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Ip {
        prefix: IpPrefix,
        identity: IdentityId,
    },
    Identity {
        id: IdentityId,
        labels: Labels,
    },
    Node {
        addresses: Vec<IpAddr>,
        cidrs: Vec<IpPrefix>,
    },
    Named,
    /// Takes a service back, and is copied.
    Unshared,
    /// Can't be read, and is copied.
    Undecodable,
}

impl Verdict {
    /// May be in force.
    pub fn is_record(&self) -> bool {
        !matches!(self, Self::Unshared | Self::Undecodable)
    }

    /// Addresses that it claims, with the identity to be seen there, `None` if that is a node's.
    pub fn claims(&self) -> Vec<(IpPrefix, Option<IdentityId>)> {
        match self {
            Self::Ip { prefix, identity } => vec![(*prefix, Some(*identity))],
            Self::Node { addresses, .. } => addresses
                .iter()
                .map(|ip| (IpPrefix::host(*ip), None))
                .collect(),
            _ => Vec::new(),
        }
    }
}

#[derive(Debug)]
pub struct Said {
    pub value: Vec<u8>,
    pub verdict: Verdict,
    listing: u32,
}

/// One member. Of each key, all that was said since it was last gone: an older record stays in
/// force while a newer one may not be.
#[derive(Debug)]
pub struct Member {
    pub name: ClusterName,
    pub id: ClusterId,
    pub own: bool,
    pub bounded: bool,
    pub entries: BTreeMap<(Kind, Vec<u8>), Vec<Said>>,
    listings: BTreeMap<Kind, u32>,
}

impl Member {
    pub fn new(name: ClusterName, id: ClusterId, own: bool) -> Self {
        Self {
            name,
            id,
            own,
            bounded: false,
            entries: BTreeMap::new(),
            listings: BTreeMap::new(),
        }
    }

    pub fn apply(&mut self, event: &KeyEvent) {
        match event {
            KeyEvent::Upsert {
                kind,
                suffix,
                value,
                ..
            } => self.upsert(*kind, suffix, value),
            KeyEvent::Delete { kind, suffix } => {
                self.entries.remove(&(*kind, suffix.to_vec()));
            }
            KeyEvent::BeginList { kind } => *self.listings.entry(*kind).or_default() += 1,
            KeyEvent::EndList { kind } => {
                let listing = self.listing(*kind);
                for ((of, _), said) in &mut self.entries {
                    if of == kind {
                        said.retain(|said| said.listing == listing);
                    }
                }
                self.entries.retain(|_, said| !said.is_empty());
            }
        }
    }

    fn listing(&self, kind: Kind) -> u32 {
        self.listings.get(&kind).copied().unwrap_or_default()
    }

    fn upsert(&mut self, kind: Kind, suffix: &[u8], value: &[u8]) {
        let Some(verdict) = self.judge(kind, suffix, value) else {
            return;
        };
        let listing = self.listing(kind);
        let all = self.entries.entry((kind, suffix.to_vec())).or_default();
        // Nothing holds a record of the own cluster back, nor a taken-back service.
        if verdict == Verdict::Unshared || (self.own && verdict.is_record()) {
            all.clear();
        }
        all.retain(|said| said.value != value);
        all.push(Said {
            value: value.to_vec(),
            verdict,
            listing,
        });
    }

    /// `None` if it must go nowhere.
    fn judge(&self, kind: Kind, suffix: &[u8], value: &[u8]) -> Option<Verdict> {
        match self.check(kind, suffix, value) {
            Ok(verdict) => Some(verdict),
            Err(Rejection::Undecodable(_)) => Some(Verdict::Undecodable),
            Err(_) => None,
        }
    }

    fn check(&self, kind: Kind, suffix: &[u8], value: &[u8]) -> Result<Verdict, Rejection> {
        let (name, id) = (&self.name, self.id);
        match kind {
            Kind::Nodes => {
                let node = NodeRecord::decode(value)?;
                node.check(suffix, name, id)?;
                Ok(of_node(&node))
            }
            Kind::Identities => {
                let (id, labels) = keyspace::decode_identity(suffix, value, name, id, MAX)?;
                Ok(Verdict::Identity { id, labels })
            }
            Kind::Ips => {
                let ip = IpRecord::decode(value)?;
                let (prefix, identity) = (ip.prefix(suffix)?, ip.identity(id, MAX)?);
                Ok(Verdict::Ip { prefix, identity })
            }
            Kind::Services => {
                let service = ServiceRecord::decode(value)?;
                service.check(suffix, name, id)?;
                Ok(if service.shared {
                    Verdict::Named
                } else {
                    Verdict::Unshared
                })
            }
            Kind::ServiceExports => {
                ServiceExportRecord::decode(value)?.check(suffix, name)?;
                Ok(Verdict::Named)
            }
            Kind::EndpointSlices => {
                EndpointSlice::decode(value)?.check(suffix, name, id)?;
                Ok(Verdict::Named)
            }
        }
    }

    /// All records of a kind that may be in force.
    pub fn records(&self) -> impl Iterator<Item = (&(Kind, Vec<u8>), &Verdict)> {
        let all = self
            .entries
            .iter()
            .flat_map(|(key, all)| all.iter().map(move |said| (key, said)));
        all.map(|(key, said)| (key, &said.verdict))
            .filter(|(_, verdict)| verdict.is_record())
    }

    /// How many keys of a kind have a record that may be in force.
    pub fn count(&self, kind: Kind) -> usize {
        let of_kind = self.entries.iter().filter(|((of, _), _)| *of == kind);
        of_kind
            .filter(|(_, all)| all.iter().any(|said| said.verdict.is_record()))
            .count()
    }
}

fn of_node(node: &NodeRecord) -> Verdict {
    let reserved = [
        node.ipv4_health_ip,
        node.ipv6_health_ip,
        node.ipv4_ingress_ip,
        node.ipv6_ingress_ip,
    ];
    let listed = node
        .ip_addresses
        .iter()
        .flatten()
        .filter_map(|address| address.ip);
    let primary = node.ipv4_alloc_cidr.iter().chain(&node.ipv6_alloc_cidr);
    let secondary = [
        &node.ipv4_secondary_alloc_cidrs,
        &node.ipv6_secondary_alloc_cidrs,
    ];
    let cidrs = primary.chain(secondary.into_iter().flatten().flatten());
    Verdict::Node {
        addresses: listed.filter(|ip| !reserved.contains(&Some(*ip))).collect(),
        cidrs: cidrs.filter_map(|cidr| cidr.prefix()).collect(),
    }
}
