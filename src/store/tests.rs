//! The store's contract, one behaviour per test.
use futures::FutureExt;

use super::*;
use crate::limits;

fn store() -> Store {
    Store::new(Options {
        cluster_id: 7,
        history_max: 1_000,
    })
}

fn put(store: &Store, key: &'static str, value: &'static str) -> i64 {
    store.put(key.into(), value.into(), 0).unwrap()
}

fn put_op(key: &'static str, value: &'static str) -> TxnOp {
    TxnOp::Put(PutRequest {
        key: key.into(),
        value: value.into(),
        ..PutRequest::default()
    })
}

fn delete_op(prefix: &str) -> TxnOp {
    TxnOp::Delete(DeleteRequest {
        range: KeyRange::prefix(prefix.as_bytes()),
        prev_kv: false,
    })
}

fn keys(response: &RangeResponse) -> Vec<&[u8]> {
    response.kvs.iter().map(|kv| &kv.key[..]).collect()
}

fn watch(store: &Store, prefix: &str, start_revision: i64) -> Result<Watcher, WatchError> {
    let range = KeyRange::prefix(prefix.as_bytes());
    store.watch(WatchRequest {
        range,
        start_revision,
        prev_kv: true,
        ..WatchRequest::default()
    })
}

/// What the watcher has ready, as `revision +key` or `revision -key`.
fn ready(watcher: &mut Watcher) -> Option<Result<Vec<String>, WatchError>> {
    let text = |event: &Event| {
        let sign = if matches!(event, Event::Put { .. }) {
            '+'
        } else {
            '-'
        };
        format!(
            "{} {sign}{}",
            event.revision(),
            String::from_utf8_lossy(event.key())
        )
    };
    let batch = watcher.recv().now_or_never()?;
    Some(batch.map(|batch| batch.events.iter().map(text).collect()))
}

#[test]
fn revisions_and_versions_count_as_in_etcd() {
    let store = store();
    assert_eq!(store.revision(), 1);
    assert_eq!(put(&store, "a", "1"), 2);
    assert_eq!(put(&store, "a", "2"), 3);
    let kv = store.get(b"a").unwrap();
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (2, 3, 2));
    assert!(store.delete(b"a"));
    assert!(!store.delete(b"a"));
    assert_eq!(store.revision(), 4, "deleting nothing makes no revision");
    put(&store, "a", "3");
    let kv = store.get(b"a").unwrap();
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (5, 5, 1));
}

#[test]
fn put_if_changed_leaves_equal_entries_alone() {
    let store = store();
    let put = |value: &'static str| store.put_if_changed("a".into(), value.into(), 0).unwrap();
    assert!(put("1"));
    assert!(!put("1"));
    assert_eq!(store.revision(), 2);
    assert!(put("2"));
    assert_eq!(store.revision(), 3);
}

#[test]
fn range_ends_select_single_keys_intervals_and_tails() {
    let store = store();
    for key in ["a", "b", "ba", "c", "\u{7f}"] {
        put(&store, key, key);
    }
    let rows: [(&[u8], &[u8], &[&str]); 6] = [
        (b"b", b"", &["b"]),
        (b"b", b"c", &["b", "ba"]),
        (b"b", b"\0", &["b", "ba", "c", "\u{7f}"]),
        (b"\0", b"\0", &["a", "b", "ba", "c", "\u{7f}"]),
        (b"c", b"b", &[]),
        (b"c", b"c", &[]),
    ];
    for (key, end, expected) in rows {
        let range = KeyRange {
            key: Bytes::copy_from_slice(key),
            range_end: Bytes::copy_from_slice(end),
        };
        let response = store
            .range(&RangeRequest {
                range,
                ..RangeRequest::default()
            })
            .unwrap();
        let expected: Vec<_> = expected.iter().map(|key| key.as_bytes()).collect();
        assert_eq!(keys(&response), expected, "{key:?}..{end:?}");
    }
    assert_eq!(&prefix_end(b"a\xff")[..], b"b");
    assert_eq!(&prefix_end(b"\xff\xff")[..], b"\0");
}

