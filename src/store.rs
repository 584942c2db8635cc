//! The keyspace: ordered keys with etcd's revisions, transactions, leases, history and watches.
//! Always true: a revision is written whole or not at all; the revision never decreases; a reader
//! sees whole revisions only; the history is bounded by events and bytes, whatever readers do.
//! Callers: `publish` and `mesh` write, `serve` speaks gRPC for it, readers watch.
//! Absent on purpose: network, disk, and a clock (callers pass `now`).
use std::{
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::{Duration, Instant},
};

use bytes::Bytes;

use self::state::State;
pub use self::{
    lease::LeaseStatus,
    record::Record,
    snapshot::{Builder, Contents, Inconsistent},
    types::{
        Change, Compare, CompareOp, CompareTarget, DeleteRequest, DeleteResponse, Event, KeyRange,
        KeyValue, PutRequest, PutResponse, RangeRecords, RangeRequest, RangeResponse, SortOrder,
        SortTarget, Txn, TxnOp, TxnOpResponse, TxnResponse, prefix_end,
    },
    watch::{Position, WatchBatch, WatchChanges, WatchError, WatchRequest, Watcher},
};

mod index;
mod lease;
#[cfg(test)]
mod model;
mod past;
#[cfg(test)]
mod proptests;
mod record;
mod snapshot;
mod state;
#[cfg(test)]
mod tests;
mod txn;
mod types;
mod watch;

/// A keyspace; clones are handles to the same one.
#[derive(Debug, Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

/// How a store is made.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// The id readers tell stores apart by; 0 is replaced by 1, as 0 means "unset" to etcd clients.
    pub cluster_id: u64,
    /// Most events kept for watches and reads of the past; the newest revision is always kept.
    pub history_max: usize,
}

/// Why a request was refused. A refused request changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Keys have at least one byte.
    #[error("use an empty key")]
    EmptyKey,
    /// The revision is no longer kept; read the present instead.
    #[error("read a compacted revision; the oldest is {compact_revision}")]
    Compacted {
        /// The oldest that can be read.
        compact_revision: i64,
    },
    /// The revision does not exist yet.
    #[error("read revision {requested}; the newest is {current}")]
    FutureRevision {
        /// As asked.
        requested: i64,
        /// The store's.
        current: i64,
    },
    /// No such lease, or it expired.
    #[error("use lease {id}, which does not exist")]
    LeaseNotFound {
        /// As asked.
        id: i64,
    },
    /// The id is taken.
    #[error("grant lease {id}, which exists")]
    LeaseExists {
        /// As asked.
        id: i64,
    },
    /// Above `limits::LEASE_TTL_MAX`.
    #[error("grant a lease with a too large time to live")]
    LeaseTtlTooLarge,
    /// `limits::LEASES_MAX` leases exist.
    #[error("grant one more lease than allowed")]
    TooManyLeases,
    /// Value or lease of an absent key cannot be kept.
    #[error("keep value or lease of a key that does not exist")]
    KeyNotFound,
    /// A value together with `ignore_value`.
    #[error("put a value while keeping the present one")]
    ValueProvided,
    /// A lease together with `ignore_lease`.
    #[error("put a lease while keeping the present one")]
    LeaseProvided,
    /// Transactions within transactions, deeper than `limits::TXN_DEPTH_MAX`.
    #[error("run a transaction with too many others inside it")]
    TooDeep,
    /// A transaction writes a key twice.
    #[error("run a transaction that writes a key twice")]
    DuplicateKey,
}

/// What all handles and watchers of a store share.
#[derive(Debug)]
pub(in crate::store) struct Shared {
    cluster_id: u64,
    state: RwLock<State>,
    changes: tokio::sync::watch::Sender<()>,
}

