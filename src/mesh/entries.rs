//! Events of one member: judges values, keeps those that are in force, those for the cache alone
//! and those that wait, and judges again what waited.
use bytes::Bytes;

use super::{
    Delta, Mesh,
    decode::{self, Decoded, Rejection},
    member::{Mark, Member, Other, Record, Removed},
    view::NodeView,
    waiting::{Blocker, Waiter},
};
use crate::{
    keyspace::{KeyEvent, Kind},
    types::ClusterName,
};

/// A value as it came.
struct Entry {
    kind: Kind,
    suffix: Bytes,
    value: Bytes,
    revision: i64,
    /// The list that confirmed it last.
    listing: u32,
}

impl Entry {
    fn mark(&self) -> Mark {
        let bytes = self.suffix.len() + self.value.len();
        Mark {
            listing: self.listing,
            bytes: u32::try_from(bytes).unwrap_or(u32::MAX),
        }
    }
}

impl Mesh {
    /// `member` is out of the map of members meanwhile.
    pub(super) fn event(&mut self, member: &mut Member, event: KeyEvent) {
        match event {
            KeyEvent::Upsert {
                kind,
                suffix,
                value,
                revision,
            } => {
                let listing = member.listing(kind);
                let entry = Entry {
                    kind,
                    suffix,
                    value,
                    revision,
                    listing,
                };
                if let Err(rejection) = self.upsert(member, &entry) {
                    self.cost.refused += 1;
                    let what = (kind, &*entry.suffix, revision);
                    self.rejections.note(&self.view, member, what, &rejection);
                }
            }
            KeyEvent::Delete { kind, suffix } => self.delete(member, kind, &suffix),
            KeyEvent::BeginList { kind } => member.begin_list(kind),
            KeyEvent::EndList { kind } => self.end_list(member, kind),
        }
    }

    /// Withdraws everything of a kind and returns the keys; the cache keeps its copies.
    pub(super) fn drain(&mut self, member: &mut Member, kind: Kind) -> Vec<Bytes> {
        let removed = member.drain(kind);
        self.gone(member, removed)
    }

    /// Puts a value to where it belongs. An error is for the counters; all is done that follows.
    fn upsert(&mut self, member: &mut Member, entry: &Entry) -> Result<(), Rejection> {
        let author = decode::Author {
            name: &member.name,
            id: member.id,
            max: self.settings.max_clusters,
            own: member.own,
        };
        let (suffix, value) = (&entry.suffix, &entry.value);
        let decoded = decode::decode(&author, entry.kind, suffix, value, &mut self.cost);
        let (record, node, ports) = match decoded {
            Ok(Decoded::Record {
                record,
                node,
                ports,
            }) => (record, node, ports),
            Ok(Decoded::Unshared) => {
                if let Some((_, record)) = member.remove(entry.kind, &entry.suffix) {
                    self.withdraw(member, &entry.suffix, record);
                }
                return self.set_inert(member, entry);
            }
            Err(rejection) if rejection.is_undecodable() => {
                self.set_inert(member, entry)?;
                return Err(rejection);
            }
            // It goes nowhere; what was there before stays, until a list ends without it.
            Err(rejection) => return Err(rejection),
        };
        let permitted = if member.own {
            Ok(())
        } else {
            let old = member.mark(entry.kind, &entry.suffix);
            let old = old.map(|mark| mark.bytes);
            let quota = |rejection| (rejection, Blocker::Quota(member.id));
            self.permit(member, &record).and_then(|()| {
                let bytes = entry.suffix.len() + entry.value.len();
                member.usage.room(&self.quota, old, bytes).map_err(quota)
            })
        };
        match permitted {
            Ok(()) => {
                self.set_ports(member.id, &record, ports);
                self.accept(member, entry, record, node);
                Ok(())
            }
            Err((rejection, blocker)) => {
                self.hold(member, entry, blocker);
                Err(rejection)
            }
        }
    }

    fn accept(
        &mut self,
        member: &mut Member,
        entry: &Entry,
        mut record: Record,
        node: Option<NodeView>,
    ) {
        self.forget_other(member, entry.kind, &entry.suffix);
        if !member.own {
            let key = member.cache_key(entry.kind, &entry.suffix);
            self.cache.upsert(key, entry.value.clone());
        }
        if let Record::Node(node) = &mut record {
            let number = member.node_number(&entry.suffix);
            std::sync::Arc::make_mut(node).number = number;
        }
        if let Some(node) = node {
            let name = String::from_utf8_lossy(&entry.suffix).into_owned();
            self.view.nodes.insert((member.name.clone(), name), node);
        }
        let before = member.upsert(&entry.suffix, record.clone(), entry.mark());
        if before.as_ref() != Some(&record) {
            self.publish(member, &entry.suffix, &record, before, entry.revision);
        }
        if let Record::Ip { key, .. } = record {
            self.tell_ports(key.prefix);
        }
    }

