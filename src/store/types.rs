//! The words of the keyspace: key-values, ranges, requests, answers and events. No locks, no I/O.
//! All bytes are `Bytes`: what readers get shares the allocation of a [`Record`].
use bytes::Bytes;

use super::{Record, record::Fields};

/// One key with its value, as etcd's `mvccpb.KeyValue`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KeyValue {
    /// Never empty.
    pub key: Bytes,
    /// May be empty.
    pub value: Bytes,
    /// Revision of the put that created the key after its last deletion.
    pub create_revision: i64,
    /// Revision of the last put.
    pub mod_revision: i64,
    /// Puts since creation, from 1.
    pub version: i64,
    /// The lease the key dies with; 0 for none.
    pub lease: i64,
}

impl KeyValue {
    /// Key and value length in bytes.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.key.len() + self.value.len()
    }
}

/// A set of keys as etcd requests spell it: an empty `range_end` means the single `key`, `"\0"`
/// every key from `key` on, anything else the half-open interval.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KeyRange {
    /// First key.
    pub key: Bytes,
    /// See the type.
    pub range_end: Bytes,
}

impl KeyRange {
    /// A range of exactly one key.
    #[must_use]
    pub fn single(key: impl Into<Bytes>) -> Self {
        Self {
            key: key.into(),
            range_end: Bytes::new(),
        }
    }

    /// All keys that begin with `prefix`; an empty prefix means all keys.
    #[must_use]
    pub fn prefix(prefix: &[u8]) -> Self {
        if prefix.is_empty() {
            return Self {
                key: Bytes::from_static(b"\0"),
                range_end: Bytes::from_static(b"\0"),
            };
        }
        Self {
            key: Bytes::copy_from_slice(prefix),
            range_end: prefix_end(prefix),
        }
    }

    /// True if no key can be in the set, as its end is not after its start.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.range_end.is_empty() && !self.is_from_key() && self.range_end <= self.key
    }

    /// True if `key` is in the set.
    #[must_use]
    pub fn contains(&self, key: &[u8]) -> bool {
        if self.range_end.is_empty() {
            return key == self.key;
        }
        key >= &self.key[..] && (self.is_from_key() || key < &self.range_end[..])
    }

    /// True if every key of `other` is in this set.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        if other.range_end.is_empty() {
            return self.contains(&other.key);
        }
        !self.range_end.is_empty()
            && self.key <= other.key
            && (self.is_from_key() || (!other.is_from_key() && other.range_end <= self.range_end))
    }

    /// True if the set has no upper end.
    pub(super) fn is_from_key(&self) -> bool {
        self.range_end[..] == [0]
    }
}

/// The `range_end` that makes `prefix` a prefix range (etcd's `GetPrefixRangeEnd`).
#[must_use]
pub fn prefix_end(prefix: &[u8]) -> Bytes {
    let Some(last) = prefix.iter().rposition(|b| *b != u8::MAX) else {
        return Bytes::from_static(b"\0");
    };
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    end.into()
}

/// What a range answer is sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SortTarget {
    /// By key bytes.
    #[default]
    Key,
    /// By version.
    Version,
    /// By create revision.
    Create,
    /// By mod revision.
    Mod,
    /// By value bytes.
    Value,
}

/// Which way a range answer is sorted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SortOrder {
    /// By key; by another target, smallest first, but the limit is applied to the order of keys
    /// and one key more than it is sorted, as etcd does.
    #[default]
    None,
    /// Smallest first, before the limit is applied.
    Ascend,
    /// Largest first, before the limit is applied.
    Descend,
}

/// A read of keys. The default with a key reads that key now.
#[derive(Debug, Clone, Default)]
pub struct RangeRequest {
    /// Which keys.
    pub range: KeyRange,
    /// Most keys returned; 0 or less for no limit.
    pub limit: i64,
    /// Read as of this revision; 0 or less for now.
    pub revision: i64,
    /// What to sort by; equals are in the order of their keys.
    pub sort: SortTarget,
    /// Which way.
    pub order: SortOrder,
    /// Leave values out.
    pub keys_only: bool,
    /// Return nothing but the count.
    pub count_only: bool,
    /// Only keys with at least this mod revision; 0 for any.
    pub min_mod_revision: i64,
    /// Only keys with at most this mod revision; 0 for any.
    pub max_mod_revision: i64,
    /// Only keys with at least this create revision; 0 for any.
    pub min_create_revision: i64,
    /// Only keys with at most this create revision; 0 for any.
    pub max_create_revision: i64,
}