#[test]
fn covers_is_containment_of_key_sets() {
    let range = |key: &'static [u8], end: &'static [u8]| KeyRange {
        key: Bytes::from_static(key),
        range_end: Bytes::from_static(end),
    };
    let grant = range(b"b", b"d");
    assert!(grant.covers(&range(b"b", b"")) && grant.covers(&range(b"b", b"d")));
    for outside in [
        range(b"d", b""),
        range(b"a", b"c"),
        range(b"b", b"e"),
        range(b"b", b"\0"),
    ] {
        assert!(!grant.covers(&outside), "{outside:?}");
    }
    assert!(range(b"b", b"\0").covers(&range(b"c", b"\0")));
    assert!(range(b"b", b"").covers(&range(b"b", b"")));
    assert!(!range(b"b", b"").covers(&range(b"b", b"b\0")));
}

#[test]
fn limits_sorting_and_filters() {
    let store = store();
    for (key, value) in [("a", "3"), ("b", "1"), ("c", "2")] {
        put(&store, key, value);
    }
    let all = RangeRequest::prefix(b"");
    let page = store
        .range(&RangeRequest {
            limit: 2,
            ..all.clone()
        })
        .unwrap();
    assert_eq!(
        (keys(&page), page.more, page.count),
        (vec![&b"a"[..], b"b"], true, 3)
    );
    let page = store
        .range(&RangeRequest {
            limit: 3,
            ..all.clone()
        })
        .unwrap();
    assert!(!page.more);
    let sort = SortTarget::Value;
    let page = store.range(&RangeRequest {
        limit: 1,
        sort,
        order: SortOrder::Descend,
        ..all.clone()
    });
    let page = page.unwrap();
    assert_eq!((keys(&page), page.more), (vec![&b"a"[..]], true));
    let page = store
        .range(&RangeRequest {
            min_mod_revision: 4,
            ..all.clone()
        })
        .unwrap();
    assert_eq!((keys(&page), page.count), (vec![&b"c"[..]], 3));
    let page = store
        .range(&RangeRequest {
            count_only: true,
            ..all.clone()
        })
        .unwrap();
    assert_eq!((page.kvs.len(), page.count), (0, 3));
    let page = store
        .range(&RangeRequest {
            keys_only: true,
            ..all
        })
        .unwrap();
    assert!(page.kvs.iter().all(|kv| kv.value.is_empty()));
}

#[test]
fn the_past_is_readable_until_compacted() {
    let store = store();
    put(&store, "a", "1");
    put(&store, "b", "1");
    put(&store, "a", "2");
    store.delete(b"b");
    let at = |revision| {
        store.range(&RangeRequest {
            revision,
            ..RangeRequest::prefix(b"")
        })
    };
    let past = at(3).unwrap();
    assert_eq!(past.revision, 5);
    assert_eq!(keys(&past), [b"a", b"b"]);
    assert_eq!(past.kvs[0].value, "1");
    assert!(at(1).unwrap().kvs.is_empty());
    assert_eq!(
        at(6),
        Err(Error::FutureRevision {
            requested: 6,
            current: 5
        })
    );
    store.compact(3).unwrap();
    assert_eq!(
        at(2),
        Err(Error::Compacted {
            compact_revision: 3
        })
    );
    assert_eq!(keys(&at(3).unwrap()), [b"a", b"b"]);
    assert_eq!(
        store.compact(3),
        Err(Error::Compacted {
            compact_revision: 3
        })
    );
    assert_eq!(
        store.compact(9),
        Err(Error::FutureRevision {
            requested: 9,
            current: 5
        })
    );
}

