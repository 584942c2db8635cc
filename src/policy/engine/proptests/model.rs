//! Policy as its rules say it, from labels and addresses alone: no identity of a prefix, no block of
//! ports, no entry.
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use super::generate::{Local, MESH, Step, WORLD};
use crate::{
    policy::{
        Direction, Enforcement, Grant, Options, Peer, Peers, Policy, Port, Requirement, Rule,
        selector::{CLUSTER_KEY, reserved_labels},
    },
    types::{IdentityId, IpPrefix, Labels, NamedPort},
};

/// A packet to or from a local endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Packet {
    pub(super) endpoint: u32,
    pub(super) direction: Direction,
    pub(super) peer: IpAddr,
    pub(super) protocol: u8,
    pub(super) port: u16,
}

/// Whether a packet passes, and whether it would if audited policies counted.
pub(super) type Passes = (bool, bool);

/// Everything that was said.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) options: Options,
    pub(super) identities: BTreeMap<u32, Arc<Labels>>,
    pub(super) addresses: BTreeMap<IpPrefix, u32>,
    pub(super) ports: BTreeMap<IpPrefix, Vec<NamedPort>>,
    pub(super) endpoints: BTreeMap<u32, Local>,
    pub(super) files: BTreeMap<u8, Vec<Policy>>,
}

fn set<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => drop(map.insert(key, value)),
        None => drop(map.remove(&key)),
    }
}

fn number(protocol: &str) -> u8 {
    if protocol == "TCP" { 6 } else { 17 }
}

impl Model {
    pub(super) fn new(options: Options) -> Self {
        Self {
            options,
            identities: BTreeMap::new(),
            addresses: BTreeMap::new(),
            ports: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            files: BTreeMap::new(),
        }
    }

    pub(super) fn apply(&mut self, step: &Step) {
        match step.clone() {
            Step::Identity(id, labels) => set(&mut self.identities, id, labels),
            Step::Address(prefix, id) => set(&mut self.addresses, prefix, id),
            Step::Ports(prefix, ports) => set(&mut self.ports, prefix, Some(ports)),
            Step::Endpoint(id, local) => set(&mut self.endpoints, id, local),
            Step::Policies(file, policies) => set(&mut self.files, file, Some(policies)),
        }
    }

    /// All packets worth a look.
    pub(super) fn packets(&self) -> Vec<Packet> {
        let flows = [
            (6, 80),
            (6, 81),
            (6, 2000),
            (17, 80),
            (1, 8),
            (58, 128),
            (47, 0),
        ];
        let mut packets = Vec::new();
        for (endpoint, direction) in self
            .endpoints
            .keys()
            .flat_map(|id| [(*id, Direction::Ingress), (*id, Direction::Egress)])
        {
            for peer in MESH.iter().chain(&WORLD).map(|text| text.parse().unwrap()) {
                packets.extend(flows.map(|(protocol, port)| Packet {
                    endpoint,
                    direction,
                    peer,
                    protocol,
                    port,
                }));
            }
        }
        packets
    }

    pub(super) fn judge(&self, packet: &Packet) -> Passes {
        let local = &self.endpoints[&packet.endpoint];
        let init = local.labels.with_key("init").next().is_some();
        let (mut allow, mut deny) = ([false; 2], [false; 2]);
        let always = init || self.options.enforcement == Enforcement::Always;
        let mut default_deny = [always; 2];
        for policy in self.files.values().flatten() {
            let audited = usize::from(policy.audit);
            if self.options.enforcement == Enforcement::Never && !init {
                continue;
            }
            for rule in policy
                .rules
                .iter()
                .filter(|r| r.subject.matches(&local.labels))
            {
                default_deny[audited] |= *rule.default_deny.get(packet.direction);
                for grant in self.grants(rule, packet) {
                    if grant.deny {
                        deny[audited] = true;
                    } else {
                        allow[audited] = true;
                    }
                }
            }
        }
        let any = |both: [bool; 2]| both[0] || both[1];
        let passes = local.audit || (!deny[0] && (allow[0] || !default_deny[0]));
        (passes, !any(deny) && (any(allow) || !any(default_deny)))
    }

