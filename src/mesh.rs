//! State of all clusters, the own one included: applies each member's key events, checks that a
//! member speaks only for itself, and emits deltas.
//!
//! Invariant: what `View` shows of addresses is the effective owner of each, the own cluster first,
//! else the first member that claimed it.
//! Protocol per member: `connected`, then `apply` for lists and changes, `removed` at the end; a
//! lost connection is not told, entries stay.
//! Absent on purpose: no network, no clock.
use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use bytes::Bytes;

use crate::{
    keyspace::{ClusterConfig, KeyEvent, Kind},
    lifecycle::queue::Coalescing,
    types::{ClusterId, ClusterName, IdentityId, IpPrefix, Labels, MaxClusters},
};

use self::{
    cache::Cache,
    claims::{Change, Claims, Origin},
    decode::Rejection,
    member::{Member, Record},
};

mod cache;
mod claims;
mod decode;
mod member;
#[cfg(test)]
mod tests;

/// A change that policy and datapath must follow. Keyed by entry: only the newest per key matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delta {
    /// An identity's labels are known (`Some`) or gone (`None`).
    Identity {
        /// The identity.
        id: IdentityId,
        /// Its labels.
        labels: Option<Arc<Labels>>,
    },
    /// An address belongs to an identity (`Some`) or to nobody known (`None`).
    Ip {
        /// The address or CIDR.
        prefix: IpPrefix,
        /// Owner and identity.
        target: Option<IpTarget>,
    },
    /// All of a cluster's identities and addresses known at its list were sent: what the kernel
    /// still holds of that cluster and was not sent is stale.
    Synced {
        /// The cluster.
        cluster: ClusterId,
    },
    /// The cluster is not a member any more; its entries were sent as gone before.
    Removed {
        /// The cluster.
        cluster: ClusterId,
    },
}

/// What an address maps to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IpTarget {
    /// Identity that packets from this address carry.
    pub identity: IdentityId,
    /// The cluster that said so.
    pub cluster: ClusterId,
}

/// The read side: concurrent maps that admin, events and metrics look into. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// All clusters' nodes, by cluster and name.
    pub nodes: Arc<dashmap::DashMap<(ClusterName, String), NodeView>>,
    /// All clusters' identities (reserved ones are not in here).
    pub identities: Arc<dashmap::DashMap<IdentityId, IdentityView>>,
    /// All clusters' addresses.
    pub addresses: Arc<dashmap::DashMap<IpPrefix, IpTarget>>,
    /// Entries rejected, by cluster and reason.
    pub rejected: Arc<dashmap::DashMap<(ClusterName, &'static str), u64>>,
    /// The last [`Delta::Synced`] or [`Delta::Removed`] of each cluster, set before it is queued and
    /// after the entries it speaks of: whoever lost deltas finds it here.
    pub marks: Arc<dashmap::DashMap<ClusterId, Delta>>,
    /// Entry counts by cluster and kind.
    pub counts: Arc<dashmap::DashMap<(ClusterName, Kind), u64>>,
}

/// A node as operators list it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct NodeView {
    /// First IPv4 InternalIP, else ExternalIP, else any.
    pub ipv4: Option<Ipv4Addr>,
    /// Its IPv4 pod CIDR.
    pub ipv4_cidr: Option<IpPrefix>,
    /// First IPv6 address, same order.
    pub ipv6: Option<Ipv6Addr>,
    /// Its IPv6 pod CIDR.
    pub ipv6_cidr: Option<IpPrefix>,
    /// `local` or `clustermesh`.
    pub source: &'static str,
}

/// An identity with its provenance.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct IdentityView {
    /// Its labels.
    pub labels: Arc<Labels>,
    /// The cluster that allocated it.
    pub cluster: ClusterName,
    /// Mod revision in that cluster's store.
    pub revision: i64,
}

/// Names an entry in the queue of deltas: at most one is pending per key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeltaKey {
    /// An identity.
    Identity(IdentityId),
    /// An address.
    Ip(IpPrefix),
    /// A cluster's first complete list, or its removal.
    Cluster(ClusterId),
}

/// The queue between the mesh and the datapath.
pub type Deltas = Coalescing<DeltaKey, Delta>;

/// What does not change while the mesh lives.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The own cluster.
    pub cluster_name: ClusterName,
    /// Its id.
    pub cluster_id: ClusterId,
    /// How identities are split.
    pub max_clusters: MaxClusters,
    /// This node, whose addresses carry the identity `host`.
    pub node_name: String,
}

