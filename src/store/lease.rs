//! Leases: ids with a time to live, and the keys that die with them. Owns no keys and no clock.
//! Invariant: `by_deadline` holds exactly one entry per lease.
use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{Error, Record, index::Index};
use crate::limits;

/// All leases of a store.
#[derive(Debug, Default)]
pub(super) struct Leases {
    by_id: HashMap<i64, Lease>,
    by_deadline: BTreeSet<(Instant, i64)>,
}

#[derive(Debug)]
struct Lease {
    ttl: Duration,
    deadline: Instant,
    keys: Index,
}

/// What is known of a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseStatus {
    /// Time to live as granted.
    pub granted: Duration,
    /// Time left; zero once it is due.
    pub remaining: Duration,
    /// The keys attached, ascending.
    pub keys: Vec<Bytes>,
}

impl Leases {
    pub(super) fn contains(&self, id: i64) -> bool {
        self.by_id.contains_key(&id)
    }

    pub(super) fn grant(&mut self, id: i64, ttl: Duration, now: Instant) -> Result<(), Error> {
        if ttl > limits::LEASE_TTL_MAX {
            return Err(Error::LeaseTtlTooLarge);
        }
        if self.by_id.len() >= limits::LEASES_MAX {
            return Err(Error::TooManyLeases);
        }
        if self.contains(id) {
            return Err(Error::LeaseExists { id });
        }
        let deadline = now.checked_add(ttl).ok_or(Error::LeaseTtlTooLarge)?;
        self.by_deadline.insert((deadline, id));
        self.by_id.insert(
            id,
            Lease {
                ttl,
                deadline,
                keys: Index::default(),
            },
        );
        Ok(())
    }

    /// Starts the time to live anew. A lease past its deadline is lost even before it is swept.
    pub(super) fn keep_alive(&mut self, id: i64, now: Instant) -> Result<Duration, Error> {
        let lease = self.by_id.get_mut(&id).ok_or(Error::LeaseNotFound { id })?;
        if lease.deadline <= now {
            return Err(Error::LeaseNotFound { id });
        }
        let deadline = now.checked_add(lease.ttl).ok_or(Error::LeaseTtlTooLarge)?;
        self.by_deadline.remove(&(lease.deadline, id));
        self.by_deadline.insert((deadline, id));
        lease.deadline = deadline;
        Ok(lease.ttl)
    }

    /// Starts every time to live anew, also of leases that are due.
    pub(super) fn restart(&mut self, now: Instant) {
        self.by_deadline.clear();
        for (id, lease) in &mut self.by_id {
            // Only a time to live that reaches beyond the clock's end keeps its old deadline.
            lease.deadline = now.checked_add(lease.ttl).unwrap_or(lease.deadline);
            self.by_deadline.insert((lease.deadline, *id));
        }
    }

    /// Ids with times to live, ascending.
    pub(super) fn ttls(&self) -> Vec<(i64, Duration)> {
        let mut ttls: Vec<_> = self.by_id.iter().map(|(id, l)| (*id, l.ttl)).collect();
        ttls.sort_unstable();
        ttls
    }

    pub(super) fn status(&self, id: i64, now: Instant) -> Result<LeaseStatus, Error> {
        let lease = self.by_id.get(&id).ok_or(Error::LeaseNotFound { id })?;
        let keys = lease.keys.iter();
        Ok(LeaseStatus {
            granted: lease.ttl,
            remaining: lease.deadline.saturating_duration_since(now),
            keys: keys
                .map(|record| Bytes::copy_from_slice(record.key()))
                .collect(),
        })
    }

    /// Forgets the lease and yields its keys, which the caller deletes.
    pub(super) fn remove(&mut self, id: i64) -> Option<Index> {
        let lease = self.by_id.remove(&id)?;
        self.by_deadline.remove(&(lease.deadline, id));
        Some(lease.keys)
    }

    /// The leases whose time is over, the longest overdue first.
    pub(super) fn due(&self, now: Instant) -> impl Iterator<Item = i64> {
        let due = self.by_deadline.range(..=(now, i64::MAX));
        due.map(|(_, id)| *id)
    }

    pub(super) fn ids(&self) -> Vec<i64> {
        self.by_deadline.iter().map(|(_, id)| *id).collect()
    }

    /// Notes a new version of a key with a lease. Lease 0 is none and has no keys.
    pub(super) fn attach(&mut self, record: &Record) {
        if let Some(lease) = self.by_id.get_mut(&record.lease()) {
            lease.keys.insert(record.clone());
        }
    }

    pub(super) fn detach(&mut self, id: i64, key: &[u8]) {
        if let Some(lease) = self.by_id.get_mut(&id) {
            lease.keys.remove(key);
        }
    }
}
