//! The `etcd-client` crate over loopback and within the process.
use etcd_client::{
    Compare, CompareOp, DeleteOptions, Error, EventType, GetOptions, LeaseGrantOptions, PutOptions,
    SortOrder, SortTarget, Txn, TxnOp, WatchOptions, WatchStream,
};
use tokio_util::sync::CancellationToken;
use tombolo::{
    serve,
    store::{Options, Store},
};

use super::{Face, within};

/// The answer to a watch request comes first on its stream.
async fn created(stream: &mut WatchStream) -> i64 {
    let created = within(stream.message()).await.unwrap().unwrap();
    assert!(created.created() && !created.canceled(), "{created:?}");
    created.watch_id()
}

fn code(error: Error) -> (i32, String) {
    match error {
        Error::GRpcStatus(status) => (status.code() as i32, status.message().to_owned()),
        other => panic!("not a status: {other}"),
    }
}

#[tokio::test]
async fn keys_ranges_and_headers() {
    let face = Face::start("admin-west").await;
    let mut client = face.client().await;
    let put = client.put("a/1", "x", None).await.unwrap();
    let header = put.header().unwrap();
    assert_eq!((header.cluster_id(), header.revision()), (11, 2));
    assert!(header.member_id() != 0 && header.raft_term() != 0);
    client.put("a/2", "y", None).await.unwrap();
    let put = client
        .put("a/1", "z", Some(PutOptions::new().with_prev_key()))
        .await
        .unwrap();
    assert_eq!(put.prev_key().unwrap().value(), b"x");

    let options = GetOptions::new().with_prefix().with_limit(1);
    let got = client.get("a/", Some(options)).await.unwrap();
    assert_eq!((got.count(), got.more(), got.kvs().len()), (2, true, 1));
    assert_eq!(got.kvs()[0].version(), 2);
    let options = GetOptions::new().with_prefix().with_revision(2);
    let got = client.get("a/", Some(options)).await.unwrap();
    assert_eq!(got.kvs()[0].value(), b"x");
    assert_eq!(got.header().unwrap().revision(), 4);
    let options = GetOptions::new()
        .with_prefix()
        .with_sort(SortTarget::Mod, SortOrder::Descend);
    let got = client.get("a/", Some(options)).await.unwrap();
    assert_eq!(got.kvs()[0].key(), b"a/1");
    let options = DeleteOptions::new().with_prefix().with_prev_key();
    let gone = client.delete("a/", Some(options)).await.unwrap();
    assert_eq!((gone.deleted(), gone.prev_kvs().len()), (2, 2));

    client.compact(3, None).await.unwrap();
    let error = client
        .get("a", Some(GetOptions::new().with_revision(2)))
        .await
        .unwrap_err();
    let text = "etcdserver: mvcc: required revision has been compacted".to_owned();
    assert_eq!(code(error), (11, text));
    let status = client.status().await.unwrap();
    assert_eq!(status.version(), "3.5.0");
    face.stop().await;
}

#[tokio::test]
async fn transactions_and_their_errors() {
    let face = Face::start("admin-west").await;
    let mut client = face.client().await;
    let lock = Txn::new()
        .when([Compare::create_revision("lock", CompareOp::Equal, 0)])
        .and_then([TxnOp::put("lock", "me", None)])
        .or_else([TxnOp::get("lock", None)]);
    assert!(client.txn(lock.clone()).await.unwrap().succeeded());
    let second = client.txn(lock).await.unwrap();
    assert!(!second.succeeded());
    assert_eq!(second.op_responses().len(), 1);

    let twice = Txn::new().and_then([TxnOp::put("a", "", None), TxnOp::put("a", "", None)]);
    let text = "etcdserver: duplicate key given in txn request".to_owned();
    assert_eq!(code(client.txn(twice).await.unwrap_err()), (3, text));
    let many: Vec<_> = (0..129)
        .map(|i| TxnOp::put(format!("{i}"), "", None))
        .collect();
    let text = "etcdserver: too many operations in txn request".to_owned();
    assert_eq!(
        code(client.txn(Txn::new().and_then(many)).await.unwrap_err()),
        (3, text)
    );
    face.stop().await;
}

