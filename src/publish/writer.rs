//! What this node wants in the cluster store, and how much of it is there. No I/O: the caller takes
//! batches, runs them, and tells how they ended.
//!
//! Invariant: each wanted key is on one of our leases, waits to be written, or is held by another
//! node. The node that wrote a key first keeps it for as long as its lease lives; the others write
//! theirs when it is gone. A key is deleted only while it is on the lease that we put it on.
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
};

use bytes::Bytes;

use crate::{
    etcd::{Compare, CompareOp, KeyValue, PutOptions, Txn, TxnOp, TxnOpResponse, TxnResponse},
    keyspace::identity,
    limits,
};

/// Desired keys, and the leases that hold them.
#[derive(Debug, Default)]
pub(super) struct Writer {
    wanted: BTreeMap<Bytes, Wanted>,
    /// Wanted keys that the store may not hold as wanted.
    dirty: BTreeSet<Bytes>,
    /// Keys no longer wanted, by the lease that we put them on.
    doomed: BTreeMap<Bytes, i64>,
    /// Our leases with the number of keys that count against each.
    leases: BTreeMap<i64, usize>,
    /// Leases of this node's earlier processes; keys on them are ours.
    inherited: BTreeSet<i64>,
    /// Wanted keys that another node holds, and whether with other bytes than ours.
    held: BTreeMap<Bytes, bool>,
    /// The held key that was tried last.
    tried: Bytes,
    /// The batch was refused as a whole: find out which key it is, one by one.
    singly: bool,
    /// Why the store takes a key in no case.
    refused: BTreeMap<Bytes, String>,
}

#[derive(Debug)]
struct Wanted {
    value: Bytes,
    /// The lease of ours that it is, or was, to be put on, and counts against.
    lease: Option<i64>,
    over: Over,
}

/// What a put may replace besides nothing and keys without a lease, which would never go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Over {
    /// Whatever is there.
    Anything,
    /// A key on this lease; 0 for no more than the above.
    Lease(i64),
}

/// One step of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Put {
        key: Bytes,
        value: Bytes,
        lease: i64,
        over: Over,
    },
    /// Only if the key is on this lease.
    Delete { key: Bytes, lease: i64 },
}

/// What the store has under a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    value: Bytes,
    lease: i64,
}

impl From<&KeyValue> for Found {
    fn from(found: &KeyValue) -> Self {
        Self {
            value: Bytes::copy_from_slice(found.value()),
            lease: found.lease(),
        }
    }
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// The store has everything.
    Idle,
    /// No lease has room.
    Grant,
    /// Write this; at most `limits::STORE_BATCH_KEYS` steps.
    Write(Vec<Step>),
}

impl Writer {
    /// Wants a key; nothing is to be done if it is there already with this value.
    pub(super) fn put(&mut self, key: String, value: impl Into<Bytes>) {
        let (key, value) = (Bytes::from(key), value.into());
        let old = self.wanted.get(&key);
        if old.is_some_and(|old| old.value == value) {
            return;
        }
        let over = old.map(|old| old.over);
        let doomed = || self.doomed.get(&key).copied();
        let over = over.or_else(|| doomed().map(Over::Lease));
        self.want(key, value, over.unwrap_or(Over::Lease(0)));
    }

    /// Wants a key to be written whether or not it is there, and whoever holds it.
    pub(super) fn touch(&mut self, key: String, value: Vec<u8>) {
        self.want(Bytes::from(key), Bytes::from(value), Over::Anything);
    }

    fn want(&mut self, key: Bytes, value: Bytes, over: Over) {
        let lease = match self.wanted.get(&key) {
            Some(old) => old.lease,
            None => self.doomed.remove(&key),
        };
        self.refused.remove(&key);
        self.dirty.insert(key.clone());
        self.wanted.insert(key, Wanted { value, lease, over });
    }

