//! Which number which labels get, and for how long.
use super::*;

#[tokio::test]
async fn equal_labels_share_an_identity_until_the_last_goes() {
    let dir = tempfile::tempdir().unwrap();
    let mut run = Running::start(dir.path(), &store(1), noon).await;
    let seen = run
        .send([
            upsert(workload("a", "db", "10.0.0.1")),
            upsert(workload("b", "db", "10.0.0.2")),
            upsert(workload("c", "web", "10.0.0.3")),
        ])
        .await;
    let ids: Vec<_> = seen.iter().map(|event| endpoint(event).identity).collect();
    assert!(ids[0] == ids[1] && ids[0] != ids[2]);
    let slaves = |run: &Running| {
        run.list("cilium/state/identities/v1/value/k8s:app=db")
            .len()
    };
    run.send([LocalEvent::WorkloadDelete(key("a"))]).await;
    assert_eq!(slaves(&run), 1);
    let seen = run.send([LocalEvent::WorkloadDelete(key("b"))]).await;
    assert_eq!(seen.len(), 1);
    assert_eq!(slaves(&run), 0);
    assert!(run.ip("10.0.0.1").is_none() && run.ip("10.0.0.2").is_none());
    // The master stays until the number may mean something else.
    assert!(
        run.store
            .get(identity::master_key(ids[0]).as_bytes())
            .is_some()
    );
    run.stop().await;
}

#[tokio::test]
async fn numbers_survive_a_restart_on_an_empty_store() {
    let dir = tempfile::tempdir().unwrap();
    let mut run = Running::start(dir.path(), &store(1), noon).await;
    let seen = run
        .send([upsert(workload("a", "db", "10.0.0.1")), LocalEvent::Synced])
        .await;
    let first = endpoint(&seen[0]).clone();
    run.stop().await;
    let mut run = Running::start(dir.path(), &store(2), noon).await;
    let seen = run
        .send([upsert(workload("a", "db", "10.0.0.1")), LocalEvent::Synced])
        .await;
    assert_eq!(endpoint(&seen[0]), &first);
    assert!(
        run.store
            .get(identity::master_key(first.identity).as_bytes())
            .is_some()
    );
    run.stop().await;
}

#[tokio::test]
async fn a_number_taken_by_others_is_left_to_them() {
    let dir = tempfile::tempdir().unwrap();
    let mut run = Running::start(dir.path(), &store(1), noon).await;
    let seen = run.send([upsert(workload("a", "db", "10.0.0.1"))]).await;
    let first = endpoint(&seen[0]).identity;
    run.stop().await;
    let other = store(2);
    let master = identity::master_key(first);
    other
        .put(master.clone().into(), "k8s:other=;".into(), 0)
        .unwrap();
    let mut run = Running::start(dir.path(), &other, noon).await;
    let seen = run.send([upsert(workload("a", "db", "10.0.0.1"))]).await;
    assert_ne!(endpoint(&seen[0]).identity, first);
    assert_eq!(other.get(master.as_bytes()).unwrap().value, "k8s:other=;");
    run.stop().await;
    // Another process's slave key tells its number.
    let other = store(3);
    let labels = "k8s:app=new;k8s:io.cilium.k8s.policy.cluster=west;";
    let slave = format!("cilium/state/identities/v1/value/{labels}/192.0.2.9");
    other.put(slave.into(), "786999".into(), 0).unwrap();
    let mut run = Running::start(dir.path(), &other, noon).await;
    let seen = run.send([upsert(workload("n", "new", "10.0.0.9"))]).await;
    assert_eq!(endpoint(&seen[0]).identity, IdentityId(786_999));
    run.stop().await;
}