impl RangeRequest {
    /// Everything under `prefix`, now.
    #[must_use]
    pub fn prefix(prefix: &[u8]) -> Self {
        Self {
            range: KeyRange::prefix(prefix),
            ..Self::default()
        }
    }

    pub(super) fn is_filtered(&self) -> bool {
        self.min_mod_revision
            | self.max_mod_revision
            | self.min_create_revision
            | self.max_create_revision
            != 0
    }

    pub(super) fn passes(&self, kv: &Fields<'_>) -> bool {
        let within =
            |at: i64, min: i64, max: i64| (min == 0 || at >= min) && (max == 0 || at <= max);
        within(
            kv.mod_revision,
            self.min_mod_revision,
            self.max_mod_revision,
        ) && within(
            kv.create_revision,
            self.min_create_revision,
            self.max_create_revision,
        )
    }
}

/// The answer to a [`RangeRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RangeResponse {
    /// The store's revision when it answered, also for reads of the past.
    pub revision: i64,
    /// In the order asked for.
    pub kvs: Vec<KeyValue>,
    /// The limit cut something off.
    pub more: bool,
    /// Keys in the range, whatever the limit and filters.
    pub count: i64,
}

/// What a [`RangeRequest`] found, its keys still encoded.
#[derive(Debug, Clone, Default)]
pub struct RangeRecords {
    /// See [`RangeResponse`].
    pub revision: i64,
    /// In the order asked for.
    pub records: Vec<Record>,
    /// Values were not asked for; the records have them nevertheless.
    pub keys_only: bool,
    /// See [`RangeResponse`].
    pub more: bool,
    /// See [`RangeResponse`].
    pub count: i64,
}

impl From<RangeRecords> for RangeResponse {
    fn from(found: RangeRecords) -> Self {
        let mut kvs: Vec<KeyValue> = found.records.iter().map(KeyValue::from).collect();
        if found.keys_only {
            kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
        }
        Self {
            revision: found.revision,
            kvs,
            more: found.more,
            count: found.count,
        }
    }
}

/// A write of one key.
#[derive(Debug, Clone, Default)]
pub struct PutRequest {
    /// Not empty.
    pub key: Bytes,
    /// New value; must be empty with `ignore_value`.
    pub value: Bytes,
    /// Lease to die with, 0 for none; must be 0 with `ignore_lease`.
    pub lease: i64,
    /// Return what was there.
    pub prev_kv: bool,
    /// Keep the present value.
    pub ignore_value: bool,
    /// Keep the present lease.
    pub ignore_lease: bool,
}

/// The answer to a [`PutRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PutResponse {
    /// The revision that holds the put.
    pub revision: i64,
    /// What was there, if asked.
    pub prev_kv: Option<KeyValue>,
}

/// A deletion of keys.
#[derive(Debug, Clone, Default)]
pub struct DeleteRequest {
    /// Which keys.
    pub range: KeyRange,
    /// Return what was there.
    pub prev_kv: bool,
}

/// The answer to a [`DeleteRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeleteResponse {
    /// The revision of the deletion, or the present one if nothing was deleted.
    pub revision: i64,
    /// How many keys are gone.
    pub deleted: u64,
    /// What was there, if asked; ascending by key.
    pub prev_kvs: Vec<KeyValue>,
}

/// How a comparison's two sides must relate: `present <op> given`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CompareOp {
    /// Same.
    Equal,
    /// Present is greater.
    Greater,
    /// Present is less.
    Less,
    /// Different.
    NotEqual,
}