    /// Known and copied, but not in force. Whatever was in force of the key stays so.
    fn set_inert(&mut self, member: &mut Member, entry: &Entry) -> Result<(), Rejection> {
        let was = self.forget_other(member, entry.kind, &entry.suffix);
        if !member.own {
            let key = member.cache_key(entry.kind, &entry.suffix);
            let bytes = entry.suffix.len() + entry.value.len();
            if let Err(rejection) = member.usage.room(&self.quota, None, bytes) {
                if matches!(was, Some(Other::Inert)) {
                    self.cache.delete(&key);
                }
                return Err(rejection);
            }
            self.cache.upsert(key, entry.value.clone());
        }
        let suffix = entry.suffix.clone();
        member.set_other(entry.kind, suffix, Other::Inert, entry.mark());
        Ok(())
    }

    /// Keeps a value until its blocker is gone, if there is room.
    fn hold(&mut self, member: &mut Member, entry: &Entry, blocker: Blocker) {
        let (kind, suffix) = (entry.kind, &entry.suffix);
        let was = self.forget_other(member, kind, suffix);
        if matches!(was, Some(Other::Inert)) && member.mark(kind, suffix).is_none() {
            self.cache.delete(&member.cache_key(kind, suffix));
        }
        if !member
            .usage
            .may_hold(&self.quota, suffix.len() + entry.value.len())
        {
            return;
        }
        let waiter = Waiter {
            cluster: member.name.clone(),
            kind,
            suffix: suffix.clone(),
        };
        let held = Other::Held {
            value: entry.value.clone(),
            revision: entry.revision,
            ticket: self.waiting.add(blocker, waiter),
        };
        member.set_other(kind, suffix.clone(), held, entry.mark());
    }

    fn forget_other(&mut self, member: &mut Member, kind: Kind, suffix: &[u8]) -> Option<Other> {
        let (_, other) = member.take_other(kind, suffix)?;
        if let Other::Held { ticket, .. } = &other {
            self.waiting.remove(*ticket);
        }
        Some(other)
    }

    fn delete(&mut self, member: &mut Member, kind: Kind, suffix: &Bytes) {
        self.forget_other(member, kind, suffix);
        if let Some((_, record)) = member.remove(kind, suffix) {
            self.withdraw(member, suffix, record);
        }
        self.uncache(member, kind, suffix);
    }

    fn uncache(&mut self, member: &Member, kind: Kind, suffix: &[u8]) {
        if !member.own {
            self.cache.delete(&member.cache_key(kind, suffix));
            self.freed.insert(Blocker::Quota(member.id));
        }
    }

    fn end_list(&mut self, member: &mut Member, kind: Kind) {
        let both = |m: &Member| m.is_listed(Kind::Identities) && m.is_listed(Kind::Ips);
        let was_synced = both(member);
        let removed = member.end_list(kind);
        for suffix in self.gone(member, removed) {
            // A value that nobody can read may have been confirmed.
            if !member.is_cached(kind, &suffix) {
                self.uncache(member, kind, &suffix);
            }
        }
        self.view.restored.remove(&(member.name.clone(), kind));
        if both(member) && !was_synced {
            self.mark(member.id, Delta::Synced { cluster: member.id });
        }
        if !member.own {
            let known = |suffix: &[u8]| member.is_cached(kind, suffix);
            let relayed = member.terms.relayed;
            self.cache.listed(&member.name, kind, relayed, known);
        } else if member.is_listed(Kind::Nodes) && member.is_listed(Kind::Ips) {
            // Whatever it still has it says itself now.
            let remembered = std::mem::take(&mut self.remembered);
            remembered.iter().for_each(|prefix| self.vacate(prefix));
            self.view.own_known.send_replace(true);
        }
    }

    /// Withdraws what was removed from the member; returns all its keys.
    fn gone(&mut self, member: &Member, removed: Removed) -> Vec<Bytes> {
        let Removed { records, others } = removed;
        let mut keys = Vec::with_capacity(records.len() + others.len());
        if !member.own {
            self.freed.insert(Blocker::Quota(member.id));
        }
        for (suffix, other) in others {
            if let Other::Held { ticket, .. } = other {
                self.waiting.remove(ticket);
            }
            keys.push(suffix);
        }
        for (suffix, record) in records {
            self.withdraw(member, &suffix, record);
            keys.push(suffix);
        }
        keys
    }