#[tokio::test]
async fn changed_labels_mean_another_identity() {
    let dir = tempfile::tempdir().unwrap();
    let mut run = Running::start(dir.path(), &store(1), noon).await;
    let seen = run.send([upsert(workload("a", "db", "10.0.0.1"))]).await;
    let first = endpoint(&seen[0]).clone();
    let seen = run.send([upsert(workload("a", "web", "10.0.0.1"))]).await;
    let second = endpoint(&seen[0]).clone();
    assert!(first.id == second.id && first.identity != second.identity);
    assert_eq!(run.ip("10.0.0.1").unwrap().id, second.identity.0);
    let slaves = run.list("cilium/state/identities/v1/value/");
    assert_eq!(slaves.len(), 1);
    assert_eq!(slaves[0].value, second.identity.to_string());
    // Back within the rest time: the old number again.
    let seen = run.send([upsert(workload("a", "db", "10.0.0.1"))]).await;
    assert_eq!(*endpoint(&seen[0]), first);
    // Moved to another node, then without addresses.
    let moved = LocalWorkload {
        this_node: false,
        ..workload("a", "db", "10.0.0.1")
    };
    assert_eq!(
        run.send([upsert(moved)]).await,
        [EndpointEvent::Delete(first.id)]
    );
    assert!(run.ip("10.0.0.1").is_some());
    let bare = LocalWorkload {
        addresses: Vec::new(),
        ..workload("a", "db", "10.0.0.1")
    };
    assert_eq!(run.send([upsert(bare)]).await, []);
    assert!(run.list("cilium/state/ip/").is_empty());
    run.stop().await;
}

#[test]
fn a_released_number_is_no_candidate_before_it_has_rested() {
    let mut registry = Registry::default();
    let (first, last) = (IdentityId(786_432), IdentityId(786_433));
    let labels = |app: &str| Arc::clone(&workload(app, app, "10.0.0.1").labels);
    registry.set_identity(first, &labels("a"));
    registry.set_identity(last, &labels("b"));
    assert_eq!(registry.candidates(first, last), []);
    let a = labels("a").to_string();
    registry.retain_identity(&a);
    assert_eq!(registry.release_identity(&a, 1_000), 0);
    registry.purge(1_000 + 29 * 60);
    assert_eq!(registry.identity(&a), Some(first));
    registry.purge(1_000 + 30 * 60);
    assert_eq!(registry.identity(&a), None);
    assert!(
        registry
            .candidates(first, last)
            .iter()
            .all(|id| *id == first)
    );
    // The store gave b's number to c: b has none any more.
    registry.set_identity(last, &labels("c"));
    assert_eq!(registry.identity(&labels("b").to_string()), None);
    assert_eq!(registry.identity(&labels("c").to_string()), Some(last));
}

#[tokio::test]
async fn a_released_number_rests_across_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut run = Running::start(dir.path(), &store(1), noon).await;
    run.send([upsert(workload("a", "db", "10.0.0.1"))]).await;
    run.send([LocalEvent::WorkloadDelete(key("a")), LocalEvent::Synced])
        .await;
    run.stop().await;
    let text = || std::fs::read_to_string(dir.path().join("identities.json")).unwrap();
    assert!(text().contains("app=db"), "{}", text());
    let mut run = Running::start(dir.path(), &store(1), an_hour_later).await;
    // The first minute tick comes at once; the marker shows that it is over.
    run.send([]).await;
    run.stop().await;
    assert!(!text().contains("app=db"), "{}", text());
}

#[tokio::test]
async fn a_corrupt_state_file_is_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("identities.json");
    let foreign = r#"{"cluster":"east","cluster_id":12,"identities":[],"endpoints":[]}"#;
    let outside = r#"{"cluster":"west","cluster_id":12,"identities":[{"id":7,"labels":"a:b=;"}],"endpoints":[]}"#;
    for text in ["{half", foreign, outside] {
        std::fs::write(&path, text).unwrap();
        let mut run = Running::start(dir.path(), &store(1), noon).await;
        let seen = run.send([upsert(workload("a", "db", "10.0.0.1"))]).await;
        assert_eq!(seen.len(), 1);
        run.stop().await;
        assert_eq!(
            std::fs::read_to_string(path.with_extension("json.corrupt")).unwrap(),
            text
        );
        assert!(std::fs::read_to_string(&path).unwrap().contains("app=db"));
    }
    // What can't be read at all is an error, not a reason to renumber.
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    let failed = Publisher::open(options(dir.path()), connector(&store(1)), noon).await;
    assert!(matches!(failed, Err(Error::Load(_))));
}
