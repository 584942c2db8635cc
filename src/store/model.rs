//! The store against a model that is too simple to be wrong: a whole copy of the keys for each
//! revision, and for each question a walk over all of them. Puts with every option, leases, ranges
//! with every option, and what a watch with previous values delivers in the end.
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use futures::FutureExt;
use proptest::{collection::vec, prelude::*};

use super::*;

type Keys = BTreeMap<Bytes, KeyValue>;

/// Keys by revision, from 0 on; the leases.
struct Model {
    past: Vec<Keys>,
    leases: BTreeSet<i64>,
}

#[derive(Debug, Clone)]
enum Step {
    Put(PutRequest),
    Delete(DeleteRequest),
    Grant(i64),
    Revoke(i64),
    Range(RangeRequest),
}

fn key() -> impl Strategy<Value = Bytes> {
    (b'a'..b'g').prop_map(|byte| Bytes::copy_from_slice(&[byte]))
}

fn range() -> impl Strategy<Value = KeyRange> {
    let end = prop_oneof![Just(Bytes::new()), Just(Bytes::from_static(b"\0")), key()];
    (key(), end).prop_map(|(key, range_end)| KeyRange { key, range_end })
}

fn put() -> impl Strategy<Value = PutRequest> {
    let value = prop_oneof![Just(""), Just("x"), Just("y")];
    let flags = (
        any::<bool>(),
        prop::bool::weighted(0.2),
        prop::bool::weighted(0.2),
    );
    (key(), value, 0_i64..4, flags).prop_map(|(key, value, lease, flags)| PutRequest {
        key,
        value: value.into(),
        lease,
        prev_kv: flags.0,
        ignore_value: flags.1,
        ignore_lease: flags.2,
    })
}

fn range_request() -> impl Strategy<Value = RangeRequest> {
    let sort = prop::sample::select(vec![
        SortTarget::Key,
        SortTarget::Version,
        SortTarget::Create,
        SortTarget::Mod,
        SortTarget::Value,
    ]);
    let order = prop::sample::select(vec![SortOrder::None, SortOrder::Ascend, SortOrder::Descend]);
    let bound = || prop_oneof![3 => Just(0_i64), 1 => 1_i64..20];
    let how = (
        sort,
        order,
        -1_i64..4,
        -1_i64..30,
        any::<bool>(),
        prop::bool::weighted(0.1),
    );
    (range(), how, (bound(), bound(), bound(), bound())).prop_map(|(range, how, bounds)| {
        let (sort, order, limit, revision, keys_only, count_only) = how;
        RangeRequest {
            range,
            limit,
            revision,
            sort,
            order,
            keys_only,
            count_only,
            min_mod_revision: bounds.0,
            max_mod_revision: bounds.1,
            min_create_revision: bounds.2,
            max_create_revision: bounds.3,
        }
    })
}

fn step() -> impl Strategy<Value = Step> {
    let delete = (range(), any::<bool>());
    prop_oneof![
        6 => put().prop_map(Step::Put),
        2 => delete.prop_map(|(range, prev_kv)| Step::Delete(DeleteRequest { range, prev_kv })),
        1 => (1_i64..4).prop_map(Step::Grant),
        1 => (1_i64..4).prop_map(Step::Revoke),
        6 => range_request().prop_map(Step::Range),
    ]
}

impl Model {
    fn new() -> Self {
        Self {
            past: vec![Keys::new(), Keys::new()],
            leases: BTreeSet::new(),
        }
    }

    fn now(&self) -> &Keys {
        self.past.last().unwrap()
    }

    fn revision(&self) -> i64 {
        self.past.len() as i64 - 1
    }

    fn put(&mut self, put: &PutRequest) -> Result<PutResponse, Error> {
        let old = self.now().get(&put.key).cloned();
        if put.ignore_value && !put.value.is_empty() {
            return Err(Error::ValueProvided);
        }
        if put.ignore_lease && put.lease != 0 {
            return Err(Error::LeaseProvided);
        }
        if put.lease != 0 && !self.leases.contains(&put.lease) {
            return Err(Error::LeaseNotFound { id: put.lease });
        }
        if old.is_none() && (put.ignore_value || put.ignore_lease) {
            return Err(Error::KeyNotFound);
        }
        let revision = self.revision() + 1;
        let mut new = old.clone().unwrap_or(KeyValue {
            key: put.key.clone(),
            create_revision: revision,
            ..KeyValue::default()
        });
        new.mod_revision = revision;
        new.version += 1;
        if !put.ignore_value {
            new.value = put.value.clone();
        }
        if !put.ignore_lease {
            new.lease = put.lease;
        }
        let mut keys = self.now().clone();
        keys.insert(put.key.clone(), new);
        self.past.push(keys);
        let prev_kv = old.filter(|_| put.prev_kv);
        Ok(PutResponse { revision, prev_kv })
    }

    /// Takes away what `gone` says, in one revision if it is anything.
    fn remove(&mut self, gone: impl Fn(&KeyValue) -> bool) -> Vec<KeyValue> {
        let removed: Vec<_> = self.now().values().filter(|kv| gone(kv)).cloned().collect();
        if !removed.is_empty() {
            let mut keys = self.now().clone();
            keys.retain(|_, kv| !gone(kv));
            self.past.push(keys);
        }
        removed
    }

