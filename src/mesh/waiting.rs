//! Records that may not be in force for now, by what they wait for. Their bytes are with their
//! member; here is who is asked again when something comes free.
use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;

use super::view::{Claimant, shown};
use crate::{
    keyspace::Kind,
    types::{ClusterId, ClusterName, IpPrefix},
};

/// What keeps a record out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Blocker {
    /// Another cluster has the address or range.
    Prefix(IpPrefix),
    /// The member's terms.
    Terms(ClusterId),
    /// The member has too much already.
    Quota(ClusterId),
}

/// A place in the queue of a blocker.
pub(super) type Ticket = (Blocker, u64);

/// Names a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Waiter {
    pub(super) cluster: ClusterName,
    pub(super) kind: Kind,
    pub(super) suffix: Bytes,
}

/// First come, first served, for each blocker.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    queue: BTreeMap<Ticket, Waiter>,
    next: u64,
    /// Those who wait for another cluster, for the read side.
    claimants: Arc<dashmap::DashMap<u64, Claimant>>,
}

impl Waiting {
    /// Nobody waits; `claimants` is where those are told who wait for another cluster.
    pub(super) fn new(claimants: Arc<dashmap::DashMap<u64, Claimant>>) -> Self {
        Self {
            claimants,
            ..Self::default()
        }
    }

    pub(super) fn add(&mut self, blocker: Blocker, waiter: Waiter) -> Ticket {
        self.next += 1;
        let ticket = (blocker, self.next);
        if let Blocker::Prefix(prefix) = blocker {
            let claimant = Claimant {
                cluster: waiter.cluster.clone(),
                kind: waiter.kind,
                key: shown(&waiter.suffix),
                prefix,
            };
            self.claimants.insert(self.next, claimant);
        }
        self.queue.insert(ticket, waiter);
        ticket
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    pub(super) fn remove(&mut self, ticket: Ticket) {
        self.queue.remove(&ticket);
        self.claimants.remove(&ticket.1);
    }

    /// All who wait for it, the first first.
    pub(super) fn of(&self, blocker: Blocker) -> Vec<Waiter> {
        let range = self.queue.range((blocker, 0)..=(blocker, u64::MAX));
        range.map(|(_, waiter)| waiter.clone()).collect()
    }

    /// Who has waited longest for it.
    pub(super) fn first(&self, blocker: Blocker) -> Option<Waiter> {
        let mut range = self.queue.range((blocker, 0)..=(blocker, u64::MAX));
        range.next().map(|(_, waiter)| waiter.clone())
    }
}
