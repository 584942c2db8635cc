//! What one member of the mesh said: its records in force by kind, the values beside them that are
//! not, and which of all these a running relist has not confirmed yet.
//! Invariant: an entry is stale iff its `listing` is older than its kind's; only `sweep` and an
//! explicit delete remove entries. Of a key there may be a record in force and a newer value that is
//! not: then the older one stays in force, at the longest until a list ends that lacks it.
//! Addresses and identities, of which there are many, are kept by number: their keys are canonical.
use std::{collections::HashMap, fmt, hash::Hash, net::IpAddr, sync::Arc};

use bytes::Bytes;

use super::{Terms, ip_map::IpMap, quota::Usage, waiting::Ticket};
use crate::{
    keyspace::{Kind, Layout},
    types::{ClusterId, ClusterName, IdentityId, IpPrefix, Labels},
};

/// The key of an ip record: `10.0.0.7` and `10.0.0.7/32` are two keys of one prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct IpKey {
    pub(super) prefix: IpPrefix,
    pub(super) masked: bool,
}

impl IpKey {
    /// What a suffix that was accepted means; `None` for any other text.
    fn parse(suffix: &[u8]) -> Option<Self> {
        let text = str::from_utf8(suffix).ok()?;
        let key = Self {
            prefix: text.parse().ok()?,
            masked: text.contains('/'),
        };
        (key.to_string() == text).then_some(key)
    }
}

impl fmt::Display for IpKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.masked {
            write!(f, "{}/{}", self.prefix.addr(), self.prefix.prefix_len())
        } else {
            self.prefix.addr().fmt(f)
        }
    }
}

/// What enforcement needs of a node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Node {
    /// Stands for its name in claims; given when the node is first seen.
    pub(super) number: u32,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) cidrs: Vec<IpPrefix>,
}

/// The typed part of an entry: only what enforcement and status need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Record {
    Node(Arc<Node>),
    Identity {
        id: IdentityId,
        labels: Arc<Labels>,
    },
    Ip {
        key: IpKey,
        identity: IdentityId,
    },
    /// A service, service export or endpoint slice, known by its name only.
    Named(Kind),
}

/// An entry's place in the lists and its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) listing: u32,
    /// Key and value.
    pub(super) bytes: u32,
}

/// A value that is not in force.
#[derive(Debug, Clone)]
pub(super) enum Other {
    /// In the cache as it is, for readers that may make sense of it.
    Inert,
    /// Readable, but not allowed for now; nowhere but here.
    Held {
        value: Bytes,
        revision: i64,
        ticket: Ticket,
    },
}

/// What was taken out of a member, by key.
#[derive(Debug)]
pub(super) struct Removed {
    /// Was in force.
    pub(super) records: Vec<(Bytes, Record)>,
    /// Was not.
    pub(super) others: Vec<(Bytes, Other)>,
}

#[derive(Debug)]
struct Table<K, V>(HashMap<K, (Mark, V)>);

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash, V> Table<K, V> {
    fn extract(&mut self, gone: impl Fn(&Mark) -> bool) -> impl Iterator<Item = (Mark, K, V)> {
        let gone = self.0.extract_if(move |_, (mark, _)| gone(mark));
        gone.map(|(key, (mark, value))| (mark, key, value))
    }
}

#[derive(Debug, Default, Clone, Copy)]
struct List {
    listing: u32,
    complete: bool,
}

/// One member's entries.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) name: ClusterName,
    pub(super) id: ClusterId,
    pub(super) own: bool,
    pub(super) terms: Terms,
    pub(super) usage: Usage,
    /// What its keys in the cache start with, by kind.
    cache_prefixes: [String; Kind::ALL.len()],
    lists: [List; Kind::ALL.len()],
    /// By whether the key has a length, which it need not for a single address.
    ips: [IpMap<(Mark, IdentityId)>; 2],
    identities: Table<IdentityId, Arc<Labels>>,
    nodes: Table<Bytes, Arc<Node>>,
    /// Services, service exports, endpoint slices; by kind as the others, with unused places.
    named: [Table<Bytes, ()>; Kind::ALL.len()],
    others: [Table<Bytes, Other>; Kind::ALL.len()],
    next_node: u32,
}

impl Member {
    pub(super) fn new(name: ClusterName, own: bool, terms: Terms) -> Self {
        Self {
            cache_prefixes: Kind::ALL.map(|kind| Layout::Cache.prefix(kind, &name)),
            name,
            id: terms.id,
            own,
            terms,
            usage: Usage::default(),
            lists: Default::default(),
            ips: Default::default(),
            identities: Table::default(),
            nodes: Table::default(),
            named: Default::default(),
            others: Default::default(),
            next_node: 0,
        }
    }

