//! The store against a model that keeps a whole copy of the keys for each revision.
use std::collections::BTreeMap;

use futures::FutureExt;
use proptest::{collection::vec, prelude::*};

use super::*;

type Keys = BTreeMap<u8, (u8, i64, i64, i64)>;

#[derive(Debug, Clone)]
enum Step {
    Put(u8, u8),
    Delete(u8, u8),
    Txn(Vec<(u8, Option<u8>)>),
}

fn step() -> impl Strategy<Value = Step> {
    let key = b'a'..b'h';
    prop_oneof![
        3 => (key.clone(), any::<u8>()).prop_map(|(k, v)| Step::Put(k, v)),
        1 => (key.clone(), key.clone()).prop_map(|(a, b)| Step::Delete(a, b)),
        1 => proptest::collection::btree_map(key, any::<Option<u8>>(), 1..5)
            .prop_map(|ops| Step::Txn(ops.into_iter().collect())),
    ]
}

fn single(byte: u8) -> Bytes {
    Bytes::copy_from_slice(&[byte])
}

fn model_put(keys: &mut Keys, key: u8, value: u8, revision: i64) {
    let (create, version) = keys.get(&key).map_or((revision, 0), |old| (old.1, old.3));
    keys.insert(key, (value, create, revision, version + 1));
}

fn observed(store: &Store, revision: i64) -> Keys {
    let request = RangeRequest {
        revision,
        ..RangeRequest::prefix(b"")
    };
    let kvs = store.range(&request).unwrap().kvs;
    let entry = |kv: KeyValue| {
        (
            kv.key[0],
            (kv.value[0], kv.create_revision, kv.mod_revision, kv.version),
        )
    };
    kvs.into_iter().map(entry).collect()
}

proptest! {
    #[test]
    fn every_revision_reads_as_in_the_model(steps in vec(step(), 1..60), compact in 0_usize..60) {
        let store = Store::new(Options { cluster_id: 1, history_max: 1_000 });
        let mut model: Vec<Keys> = vec![Keys::new(), Keys::new()];
        for step in &steps {
            let mut keys = model.last().unwrap().clone();
            let revision = model.len().try_into().unwrap();
            match step {
                Step::Put(key, value) => {
                    model_put(&mut keys, *key, *value, revision);
                    store.put(single(*key), single(*value), 0).unwrap();
                }
                Step::Delete(from, to) => {
                    keys.retain(|key, _| !(from <= key && key < to));
                    let range = KeyRange { key: single(*from), range_end: single(*to) };
                    store.delete_range(&DeleteRequest { range, prev_kv: false }).unwrap();
                }
                Step::Txn(ops) => {
                    let success = ops.iter().map(|(key, value)| match value {
                        Some(value) => {
                            model_put(&mut keys, *key, *value, revision);
                            let (key, value) = (single(*key), single(*value));
                            TxnOp::Put(PutRequest { key, value, ..PutRequest::default() })
                        }
                        None => {
                            keys.remove(key);
                            let range = KeyRange::single(single(*key));
                            TxnOp::Delete(DeleteRequest { range, prev_kv: false })
                        }
                    });
                    let success = success.collect();
                    store.txn(&Txn { success, ..Txn::default() }).unwrap();
                }
            }
            if keys != *model.last().unwrap() {
                model.push(keys);
            }
            prop_assert_eq!(usize::try_from(store.revision()).unwrap(), model.len() - 1);
        }
        let compact = compact.min(model.len() - 1).max(1);
        store.compact(compact as i64).unwrap();
        for (revision, keys) in model.iter().enumerate().skip(compact) {
            prop_assert_eq!(&observed(&store, revision as i64), keys);
        }

        // A reader that lists at the compacted revision and applies the watch ends where we are.
        let mut keys = observed(&store, compact as i64);
        let (range, start_revision) = (KeyRange::prefix(b""), compact as i64 + 1);
        let mut watcher =
            store.watch(WatchRequest { range, start_revision, ..WatchRequest::default() }).unwrap();
        while let Some(batch) = watcher.recv().now_or_never() {
            for event in batch.unwrap().events {
                match event {
                    Event::Put { kv, .. } => {
                        let entry = (kv.value[0], kv.create_revision, kv.mod_revision, kv.version);
                        keys.insert(kv.key[0], entry);
                    }
                    Event::Delete { key, .. } => {
                        keys.remove(&key[0]);
                    }
                }
            }
        }
        prop_assert_eq!(&keys, model.last().unwrap());
        prop_assert_eq!(watcher.position().get(), store.revision());
    }
}