    /// Wants a key no longer; keys that were never put by us are left alone.
    pub(super) fn delete(&mut self, key: &str) {
        let Some((key, wanted)) = self.wanted.remove_entry(key.as_bytes()) else {
            return;
        };
        self.dirty.remove(&key);
        self.refused.remove(&key);
        self.held.remove(&key);
        if let Some(lease) = wanted.lease {
            self.doomed.insert(key, lease);
        }
    }

    /// Notes that a key was written with this value and on this lease, by somebody who counted it
    /// with [`Self::reserve`].
    pub(super) fn adopt(&mut self, key: Bytes, value: Bytes, lease: i64) {
        if let Some(old) = self.doomed.remove(&key) {
            self.uncount(old);
        }
        self.dirty.remove(&key);
        let wanted = Wanted {
            value,
            lease: Some(lease),
            over: Over::Lease(lease),
        };
        if let Some(old) = self.wanted.insert(key, wanted)
            && let Some(old) = old.lease
        {
            self.uncount(old);
        }
    }

    /// Leaves a key that is to be written to somebody who will [`Self::adopt`] it.
    pub(super) fn leave(&mut self, key: &[u8]) {
        self.dirty.remove(key);
    }

    /// A lease with room for `count` more keys, which count from now on; `None` if there is none.
    pub(super) fn reserve(&mut self, count: usize) -> Option<i64> {
        let (id, used) = self
            .leases
            .iter_mut()
            .find(|(_, used)| **used + count <= limits::LEASE_KEYS_MAX)?;
        *used += count;
        Some(*id)
    }

    /// Takes back what was reserved and not adopted.
    pub(super) fn unreserve(&mut self, lease: i64, count: usize) {
        for _ in 0..count {
            self.uncount(lease);
        }
    }

    /// Adds a lease of ours.
    pub(super) fn granted(&mut self, lease: i64) {
        self.leases.insert(lease, 0);
    }

    /// Takes over the leases of this node's earlier processes that still live.
    pub(super) fn inherit(&mut self, leases: impl IntoIterator<Item = i64>) {
        self.inherited = leases.into_iter().collect();
    }

    /// All our leases.
    pub(super) fn leases(&self) -> Vec<i64> {
        self.leases.keys().copied().collect()
    }

    /// A lease is gone, and with it the keys on it: they are to be written again.
    pub(super) fn lost(&mut self, lease: i64) -> Vec<Bytes> {
        self.leases.remove(&lease);
        let mut lost = Vec::new();
        for (key, wanted) in &mut self.wanted {
            if wanted.lease == Some(lease) {
                wanted.lease = None;
                if wanted.over == Over::Lease(lease) {
                    wanted.over = Over::Lease(0);
                }
                self.dirty.insert(key.clone());
                lost.push(key.clone());
            }
        }
        self.doomed.retain(|_, on| *on != lease);
        lost
    }

    /// The next batch; each key in it counts as written until [`Self::failed`] says otherwise.
    pub(super) fn next(&mut self) -> Next {
        let keys_max = if self.singly {
            1
        } else {
            limits::STORE_BATCH_KEYS
        };
        let (mut steps, mut bytes) = (Vec::new(), 0);
        while steps.len() < keys_max && bytes < limits::STORE_BATCH_BYTES {
            if let Some((key, lease)) = self.doomed.pop_first() {
                bytes += key.len();
                steps.push(Step::Delete { key, lease });
                continue;
            }
            let Some(key) = self.dirty.first() else { break };
            let on = self.wanted.get(key).and_then(|wanted| wanted.lease);
            let Some(lease) = on.or_else(|| self.reserve(1)) else {
                if steps.is_empty() {
                    return Next::Grant;
                }
                break;
            };
            let Some(key) = self.dirty.pop_first() else {
                break;
            };
            let Some(wanted) = self.wanted.get_mut(&key) else {
                continue;
            };
            wanted.lease = Some(lease);
            let (value, over) = (wanted.value.clone(), wanted.over);
            bytes += key.len() + value.len();
            steps.push(Step::Put {
                key,
                value,
                lease,
                over,
            });
        }
        if steps.is_empty() {
            self.singly = false;
            return Next::Idle;
        }
        Next::Write(steps)
    }

