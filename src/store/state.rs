//! What a store's lock guards: the present keys, the history of changes, the leases.
//! Invariants: `history` holds one batch for each revision in `compacted.max(2)..=revision`, in
//! order, none empty; `history_events` and `history_bytes` are its sums. A past state is the
//! present one with the batches above it undone, so old values live in the history only.
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use bytes::Bytes;

use super::{
    DeleteRequest, DeleteResponse, Error, Event, KeyRange, KeyValue, PutRequest, PutResponse,
    RangeRequest, RangeResponse, SortTarget, lease::Leases,
};
use crate::limits;

/// All changes of one revision; events keep `prev` for undo and for watches that ask.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) revision: i64,
    pub(super) events: Vec<Event>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) revision: i64,
    pub(super) compacted: i64,
    pub(super) leases: Leases,
    keys: BTreeMap<Bytes, KeyValue>,
    keys_bytes: usize,
    history: VecDeque<Arc<Batch>>,
    history_max: usize,
    history_events: usize,
    history_bytes: usize,
    /// Changes of the revision being written; empty between calls.
    pending: Vec<Event>,
}

impl State {
    pub(super) fn new(history_max: usize) -> Self {
        Self {
            revision: 1,
            compacted: 0,
            leases: Leases::default(),
            keys: BTreeMap::new(),
            keys_bytes: 0,
            history: VecDeque::new(),
            history_max,
            history_events: 0,
            history_bytes: 0,
            pending: Vec::new(),
        }
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<&KeyValue> {
        self.keys.get(key)
    }

    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    pub(super) const fn len_bytes(&self) -> usize {
        self.keys_bytes + self.history_bytes
    }

    /// The present keys of a range, ascending.
    pub(super) fn iter(&self, range: &KeyRange) -> impl Iterator<Item = &KeyValue> {
        let bounds = range.bounds();
        bounds
            .into_iter()
            .flat_map(|b| self.keys.range::<[u8], _>(b))
            .map(|(_, kv)| kv)
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

    pub(super) fn range(&self, request: &RangeRequest) -> Result<RangeResponse, Error> {
        if request.range.key.is_empty() {
            return Err(Error::EmptyKey);
        }
        self.check_revision(request.revision)?;
        let revision = self.open_revision();
        if request.revision > 0 && request.revision < revision {
            let past = self.past(&request.range, request.revision);
            return Ok(select(request, revision, past.into_values()));
        }
        Ok(select(request, revision, self.iter(&request.range)))
    }

    /// The keys of a range as they were after `revision`.
    fn past(&self, range: &KeyRange, revision: i64) -> BTreeMap<&Bytes, &KeyValue> {
        let mut keys: BTreeMap<_, _> = self.iter(range).map(|kv| (&kv.key, kv)).collect();
        let newer = self
            .history
            .iter()
            .rev()
            .take_while(|b| b.revision > revision);
        let events = newer.flat_map(|batch| batch.events.iter().rev());
        for event in self.pending.iter().rev().chain(events) {
            if !range.contains(event.key()) {
                continue;
            }
            match event.prev() {
                Some(prev) => keys.insert(&prev.key, prev),
                None => keys.remove(event.key()),
            };
        }
        keys
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
        if (request.ignore_value || request.ignore_lease) && !self.keys.contains_key(&request.key) {
            return Err(Error::KeyNotFound);
        }
        if request.lease != 0 && !self.leases.contains(request.lease) {
            return Err(Error::LeaseNotFound { id: request.lease });
        }
        Ok(())
    }

    /// Writes into the open revision; the request passed `check_put`.
    pub(super) fn put(&mut self, request: &PutRequest) -> PutResponse {
        let revision = self.revision + 1;
        let prev = self.keys.get(&request.key);
        let kv = match prev {
            Some(prev) => KeyValue {
                // The index keeps its key, so the new event shares that allocation.
                key: prev.key.clone(),
                value: if request.ignore_value {
                    &prev.value
                } else {
                    &request.value
                }
                .clone(),
                create_revision: prev.create_revision,
                mod_revision: revision,
                version: prev.version + 1,
                lease: if request.ignore_lease {
                    prev.lease
                } else {
                    request.lease
                },
            },
            None => KeyValue {
                key: request.key.clone(),
                value: request.value.clone(),
                create_revision: revision,
                mod_revision: revision,
                version: 1,
                lease: request.lease,
            },
        };
        self.keys_bytes += kv.len_bytes();
        let prev = match self.keys.get_mut(&kv.key) {
            Some(slot) => Some(std::mem::replace(slot, kv.clone())),
            None => self.keys.insert(kv.key.clone(), kv.clone()),
        };
        self.keys_bytes -= prev.as_ref().map_or(0, KeyValue::len_bytes);
        let old_lease = prev.as_ref().map_or(0, |prev| prev.lease);
        if old_lease != kv.lease {
            self.leases.detach(old_lease, &kv.key);
            self.leases.attach(kv.lease, &kv.key);
        }
        let prev_kv = prev.clone().filter(|_| request.prev_kv);
        self.pending.push(Event::Put { kv, prev });
        PutResponse { revision, prev_kv }
    }

    /// Deletes into the open revision.
    pub(super) fn delete(&mut self, request: &DeleteRequest) -> DeleteResponse {
        let doomed: Vec<Bytes> = self.iter(&request.range).map(|kv| kv.key.clone()).collect();
        let mut prev_kvs = Vec::with_capacity(if request.prev_kv { doomed.len() } else { 0 });
        for key in &doomed {
            if let Some(prev) = self.delete_key(key)
                && request.prev_kv
            {
                prev_kvs.push(prev);
            }
        }
        DeleteResponse {
            revision: self.open_revision(),
            deleted: doomed.len() as u64,
            prev_kvs,
        }
    }

    fn delete_key(&mut self, key: &[u8]) -> Option<KeyValue> {
        let (key, prev) = self.keys.remove_entry(key)?;
        self.keys_bytes -= prev.len_bytes();
        self.leases.detach(prev.lease, &key);
        let revision = self.revision + 1;
        self.pending.push(Event::Delete {
            key,
            revision,
            prev: Some(prev.clone()),
        });
        Some(prev)
    }

    /// Removes a lease and its keys in one revision; `None` if there is no such lease.
    pub(super) fn revoke(&mut self, id: i64) -> Option<u64> {
        let keys = self.leases.remove(id)?;
        for key in &keys {
            self.delete_key(key);
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
        let events = std::mem::take(&mut self.pending);
        self.history_events += events.len();
        self.history_bytes += events.iter().map(Event::len_bytes).sum::<usize>();
        self.history.push_back(Arc::new(Batch {
            revision: self.revision,
            events,
        }));
        while self.history.len() > 1
            && (self.history_events > self.history_max
                || self.history_bytes > limits::STORE_HISTORY_BYTES_MAX)
        {
            self.drop_oldest();
            self.compacted = self.history.front().map_or(self.revision, |b| b.revision);
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
        while self.history.front().is_some_and(|b| b.revision < revision) {
            self.drop_oldest();
        }
        self.compacted = revision;
        Ok(())
    }

    fn drop_oldest(&mut self) {
        if let Some(batch) = self.history.pop_front() {
            self.history_events -= batch.events.len();
            self.history_bytes -= batch.events.iter().map(Event::len_bytes).sum::<usize>();
        }
    }

    /// Up to `max` batches from revision `from` on; O(1) to find, shared and not copied.
    pub(super) fn batches(&self, from: i64, max: usize) -> impl Iterator<Item = &Arc<Batch>> {
        let first = self.history.front().map_or(from, |b| b.revision);
        let skip = usize::try_from(from.saturating_sub(first)).unwrap_or(0);
        self.history.iter().skip(skip).take(max)
    }
}

fn select<'a>(
    request: &RangeRequest,
    revision: i64,
    mut kvs: impl Iterator<Item = &'a KeyValue>,
) -> RangeResponse {
    let mut response = RangeResponse {
        revision,
        ..RangeResponse::default()
    };
    if request.count_only {
        response.count = as_count(kvs.count());
        return response;
    }
    let limit = usize::try_from(request.limit)
        .ok()
        .filter(|limit| *limit > 0);
    let in_order = request.sort == SortTarget::Key && !request.descending;
    let mut chosen: Vec<&KeyValue> = Vec::new();
    if in_order && !request.is_filtered() {
        chosen.extend(kvs.by_ref().take(limit.unwrap_or(usize::MAX)));
        let rest = kvs.count();
        response.count = as_count(chosen.len() + rest);
        response.more = rest > 0;
    } else {
        let mut count = 0_usize;
        chosen.extend(kvs.inspect(|_| count += 1).filter(|kv| request.passes(kv)));
        response.count = as_count(count);
        sort(&mut chosen, request);
        response.more = limit.is_some_and(|limit| chosen.len() > limit);
        chosen.truncate(limit.unwrap_or(usize::MAX));
    }
    response.kvs = chosen.into_iter().cloned().collect();
    if request.keys_only {
        response
            .kvs
            .iter_mut()
            .for_each(|kv| kv.value = Bytes::new());
    }
    response
}

fn sort(kvs: &mut [&KeyValue], request: &RangeRequest) {
    match request.sort {
        SortTarget::Key => {}
        SortTarget::Version => kvs.sort_by_key(|kv| kv.version),
        SortTarget::Create => kvs.sort_by_key(|kv| kv.create_revision),
        SortTarget::Mod => kvs.sort_by_key(|kv| kv.mod_revision),
        SortTarget::Value => kvs.sort_by(|a, b| a.value.cmp(&b.value)),
    }
    if request.descending {
        kvs.reverse();
    }
}

fn as_count(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