    /// The key of an entry in the cache.
    pub(super) fn cache_key(&self, kind: Kind, suffix: &[u8]) -> Bytes {
        [self.cache_prefixes[kind as usize].as_bytes(), suffix]
            .concat()
            .into()
    }

    /// The listing that entries of the kind get which are seen now.
    pub(super) fn listing(&self, kind: Kind) -> u32 {
        self.lists[kind as usize].listing
    }

    /// Marks all entries of the kind as not confirmed.
    pub(super) fn begin_list(&mut self, kind: Kind) {
        let list = &mut self.lists[kind as usize];
        list.listing = list.listing.wrapping_add(1);
    }

    /// Removes and returns what `begin_list` marked and nothing confirmed since.
    pub(super) fn end_list(&mut self, kind: Kind) -> Removed {
        let list = &mut self.lists[kind as usize];
        list.complete = true;
        let listing = list.listing;
        self.extract(kind, move |mark| mark.listing != listing)
    }

    /// Removes and returns everything of the kind.
    pub(super) fn drain(&mut self, kind: Kind) -> Removed {
        self.extract(kind, |_| true)
    }

    /// True once the kind was listed completely.
    pub(super) fn is_listed(&self, kind: Kind) -> bool {
        self.lists[kind as usize].complete
    }

    /// How many records of the kind are in force.
    pub(super) fn len(&self, kind: Kind) -> usize {
        match kind {
            Kind::Nodes => self.nodes.0.len(),
            Kind::Identities => self.identities.0.len(),
            Kind::Ips => self.ips.iter().map(IpMap::len).sum(),
            Kind::Services | Kind::ServiceExports | Kind::EndpointSlices => {
                self.named[kind as usize].0.len()
            }
        }
    }

    /// Puts a record in force; returns the one it replaces.
    pub(super) fn upsert(&mut self, suffix: &Bytes, record: Record, mark: Mark) -> Option<Record> {
        let before = match record {
            Record::Ip { key, identity } => {
                let ips = &mut self.ips[usize::from(key.masked)];
                let old = ips.insert(key.prefix, (mark, identity));
                old.map(|(old, identity)| (old, Record::Ip { key, identity }))
            }
            Record::Identity { id, labels } => {
                let old = self.identities.0.insert(id, (mark, labels));
                old.map(|(old, labels)| (old, Record::Identity { id, labels }))
            }
            Record::Node(node) => {
                let old = self.nodes.0.insert(suffix.clone(), (mark, node));
                old.map(|(old, node)| (old, Record::Node(node)))
            }
            Record::Named(kind) => {
                let old = self.named[kind as usize]
                    .0
                    .insert(suffix.clone(), (mark, ()));
                old.map(|(old, ())| (old, Record::Named(kind)))
            }
        };
        if let Some((old, _)) = &before {
            self.usage.take(old.bytes);
        }
        self.usage.add(mark.bytes);
        before.map(|(_, record)| record)
    }

    /// Takes a record out of force.
    pub(super) fn remove(&mut self, kind: Kind, suffix: &[u8]) -> Option<(Mark, Record)> {
        let removed = match kind {
            Kind::Ips => {
                let key = IpKey::parse(suffix)?;
                let ips = &mut self.ips[usize::from(key.masked)];
                let (mark, identity) = ips.remove(&key.prefix)?;
                (mark, Record::Ip { key, identity })
            }
            Kind::Identities => {
                let id = identity_of(suffix)?;
                let (mark, labels) = self.identities.0.remove(&id)?;
                (mark, Record::Identity { id, labels })
            }
            Kind::Nodes => {
                let (mark, node) = self.nodes.0.remove(suffix)?;
                (mark, Record::Node(node))
            }
            Kind::Services | Kind::ServiceExports | Kind::EndpointSlices => {
                let (mark, ()) = self.named[kind as usize].0.remove(suffix)?;
                (mark, Record::Named(kind))
            }
        };
        self.usage.take(removed.0.bytes);
        Some(removed)
    }

    /// Where a record in force stands.
    pub(super) fn mark(&self, kind: Kind, suffix: &[u8]) -> Option<Mark> {
        match kind {
            Kind::Ips => {
                let key = IpKey::parse(suffix)?;
                let ips = &self.ips[usize::from(key.masked)];
                ips.get(&key.prefix).map(|e| e.0)
            }
            Kind::Identities => self.identities.0.get(&identity_of(suffix)?).map(|e| e.0),
            Kind::Nodes => self.nodes.0.get(suffix).map(|e| e.0),
            Kind::Services | Kind::ServiceExports | Kind::EndpointSlices => {
                self.named[kind as usize].0.get(suffix).map(|e| e.0)
            }
        }
    }

