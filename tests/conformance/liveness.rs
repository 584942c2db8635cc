//! S15 to S18: signs of life, and that they are of one store.
use std::time::{Duration, Instant};

use serde_json::json;
use tombolo::{keyspace::HEARTBEAT, peer::Timing};

use super::{
    peer::Peer,
    relay::{Fault, Relay},
    wait::eventually,
    world::{Setup, World},
};

/// Two minutes, in a case's time.
const STALE: Duration = Duration::from_secs(3);

fn world() -> World {
    let timing = Timing {
        heartbeat_stale: STALE,
        ..Timing::default()
    };
    World::with(Setup {
        timing,
        ..Setup::default()
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s15_a_heartbeat_that_stops_leads_to_a_new_connection() {
    let (peer, world) = (Peer::start("west", 2).await, world());
    world.import(&peer).await;
    world.settle(&peer).await;
    let mark = world.mark();
    let status = world
        .until("west", "fails", |p| p["num-failures"] == 1)
        .await;
    assert!(
        status["status"].as_str().unwrap().contains("no heartbeat"),
        "{status}"
    );
    eventually("reconnected", async || {
        (peer.proxy.connections() >= 2).then_some(())
    })
    .await;
    world.ready("west").await;
    world.settle(&peer).await;
    world.assert_nothing(mark);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s16_the_deletion_of_the_heartbeat_is_no_beat() {
    let (peer, world) = (Peer::start("west", 2).await, world());
    world.import(&peer).await;
    world.settle(&peer).await;
    let mark = world.mark();
    peer.etcd.put(HEARTBEAT, "last").await;
    let last = Instant::now();
    tokio::time::sleep_until((last + STALE.mul_f32(0.8)).into()).await;
    assert_eq!(world.peer("west").await["num-failures"], 0);
    peer.etcd.delete(HEARTBEAT).await;
    world
        .until("west", "fails", |p| p["num-failures"] == 1)
        .await;
    // Counted from the deletion it would be later.
    assert!(last.elapsed() < STALE.mul_f32(1.7), "{:?}", last.elapsed());
    eventually("reconnected", async || {
        (peer.proxy.connections() >= 2).then_some(())
    })
    .await;
    world.assert_nothing(mark);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s17_any_text_is_a_heartbeat() {
    let (peer, world) = (Peer::start("west", 2).await, world());
    world.import(&peer).await;
    let from = Instant::now();
    while from.elapsed() < STALE * 2 {
        peer.etcd.put(HEARTBEAT, "garbage").await;
        tokio::time::sleep(STALE / 6).await;
        let status = world.peer("west").await;
        assert_eq!(
            (&status["ready"], &status["num-failures"]),
            (&json!(true), &json!(0)),
            "{status}"
        );
    }
    assert_eq!(peer.proxy.connections(), 1);
    world.has(&peer).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s18_a_reply_of_another_cluster_or_without_header_ends_the_connection() {
    let peer = Peer::start("west", 2).await;
    let relay = Relay::start(&peer.etcd).await;
    let world = World::start();
    let path = world.peers().join("west");
    super::peer::replace(
        &path,
        &format!("endpoints: [\"http://{}\"]\n", relay.address),
    );
    world.has(&peer).await;
    world.settle(&peer).await;
    let mark = world.mark();
    for (failures, fault) in [
        (1, Fault::OtherCluster),
        (2, Fault::NoHeader),
        (3, Fault::ZeroCluster),
    ] {
        // The next reply of the watches is the one.
        relay.faults.next_watch_reply(fault);
        peer.etcd.put(HEARTBEAT, "now").await;
        let status = world
            .until("west", "fails", |p| {
                p["num-failures"].as_u64() >= Some(failures)
            })
            .await;
        assert_eq!(status["num-failures"], failures, "{fault:?}");
        world.ready("west").await;
        world.settle(&peer).await;
        world.assert_nothing(mark);
    }
    // One behind one address after another: the whole of it is listed again.
    world.stop().await;
}
