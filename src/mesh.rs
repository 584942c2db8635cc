//! State of all clusters, the own one included: applies each member's key events, checks that a
//! member speaks only for itself, and emits deltas.
//!
//! Invariant: what `View` shows of addresses is the effective owner of each, the own cluster first,
//! else the first member that claimed it.
//! Protocol per member: `connected`, then `apply` for lists and changes, `removed` at the end; a
//! lost connection is not told, entries stay.
//! Absent on purpose: no network, no clock.
use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    keyspace::{ClusterConfig, KeyEvent, Kind},
    lifecycle::queue::Coalescing,
    limits,
    types::{ClusterId, ClusterName, IdentityId, IpPrefix, Labels, MaxClusters, NamedPort},
};

use self::{
    cache::Cache,
    claims::Claims,
    decode::Rejection,
    member::Member,
    ports::Ports,
    prefixes::PrefixSet,
    quota::Quota,
    view::Rejections,
    waiting::{Blocker, Waiting},
};
pub use self::{
    image::{Fingerprint, Image, ImageError, fingerprint},
    propagation::{Propagation, Sample},
    view::{Claimant, IdentityView, NodeView, Offender, View},
};

mod cache;
mod claims;
mod decode;
mod effect;
mod entries;
mod image;
mod ip_map;
mod member;
mod ports;
mod prefixes;
mod propagation;
#[cfg(test)]
mod proptests;
mod quota;
mod rules;
#[cfg(test)]
mod tests;
mod view;
mod waiting;

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
    /// The ports of an address have these names, sorted as its record has them; none if empty. Comes
    /// before the [`Delta::Ip`] of the same address if both change.
    NamedPorts {
        /// The address or CIDR.
        prefix: IpPrefix,
        /// Them.
        ports: Arc<[NamedPort]>,
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

/// Names an entry in the queue of deltas: at most one is pending per key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeltaKey {
    /// An identity.
    Identity(IdentityId),
    /// An address.
    Ip(IpPrefix),
    /// The names of an address's ports.
    NamedPorts(IpPrefix),
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

/// What events took, beside their number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cost {
    /// Bytes of values.
    pub bytes: usize,
    /// Bytes that compressed values expanded to.
    pub expanded: usize,
    /// Entries that were refused.
    pub refused: usize,
}

/// All members' state. One task owns it.
#[derive(Debug)]
pub struct Mesh {
    settings: Settings,
    members: HashMap<ClusterName, Member>,
    claims: Claims,
    ports: Ports,
    /// Addresses and pod CIDRs of the own cluster's nodes: no peer may claim anything in there.
    territory: PrefixSet,
    /// What of it is new, so that peers may hold some of it.
    fresh: PrefixSet,
    /// What of it is known from an earlier process only.
    remembered: Vec<IpPrefix>,
    waiting: Waiting,
    /// What came free, so that somebody may have waited for it.
    freed: BTreeSet<Blocker>,
    /// Members whose entries changed since they were counted.
    changed: BTreeSet<ClusterName>,
    quota: Quota,
    /// Of the events that are being applied.
    cost: Cost,
    cache: Cache,
    view: View,
    rejections: Rejections,
    deltas: Deltas,
}

impl Mesh {
    /// An empty mesh whose cache goes to `cache` and whose deltas go to `deltas`.
    #[must_use]
    pub fn new(settings: Settings, cache: crate::store::Store, deltas: Deltas) -> Self {
        let view = View::default();
        Self {
            settings,
            members: HashMap::new(),
            claims: Claims::default(),
            ports: Ports::default(),
            territory: PrefixSet::default(),
            fresh: PrefixSet::default(),
            remembered: Vec::new(),
            waiting: Waiting::new(Arc::clone(&view.claimants)),
            freed: BTreeSet::new(),
            changed: BTreeSet::new(),
            quota: Quota::OF_PEER,
            cost: Cost::default(),
            cache: Cache::new(cache),
            view,
            rejections: Rejections::default(),
            deltas,
        }
    }

    /// Removes a peer's data from the cache after another time than [`CACHE_GRACE`](crate::limits::CACHE_GRACE).
    #[must_use]
    pub const fn with_cache_grace(mut self, grace: Duration) -> Self {
        self.cache.grace = grace;
        self
    }

    /// The read side; stays valid for the life of the mesh.
    #[must_use]
    pub fn view(&self) -> View {
        self.view.clone()
    }

    /// The own cluster, the only member that is trusted.
    #[must_use]
    pub const fn own_name(&self) -> &ClusterName {
        &self.settings.cluster_name
    }

    /// The end of the queue of deltas, as [`Deltas::end`].
    #[must_use]
    pub fn deltas_end(&self) -> u64 {
        self.deltas.end()
    }

    /// Takes what the own cluster had when an earlier process last knew, so that no peer gets any of
    /// it while the own store can't be read. The first lists of the own nodes and addresses take its
    /// place.
    pub fn remember(&mut self, own: Vec<IpPrefix>) {
        own.iter().for_each(|prefix| self.occupy(*prefix));
        self.remembered = own;
        self.evict();
        self.view.own_known.send_replace(true);
    }

