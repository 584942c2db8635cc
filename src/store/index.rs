//! Records in key order, with the number of keys in any range at the price of finding its ends.
//! Sorted chunks of records: within a chunk by binary search, over the chunks by adding up lengths,
//! a few microseconds for a million keys. Chunks are shared between clones of an index and copied
//! when one of them writes, so a clone is a snapshot for the price of its list of chunks.
//! Invariants: no chunk is empty or longer than `CHUNK_KEYS`; keys ascend within and across chunks.
use std::sync::Arc;

use super::{KeyRange, Record};

/// Most records of a chunk. An insertion moves half a chunk of pointers and the first write after a
/// snapshot copies one, so it is small; a count adds up a number per chunk, so it is not tiny.
const CHUNK_KEYS: usize = 256;

/// An ordered set of records, one for each key.
#[derive(Debug, Clone, Default)]
pub(super) struct Index {
    chunks: Vec<Chunk>,
    len: usize,
}

/// `first` and `len` repeat what is in `records`, to search and count without following pointers.
#[derive(Debug, Clone)]
struct Chunk {
    first: Record,
    len: usize,
    records: Arc<Vec<Record>>,
}

/// Before the `at`-th record of a chunk; may be the end of it, or of all chunks.
#[derive(Debug, Clone, Copy)]
struct Place {
    chunk: usize,
    at: usize,
}

impl Index {
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<&Record> {
        let chunk = self.chunks.get(self.chunk_of(key))?;
        chunk.find(key).ok().map(|at| &chunk.records[at])
    }

    /// Returns the record that was there with the same key.
    pub(super) fn insert(&mut self, record: Record) -> Option<Record> {
        let n = self.chunk_of(record.key());
        let Some(chunk) = self.chunks.get_mut(n) else {
            self.chunks.push(Chunk::new(record));
            self.len += 1;
            return None;
        };
        match chunk.find(record.key()) {
            Ok(at) => Some(chunk.replace(at, record)),
            Err(at) => {
                self.len += 1;
                if chunk.len < CHUNK_KEYS {
                    chunk.insert(at, record);
                } else if at == CHUNK_KEYS {
                    // Keys that come in order leave full chunks behind.
                    self.chunks.insert(n + 1, Chunk::new(record));
                } else {
                    let mut upper = chunk.split();
                    match at.checked_sub(chunk.len) {
                        Some(at) => upper.insert(at, record),
                        None => chunk.insert(at, record),
                    }
                    self.chunks.insert(n + 1, upper);
                }
                None
            }
        }
    }

    pub(super) fn remove(&mut self, key: &[u8]) -> Option<Record> {
        let n = self.chunk_of(key);
        let chunk = self.chunks.get_mut(n)?;
        let at = chunk.find(key).ok()?;
        self.len -= 1;
        if chunk.len == 1 {
            return Some(self.chunks.remove(n).first);
        }
        let removed = chunk.remove(at);
        self.merge(n);
        self.merge(n.saturating_sub(1));
        Some(removed)
    }

    pub(super) fn count(&self, range: &KeyRange) -> usize {
        let Some((start, end)) = self.places(range) else {
            return 0;
        };
        let chunks = self.chunks.get(start.chunk..end.chunk).unwrap_or_default();
        let whole: usize = chunks.iter().map(|chunk| chunk.len).sum();
        whole + end.at - start.at
    }

    /// The records of a range, ascending.
    pub(super) fn range(&self, range: &KeyRange) -> impl Iterator<Item = &Record> {
        let places = self.places(range);
        places.into_iter().flat_map(|(start, end)| {
            let chunks = self.chunks.iter().enumerate();
            let chunks = chunks.take(end.chunk + 1).skip(start.chunk);
            chunks.flat_map(move |(n, chunk)| {
                let from = if n == start.chunk { start.at } else { 0 };
                let to = if n == end.chunk { end.at } else { chunk.len };
                chunk.records[from..to].iter()
            })
        })
    }

    /// All records, ascending.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Record> {
        self.chunks.iter().flat_map(|chunk| chunk.records.iter())
    }

    /// The chunk that holds `key` if any does.
    fn chunk_of(&self, key: &[u8]) -> usize {
        let after = self.chunks.partition_point(|c| c.first.key() <= key);
        after.saturating_sub(1)
    }

    /// Before the first record at or after `key`.
    fn place(&self, key: &[u8]) -> Place {
        let n = self.chunk_of(key);
        let at = self.chunks.get(n).map_or(0, |chunk| match chunk.find(key) {
            Ok(at) | Err(at) => at,
        });
        Place { chunk: n, at }
    }

    /// The ends of a range; `None` if it holds no key by its own bounds.
    fn places(&self, range: &KeyRange) -> Option<(Place, Place)> {
        let start = self.place(&range.key);
        let end = if range.range_end.is_empty() {
            let found = usize::from(self.get(&range.key).is_some());
            Place {
                at: start.at + found,
                ..start
            }
        } else if range.is_from_key() {
            Place {
                chunk: self.chunks.len(),
                at: 0,
            }
        } else if range.key < range.range_end {
            self.place(&range.range_end)
        } else {
            return None;
        };
        Some((start, end))
    }

    /// Joins a chunk with the next one if both are small, so that deletions leave few chunks.
    fn merge(&mut self, n: usize) {
        if let [chunk, next, ..] = &mut self.chunks[n..]
            && chunk.len + next.len <= CHUNK_KEYS / 2
        {
            Arc::make_mut(&mut chunk.records).extend_from_slice(&next.records);
            chunk.len += next.len;
            self.chunks.remove(n + 1);
        }
    }
}