impl Shared {
    // No code panics while it holds the lock; should one, the state is still whole because a
    // revision becomes visible in one step.
    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store {
    /// An empty store at revision 1.
    #[must_use]
    pub fn new(options: Options) -> Self {
        let state = State::new(options.history_max);
        Self::with_state(options.cluster_id, state)
    }

    fn with_state(cluster_id: u64, state: State) -> Self {
        let shared = Shared {
            cluster_id: cluster_id.max(1),
            state: RwLock::new(state),
            changes: tokio::sync::watch::Sender::new(()),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// The id given at creation, never 0.
    #[must_use]
    pub fn cluster_id(&self) -> u64 {
        self.shared.cluster_id
    }

    /// The newest revision; 1 while nothing was written.
    #[must_use]
    pub fn revision(&self) -> i64 {
        self.shared.read().revision
    }

    /// The oldest revision that can be read or watched from; 0 while all can.
    #[must_use]
    pub fn compact_revision(&self) -> i64 {
        self.shared.read().compacted.max(0)
    }

    /// How many keys there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shared.read().len()
    }

    /// True if there are no keys.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Key and value bytes held for the present keys and for the history.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.shared.read().len_bytes()
    }

    /// One key, now.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<KeyValue> {
        self.shared.read().get(key).map(KeyValue::from)
    }

    /// Reads keys; see [`RangeRequest`].
    ///
    /// # Errors
    /// `EmptyKey`, `Compacted`, `FutureRevision`.
    pub fn range(&self, request: &RangeRequest) -> Result<RangeResponse, Error> {
        self.range_records(request).map(RangeResponse::from)
    }

    /// The same with the keys still encoded, for those who pass them on.
    ///
    /// # Errors
    /// As [`Store::range`].
    pub fn range_records(&self, request: &RangeRequest) -> Result<RangeRecords, Error> {
        self.shared.read().range(request)
    }

    /// Writes one key and returns the revision of the write.
    ///
    /// # Errors
    /// `EmptyKey`, `LeaseNotFound`.
    pub fn put(&self, key: Bytes, value: Bytes, lease: i64) -> Result<i64, Error> {
        let request = PutRequest {
            key,
            value,
            lease,
            ..PutRequest::default()
        };
        Ok(self.put_with(&request)?.revision)
    }

    /// Writes one key; see [`PutRequest`].
    ///
    /// # Errors
    /// `EmptyKey`, `LeaseNotFound`, `KeyNotFound`, `ValueProvided`, `LeaseProvided`.
    pub fn put_with(&self, request: &PutRequest) -> Result<PutResponse, Error> {
        self.write(|state| {
            state.check_put(request)?;
            Ok(state.put(request))
        })
    }

    /// Writes one key unless value and lease are the same already; true if it wrote.
    ///
    /// # Errors
    /// `EmptyKey`, `LeaseNotFound`.
    pub fn put_if_changed(&self, key: Bytes, value: Bytes, lease: i64) -> Result<bool, Error> {
        let request = PutRequest {
            key,
            value,
            lease,
            ..PutRequest::default()
        };
        self.write(|state| {
            let same = |record: &Record| {
                let kv = record.fields();
                kv.value == request.value && kv.lease == request.lease
            };
            if state.get(&request.key).is_some_and(same) {
                return Ok(false);
            }
            state.check_put(&request)?;
            state.put(&request);
            Ok(true)
        })
    }

    /// Deletes one key; true if it was there.
    pub fn delete(&self, key: &[u8]) -> bool {
        self.delete_unchecked(KeyRange::single(Bytes::copy_from_slice(key))) > 0
    }

    /// Deletes all keys under `prefix` in one revision and returns how many.
    pub fn delete_prefix(&self, prefix: &[u8]) -> u64 {
        self.delete_unchecked(KeyRange::prefix(prefix))
    }

    /// Deletes keys in one revision; see [`DeleteRequest`].
    ///
    /// # Errors
    /// `EmptyKey`.
    pub fn delete_range(&self, request: &DeleteRequest) -> Result<DeleteResponse, Error> {
        if request.range.key.is_empty() {
            return Err(Error::EmptyKey);
        }
        self.write(|state| Ok(state.delete(request)))
    }