#[test]
fn history_is_bounded_by_events() {
    let store = Store::new(Options {
        cluster_id: 1,
        history_max: 3,
    });
    for _ in 0..10 {
        put(&store, "a", "1");
    }
    assert_eq!((store.revision(), store.compact_revision()), (11, 9));
    assert!(store.len_bytes() <= 2 + 3 * 4);
}

#[test]
fn put_options_are_checked() {
    let store = store();
    let request = PutRequest {
        key: "a".into(),
        ..PutRequest::default()
    };
    let keep = PutRequest {
        ignore_value: true,
        ..request.clone()
    };
    assert_eq!(store.put_with(&keep), Err(Error::KeyNotFound));
    put(&store, "a", "1");
    let lease = 9;
    store
        .lease_grant(lease, Duration::from_secs(5), Instant::now())
        .unwrap();
    store
        .put_with(&PutRequest {
            lease,
            ..keep.clone()
        })
        .unwrap();
    let keep_lease = PutRequest {
        ignore_lease: true,
        value: "2".into(),
        prev_kv: true,
        ..request
    };
    let prev = store.put_with(&keep_lease).unwrap().prev_kv.unwrap();
    assert_eq!((prev.value, prev.lease), ("1".into(), 9));
    assert_eq!(store.get(b"a").unwrap().lease, 9);
    let both = PutRequest {
        value: "x".into(),
        ..keep
    };
    assert_eq!(store.put_with(&both), Err(Error::ValueProvided));
    let both = PutRequest {
        lease: 9,
        ..keep_lease
    };
    assert_eq!(store.put_with(&both), Err(Error::LeaseProvided));
    assert_eq!(
        store.put(Bytes::new(), Bytes::new(), 0),
        Err(Error::EmptyKey)
    );
    assert_eq!(
        store.put("a".into(), Bytes::new(), 5),
        Err(Error::LeaseNotFound { id: 5 })
    );
}

#[test]
fn transactions_take_one_revision_and_one_branch() {
    let store = store();
    let absent = Compare {
        range: KeyRange::single("lock"),
        op: CompareOp::Equal,
        target: CompareTarget::Create(0),
    };
    let txn = Txn {
        compare: vec![absent],
        success: vec![
            put_op("lock", "me"),
            put_op("x", "1"),
            TxnOp::Range(RangeRequest::prefix(b"")),
        ],
        failure: vec![TxnOp::Range(RangeRequest::prefix(b"lock"))],
    };
    let done = store.txn(&txn).unwrap();
    assert!(done.succeeded);
    assert_eq!((done.revision, store.revision()), (2, 2));
    let TxnOpResponse::Range(seen) = &done.responses[2] else {
        panic!("{done:?}")
    };
    assert_eq!(seen.kvs.len(), 2, "steps see the ones before");
    let done = store.txn(&txn).unwrap();
    assert!(!done.succeeded);
    assert_eq!(done.revision, 2, "reading makes no revision");
}

#[test]
fn comparisons_on_ranges_hold_for_every_key() {
    let store = store();
    let check = |target, op| {
        let compare = vec![Compare {
            range: KeyRange::prefix(b"k"),
            op,
            target,
        }];
        store
            .txn(&Txn {
                compare,
                ..Txn::default()
            })
            .unwrap()
            .succeeded
    };
    assert!(
        check(CompareTarget::Version(0), CompareOp::Equal),
        "absent keys have zeros"
    );
    assert!(
        !check(CompareTarget::Value(Bytes::new()), CompareOp::Equal),
        "but no value"
    );
    put(&store, "k1", "v");
    put(&store, "k2", "v");
    assert!(check(CompareTarget::Value("v".into()), CompareOp::Equal));
    assert!(check(CompareTarget::Mod(1), CompareOp::Greater));
    assert!(!check(CompareTarget::Mod(2), CompareOp::Greater));
    assert!(check(CompareTarget::Lease(1), CompareOp::Less));
    assert!(check(CompareTarget::Create(9), CompareOp::NotEqual));
}