/// What a member is let in on; told again with each connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// Its id, which no other member has.
    pub id: ClusterId,
    /// Its configuration as it wrote it.
    pub config: ClusterConfig,
    /// The only ranges that it may claim addresses in; empty if there is no such list.
    pub allowed_cidrs: Arc<[IpPrefix]>,
    /// Its entries come by the cache of another node of the own cluster.
    pub relayed: bool,
}

/// All members' state. One task owns it.
#[derive(Debug)]
pub struct Mesh {
    settings: Settings,
    members: HashMap<ClusterName, Member>,
    claims: Claims,
    /// Pod CIDRs of the own cluster's nodes: no peer may claim an address inside.
    own_cidrs: HashMap<Bytes, Vec<IpPrefix>>,
    cache: Cache,
    view: View,
    deltas: Deltas,
}

impl Mesh {
    /// An empty mesh whose cache goes to `cache` and whose deltas go to `deltas`.
    #[must_use]
    pub fn new(settings: Settings, cache: crate::store::Store, deltas: Deltas) -> Self {
        Self {
            claims: Claims::new(settings.cluster_id),
            members: HashMap::new(),
            own_cidrs: HashMap::new(),
            cache: Cache::new(cache, settings.max_clusters),
            view: View::default(),
            deltas,
            settings,
        }
    }

    /// The read side; stays valid for the life of the mesh.
    #[must_use]
    pub fn view(&self) -> View {
        self.view.clone()
    }

    /// A member's configuration is known. A new id withdraws all that was known under the old one.
    pub fn connected(&mut self, name: &ClusterName, terms: Terms) {
        let id = terms.id;
        match self.members.get(name) {
            Some(member) if member.id == id => {}
            Some(_) => {
                self.removed(name);
                self.members.insert(name.clone(), Member::new(id));
            }
            None => {
                self.members.insert(name.clone(), Member::new(id));
            }
        }
        if *name != self.settings.cluster_name {
            self.cache.connected(name, id, terms.relayed);
        }
    }

    /// The member was removed from the configuration: withdraws all its entries.
    pub fn removed(&mut self, name: &ClusterName) {
        let Some(mut member) = self.members.remove(name) else {
            return;
        };
        // Addresses before identities: what points goes before what is pointed to.
        for kind in [Kind::Ips, Kind::Nodes, Kind::Services, Kind::Identities] {
            for (suffix, record) in member.drain(kind) {
                self.withdraw(name, member.id, &suffix, record);
            }
            self.view.counts.remove(&(name.clone(), kind));
        }
        self.view.rejected.retain(|(cluster, _), _| cluster != name);
        self.mark(member.id, Delta::Removed { cluster: member.id });
        self.cache.removed(name);
    }

    /// The member was out of reach for too long: withdraws its services, service exports and
    /// endpoint slices. Addresses and identities stay, as enforcement rests on them.
    pub fn expire_services(&mut self, name: &ClusterName) {
        let Some(member) = self.members.get_mut(name) else {
            return;
        };
        for kind in [Kind::Services, Kind::ServiceExports, Kind::EndpointSlices] {
            for (suffix, _) in member.drain(kind) {
                self.cache.delete(name, kind, &suffix);
            }
            self.view.counts.insert((name.clone(), kind), 0);
        }
    }

    /// Applies events of one member, in order. Events of an unknown member are ignored.
    pub fn apply(&mut self, name: &ClusterName, events: Vec<KeyEvent>) {
        let Some(id) = self.members.get(name).map(|m| m.id) else {
            return;
        };
        for event in events {
            match event {
                KeyEvent::Upsert {
                    kind,
                    suffix,
                    value,
                    revision,
                } => {
                    self.upsert(name, id, kind, suffix, value, revision);
                }
                KeyEvent::Delete { kind, suffix } => {
                    let member = self.members.get_mut(name);
                    if let Some(record) = member.and_then(|m| m.remove(kind, &suffix)) {
                        self.withdraw(name, id, &suffix, record);
                    }
                    self.uncache(name, kind, &suffix);
                }
                KeyEvent::BeginList { kind } => {
                    if let Some(member) = self.members.get_mut(name) {
                        member.begin_list(kind);
                    }
                }
                KeyEvent::EndList { kind } => self.end_list(name, id, kind),
            }
        }
        if let Some(member) = self.members.get(name) {
            for kind in Kind::ALL {
                self.view
                    .counts
                    .insert((name.clone(), kind), member.len(kind) as u64);
            }
        }
    }