    /// The terms of the member changed: what they forbid is held back, what was held back for them
    /// comes in.
    pub(super) fn judge_addresses_again(&mut self, member: &mut Member) {
        let forbidden = |prefixes: Vec<_>| {
            let mut prefixes = prefixes.iter();
            prefixes.any(|(prefix, _)| member.terms.allow(prefix).is_err())
        };
        let ips = member.ips().filter(|key| forbidden(key.prefixes()));
        let ips = ips.map(|key| (Kind::Ips, Bytes::from(key.to_string())));
        let nodes = member
            .nodes()
            .filter(|(_, node)| forbidden(node.prefixes()));
        let nodes = nodes.map(|(suffix, _)| (Kind::Nodes, suffix.clone()));
        let forbidden: Vec<_> = ips.chain(nodes).collect();
        for (kind, suffix) in forbidden {
            self.judge_again(member, kind, &suffix);
        }
        self.freed.insert(Blocker::Terms(member.id));
    }

    /// The own cluster has more than before: what peers hold of that is taken from them.
    pub(super) fn evict(&mut self) {
        if self.fresh.is_empty() {
            return;
        }
        let fresh = std::mem::take(&mut self.fresh);
        let taken = |prefixes: Vec<_>| {
            let mut prefixes = prefixes.iter();
            prefixes.any(|(prefix, _)| fresh.overlapping(prefix).is_some())
        };
        let mut evicted = Vec::new();
        for member in self.members.values().filter(|member| !member.own) {
            let ips = member
                .ips()
                .filter(|key| fresh.overlapping(&key.prefix).is_some());
            let ips = ips.map(|key| (Kind::Ips, Bytes::from(key.to_string())));
            let nodes = member.nodes().filter(|(_, node)| taken(node.prefixes()));
            let nodes = nodes.map(|(suffix, _)| (Kind::Nodes, suffix.clone()));
            evicted.extend(ips.chain(nodes).map(|(k, s)| (member.name.clone(), k, s)));
        }
        for (name, kind, suffix) in evicted {
            self.evict_one(&name, kind, &suffix);
        }
    }

    /// Takes one record of a peer out of force that breaks a rule now.
    pub(super) fn evict_one(&mut self, name: &ClusterName, kind: Kind, suffix: &Bytes) {
        if let Some(mut member) = self.members.remove(name) {
            self.judge_again(&mut member, kind, suffix);
            self.members.insert(name.clone(), member);
            self.changed.insert(name.clone());
        }
    }

    /// Takes a record out of force and its bytes back from the cache, as if they came now.
    fn judge_again(&mut self, member: &mut Member, kind: Kind, suffix: &Bytes) {
        let key = member.cache_key(kind, suffix);
        let Some((mark, record)) = member.remove(kind, suffix) else {
            return;
        };
        self.withdraw(member, suffix, record);
        let Some(value) = self.cache.value(&key) else {
            return;
        };
        self.cache.delete(&key);
        let entry = Entry {
            kind,
            suffix: suffix.clone(),
            value: Bytes::copy_from_slice(&value),
            revision: 0,
            listing: mark.listing,
        };
        if let Err(rejection) = self.upsert(member, &entry) {
            let what = (kind, &**suffix, 0);
            self.rejections.note(&self.view, member, what, &rejection);
        }
    }

    /// Gives those their turn who waited for what came free.
    pub(super) fn settle(&mut self) {
        while let Some(blocker) = self.freed.pop_first() {
            match blocker {
                Blocker::Prefix(_) | Blocker::Terms(_) => {
                    for waiter in self.waiting.of(blocker) {
                        self.retry(&waiter);
                    }
                }
                Blocker::Quota(_) => {
                    while let Some(waiter) = self.waiting.first(blocker)
                        && self.retry(&waiter)
                    {}
                }
            }
        }
    }

    /// True if the record does not wait for its quota any more.
    fn retry(&mut self, waiter: &Waiter) -> bool {
        let Waiter { kind, suffix, .. } = waiter;
        let Some(mut member) = self.members.remove(&waiter.cluster) else {
            return false;
        };
        let done = self.retry_of(&mut member, *kind, suffix);
        self.members.insert(waiter.cluster.clone(), member);
        self.changed.insert(waiter.cluster.clone());
        done
    }

    fn retry_of(&mut self, member: &mut Member, kind: Kind, suffix: &Bytes) -> bool {
        let Some((
            mark,
            Other::Held {
                value,
                revision,
                ticket,
            },
        )) = member.other(kind, suffix)
        else {
            return false;
        };
        let entry = Entry {
            kind,
            suffix: suffix.clone(),
            value: value.clone(),
            revision: *revision,
            listing: mark.listing,
        };
        let old = member.mark(kind, suffix).map(|mark| mark.bytes);
        if matches!(ticket.0, Blocker::Quota(_))
            && member
                .usage
                .room(&self.quota, old, suffix.len() + entry.value.len())
                .is_err()
        {
            // It keeps its place.
            return false;
        }
        // It was counted when it came.
        self.upsert(member, &entry).ok();
        true
    }
}