    /// Runs a transaction; all its writes share one revision.
    ///
    /// # Errors
    /// `TooDeep`, `DuplicateKey`, and what its steps yield; then none of them took effect.
    pub fn txn(&self, txn: &Txn) -> Result<TxnResponse, Error> {
        txn.check()?;
        self.write(|state| txn::run(state, txn))
    }

    /// Forgets history below `revision`, which stays readable.
    ///
    /// # Errors
    /// `FutureRevision`; `Compacted` if that was done already.
    pub fn compact(&self, revision: i64) -> Result<(), Error> {
        let compacted = self.shared.write().compact(revision);
        // Watchers left behind learn of it now, not with the next change.
        self.shared.changes.send_replace(());
        compacted
    }

    /// Watches keys; see [`WatchRequest`].
    ///
    /// # Errors
    /// [`WatchError::Compacted`] if the start revision is no longer kept.
    pub fn watch(&self, request: WatchRequest) -> Result<Watcher, WatchError> {
        let next = {
            let state = self.shared.read();
            if request.start_revision > 0 && request.start_revision < state.compacted {
                return Err(WatchError::Compacted {
                    compact_revision: state.compacted,
                });
            }
            if request.start_revision > 0 {
                // Nothing happened before revision 2, and a watcher passes over changes only.
                request.start_revision.max(2)
            } else {
                state.revision + 1
            }
        };
        Ok(Watcher::new(Arc::clone(&self.shared), request, next))
    }

    /// Creates a lease that lives for `ttl` from `now` unless kept alive. The caller chooses `id`.
    ///
    /// # Errors
    /// `LeaseExists`, `LeaseTtlTooLarge`, `TooManyLeases`.
    pub fn lease_grant(&self, id: i64, ttl: Duration, now: Instant) -> Result<(), Error> {
        self.shared.write().leases.grant(id, ttl, now)
    }

    /// Starts the lease's time to live anew and returns it.
    ///
    /// # Errors
    /// `LeaseNotFound`, also if its time is over but `expire` was not called yet.
    pub fn lease_keep_alive(&self, id: i64, now: Instant) -> Result<Duration, Error> {
        self.shared.write().leases.keep_alive(id, now)
    }

    /// Ends a lease; its keys are deleted in one revision. Returns how many.
    ///
    /// # Errors
    /// `LeaseNotFound`.
    pub fn lease_revoke(&self, id: i64) -> Result<u64, Error> {
        self.write(|state| state.revoke(id).ok_or(Error::LeaseNotFound { id }))
    }

    /// What is known of a lease.
    ///
    /// # Errors
    /// `LeaseNotFound`.
    pub fn lease_time_to_live(&self, id: i64, now: Instant) -> Result<LeaseStatus, Error> {
        self.shared.read().leases.status(id, now)
    }

    /// All leases, the one with the least time left first.
    #[must_use]
    pub fn leases(&self) -> Vec<i64> {
        self.shared.read().leases.ids()
    }

    /// The leases whose time is over at `now`, the longest overdue first.
    #[must_use]
    pub fn leases_due(&self, now: Instant) -> Vec<i64> {
        self.shared.read().leases.due(now).collect()
    }

    /// Ends all leases whose time is over at `now`, one revision for each that has keys.
    /// Returns how many leases ended.
    pub fn expire(&self, now: Instant) -> usize {
        let revoked = self.leases_due(now).into_iter();
        revoked.filter(|id| self.lease_revoke(*id).is_ok()).count()
    }

    fn delete_unchecked(&self, range: KeyRange) -> u64 {
        let request = DeleteRequest {
            range,
            prev_kv: false,
        };
        self.write(|state| Ok(state.delete(&request)))
            .map_or(0, |response| response.deleted)
    }

    fn write<T>(&self, change: impl FnOnce(&mut State) -> Result<T, Error>) -> Result<T, Error> {
        let mut state = self.shared.write();
        let before = state.revision;
        let result = change(&mut state);
        state.commit();
        let changed = state.revision != before;
        drop(state);
        if changed {
            self.shared.changes.send_replace(());
        }
        result
    }
}
