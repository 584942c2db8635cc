//! A store's whole content as plain values, and a store made of such values.
//! Content is told in the order in which it came to be: the keys as they were before the oldest
//! revision of the history, then each revision's changes, so that nothing is told twice.
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::{Change, KeyValue, Record, Store, record::Fields, state::State};

/// What a store held at one moment. Taking it costs a handle per key and revision.
#[derive(Debug)]
pub struct Contents {
    /// The newest revision.
    pub revision: i64,
    /// The oldest that can be read; -1 while nothing was compacted.
    pub compacted: i64,
    /// Lease ids with their times to live, ascending.
    pub leases: Vec<(i64, Duration)>,
    keys: Vec<Record>,
    history: Vec<Change>,
}

/// The pieces do not make up a store: they were not taken from one, or some are missing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("make a store: {0}")]
pub struct Inconsistent(String);

/// Makes a store of the pieces of a [`Contents`], handed over in this order: keys, changes,
/// leases.
#[derive(Debug)]
pub struct Builder {
    state: State,
    next: Option<i64>,
}

impl Store {
    /// Everything it holds now.
    #[must_use]
    pub fn contents(&self) -> Contents {
        self.shared.read().contents()
    }

    /// Every lease has its full time to live again from `now`.
    pub fn restart_leases(&self, now: Instant) {
        self.shared.write().leases.restart(now);
    }

    /// Keeps at most this many events from the next write on.
    pub fn set_history_max(&self, history_max: usize) {
        self.shared.write().set_history_max(history_max);
    }
}

impl Contents {
    pub(super) const fn new(
        (revision, compacted): (i64, i64),
        leases: Vec<(i64, Duration)>,
        keys: Vec<Record>,
        history: Vec<Change>,
    ) -> Self {
        Self {
            revision,
            compacted,
            leases,
            keys,
            history,
        }
    }

    /// The keys as they were before [`Self::changes`], in no order.
    #[must_use]
    pub fn keys_before(&self) -> Vec<&Record> {
        let mut before: HashMap<&[u8], Option<&Record>> = HashMap::new();
        for change in &self.history {
            let prev = change.prev.as_ref();
            before.entry(change.record.key()).or_insert(prev);
        }
        let untouched = self.keys.iter().filter(|r| !before.contains_key(r.key()));
        let mut keys: Vec<_> = untouched.collect();
        keys.extend(before.into_values().flatten());
        keys
    }

    /// The revisions kept, oldest first and without a gap, with their changes.
    pub fn changes(&self) -> impl Iterator<Item = (i64, &[Change])> {
        let revision = |change: &Change| change.record.mod_revision();
        let revisions = self
            .history
            .chunk_by(move |a, b| revision(a) == revision(b));
        revisions.map(move |changes| (revision(&changes[0]), changes))
    }
}

impl Builder {
    /// Nothing yet; at most `history_max` events will be kept.
    #[must_use]
    pub fn new(history_max: usize) -> Self {
        Self {
            state: State::new(history_max),
            next: None,
        }
    }

    /// One of [`Contents::keys_before`].
    pub fn key(&mut self, kv: &KeyValue) {
        self.state.restore_key(record(kv));
    }

    /// One of [`Contents::changes`]: new versions, or deletions, which have version 0. What was
    /// there before each is found again, not told.
    ///
    /// # Errors
    /// [`Inconsistent`] if a revision was left out, or a change is not of this one.
    pub fn change(&mut self, revision: i64, kvs: &[KeyValue]) -> Result<(), Inconsistent> {
        if self.next.is_some_and(|next| next != revision) {
            let next = self.next.unwrap_or_default();
            return Err(Inconsistent(format!(
                "revision {revision} comes where {next} belongs"
            )));
        }
        if kvs.is_empty() || kvs.iter().any(|kv| kv.mod_revision != revision) {
            return Err(Inconsistent(format!(
                "revision {revision} has no change, or one of another revision"
            )));
        }
        self.next = Some(revision + 1);
        for kv in kvs {
            self.state.restore_change(record(kv));
        }
        Ok(())
    }

    /// A lease, which lives for `ttl` from `now`.
    ///
    /// # Errors
    /// [`Inconsistent`] if it is there already, or the limits of leases are passed.
    pub fn lease(&mut self, id: i64, ttl: Duration, now: Instant) -> Result<(), Inconsistent> {
        let granted = self.state.leases.grant(id, ttl, now);
        granted.map_err(|error| Inconsistent(format!("lease {id}: {error}")))
    }

    /// The store, under the id given.
    ///
    /// # Errors
    /// [`Inconsistent`] if changes are missing, or a key belongs to a lease that does not exist.
    pub fn finish(
        mut self,
        revision: i64,
        compacted: i64,
        cluster_id: u64,
    ) -> Result<Store, Inconsistent> {
        let newest = self.next.map_or_else(|| revision.min(1), |next| next - 1);
        if newest != revision || compacted > revision || compacted < -1 {
            return Err(Inconsistent(format!(
                "changes end at revision {newest}, not at {revision} (compacted {compacted})"
            )));
        }
        self.state.restored(revision, compacted).map_err(|record| {
            let key = String::from_utf8_lossy(record.key()).into_owned();
            Inconsistent(format!("key {key} has a lease that does not exist"))
        })?;
        Ok(Store::with_state(cluster_id, self.state))
    }
}

fn record(kv: &KeyValue) -> Record {
    Record::new(&Fields {
        key: &kv.key,
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
        value: &kv.value,
        lease: kv.lease,
    })
}