    /// A batch is in the store, except the puts for which a key was `found` instead. Yields the keys
    /// that were found to be held, and those that were held and are ours now.
    pub(super) fn done(
        &mut self,
        steps: Vec<Step>,
        found: Vec<Option<Found>>,
    ) -> (Vec<Bytes>, Vec<Bytes>) {
        let (mut held, mut taken) = (Vec::new(), Vec::new());
        let found = found.into_iter().chain(std::iter::repeat(None));
        for (step, found) in steps.into_iter().zip(found) {
            match (step, found) {
                (Step::Delete { lease, .. }, _) => self.uncount(lease),
                (Step::Put { key, lease, .. }, None) => {
                    if let Some(wanted) = self.wanted.get_mut(&key)
                        && wanted.over != Over::Anything
                    {
                        wanted.over = Over::Lease(lease);
                    }
                    taken.extend(self.held.remove(&key).map(|_| key));
                }
                (Step::Put { key, lease, .. }, Some(found)) => {
                    held.extend(self.not_put(key, lease, &found));
                }
            }
        }
        (held, taken)
    }

    /// A key was on another lease than its put expected. Yields it if another node newly holds it.
    fn not_put(&mut self, key: Bytes, lease: i64, found: &Found) -> Option<Bytes> {
        if self.is_ours(found.lease) {
            let wanted = self.wanted.get_mut(&key)?;
            wanted.over = Over::Lease(found.lease);
            self.dirty.insert(key);
            return None;
        }
        // One that is not wanted any more still counts until its deletion is done.
        let wanted = self.wanted.get_mut(&key)?;
        if wanted.lease == Some(lease) {
            wanted.lease = None;
            self.uncount(lease);
        }
        self.hold(key, found)
    }

    fn hold(&mut self, key: Bytes, found: &Found) -> Option<Bytes> {
        let wanted = self.wanted.get_mut(&key)?;
        wanted.over = Over::Lease(0);
        let differs = found.value != wanted.value;
        let known = self.held.insert(key.clone(), differs);
        (differs && known != Some(true)).then_some(key)
    }

    fn is_ours(&self, lease: i64) -> bool {
        self.leases.contains_key(&lease) || self.inherited.contains(&lease)
    }

    /// Tries the next batch of held keys again.
    pub(super) fn try_held(&mut self) {
        let after = (Bound::Excluded(&self.tried), Bound::Unbounded);
        let next = self.held.range::<Bytes, _>(after).map(|(key, _)| key);
        let next: Vec<Bytes> = next.take(limits::STORE_BATCH_KEYS).cloned().collect();
        // Past the last one it begins anew.
        self.tried = next.last().cloned().unwrap_or_default();
        self.dirty.extend(next);
    }

    /// Keys that another node holds with other bytes than ours.
    pub(super) fn contended(&self) -> impl Iterator<Item = &Bytes> {
        let differing = self.held.iter().filter(|(_, differs)| **differs);
        differing.map(|(key, _)| key)
    }

    /// A batch may or may not be in the store: all of it is to be done again.
    pub(super) fn failed(&mut self, steps: Vec<Step>) {
        for step in steps {
            match step {
                Step::Put { key, .. } => {
                    if self.wanted.contains_key(&key) {
                        self.dirty.insert(key);
                    }
                }
                Step::Delete { key, lease } => match self.wanted.get_mut(&key) {
                    // Wanted again meanwhile; that put is still to come.
                    Some(wanted) => {
                        wanted.lease = Some(lease);
                        wanted.over = Over::Lease(lease);
                    }
                    None => drop(self.doomed.insert(key, lease)),
                },
            }
        }
    }

    /// The store refused a batch, and would again. Yields the key if it was the only one.
    pub(super) fn refused(&mut self, steps: Vec<Step>, reason: &str) -> Option<Bytes> {
        if steps.len() > 1 {
            self.singly = true;
            self.failed(steps);
            return None;
        }
        let (Step::Put { key, .. } | Step::Delete { key, .. }) = steps.into_iter().next()?;
        self.refused.insert(key.clone(), reason.to_owned());
        Some(key)
    }

