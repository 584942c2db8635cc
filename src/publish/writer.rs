//! What this node wants in the cluster store, and how much of it is there. No I/O: the caller takes
//! batches, runs them, and tells how they ended.
//!
//! Invariant: each wanted key is on one of our leases or waits to be written; a key is deleted only
//! while it is on the lease that we put it on, so that what another node wrote since stays.
use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::{
    etcd::{Compare, CompareOp, KeyValue, PutOptions, Txn, TxnOp},
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
    /// The batch was refused as a whole: find out which key it is, one by one.
    singly: bool,
    /// Why the store takes a key in no case.
    refused: BTreeMap<Bytes, String>,
}

#[derive(Debug)]
struct Wanted {
    value: Bytes,
    lease: Option<i64>,
}

/// One step of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Put {
        key: Bytes,
        value: Bytes,
        lease: i64,
    },
    /// Only if the key is on this lease.
    Delete { key: Bytes, lease: i64 },
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
    pub(super) fn put(&mut self, key: String, value: Vec<u8>) {
        let (key, value) = (Bytes::from(key), Bytes::from(value));
        if self.wanted.get(&key).is_some_and(|old| old.value == value) {
            return;
        }
        self.want(key, value);
    }

    /// Wants a key to be written whether or not it is there.
    pub(super) fn touch(&mut self, key: String, value: Vec<u8>) {
        self.want(Bytes::from(key), Bytes::from(value));
    }

    fn want(&mut self, key: Bytes, value: Bytes) {
        let lease = match self.wanted.get(&key) {
            Some(old) => old.lease,
            None => self.doomed.remove(&key),
        };
        self.refused.remove(&key);
        self.dirty.insert(key.clone());
        self.wanted.insert(key, Wanted { value, lease });
    }

    /// Wants a key no longer; keys that were never put by us are left alone.
    pub(super) fn delete(&mut self, key: &str) {
        let Some((key, wanted)) = self.wanted.remove_entry(key.as_bytes()) else {
            return;
        };
        self.dirty.remove(&key);
        self.refused.remove(&key);
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
        let lease = Some(lease);
        if let Some(old) = self.wanted.insert(key, Wanted { value, lease })
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
            let value = wanted.value.clone();
            bytes += key.len() + value.len();
            steps.push(Step::Put { key, value, lease });
        }
        if steps.is_empty() {
            self.singly = false;
            return Next::Idle;
        }
        Next::Write(steps)
    }

    /// A batch is in the store.
    pub(super) fn done(&mut self, steps: Vec<Step>) {
        for step in steps {
            if let Step::Delete { lease, .. } = step {
                self.uncount(lease);
            }
        }
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
                    Some(wanted) => wanted.lease = Some(lease),
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

    /// Compares one of [`Self::written`] with what the store has. What is missing, differs or would
    /// never expire is written again; the same bytes on another node's lease are left to it. True
    /// if the store had it otherwise than wanted.
    pub(super) fn compared(&mut self, key: &Bytes, found: Option<&KeyValue>) -> bool {
        let Some(wanted) = self.wanted.get(key) else {
            return false;
        };
        let same = found.is_some_and(|found| found.value() == wanted.value && found.lease() != 0);
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
    let step = |step: &Step| match step {
        Step::Put { key, value, lease } => TxnOp::put(
            key.to_vec(),
            value.to_vec(),
            Some(PutOptions::new().with_lease(*lease)),
        ),
        Step::Delete { key, lease } => {
            let ours = Compare::lease(key.to_vec(), CompareOp::Equal, *lease);
            let delete = TxnOp::delete(key.to_vec(), None);
            TxnOp::txn(Txn::new().when([ours]).and_then([delete]))
        }
    };
    Txn::new().and_then(steps.iter().map(step).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writer() -> Writer {
        let mut writer = Writer::default();
        writer.granted(7);
        writer
    }

    fn put(key: &'static str, value: &'static str, lease: i64) -> Step {
        let (key, value) = (key.into(), value.into());
        Step::Put { key, value, lease }
    }

    fn delete(key: &'static str, lease: i64) -> Step {
        let key = key.into();
        Step::Delete { key, lease }
    }

    fn batch(writer: &mut Writer) -> Vec<Step> {
        match writer.next() {
            Next::Write(steps) => steps,
            other => panic!("no batch: {other:?}"),
        }
    }

    #[test]
    fn only_what_changed_is_written_and_only_our_keys_are_deleted() {
        let mut writer = Writer::default();
        writer.put("a".to_owned(), b"1".to_vec());
        assert_eq!(writer.next(), Next::Grant);
        writer.granted(7);
        let steps = batch(&mut writer);
        assert_eq!(steps, [put("a", "1", 7)]);
        writer.done(steps);
        writer.put("a".to_owned(), b"1".to_vec());
        writer.delete("z");
        assert_eq!(writer.next(), Next::Idle);
        writer.put("a".to_owned(), b"2".to_vec());
        writer.put("b".to_owned(), b"1".to_vec());
        writer.delete("b");
        let steps = batch(&mut writer);
        assert_eq!(steps, [put("a", "2", 7)], "b was never there");
        writer.done(steps);
        writer.delete("a");
        assert_eq!(batch(&mut writer), [delete("a", 7)]);
        assert_eq!(writer.next(), Next::Idle);
    }

    #[test]
    fn a_failed_batch_is_repeated_with_what_is_wanted_by_then() {
        let mut writer = writer();
        for key in ["a", "b", "c"] {
            writer.put(key.to_owned(), b"1".to_vec());
        }
        let steps = batch(&mut writer);
        writer.done(steps);
        writer.delete("a");
        writer.delete("b");
        writer.put("c".to_owned(), b"2".to_vec());
        let steps = batch(&mut writer);
        assert_eq!(steps.len(), 3);
        // While it is under way the wish for b comes back and that for c goes.
        writer.put("b".to_owned(), b"3".to_vec());
        writer.delete("c");
        writer.failed(steps);
        let steps = batch(&mut writer);
        assert_eq!(steps, [delete("a", 7), delete("c", 7), put("b", "3", 7)]);
        writer.done(steps);
        assert_eq!(writer.unwritten(), 0);
    }

    #[test]
    fn a_lost_lease_means_all_of_its_keys_again() {
        let mut writer = writer();
        writer.put("a".to_owned(), b"1".to_vec());
        writer.put("b".to_owned(), b"1".to_vec());
        let steps = batch(&mut writer);
        writer.done(steps);
        writer.delete("b");
        assert_eq!(writer.lost(7), ["a"]);
        assert_eq!(writer.next(), Next::Grant);
        writer.granted(8);
        assert_eq!(batch(&mut writer), [put("a", "1", 8)]);
    }

    #[test]
    fn a_lease_takes_a_thousand_keys() {
        let mut writer = writer();
        for index in 0..=limits::LEASE_KEYS_MAX {
            writer.put(format!("{index:05}"), Vec::new());
        }
        let mut written = 0;
        loop {
            match writer.next() {
                Next::Write(steps) => {
                    assert!(steps.len() <= limits::STORE_BATCH_KEYS);
                    written += steps.len();
                    writer.done(steps);
                }
                Next::Grant => {
                    assert_eq!(written, limits::LEASE_KEYS_MAX);
                    writer.granted(8);
                }
                Next::Idle => break,
            }
        }
        assert_eq!(written, limits::LEASE_KEYS_MAX + 1);
        // Room comes back with deletions.
        writer.delete("00000");
        let steps = batch(&mut writer);
        writer.done(steps);
        assert_eq!(writer.reserve(1), Some(7));
    }

    #[test]
    fn one_bad_key_holds_up_no_other() {
        let mut writer = writer();
        for key in ["a", "b", "c"] {
            writer.put(key.to_owned(), b"1".to_vec());
        }
        let steps = batch(&mut writer);
        assert_eq!(writer.refused(steps, "too large"), None);
        let mut written = Vec::new();
        while let Next::Write(steps) = writer.next() {
            assert_eq!(steps.len(), 1);
            if steps == [put("b", "1", 7)] {
                assert_eq!(writer.refused(steps, "too large"), Some("b".into()));
            } else {
                written.extend(steps.clone());
                writer.done(steps);
            }
        }
        assert_eq!(written, [put("a", "1", 7), put("c", "1", 7)]);
        assert_eq!(writer.refusals().count(), 1);
        // Another value gets another try.
        writer.put("b".to_owned(), b"2".to_vec());
        assert_eq!(batch(&mut writer), [put("b", "2", 7)]);
        assert_eq!(writer.refusals().count(), 0);
    }
}
