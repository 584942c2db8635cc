//! What follows from a record in force: claims, the read side and deltas.
use std::{sync::Arc, time::Instant};

use bytes::Bytes;

use super::{
    Delta, DeltaKey, Mesh,
    claims::{Change, Claim, Origin},
    member::{IpKey, Member, Node, Record},
    view::IdentityView,
    waiting::Blocker,
};
use crate::{
    keyspace::Kind,
    types::{ClusterId, IdentityId, IpPrefix, Labels},
};

impl IpKey {
    const fn origin(&self) -> Origin {
        if self.masked {
            Origin::MASKED
        } else {
            Origin::ADDRESS
        }
    }
}

impl Mesh {
    /// Makes a new or changed record effective, then takes back what its predecessor alone said.
    pub(super) fn publish(
        &mut self,
        member: &Member,
        suffix: &Bytes,
        record: &Record,
        before: Option<Record>,
        revision: i64,
    ) {
        match record {
            Record::Identity { id, labels } => {
                let known = self.view.identities.get(id);
                let same = known.filter(|known| known.labels == *labels);
                let learned = same.map_or_else(Instant::now, |known| known.learned);
                let view = IdentityView {
                    labels: Arc::clone(labels),
                    cluster: member.name.clone(),
                    revision,
                    learned,
                };
                self.view.identities.insert(*id, view);
                self.push_identity(*id, Some(Arc::clone(labels)));
            }
            Record::Ip { key, identity } => {
                self.claim(key.prefix, key.origin(), member.id, *identity);
            }
            Record::Node(node) => {
                let before = match before {
                    Some(Record::Node(before)) => before,
                    _ => Arc::default(),
                };
                self.publish_node(member, suffix, node, &before);
            }
            Record::Named(Kind::Services) if !member.own => {
                *self.view.services.entry(suffix.clone()).or_insert(0) += 1;
            }
            Record::Named(_) => {}
        }
    }

    fn publish_node(&mut self, member: &Member, suffix: &Bytes, node: &Node, before: &Node) {
        let this = member.own && suffix.as_ref() == self.settings.node_name.as_bytes();
        let identity = if this {
            IdentityId::HOST
        } else {
            IdentityId::REMOTE_NODE
        };
        if member.own {
            // Counted, so that what stays is never gone in between.
            node.prefixes().iter().for_each(|(p, _)| self.occupy(*p));
            before.prefixes().iter().for_each(|(p, _)| self.vacate(p));
        }
        let origin = Origin::node(node.number);
        for address in &node.addresses {
            self.claim(IpPrefix::host(*address), origin, member.id, identity);
        }
        let old = before.addresses.iter();
        for address in old.filter(|a| !node.addresses.contains(a)) {
            self.unclaim(IpPrefix::host(*address), origin, member.id);
        }
    }

    /// Takes back what a removed record said.
    pub(super) fn withdraw(&mut self, member: &Member, suffix: &Bytes, record: Record) {
        match record {
            Record::Identity { id, .. } => {
                self.view.identities.remove(&id);
                self.push_identity(id, None);
            }
            Record::Ip { key, .. } => {
                self.ports.remove(&(member.id, key));
                self.unclaim(key.prefix, key.origin(), member.id);
            }
            Record::Node(node) => {
                for address in &node.addresses {
                    let origin = Origin::node(node.number);
                    self.unclaim(IpPrefix::host(*address), origin, member.id);
                }
                if member.own {
                    node.prefixes().iter().for_each(|(p, _)| self.vacate(p));
                }
                let name = String::from_utf8_lossy(suffix).into_owned();
                self.view.nodes.remove(&(member.name.clone(), name));
            }
            Record::Named(Kind::Services) if !member.own => {
                if let Some(mut peers) = self.view.services.get_mut(suffix) {
                    *peers -= 1;
                }
                self.view.services.remove_if(suffix, |_, peers| *peers == 0);
            }
            Record::Named(_) => {}
        }
    }

    fn push_identity(&self, id: IdentityId, labels: Option<Arc<Labels>>) {
        let delta = Delta::Identity { id, labels };
        self.deltas.push(DeltaKey::Identity(id), delta);
    }

    pub(super) fn occupy(&mut self, prefix: IpPrefix) {
        if self.territory.insert(prefix) {
            self.fresh.insert(prefix);
            self.view.territory.insert(prefix);
        }
    }

    pub(super) fn vacate(&mut self, prefix: &IpPrefix) {
        if self.territory.remove(prefix) {
            self.fresh.remove(prefix);
            self.view.territory.remove(prefix);
            self.freed.insert(Blocker::Prefix(*prefix));
        }
    }

    /// The own cluster takes the prefix from whoever has it; peers come here only if it is free.
    fn claim(
        &mut self,
        prefix: IpPrefix,
        origin: Origin,
        cluster: ClusterId,
        identity: IdentityId,
    ) {
        let holder = self.claims.holder(&prefix);
        let displaced = if holder.is_some_and(|holder| holder != cluster) {
            self.claims.displace(&prefix)
        } else {
            Vec::new()
        };
        let claim = Claim {
            identity,
            cluster,
            origin,
        };
        let change = self.claims.claim(prefix, claim);
        self.address_changed(prefix, change);
        for claim in displaced {
            self.evict_claimant(prefix, &claim);
        }
    }

    fn evict_claimant(&mut self, prefix: IpPrefix, claim: &Claim) {
        let member = self.members.values().find(|m| m.id == claim.cluster);
        let record = member.and_then(|member| {
            let found = match claim.origin.node_number() {
                Some(number) => {
                    let (suffix, _) = member.nodes().find(|(_, node)| node.number == number)?;
                    (Kind::Nodes, suffix.clone())
                }
                None => {
                    let masked = claim.origin == Origin::MASKED;
                    let key = IpKey { prefix, masked };
                    (Kind::Ips, Bytes::from(key.to_string()))
                }
            };
            Some((member.name.clone(), found))
        });
        if let Some((name, (kind, suffix))) = record {
            self.evict_one(&name, kind, &suffix);
        }
    }

    fn unclaim(&mut self, prefix: IpPrefix, origin: Origin, cluster: ClusterId) {
        let change = self.claims.withdraw(prefix, cluster, origin);
        self.address_changed(prefix, change);
    }

    fn address_changed(&mut self, prefix: IpPrefix, change: Change) {
        let ports_told = self.tell_ports(prefix);
        let Change::Target(target) = change else {
            return;
        };
        if target.is_none() {
            self.freed.insert(Blocker::Prefix(prefix));
        }
        // A workload that has no identity yet has its address, but nobody is to be told.
        let target = target.filter(|target| target.identity != IdentityId::UNKNOWN);
        let old = match target {
            Some(target) => self.view.addresses.insert(prefix, target),
            None => self.view.addresses.remove(&prefix).map(|(_, old)| old),
        };
        if old != target {
            let delta = Delta::Ip { prefix, target };
            if ports_told {
                // Behind its ports, also if an older change of it is pending.
                self.deltas.push_last(DeltaKey::Ip(prefix), delta);
            } else {
                self.deltas.push(DeltaKey::Ip(prefix), delta);
            }
        }
    }
}