    /// The number that stands for a node: the one it has, or a new one.
    pub(super) fn node_number(&mut self, suffix: &[u8]) -> u32 {
        if let Some((_, node)) = self.nodes.0.get(suffix) {
            return node.number;
        }
        self.next_node = self.next_node.wrapping_add(1);
        self.next_node
    }

    pub(super) fn nodes(&self) -> impl Iterator<Item = (&Bytes, &Node)> {
        self.nodes
            .0
            .iter()
            .map(|(suffix, (_, node))| (suffix, &**node))
    }

    pub(super) fn ips(&self) -> impl Iterator<Item = IpKey> {
        let both = [false, true].into_iter().zip(&self.ips);
        both.flat_map(|(masked, ips)| ips.keys().map(move |prefix| IpKey { prefix, masked }))
    }

    /// Keeps a value beside the record in force.
    pub(super) fn set_other(&mut self, kind: Kind, suffix: Bytes, other: Other, mark: Mark) {
        self.usage_of(&other, mark, Usage::add, Usage::hold);
        let old = self.others[kind as usize].0.insert(suffix, (mark, other));
        if let Some((mark, other)) = old {
            self.usage_of(&other, mark, Usage::take, Usage::release);
        }
    }

    pub(super) fn take_other(&mut self, kind: Kind, suffix: &[u8]) -> Option<(Mark, Other)> {
        let (mark, other) = self.others[kind as usize].0.remove(suffix)?;
        self.usage_of(&other, mark, Usage::take, Usage::release);
        Some((mark, other))
    }

    pub(super) fn other(&self, kind: Kind, suffix: &[u8]) -> Option<&(Mark, Other)> {
        self.others[kind as usize].0.get(suffix)
    }

    /// True if the entry belongs into the cache.
    pub(super) fn is_cached(&self, kind: Kind, suffix: &[u8]) -> bool {
        matches!(self.other(kind, suffix), Some((_, Other::Inert)))
            || self.mark(kind, suffix).is_some()
    }

    fn usage_of(
        &mut self,
        other: &Other,
        mark: Mark,
        inert: impl Fn(&mut Usage, u32),
        held: impl Fn(&mut Usage, u32),
    ) {
        match other {
            Other::Inert => inert(&mut self.usage, mark.bytes),
            Other::Held { .. } => held(&mut self.usage, mark.bytes),
        }
    }

    fn extract(&mut self, kind: Kind, gone: impl Fn(&Mark) -> bool + Copy) -> Removed {
        let live: Vec<(Mark, Bytes, Record)> = match kind {
            Kind::Ips => {
                let both = [false, true].into_iter().zip(&mut self.ips);
                both.flat_map(|(masked, ips)| {
                    ips.extract(move |(mark, _)| gone(mark)).map(
                        move |(prefix, (mark, identity))| {
                            let key = IpKey { prefix, masked };
                            (mark, key.to_string().into(), Record::Ip { key, identity })
                        },
                    )
                })
                .collect()
            }
            Kind::Identities => {
                let gone = self.identities.extract(gone);
                gone.map(|(mark, id, labels)| {
                    (mark, id.to_string().into(), Record::Identity { id, labels })
                })
                .collect()
            }
            Kind::Nodes => {
                let gone = self.nodes.extract(gone);
                gone.map(|(mark, suffix, node)| (mark, suffix, Record::Node(node)))
                    .collect()
            }
            Kind::Services | Kind::ServiceExports | Kind::EndpointSlices => {
                let gone = self.named[kind as usize].extract(gone);
                gone.map(|(mark, suffix, ())| (mark, suffix, Record::Named(kind)))
                    .collect()
            }
        };
        let others: Vec<_> = self.others[kind as usize].extract(gone).collect();
        for (mark, _, other) in &others {
            self.usage_of(other, *mark, Usage::take, Usage::release);
        }
        let live = live.into_iter().map(|(mark, suffix, record)| {
            self.usage.take(mark.bytes);
            (suffix, record)
        });
        let live = live.collect();
        let others = others
            .into_iter()
            .map(|(_, suffix, other)| (suffix, other))
            .collect();
        Removed {
            records: live,
            others,
        }
    }
}

/// The identity that an accepted suffix names.
fn identity_of(suffix: &[u8]) -> Option<IdentityId> {
    let id = crate::keyspace::parse_identity_id(suffix).ok()?;
    u32::try_from(id).ok().map(IdentityId)
}
