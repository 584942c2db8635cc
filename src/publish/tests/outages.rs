//! What happens while the cluster store, a lease or a record of ours is lost.
use super::*;

#[tokio::test]
async fn p3_a_lost_lease_is_replaced_and_what_was_on_it_is_written_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut run = Running::start(dir.path(), &store(1), noon).await;
    let seen = run.send([upsert(workload("a", "db", "10.0.0.1"))]).await;
    let id = endpoint(&seen[0]).identity;
    let record = b"cilium/state/ip/v1/default/10.0.0.1";
    let lease = run.store.get(record).unwrap().lease;
    run.store.lease_revoke(lease).unwrap();
    assert!(run.store.get(record).is_none());
    // Any write notices.
    run.send([upsert(workload("b", "web", "10.0.0.2"))]).await;
    let again = run.store.get(record).unwrap();
    assert!(again.lease != lease && again.lease != 0);
    let slaves = run.list("cilium/state/identities/v1/value/k8s:app=db;");
    assert_eq!(slaves.len(), 1);
    assert_eq!(
        (&slaves[0].value, slaves[0].lease),
        (&id.to_string().into(), again.lease)
    );
    for key in ["cilium/cluster-config/west", "cilium/.heartbeat"] {
        let kv = run.store.get(key.as_bytes()).unwrap();
        assert_eq!(kv.lease, again.lease, "{key}");
    }
    run.stop().await;
}

#[tokio::test]
async fn labels_that_others_numbered_while_our_lease_was_lost_take_that_number() {
    let dir = tempfile::tempdir().unwrap();
    let mut run = Running::start(dir.path(), &store(1), noon).await;
    let seen = run.send([upsert(workload("a", "db", "10.0.0.1"))]).await;
    let first = endpoint(&seen[0]).clone();
    let lease = run.store.get(b"cilium/state/ip/v1/default/10.0.0.1");
    run.store.lease_revoke(lease.unwrap().lease).unwrap();
    let theirs = IdentityId(if first.identity.0 == 786_999 {
        786_998
    } else {
        786_999
    });
    let text = first.labels.to_string();
    run.store
        .put(identity::master_key(theirs).into(), text.into(), 0)
        .unwrap();
    let slave = identity::slave_key(&first.labels, "192.0.2.9");
    run.store
        .put(slave.into(), theirs.to_string().into(), 0)
        .unwrap();
    let seen = run.send([upsert(workload("b", "web", "10.0.0.2"))]).await;
    let changed = seen.iter().map(endpoint).find(|e| e.id == first.id);
    assert_eq!(changed.unwrap().identity, theirs);
    assert_eq!(run.ip("10.0.0.1").unwrap().id, theirs.0);
    for slave in run.list("cilium/state/identities/v1/value/k8s:app=db;") {
        assert_eq!(slave.value, theirs.to_string());
    }
    run.stop().await;
}

#[tokio::test]
async fn a_confirmed_connection_finds_what_others_took_away() {
    let dir = tempfile::tempdir().unwrap();
    let mut run = Running::start(dir.path(), &store(1), noon).await;
    let seen = run
        .send([upsert(workload("a", "db", "10.0.0.1")), LocalEvent::Synced])
        .await;
    let first = endpoint(&seen[0]).clone();
    let record = b"cilium/state/ip/v1/default/10.0.0.1";
    assert!(run.store.delete(record));
    run.confirmed.connect().await.unwrap();
    assert!(run.store.get(record).is_some());
    // The number got other labels while our slave key was gone: the labels get another number.
    let master = identity::master_key(first.identity);
    run.store
        .delete_prefix(b"cilium/state/identities/v1/value/");
    run.store
        .put(master.clone().into(), "k8s:other=;".into(), 0)
        .unwrap();
    run.confirmed.connect().await.unwrap();
    let second = run.ip("10.0.0.1").unwrap().id;
    assert_ne!(second, first.identity.0);
    assert_eq!(
        run.store.get(master.as_bytes()).unwrap().value,
        "k8s:other=;"
    );
    let event = run.endpoints.recv().await.unwrap();
    assert_eq!(endpoint(&event).identity.0, second);
    run.stop().await;
}

#[tokio::test]
async fn another_nodes_record_outlives_our_deletion() {
    let dir = tempfile::tempdir().unwrap();
    let mut run = Running::start(dir.path(), &store(1), noon).await;
    run.send([upsert(workload("a", "db", "10.0.0.1"))]).await;
    let record = "cilium/state/ip/v1/default/10.0.0.1";
    let ttl = Duration::from_secs(60);
    run.store
        .lease_grant(99, ttl, std::time::Instant::now())
        .unwrap();
    run.store.put(record.into(), "theirs".into(), 99).unwrap();
    run.send([LocalEvent::WorkloadDelete(key("a"))]).await;
    assert_eq!(run.store.get(record.as_bytes()).unwrap().value, "theirs");
    run.stop().await;
}

#[tokio::test]
async fn local_changes_go_on_while_the_store_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let lost = Connector::new(|| async { Err(crate::etcd::Error::NoEndpoint) });
    let mut run = Running::start_at(dir.path(), &store(1), lost, noon).await;
    run.events
        .send(upsert(workload("a", "db", "10.0.0.1")))
        .await
        .unwrap();
    run.events.send(LocalEvent::Synced).await.unwrap();
    let waits = |s: &Status| s.waiting == 1 && s.errors().count() == 1;
    run.status.wait_for(waits).await.unwrap();
    // Nobody may take a workload that waits for its number for gone.
    assert!(run.endpoints.try_recv().is_err() && !*run.synced.borrow());
    run.events
        .send(LocalEvent::WorkloadDelete(key("a")))
        .await
        .unwrap();
    assert_eq!(run.endpoints.recv().await, Some(EndpointEvent::Synced));
    run.stop().await;
}