impl Chunk {
    fn new(record: Record) -> Self {
        Self {
            first: record.clone(),
            len: 1,
            records: Arc::new(vec![record]),
        }
    }

    fn find(&self, key: &[u8]) -> Result<usize, usize> {
        self.records
            .binary_search_by(|record| record.key().cmp(key))
    }

    fn insert(&mut self, at: usize, record: Record) {
        let records = Arc::make_mut(&mut self.records);
        if records.len() == records.capacity() {
            // By doubling, but not past what a chunk may hold.
            let spare = CHUNK_KEYS.saturating_sub(records.len());
            records.reserve_exact(spare.min(records.len().max(4)));
        }
        records.insert(at, record);
        self.refresh();
    }

    fn replace(&mut self, at: usize, record: Record) -> Record {
        let old = std::mem::replace(&mut Arc::make_mut(&mut self.records)[at], record);
        self.refresh();
        old
    }

    /// Not for the last record.
    fn remove(&mut self, at: usize) -> Record {
        let removed = Arc::make_mut(&mut self.records).remove(at);
        self.refresh();
        removed
    }

    /// Cuts off the upper half.
    fn split(&mut self) -> Self {
        let half = self.len / 2;
        let upper = Arc::make_mut(&mut self.records).split_off(half);
        self.refresh();
        Self {
            first: upper[0].clone(),
            len: upper.len(),
            records: Arc::new(upper),
        }
    }

    fn refresh(&mut self) {
        self.len = self.records.len();
        if let Some(first) = self.records.first() {
            self.first = first.clone();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::Bytes;
    use proptest::{collection::vec, prelude::*};

    use super::{super::record::Fields, *};

    fn record(key: u16, mod_revision: i64) -> Record {
        Record::new(&Fields {
            key: &key.to_be_bytes(),
            mod_revision,
            version: 1,
            ..Fields::default()
        })
    }

    fn key(n: u16) -> Bytes {
        Bytes::copy_from_slice(&n.to_be_bytes())
    }

    fn check(index: &Index) {
        let mut last: Option<&Record> = None;
        for chunk in &index.chunks {
            assert!((1..=CHUNK_KEYS).contains(&chunk.len));
            assert_eq!(chunk.len, chunk.records.len());
            let firsts = [&chunk.first, &chunk.records[0]].map(|r| r.encoded().as_ptr());
            assert_eq!(firsts[0], firsts[1], "no old record is kept alive");
            for record in chunk.records.iter() {
                assert!(last.is_none_or(|last| last.key() < record.key()));
                last = Some(record);
            }
        }
        assert_eq!(index.iter().count(), index.len());
    }

    /// Stretches of insertions and removals, long enough to split and merge chunks.
    fn stretches() -> impl Strategy<Value = Vec<(bool, u16, u16, u16)>> {
        vec((any::<bool>(), 0..4_000_u16, 1..900_u16, 1..4_u16), 1..14)
    }

    proptest! {
        #[test]
        fn an_index_agrees_with_a_sorted_map(
            stretches in stretches(),
            ranges in vec((0..4_000_u16, 0..4_000_u16), 12),
        ) {
            let (mut index, mut model) = (Index::default(), BTreeMap::new());
            let (mut snapshot, mut model_then) = (index.clone(), model.clone());
            for (n, (insert, from, len, step)) in (0_i64..).zip(stretches) {
                for key in (from..from + len).step_by(step.into()) {
                    let (removed, expected) = if insert {
                        (index.insert(record(key, n)), model.insert(key, n))
                    } else {
                        (index.remove(&key.to_be_bytes()), model.remove(&key))
                    };
                    prop_assert_eq!(removed.map(|r| r.mod_revision()), expected);
                }
                check(&index);
                if n == 5 {
                    (snapshot, model_then) = (index.clone(), model.clone());
                }
            }
            for (index, model) in [(index, model), (snapshot, model_then)] {
                check(&index);
                for (from, to) in &ranges {
                    let single = KeyRange::single(key(*from));
                    prop_assert_eq!(index.count(&single), usize::from(model.contains_key(from)));
                    let tail = KeyRange { key: key(*from), range_end: Bytes::from_static(b"\0") };
                    prop_assert_eq!(index.count(&tail), model.range(from..).count());
                    prop_assert_eq!(index.range(&tail).count(), model.range(from..).count());
                    let range = KeyRange { key: key(*from), range_end: key(*to) };
                    let found: Vec<i64> = index.range(&range).map(Record::mod_revision).collect();
                    let expected: Vec<i64> = if from < to {
                        model.range(from..to).map(|(_, n)| *n).collect()
                    } else {
                        Vec::new()
                    };
                    prop_assert_eq!(index.count(&range), expected.len());
                    prop_assert_eq!(found, expected);
                }
            }
        }
    }

    #[test]
    fn keys_in_order_leave_full_chunks() {
        let mut index = Index::default();
        for key in 0..10_000 {
            index.insert(record(key, 1));
        }
        assert_eq!(index.chunks.len(), 10_000_usize.div_ceil(CHUNK_KEYS));
    }
}