    fn end_list(&mut self, name: &ClusterName, id: ClusterId, kind: Kind) {
        let Some(member) = self.members.get_mut(name) else {
            return;
        };
        let was_synced = member.is_listed(Kind::Identities) && member.is_listed(Kind::Ips);
        let swept = member.sweep(kind);
        let synced = member.is_listed(Kind::Identities) && member.is_listed(Kind::Ips);
        for (suffix, record) in swept {
            self.withdraw(name, id, &suffix, record);
            self.uncache(name, kind, &suffix);
        }
        if synced && !was_synced {
            self.mark(id, Delta::Synced { cluster: id });
        }
        if *name != self.settings.cluster_name {
            self.cache.listed(name, kind);
        }
    }

    fn upsert(
        &mut self,
        name: &ClusterName,
        id: ClusterId,
        kind: Kind,
        suffix: Bytes,
        value: Bytes,
        revision: i64,
    ) {
        let own = *name == self.settings.cluster_name;
        let author = decode::Author {
            name,
            id,
            max: self.settings.max_clusters,
            own,
        };
        let decoded = decode::decode(&author, kind, &suffix, &value)
            .and_then(|d| if own { Ok(d) } else { self.owner_check(id, d) });
        let decoded = match decoded {
            Ok(decoded) => decoded,
            Err(rejection) => {
                self.reject(name, kind, &suffix, &rejection);
                let undecodable = rejection.is_undecodable();
                let Some(member) = self.members.get_mut(name) else {
                    return;
                };
                if undecodable && !member.contains(kind, &suffix) {
                    member.upsert(kind, suffix.clone(), Record::Inert);
                }
                if undecodable && !own {
                    self.cache.upsert(name, kind, &suffix, value);
                }
                return;
            }
        };
        if !own {
            self.cache.upsert(name, kind, &suffix, value);
        }
        let decode::Decoded { record, node } = decoded;
        let Some(member) = self.members.get_mut(name) else {
            return;
        };
        let before = member.upsert(kind, suffix.clone(), record.clone());
        if let Some(node) = node {
            let key = (name.clone(), String::from_utf8_lossy(&suffix).into_owned());
            self.view.nodes.insert(key, node);
        }
        if before.as_ref() == Some(&record) {
            return;
        }
        self.publish(name, id, &suffix, &record, before, revision);
    }

    /// Makes a new or changed record effective, then takes back what its predecessor alone said.
    fn publish(
        &mut self,
        name: &ClusterName,
        id: ClusterId,
        suffix: &Bytes,
        record: &Record,
        before: Option<Record>,
        revision: i64,
    ) {
        match record {
            Record::Identity {
                id: identity,
                labels,
            } => {
                let view = IdentityView {
                    labels: Arc::clone(labels),
                    cluster: name.clone(),
                    revision,
                };
                self.view.identities.insert(*identity, view);
                let delta = Delta::Identity {
                    id: *identity,
                    labels: Some(Arc::clone(labels)),
                };
                self.deltas.push(DeltaKey::Identity(*identity), delta);
            }
            Record::Ip { prefix, identity } => {
                if *identity == IdentityId::UNKNOWN {
                    self.unclaim(*prefix, Origin::Ip, id);
                } else {
                    self.claim(*prefix, Origin::Ip, id, *identity);
                }
            }
            Record::Node { addresses, cidrs } => {
                let own = *name == self.settings.cluster_name;
                let this = own && suffix.as_ref() == self.settings.node_name.as_bytes();
                let identity = if this {
                    IdentityId::HOST
                } else {
                    IdentityId::REMOTE_NODE
                };
                for address in addresses {
                    self.claim(IpPrefix::host(*address), Origin::Node, id, identity);
                }
                if let Some(Record::Node { addresses: old, .. }) = before {
                    for address in old.iter().filter(|a| !addresses.contains(a)) {
                        self.unclaim(IpPrefix::host(*address), Origin::Node, id);
                    }
                }
                if own {
                    self.own_cidrs.insert(suffix.clone(), cidrs.clone());
                    self.evict_intruders(cidrs);
                }
            }
            Record::Service | Record::Inert => {}
        }
    }

    /// Withdraws peers' addresses that lie in `cidrs`, which the own cluster just turned out to
    /// hold; they come back only if the peer sends them again when they are free.
    fn evict_intruders(&mut self, cidrs: &[IpPrefix]) {
        let mut evicted = Vec::new();
        for (name, member) in &self.members {
            if *name == self.settings.cluster_name {
                continue;
            }
            for (suffix, record) in member.records(Kind::Ips) {
                let Record::Ip { prefix, .. } = record else {
                    continue;
                };
                if cidrs.iter().any(|c| overlap(c, prefix)) {
                    evicted.push((name.clone(), member.id, suffix.clone()));
                }
            }
        }
        for (name, id, suffix) in evicted {
            let member = self.members.get_mut(&name);
            if let Some(record) = member.and_then(|m| m.remove(Kind::Ips, &suffix)) {
                self.withdraw(&name, id, &suffix, record);
                self.uncache(&name, Kind::Ips, &suffix);
                self.reject(&name, Kind::Ips, &suffix, &Rejection::AddressOfOwnCluster);
            }
        }
    }