/// What is compared, with the given side. A key that does not exist has zeros for all numbers and
/// fails every comparison of values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CompareTarget {
    /// Version of the key.
    Version(i64),
    /// Create revision.
    Create(i64),
    /// Mod revision.
    Mod(i64),
    /// Value bytes.
    Value(Bytes),
    /// Lease id.
    Lease(i64),
}

/// One condition of a transaction; on a range it must hold for every key there.
#[derive(Debug, Clone)]
pub struct Compare {
    /// Which keys.
    pub range: KeyRange,
    /// How.
    pub op: CompareOp,
    /// What with.
    pub target: CompareTarget,
}

/// One step of a transaction.
#[derive(Debug, Clone)]
pub enum TxnOp {
    /// Read.
    Range(RangeRequest),
    /// Write.
    Put(PutRequest),
    /// Delete.
    Delete(DeleteRequest),
    /// A transaction inside; its conditions see the state before the outer one.
    Txn(Txn),
}

/// Conditions, and what to do when all hold or one does not. All writes share one revision.
#[derive(Debug, Clone, Default)]
pub struct Txn {
    /// All must hold.
    pub compare: Vec<Compare>,
    /// Done if they do.
    pub success: Vec<TxnOp>,
    /// Done if one does not.
    pub failure: Vec<TxnOp>,
}

/// The answer to one [`TxnOp`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TxnOpResponse {
    /// Of a read; sees the steps before it.
    Range(RangeResponse),
    /// Of a write.
    Put(PutResponse),
    /// Of a deletion.
    Delete(DeleteResponse),
    /// Of a transaction inside.
    Txn(TxnResponse),
}

/// The answer to a [`Txn`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TxnResponse {
    /// The store's revision afterwards.
    pub revision: i64,
    /// Whether all conditions held.
    pub succeeded: bool,
    /// One per step taken.
    pub responses: Vec<TxnOpResponse>,
}

/// One change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Created or overwritten.
    Put {
        /// As it is now.
        kv: KeyValue,
        /// As it was; `None` if created, or if the watch did not ask.
        prev: Option<KeyValue>,
    },
    /// Deleted.
    Delete {
        /// Which key.
        key: Bytes,
        /// When.
        revision: i64,
        /// As it was; `None` if the watch did not ask.
        prev: Option<KeyValue>,
    },
}

impl Event {
    /// The key changed.
    #[must_use]
    pub fn key(&self) -> &Bytes {
        match self {
            Self::Put { kv, .. } => &kv.key,
            Self::Delete { key, .. } => key,
        }
    }

    /// When it changed.
    #[must_use]
    pub const fn revision(&self) -> i64 {
        match self {
            Self::Put { kv, .. } => kv.mod_revision,
            Self::Delete { revision, .. } => *revision,
        }
    }

    /// What was there before, if known.
    #[must_use]
    pub const fn prev(&self) -> Option<&KeyValue> {
        match self {
            Self::Put { prev, .. } | Self::Delete { prev, .. } => prev.as_ref(),
        }
    }

    /// Key and value bytes that the event keeps alive.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        let prev = self.prev().map_or(0, KeyValue::len_bytes);
        prev + match self {
            Self::Put { kv, .. } => kv.len_bytes(),
            Self::Delete { key, .. } => key.len(),
        }
    }
}

/// One change of one key as the store keeps it: the new version, or a tombstone, and what was there.
#[derive(Debug, Clone)]
pub struct Change {
    /// As it is now.
    pub record: Record,
    /// As it was; `None` if created, or if the watch did not ask.
    pub prev: Option<Record>,
}

impl Change {
    /// Key and value bytes that the change keeps alive.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.record.len_bytes() + self.prev.as_ref().map_or(0, Record::len_bytes)
    }
}

impl From<&Change> for Event {
    fn from(change: &Change) -> Self {
        let prev = change.prev.as_ref().map(KeyValue::from);
        let kv = KeyValue::from(&change.record);
        if change.record.is_tombstone() {
            Self::Delete {
                key: kv.key,
                revision: kv.mod_revision,
                prev,
            }
        } else {
            Self::Put { kv, prev }
        }
    }
}