    /// A member's configuration is known. A new id withdraws all that was known under the old one.
    /// Whatever the new terms forbid is withdrawn, and what they allow comes in.
    pub fn connected(&mut self, name: &ClusterName, terms: Terms) {
        let now_of_another = |m: &&Member| m.id == terms.id && m.name != *name;
        if let Some(other) = self.members.values().find(now_of_another) {
            // An id is given to one peer at a time, so the other's removal is on its way.
            let other = other.name.clone();
            self.withdraw_member(&other);
            self.cache.purge(&other);
        }
        if self.members.get(name).is_some_and(|m| m.id != terms.id) {
            self.withdraw_member(name);
            self.cache.purge(name);
        }
        let own = *name == self.settings.cluster_name;
        if !own {
            self.cache.connected(name, &terms);
        }
        self.view.terms.insert(name.clone(), terms.clone());
        match self.members.remove(name) {
            Some(mut member) => {
                let allowed = std::mem::replace(&mut member.terms, terms).allowed_cidrs;
                let changed = allowed != member.terms.allowed_cidrs;
                let capabilities = member.terms.config.capabilities.clone();
                for kind in Kind::ALL
                    .into_iter()
                    .filter(|kind| !capabilities.offers(*kind))
                {
                    self.drain(&mut member, kind);
                    self.view.restored.remove(&(name.clone(), kind));
                }
                if changed {
                    self.judge_addresses_again(&mut member);
                }
                self.members.insert(name.clone(), member);
            }
            None => {
                let member = Member::new(name.clone(), own, terms);
                self.members.insert(name.clone(), member);
            }
        }
        self.settle();
        self.changed.insert(name.clone());
        self.count();
    }

    /// What the operator's file allows a member now, whether or not it is connected: what goes beyond
    /// that is withdrawn, all of it if the file pins another id than the member has.
    pub fn terms(
        &mut self,
        name: &ClusterName,
        pin: Option<ClusterId>,
        allowed_cidrs: &Arc<[IpPrefix]>,
        now: Instant,
    ) {
        let Some(member) = self.members.get(name) else {
            return;
        };
        if pin.is_some_and(|pin| pin != member.id) {
            return self.removed(name, now);
        }
        if member.terms.allowed_cidrs != *allowed_cidrs {
            let terms = Terms {
                allowed_cidrs: Arc::clone(allowed_cidrs),
                ..member.terms.clone()
            };
            self.connected(name, terms);
        }
    }

    /// The member was removed from the configuration: withdraws all its entries. What the cache
    /// holds of it is deleted later, see [`Self::expire`].
    pub fn removed(&mut self, name: &ClusterName, now: Instant) {
        if let Some(id) = self.withdraw_member(name) {
            self.cache.removed(name, id, now);
        }
        self.settle();
        self.count();
    }

    /// The member was out of reach for too long: withdraws its services, service exports and
    /// endpoint slices. Addresses and identities stay, as enforcement rests on them.
    pub fn expire_services(&mut self, name: &ClusterName) {
        let Some(mut member) = self.members.remove(name) else {
            return;
        };
        for kind in [Kind::Services, Kind::ServiceExports, Kind::EndpointSlices] {
            for suffix in self.drain(&mut member, kind) {
                self.cache.delete(&member.cache_key(kind, &suffix));
            }
        }
        self.members.insert(name.clone(), member);
        self.changed.insert(name.clone());
        self.count();
    }

    /// Deletes from the cache what was removed long enough ago.
    pub fn expire(&mut self, now: Instant) {
        self.cache.expire(now);
    }

    /// When `expire` has something to do; `None` while it has not.
    #[must_use]
    pub fn expires(&self) -> Option<Instant> {
        self.cache.expires()
    }

    /// Applies events of one member, in order. Events of an unknown member are ignored.
    ///
    /// An event costs what decoding its value costs, plus a few look-ups for each address that it
    /// speaks of. Only what waits for exactly what it frees is judged again.
    pub fn apply(
        &mut self,
        name: &ClusterName,
        events: impl IntoIterator<Item = KeyEvent>,
    ) -> Cost {
        let Some(mut member) = self.members.remove(name) else {
            return Cost::default();
        };
        for event in events {
            self.event(&mut member, event);
        }
        self.members.insert(name.clone(), member);
        self.evict();
        self.settle();
        self.changed.insert(name.clone());
        self.count();
        std::mem::take(&mut self.cost)
    }

    /// Tells that a member's changes have to wait because they are too many, `event` in front.
    pub fn delayed(&self, name: &ClusterName, event: &KeyEvent) {
        let (KeyEvent::Upsert { suffix, .. } | KeyEvent::Delete { suffix, .. }) = event else {
            return;
        };
        if let Some(member) = self.members.get(name) {
            let revision = match event {
                KeyEvent::Upsert { revision, .. } => *revision,
                _ => 0,
            };
            let rejection = Rejection::EventRate(limits::PEER_CHANGES.0);
            let what = (event.kind(), &**suffix, revision);
            self.rejections.note(&self.view, member, what, &rejection);
        }
    }

    fn withdraw_member(&mut self, name: &ClusterName) -> Option<ClusterId> {
        let mut member = self.members.remove(name)?;
        // Addresses before identities: what points goes before what is pointed to.
        for kind in [
            Kind::Ips,
            Kind::Nodes,
            Kind::Services,
            Kind::ServiceExports,
            Kind::EndpointSlices,
            Kind::Identities,
        ] {
            self.drain(&mut member, kind);
        }
        self.view.forget(name);
        self.mark(member.id, Delta::Removed { cluster: member.id });
        Some(member.id)
    }

    fn mark(&self, id: ClusterId, mark: Delta) {
        self.view.marks.insert(id, mark.clone());
        // Behind the entries that it speaks of, also if an older mark of the cluster is pending.
        self.deltas.push_last(DeltaKey::Cluster(id), mark);
    }

    /// Tells the numbers of members that may have others now.
    fn count(&mut self) {
        for name in std::mem::take(&mut self.changed) {
            let Some(member) = self.members.get(&name) else {
                continue;
            };
            for kind in Kind::ALL {
                let count = member.len(kind) as u64;
                self.view.counts.insert((name.clone(), kind), count);
            }
        }
    }
}