    /// A peer may claim neither our nodes' addresses nor anything in our pod CIDRs, nor an address
    /// that another peer holds (that one waits behind its owner).
    fn owner_check(
        &self,
        id: ClusterId,
        decoded: decode::Decoded,
    ) -> Result<decode::Decoded, Rejection> {
        let own = self.settings.cluster_id;
        let ours = |prefix: &IpPrefix| {
            self.claims.held_by_other(prefix, id) == Some(own)
                || self
                    .own_cidrs
                    .values()
                    .flatten()
                    .any(|c| overlap(c, prefix))
        };
        match &decoded.record {
            Record::Ip { prefix, .. } if ours(prefix) => Err(Rejection::AddressOfOwnCluster),
            Record::Ip { prefix, .. } if is_too_wide(prefix) => Err(Rejection::PrefixTooWide),
            Record::Node { addresses, .. }
                if addresses.iter().any(|a| ours(&IpPrefix::host(*a))) =>
            {
                Err(Rejection::AddressOfOwnCluster)
            }
            _ => Ok(decoded),
        }
    }

    /// Takes back what a removed record said.
    fn withdraw(&mut self, name: &ClusterName, id: ClusterId, suffix: &Bytes, record: Record) {
        match record {
            Record::Identity { id: identity, .. } => {
                self.view.identities.remove(&identity);
                let delta = Delta::Identity {
                    id: identity,
                    labels: None,
                };
                self.deltas.push(DeltaKey::Identity(identity), delta);
            }
            Record::Ip { prefix, .. } => self.unclaim(prefix, Origin::Ip, id),
            Record::Node { addresses, .. } => {
                for address in addresses {
                    self.unclaim(IpPrefix::host(address), Origin::Node, id);
                }
                let node = String::from_utf8_lossy(suffix).into_owned();
                self.view.nodes.remove(&(name.clone(), node));
                if *name == self.settings.cluster_name {
                    self.own_cidrs.remove(suffix);
                }
            }
            Record::Service | Record::Inert => {}
        }
    }

    fn claim(&mut self, prefix: IpPrefix, origin: Origin, id: ClusterId, identity: IdentityId) {
        let target = IpTarget {
            identity,
            cluster: id,
        };
        let change = self.claims.claim(prefix, origin, target);
        self.address_changed(prefix, change);
    }

    fn unclaim(&mut self, prefix: IpPrefix, origin: Origin, id: ClusterId) {
        let change = self.claims.withdraw(prefix, origin, id);
        self.address_changed(prefix, change);
    }

    fn address_changed(&self, prefix: IpPrefix, change: Change) {
        let Change::Target(target) = change else {
            return;
        };
        match target {
            Some(target) => drop(self.view.addresses.insert(prefix, target)),
            None => drop(self.view.addresses.remove(&prefix)),
        }
        self.deltas
            .push(DeltaKey::Ip(prefix), Delta::Ip { prefix, target });
    }

    fn mark(&self, id: ClusterId, mark: Delta) {
        self.view.marks.insert(id, mark.clone());
        self.deltas.push(DeltaKey::Cluster(id), mark);
    }

    fn uncache(&self, name: &ClusterName, kind: Kind, suffix: &[u8]) {
        if *name != self.settings.cluster_name {
            self.cache.delete(name, kind, suffix);
        }
    }

    fn reject(&self, name: &ClusterName, kind: Kind, suffix: &[u8], rejection: &Rejection) {
        let mut count = self
            .view
            .rejected
            .entry((name.clone(), rejection.reason()))
            .or_insert(0);
        *count += 1;
        // The first few of a reason are enough to find the fault; a flood must not fill the log.
        if *count <= crate::limits::REJECTIONS_LOGGED_MAX {
            tracing::warn!(
                cluster = %name,
                ?kind,
                key = %String::from_utf8_lossy(suffix),
                reason = rejection.reason(),
                error = %rejection,
                "Entry rejected"
            );
        }
    }
}

fn overlap(a: &IpPrefix, b: &IpPrefix) -> bool {
    a.contains(b.addr()) || b.contains(a.addr())
}

/// Prefixes this wide could swallow whole address plans, so no peer gets them.
fn is_too_wide(prefix: &IpPrefix) -> bool {
    match prefix.addr() {
        IpAddr::V4(_) => prefix.prefix_len() < 8,
        IpAddr::V6(_) => prefix.prefix_len() < 16,
    }
}
