//! What one member of the mesh said: its entries by kind, and which of them a running relist has
//! not confirmed yet.
//! Invariant: an entry is stale iff its `listing` is older than its kind's; only `sweep` and an
//! explicit delete remove entries.
use std::{collections::HashMap, net::IpAddr, sync::Arc};

use bytes::Bytes;

use crate::{
    keyspace::Kind,
    types::{ClusterId, IdentityId, IpPrefix, Labels},
};

/// The typed part of an entry: only what enforcement and status need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Record {
    Node {
        addresses: Vec<IpAddr>,
        cidrs: Vec<IpPrefix>,
    },
    Identity {
        id: IdentityId,
        labels: Arc<Labels>,
    },
    Ip {
        prefix: IpPrefix,
        identity: IdentityId,
    },
    Service,
    /// Could not be decoded, or breaks a rule: known, but never enforced.
    Inert,
}

#[derive(Debug)]
struct Entry {
    record: Record,
    listing: u32,
}

/// The entries of one kind.
#[derive(Debug, Default)]
struct Table {
    entries: HashMap<Bytes, Entry>,
    listing: u32,
    listed: bool,
}

/// One member's entries.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) id: ClusterId,
    tables: [Table; Kind::ALL.len()],
}

impl Member {
    pub(super) fn new(id: ClusterId) -> Self {
        Self {
            id,
            tables: Default::default(),
        }
    }

    /// Marks all entries of the kind as not confirmed.
    pub(super) fn begin_list(&mut self, kind: Kind) {
        let table = &mut self.tables[kind as usize];
        table.listing = table.listing.wrapping_add(1);
    }

    /// Removes and returns what `begin_list` marked and nothing confirmed since.
    pub(super) fn sweep(&mut self, kind: Kind) -> Vec<(Bytes, Record)> {
        let table = &mut self.tables[kind as usize];
        table.listed = true;
        let listing = table.listing;
        table
            .entries
            .extract_if(|_, entry| entry.listing != listing)
            .map(|(suffix, entry)| (suffix, entry.record))
            .collect()
    }

    /// Stores a record; returns the one it replaces.
    pub(super) fn upsert(&mut self, kind: Kind, suffix: Bytes, record: Record) -> Option<Record> {
        let table = &mut self.tables[kind as usize];
        let entry = Entry {
            record,
            listing: table.listing,
        };
        table.entries.insert(suffix, entry).map(|old| old.record)
    }

    pub(super) fn remove(&mut self, kind: Kind, suffix: &[u8]) -> Option<Record> {
        self.tables[kind as usize]
            .entries
            .remove(suffix)
            .map(|entry| entry.record)
    }

    /// Removes and returns everything of the kind.
    pub(super) fn drain(&mut self, kind: Kind) -> Vec<(Bytes, Record)> {
        let table = std::mem::take(&mut self.tables[kind as usize]);
        table
            .entries
            .into_iter()
            .map(|(suffix, entry)| (suffix, entry.record))
            .collect()
    }

    /// True once the kind was listed completely.
    pub(super) fn is_listed(&self, kind: Kind) -> bool {
        self.tables[kind as usize].listed
    }

    pub(super) fn contains(&self, kind: Kind, suffix: &[u8]) -> bool {
        self.tables[kind as usize].entries.contains_key(suffix)
    }

    pub(super) fn len(&self, kind: Kind) -> usize {
        self.tables[kind as usize].entries.len()
    }

    pub(super) fn records(&self, kind: Kind) -> impl Iterator<Item = (&Bytes, &Record)> {
        self.tables[kind as usize]
            .entries
            .iter()
            .map(|(suffix, entry)| (suffix, &entry.record))
    }
}
