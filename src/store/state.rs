//! What a store's lock guards: the present keys, the history of changes, the leases.
//! Invariants: `history` holds the changes of each revision in `compacted.max(2)..=revision`, in
//! order, at least one each; `history_bytes` is its sum. A past state is the present one with the
//! changes above it undone, so old versions live in the history only.
use std::collections::VecDeque;

use super::{
    Change, Contents, DeleteRequest, DeleteResponse, Error, KeyRange, KeyValue, PutRequest,
    PutResponse, RangeRecords, RangeRequest, Record, SortOrder, SortTarget, index::Index,
    lease::Leases, past::Past, record::Fields,
};
use crate::limits;

#[derive(Debug)]
pub(super) struct State {
    pub(super) revision: i64,
    /// The oldest revision that is kept; -1 while nothing was compacted.
    pub(super) compacted: i64,
    pub(super) leases: Leases,
    keys: Index,
    keys_bytes: usize,
    past: Past,
    history: VecDeque<Change>,
    history_max: usize,
    history_bytes: usize,
    /// Changes of the revision being written; empty between calls.
    pending: Vec<Change>,
}

impl State {
    pub(super) fn new(history_max: usize) -> Self {
        Self {
            revision: 1,
            compacted: -1,
            leases: Leases::default(),
            keys: Index::default(),
            keys_bytes: 0,
            past: Past::default(),
            history: VecDeque::new(),
            history_max,
            history_bytes: 0,
            pending: Vec::new(),
        }
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<&Record> {
        self.keys.get(key)
    }

    pub(super) const fn len(&self) -> usize {
        self.keys.len()
    }

    pub(super) const fn len_bytes(&self) -> usize {
        self.keys_bytes + self.history_bytes
    }

    /// The present keys of a range, ascending.
    pub(super) fn iter(&self, range: &KeyRange) -> impl Iterator<Item = &Record> {
        self.keys.range(range)
    }

    /// The revision that a read or write of the open transaction belongs to.
    pub(super) const fn open_revision(&self) -> i64 {
        if self.pending.is_empty() {
            self.revision
        } else {
            self.revision + 1
        }
    }

    /// Whether a read at `revision` can be answered.
    pub(super) const fn check_revision(&self, revision: i64) -> Result<(), Error> {
        if revision > self.revision {
            return Err(Error::FutureRevision {
                requested: revision,
                current: self.revision,
            });
        }
        if revision > 0 && revision < self.compacted {
            return Err(Error::Compacted {
                compact_revision: self.compacted,
            });
        }
        Ok(())
    }

    pub(super) fn range(&self, request: &RangeRequest) -> Result<RangeRecords, Error> {
        if request.range.key.is_empty() {
            return Err(Error::EmptyKey);
        }
        self.check_revision(request.revision)?;
        let revision = self.open_revision();
        if request.revision > 0 && request.revision < revision {
            let history = self.history.iter().rev();
            let newer = history.take_while(|c| c.record.mod_revision() > request.revision);
            let newer = self.pending.iter().rev().chain(newer);
            let past = self.past.at(request.revision, &self.keys, newer);
            return Ok(select(request, revision, &past));
        }
        Ok(select(request, revision, &self.keys))
    }

    pub(super) fn check_put(&self, request: &PutRequest) -> Result<(), Error> {
        if request.key.is_empty() {
            return Err(Error::EmptyKey);
        }
        if request.ignore_value && !request.value.is_empty() {
            return Err(Error::ValueProvided);
        }
        if request.ignore_lease && request.lease != 0 {
            return Err(Error::LeaseProvided);
        }
        if request.lease != 0 && !self.leases.contains(request.lease) {
            return Err(Error::LeaseNotFound { id: request.lease });
        }
        self.check_kept(request)
    }

    /// Whether what the put keeps exists.
    pub(super) fn check_kept(&self, request: &PutRequest) -> Result<(), Error> {
        if (request.ignore_value || request.ignore_lease) && self.get(&request.key).is_none() {
            return Err(Error::KeyNotFound);
        }
        Ok(())
    }

    /// Writes into the open revision; the request passed `check_put`.
    pub(super) fn put(&mut self, request: &PutRequest) -> PutResponse {
        let revision = self.revision + 1;
        let prev = self.keys.get(&request.key).cloned();
        let was = prev.as_ref().map(Record::fields).unwrap_or_default();
        let record = Record::new(&Fields {
            key: &request.key,
            create_revision: if prev.is_some() {
                was.create_revision
            } else {
                revision
            },
            mod_revision: revision,
            version: was.version + 1,
            value: if request.ignore_value {
                was.value
            } else {
                &request.value
            },
            lease: if request.ignore_lease {
                was.lease
            } else {
                request.lease
            },
        });
        let lease = record.lease();
        if was.lease != lease {
            self.leases.detach(was.lease, &request.key);
        }
        self.leases.attach(&record);
        self.keys_bytes += record.len_bytes();
        self.keys_bytes -= prev.as_ref().map_or(0, Record::len_bytes);
        self.keys.insert(record.clone());
        let prev_kv = prev.as_ref().filter(|_| request.prev_kv);
        let prev_kv = prev_kv.map(KeyValue::from);
        self.pending.push(Change { record, prev });
        PutResponse { revision, prev_kv }
    }

    /// Deletes into the open revision.
    pub(super) fn delete(&mut self, request: &DeleteRequest) -> DeleteResponse {
        let doomed: Vec<Record> = self.iter(&request.range).cloned().collect();
        for record in &doomed {
            self.delete_key(record.key());
        }
        let prev_kvs = doomed.iter().filter(|_| request.prev_kv);
        DeleteResponse {
            revision: self.open_revision(),
            deleted: doomed.len() as u64,
            prev_kvs: prev_kvs.map(KeyValue::from).collect(),
        }
    }

    fn delete_key(&mut self, key: &[u8]) {
        let Some(prev) = self.keys.remove(key) else {
            return;
        };
        self.keys_bytes -= prev.len_bytes();
        self.leases.detach(prev.lease(), key);
        let revision = self.revision + 1;
        let before = if prev.mod_revision() == revision {
            // Put by the same transaction: as in etcd, events tell what was there before all of it.
            let first = self
                .pending
                .iter()
                .find(|change| change.record.key() == key);
            first.and_then(|change| change.prev.clone())
        } else {
            Some(prev)
        };
        self.pending.push(Change {
            record: Record::tombstone(key, revision),
            prev: before,
        });
    }

    /// Removes a lease and its keys in one revision; `None` if there is no such lease.
    pub(super) fn revoke(&mut self, id: i64) -> Option<u64> {
        let keys = self.leases.remove(id)?;
        for record in keys.iter() {
            self.delete_key(record.key());
        }
        self.commit();
        Some(keys.len() as u64)
    }

    /// Closes the open revision; true if it held a change.
    pub(super) fn commit(&mut self) -> bool {
        if self.pending.is_empty() {
            return false;
        }
        self.revision += 1;
        self.history_bytes += self.pending.iter().map(Change::len_bytes).sum::<usize>();
        self.history.extend(self.pending.drain(..));
        while self.history.len() > self.history_max
            || self.history_bytes > limits::STORE_HISTORY_BYTES_MAX
        {
            // The newest revision is kept, whatever its size.
            let Some(oldest) = self.oldest().filter(|oldest| *oldest < self.revision) else {
                break;
            };
            self.forget_below(oldest + 1);
        }
        true
    }

    pub(super) fn compact(&mut self, revision: i64) -> Result<(), Error> {
        if revision > self.revision {
            return Err(Error::FutureRevision {
                requested: revision,
                current: self.revision,
            });
        }
        if revision <= self.compacted {
            return Err(Error::Compacted {
                compact_revision: self.compacted,
            });
        }
        self.forget_below(revision);
        Ok(())
    }

    /// The revision of the oldest change.
    fn oldest(&self) -> Option<i64> {
        self.history.front().map(|c| c.record.mod_revision())
    }

    fn forget_below(&mut self, revision: i64) {
        while self.oldest().is_some_and(|oldest| oldest < revision) {
            let forgotten = self.history.pop_front();
            self.history_bytes -= forgotten.as_ref().map_or(0, Change::len_bytes);
        }
        self.compacted = revision;
        self.past.compact(revision);
    }

    pub(super) fn contents(&self) -> Contents {
        Contents::new(
            (self.revision, self.compacted),
            self.leases.ttls(),
            self.keys.iter().cloned().collect(),
            self.history.iter().cloned().collect(),
        )
    }

    pub(super) const fn set_history_max(&mut self, history_max: usize) {
        self.history_max = history_max;
    }

    /// Puts a key as it is; for a state that is being made.
    pub(super) fn restore_key(&mut self, record: Record) -> Option<Record> {
        self.keys_bytes += record.len_bytes();
        let prev = self.keys.insert(record);
        self.keys_bytes -= prev.as_ref().map_or(0, Record::len_bytes);
        prev
    }

    /// Does a change of the history again; for a state that is being made.
    pub(super) fn restore_change(&mut self, record: Record) {
        let prev = if record.is_tombstone() {
            let prev = self.keys.remove(record.key());
            self.keys_bytes -= prev.as_ref().map_or(0, Record::len_bytes);
            prev
        } else {
            self.restore_key(record.clone())
        };
        let change = Change { record, prev };
        self.history_bytes += change.len_bytes();
        self.history.push_back(change);
    }

    /// Ends the making: binds keys to leases. Fails with a key whose lease does not exist.
    pub(super) fn restored(&mut self, revision: i64, compacted: i64) -> Result<(), Record> {
        (self.revision, self.compacted) = (revision, compacted);
        for record in self.keys.iter().filter(|record| record.lease() != 0) {
            if !self.leases.contains(record.lease()) {
                return Err(record.clone());
            }
            self.leases.attach(record);
        }
        Ok(())
    }

    /// All changes from revision `from` on. Looks from the end, where readers are as a rule.
    pub(super) fn changes(&self, from: i64) -> impl Iterator<Item = &Change> {
        let len = self.history.len();
        let is_older = |change: &Change| change.record.mod_revision() < from;
        let mut low = len;
        let mut step = 1;
        while low > 0 && !is_older(&self.history[low - 1]) {
            low = low.saturating_sub(step);
            step *= 2;
        }
        let mut high = (low + step).min(len);
        while low < high {
            let middle = low.midpoint(high);
            if is_older(&self.history[middle]) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        self.history.range(low..)
    }
}

fn select(request: &RangeRequest, revision: i64, keys: &Index) -> RangeRecords {
    let count = keys.count(&request.range);
    let mut found = RangeRecords {
        revision,
        keys_only: request.keys_only,
        count: i64::try_from(count).unwrap_or(i64::MAX),
        ..RangeRecords::default()
    };
    if request.count_only {
        return found;
    }
    let limit = usize::try_from(request.limit)
        .ok()
        .filter(|limit| *limit > 0)
        .unwrap_or(usize::MAX);
    let mut chosen: Vec<&Record> = Vec::new();
    if request.order == SortOrder::None && !request.is_filtered() {
        // By etcd's rule one more than the limit takes part in a sort by another target.
        chosen.extend(keys.range(&request.range).take(limit.saturating_add(1)));
    } else {
        let passing = |record: &&Record| request.passes(&record.fields());
        chosen.extend(keys.range(&request.range).filter(passing));
    }
    sort(&mut chosen, request);
    found.more = chosen.len() > limit;
    chosen.truncate(limit);
    found.records = chosen.into_iter().cloned().collect();
    found
}

/// Equals stay in the order of their keys, whichever way the rest is sorted.
fn sort(records: &mut [&Record], request: &RangeRequest) {
    let ordering = |a: &&Record, b: &&Record| match request.sort {
        SortTarget::Key => a.key().cmp(b.key()),
        SortTarget::Version => a.fields().version.cmp(&b.fields().version),
        SortTarget::Create => a.fields().create_revision.cmp(&b.fields().create_revision),
        SortTarget::Mod => a.mod_revision().cmp(&b.mod_revision()),
        SortTarget::Value => a.value().cmp(b.value()),
    };
    match request.order {
        SortOrder::Descend => records.sort_by(|a, b| ordering(b, a)),
        // By key they are sorted already.
        _ if request.sort == SortTarget::Key => {}
        SortOrder::None | SortOrder::Ascend => records.sort_by(ordering),
    }
}
