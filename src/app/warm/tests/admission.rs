//! Who of those on disk is restored, and as what.
use super::*;
use crate::peer::{Dial, Options as Peers, Random, Registry, Route, Timing};

/// Peers by the files in `directory`, which nobody follows.
pub(super) fn registry(directory: &Path) -> Registry {
    let options = Peers {
        directory: directory.to_owned(),
        cluster: name("east"),
        id: id(1),
        max_clusters: MaxClusters::C255,
        cache_ttl: None,
        trust: None,
        clock: crate::telemetry::wall_clock,
        timing: Timing::default(),
        dial: Dial::default(),
        random: Random::default(),
        route: tokio::sync::watch::channel(Route::Direct).1,
    };
    Registry::new(options, |_| mpsc::channel(1).0)
}

/// What is in the mesh and who holds id 2 after a restart with this peer file, of a process that knew
/// `west` as id `known` with two addresses.
async fn restarted(known: u32, file: Option<&str>) -> (View, Registry) {
    let dir = tempfile::tempdir().unwrap();
    let mut first = Process::new(dir.path());
    first.mesh.connected(&name("west"), terms(known));
    first.list(&[ip(1), ip(2)]);
    first.save();
    if let Some(text) = file {
        let text = format!("endpoints: [https://192.0.2.9:1]\n{text}");
        fs::write(dir.path().join("west.config"), text).unwrap();
    }
    let second = Process::new(dir.path());
    let (join, joining) = members::channel();
    let (view, cancel) = (second.mesh.view(), CancellationToken::new());
    let registry = registry(dir.path());
    let restored = Restored::default();
    restored.load(second.place, &join, &view, &registry).await;
    // Ends once all is taken in: nobody else has a channel.
    drop((restored, join));
    let run = members::run(second.mesh, joining, cancel);
    tokio::time::timeout(Duration::from_millis(200), run)
        .await
        .ok();
    (view, registry)
}

#[tokio::test]
async fn the_file_of_now_decides_what_of_a_restored_peer_is_enforced() {
    let addresses = async |file: &str| restarted(2, Some(file)).await.0.addresses.len();
    assert_eq!(addresses("").await, 2);
    assert_eq!(addresses("allowed-cidrs: [10.2.0.2/32]").await, 1);
    assert_eq!(addresses("allowed-cidrs: [10.3.0.0/16]").await, 0);
    assert_eq!(addresses("cluster-id: 2").await, 2);
    assert_eq!(addresses("cluster-id: 3").await, 0);
    // A bad file never takes the place of a good one.
    assert_eq!(addresses("allowed-cidrs: nonsense").await, 2);
}

/// C9 after a restart: a peer that is known keeps its id while it is dead.
#[tokio::test]
async fn c9_restored_peer_holds_its_id_until_it_is_released() {
    let (_, registry) = restarted(2, Some("")).await;
    let taken = registry.reserve(&name("north"), id(2));
    assert_eq!(taken, Err(name("west")));
    registry.release(&name("west"));
    assert_eq!(registry.reserve(&name("north"), id(2)), Ok(()));
}

#[tokio::test]
async fn what_was_saved_under_the_id_that_is_ours_now_is_not_restored() {
    let (view, _) = restarted(1, Some("")).await;
    assert!(view.addresses.is_empty() && view.terms.is_empty());
}