#[tokio::test]
async fn watches_share_a_stream_and_end_one_by_one() {
    let face = Face::start("admin-west").await;
    let mut client = face.client().await;
    client.put("a", "1", None).await.unwrap();
    let options = WatchOptions::new().with_start_revision(1).with_prev_key();
    let mut stream = within(client.watch("a", Some(options))).await.unwrap();
    assert_eq!(created(&mut stream).await, 0);
    let past = within(stream.message()).await.unwrap().unwrap();
    assert_eq!((past.watch_id(), past.events().len()), (0, 1));
    stream
        .watch("b", Some(WatchOptions::new().with_prefix()))
        .await
        .unwrap();
    assert_eq!(created(&mut stream).await, 1);

    client.put("b1", "1", None).await.unwrap();
    let event = within(stream.message()).await.unwrap().unwrap();
    assert_eq!(
        (event.watch_id(), event.header().unwrap().revision()),
        (1, 3)
    );
    client.delete("a", None).await.unwrap();
    let event = within(stream.message()).await.unwrap().unwrap();
    assert_eq!(event.events()[0].event_type(), EventType::Delete);
    assert_eq!(event.events()[0].kv().unwrap().mod_revision(), 4);
    assert_eq!(event.events()[0].prev_kv().unwrap().value(), b"1");

    stream.request_progress().await.unwrap();
    let progress = within(stream.message()).await.unwrap().unwrap();
    assert_eq!(
        (progress.watch_id(), progress.header().unwrap().revision()),
        (-1, 4)
    );
    stream.cancel(0).await.unwrap();
    let canceled = within(stream.message()).await.unwrap().unwrap();
    assert!(canceled.canceled() && canceled.watch_id() == 0);

    client.compact(4, None).await.unwrap();
    let options = WatchOptions::new().with_start_revision(2);
    stream.watch("a", Some(options)).await.unwrap();
    created(&mut stream).await;
    let compacted = within(stream.message()).await.unwrap().unwrap();
    assert!(compacted.canceled());
    assert_eq!(compacted.compact_revision(), 4);

    let served = face.served;
    face.cancel.cancel();
    assert!(
        within(stream.message()).await.is_err(),
        "open streams end with the server"
    );
    within(served).await.unwrap().unwrap();
}

#[tokio::test]
async fn leases_grant_renew_and_revoke() {
    let face = Face::start("admin-west").await;
    let mut client = face.client().await;
    let lease = client.lease_grant(30, None).await.unwrap();
    client
        .put("a", "1", Some(PutOptions::new().with_lease(lease.id())))
        .await
        .unwrap();
    let (mut keeper, mut answers) = client.lease_keep_alive(lease.id()).await.unwrap();
    keeper.keep_alive().await.unwrap();
    assert_eq!(within(answers.message()).await.unwrap().unwrap().ttl(), 30);
    let leases = client.leases().await.unwrap();
    assert_eq!(leases.leases()[0].id(), lease.id());
    let exists = LeaseGrantOptions::new().with_id(lease.id());
    let error = client.lease_grant(5, Some(exists)).await.unwrap_err();
    assert_eq!(
        code(error),
        (9, "etcdserver: lease already exists".to_owned())
    );
    client.lease_revoke(lease.id()).await.unwrap();
    assert!(client.get("a", None).await.unwrap().kvs().is_empty());
    let gone = client.lease_time_to_live(lease.id(), None).await.unwrap();
    assert_eq!(gone.ttl(), -1);
    let error = client.lease_revoke(lease.id()).await.unwrap_err();
    assert_eq!(
        code(error),
        (5, "etcdserver: requested lease not found".to_owned())
    );
    face.stop().await;
}

#[tokio::test]
async fn expired_leases_delete_keys() {
    let face = Face::start("admin-west").await;
    let expiry = serve::store_expiry(face.cluster().clone(), face.cancel.clone());
    let expiry = tokio::spawn(expiry);
    let mut client = face.client().await;
    let lease = client.lease_grant(1, None).await.unwrap();
    client
        .put("a", "1", Some(PutOptions::new().with_lease(lease.id())))
        .await
        .unwrap();
    let mut stream = client.watch("a", None).await.unwrap();
    created(&mut stream).await;
    let event = within(stream.message()).await.unwrap().unwrap();
    assert_eq!(event.events()[0].event_type(), EventType::Delete);
    face.stop().await;
    within(expiry).await.unwrap();
}