#[test]
fn transactions_that_cannot_be_done_change_nothing() {
    let store = store();
    let run = |success: Vec<TxnOp>| {
        store.txn(&Txn {
            success,
            ..Txn::default()
        })
    };
    let nested = |op: TxnOp| {
        TxnOp::Txn(Txn {
            success: vec![op],
            ..Txn::default()
        })
    };
    let lost = TxnOp::Put(PutRequest {
        key: "b".into(),
        lease: 5,
        ..PutRequest::default()
    });
    assert_eq!(
        run(vec![put_op("a", ""), lost]),
        Err(Error::LeaseNotFound { id: 5 })
    );
    assert_eq!(
        run(vec![put_op("a", ""), put_op("a", "")]),
        Err(Error::DuplicateKey)
    );
    assert_eq!(
        run(vec![put_op("a", ""), delete_op("a")]),
        Err(Error::DuplicateKey)
    );
    assert_eq!(
        run(vec![put_op("a", ""), nested(put_op("a", ""))]),
        Err(Error::DuplicateKey)
    );
    assert_eq!(
        run(vec![delete_op("a"), nested(put_op("a", ""))]),
        Err(Error::DuplicateKey)
    );
    let deep = (0..=limits::TXN_DEPTH_MAX).fold(put_op("a", ""), |op, _| nested(op));
    assert_eq!(run(vec![deep]), Err(Error::TooDeep));
    let future = RangeRequest {
        revision: 9,
        ..RangeRequest::prefix(b"")
    };
    let future = run(vec![put_op("a", ""), TxnOp::Range(future)]);
    assert_eq!(
        future,
        Err(Error::FutureRevision {
            requested: 9,
            current: 1
        })
    );
    assert_eq!((store.revision(), store.len()), (1, 0));
    let either = Txn {
        success: vec![put_op("a", "")],
        failure: vec![put_op("a", "")],
        ..Txn::default()
    };
    assert!(
        run(vec![TxnOp::Txn(either)]).is_ok(),
        "only one branch runs"
    );
}

#[test]
fn leases_take_their_keys_along_in_one_revision() {
    let store = store();
    let start = Instant::now();
    let second = Duration::from_secs(1);
    let id = 7;
    store.lease_grant(id, second * 10, start).unwrap();
    let exists = store.lease_grant(id, second, start);
    assert_eq!(exists, Err(Error::LeaseExists { id }));
    assert_eq!(
        store.lease_grant(8, Duration::MAX, start),
        Err(Error::LeaseTtlTooLarge)
    );
    for key in ["a", "b", "c"] {
        store.put(key.into(), "1".into(), id).unwrap();
    }
    put(&store, "b", "detached");
    let status = store.lease_time_to_live(id, start + second * 4).unwrap();
    assert_eq!(
        (status.granted, status.remaining),
        (second * 10, second * 6)
    );
    assert_eq!(status.keys, ["a", "c"]);
    assert_eq!(
        store.lease_keep_alive(id, start + second * 9),
        Ok(second * 10)
    );
    assert_eq!(store.expire(start + second * 18), 0);
    let lost = store.lease_keep_alive(id, start + second * 19);
    assert_eq!(
        lost,
        Err(Error::LeaseNotFound { id }),
        "too late, even before the sweep"
    );
    let revision = store.revision();
    assert_eq!(store.expire(start + second * 19), 1);
    assert_eq!((store.revision(), store.len()), (revision + 1, 1));
    assert_eq!(store.lease_revoke(id), Err(Error::LeaseNotFound { id }));
    assert!(store.leases().is_empty());
}

#[test]
fn revoked_leases_delete_their_keys() {
    let store = store();
    let id = 3;
    store
        .lease_grant(id, Duration::from_secs(9), Instant::now())
        .unwrap();
    store.put("a".into(), Bytes::new(), id).unwrap();
    let mut watcher = watch(&store, "", 0).unwrap();
    assert_eq!(store.lease_revoke(id), Ok(1));
    assert_eq!(ready(&mut watcher), Some(Ok(vec!["3 -a".to_owned()])));
}

