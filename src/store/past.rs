//! Past states of the index, kept for readers that page through one. The first read of a revision
//! costs a snapshot and the undoing of everything newer; the next pages cost what the present does.
//! Invariant: every kept state can still be read, so its records are in the history anyway.
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use super::{Change, index::Index};
use crate::limits;

/// The latest read past states; the last is the most recently used.
#[derive(Debug, Default)]
pub(super) struct Past(Mutex<VecDeque<(i64, Arc<Index>)>>);

impl Past {
    /// The index as it was after `revision`; `now` and the `newer` changes, latest first, yield it.
    pub(super) fn at<'a>(
        &self,
        revision: i64,
        now: &Index,
        newer: impl Iterator<Item = &'a Change>,
    ) -> Arc<Index> {
        // Held while building, so that two readers of one revision build it once. A panic there
        // would leave the list as it was.
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = kept.iter().position(|(at, _)| *at == revision);
        let entry = found
            .and_then(|n| kept.remove(n))
            .unwrap_or_else(|| (revision, Arc::new(undo(now.clone(), newer))));
        let index = Arc::clone(&entry.1);
        kept.push_back(entry);
        if kept.len() > limits::STORE_PAST_STATES_MAX {
            kept.pop_front();
        }
        index
    }

    /// Forgets what can no longer be read.
    pub(super) fn compact(&mut self, revision: i64) {
        let kept = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|(at, _)| *at >= revision);
    }
}

fn undo<'a>(mut index: Index, newer: impl Iterator<Item = &'a Change>) -> Index {
    for change in newer {
        match &change.prev {
            Some(prev) => drop(index.insert(prev.clone())),
            None => drop(index.remove(change.record.key())),
        }
    }
    index
}

#[cfg(test)]
mod tests {
    use super::super::{KeyRange, Options, RangeRequest, Store};

    #[test]
    fn pages_of_the_past_stay_what_they_were_under_writes() {
        let store = Store::new(Options {
            cluster_id: 1,
            history_max: 1_000,
        });
        let put = |key: &'static str, value: &'static str| {
            store.put(key.into(), value.into(), 0).unwrap();
        };
        for key in ["a", "b", "c", "d"] {
            put(key, "old");
        }
        let revision = store.revision();
        let page = |key: &'static str| {
            let range = KeyRange {
                key: key.into(),
                range_end: "\0".into(),
            };
            let request = RangeRequest {
                range,
                limit: 2,
                revision,
                ..RangeRequest::default()
            };
            let page = store.range(&request).unwrap();
            let kvs = page.kvs.iter().map(|kv| (&kv.key[..], &kv.value[..]));
            let kvs: Vec<String> = kvs.map(|kv| format!("{kv:?}")).collect();
            (page.revision, page.count, page.more, kvs)
        };
        let kvs = |keys: [&str; 2]| keys.map(|k| format!("{:?}", (k.as_bytes(), b"old"))).into();
        for round in ["1", "2"] {
            put("b", round);
            put("aa", round);
            store.delete(b"c");
            let now = store.revision();
            assert_eq!(page("a"), (now, 4, true, kvs(["a", "b"])));
            assert_eq!(page("c"), (now, 2, false, kvs(["c", "d"])));
        }
    }
}