#[tokio::test]
async fn peers_read_their_grants_and_nothing_else() {
    let face = Face::start("remote-east").await;
    let export = face.export();
    export
        .put("cilium/state/nodes/v1/west/n".into(), "{}".into(), 0)
        .unwrap();
    let mut client = face.client().await;
    let denied = (7, "etcdserver: permission denied".to_owned());
    let prefix = || Some(GetOptions::new().with_prefix());
    assert_eq!(
        client.get("cilium/state/", prefix()).await.unwrap().count(),
        1
    );
    client
        .get("cilium/cluster-config/west", None)
        .await
        .unwrap();
    for outside in [
        "cilium/",
        "cilium/cluster-config/",
        "cilium/cache/",
        "cilium/synced/east/",
    ] {
        assert_eq!(
            code(client.get(outside, prefix()).await.unwrap_err()),
            denied,
            "{outside}"
        );
    }
    let key = "cilium/state/x";
    assert_eq!(code(client.put(key, "", None).await.unwrap_err()), denied);
    assert_eq!(code(client.delete(key, None).await.unwrap_err()), denied);
    assert_eq!(code(client.compact(1, None).await.unwrap_err()), denied);
    let txn = Txn::new().or_else([TxnOp::put(key, "", None)]);
    assert_eq!(
        code(client.txn(txn).await.unwrap_err()),
        denied,
        "also in the branch not taken"
    );
    let txn = Txn::new().and_then([TxnOp::get(key, None)]);
    assert!(client.txn(txn).await.unwrap().succeeded());
    client.lease_grant(5, None).await.unwrap();

    let mut stream = client
        .watch(
            "cilium/state/",
            Some(WatchOptions::new().with_prefix().with_start_revision(1)),
        )
        .await
        .unwrap();
    created(&mut stream).await;
    assert_eq!(
        within(stream.message())
            .await
            .unwrap()
            .unwrap()
            .events()
            .len(),
        1
    );
    stream
        .watch("cilium/", Some(WatchOptions::new().with_prefix()))
        .await
        .unwrap();
    let refused = within(stream.message()).await.unwrap().unwrap();
    assert!(refused.created() && refused.canceled());
    assert!(
        refused
            .cancel_reason()
            .contains("etcdserver: permission denied")
    );
    drop(stream);
    face.stop().await;
}

#[tokio::test]
async fn unknown_names_may_do_nothing() {
    let face = Face::start("admin-east").await;
    let mut client = face.client().await;
    let denied = (7, "etcdserver: permission denied".to_owned());
    assert_eq!(
        code(client.get("cilium/.heartbeat", None).await.unwrap_err()),
        denied
    );
    assert_eq!(code(client.status().await.unwrap_err()), denied);
    assert_eq!(code(client.lease_grant(5, None).await.unwrap_err()), denied);
    assert_eq!(code(client.leases().await.unwrap_err()), denied);
    let unimplemented = code(client.user_list().await.unwrap_err());
    assert_eq!(unimplemented.0, 12);
    assert!(!unimplemented.1.is_empty());
    face.stop().await;
}

#[tokio::test]
async fn the_own_process_needs_no_socket() {
    let store = Store::new(Options {
        cluster_id: 5,
        history_max: 10,
    });
    let cancel = CancellationToken::new();
    let channel = serve::in_process(store.clone(), cancel.clone());
    let mut client = etcd_client::Client::from_channel(channel, None)
        .await
        .unwrap();
    client.put("a", "1", None).await.unwrap();
    let mut stream = within(client.watch("", Some(WatchOptions::new().with_all_keys())))
        .await
        .unwrap();
    created(&mut stream).await;
    store.put("b".into(), "2".into(), 0).unwrap();
    let event = within(stream.message()).await.unwrap().unwrap();
    assert_eq!(event.header().unwrap().cluster_id(), 5);
    assert_eq!(event.events()[0].kv().unwrap().key(), b"b");
    cancel.cancel();
    assert!(within(stream.message()).await.is_err());
}

#[tokio::test]
async fn a_connection_lasts_for_any_number_of_reads() {
    let face = Face::start("admin-west").await;
    let mut client = face.client().await;
    for _ in 0..3_000 {
        assert_eq!(client.get("k", None).await.unwrap().count(), 0);
    }
    face.stop().await;
}