#[test]
fn watches_deliver_the_past_then_the_present() {
    let store = store();
    put(&store, "a1", "1");
    put(&store, "b1", "1");
    store.delete(b"a1");
    let mut all = watch(&store, "a", 1).unwrap();
    assert_eq!(
        ready(&mut all),
        Some(Ok(vec!["2 +a1".to_owned(), "4 -a1".to_owned()]))
    );
    assert_eq!(ready(&mut all), None);
    assert_eq!(all.position().get(), 4);
    let mut from_now = watch(&store, "", 0).unwrap();
    let mut from_future = watch(&store, "", 7).unwrap();
    assert_eq!(ready(&mut from_now), None);
    put(&store, "b2", "1");
    put(&store, "b3", "1");
    put(&store, "b4", "1");
    assert_eq!(ready(&mut all), None, "other keys");
    assert_eq!(all.position().get(), 7, "but it knows how far it looked");
    let three = ["5 +b2", "6 +b3", "7 +b4"].map(str::to_owned).to_vec();
    assert_eq!(ready(&mut from_now), Some(Ok(three)));
    assert_eq!(ready(&mut from_future), Some(Ok(vec!["7 +b4".to_owned()])));
}

#[tokio::test]
async fn a_waiting_watch_wakes_and_carries_previous_values() {
    let store = store();
    put(&store, "a", "1");
    let mut watcher = watch(&store, "a", 0).unwrap();
    let writer = async {
        tokio::task::yield_now().await;
        put(&store, "a", "2");
    };
    let (batch, ()) = tokio::join!(watcher.recv(), writer);
    let batch = batch.unwrap();
    assert_eq!(batch.revision, 3);
    assert_eq!(batch.events[0].prev().unwrap().value, "1");
}

#[test]
fn watch_filters_leave_events_out() {
    let store = store();
    let range = KeyRange::single("a");
    let request = WatchRequest {
        range,
        start_revision: 1,
        no_put: true,
        ..WatchRequest::default()
    };
    let mut deletes = store.watch(request.clone()).unwrap();
    let request = WatchRequest {
        no_put: false,
        no_delete: true,
        ..request
    };
    let mut puts = store.watch(request).unwrap();
    put(&store, "a", "1");
    store.delete(b"a");
    assert_eq!(ready(&mut deletes), Some(Ok(vec!["3 -a".to_owned()])));
    assert_eq!(ready(&mut puts), Some(Ok(vec!["2 +a".to_owned()])));
}

#[test]
fn a_slow_watch_learns_that_its_revision_is_gone() {
    let store = Store::new(Options {
        cluster_id: 1,
        history_max: 3,
    });
    put(&store, "a", "0");
    let mut slow = watch(&store, "a", 0).unwrap();
    for _ in 0..4 {
        put(&store, "a", "1");
    }
    let compacted = WatchError::Compacted {
        compact_revision: 4,
    };
    assert_eq!(ready(&mut slow), Some(Err(compacted.clone())));
    assert_eq!(watch(&store, "a", 3).unwrap_err(), compacted);
    let mut resumed = watch(&store, "a", 4).unwrap();
    assert_eq!(
        ready(&mut resumed).unwrap().unwrap().len(),
        3,
        "the compacted revision itself"
    );
}

#[test]
fn watch_messages_are_cut_between_revisions() {
    let store = Store::new(Options {
        cluster_id: 1,
        history_max: 10_000,
    });
    let mut watcher = watch(&store, "", 0).unwrap();
    for _ in 0..limits::WATCH_BATCH_EVENTS + 1 {
        put(&store, "a", "1");
    }
    let first = ready(&mut watcher).unwrap().unwrap();
    assert_eq!(first.len(), limits::WATCH_BATCH_EVENTS);
    assert_eq!(ready(&mut watcher).unwrap().unwrap().len(), 1);
}
