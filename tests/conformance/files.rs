//! S12 to S14 and S19: what becomes of peer files, and which endpoint is taken.
use std::{os::unix::fs::symlink, path::Path};

use serde_json::{Value, json};

use super::{
    peer::{Peer, replace},
    proxy::Proxy,
    wait::eventually,
    world::World,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s12_a_removed_file_withdraws_its_peer_and_frees_the_id() {
    let (peer, north) = tokio::join!(Peer::start("west", 2), Peer::start("north", 3));
    let world = World::start();
    world.import(&north).await;
    world.import(&peer).await;
    world.settle(&north).await;
    let north_has = |what: &str| {
        what.contains("north") || what.ends_with(&north.pod()) || what.ends_with(&north.node())
    };
    let mark = world.mark();
    // Works with a dead peer as well.
    peer.proxy.cut();
    world.leave(&peer);
    eventually("withdrawn", async || {
        (world.peer("west").await == Value::Null).then_some(())
    })
    .await;
    eventually("gone from map and labels", async || {
        let map = world.map().values().all(|(_, cluster)| *cluster != 2);
        (map && !world.labels().contains_key(&peer.identity(1))).then_some(())
    })
    .await;
    assert_eq!(world.cached(&peer.config_key()), None);
    world.settle(&north).await;
    let flapped: Vec<_> = world
        .since(mark)
        .into_iter()
        .filter(|c| north_has(&c.what))
        .collect();
    assert!(flapped.is_empty(), "{flapped:?}");
    // Somebody else may have the id now.
    let south = Peer::start("south", 2).await;
    world.import(&south).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s13_a_touched_file_changes_nothing_and_new_content_reconnects_without_withdrawing() {
    let (peer, north) = tokio::join!(Peer::start("west", 2), Peer::start("north", 3));
    let world = World::start();
    world.import(&peer).await;
    world.settle(&peer).await;
    let mark = world.mark();
    let path = world.peers().join("west");
    replace(&path, &peer.file());
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_modified(std::time::SystemTime::now()).unwrap();
    // A later file was read, so the earlier one was as well.
    world.import(&north).await;
    assert_eq!(peer.proxy.connections(), 1);
    world.settle(&north).await;
    let mark_north = world.mark();
    assert!(!world.since(mark).iter().any(|c| c.what.contains("west")));
    replace(&path, &format!("# new\n{}", peer.file()));
    eventually("reconnected", async || {
        (peer.proxy.connections() == 2).then_some(())
    })
    .await;
    world.ready("west").await;
    world.settle(&peer).await;
    world.assert_nothing(mark_north);
    assert_eq!(world.peer("west").await["num-failures"], 0);
    world.stop().await;
}

/// `name` in `version`, which is what the link `..data` leads to once `swap` was called.
fn mount(peers: &Path, version: &str, name: &str, text: &str) {
    std::fs::create_dir(peers.join(version)).unwrap();
    std::fs::write(peers.join(version).join(name), text).unwrap();
}

fn swap(peers: &Path, version: &str) {
    symlink(version, peers.join("..data_tmp")).unwrap();
    std::fs::rename(peers.join("..data_tmp"), peers.join("..data")).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s14_a_swapped_secret_volume_is_new_content() {
    let peer = Peer::start("west", 2).await;
    let other_line = Proxy::start(peer.etcd.address).await;
    let world = World::start();
    let peers = world.peers();
    mount(&peers, "..v1", "west", &peer.file());
    swap(&peers, "..v1");
    symlink("..data/west", peers.join("west")).unwrap();
    world.has(&peer).await;
    world.settle(&peer).await;
    let mark = world.mark();
    let endpoint = format!("https://{}", other_line.address);
    mount(&peers, "..v2", "west", &peer.file_through(&[endpoint]));
    swap(&peers, "..v2");
    eventually("the new endpoint", async || {
        (other_line.connections() == 1).then_some(())
    })
    .await;
    world.ready("west").await;
    world.settle(&peer).await;
    world.assert_nothing(mark);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s19_a_dead_endpoint_is_passed_over() {
    let peer = Peer::start("west", 2).await;
    let world = World::start();
    // Whichever is drawn first, over several connections each is.
    for round in 0..4 {
        let live = format!("https://{}", peer.proxy.address);
        let text = peer.file_through(&[Peer::dead_endpoint(), live]);
        replace(&world.peers().join("west"), &format!("# {round}\n{text}"));
        eventually("connected", async || {
            (peer.proxy.connections() == round + 1).then_some(())
        })
        .await;
        world.has(&peer).await;
        let status = world.peer("west").await;
        assert_eq!(
            (&status["num-failures"], &status["last-failure"]),
            (&json!(0), &Value::Null)
        );
    }
    world.stop().await;
}
