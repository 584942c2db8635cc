//! What a producer owes its readers at start, and across a restart.
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

/// The export that a projection makes of what `run` publishes.
fn project(run: &mut Running, dir: &Path) -> Store {
    let views = Views::new(&ExportPolicy::default(), || store(2));
    let export = views.of(None).store;
    let (_, policy) = watch::channel(ExportPolicy::default());
    let confirmed = run.confirmed.clone();
    let projection = Projection::new(options(dir), confirmed, views, policy, noon);
    run.tasks.spawn(projection.run(run.cancel.clone()));
    export
}

#[tokio::test]
async fn p1_an_empty_cluster_has_config_heartbeat_and_all_canaries() {
    let dir = tempfile::tempdir().unwrap();
    let mut run = Running::start(dir.path(), &store(1), noon).await;
    let export = project(&mut run, dir.path());
    run.events.send(LocalEvent::Synced).await.unwrap();
    let west = options(dir.path()).cluster;
    let canaries = [
        Kind::Nodes,
        Kind::Identities,
        Kind::Ips,
        Kind::Services,
        Kind::ServiceExports,
    ];
    let canaries = canaries.map(|kind| Layout::State.canary(kind, &west));
    eventually(|| {
        canaries
            .iter()
            .all(|key| export.get(key.as_bytes()).is_some())
    })
    .await;
    for key in ["cilium/cluster-config/west", "cilium/.heartbeat"] {
        assert!(export.get(key.as_bytes()).is_some(), "{key}");
    }
    assert!(list(&export, "cilium/state/").is_empty());
    run.stop().await;
}

#[tokio::test]
async fn p2_canaries_wait_for_records_that_could_not_be_written_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = store(1);
    let (left, reached) = (Arc::new(AtomicU32::new(3)), connector(&cluster));
    let failing = {
        let left = Arc::clone(&left);
        Connector::new(move || {
            let (left, reached) = (Arc::clone(&left), reached.clone());
            async move {
                let failures = left.load(Ordering::Relaxed);
                if failures > 0 {
                    left.store(failures - 1, Ordering::Relaxed);
                    return Err(crate::etcd::Error::NoEndpoint);
                }
                reached.connect().await
            }
        })
    };
    let mut run = Running::start_at(dir.path(), &cluster, failing, noon).await;
    let export = project(&mut run, dir.path());
    for event in [upsert(workload("a", "db", "10.0.0.1")), LocalEvent::Synced] {
        run.events.send(event).await.unwrap();
    }
    let canaries = || list(&export, "cilium/synced/").len();
    eventually(|| {
        let failures = left.load(Ordering::Relaxed);
        assert!(
            failures == 0 || canaries() == 0,
            "a canary before its records"
        );
        canaries() == 5
    })
    .await;
    let record = export.get(b"cilium/state/ip/v1/default/10.0.0.1").unwrap();
    let west = options(dir.path()).cluster;
    let canary = Layout::State.canary(Kind::Ips, &west);
    let canary = export.get(canary.as_bytes()).unwrap();
    assert!(canary.mod_revision > record.mod_revision);
    run.stop().await;
}

#[tokio::test]
async fn p4_a_clean_restart_deletes_nothing_and_takes_its_keys_along() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = store(1);
    let key = b"cilium/state/ip/v1/default/10.0.0.1";
    let mut run = Running::start(dir.path(), &cluster, noon).await;
    run.send([upsert(workload("a", "db", "10.0.0.1")), LocalEvent::Synced])
        .await;
    let before = cluster.get(key).unwrap();
    run.stop().await;
    let mut run = Running::start(dir.path(), &cluster, noon).await;
    run.send([upsert(workload("a", "db", "10.0.0.1")), LocalEvent::Synced])
        .await;
    let after = cluster.get(key).unwrap();
    assert_eq!(
        (after.create_revision, &after.value),
        (before.create_revision, &before.value)
    );
    assert_ne!(after.lease, before.lease);
    // The old lease ends in its time, and takes nothing with it.
    cluster.lease_revoke(before.lease).unwrap();
    assert_eq!(cluster.get(key).unwrap(), after);
    run.stop().await;
}