    fn range(&self, request: &RangeRequest) -> Result<RangeResponse, Error> {
        let (requested, current) = (request.revision, self.revision());
        if requested > current {
            return Err(Error::FutureRevision { requested, current });
        }
        let at = if requested > 0 { requested } else { current };
        let keys = self.past[usize::try_from(at).unwrap()].values();
        let mut kvs: Vec<KeyValue> = keys
            .filter(|kv| request.range.contains(&kv.key))
            .cloned()
            .collect();
        let count = kvs.len() as i64;
        let mut response = RangeResponse {
            revision: current,
            count,
            ..RangeResponse::default()
        };
        if request.count_only {
            return Ok(response);
        }
        let limit = usize::try_from(request.limit)
            .ok()
            .filter(|limit| *limit > 0);
        let bounds = [
            request.min_mod_revision,
            request.max_mod_revision,
            request.min_create_revision,
            request.max_create_revision,
        ];
        if request.order == SortOrder::None && bounds == [0; 4] {
            kvs.truncate(limit.map_or(usize::MAX, |limit| limit + 1));
        }
        let above = |bound: i64, revision: i64| bound != 0 && revision > bound;
        kvs.retain(|kv| {
            kv.mod_revision >= bounds[0]
                && !above(bounds[1], kv.mod_revision)
                && kv.create_revision >= bounds[2]
                && !above(bounds[3], kv.create_revision)
        });
        // Numbers for what is sorted by, negated to turn the order round without moving equals.
        let number = |kv: &KeyValue| match request.sort {
            SortTarget::Key => i64::from(kv.key[0]),
            SortTarget::Version => kv.version,
            SortTarget::Create => kv.create_revision,
            SortTarget::Mod => kv.mod_revision,
            SortTarget::Value => kv.value.first().copied().map_or(0, i64::from),
        };
        let sign = if request.order == SortOrder::Descend {
            -1
        } else {
            1
        };
        kvs.sort_by_key(|kv| sign * number(kv));
        response.more = limit.is_some_and(|limit| kvs.len() > limit);
        kvs.truncate(limit.unwrap_or(usize::MAX));
        if request.keys_only {
            kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
        }
        response.kvs = kvs;
        Ok(response)
    }

    /// All events, found by comparing each revision with the one before.
    fn events(&self) -> Vec<Event> {
        let mut events = Vec::new();
        for (n, pair) in self.past.windows(2).enumerate() {
            let (before, after, revision) = (&pair[0], &pair[1], n as i64 + 1);
            for key in before.keys().chain(after.keys()).collect::<BTreeSet<_>>() {
                let prev = before.get(key).cloned();
                match after.get(key) {
                    Some(kv) if kv.mod_revision == revision => {
                        let kv = kv.clone();
                        events.push(Event::Put { kv, prev });
                    }
                    None => events.push(Event::Delete {
                        key: key.clone(),
                        revision,
                        prev,
                    }),
                    Some(_) => {}
                }
            }
        }
        events
    }
}

proptest! {
    #[test]
    fn every_answer_is_that_of_the_model(steps in vec(step(), 1..80)) {
        let store = Store::new(Options { cluster_id: 1, history_max: 10_000 });
        let mut model = Model::new();
        let now = Instant::now();
        for step in &steps {
            match step {
                Step::Put(put) => prop_assert_eq!(store.put_with(put), model.put(put)),
                Step::Delete(delete) => {
                    let gone = model.remove(|kv| delete.range.contains(&kv.key));
                    let answer = store.delete_range(delete).unwrap();
                    prop_assert_eq!(answer.deleted, gone.len() as u64);
                    let gone = if delete.prev_kv { gone } else { Vec::new() };
                    prop_assert_eq!(answer.prev_kvs, gone);
                }
                Step::Grant(id) => {
                    let granted = store.lease_grant(*id, Duration::from_secs(60), now);
                    prop_assert_eq!(granted.is_ok(), model.leases.insert(*id));
                }
                Step::Revoke(id) => {
                    let is_known = model.leases.remove(id);
                    let gone = model.remove(|kv| kv.lease == *id).len() as u64;
                    let expected = is_known.then_some(gone);
                    prop_assert_eq!(store.lease_revoke(*id).ok(), expected);
                }
                Step::Range(range) => prop_assert_eq!(store.range(range), model.range(range)),
            }
            prop_assert_eq!(store.revision(), model.revision());
            for id in &model.leases {
                let keys = store.lease_time_to_live(*id, now).unwrap().keys;
                let on_it = model.now().values().filter(|kv| kv.lease == *id);
                prop_assert_eq!(keys, on_it.map(|kv| kv.key.clone()).collect::<Vec<_>>());
            }
        }
        let request = WatchRequest {
            range: KeyRange::prefix(b""),
            start_revision: 1,
            prev_kv: true,
            ..WatchRequest::default()
        };
        let mut watcher = store.watch(request).unwrap();
        let mut events = Vec::new();
        while let Some(batch) = watcher.recv().now_or_never() {
            events.extend(batch.unwrap().events);
        }
        prop_assert_eq!(events, model.events());
    }
}