    /// Keys that the store does not take, with its words.
    pub(super) fn refusals(&self) -> impl Iterator<Item = (&Bytes, &String)> {
        self.refused.iter()
    }

    /// Keys that are still to be written or deleted.
    pub(super) fn unwritten(&self) -> usize {
        self.dirty.len() + self.doomed.len()
    }

    /// Keys that should be in the store as wanted.
    pub(super) fn written(&self) -> Vec<Bytes> {
        let keys = self.wanted.keys();
        keys.filter(|key| !self.dirty.contains(*key))
            .cloned()
            .collect()
    }

    /// Compares one of [`Self::written`] with what the store has. What is missing, would never
    /// expire, or differs on a lease of ours is written again; what is on another node's lease is
    /// left to it. True if the store lacks what is ours to write.
    pub(super) fn compared(&mut self, key: &Bytes, found: Option<&Found>) -> bool {
        let Some(wanted) = self.wanted.get(key) else {
            return false;
        };
        let same = found.is_some_and(|found| found.value == wanted.value && found.lease != 0);
        // A slave key stands for one node alone: what is wrong with it, allocation mends.
        if let Some(found) = found.filter(|found| found.lease != 0)
            && identity::labels_of_slave(key).is_none()
        {
            if wanted.over == Over::Anything {
                return false;
            }
            if !self.is_ours(found.lease) {
                self.hold(key.clone(), found);
                return false;
            }
            if let Some(wanted) = self.wanted.get_mut(key) {
                wanted.over = Over::Lease(found.lease);
            }
        }
        if !same && !self.refused.contains_key(key) {
            self.dirty.insert(key.clone());
        }
        !same
    }

    fn uncount(&mut self, lease: i64) {
        if let Some(used) = self.leases.get_mut(&lease) {
            *used = used.saturating_sub(1);
        }
    }
}

/// A batch as one transaction.
pub(super) fn transaction(steps: &[Step]) -> Txn {
    Txn::new().and_then(steps.iter().map(op).collect::<Vec<_>>())
}

fn op(step: &Step) -> TxnOp {
    let on = |key: &Bytes, lease| Compare::lease(key.to_vec(), CompareOp::Equal, lease);
    match step {
        Step::Delete { key, lease } => {
            let delete = TxnOp::delete(key.to_vec(), None);
            TxnOp::txn(Txn::new().when([on(key, *lease)]).and_then([delete]))
        }
        Step::Put {
            key,
            value,
            lease,
            over,
        } => {
            let options = PutOptions::new().with_lease(*lease);
            let put = || TxnOp::put(key.to_vec(), value.to_vec(), Some(options.clone()));
            // A key that is not there is on lease 0 as well.
            let free = || {
                let get = TxnOp::get(key.to_vec(), None);
                let free = Txn::new().when([on(key, 0)]);
                TxnOp::txn(free.and_then([put()]).or_else([get]))
            };
            match over {
                Over::Anything => put(),
                Over::Lease(0) => free(),
                Over::Lease(expected) => {
                    let held = Txn::new().when([on(key, *expected)]);
                    TxnOp::txn(held.and_then([put()]).or_else([free()]))
                }
            }
        }
    }
}

/// What each step of a batch's answer found in its place.
pub(super) fn found(response: &TxnResponse) -> Vec<Option<Found>> {
    let steps = response.op_responses().into_iter();
    steps.map(found_by).collect()
}

fn found_by(response: TxnOpResponse) -> Option<Found> {
    match response {
        TxnOpResponse::Get(found) => found.kvs().first().map(Found::from),
        TxnOpResponse::Txn(inner) => inner.op_responses().into_iter().find_map(found_by),
        TxnOpResponse::Put(_) | TxnOpResponse::Delete(_) => None,
    }
}

#[cfg(test)]
mod tests;