    /// The grants of a rule that are about the packet.
    fn grants<'a>(&'a self, rule: &'a Rule, packet: &'a Packet) -> impl Iterator<Item = &'a Grant> {
        let section = match packet.direction {
            Direction::Ingress => &rule.ingress,
            Direction::Egress => &rule.egress,
        };
        section.iter().filter(|grant| {
            let peer = match &grant.peers {
                Peers::Any => true,
                Peers::Of(peers) => peers.iter().any(|peer| self.is(peer, packet.peer)),
            };
            let ports = &grant.ports;
            peer && (ports.is_empty() || ports.iter().any(|p| self.means(p, grant.deny, packet)))
        })
    }

    fn identity(&self, address: IpAddr) -> Option<u32> {
        self.addresses.get(&IpPrefix::host(address)).copied()
    }

    fn is(&self, peer: &Peer, address: IpAddr) -> bool {
        let labels = match self.identity(address) {
            Some(id) if id < 256 => reserved_labels(IdentityId(id)),
            Some(id) => self.identities.get(&id).cloned(),
            None if address.is_ipv4() => reserved_labels(IdentityId::WORLD_IPV4),
            None => reserved_labels(IdentityId::WORLD_IPV6),
        };
        let labels = labels.unwrap_or_default();
        let known = !labels.as_slice().is_empty();
        let local = labels.with_key(CLUSTER_KEY).any(|l| l.value == "cluster1");
        match peer {
            Peer::LocalCluster => local,
            Peer::Cidr { cidr, except } => {
                let world = self.identity(address).is_none();
                world && cidr.contains(address) && !except.iter().any(|p| p.contains(address))
            }
            Peer::Labels(selector) => {
                let all = selector.requirements();
                let reserved = |r: &Requirement| r.source.as_deref() == Some("reserved");
                let everywhere = !self.options.default_local_cluster
                    || all.iter().any(|r| r.key == CLUSTER_KEY)
                    || (!all.is_empty() && all.iter().all(reserved));
                known && selector.matches(&labels) && (everywhere || local)
            }
        }
    }

    fn means(&self, port: &Port, deny: bool, packet: &Packet) -> bool {
        match port {
            Port::All { protocol } => packet.protocol == *protocol,
            Port::Range {
                protocol,
                first,
                last,
            } => packet.protocol == *protocol && (*first..=*last).contains(&packet.port),
            Port::Icmp { protocol, kind } => {
                packet.protocol == *protocol && packet.port == u16::from(*kind)
            }
            Port::Named { protocol, name } => {
                let is = |p: &&NamedPort| {
                    let spelled = number(&p.protocol);
                    p.name == *name
                        && protocol.is_none_or(|protocol| protocol == spelled)
                        && (spelled, p.port) == (packet.protocol, packet.port)
                };
                let mut names = self.names(packet).into_iter();
                if deny {
                    names.any(|ports| ports.iter().any(|p| is(&p)))
                } else {
                    names.len() > 0 && names.all(|ports| ports.iter().any(|p| is(&p)))
                }
            }
        }
    }

    /// The named ports of everyone whom a name could speak of.
    fn names(&self, packet: &Packet) -> Vec<Vec<NamedPort>> {
        if packet.direction == Direction::Ingress {
            return vec![self.endpoints[&packet.endpoint].ports.clone()];
        }
        let Some(identity) = self.identity(packet.peer) else {
            return Vec::new();
        };
        let same = self.addresses.iter().filter(|(_, id)| **id == identity);
        let same: BTreeSet<_> = same.map(|(prefix, _)| *prefix).collect();
        let ports = |prefix| self.ports.get(prefix).cloned().unwrap_or_default();
        same.iter().map(ports).collect()
    }
}
